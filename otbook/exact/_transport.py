"""Exact transport between weighted measures: the network simplex of POT, and HiGHS as its check.

The solvers are called on one problem at a time; ``_certificate`` prepares it and proves the answer.
"""

from __future__ import annotations

import warnings

import numpy as np

from .._check import ArrayLike
from .._result import OTResult
from ._certificate import solve

#: Pivots after which the network simplex gives up: far above what a million arcs ask for.
_MAX_PIVOTS = 100_000_000


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
        >>> import torch
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
    return solve(C, a, b, _network_simplex, "emd")


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
    return solve(C, a, b, _highs, "linear_program")


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
