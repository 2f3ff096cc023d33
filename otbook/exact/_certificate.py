"""Proofs of optimality: potentials that are feasible at every atom, and the duality gap that they leave.

Whatever a solver says, it is believed only as far as its plan and a feasible pair of potentials agree.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from .. import _check, _envelope
from .._check import ArrayLike
from .._result import ConvergenceWarning, OTResult

#: A solver for one problem in float64: cost, weights ↦ plan and first potential.
Kernel = Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]

#: Largest duality gap, relative to the range of the costs, that counts as a proof of optimality.
GAP = 1e-9

#: Mass that may be left on forbidden entries because the weights are rounded.
_STRAY_MASS = {torch.float32: 1e-6, torch.float64: 1e-12}

#: Entries of the cost that are looked at together: a mebibyte, which stays in the cache.
_BLOCK = 1 << 17


def solve(C: ArrayLike, a: ArrayLike | None, b: ArrayLike | None, kernel: Kernel, solver: str) -> OTResult:
    """Run ``kernel`` on each problem of the batch; repair, certify and collect the answers."""
    C, a, b = _check.problem(C, a, b)
    n, m = C.shape[-2:]
    stray = _STRAY_MASS[C.dtype]
    answers = [
        _solve_one(*problem, kernel, stray)
        for problem in zip(each(C, n, m), each(a, n), each(b, m), strict=True)
    ]
    *parts, gaps = zip(*answers, strict=True)
    plan, f, g, cost, error = (collect(part, C) for part in parts)
    converged = closed(gaps, [GAP])
    value = _envelope.attach(cost, (C, a, b), lambda: (plan, f, g), solver)
    return OTResult(value, value, f, g, 0, error, converged, plan)


def each(t: Tensor, *shape: int) -> np.ndarray:
    """The problems of a batch one after the other, in float64 and without a copy where that is possible."""
    return t.detach().cpu().double().reshape(-1, *shape).numpy()


def collect(parts: tuple[np.ndarray, ...], C: Tensor) -> Tensor:
    """The answers to all problems as one tensor, with the batch shape, dtype and device of the cost."""
    whole = np.asarray(parts[0])[None] if len(parts) == 1 else np.stack(parts)
    return torch.from_numpy(whole).to(C).reshape(C.shape[:-2] + whole.shape[1:])


def closed(gaps: Sequence[float], bounds: Sequence[float]) -> bool:
    """Whether the relative duality gaps prove optimality; a warning if they do not."""
    excess = np.subtract(gaps, bounds)
    worst = excess.argmax()
    if excess[worst] <= 0:
        return True
    bound = np.broadcast_to(bounds, excess.shape)[worst]
    warnings.warn(
        f"the solver stopped with a relative duality gap of {gaps[worst]:.2g} > {bound:g}, so its "
        "plan may not be optimal; rescale costs or weights that span many orders of magnitude",
        ConvergenceWarning,
        stacklevel=4,
    )
    return False


def span(C: np.ndarray) -> tuple[float, float, np.ndarray | None]:
    """Least and largest finite cost, and which entries are forbidden (None if none is)."""
    low, high = (extreme.item() for extreme in torch.aminmax(torch.from_numpy(C)))
    if np.isfinite(high):
        return low, high, None
    forbidden = np.isinf(C)
    return low, C[~forbidden].max().item(), forbidden


def relative(gap: float, low: float, high: float) -> float:
    """A duality gap in units of the range of the costs."""
    # Costs themselves are known to rounding only, which matters if they are almost equal.
    return abs(gap) / (unit(low, high) + 1e-5 * max(abs(low), abs(high)))


def unit(low: float, high: float) -> float:
    """The range of the costs, or their size if they are all equal."""
    return (high - low) or abs(high) or 1.0


def _solve_one(
    C: np.ndarray, a: np.ndarray, b: np.ndarray, kernel: Kernel, stray: float
) -> tuple[np.ndarray, ...]:
    """Plan, potentials, cost, marginal error and relative duality gap of one problem."""
    a, b = a / a.sum(), b / b.sum()
    low, high, forbidden = span(C)
    spread = unit(low, high)
    if forbidden is not None:
        # If a coupling without forbidden entries exists, mass on one of them can leave along a cycle
        # that takes at most min(n, m) allowed entries in and as many out: at this price it gains.
        C = np.where(forbidden, high + min(C.shape) * spread, C)
    if forbidden is None and 1 <= spread <= 1000 and 0 <= low <= spread:
        plan, f = kernel(C, a, b)
    else:
        # The solvers have absolute tolerances: they see costs from 0, and to 1 if they are finite.
        scaled = C - low
        scaled /= spread
        plan, f = kernel(scaled, a, b)
        f = spread * f
    f, g, cost, rows, columns = _audit(C, a, plan, f)
    error = np.abs(rows - a).sum() + np.abs(columns - b).sum()
    gap = cost - (a @ f + b @ g)
    if forbidden is not None:
        if (lost := plan[forbidden].sum()) > stray:
            raise ValueError(
                f"C forbids every coupling of a and b: a mass of {lost:.6g} has nowhere to go; "
                "make more entries of C finite, or change the weights"
            )
        plan = np.where(forbidden, 0.0, plan)
        cost = np.vdot(C, plan)
        error = np.abs(plan.sum(1) - a).sum() + np.abs(plan.sum(0) - b).sum()
    half = (a @ f - b @ g) / 2
    return plan, f - half, g + half, cost, error, relative(gap, low, high)


def _audit(
    C: np.ndarray, a: np.ndarray, plan: np.ndarray, f: np.ndarray
) -> tuple[np.ndarray, np.ndarray, float, np.ndarray, np.ndarray]:
    """Feasible potentials from the first of a pair, cost and marginals of the plan: C is read once.

    g is the c-transform of f over the atoms that carry mass: whatever f is, no entry of their rows is
    overcharged, and an optimal f keeps its value. f at the other atoms, which says nothing, is then the
    c-transform of g. So the pair is feasible everywhere.
    """
    n, m = C.shape
    empty = a == 0
    f = np.where(empty, -np.inf, f)
    g, columns, rows, cost = np.full(m, np.inf), np.zeros(m), np.empty(n), 0.0
    step, ones = max(1, _BLOCK // m), np.ones(max(n, m))
    reduced = np.empty((min(step, n), m))
    for start in range(0, n, step):
        block = slice(start, start + step)
        c, p = C[block], plan[block]
        slack = np.subtract(c, f[block, None], out=reduced[: len(c)])
        np.minimum(g, slack.min(0), out=g)
        cost += np.vdot(c, p)
        np.matmul(p, ones[:m], out=rows[block])
        columns += ones[: len(p)] @ p
    if empty.any():
        f[empty] = (C[empty] - g).min(1)
    return f, g, cost, rows, columns
