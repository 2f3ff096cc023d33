"""Unbalanced Gromov–Wasserstein transport: spaces of which a part has no counterpart."""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor

from .. import _check
from .._check import ArrayLike
from .._envelope import attach
from .._result import ConvergenceWarning, OTResult
from ..entropic import sinkhorn_unbalanced
from ._conditional import Callback, End
from ._mirror import Response, distance, mirror_descent
from ._quadratic import Quadratic, gradients, squares
from ._solve import Problem, Structure, problem, solve


def unbalanced_gromov_wasserstein(
    Cx: Structure,
    Cy: Structure,
    a: ArrayLike | None = None,
    b: ArrayLike | None = None,
    *,
    eps: float,
    rho: float,
    n_restarts: int = 1,
    generator: torch.Generator | None = None,
    tol: float = 1e-6,
    max_iter: int = 1000,
    callback: Callback | None = None,
) -> OTResult:
    r"""Entropic Gromov–Wasserstein transport with relaxed marginals: points may be left out at a price.

    Minimises over P ≥ 0, with E(P) = Σ_ijkl |Cx_ik − Cy_jl|² P_ij P_kl,

        E(P) + ρ KL⊗(P1 ‖ a) + ρ KL⊗(Pᵀ1 ‖ b) + ε KL⊗(P ‖ a⊗b),   KL⊗(p ‖ q) = KL(p⊗p ‖ q⊗q),

    where KL(p ‖ q) = Σ p log(p/q) − p + q: every term is quadratic in the mass, so that its unit does
    not matter. For P = mQ, with Q of mass 1, this is m² K(Q) + (2ρ + ε) m² (log m² − 1) and a constant,

        K(Q) = E(Q) + 2ρ KL(Q1 ‖ a) + 2ρ KL(Qᵀ1 ‖ b) + 2ε KL(Q ‖ a⊗b),  here with KL(p ‖ q) = Σ p log(p/q),

    so that the best Q minimises K, and m² = exp(−K(Q)/(2ρ + ε)). Each iteration minimises K with E
    replaced by its linear part, by :func:`sinkhorn_unbalanced`. As ρ → ∞ the plan becomes that of
    :func:`entropic_gromov_wasserstein` at 2ε, if a and b have mass 1.

    Args:
        Cx: costs within the first space, shape (…, n, n), as for :func:`gromov_wasserstein`.
        Cy: costs within the second space, shape (…, m, m), in the same units.
        a: masses of the first space, shape (n,) or (…, n), of any positive sum; None means 1/n each.
            Zeros are allowed.
        b: masses of the second space, shape (m,) or (…, m), of any positive sum; None means 1/m each.
        eps: weight ε of KL⊗(P ‖ a⊗b), in squared units of Cx.
        rho: price ρ of the marginals, in squared units of Cx.
        n_restarts: number of starts, as for :func:`gromov_wasserstein`.
        generator: source of the random starts; needed if n_restarts > 1.
        tol: stop when another iteration would move P/Σ P by at most about tol in ‖·‖₁.
        max_iter: largest number of iterations of each start, trials with too long a step included.
        callback: called as ``callback(n_iter, K, move)`` at each plan of each start.

    Returns:
        The best stationary plan P. ``value`` is the objective, ``cost`` is E(P). The potentials satisfy
        P1 = a exp(−f/ρ) and Pᵀ1 = b exp(−g/ρ), and P_ij is a_i b_j exp((f_i + g_j − c_ij)/ε) up to a factor,
        where c = ∇E(P)/(2 Σ P). ``value`` may be differentiated once in Cx, Cy, a and b, by the envelope
        theorem at the plan found; the rest is detached. ``marginal_error`` is no error here: it is the mass
        that the plan leaves, or adds. Leading axes are solved one problem after the other.

    Raises:
        ValueError: as for :func:`entropic_gromov_wasserstein`, for rho that is not positive, and for
            masses that are negative, not finite or all 0.

    Warns:
        ConvergenceWarning: if the best start of some problem did not come to rest within max_iter.

    Note:
        POT's ``ot.gromov.fused_unbalanced_gromov_wasserstein`` (reg_marginals=rho, epsilon=eps, alpha=0)
        has the same objective, of two plans that it alternates between.

    Source:
        Séjourné, Vialard and Peyré (2021), definition 1 and section 3: their alternation of two plans,
        which the objective sees alike, is the iteration here with the mass solved for.

    Example:
        A triangle and the same with a far point, which is left alone.

        >>> x = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0], [9.0, 9.0]], dtype=torch.float64)
        >>> C = torch.cdist(x, x)
        >>> P = unbalanced_gromov_wasserstein(C[:3, :3], C, [1.0, 1, 1], [1.0, 1, 1, 1], eps=0.01, rho=1).plan
        >>> P.round(decimals=1)
        tensor([[1., 0., 0., 0.],
                [0., 1., 0., 0.],
                [0., 0., 1., 0.]], dtype=torch.float64)
    """
    eps = _check.positive(eps, "eps")
    rho = _check.positive(rho, "rho")

    def descend(q: Quadratic, P: Tensor, **options) -> End:
        respond = _Relaxed(q, 2 * eps, 2 * rho)
        return mirror_descent(respond, respond.gradient(P), eps=2 * eps, scale=q.scale, **options)

    def finish(single: Problem, q: Quadratic, end: End) -> OTResult:
        return _finish(single, end, eps, rho)

    return solve(
        descend,
        problem(Cx, Cy, a, b, weights=_masses),
        n_restarts=n_restarts,
        generator=generator,
        tol=tol,
        max_iter=max_iter,
        callback=callback,
        finish=finish,
    )


