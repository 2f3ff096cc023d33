"""A copy of this checkout, uncommitted changes included, as a git repository of its own."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import repository


def copy(destination: Path) -> Path:
    """Copy the tracked text files to ``destination`` and commit them there."""
    for path in repository.text_files():
        target = destination / path.relative_to(repository.ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@localhost"]
    for command in (["init", "-q", "-b", "main"], ["add", "-A"], ["commit", "-q", "-m", "copy"]):
        subprocess.run([*git, *command], cwd=destination, check=True)
    return destination
