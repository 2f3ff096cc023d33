"""The appendix on the source texts: every row is complete, and every link leads to a place that exists."""

from __future__ import annotations

import io
import re
import sys
from collections import Counter

import nbformat
import pytest
from sphinx.application import Sphinx

import notebooks
from notebooks import ROOT

sys.path.insert(0, str(ROOT / "book/_ext"))
from otbook_claims import LINKS, ROWS, VERDICTS, read_rows, statements, the_one

TEXTS = {"S0": 35, "S1": 25, "S2": 50, "S3": 100}  # the least number of rows
REQUIRED = {"id", "text", "section", "says", "verdict", "book"}
ALLOWED = REQUIRED | {"correction", "claims"}

#: Rows on who wrote what and when: a reference shows them, no code can.
LITERATURE = {
    "s0-four-works", "s1-villani", "s1-book-length", "s2-monge-1781", "s3-1980s", "s3-cite-9", "s3-first",
    "s3-mode-first", "s3-rl-reference", "s3-cb-name",
}  # fmt: skip


@pytest.fixture(scope="module")
def rows():
    return read_rows(ROOT / "book" / ROWS)


@pytest.fixture(scope="module")
def cells():
    """The cells of each page that is a notebook."""
    paths = {str(p.relative_to(ROOT / "book").with_suffix("")): p for p in notebooks.chapters()}
    return {name: nbformat.read(path, as_version=4).cells for name, path in paths.items()}


@pytest.fixture(scope="module")
def printed(cells):
    """The statements that each page's stored outputs claim."""
    outputs = {name: [o for cell in page for o in cell.get("outputs", [])] for name, page in cells.items()}
    return {name: statements("".join(o.get("text", "") for o in each)) for name, each in outputs.items()}


@pytest.fixture(scope="module")
def labels(cells):
    """Every label of a chapter, theorem, equation or figure."""
    every = [cell for page in cells.values() for cell in page]
    prose = "\n".join(cell.source for cell in every if cell.cell_type == "markdown")
    found = re.findall(r"^\(([\w-]+)\)=$|^ *:label: ([\w-]+)$|\$\$ \(([\w-]+)\)$", prose, re.MULTILINE)
    figures = [cell.metadata.get("mystnb", {}).get("figure", {}).get("name") for cell in every]
    return {"".join(each) for each in found} | set(figures)


@pytest.fixture(scope="module")
def cited():
    references = (ROOT / "references.bib").read_text(encoding="utf-8")
    return set(re.findall(r"^@\w+\{([^,]+),", references, re.MULTILINE))


def defects(rows, printed, labels, cited):
    """What is wrong with the rows, one line each."""
    found = [f"{name}: used {n} times" for name, n in Counter(row["id"] for row in rows).items() if n > 1]
    for row in rows:
        name, words = row["id"], row["says"] + row.get("correction", "")
        if not set(row) >= REQUIRED or not set(row) <= ALLOWED or not all(row[key] for key in REQUIRED):
            found.append(f"{name}: keys {sorted(row)}")
        if row["text"] not in TEXTS or not re.fullmatch(rf"{row['text'].lower()}-[a-z0-9-]+", name):
            found.append(f"{name}: does not begin with its text")
        if row["verdict"] not in VERDICTS:
            found.append(f"{name}: verdict {row['verdict']}")
        if row["verdict"] in ("wrong", "holds with a condition") and not row.get("correction"):
            found.append(f"{name}: no correction")
        for label in row["book"]:
            if label.split("-")[0] not in LINKS or label not in labels:
                found.append(f"{name}: no label {label}")
        for claim in row.get("claims", []):
            page, _, wanted = claim.partition(": ")
            try:
                the_one(wanted, printed.get(page, []))
            except LookupError as why:
                found.append(f"{name}: {claim}: {why}")
        for key in re.findall(r"\{cite:[pt]\}`([^`]+)`", words):
            found += [f"{name}: no reference {k}" for k in key.split(",") if k not in cited]
        if name in LITERATURE and not re.search(r"\{cite:|\(.* \d{4}\)", words):
            found.append(f"{name}: no reference")
        if row["verdict"] != "opinion" and not row.get("claims") and name not in LITERATURE:
            found.append(f"{name}: no claim shows it")
        if row.get("claims") and name in LITERATURE:
            found.append(f"{name}: has claims, is no exception any more")
    return found


def test_every_row_is_complete_and_every_link_resolves(rows, printed, labels, cited):
    assert not defects(rows, printed, labels, cited)


