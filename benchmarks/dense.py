"""B1: entropic transport on a stored cost, in float64."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from . import memory, peers
from .harness import Competitor, race, table

TOLERANCE = 1e-6


def competitors(n: int, scale: float) -> list[Competitor]:
    p = peers.Clouds.normal(n, 2, scale, TOLERANCE, torch.float64)
    return [
        peers.ours(p, lazy=False),
        peers.pot(p, "sinkhorn"),
        peers.pot(p, "sinkhorn_log"),
        peers.pot(p, "sinkhorn_stabilized"),
        peers.geomloss(p, "tensorized"),
        peers.ott(p, lazy=False),
        peers.ott(p, lazy=False, log=False),
    ]


def run(quick: bool, patience: float = 5.0) -> Iterator[str]:
    """One table for each size and ε; times include the plan for otbook and POT, which return it."""
    for n in (100,) if quick else (500, 2000, 5000):
        for scale in (0.1,) if quick else (0.1, 0.01, 0.001):
            rows = race(competitors(n, scale), tol=TOLERANCE, patience=patience)
            if scale == 0.1 and not quick:  # memory does not depend on ε
                memory.measure(rows, __name__, (n, scale), (100, scale))
            yield table(f"B1  n = {n}, d = 2, ε = {scale:g}·mean(C), float64", rows, tol=TOLERANCE)
