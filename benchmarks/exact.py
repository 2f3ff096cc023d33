"""B5: exact transport: what our call costs on top of the library that does the work."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

import torch

import otbook

from .harness import Competitor, race, table

TOLERANCE = 1e-9
RUNS = 9


def problem(n: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(n)
    x, y = (torch.randn(n, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    return otbook.costs.sqeuclidean(x, y)


def network_simplex(n: int) -> list[Competitor]:
    C = problem(n)
    w = torch.full((n,), 1 / n, dtype=torch.float64)
    generator = torch.Generator().manual_seed(n)
    a = torch.rand(n, generator=generator, dtype=torch.float64) + 0.1
    a = a / a.sum()
    marginals = a.numpy(), w.numpy()

    def pot(_: float):
        import ot

        return lambda _: ot.lp.emd(*marginals, C.numpy(), numItermax=10_000_000, log=True)[1]["cost"]

    return _pair("otbook.emd", lambda: otbook.emd(C, a, w).cost, "POT emd, plan and duals", pot)


def assignment(n: int) -> list[Competitor]:
    C = problem(n)

    def scipy(_: float):
        from scipy.optimize import linear_sum_assignment

        def solve(_: int):
            rows, columns = linear_sum_assignment(C.numpy())
            return C.numpy()[rows, columns].mean()

        return solve

    return _pair("otbook.assignment", lambda: otbook.assignment(C)[1], "SciPy linear_sum_assignment", scipy)


def _pair(name: str, call, other: str, prepare) -> list[Competitor]:
    costs = []

    def error(cost) -> float:
        costs.append(float(cost))
        return abs(costs[-1] - costs[0]) / costs[0]

    return [
        Competitor(name, lambda _: lambda level: call(), error, level="none", count=lambda _: 0),
        Competitor(other, prepare, error, level="none", count=lambda _: 0),
    ]


def run(quick: bool, patience: float = 10.0) -> Iterator[str]:
    """One table for each solver and size, with the median overhead over the pairs of runs."""
    for n in (100,) if quick else (500, 1000, 2000):
        for kind, competitors in (("network simplex", network_simplex), ("assignment", assignment)):
            rows = race(competitors(n), tol=TOLERANCE, runs=RUNS, patience=patience)
            lines = table(f"B5  {kind}, n = {n}, error relative to ours", rows, tol=TOLERANCE)
            if len(rows[1].seconds) == len(rows[0].seconds) > 0:
                shares = [ours / theirs - 1 for ours, theirs in zip(*(r.seconds for r in rows), strict=True)]
                lines += f"\n  overhead of our call: {100 * statistics.median(shares):.1f} %"
            yield lines
