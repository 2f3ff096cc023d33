"""Count what the book holds, from the stored outputs of its notebooks.

    python book/_tools/summary.py [START]

prints one line: chapters, claims, exercises, pages, and the time since START, in seconds since 1970.
The page *Status* and the numbers on the first page count with the same functions.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterable
from dataclasses import astuple, dataclass
from pathlib import Path

import nbformat

from notebooks import ROOT, chapters

HTML = ROOT / "_build/html"
#: Pages that Sphinx generates and that hold no text of the book.
GENERATED = {"index.html", "genindex.html", "search.html", "prf-prf.html", "py-modindex.html"}


@dataclass(frozen=True)
class Counts:
    """What a notebook holds, or several."""

    claims: int = 0
    exercises: int = 0
    figures: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(mine + its for mine, its in zip(astuple(self), astuple(other), strict=True)))


def count(path: Path) -> Counts:
    """The claims, exercises and figures of a notebook."""
    notebook = nbformat.read(path, as_version=4)
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    outputs = [output for cell in code for output in cell.outputs]
    printed = "".join(output.text for output in outputs if output.output_type == "stream")
    captioned = [cell for cell in code if cell.metadata.get("mystnb", {}).get("figure") and cell.outputs]
    return Counts(
        claims=len(re.findall(r"^✓ ", printed, re.MULTILINE)),
        exercises=len(re.findall(r"^:::+\{exercise\}", prose, re.MULTILINE)),
        figures=len(captioned),
    )


def total(paths: Iterable[Path]) -> Counts:
    """The sum over notebooks."""
    return sum(map(count, paths), Counts())


def pages(html: Path = HTML) -> int:
    """The number of built pages that hold text of the book."""
    found = (path.relative_to(html) for path in html.rglob("*.html"))
    return sum(path.parts[0] != "_static" and str(path) not in GENERATED for path in found)


def duration(seconds: float) -> str:
    """A time as people say it: 45 s, 11 min 3 s."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def line(start: float | None = None) -> str:
    """The summary of the book in one line."""
    paths = chapters()
    counts = total(paths)
    parts = [f"{len(paths)} chapters", f"{counts.claims} claims", f"{counts.exercises} exercises"]
    parts += [f"{pages()} pages"] if HTML.is_dir() else []
    verified = f", verified in {duration(time.time() - start)}" if start is not None else ""
    return ", ".join(parts) + verified


if __name__ == "__main__":
    print(line(float(sys.argv[1]) if len(sys.argv) > 1 else None))
