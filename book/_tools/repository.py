"""Stamp the repository's address, kept in ``_config.yml``, wherever a reader needs it.

    python book/_tools/repository.py https://github.com/owner/name

A notebook opened alone on Colab, the package's metadata and the badges of the README cannot look into
``_config.yml``, so they carry copies. This is the only program that writes them.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import nbformat

from notebooks import normalise

ROOT = Path(__file__).resolve().parents[2]
CONFIG = "_config.yml"
ADDRESS = re.compile(r"^repository:\n(?:  .*\n)*?  url: (https://github\.com/(\S+/\S+))$", re.MULTILINE)


def address(root: Path = ROOT) -> tuple[str, str]:
    """The address in ``_config.yml`` and its ``owner/name``."""
    found = ADDRESS.search((root / CONFIG).read_text(encoding="utf-8"))
    if not found:
        raise SystemExit(f"{CONFIG} holds no `repository: url: https://github.com/owner/name`")
    return found.group(1), found.group(2)


def text_files(root: Path = ROOT) -> list[Path]:
    """The tracked files that hold text."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=root, check=True, capture_output=True, text=True
    ).stdout
    paths = (root / name for name in listed.split("\0") if name and "_vendor" not in name)
    return [p for p in paths if p.is_file() and b"\0" not in p.read_bytes()[:1024]]


def stamp(url: str, root: Path = ROOT) -> list[Path]:
    """Replace the old owner/name by that of ``url`` in every tracked file; return the files changed."""
    match = re.fullmatch(r"https://github\.com/([\w.-]+/[\w.-]+?)(?:\.git)?/?", url)
    if not match:
        raise SystemExit(f"URL must look like https://github.com/owner/name, but is {url}")
    old, new = address(root)[1], match.group(1)
    changed = []
    for path in text_files(root):
        text = path.read_text(encoding="utf-8")
        if old == new or not re.search(rf"{re.escape(old)}(?![\w-])", text):
            continue
        path.write_text(re.sub(rf"{re.escape(old)}(?![\w-])", new, text), encoding="utf-8")
        if path.suffix == ".ipynb":  # a cell's id follows from its content
            notebook = nbformat.read(path, as_version=4)
            normalise(notebook)
            nbformat.write(notebook, path)
        changed.append(path)
    return changed


if __name__ == "__main__":
    for file in stamp(*sys.argv[1:]):
        print(file.relative_to(ROOT))
