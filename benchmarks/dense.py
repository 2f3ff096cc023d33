"""B1: entropic transport on a dense cost, to a marginal error of 1e-6 in float64."""

from __future__ import annotations

import math
from collections.abc import Iterator

import ot
import torch

import otbook

from .timing import Entry, race, table

TOLERANCE = 1e-6


def marginal_error(P: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> float:
    """L1 violation of both marginals, the measure that every competitor is held to."""
    return float((P.sum(1) - a).abs().sum() + (P.sum(0) - b).abs().sum())


def run(
    sizes: tuple[int, ...] = (500, 2000), scales: tuple[float, ...] = (0.1, 0.01, 0.001)
) -> Iterator[str]:
    """Yield one table for each size and regularisation."""
    for n in sizes:
        generator = torch.Generator().manual_seed(n)
        x = torch.randn(n, 2, generator=generator, dtype=torch.float64)
        y = torch.randn(n, 2, generator=generator, dtype=torch.float64) + 0.5
        C = otbook.costs.sqeuclidean(x, y)
        w = torch.full((n,), 1 / n, dtype=torch.float64)
        for scale in scales:
            eps = scale * C.mean().item()

            # POT stops on the L2 error of one marginal, which this bounds from above in L1.
            threshold = TOLERANCE / math.sqrt(n)

            def pot(method, limit, C=C, eps=eps, w=w, threshold=threshold):  # on PyTorch, its faster backend
                return lambda: ot.sinkhorn(w, w, C, eps, method=method, stopThr=threshold, numItermax=limit)

            def peer_error(P, w=w):
                return marginal_error(P, w, w)

            entries = [
                Entry(
                    "otbook.sinkhorn",
                    lambda C=C, eps=eps: otbook.sinkhorn(C, eps=eps, tol=TOLERANCE),
                    lambda result, w=w: marginal_error(result.plan, w, w),
                ),
                Entry("POT sinkhorn", pot("sinkhorn", 5_000), peer_error),
                Entry("POT sinkhorn_log", pot("sinkhorn_log", 1_000), peer_error),
            ]
            race(entries)
            yield table(f"B1  n = {n}, ε = {scale:g}·mean(C)", entries, tol=TOLERANCE)
