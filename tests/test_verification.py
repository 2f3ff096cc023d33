"""The verification of stored outputs is itself verified: each kind of defect makes it fail.

One notebook holds one cell a defect; one run of pytest over it must name exactly the defective cells.
"""

from __future__ import annotations

import base64
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]

SETUP = "from otbook import claims, plotting\nimport matplotlib.pyplot as plt\nplotting.use_style()"
PLAIN = "print('W₂² = 0.045590')"
CLAIM = "claims.at_most('the gap is small', 0.25, 0.5, symbol='gap')\nclaims.measured('wall time', 0.25, 's')"
SVG = "fig, ax = plt.subplots()\nax.plot([0, 1, 2], [0, 1, 4])\nplotting.show(fig)"
PNG = SVG.replace("show(fig)", "show(fig, format='png')")
FRAMES = """
def draw(k):
    fig, ax = plt.subplots(figsize=(4, 3))
    ax.plot([0, 1, 2], [0, 1, 4 + k])
    return fig
plotting.frames(draw, [0, 1], alt='A parabola, {label}.')
"""


def other_digit(cell):
    cell.outputs[0].text = "W₂² = 0.045591\n"


def other_measurement(cell):
    cell.outputs[0].text = cell.outputs[0].text.replace("gap = 0.25", "gap = 0.31").replace("0.25 s", "9 s")


def other_statement(cell):
    cell.outputs[0].text = cell.outputs[0].text.replace("small", "tiny")


def violated_bound(cell):
    cell.source = cell.source.replace("0.5,", "0.2,")


def cleared_cell(cell):
    cell.outputs, cell.execution_count = [], None


def cleared_outputs(cell):
    cell.outputs = []


def missing_picture(cell):
    del cell.outputs[0].data["image/svg+xml"]


def other_text(cell):
    html = cell.outputs[0].data["text/html"]
    cell.outputs[0].data["text/html"] = html.replace("A parabola, 1.", "A line, 1.")


def other_bytes(cell):  # as from a machine with other fonts: no picture has the bytes that will be drawn
    cell.outputs[0].data["text/html"] = (
        cell.outputs[0]
        .data["text/html"]
        .replace(cell.outputs[0].data["image/png"], encoded_again(cell.outputs[0].data["image/png"]))
    )


def encoded_again(data):
    buffer = io.BytesIO()
    Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB").save(buffer, "png")
    return base64.b64encode(buffer.getvalue()).decode()


def other_frame(cell):
    cell.source = cell.source.replace("+ k", "- 2 * k")


def other_data(cell):
    cell.source = cell.source.replace("4]", "3]")


# The code of a cell, what is done to it once it has run, and what the report must say; None: it must pass.
DEFECTS = {
    "nothing, setup": (SETUP, None, None),
    "nothing, text": (PLAIN, None, None),
    "nothing, claim": (CLAIM, None, None),
    "nothing, svg": (SVG, None, None),
    "nothing, png": (PNG, None, None),
    "another measured number": (CLAIM, other_measurement, None),
    "one digit": (PLAIN, other_digit, r"Cell outputs differ[\s\S]*0\.045591"),
    "another statement": (CLAIM, other_statement, r"Cell outputs differ[\s\S]*tiny"),
    "a violated bound": (CLAIM, violated_bound, r"✗ the gap is small: gap = 0\.25 ≰ 0\.2"),
    "a cleared cell": (PLAIN, cleared_cell, "never run, or its outputs were cleared"),
    "cleared outputs": (PLAIN, cleared_outputs, "Unexpected output fields"),
    "a missing picture": (SVG, missing_picture, "0 pictures are stored, but running the cell draws 1"),
    "other data, svg": (SVG, other_data, r"Picture 1 changed: \d+ pixels differ"),
    "other data, png": (PNG, other_data, r"Picture 1 changed: \d+ pixels differ"),
    "nothing, frames": (FRAMES, None, None),
    "nothing, frames in svg": (FRAMES.replace("draw, ", "draw, format='svg', labels="), None, None),
    "another encoding of a frame": (FRAMES, other_bytes, None),
    "another text of a frame": (FRAMES, other_text, r"Cell outputs differ[\s\S]*A line, 1"),
    "another frame": (FRAMES, other_frame, r"Picture 3 changed: \d+ pixels differ"),
}


@pytest.fixture(scope="module")
def failures(tmp_path_factory):
    """What one run says of each cell that fails, by the cell's number."""
    folder = tmp_path_factory.mktemp("notebooks")
    sources = [source for source, _, _ in DEFECTS.values()]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    NotebookClient(notebook, kernel_name="python3", record_timing=False).execute()
    for cell, (_, spoil, _) in zip(notebook.cells, DEFECTS.values(), strict=True):
        if spoil:
            spoil(cell)
    nbformat.write(notebook, folder / "defects.ipynb")
    command = [sys.executable, "-m", "pytest", "-p", "tests.nbval_figures", "--nbval", "--nbval-current-env"]
    command += ["--nbval-sanitize-with", "tests/nbval_sanitize.cfg", "-p", "no:cacheprovider", "--color=no"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    command += ["--rootdir", str(folder), str(folder)]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 1, run.stdout + run.stderr
    sections = re.split(r"^_+ .*?defects\.ipynb::Cell (\d+) _+$", run.stdout, flags=re.MULTILINE)
    return {int(number): told for number, told in zip(sections[1::2], sections[2::2], strict=True)}


@pytest.mark.parametrize(("number", "defect"), list(enumerate(DEFECTS)), ids=list(DEFECTS))
def test_defect(failures, number, defect):
    expected = DEFECTS[defect][2]
    if expected is None:
        assert number not in failures, failures[number]
    else:
        assert re.search(expected, failures[number]), failures[number]
