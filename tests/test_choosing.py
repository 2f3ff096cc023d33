"""The decision guide: what its tables name is executed, and what it prints of other libraries is checked."""

from __future__ import annotations

import re

import nbformat
import numpy as np
import pytest
import torch

import notebooks
from benchmarks import conversions

NOTEBOOK = nbformat.read(notebooks.ROOT / "book/appendix/choosing.ipynb", as_version=4)
PROSE = "\n".join(c.source for c in NOTEBOOK.cells if c.cell_type == "markdown")
CODE = "\n".join(c.source for c in NOTEBOOK.cells if c.cell_type == "code")
SOURCE = (notebooks.ROOT / "benchmarks/conversions.py").read_text(encoding="utf-8")


def unchecked(prose, code):
    """Functions of POT in the table without a claim that begins with their name."""
    table = prose.partition("* - POT\n")[2].partition("```")[0]
    named = set(re.findall(r"\* - (`ot\..*)", table))
    functions = {name for cell in named for name in re.findall(r"`(ot\.[\w.]+)`", cell)}
    assert len(functions) >= 25
    return sorted(f for f in functions if not re.search(rf'\(\s*"{re.escape(f)}[",]', code))


def foreign(prose, source):
    """Lines of code in the prose that `benchmarks/conversions.py` does not run."""
    blocks = re.findall(r"```python\n(.*?)```", prose, re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if not line.startswith("#")]
    assert len(lines) >= 20
    run = {line.strip() for line in source.splitlines()}
    return [line for line in lines if line not in run]


def test_every_row_of_the_table_for_pot_is_executed():
    assert unchecked(PROSE, CODE) == []


def test_notices_a_row_that_is_not_executed():
    assert unchecked(PROSE.replace("`ot.dist`", "`ot.dist`, `ot.da.EMDLaplaceTransport`"), CODE) == [
        "ot.da.EMDLaplaceTransport"
    ]
    assert unchecked(PROSE, CODE.replace('"ot.emd2"', '"emd2"')) == ["ot.emd2"]


def test_the_lines_for_other_libraries_are_those_that_are_checked():
    assert foreign(PROSE, SOURCE) == []


def test_notices_a_line_that_is_not_checked():
    assert foreign(PROSE.replace("epsilon=eps / 2", "epsilon=eps"), SOURCE) != []


def test_a_conversion_that_is_wrong_fails():
    a = torch.linspace(0, 1, 3)
    assert "= 0.0e+00" in conversions.Row("right", np.linspace(0, 1, 3, dtype="f"), a, 1e-6).line()
    for wrong in (2 * a, a + 1e-3, a * torch.nan):
        with pytest.raises(AssertionError, match="wrong: the two differ"):
            conversions.Row("wrong", a, wrong, 1e-6).line()


def test_conversions_run_or_say_what_is_missing():
    tables = list(conversions.run(True))
    assert [table.splitlines()[0] for table in tables] == ["GeomLoss", "OTT-JAX"]
    assert all("≤" in table or "not installed" in table for table in tables)
