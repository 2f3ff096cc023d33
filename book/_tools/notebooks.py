"""Execute, normalise and create the book's notebooks.

    python book/_tools/notebooks.py execute book/foundations/monge_kantorovich.ipynb ...
    python book/_tools/notebooks.py new book/computation/duality.ipynb "Duality"

The committed notebooks are the only source. Executing one twice gives the same bytes: cell ids follow
from the cells' content, and no timing or version of the machine is kept.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[2]
TEMPLATE = ROOT / "book/_tools/template.ipynb"
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def chapters() -> list[Path]:
    """Every notebook of the book, in the order of the folders."""
    found = (ROOT / "book").rglob("*.ipynb")
    return sorted(p for p in found if not any(part[0] in "._" for part in p.relative_to(ROOT).parts))


def cell_ids(notebook: NotebookNode) -> list[str]:
    """The id that each cell should have: a digest of its type and source, counted when repeated."""
    seen: dict[str, int] = {}
    ids = []
    for cell in notebook.cells:
        digest = hashlib.sha1(f"{cell.cell_type}\n{cell.source}".encode()).hexdigest()[:8]
        seen[digest] = seen.get(digest, 0) + 1
        ids.append(digest if seen[digest] == 1 else f"{digest}-{seen[digest]}")
    return ids


def normalise(notebook: NotebookNode) -> None:
    """Set the metadata and ids that every notebook of the book shares; drop what varies."""
    notebook.metadata = nbformat.from_dict(METADATA)
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    for cell in notebook.cells:
        cell.source = cell.source.rstrip()
        cell.metadata.pop("execution", None)
        if not cell.metadata.get("mystnb", True):
            del cell.metadata["mystnb"]
    for cell, cell_id in zip(notebook.cells, cell_ids(notebook), strict=True):
        cell.id = cell_id


def execute(path: Path) -> float:
    """Run a notebook from top to bottom in a fresh kernel, store its outputs, return the seconds."""
    notebook = nbformat.read(path, as_version=4)
    normalise(notebook)
    os.environ["TQDM_DISABLE"] = "1"  # progress bars are for people, not for stored outputs
    client = NotebookClient(
        notebook,
        timeout=300,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(path.parent)}},
    )
    start = time.perf_counter()
    client.execute()
    seconds = time.perf_counter() - start
    normalise(notebook)
    nbformat.write(notebook, path)
    return seconds


def new(path: Path, title: str) -> None:
    """Copy the template notebook to ``path`` with its title filled in."""
    if path.exists():
        raise SystemExit(f"{path} exists already; choose another name")
    notebook = nbformat.read(TEMPLATE, as_version=4)
    label = path.stem.replace("_", "-")
    for cell in notebook.cells:
        cell.source = cell.source.replace("TITLE", title).replace("LABEL", label)
        figure = cell.metadata.get("mystnb", {}).get("figure", {})
        if figure:
            figure["name"] = figure["name"].replace("LABEL", label)
        if cell.cell_type == "code":  # those of the template, which is executed itself
            cell.outputs, cell.execution_count = [], None
    normalise(notebook)
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)
    entry = path.resolve().relative_to(ROOT).with_suffix("")
    print(f"{path} is ready. Add it to _toc.yml as `- file: {entry}`, write it, then run")
    print(f"  make notebooks NB={path}")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("execute", help="execute notebooks in place; all of them by default")
    run.add_argument("paths", nargs="*", type=Path)
    create = commands.add_parser("new", help="start a chapter from the template")
    create.add_argument("path", type=Path)
    create.add_argument("title")
    arguments = parser.parse_args()

    if arguments.command == "new":
        new(arguments.path, arguments.title)
        return
    for path in tqdm(arguments.paths or chapters(), unit="notebook", disable=not sys.stderr.isatty()):
        print(f"{path}: {execute(path):.1f} s")


if __name__ == "__main__":
    main()
