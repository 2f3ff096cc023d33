"""The structure that every notebook of the book shares, read from the files without running them."""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys

import nbformat
import pytest
import yaml

import notebooks
from notebooks import ROOT

PATHS = notebooks.chapters()
CHAPTERS = [p for p in PATHS if p.parent not in (ROOT / "book", ROOT / "book/appendix")]
TEMPLATE = nbformat.read(notebooks.TEMPLATE, as_version=4)
SKELETON = ["smallest instance", "from scratch", "where it breaks", "summary", "exercises", "further reading"]


def name(path):
    return str(path.relative_to(ROOT / "book"))


def read(path):
    return nbformat.read(path, as_version=4)


def code_cells(notebook):
    return [c for c in notebook.cells if c.cell_type == "code"]


def text(cell):
    """What a code cell printed."""
    return "".join(o.get("text", "") for o in cell.outputs if o.output_type == "stream")


def has_picture(cell):
    return any(mime.startswith("image/") for o in cell.outputs for mime in o.get("data", {}))


every_notebook = pytest.mark.parametrize("path", PATHS, ids=name)
every_chapter = pytest.mark.parametrize("path", CHAPTERS, ids=name)


def files(entry):
    """The pages that an entry of the table of contents lists, with those below it."""
    below = [files(e) for key in ("parts", "chapters", "sections") for e in entry.get(key, [])]
    return {entry.get("file") or entry.get("root")}.union(*below) - {None}


def test_the_table_of_contents_lists_every_page():
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    texts = [p.relative_to(ROOT).with_suffix("") for p in (ROOT / "book").rglob("*.md")]
    pages = {str(p.relative_to(ROOT).with_suffix("")) for p in PATHS}
    pages |= {str(p) for p in texts if not any(part[0] in "._" for part in p.parts)}
    assert files(toc) == pages


@every_notebook
def test_is_valid_and_small(path):
    nbformat.validate(json.loads(path.read_text(encoding="utf-8")))
    assert path.stat().st_size < 1_000_000


@every_notebook
def test_was_executed_top_to_bottom(path):
    counts = [c.execution_count for c in code_cells(read(path))]
    assert counts == list(range(1, len(counts) + 1)), "run `make notebooks`"


@every_notebook
def test_no_output_shows_an_error_or_a_warning(path):
    for cell in code_cells(read(path)):
        for output in cell.outputs:
            assert output.output_type != "error", cell.source
            assert output.get("name") != "stderr", f"stderr in the output of:\n{cell.source}"


@every_notebook
def test_ids_and_metadata_are_those_of_the_book(path):
    notebook = read(path)
    assert [c.id for c in notebook.cells] == notebooks.cell_ids(notebook), "run `make notebooks`"
    assert notebook.metadata == notebooks.METADATA
    assert not any("execution" in c.metadata for c in notebook.cells)


@every_notebook
def test_starts_with_the_bootstrap_cell(path):
    first, model = code_cells(read(path))[0], code_cells(TEMPLATE)[0]
    assert first.source == model.source
    assert first.metadata.tags == ["remove-cell"]
    assert first.outputs == []


@every_notebook
def test_every_picture_has_a_caption_a_name_and_alternative_text(path):
    for cell in code_cells(read(path)):
        if has_picture(cell):
            meta = cell.metadata.get("mystnb", {})
            assert meta.get("figure", {}).get("caption"), cell.source
            assert meta.get("figure", {}).get("name", "").startswith("fig-"), cell.source
            assert len(meta.get("image", {}).get("alt", "")) >= 20, cell.source


@every_notebook
def test_names_no_folder_of_a_machine(path):
    found = re.search(r"/(root|home|tmp|work|Users)/", path.read_text(encoding="utf-8"))
    assert not found, found


@every_chapter
def test_follows_the_skeleton(path):
    notebook = read(path)
    prose = "\n".join(c.source for c in notebook.cells if c.cell_type == "markdown")
    headings = [h.lower() for h in re.findall(r"^##+ (.*)$", prose, re.MULTILINE)]
    for part in SKELETON:
        assert any(part in h for h in headings), f"no section on '{part}' in {headings}"
    assert ":class: objectives" in prose
    assert "Running time" in prose
    exercises = re.findall(r"^:::+\{exercise\}", prose, re.MULTILINE)
    solutions = re.findall(r"^:::+\{solution\}", prose, re.MULTILINE)
    assert 3 <= len(exercises) <= 5
    assert len(solutions) == len(exercises)
    words = len(re.sub(r"\$\$.*?\$\$|\$[^$]*\$", " ", prose, flags=re.DOTALL).split())
    assert 1500 <= words <= 4000, f"{words} words"


@every_chapter
def test_code_is_short_and_claims_are_many(path):
    cells = code_cells(read(path))[1:]
    assert 10 <= len(cells) <= 25, f"{len(cells)} code cells"
    lengths = [len(c.source.splitlines()) for c in cells]
    assert max(lengths) <= 35, f"a cell of {max(lengths)} lines"
    assert statistics.median(lengths) <= 10, f"median of {statistics.median(lengths)} lines"
    assert sum(has_picture(c) for c in cells) >= 2
    printed = "".join(text(c) for c in cells)
    assert len(re.findall(r"^✓ ", printed, re.MULTILINE)) >= 8


def test_a_new_chapter_starts_from_the_template(tmp_path):
    """`make new-chapter` gives a notebook that runs and keeps its own labels."""
    target = ROOT / "book/_draft_of_a_test/smooth_maps.ipynb"
    try:
        notebooks.new(target, "Smooth maps")
        made = target.read_text(encoding="utf-8")
    finally:
        target.unlink(missing_ok=True)
        target.parent.rmdir()
    assert "# Smooth maps" in made
    assert "thm-smooth-maps-name" in made
    assert "TITLE" not in made
    assert "LABEL" not in made
    for cell in code_cells(nbformat.reads(made, as_version=4)):
        assert cell.outputs == []
        assert cell.execution_count is None
    copy = tmp_path / "smooth_maps.ipynb"
    copy.write_text(made, encoding="utf-8")
    notebooks.execute(copy)
    assert any(has_picture(c) for c in code_cells(read(copy)))


def test_the_template_was_executed():
    assert all(cell.execution_count for cell in code_cells(TEMPLATE)), "run `make notebooks` on the template"


def test_executing_twice_gives_the_same_bytes(tmp_path):
    copy = tmp_path / "chapter.ipynb"
    copy.write_bytes(notebooks.TEMPLATE.read_bytes())
    notebooks.execute(copy)
    once = copy.read_bytes()
    notebooks.execute(copy)
    assert copy.read_bytes() == once


def test_the_tool_runs_from_the_command_line():
    command = [sys.executable, "book/_tools/notebooks.py", "new", "book/notation.ipynb", "Taken"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode != 0
    assert "exists already" in run.stderr
