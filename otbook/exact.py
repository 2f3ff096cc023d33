"""Exact optimal transport: the linear program min ⟨C, P⟩ over couplings, with a certificate.

Network simplex (POT), assignment and a general LP (SciPy) do the work; here each answer is
completed by dual potentials that prove it, and by derivatives of its value.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from . import _check, _envelope
from ._check import ArrayLike
from ._result import ConvergenceWarning, OTResult

#: A solver for one problem in float64: cost, weights ↦ plan and first potential.
_Kernel = Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]

#: Pivots after which the network simplex gives up: far above what a million arcs ask for.
_MAX_PIVOTS = 100_000_000

#: Largest duality gap, relative to the range of the costs, that counts as a proof of optimality.
_GAP = 1e-9

#: Mass that may be left on forbidden entries because the weights are rounded.
_STRAY_MASS = {torch.float32: 1e-6, torch.float64: 1e-12}


def emd(C: ArrayLike, a: ArrayLike | None = None, b: ArrayLike | None = None) -> OTResult:
    """Exact optimal transport by the network simplex, with potentials that certify it.

    Minimises ⟨C, P⟩ over P ≥ 0 with P1 = a and Pᵀ1 = b. The potentials solve the dual problem,
    max ⟨a, f⟩ + ⟨b, g⟩ subject to f⊕g ≤ C, at every atom, also at those without mass. They are
    shifted so that ⟨a, f⟩ = ⟨b, g⟩: each side pays half of the value.

    ``value`` (and ``cost``, which is the same) is differentiable once: its derivative is P in C,
    f in a and g in b (envelope theorem); where the optimum is not unique this is one of the
    super- or subgradients. ``plan``, ``f`` and ``g`` are constants for gradients.

    Args:
        C: ground cost, shape (…, n, m); +inf forbids an entry.
        a: source weights, shape (n,) or (…, n), sum 1; uniform if None.
        b: target weights, shape (m,) or (…, m), sum 1; uniform if None.

    Returns:
        The solution; ``converged`` says that the duality gap closes to rounding.

    Raises:
        ValueError: for invalid costs or weights, and when the forbidden entries leave no coupling.

    Note:
        The solver runs on the CPU in float64, one problem of the batch after the other; results
        come back with the dtype and on the device of C.

    Source:
        Bonneel, van de Panne, Paris, Heidrich (2011), the solver in POT; duality and
        c-transforms: Peyré and Cuturi (2019), sections 2.5 and 3.2.

    Example:
        >>> C = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
        >>> result = emd(C, [0.5, 0.5], [0.1, 0.9])
        >>> result.plan
        tensor([[0.1000, 0.4000],
                [0.0000, 0.5000]], dtype=torch.float64)
        >>> result.value
        tensor(0.4000, dtype=torch.float64)
        >>> bool((result.f[:, None] + result.g <= C + 1e-12).all())
        True
    """
    return _solve(C, a, b, _network_simplex, "emd")


def linear_program(C: ArrayLike, a: ArrayLike | None = None, b: ArrayLike | None = None) -> OTResult:
    """Exact optimal transport by a general LP solver (HiGHS): slower than :func:`emd`, its check.

    Same problem, arguments, normalisation and derivatives as :func:`emd`.

    Args:
        C: ground cost, shape (…, n, m); +inf forbids an entry.
        a: source weights, shape (n,) or (…, n), sum 1; uniform if None.
        b: target weights, shape (m,) or (…, m), sum 1; uniform if None.

    Returns:
        The solution, of which plan and potentials may differ from those of :func:`emd`
        where the optimum is not unique.

    Raises:
        ValueError: as for :func:`emd`.

    Source:
        Peyré and Cuturi (2019), section 3.1, solved by ``scipy.optimize.linprog``.

    Example:
        >>> linear_program([[0.0, 1.0], [1.0, 0.0]]).value
        tensor(0.)
    """
    return _solve(C, a, b, _highs, "linear_program")


def assignment(C: ArrayLike) -> tuple[Tensor, Tensor]:
    """The best permutation σ for equal weights, and its **mean** cost (1/n) Σ_i C[i, σ(i)].

    The mean, not the sum, so that it equals ``emd(C).value`` with uniform weights: by the
    theorem of Birkhoff and von Neumann, P[i, σ(i)] = 1/n is then an optimal plan.
    The cost is differentiable in C.

    Args:
        C: square ground cost, shape (…, n, n); +inf forbids a pair.

    Returns:
        Permutations, int64, shape (…, n), and mean costs, shape (…), in units of C.

    Raises:
        ValueError: for invalid or non-square costs, and when no permutation avoids the forbidden pairs.

    Source:
        Crouse (2016), shortest augmenting paths, as in ``scipy.optimize.linear_sum_assignment``.

    Example:
        >>> assignment([[4.0, 1.0, 3.0], [2.0, 0.0, 5.0], [3.0, 2.0, 2.0]])
        (tensor([1, 0, 2]), tensor(1.6667))
    """
    from scipy.optimize import linear_sum_assignment

    C = _check.cost_matrix(C)
    n, m = C.shape[-2:]
    if n != m:
        raise ValueError(
            f"C must be square for an assignment, but has shape {tuple(C.shape)}; "
            "for different numbers of points or unequal weights use emd"
        )
    problems = C.detach().cpu().double().reshape(-1, n, n).numpy()
    try:
        columns = np.stack([linear_sum_assignment(problem)[1] for problem in problems])
    except ValueError as error:
        raise ValueError(
            "C forbids every permutation: its infinite entries leave some points without a partner; "
            "make more entries finite"
        ) from error
    permutation = torch.from_numpy(columns).to(C.device, torch.int64).reshape(C.shape[:-1])
    return permutation, C.gather(-1, permutation[..., None])[..., 0].mean(-1)


def _solve(C: ArrayLike, a: ArrayLike | None, b: ArrayLike | None, kernel: _Kernel, solver: str) -> OTResult:
    """Run ``kernel`` on each problem of the batch; repair, certify and collect the answers."""
    C, a, b = _check.problem(C, a, b)
    n, m = C.shape[-2:]
    batch = C.shape[:-2]
    stray = _STRAY_MASS[C.dtype]

    def problems(t: Tensor, *shape: int) -> np.ndarray:
        return t.detach().cpu().double().reshape(-1, *shape).numpy()

    answers = [
        _solve_one(*problem, kernel, stray)
        for problem in zip(problems(C, n, m), problems(a, n), problems(b, m), strict=True)
    ]
    plan, f, g, cost, gap, error = (
        torch.from_numpy(np.stack(part)).to(C).reshape(batch + np.shape(part[0]))
        for part in zip(*answers, strict=True)
    )
    converged = bool((gap <= _GAP).all())
    if not converged:
        warnings.warn(
            f"the solver stopped with a relative duality gap of {gap.max().item():.2g} > {_GAP:g}, so its "
            "plan may not be optimal; rescale costs or weights that span many orders of magnitude",
            ConvergenceWarning,
            stacklevel=3,
        )
    value = _envelope.attach(cost, (C, a, b), lambda: (plan, f, g), solver)
    return OTResult(value, value, f, g, 0, error, converged, plan)


def _solve_one(
    C: np.ndarray, a: np.ndarray, b: np.ndarray, kernel: _Kernel, stray: float
) -> tuple[np.ndarray, ...]:
    """Plan, potentials, cost, relative duality gap and marginal error of one problem."""
    a, b = a / a.sum(), b / b.sum()
    low, high, forbidden = C.min(), C.max(), None
    if np.isinf(high):
        forbidden = np.isinf(C)
        high = C[~forbidden].max()
    spread = (high - low) or abs(high) or 1.0
    if forbidden is not None:
        # If a coupling without forbidden entries exists, mass on one of them can leave along a cycle
        # that takes at most min(n, m) allowed entries in and as many out: at this price it gains.
        C = np.where(forbidden, high + min(C.shape) * spread, C)
    # The network simplex has an absolute tolerance: it sees costs between 0 and 1.
    scaled = C - low
    scaled /= spread
    plan, f = kernel(scaled, a, b)
    f = spread * f
    # c-transforms: g from the atoms that carry mass, then f from g. They keep the value of an
    # optimal pair and make it feasible everywhere, also at atoms of zero weight.
    carries = slice(None) if (a > 0).all() else a > 0
    g = (C[carries] - f[carries, None]).min(0)
    f = (C - g).min(1)
    gap = np.vdot(C, plan) - (a @ f + b @ g)
    if forbidden is not None:
        if (lost := plan[forbidden].sum()) > stray:
            raise ValueError(
                f"C forbids every coupling of a and b: a mass of {lost:.6g} has nowhere to go; "
                "make more entries of C finite, or change the weights"
            )
        plan = np.where(forbidden, 0.0, plan)
    cost = np.vdot(C, plan)
    half = (a @ f - b @ g) / 2
    error = np.abs(plan.sum(1) - a).sum() + np.abs(plan.sum(0) - b).sum()
    # Costs themselves are known to rounding only, which matters if they are almost equal.
    scale = spread + 1e-5 * max(abs(low), abs(high))
    return plan, f - half, g + half, cost, abs(gap) / scale, error


def _network_simplex(C: np.ndarray, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    import ot

    with warnings.catch_warnings():
        # Its verdict is not needed: the duality gap decides.
        warnings.simplefilter("ignore", UserWarning)
        plan, log = ot.emd(a, b, C, numItermax=_MAX_PIVOTS, log=True, check_marginals=False)
    return plan, log["u"]


def _highs(C: np.ndarray, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    from scipy.optimize import linprog
    from scipy.sparse import eye_array, kron, vstack

    n, m = C.shape
    rows, columns = kron(eye_array(n), np.ones((1, m))), kron(np.ones((1, n)), eye_array(m))
    answer = linprog(
        C.ravel(),
        A_eq=vstack([rows, columns]),
        b_eq=np.concatenate([a, b]),
        method="highs",
        options={"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10},
    )
    if answer.x is None:
        raise RuntimeError(f"HiGHS found no solution: {answer.message}")
    return answer.x.reshape(n, m).clip(min=0), answer.eqlin.marginals[:n]
