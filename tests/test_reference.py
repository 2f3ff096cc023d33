"""The reference documents everything public, finds who uses it, and reads formulas as formulas.

Also what the page *Status* and the last line of ``make test`` count.
"""

from __future__ import annotations

import inspect
import json
import re
import shutil
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from sphinx.ext.napoleon import Config, GoogleDocstring

import notebooks
import summary
from notebooks import ROOT

sys.path.insert(0, str(ROOT / "book/_ext"))
import otbook_reference as ref

ENTRIES = ref.reference()
PAGES = ROOT / "book/appendix/api"


# --- Everything public is documented -------------------------------------------------------------


def documented_modules(folder=PAGES):
    """The modules that the pages of the reference document."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.md")))
    return re.findall(r"^```\{otbook-module\} (\S+)$", text, re.MULTILINE)


def undocumented(entries):
    return [entry.name for entry in entries if not entry.doc.strip()]


def without_example(entries):
    return [entry.name for entry in entries if entry.needs_example and ">>>" not in entry.doc]


def missing(entries, modules):
    return [entry.name for entry in entries if entry.home not in modules]


def test_every_public_name_is_documented():
    assert undocumented(ENTRIES) == []


def test_every_public_function_has_an_example():
    assert without_example(ENTRIES) == []


def test_every_public_name_has_a_page():
    modules = documented_modules()
    assert len(modules) == len(set(modules))
    assert missing(ENTRIES, modules) == []


def test_every_exported_name_is_an_entry():
    for module in ref.modules():
        names = getattr(module, "__all__", [])
        objects = [getattr(module, n) for n in names if not inspect.ismodule(getattr(module, n))]
        known = [entry.value for entry in ENTRIES]
        assert all(any(value is each for each in known) for value in objects), module.__name__


def spoiled(**changes):
    def function():
        pass

    fields = {"name": "otbook.f", "home": "otbook.exact", "topic": "", "value": function}
    return ref.Entry(**(fields | changes))


def test_gaps_are_found(tmp_path):
    assert undocumented([spoiled()]) == without_example([spoiled()]) == ["otbook.f"]
    assert missing([spoiled(home="otbook.new")], documented_modules()) == ["otbook.f"]
    shutil.copytree(PAGES, tmp_path / "api")
    (tmp_path / "api/exact.md").unlink()
    assert "otbook.emd" in missing(ENTRIES, documented_modules(tmp_path / "api"))


def test_names_are_those_that_users_write():
    names = {entry.name for entry in ENTRIES}
    assert {"otbook.emd", "otbook.OTResult", "otbook.flows.svgd", "otbook.claims.close"} <= names
    assert not {"otbook.exact.emd", "otbook.entropic.sinkhorn"} & names
    assert len(names) == len(ENTRIES)


def test_large_modules_have_topics():
    topics = {entry.topic for entry in ENTRIES if entry.home == "otbook.learning"}
    assert len(topics) >= 8
    assert all(topics)


# --- Who uses what -------------------------------------------------------------------------------

USES = [
    ("import otbook\notbook.emd(C)", {"otbook.emd"}),
    ("import otbook\notbook.exact.emd(C)", {"otbook.emd"}),
    ("import otbook as o\no.datasets.digits()", {"otbook.datasets.digits"}),
    ("import otbook.flows as f\nf.svgd", {"otbook.flows.svgd"}),
    ("import otbook.flows\notbook.flows.svgd", {"otbook.flows.svgd"}),
    ("from otbook import flows\nflows.svgd(x).points", {"otbook.flows.svgd"}),
    ("from otbook.costs import sqeuclidean as c", {"otbook.costs.sqeuclidean"}),
    ("from otbook import plotting\nplotting.SOURCE", {"otbook.plotting.SOURCE"}),
    ("%pip install otbook\n!ls\nimport otbook\nif x:\n    %time\notbook.ipot", {"otbook.ipot"}),
    ("import ot\not.emd(a)\nflows.svgd", set()),
    ("import otbook\notbook.nonsense.emd\notbook.__version__", set()),
]


@pytest.mark.parametrize(("source", "names"), USES)
def test_uses_are_found(source, names):
    assert ref.used_by(source) == names


def test_every_chapter_uses_the_package():
    for path in notebooks.chapters():
        assert ref.used_by(ref.code(path)), path


# --- Docstrings ----------------------------------------------------------------------------------

PROSE = {
    "C_ij = |x_i − y_j|": r"C\ :sub:`ij`\  = \|x\ :sub:`i`\  − y\ :sub:`j`\ \|",
    "δ_{x_i} and P^{t+1}": r"δ\ :sub:`xᵢ`\  and P\ :sup:`t+1`\ ",
    "at most ``max_iter``, n_iter, gap_": r"at most ``max_iter``, n_iter, gap\_",
    "*Blur.* φ* and T*(x), **mean**": r"*Blur.* φ\* and T\*(x), **mean**",
    "N. Names": r"\N. Names",
    "N.": r"\N.",
    "an :class:`OTResult` of ``a_*``": "an :class:`OTResult` of ``a_*``",
}


@pytest.mark.parametrize("text", PROSE)
def test_formulas_are_not_taken_for_markup(text):
    assert ref.prose(text) == PROSE[text]


def test_a_displayed_formula_keeps_its_lines():
    lines = [
        "Solves",
        "",
        "    a = b,   c = d",
        "    e = f",
        "",
        "and returns.",
        "",
        "Args:",
        "    x_: a_i.",
    ]
    assert ref.as_rst(lines)[2:6] == [".. container:: formula", "", "   | a = b,\u2003c = d", "   | e = f"]
    assert ref.as_rst(lines)[-1] == r"    x\_: a\ :sub:`i`\ ."


def test_examples_are_left_alone():
    lines = ["Do.", "", "Example:", "    >>> x_i * y | z", "    P_ij"]
    assert ref.as_rst(lines) == lines


def problems(text):
    """What docutils has to say about a docstring in plain reStructuredText."""
    from docutils.core import publish_doctree

    settings = {"report_level": 2, "halt_level": 5, "warning_stream": None}
    messages = publish_doctree(text, settings_overrides=settings).findall(
        lambda node: node.tagname in ("system_message", "problematic")
    )
    return [message.astext() for message in messages]


NAPOLEON = Config(napoleon_use_ivar=True, napoleon_custom_sections=["Source"])


def test_no_docstring_is_misread():
    for entry in ENTRIES:
        text = "\n".join(GoogleDocstring(ref.as_rst(entry.doc.splitlines()), NAPOLEON).lines())
        text = re.sub(r":(?:class|func|mod|meth|attr|data|exc):", ":emphasis:", text)  # roles of Sphinx
        assert not problems(text), f"{entry.name}: {problems(text)}"


def test_a_misread_docstring_is_found():
    assert problems("the norm |x| and gap_")
    assert not problems(ref.prose("the norm |x| and gap_"))


# --- Status --------------------------------------------------------------------------------------

README = (ROOT / "README.md").read_text(encoding="utf-8")


def times_in_readme(text=README):
    """The running times in the README's table of chapters, by notebook, in seconds."""
    rows = re.findall(r"^\| \[.*?\]\((book/\S+\.ipynb)\) \|.*?\| (\d+) s \|", text, re.MULTILINE)
    return {path: int(seconds) for path, seconds in rows}