def test_every_text_is_covered(rows):
    counts = Counter(row["text"] for row in rows)
    assert all(counts[text] >= least for text, least in TEXTS.items()), counts
    places = "\n".join(row["section"] for row in rows if row["text"] == "S3")
    numbers = set(map(int, re.findall(r", \((\d+)\)$", places, re.MULTILINE)))
    assert numbers == set(range(1, 23)), "a numbered formula of S3 has no row"
    assert {row["id"] for row in rows} >= LITERATURE, "an exception for a row that does not exist"


def test_the_page_shows_every_text():
    page = (ROOT / "book" / ROWS).with_suffix(".md").read_text(encoding="utf-8")
    assert re.findall(r"^```\{sources-examined\} (\w+)$", page, re.MULTILINE) == list(TEXTS)


SPOILED = {
    "no claim begins so": {"claims": ["foundations/duality: the earth is flat"]},
    "claims begin so": {"claims": ["foundations/duality: our"]},
    "no label thm-of-nobody": {"book": ["thm-of-nobody"]},
    "no label sol-duality-tv": {"book": ["sol-duality-tv"]},
    "no claim shows it": {"claims": []},
    "no correction": {"correction": ""},
    "verdict true": {"verdict": "true"},
    "keys": {"comment": "more"},
    "no reference nobody1900": {"correction": "See {cite:p}`nobody1900`."},
    "does not begin with its text": {"text": "S1"},
    "used 2 times": {"id": "s0-calculus"},
    "is no exception any more": {"id": "s3-first"},
}


@pytest.mark.parametrize("complaint", SPOILED)
def test_a_spoiled_row_is_found(rows, printed, labels, cited, complaint):
    good = next(row for row in rows if row["id"] == "s3-dual-constraint")
    others = [row for row in rows if row["id"] not in (good["id"], "s3-first")]
    assert not defects([good, *others], printed, labels, cited)
    found = defects([good | SPOILED[complaint], *others], printed, labels, cited)
    assert any(complaint in line for line in found), found


# --- The extension that makes the links -----------------------------------------------------------


PAGE = """
One
===

.. code-block:: text
   :class: stream

   before
   ✓ x ≤ y: gap = 1 ≤ 2
   ✓ x ≤ y: gap = 1 ≤ 2
   ✓ a < b & c

.. code-block:: text

   ✓ no output
"""


def build(tmp_path, link):
    """Build a book of two pages; return the pages and the warnings."""
    (tmp_path / "book").mkdir()
    (tmp_path / "book/one.rst").write_text(PAGE, encoding="utf-8")
    index = f"Title\n=====\n\n{link}\n\n.. toctree::\n\n   one\n"
    (tmp_path / "book/index.rst").write_text(index, encoding="utf-8")
    settings = {"extensions": ["otbook_claims"], "root_doc": "book/index"}
    folders = tmp_path, None, tmp_path / "out", tmp_path / "trees"
    warnings = io.StringIO()
    Sphinx(*folders, "html", settings, status=None, warning=warnings).build()
    pages = [(tmp_path / f"out/book/{name}.html").read_text(encoding="utf-8") for name in ("one", "index")]
    return *pages, warnings.getvalue()


def test_a_claim_has_a_place_and_a_link(tmp_path):
    page, index, warnings = build(tmp_path, "See :claim:`one: x ≤ y`, :claim:`this <one: a>`.")
    assert "WARNING" not in warnings
    assert '<span class="claim" id="claim-x-y">✓ x ≤ y: gap = 1 ≤ 2</span>' in page
    assert '<span class="claim" id="claim-x-y-2">✓ x ≤ y' in page
    assert '<span class="claim" id="claim-a-b-c">✓ a &lt; b &amp; c</span>' in page
    assert page.count('class="claim"') == 3
    assert 'href="one.html#claim-x-y"' in index
    assert 'href="one.html#claim-a-b-c"' in index


@pytest.mark.parametrize("missing", ["one: z", "two: x ≤ y", "one", "one: no output"])
def test_a_link_to_no_claim_fails_the_build(tmp_path, missing):
    *_, warnings = build(tmp_path, f"See :claim:`{missing}`.")
    assert re.search(r"WARNING: claim '.*' of .*: \w+ claims? begins? so", warnings)


def test_the_one():
    known = ["the gap", "the gap closes", "the end", "the end"]
    assert the_one("the gap", known) == "the gap"
    assert the_one("the gap c", known) == "the gap closes"
    assert the_one("the e", known) == "the end"
    for wanted in ("the", "a gap", ""):
        with pytest.raises(LookupError):
            the_one(wanted, known)
