"""Races at equal accuracy: competitors are tuned to the same tolerance, then run in turns and tabulated.

Taking turns makes a slow minute of the machine slow everybody. The first competitor is ours; a ratio is
the median time of another over ours, so above 1 it is our gain. Nobody is dropped: a library that is
missing, fails or does not reach the tolerance keeps its line, which says so.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

RUNS = 5


@dataclass
class Competitor:
    """One method on one problem.

    Attributes:
        name: library, method and settings, as the table shows them.
        prepare: imports the library, moves the data and compiles, all untimed. It is given the seconds that
            one run may take and returns the call to time, a function of the level. An attribute ``ready`` of
            the call, if it has one, is called with the level before, untimed: to compile for this level.
        error: how far from solved a returned object is, by a measure common to all competitors.
        level: what the level means. ``"iterations"``: their number, doubled until the tolerance is reached,
            then shortened. ``"tightness"``: the method stops by itself, at 2**-level of the tolerance.
            ``"none"``: there is nothing to choose.
        count: reads the number of iterations off a returned object; the level if absent.
    """

    name: str
    prepare: Callable[[float], Callable[[int], object]]
    error: Callable[[object], float]
    level: str = "iterations"
    count: Callable[[object], int] | None = None


@dataclass
class Row:
    """What was measured of one competitor. ``problem`` is a reason why there is no time."""

    name: str
    problem: str = ""
    seconds: list[float] = field(default_factory=list)
    error: float = math.nan
    level: int = 0
    iterations: int | None = None
    reached: bool = False
    peak: float | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.seconds) if self.seconds else math.nan


def race(
    competitors: Sequence[Competitor],
    *,
    tol: float,
    runs: int = RUNS,
    patience: float = 5.0,
    foresee: Callable[[Competitor], float] | None = None,
) -> list[Row]:
    """Tune every competitor to ``tol`` once, then time all of them in turns, ``runs`` times each.

    Args:
        competitors: ours first.
        tol: the error that each has to reach.
        runs: timed runs of each; one that takes longer than ``patience`` keeps the run it was tuned with.
        patience: seconds that one run of another library may take, or 1.5 times ours if that is longer;
            after 25 times ours (but at least a second) the verdict is clear, and tuning ends earlier.
        foresee: predicts the seconds of the shortest useful run, so that a hopeless one is not started.
    """
    rows, calls = [], {}
    ours, limit = math.nan, math.inf
    for competitor in competitors:
        row = Row(competitor.name)
        rows.append(row)
        try:
            if foresee and len(rows) > 1 and (expected := foresee(competitor)) > limit:
                row.problem = (
                    f"not run: {expected:.3g} s foreseen for its shortest run, {expected / ours:.1f}× ours"
                )
                continue
            solve = timed(competitor.prepare, limit if limit < math.inf else patience)[1]
            _tune(competitor, solve, row, tol, limit)
        except ImportError as missing:
            row.problem = f"not installed ({missing.name or missing})"
        except Exception as failure:
            row.problem = f"failed: {reason(failure)}"
        if row.reached:
            calls[row.name] = solve
        if len(rows) == 1:
            ours = row.seconds[0] if row.seconds else patience
            limit = max(1.5 * ours, min(patience, max(1.0, 25 * ours)))
    _take_turns(rows, calls, runs, patience)
    return rows


def _tune(competitor: Competitor, solve: Callable, row: Row, tol: float, limit: float) -> None:
    """Find the cheapest level that reaches ``tol``, and keep that run in the row."""

    ready = getattr(solve, "ready", None)

    def attempt(level: int) -> bool:
        if ready:
            ready(level)
        seconds, result = timed(solve, level)
        row.error, row.level, row.seconds = competitor.error(result), level, [seconds]
        row.iterations = competitor.count(result) if competitor.count else level
        row.reached = row.error <= tol  # also false for NaN
        return row.reached

    level, errors = (4, []) if competitor.level == "iterations" else (0, [])
    if competitor.level == "iterations":
        if ready:
            ready(level)
        timed(solve, level)  # compiles what is compiled on use, and fills caches
    while not attempt(level):
        errors.append(row.error)
        if competitor.level == "none" or not math.isfinite(row.error):
            raise ArithmeticError(f"error {row.error:.1e}")
        if competitor.level == "tightness":
            if level == 3:
                return
            level += 1
        else:
            if level >= 64 and errors[-1] > 0.98 * errors[-2] > 0.98**2 * errors[-3]:
                raise ArithmeticError(f"the error stalls at {row.error:.1e}")
            if 2 * row.seconds[0] > limit:
                return
            level *= 2
    if competitor.level != "iterations":
        return
    # Convergence is linear in the end: interpolate the logarithm of the error, twice.
    low, high = (level // 2, errors[-1]) if errors else (1, math.inf), (level, row.error)
    for _ in range(2):
        share = math.log(low[1] / tol) / math.log(low[1] / high[1]) if math.isfinite(low[1]) else 0.5
        between = math.ceil(low[0] + min(max(1.02 * share, 0.1), 0.9) * (high[0] - low[0]))
        if not low[0] < between < high[0]:
            break
        if attempt(between):
            high = between, row.error
        else:
            low = between, row.error
    if not row.reached:
        attempt(high[0])


def _take_turns(rows: list[Row], calls: dict[str, Callable], runs: int, patience: float) -> None:
    runners = [row for row in rows if row.reached and (row.seconds[0] <= patience or row is rows[0])]
    if len(runners) == 1 and runners[0].seconds[0] > patience:
        return  # nobody to take turns with
    for row in runners:
        row.seconds = []
    gc.collect()
    for _ in range(runs):
        for row in runners:
            row.seconds.append(timed(calls[row.name], row.level)[0])


def timed(call: Callable, *arguments: object) -> tuple[float, object]:
    """Seconds and result of one call, without warnings and without the garbage collector."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            start = time.perf_counter()
            result = call(*arguments)
            return time.perf_counter() - start, result
    finally:
        if collecting:
            gc.enable()


