"""A notebook alone in an empty folder, in an environment without otbook: the bootstrap cell installs it.

This is what happens on Colab. The repository's address is redirected to this checkout through git's
``insteadOf``; nothing else is changed, the cell least of all.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import venv

from repository import ROOT, address

from . import checkout

RUN = """
import importlib.util, sys
import nbformat
from nbclient import NotebookClient
assert importlib.util.find_spec("otbook") is None, "the environment already has otbook"
notebook = nbformat.read("chapter.ipynb", as_version=4)
for cell in notebook.cells:
    cell.get("outputs", []).clear()
NotebookClient(notebook, kernel_name="python3", timeout=900).execute()
printed = "".join(o.get("text", "") for c in notebook.cells if c.cell_type == "code" for o in c.outputs)
assert "✓ otbook finds the plan P(0)" in printed, printed
"""


def test_the_bootstrap_cell_works_in_an_empty_environment(tmp_path):
    snapshot = checkout.copy(tmp_path / "snapshot")
    folder, environment = tmp_path / "alone", tmp_path / "environment"
    folder.mkdir()
    shutil.copy(ROOT / "book/foundations/monge_kantorovich.ipynb", folder / "chapter.ipynb")
    venv.create(environment, with_pip=True)
    python = environment / "bin/python"
    # A hosted notebook has a kernel and a PyTorch of its own; the pins only keep pip from choosing
    # a build with several gigabytes of GPU libraries.
    variables = os.environ | {
        "PIP_CONSTRAINT": str(ROOT / "requirements.lock"),
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.file://{snapshot}.insteadOf",
        "GIT_CONFIG_VALUE_0": address()[0],
        "JUPYTER_PATH": str(environment / "share/jupyter"),
    }
    install = [python, "-m", "pip", "install", "--quiet", "ipykernel", "nbclient"]
    subprocess.run(install, env=variables, check=True)
    run = subprocess.run(
        [python, "-c", RUN], cwd=folder, env=variables, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
