"""Interleaved timing: competitors take turns, so that a slow minute of the machine slows them all."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class Entry:
    """One competitor: what to call, and how to read the marginal error of what it returns."""

    name: str
    call: Callable[[], object]
    error: Callable[[object], float]
    seconds: list[float] = field(default_factory=list)
    final_error: float = float("nan")

    def median(self) -> float:
        return statistics.median(self.seconds)


def race(entries: list[Entry], *, runs: int = 5, patience: float = 5.0) -> None:
    """Run all entries in turn, ``runs`` times after a warm-up; one slower than ``patience`` runs once."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for turn in range(runs + 1):
            for entry in entries:
                if entry.seconds and entry.seconds[0] > patience:
                    continue
                start = time.perf_counter()
                result = entry.call()
                seconds = time.perf_counter() - start
                if turn > 0 or seconds > patience:
                    entry.seconds.append(seconds)
                entry.final_error = entry.error(result)


def table(title: str, entries: list[Entry], *, tol: float) -> str:
    """Ratios to the first entry, ours: how many times longer the others take to the same tolerance."""
    ours = entries[0]
    lines = [title, f"  {'':34s}{'median s':>10s}{'spread':>16s}{'error':>10s}{'ratio':>9s}"]
    for entry in entries:
        spread = f"{min(entry.seconds):.3g}–{max(entry.seconds):.3g}"
        ratio = f"{entry.median() / ours.median():.1f}×"
        if not entry.final_error <= 1.05 * tol:
            ratio = "failed"
        lines.append(
            f"  {entry.name:34s}{entry.median():10.3g}{spread:>16s}{entry.final_error:10.1e}{ratio:>9s}"
        )
    return "\n".join(lines)
