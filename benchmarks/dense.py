"""B1: entropic transport on a dense cost, to a marginal error of 1e-6 in float64."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import ot
import torch

import otbook

from .timing import Entry, race, table

TOLERANCE = 1e-6


def marginal_error(P: np.ndarray, a: np.ndarray, b: np.ndarray) -> float:
    """L1 violation of both marginals, the measure that every competitor is held to."""
    return float(np.abs(P.sum(1) - a).sum() + np.abs(P.sum(0) - b).sum())


def run(
    sizes: tuple[int, ...] = (500, 2000), scales: tuple[float, ...] = (0.1, 0.01, 0.001)
) -> Iterator[str]:
    """Yield one table for each size and regularisation."""
    for n in sizes:
        generator = torch.Generator().manual_seed(n)
        x = torch.randn(n, 2, generator=generator, dtype=torch.float64)
        y = torch.randn(n, 2, generator=generator, dtype=torch.float64) + 0.5
        C = otbook.costs.sqeuclidean(x, y)
        M, w = C.numpy(), np.full(n, 1 / n)
        for scale in scales:
            eps = scale * C.mean().item()

            # POT stops on the L2 error of one marginal, which this bounds from above in L1.
            threshold = TOLERANCE / np.sqrt(n)

            def pot(method, limit, C=M, eps=eps, w=w, threshold=threshold):
                return lambda: ot.sinkhorn(w, w, C, eps, method=method, stopThr=threshold, numItermax=limit)

            def peer_error(P, w=w):
                return marginal_error(P, w, w)

            entries = [
                Entry(
                    "otbook.sinkhorn",
                    lambda C=C, eps=eps: otbook.sinkhorn(C, eps=eps, tol=TOLERANCE),
                    lambda result, w=w: marginal_error(result.plan.numpy(), w, w),
                ),
                Entry("POT sinkhorn", pot("sinkhorn", 20_000), peer_error),
                Entry("POT sinkhorn_log", pot("sinkhorn_log", 2_000), peer_error),
            ]
            race(entries)
            yield table(f"B1  n = {n}, ε = {scale:g}·mean(C)", entries, tol=TOLERANCE)
