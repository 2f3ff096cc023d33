"""Exact transport between equal weights: the best permutation, by shortest augmenting paths or by auction.

By the theorem of Birkhoff and von Neumann a permutation is then an optimal plan.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .. import _check, _envelope
from .._check import ArrayLike
from .._result import OTResult
from . import _certificate
from ._auction import sell

#: The last ε of an auction, and the smallest at which prices still move, in units of the range of the costs.
_EPS, _FINEST = 1e-10, 1e-11

_NO_PERMUTATION = (
    "C forbids every permutation: its infinite entries leave some points without a partner; "
    "make more entries finite"
)


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

    C = _square(C)
    n = C.shape[-1]
    try:
        columns = [linear_sum_assignment(problem)[1] for problem in _certificate.each(C, n, n)]
    except ValueError as error:
        raise ValueError(_NO_PERMUTATION) from error
    permutation = torch.from_numpy(np.stack(columns)).to(C.device, torch.int64).reshape(C.shape[:-1])
    return permutation, C.gather(-1, permutation[..., None])[..., 0].mean(-1)


def auction(C: ArrayLike, *, eps: float | None = None, scaling: float = 5.0) -> OTResult:
    """Exact transport between equal weights by an auction, with the prices that certify it.

    Minimises ⟨C, P⟩ over P ≥ 0 with all row and column sums 1/n. Sources without a target bid for the
    one that is cheapest for them at the current prices, one after the other, and raise its price until it
    is ε dearer than their second choice. At the end the sources pay on average at most ε above their
    cheapest choices, so the mean cost of the permutation is at most ε above the optimum (the sum, n·ε):
    whole costs and ε < 1/n make it optimal. ε starts at the range of the costs over ``scaling`` and is
    divided by ``scaling`` until it reaches ``eps``; the prices are kept. A phase takes at most
    (1 + scaling)·n² + n bids, so the whole takes O(n³ log(range/eps)) operations.

    The potentials are f_i = min_j C_ij + p_j and g = −p, shifted so that the means of f and g agree.
    ``value`` is differentiable once in C: its derivative is P. ``f`` and ``g`` are constants.

    Args:
        C: square ground cost, shape (…, n, n); +inf forbids a pair.
        eps: the last ε, above 0, in units of C; by default 10⁻¹⁰ of the range of the finite costs of each
            problem.
        scaling: divisor of ε from phase to phase, above 1; ``math.inf`` starts with ``eps`` at once.

    Returns:
        The solution, whose plan is a permutation matrix over n; ``value`` is the mean cost, ``n_iter``
        the number of bids (of the problem that took most), and ``converged`` says that the duality gap is
        at most ``eps``, or closes to rounding.

    Raises:
        ValueError: for invalid or non-square costs or options, and when no permutation avoids the
            forbidden pairs.

    Note:
        The auction runs on the CPU in float64, one problem of the batch after the other; results
        come back with the dtype and on the device of C.

    Source:
        Bertsekas (1988), Gauss–Seidel version with ε-scaling.

    Example:
        >>> C = torch.tensor([[4.0, 1.0, 3.0], [2.0, 0.0, 5.0], [3.0, 2.0, 2.0]])
        >>> result = auction(C, eps=0.3)  # whole costs, and below 1/3
        >>> result.plan.argmax(-1), result.value
        (tensor([1, 0, 2]), tensor(1.6667))
    """
    C = _square(C)
    n = C.shape[-1]
    if eps is not None:
        eps = _check.positive(eps, "eps")
    if not scaling > 1:
        raise ValueError(f"scaling must be above 1, but is {scaling:g}; 4 to 10 are usual, inf turns it off")
    answers = [_auction_one(problem, eps, scaling) for problem in _certificate.each(C, n, n)]
    *parts, gaps, bounds, bids = zip(*answers, strict=True)
    permutation, f, g, cost = (_certificate.collect(part, C) for part in parts)
    permutation = permutation.long()
    converged = _certificate.closed(gaps, bounds)

    def plan() -> Tensor:
        return torch.zeros_like(C, requires_grad=False).scatter_(-1, permutation[..., None], 1 / n)

    value = _envelope.attach(cost, (C,), lambda: (plan,), "auction")
    return OTResult(value, value, f, g, max(bids), torch.zeros_like(cost), converged, plan)


def _auction_one(C: np.ndarray, eps: float | None, scaling: float) -> tuple[np.ndarray | float, ...]:
    """Permutation, potentials, mean cost, relative gap and its bound, and bids of one problem."""
    low, high, forbidden = _certificate.span(C)
    if forbidden is not None and _unmatched(forbidden):
        raise ValueError(_NO_PERMUTATION)
    spread = _certificate.unit(low, high)
    eps = _EPS * spread if eps is None else eps
    scaled = C - low
    scaled /= spread
    owner, prices, bids = sell(scaled, max(eps / spread, _FINEST), scaling)
    permutation = owner.argsort()
    g = -spread * prices
    f = (C - g).min(1)
    cost = C[np.arange(len(C)), permutation].mean()
    gap, half = cost - f.mean() - g.mean(), (f.mean() - g.mean()) / 2
    # The theorem's bound, with room for rounding.
    bound = max(_certificate.GAP, 1.001 * _certificate.relative(eps, low, high))
    return permutation, f - half, g + half, cost, _certificate.relative(gap, low, high), bound, bids


def _unmatched(forbidden: np.ndarray) -> bool:
    """Whether no permutation avoids the forbidden pairs, in which case an auction would never end."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import maximum_bipartite_matching

    return bool((maximum_bipartite_matching(csr_array(~forbidden)) < 0).any())


def _square(C: ArrayLike) -> Tensor:
    C = _check.cost_matrix(C)
    n, m = C.shape[-2:]
    if n != m:
        raise ValueError(
            f"C must be square for an assignment, but has shape {tuple(C.shape)}; "
            "for different numbers of points or unequal weights use emd"
        )
    return C