class _Relaxed:
    """The Q of mass 1 for a linear cost C, by unbalanced Sinkhorn; ε and ρ are those of K, the doubles."""

    def __init__(self, q: Quadratic, eps: float, rho: float) -> None:
        self.q, self.eps, self.rho, self.level = q, eps, rho, None

    def gradient(self, P: Tensor) -> Tensor:
        """∇E(P), for a P with any marginals."""
        u, v = squares(self.q.X, P.sum(1)), squares(self.q.Y, P.sum(0))
        return u[:, None] + v - 2 * self.q.product(P)

    def __call__(self, C: Tensor, accuracy: float) -> Response:
        q, eps, rho, price = self.q, self.eps, self.rho, 2 * self.rho + self.eps
        # A constant in C only changes the mass, by a factor: it is chosen such that neither underflows.
        level = C[q.outer > 0].min() if self.level is None else self.level
        with warnings.catch_warnings():
            # A plan that moves too much is seen by the descent.
            warnings.simplefilter("ignore", ConvergenceWarning)
            inner = sinkhorn_unbalanced(C - level, q.a, q.b, eps=eps, rho=rho, tol=accuracy)
        mass = inner.plan.sum()
        P = inner.plan / mass
        # At the optimum the dual value is (2ρ + ε) (1 − mass), which is off by less than the mass itself.
        level = level - price * (1 - inner.value / price).log()
        self.level = level
        gradient = self.gradient(P)
        cost = (gradient * P).sum() / 2
        residual = gradient - C
        residual -= (residual * P).sum()
        return Response(
            P=P,
            f=inner.f + rho * mass.log(),
            g=inner.g + rho * mass.log(),
            # The KL terms of K are linear in the potentials, which leaves −(2ρ + ε) log mass, of C itself.
            value=cost - (C * P).sum() + level,
            cost=cost.clamp(min=0),
            residual=residual,
            rest=distance(P, residual.square()) / eps,
        )

    def metric(self, residuals: Tensor) -> Tensor:
        """Residuals weighted by a⊗b."""
        return residuals * self.q.outer


def _finish(single: Problem, end: End, eps: float, rho: float) -> OTResult:
    """Solve for the mass, and give the value its derivatives."""
    a, b, dtype = (single.a.detach().to(end.P.dtype), single.b.detach().to(end.P.dtype), single.a.dtype)
    A, B, price = a.sum(), b.sum(), 2 * rho + eps
    K = end.value - 2 * (rho + eps) * (A * B).log()
    mass = (-K / (2 * price)).exp()
    P = mass * end.P
    f, g = (h / 2 - rho * (mass / w).log() for h, w in ((end.f, A), (end.g, B)))
    value = rho * (A.square() + B.square()) + eps * (A * B).square() - price * mass.square()

    def derivatives() -> tuple[Tensor, ...]:
        in_a = 2 * A * (rho + eps * B.square()) - 2 * (rho + eps) * mass * (-f / rho).exp()
        in_b = 2 * B * (rho + eps * A.square()) - 2 * (rho + eps) * mass * (-g / rho).exp()
        return (*gradients(single.X, single.Y, P, 1.0), in_a, in_b)

    inputs = (*single.X.factors, *single.Y.factors, single.a, single.b)
    left = (P.sum(1) - a).abs().sum() + (P.sum(0) - b).abs().sum()
    return OTResult(
        value=attach(value.to(dtype), inputs, derivatives, "unbalanced_gromov_wasserstein"),
        cost=(mass.square() * end.cost).to(dtype),
        f=f.to(dtype),
        g=g.to(dtype),
        n_iter=end.n_iter,
        marginal_error=left.to(dtype),
        converged=True,
        _plan=P.to(dtype),
    )


def _masses(w: ArrayLike | None, n: int, name: str, *, like: Tensor) -> Tensor:
    """Masses (…, n) of any positive sum."""
    if w is None:
        return _check.weights(None, n, name, like=like)
    w = _check.tensor(w, name, like=like)
    total = w.detach().sum(-1, keepdim=True)
    if not ((total > 0) & (total < math.inf)).all():
        raise ValueError(
            f"{name} has mass {total[~((total > 0) & (total < math.inf))][0].item():g}; "
            "give it finite entries of which one at least is positive"
        )
    return _check.weights(w / total, n, name, like=like) * total
