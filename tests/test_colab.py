"""A notebook alone in an empty folder, in an environment without otbook: the bootstrap cell installs it.

This is what happens on Colab. The repository's address is redirected to this checkout through git's
``insteadOf``; nothing else is changed, the cell least of all. One chapter stands for the book, or with
``OTBOOK_ALONE=all`` (`make test-colab`) every notebook is tried.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import venv

import nbformat
import pytest

import notebooks
from repository import ROOT, address

from . import checkout

ALL = os.environ.get("OTBOOK_ALONE") == "all"
CHAPTERS = notebooks.chapters() if ALL else [ROOT / "book/foundations/monge_kantorovich.ipynb"]
RUN = """
import importlib.util
import nbformat
from nbclient import NotebookClient
assert importlib.util.find_spec("otbook") is None, "the environment already has otbook"
notebook = nbformat.read("chapter.ipynb", as_version=4)
for cell in notebook.cells:
    cell.get("outputs", []).clear()
NotebookClient(notebook, kernel_name="python3", timeout=900).execute()
print("".join(o.get("text", "") for c in notebook.cells if c.cell_type == "code" for o in c.outputs))
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """The Python of an environment with a kernel and nothing of the book, and the variables it runs under."""
    root = tmp_path_factory.mktemp("colab")
    snapshot = checkout.copy(root / "snapshot")
    venv.create(root / "environment", with_pip=True)
    python = root / "environment/bin/python"
    # A hosted notebook has a kernel and a PyTorch of its own; the pins only keep pip from choosing
    # a build with several gigabytes of GPU libraries.
    variables = os.environ | {
        "PIP_CONSTRAINT": str(ROOT / "requirements.lock"),
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.file://{snapshot}.insteadOf",
        "GIT_CONFIG_VALUE_0": address()[0],
        "JUPYTER_PATH": str(root / "environment/share/jupyter"),
    }
    install = [python, "-m", "pip", "install", "--quiet", "ipykernel", "nbclient"]
    subprocess.run(install, env=variables, check=True)
    return python, variables


def claims(text):
    """The statements of the claims that hold in a printed text."""
    return re.findall(r"^✓ ([^:\n]+)", text, re.MULTILINE)


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_the_bootstrap_cell_works_in_an_empty_environment(tmp_path, environment, chapter):
    python, variables = environment
    shutil.copy(chapter, tmp_path / "chapter.ipynb")
    run = subprocess.run(
        [python, "-c", RUN], cwd=tmp_path, env=variables, capture_output=True, text=True, check=False
    )
    # The next notebook, too, finds no otbook; what it depends on may stay.
    remove = [python, "-m", "pip", "uninstall", "--quiet", "--yes", "otbook"]
    subprocess.run(remove, env=variables, check=True, capture_output=True)
    assert run.returncode == 0, run.stdout + run.stderr
    stored = nbformat.read(chapter, as_version=4)
    printed = "".join(o.get("text", "") for c in stored.cells if c.cell_type == "code" for o in c.outputs)
    assert claims(run.stdout) == claims(printed)