def wrong_times(readme, status):
    """Times of the README that are off by more than 10 s and more than a factor of two."""
    measured = {path: status[path]["seconds"] for path in readme if path in status}
    return {
        path: (readme[path], seconds)
        for path, seconds in measured.items()
        if abs(readme[path] - seconds) > 10 and not 0.5 <= readme[path] / seconds <= 2
    }


def test_the_readme_says_how_long_chapters_take():
    status = notebooks.read_status(ROOT / notebooks.STATUS)
    assert len(times_in_readme()) >= 30
    assert not wrong_times(times_in_readme(), status)


def test_a_wrong_time_is_found():
    row = "| [A](book/a.ipynb) | How? | 30 s | [Colab](x) |"
    assert times_in_readme(row) == {"book/a.ipynb": 30}
    for seconds, wrong in ((29, False), (38, False), (16, False), (13, True), (75, True)):
        assert bool(wrong_times({"book/a.ipynb": 30}, {"book/a.ipynb": {"seconds": seconds}})) == wrong


def test_status_knows_only_notebooks_that_exist():
    status = notebooks.read_status(ROOT / notebooks.STATUS)
    assert list(status) == sorted(status)
    assert set(status) <= {path.relative_to(ROOT).as_posix() for path in notebooks.chapters()}
    assert all(entry["seconds"] > 0 and entry["versions"]["torch"] for entry in status.values())


