"""B8: how time and memory grow with n: exponents fitted over doubled sizes."""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

import otbook

from .harness import reason, timed
from .memory import apart, growth
from .peers import Clouds


@dataclass
class Solver:
    """``prepare(n)`` returns the call to measure; it returns a number of iterations to divide its time by."""

    prepare: Callable[[int], Callable[[], int]]
    sizes: tuple[int, ...]
    time: float | None = None  # largest exponents allowed by the targets, if there are any
    memory: float | None = None


def _clouds(n: int, dtype: torch.dtype = torch.float64) -> Clouds:
    return Clouds.normal(n, 3, 0.1, 1e-3, dtype)


def _dense(n: int) -> Callable[[], int]:
    p = _clouds(n)
    C = p.C
    return lambda: otbook.sinkhorn(C, eps=p.eps, tol=1e-6).n_iter


def _matrix_free(n: int) -> Callable[[], int]:
    p = _clouds(n, torch.float32)
    C = otbook.costs.PointCloudCost(p.x, p.y)
    return lambda: otbook.sinkhorn(C, eps=p.eps, tol=1e-3).n_iter


def _divergence(n: int) -> Callable[[], int]:
    p = _clouds(n)

    def call() -> int:
        otbook.sinkhorn_divergence(p.x, p.y, eps=p.eps, tol=1e-3)
        return 1

    return call


def _exact(solver: Callable) -> Callable:
    def prepare(n: int) -> Callable[[], int]:
        C = _clouds(n).C

        def call() -> int:
            solver(C)
            return 1

        return call

    return prepare


def _sliced(n: int) -> Callable[[], int]:
    p = _clouds(n, torch.float32)

    def call() -> int:
        otbook.sliced_wasserstein(p.x, p.y, n_projections=20, generator=torch.Generator().manual_seed(0))
        return 1

    return call


def _line(n: int) -> Callable[[], int]:
    p = _clouds(n, torch.float32)

    def call() -> int:
        otbook.wasserstein_1d(p.x[:, 0], p.y[:, 0])
        return 1

    return call


def _gromov(lazy: bool) -> Callable:
    def prepare(n: int) -> Callable[[], int]:
        p = _clouds(n)
        costs = [otbook.costs.PointCloudCost(t, t) for t in (p.x, p.y)]
        C = costs if lazy else [c.dense() for c in costs]
        eps = 0.1 * 2 * 60.0  # of mean(Cx² + Cy²), which is 4d(d + 2) each in d dimensions
        return lambda: otbook.entropic_gromov_wasserstein(*C, eps=eps, tol=1e-3).n_iter

    return prepare


SOLVERS = {
    "sinkhorn, per iteration": Solver(_dense, (500, 1000, 2000, 4000), time=2.05),
    "sinkhorn on PointCloudCost, per iteration": Solver(
        _matrix_free, (4000, 8000, 16_000, 32_000), time=2.05, memory=1.05
    ),
    "sinkhorn_divergence": Solver(_divergence, (500, 1000, 2000)),
    "emd": Solver(_exact(otbook.emd), (500, 1000, 2000)),
    "assignment": Solver(_exact(otbook.assignment), (500, 1000, 2000)),
    "wasserstein_1d": Solver(_line, (250_000, 500_000, 1_000_000)),
    "sliced_wasserstein": Solver(_sliced, (50_000, 100_000, 200_000, 400_000)),
    "entropic GW, costs stored, per problem": Solver(_gromov(False), (200, 400, 800)),
    "entropic GW, costs of rank d + 2, per problem": Solver(_gromov(True), (200, 400, 800)),
}


def seconds(name: str, n: int, runs: int = 3) -> float:
    """Median seconds per iteration, after a first call that is not timed."""
    call = SOLVERS[name].prepare(n)
    call()
    measured = [timed(call) for _ in range(runs)]
    return statistics.median(spent / count for spent, count in measured)


def mebibytes(name: str, n: int) -> float:
    """Peak of one call in this process, on top of its input."""
    SOLVERS[name].prepare(100)()
    return growth(SOLVERS[name].prepare(n))


def exponent(sizes: tuple[int, ...], values: list[float]) -> float:
    """Slope of log(values) on log(sizes), by least squares."""
    return statistics.linear_regression([math.log(n) for n in sizes], [math.log(v) for v in values]).slope


def run(quick: bool, patience: float = 0.0) -> Iterator[str]:
    """One block with a line for each solver."""
    wide = max(map(len, SOLVERS)) + 2
    lines = [f"{'':{wide}}{'n':>18}{'time ~ nᵏ, k':>14}{'memory ~ nᵏ, k':>16}{'largest n: s':>14}{'MiB':>8}"]
    for name, solver in SOLVERS.items():
        sizes = tuple(n // 20 for n in solver.sizes[:2]) if quick else solver.sizes
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                times = [seconds(name, n) for n in sizes]
        except Exception as failure:
            lines.append(f"{name:{wide}}failed: {reason(failure)}")
            continue
        peaks = [] if quick else [apart(mebibytes, name, n) for n in sizes]
        time, memory = exponent(sizes, times), math.nan
        if peaks and None not in peaks and min(peaks) > 0:
            memory = exponent(sizes, peaks)
        largest = f"{peaks[-1]:.0f}" if peaks and peaks[-1] is not None else "–"
        verdicts = [
            f"{'met' if measured <= target else 'MISSED'}: {what} ≤ {target}"
            for what, measured, target in (("time", time, solver.time), ("memory", memory, solver.memory))
            if target and not math.isnan(measured)
        ]
        lines.append(
            f"{name:{wide}}{f'{sizes[0]}–{sizes[-1]}':>18}{time:>14.2f}"
            f"{'–' if math.isnan(memory) else f'{memory:.2f}':>16}{times[-1]:>14.3g}"
            f"{largest:>8}  {', '.join(verdicts)}".rstrip()
        )
    yield "\n".join(lines)
