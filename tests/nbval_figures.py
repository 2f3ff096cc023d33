"""A pytest plugin that closes what nbval leaves open, at no second execution.

nbval compares text and never looks at pictures or at cells whose outputs were cleared. Loaded with
``-p tests.nbval_figures``, this plugin lets nbval execute each cell and then compares

- the execution count: a cell without one was cleared or never run;
- the pictures, as a reader sees them (:mod:`tests.figures`), SVG and those inside HTML included.
"""

from __future__ import annotations

import pytest
from nbval.plugin import IPyNbCell, NbCellError

from . import figures


def pytest_itemcollected(item: pytest.Item) -> None:
    if isinstance(item, IPyNbCell):
        # SVG text differs in the last digit of a coordinate between machines: compared as a picture.
        item.parent.skip_compare = (*item.parent.skip_compare, "image/svg+xml")
        # The HTML of a slider is compared as text but for its frames, which are pictures too.
        sanitize = item.sanitize
        item.sanitize = lambda text: sanitize(figures.without_pictures(text))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item):
    result = yield
    if isinstance(item, IPyNbCell) and item.options["check"]:
        for problem in problems(item.cell, item.test_outputs):
            raise NbCellError(item.cell_num, problem, item.cell.source)
    return result


def problems(cell: dict, executed: list[dict]) -> list[str]:
    """What is wrong with the stored outputs of a cell, given those just executed."""
    if cell["execution_count"] is None:
        return ["The stored cell was never run, or its outputs were cleared; run `make notebooks`"]
    stored_pictures, pictures = list(_pictures(cell["outputs"])), list(_pictures(executed))
    if len(stored_pictures) != len(pictures):
        return [f"{len(stored_pictures)} pictures are stored, but running the cell draws {len(pictures)}"]
    found = []
    for number, (stored, new) in enumerate(zip(stored_pictures, pictures, strict=True), start=1):
        if stored[0] != new[0]:
            found.append(f"Picture {number} is stored as {stored[0]}, but drawn as {new[0]}")
        elif stored != new:
            text = figures.difference(figures.render(*stored), figures.render(*new))
            if text:
                found.append(f"Picture {number} changed: {text}; look at both and run `make notebooks`")
    return found


def _pictures(outputs: list[dict]):
    for output in outputs:
        yield from figures.pictures(output.get("data", {}))