def test_an_execution_is_recorded_beside_the_others(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"book/{name}.ipynb").parent.mkdir(exist_ok=True)
        (tmp_path / f"book/{name}.ipynb").write_text("{}", encoding="utf-8")
    notebooks.record(tmp_path / "book/b.ipynb", 2.04, root=tmp_path)
    notebooks.record(tmp_path / "book/a.ipynb", 1, root=tmp_path)
    before = notebooks.read_status(tmp_path / notebooks.STATUS)
    notebooks.record(tmp_path / "book/b.ipynb", 3, root=tmp_path)
    notebooks.record(tmp_path / "elsewhere.ipynb", 3, root=tmp_path)
    after = notebooks.read_status(tmp_path / notebooks.STATUS)
    assert list(after) == ["book/a.ipynb", "book/b.ipynb"]
    assert (before["book/b.ipynb"]["seconds"], after["book/b.ipynb"]["seconds"]) == (2.0, 3)
    assert before["book/a.ipynb"] == after["book/a.ipynb"]
    assert after["book/a.ipynb"]["versions"]["torch"] == version("torch")


NOTEBOOK = {
    "nbformat": 4,
    "nbformat_minor": 5,
    "metadata": {},
    "cells": [
        {
            "cell_type": "markdown",
            "id": "m",
            "metadata": {},
            "source": ":::{exercise} One\n:::\n\n✓ not counted",
        },
        {
            "cell_type": "code",
            "id": "c",
            "metadata": {"mystnb": {"figure": {"name": "fig-a"}}},
            "execution_count": 1,
            "source": "print('✓ in the source')",
            "outputs": [{"output_type": "stream", "name": "stdout", "text": "✓ a: 1 ≤ 2\n ✓ b\n✓ c\n"}],
        },
    ],
}


def test_claims_exercises_and_figures_are_counted(tmp_path):
    path = tmp_path / "chapter.ipynb"
    path.write_text(json.dumps(NOTEBOOK), encoding="utf-8")
    assert summary.count(path) == summary.Counts(claims=2, exercises=1, figures=1)
    assert summary.total([path, path]) == summary.Counts(claims=4, exercises=2, figures=2)
    assert summary.total([]) == summary.Counts()


def test_the_summary_is_one_line():
    line = summary.line(start=0)
    chapters = len(notebooks.chapters())
    assert re.match(rf"{chapters} chapters, \d{{4}} claims, \d+ exercises", line)
    assert re.search(r", verified in \d+ min \d+ s$", line)
    assert (summary.duration(59.6), summary.duration(663)) == ("1 min 0 s", "11 min 3 s")


def test_pages_are_counted(tmp_path: Path):
    for name in ("index.html", "search.html", "book/index.html", "book/a.html", "_static/webpack.html"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("", encoding="utf-8")
    assert summary.pages(tmp_path) == 2