def reason(failure: Exception) -> str:
    """The first line of an error, with its kind."""
    text = (str(failure).strip() or type(failure).__name__).splitlines()[0]
    kind = "" if isinstance(failure, ArithmeticError) else f"{type(failure).__name__}: "
    return (kind + text)[:110]


def table(title: str, rows: Sequence[Row], *, tol: float | None = None) -> str:
    """The rows with their ratios to the first, and the best of those that reached the tolerance."""
    ours = rows[0]
    wide = max(len(row.name) for row in rows) + 2
    widths = {"median s": 10, "spread": 18, "runs": 6, "iterations": 12, "error": 10, "MiB": 8, "ratio": 10}
    lines = [title, f"  {'':{wide}}" + "".join(f"{word:>{width}}" for word, width in widths.items())]
    for row in rows:
        if row.problem:
            lines.append(f"  {row.name:{wide}}{row.problem}")
            continue
        spread = f"{min(row.seconds):.3g}–{max(row.seconds):.3g}" if len(row.seconds) > 1 else "–"
        peak = "–" if row.peak is None else f"{row.peak:.0f}"
        ratio = f"{'' if row.reached else '> '}{row.median / ours.median:.2f}×"
        if not ours.reached:
            ratio = "–"
        lines.append(
            f"  {row.name:{wide}}{row.median:>10.3g}{spread:>18}{len(row.seconds):>6}"
            f"{row.iterations or '–':>12}{row.error:>10.1e}{peak:>8}{ratio:>10}"
            + ("" if row.reached else "  tolerance not reached")
        )
    if ours.reached and (others := [row for row in rows[1:] if row.reached]):
        best = min(others, key=lambda row: row.median)
        lines.append(f"  best that reached {tol:g}: {best.name}, {best.median / ours.median:.2f}×")
    elif ours.reached:
        lines.append(f"  nobody else reached {tol:g}")
    return "\n".join(lines)
