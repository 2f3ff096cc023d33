"""B2: entropic transport between clouds without a matrix, in float32 and O(n) memory."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from . import memory, peers
from .harness import Competitor, race, table, timed

TOLERANCE = 1e-3
#: From this size on the error is estimated from 2,000 rows and columns.
LARGE = 20_000


def competitors(n: int, d: int, scale: float) -> list[Competitor]:
    sample = 2000 if n > LARGE else None
    p = peers.Clouds.normal(n, d, scale, TOLERANCE, torch.float32, sample)
    return [
        peers.ours(p, lazy=True),
        peers.geomloss(p, "online"),
        peers.ott(p, lazy=True),
        peers.pot_lazy(p),
    ]


def foresight(n: int, d: int, scale: float):
    """Seconds of a competitor's shortest run on n points, n² from a problem with a tenth of them."""
    small = {competitor.name: competitor for competitor in competitors(n // 10, d, scale)}

    def foresee(competitor: Competitor) -> float:
        probe = small[competitor.name]
        solve = timed(probe.prepare, 0.0)[1]  # with the fewest iterations
        level = 4 if probe.level == "iterations" else 0
        timed(solve, level)
        return 100 * timed(solve, level)[0]

    return foresee


def run(quick: bool, patience: float = 50.0) -> Iterator[str]:
    """One table for each size, dimension and ε."""
    if quick:
        cases = [(300, 2, 0.1)]
    else:
        cases = [(10_000, d, scale) for d in (2, 3, 64) for scale in (0.1, 0.01)]
        cases += [(10_000, 2, 0.001), *((50_000, d, 0.1) for d in (2, 3, 64))]
    for n, d, scale in cases:
        foresee = None if quick else foresight(n, d, scale)
        rows = race(competitors(n, d, scale), tol=TOLERANCE, patience=patience, foresee=foresee)
        if scale == 0.1 and not quick:
            memory.measure(rows, __name__, (n, d, scale), (200, d, scale))
        yield table(f"B2  n = {n}, d = {d}, ε = {scale:g}·mean(C), float32", rows, tol=TOLERANCE)
