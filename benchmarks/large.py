"""large: a hundred thousand points in space on the CPU, alone, since the others would take hours."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch

import otbook

from . import memory

TOLERANCE = 1e-3


def solve(n: int) -> tuple[float, otbook.OTResult]:
    """Seconds and result for two Gaussian clouds in R³, at ε = 0.1·E C."""
    generator = torch.Generator().manual_seed(n)
    x, y = (torch.randn(n, 3, generator=generator) for _ in range(2))
    y += 0.5
    eps = 0.1 * (6 + 3 * 0.5**2)  # E‖x − y‖² = 2·3 + ‖shift‖²
    start = time.perf_counter()
    result = otbook.sinkhorn(otbook.PointCloudCost(x, y), eps=eps, tol=TOLERANCE, progress=True)
    return time.perf_counter() - start, result


def run(quick: bool, patience: float | None = None) -> Iterator[str]:
    """The time, the memory of the whole process and how well the result fits."""
    n = 2_000 if quick else 100_000
    done = []
    peak = memory.growth(lambda: done.append(solve(n)))
    seconds, result = done[0]
    yield (
        f"n = m = {n:,} points in R³, ε = 0.1·E C, float32, tolerance {TOLERANCE:g}: {seconds:.0f} s, "
        f"{result.n_iter} iterations, marginal error {result.marginal_error.item():.1e}, "
        f"{peak:.0f} MiB on top of the libraries"
    )
