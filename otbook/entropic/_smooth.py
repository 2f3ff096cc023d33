"""Smoothed optimal transport: squared 2-norm or entropy, by Newton's method on the dual or semi-dual."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import _check
from .._check import ArrayLike
from .._result import ConvergenceWarning, OTResult
from ._dual import schedule
from ._kernel import half_step
from ._sinkhorn import _exact

#: γ-scaling moves on to the next, smaller γ once the marginal error is below this. A part of the
#: plan whose mass is still wrong has further to go at the next γ: with 1e-2, random clouds of 200
#: points do not converge in 1000 steps at γ = 1e-6 max C, with 1e-6 they take 400.
STAGE_TOL = 1e-6

#: Newton's matrix is shifted by this share of the marginal error, relative to its diagonal, but never
#: by less than the second number: it is singular, because constants can move from f to g.
SHIFT, LEAST_SHIFT = 0.01, 1e-10


def smooth_ot(
    C: ArrayLike,
    a: ArrayLike | None = None,
    b: ArrayLike | None = None,
    *,
    gamma: float,
    regulariser: str = "l2",
    semi: bool = False,
    tol: float = 1e-6,
    max_iter: int = 1000,
) -> OTResult:
    r"""Optimal transport with a strongly convex regulariser; the squared 2-norm keeps plans sparse.

    Solves min_P ⟨C, P⟩ + γ Ω(P) subject to P ≥ 0, P1 = a, Pᵀ1 = b, with

    - ``"l2"``: Ω(P) = ½ Σ P_ij², not relative to a⊗b. The solution P = max(f⊕g − C, 0)/γ has exact
      zeros. Entries of P are of the order of 1/n, so its γ is to be compared with n × C.
    - ``"entropy"``: Ω(P) = KL(P ‖ a⊗b), the problem of :func:`sinkhorn` with ε = γ, here by another
      method; :func:`sinkhorn` remains the solver for it, in memory and options.

    The dual maximises ⟨a, f⟩ + ⟨b, g⟩ − Σ_ij ψ(f_i + g_j − C_ij) over f and g, where ψ is the
    convex conjugate of γΩ: ψ(x) = max(x, 0)²/(2γ) for the squared norm. The semi-dual has f
    maximised out exactly, row by row, for example by a projection on the simplex.

    Args:
        C: ground cost, shape (…, n, m); +∞ forbids a pair.
        a: source weights, shape (n,) or (…, n), sum 1; None means uniform. Zeros are allowed.
        b: target weights, shape (m,) or (…, m), sum 1; None means uniform. Zeros are allowed.
        gamma: weight γ of the regulariser, in units of C.
        regulariser: ``"l2"`` or ``"entropy"``.
        semi: solve the semi-dual in g instead of the dual in f and g; then the rows of the plan
            sum to a exactly, whenever the iteration stops.
        tol: stop when ‖P1 − a‖₁ + ‖Pᵀ1 − b‖₁ ≤ tol for every problem of the batch.
        max_iter: largest number of Newton steps, each with one m × m factorisation.

    Returns:
        An :class:`OTResult`. ``value`` is the primal objective, regulariser included, in units of C;
        the dual objective of ``f``, ``g`` differs from it by at most marginal_error × max(|f|, |g|).
        It may be differentiated once in C, a and b: by the envelope theorem its gradients are P,
        f and g, the last two up to a constant, which weights of sum 1 do not see. ``cost``,
        ``plan``, ``f`` and ``g`` are detached: no gradient passes through them. The potentials are
        normalised by ⟨a, f⟩ = ⟨b, g⟩.

    Raises:
        ValueError: for weights or costs that make no problem, for gamma, tol or max_iter that are
            not positive, and for an unknown regulariser.

    Warns:
        ConvergenceWarning: if the tolerance is not reached, or if forbidden pairs leave no plan.

    Source:
        Blondel, Seguy and Rolet (2018), section 3, who use L-BFGS; the semismooth Newton method for
        the squared norm follows Lorenz, Manns and Meyer (2021), here with γ lowered in stages.

    Example:
        >>> import torch
        >>> C = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
        >>> smooth_ot(C, [0.5, 0.5], [0.1, 0.9], gamma=1.0).plan
        tensor([[0.1000, 0.4000],
                [0.0000, 0.5000]], dtype=torch.float64)
    """
    C, a, b = _check.problem(C, a, b)
    gamma = _check.positive(gamma, "gamma", remedy="for the unregularised problem use emd")
    _check.choice(regulariser, "regulariser", tuple(_REGULARISERS))
    tol = _check.positive(tol, "tol")
    max_iter = _check.positive_int(max_iter, "max_iter")

    a_exact, b_exact = _exact(a), _exact(b)
    cost = C.detach().to(a_exact.dtype)
    finite = cost[torch.isfinite(cost)]
    omega = _REGULARISERS[regulariser]
    start = omega.start(*C.shape[-2:]) * (finite.max() - finite.min()).item()
    problem = _Dual(omega, cost, a_exact, b_exact, semi)
    f, g, n_iter = problem.maximise(schedule(gamma, start), 0.8 * tol, max_iter)

    # Where there is no mass the iteration leaves the potentials alone; their transforms belong there.
    f = torch.where(a_exact > 0, f, problem.rows(g, gamma))
    g = torch.where(b_exact > 0, g, problem.columns(f, gamma))
    shift = ((a_exact * f).sum(-1, keepdim=True) - (b_exact * g).sum(-1, keepdim=True)) / 2
    f, g = f - shift, g + shift

    mass = (a_exact[..., :, None] > 0) & (b_exact[..., None, :] > 0)
    P = torch.where(mass, problem.evaluate(f, g, gamma)[1], 0.0)
    transport = (P * torch.where(P > 0, cost, 0.0)).sum((-2, -1))
    value = transport + gamma * omega.penalty(P, a_exact, b_exact)
    P = P.to(C.dtype)
    rounded = P.to(a_exact.dtype)
    error = (rounded.sum(-1) - a_exact).abs().sum(-1) + (rounded.sum(-2) - b_exact).abs().sum(-1)
    converged = bool((error <= tol).all())
    if not converged:
        remedy = "raise max_iter" if n_iter >= max_iter else "tol is below rounding; raise tol"
        if not torch.isfinite(cost).all():
            remedy += ", or allow more pairs: the infinite costs may leave no plan"
        warnings.warn(
            f"smooth_ot stopped after {n_iter} Newton steps with marginal error {error.max().item():.2g} "
            f"above tol = {tol:g}: {remedy}, or raise gamma",
            ConvergenceWarning,
            stacklevel=2,
        )
    f, g = f.to(C.dtype), g.to(C.dtype)
    return OTResult(
        value=_Value.apply(C, a, b, value.to(C.dtype), P, f, g, None),
        cost=transport.to(C.dtype),
        f=f,
        g=g,
        n_iter=n_iter,
        marginal_error=error.to(C.dtype),
        converged=converged,
        _plan=P,
    )


@dataclass(frozen=True)
class _Regulariser:
    """γΩ through its conjugate ψ. ``x`` is f⊕g − C, ``ab`` is a⊗b."""

    #: x, ab, γ ↦ ψ(x), the plan ψ'(x) and the weights ψ''(x) of the Hessian.
    conjugate: Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor, Tensor]]
    #: C, g, a, b, γ ↦ the f that makes the row sums a.
    rows: Callable[[Tensor, Tensor, Tensor, Tensor, float], Tensor]
    #: P, a, b ↦ Ω(P).
    penalty: Callable[[Tensor, Tensor, Tensor], Tensor]
    #: n, m ↦ the γ, in units of the spread of C, from which on the problem is easy.
    start: Callable[[int, int], float]


def _l2_conjugate(x: Tensor, ab: Tensor, gamma: float) -> tuple[Tensor, Tensor, Tensor]:
    P = x.clamp(min=0) / gamma
    return gamma / 2 * P.square(), P, (P > 0).to(P.dtype) / gamma


def _l2_rows(C: Tensor, g: Tensor, a: Tensor, b: Tensor, gamma: float) -> Tensor:
    """The f with Σ_j max(f_i + g_j − C_ij, 0) = γ a_i: projection of a row on a simplex.

    If k entries z_1 ≥ … ≥ z_k of the row of g − C are active, −f = (z_1 + … + z_k − γ a)/k. Any
    other set of entries gives less, because it drops positive terms or adds negative ones.
    """
    z = (g[..., None, :] - C).sort(-1, descending=True).values
    k = torch.arange(1, C.shape[-1] + 1, dtype=C.dtype, device=C.device)
    return -((z.cumsum(-1) - gamma * a[..., None]) / k).amax(-1)


def _entropy_conjugate(x: Tensor, ab: Tensor, gamma: float) -> tuple[Tensor, Tensor, Tensor]:
    P = torch.where(ab > 0, ab * (x / gamma).exp(), 0.0)
    return gamma * (P - ab), P, P / gamma


def _entropy_rows(C: Tensor, g: Tensor, a: Tensor, b: Tensor, gamma: float) -> Tensor:
    return half_step(C, g, b, gamma)[0]


def _kl(P: Tensor, a: Tensor, b: Tensor) -> Tensor:
    ab = a[..., None] * b[..., None, :]
    return (torch.xlogy(P, P / torch.where(ab > 0, ab, 1.0)) - P + ab).sum((-2, -1))


_REGULARISERS = {
    "l2": _Regulariser(
        _l2_conjugate, _l2_rows, lambda P, a, b: P.square().sum((-2, -1)) / 2, lambda n, m: float(max(n, m))
    ),
    "entropy": _Regulariser(_entropy_conjugate, _entropy_rows, _kl, lambda n, m: 0.05),
}


@dataclass(frozen=True)
class _Dual:
    """The smoothed dual D(f, g) of one batch of problems, all in float64."""

    omega: _Regulariser
    C: Tensor
    a: Tensor
    b: Tensor
    semi: bool

    def rows(self, g: Tensor, gamma: float) -> Tensor:
        """The f that maximises D(·, g)."""
        return self.omega.rows(self.C, g, self.a, self.b, gamma)

    def columns(self, f: Tensor, gamma: float) -> Tensor:
        """The g that maximises D(f, ·)."""
        return self.omega.rows(self.C.mT, f, self.b, self.a, gamma)

    def evaluate(self, f: Tensor, g: Tensor, gamma: float) -> tuple[Tensor, Tensor, Tensor]:
        """D, the plan P and the weights W = ∂P/∂(f⊕g)."""
        x = f[..., :, None] + g[..., None, :] - self.C
        psi, P, W = self.omega.conjugate(x, self.a[..., :, None] * self.b[..., None, :], gamma)
        return (self.a * f).sum(-1) + (self.b * g).sum(-1) - psi.sum((-2, -1)), P, W

    def maximise(self, stages: list[float], tol: float, max_iter: int) -> tuple[Tensor, Tensor, int]:
        """Newton's method with backtracking, for one γ after the other."""
        g, n_iter = torch.zeros_like(self.b), 0
        size = torch.where(torch.isfinite(self.C), self.C, 0.0).abs().max().item()
        for gamma in stages:
            goal = tol if gamma == stages[-1] else STAGE_TOL
            # One exact sweep over the blocks gives every row and column some mass.
            g = self.columns(self.rows(g, gamma), gamma)
            f = self.rows(g, gamma)
            D, P, W = self.evaluate(f, g, gamma)
            while True:
                r, s = self.a - P.sum(-1), self.b - P.sum(-2)
                error = r.abs().sum(-1) + s.abs().sum(-1)
                # W carries the rounding of f⊕g − C to the plan.
                floor = torch.finfo(g.dtype).eps * size * W.sum((-2, -1))
                if n_iter >= max_iter or (error <= floor.clamp(min=goal)).all():
                    break
                df, dg = _newton(W, r, s, error, gamma)
                f, g, D, P, W = self.search(f, g, df, dg, D, (r * df).sum(-1) + (s * dg).sum(-1), gamma)
                n_iter += 1
        return f, g, n_iter

    def search(
        self, f: Tensor, g: Tensor, df: Tensor, dg: Tensor, D: Tensor, slope: Tensor, gamma: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Halve the Newton step of each problem until D rises as it should (Armijo's rule)."""
        # Near the maximum the rise drowns in the rounding of D; the slope behind the step, which does
        # not, then shows a step that went far beyond the maximum along its line.
        size = (self.a * f.abs()).sum(-1) + (self.b * g.abs()).sum(-1) + D.abs()
        rounding = 8 * torch.finfo(D.dtype).eps * size
        t = torch.ones_like(D)
        for _ in range(40):
            g_t = g + t[..., None] * dg
            f_t = self.rows(g_t, gamma) if self.semi else f + t[..., None] * df
            D_t, P, W = self.evaluate(f_t, g_t, gamma)
            behind = ((self.a - P.sum(-1)) * df).sum(-1) + ((self.b - P.sum(-2)) * dg).sum(-1)
            good = (D_t >= D + 1e-4 * t * slope - rounding) & (behind >= -slope / 2)
            if good.all():
                break
            t = torch.where(good, t, t / 2)
        return f_t, g_t, D_t, P, W


def _newton(W: Tensor, r: Tensor, s: Tensor, error: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """Solve [diag(W1) W; Wᵀ diag(Wᵀ1)] (df, dg) = (r, s), shifted; df is eliminated by hand.

    In the semi-dual r = 0, and the matrix for dg that remains is its Hessian.
    """
    shift = (SHIFT * error.clamp(max=1.0)).clamp(min=LEAST_SHIFT)[..., None]
    d, e = W.sum(-1), W.sum(-2)
    d, e = d + shift * (d + d.mean(-1, keepdim=True)), e + shift * (e + e.mean(-1, keepdim=True))
    S = torch.diag_embed(e) - W.mT @ (W / d[..., None])
    dg = torch.linalg.solve(S, s - (W.mT @ (r / d)[..., None])[..., 0])
    df = (r - (W @ dg[..., None])[..., 0]) / d
    return df, dg


class _Value(torch.autograd.Function):
    """The optimal value with its gradients by the envelope theorem: P in C, f in a, g in b.

    ``refusal`` is None, or why there is no such gradient.
    """

    @staticmethod
    def forward(ctx, C, a, b, value, P, f, g, refusal):
        ctx.save_for_backward(C, a, b, P, f, g)
        ctx.refusal = refusal
        return value.clone()

    @staticmethod
    def backward(ctx, grad):
        if ctx.refusal:
            raise RuntimeError(ctx.refusal)
        return *_Gradient.apply(*ctx.saved_tensors, grad), None, None, None, None, None


class _Gradient(torch.autograd.Function):
    """The gradients of the value, on record as functions of the inputs: a second derivative, which
    would need the derivative of P, f and g, is refused instead of silently taken for zero.
    """

    @staticmethod
    def forward(ctx, C, a, b, P, f, g, grad):
        return grad[..., None, None] * P, grad[..., None] * f, grad[..., None] * g

    @staticmethod
    def backward(ctx, *_):
        raise NotImplementedError(
            "the value can be differentiated once; its gradient, which holds the plan and the potentials, "
            "cannot: detach the gradient, or do without create_graph=True"
        )
