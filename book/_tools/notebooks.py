"""Execute, normalise and create the book's notebooks.

    python book/_tools/notebooks.py execute book/foundations/monge_kantorovich.ipynb ...
    python book/_tools/notebooks.py new book/computation/duality.ipynb "Duality"

The committed notebooks are the only source. Executing one twice gives the same bytes: cell ids follow
from the cells' content, and no timing or version of the machine is kept in it. How long each took, and
with which libraries, is kept beside them, in ``status.json``, for the page *Status*.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[2]
TEMPLATE = ROOT / "book/_tools/template.ipynb"
STATUS = "book/appendix/status.json"
#: The libraries that the outputs depend on.
LIBRARIES = ("numpy", "scipy", "torch", "POT", "matplotlib", "scikit-learn", "gymnasium", "sacrebleu")
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def chapters(root: Path = ROOT) -> list[Path]:
    """Every notebook of the book, in the order of the folders."""
    found = (root / "book").rglob("*.ipynb")
    return sorted(p for p in found if not any(part[0] in "._" for part in p.relative_to(root).parts))


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


def versions() -> dict[str, str]:
    """The versions of Python and of the libraries that are installed."""
    found = {"Python": platform.python_version()}
    for library in LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue
    return found


def read_status(file: Path) -> dict[str, dict]:
    """The recorded executions, by notebook."""
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def record(path: Path, seconds: float, *, root: Path = ROOT) -> None:
    """Note the execution of a chapter in ``status.json``, and leave the other entries alone."""
    path, file = path.resolve(), root / STATUS
    if path not in chapters(root):
        return  # the template, a draft, a copy
    status = read_status(file)
    status[path.relative_to(root).as_posix()] = {"seconds": round(seconds, 1), "versions": versions()}
    lines = [f"{json.dumps(name)}: {json.dumps(status[name])}" for name in sorted(status)]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


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
        seconds = execute(path)
        record(path, seconds)
        print(f"{path}: {seconds:.1f} s")


if __name__ == "__main__":
    main()
