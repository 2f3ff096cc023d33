"""Entropic Gromov–Wasserstein transport."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from .. import _check
from .._check import ArrayLike
from .._result import ConvergenceWarning, OTResult
from ..entropic import sinkhorn
from ._conditional import Callback, End
from ._mirror import Response, distance, mirror_descent
from ._quadratic import Quadratic, Split
from ._solve import Structure, problem, solve


def entropic_gromov_wasserstein(
    Cx: Structure,
    Cy: Structure,
    a: ArrayLike | None = None,
    b: ArrayLike | None = None,
    *,
    eps: float,
    n_restarts: int = 1,
    generator: torch.Generator | None = None,
    tol: float = 1e-6,
    max_iter: int = 1000,
    callback: Callback | None = None,
) -> OTResult:
    """Entropic Gromov–Wasserstein transport, by mirror descent with :func:`sinkhorn` inside.

    Minimises F(P) = Σ_ijkl |Cx_ik − Cy_jl|² P_ij P_kl + ε KL(P ‖ a⊗b) over P1 = a and Pᵀ1 = b. An
    iteration replaces P by argmin_Q ⟨∇E(P), Q⟩ + ε KL(Q ‖ a⊗b), E the quadratic term, as in the source;
    should F rise, the step is shortened, and near its end the iteration is extrapolated. It ends at a
    stationary plan, P_ij = a_i b_j exp((f_i + g_j − ∇E(P)_ij)/ε).

    Args:
        Cx: costs within the first space, shape (…, n, n); need not be symmetric. Costs of low rank, as a
            :class:`LowRankCost` or a squared Euclidean :class:`~otbook.costs.PointCloudCost` of the points
            with themselves, are multiplied by their factors and never formed; a matrix is factorised where
            its rank turns out to be small.
        Cy: costs within the second space, shape (…, m, m), in the same units.
        a: weights of the first space, shape (n,) or (…, n), sum 1; uniform if None. Zeros are allowed.
        b: weights of the second space, shape (m,) or (…, m), sum 1; uniform if None. Zeros are allowed.
        eps: weight ε of the KL term, in squared units of Cx.
        n_restarts: number of starts, of which the best is kept. The first is a⊗b, the others are
            random couplings.
        generator: source of the random couplings; needed if n_restarts > 1.
        tol: stop when another iteration would move the plan by at most about tol in ‖·‖₁; the marginals
            are then right to tol as well.
        max_iter: largest number of iterations of each start, trials with too long a step included.
        callback: called as ``callback(n_iter, value, move)`` at each plan of each start.

    Returns:
        The best stationary plan. ``value`` = F(P) may be differentiated once in Cx, Cy, a and b, by the
        envelope theorem at the plan found. ``cost`` is the quadratic term alone; ``cost``, ``plan``,
        ``f`` and ``g`` are detached. ``n_iter`` counts the entropic problems of all starts. Leading axes,
        broadcast against each other, are solved one problem after the other.

    Raises:
        ValueError: as for :func:`gromov_wasserstein`, and for eps that is not positive.

    Warns:
        ConvergenceWarning: if the best start of some problem did not come to rest within max_iter.

    Note:
        Where all points look alike, as in a cycle, a⊗b is stationary, and only a restart leaves it.
        POT regularises by Σ P log P: the plans agree, the objectives differ as for :func:`sinkhorn`.

    Source:
        Peyré, Cuturi and Solomon (2016), propositions 1 and 2; Anderson's extrapolation as in Walker and
        Ni (2011); for low rank Scetbon, Peyré and Cuturi (2022), section 3.

    Example:
        >>> Cx = torch.tensor([[0.0, 1.0, 2.0], [1.0, 0.0, 1.5], [2.0, 1.5, 0.0]], dtype=torch.float64)
        >>> result = entropic_gromov_wasserstein(Cx, Cx, eps=0.01)
        >>> (result.plan - torch.eye(3) / 3).abs().max() < 0.01
        tensor(True)
    """
    eps = _check.positive(eps, "eps", remedy="for the unregularised problem use gromov_wasserstein")

    def descend(q: Quadratic, P: Tensor, **options) -> End:
        respond = _Sinkhorn(q, eps)
        return mirror_descent(respond, respond.split(P)[0], eps=eps, scale=q.scale, **options)

    return solve(
        descend,
        problem(Cx, Cy, a, b),
        n_restarts=n_restarts,
        generator=generator,
        tol=tol,
        max_iter=max_iter,
        callback=callback,
    )


class _Sinkhorn:
    """P(C) by Sinkhorn, for C = −2R known by its core; each problem starts from the potential before.

    ∇E(P) = u⊕v − 2S(P) is such a cost, but for what is constant in its rows and columns.
    """

    def __init__(self, q: Quadratic, eps: float) -> None:
        self.q, self.eps, self.g, self.split = q, eps, None, Split(q)

    def __call__(self, K: Tensor, accuracy: float) -> Response:
        q, split = self.q, self.split
        C = split.expand(-2 * K)
        with warnings.catch_warnings():
            # The marginals of the plan that is returned are measured at the end.
            warnings.simplefilter("ignore", ConvergenceWarning)
            inner = sinkhorn(C, q.a, q.b, eps=self.eps, tol=accuracy, g0=self.g)
        self.g, P = inner.g, inner.plan
        new, rows, columns = split(P)
        left, arrived = P.sum(1), P.sum(0)
        # E(P) = ½⟨u⊕v + ∇E(P), P⟩ − ½⟨u, a⟩ − ½⟨v, b⟩, which is right to first order in the marginals.
        cost = (q.u - rows) @ left + (q.v - columns) @ arrived - split.times(new, P) - q.squares
        rows, columns = q.u - 2 * rows, q.v - 2 * columns
        residual = new - K
        return Response(  # the plan has been formed, so that the memory of C is free
            P=P,
            f=inner.f + rows,
            g=inner.g + columns,
            # With the dual value of the cost C + rows⊕columns, errors of the marginals hardly count. The
            # rows of a Sinkhorn plan have none.
            value=inner.value + cost - inner.cost + columns @ (q.b - arrived),
            cost=cost.clamp(min=0),
            residual=residual,
            rest=2 * distance(P, split.expand(residual, out=C).square_()) / self.eps,
        )

    def metric(self, residuals: Tensor) -> Tensor:
        """Residuals weighted by a⊗b."""
        return self.split.metric(residuals)
