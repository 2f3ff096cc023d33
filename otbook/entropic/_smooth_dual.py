"""The dual of smoothed transport: its regularisers, and Newton's method with backtracking."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ._rows import half_step

#: γ-scaling moves on to the next, smaller γ once the marginal error is below this. A part of the
#: plan whose mass is still wrong has further to go at the next γ: with 1e-2, random clouds of 200
#: points do not converge in 1000 steps at γ = 1e-6 max C, with 1e-6 they take 400.
STAGE_TOL = 1e-6

#: Newton's matrix is shifted by this share of the marginal error, relative to its diagonal, but never
#: by less than the second number: it is singular, because constants can move from f to g.
SHIFT, LEAST_SHIFT = 0.01, 1e-10


@dataclass(frozen=True)
class Regulariser:
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


REGULARISERS = {
    "l2": Regulariser(
        _l2_conjugate, _l2_rows, lambda P, a, b: P.square().sum((-2, -1)) / 2, lambda n, m: float(max(n, m))
    ),
    "entropy": Regulariser(_entropy_conjugate, _entropy_rows, _kl, lambda n, m: 0.05),
}


@dataclass(frozen=True)
class Dual:
    """The smoothed dual D(f, g) of one batch of problems, all in float64."""

    omega: Regulariser
    C: Tensor
    a: Tensor
    b: Tensor
    semi: bool

    @cached_property
    def size(self) -> float:
        """The largest absolute cost that is not infinite."""
        return torch.where(torch.isfinite(self.C), self.C, 0.0).abs().max().item()

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
                floor = torch.finfo(g.dtype).eps * self.size * W.sum((-2, -1))
                if n_iter >= max_iter or (error <= floor.clamp(min=goal)).all():
                    break
                df, dg = _newton(W, r, s, error, gamma)
                f, g, D, P, W = self.search(f, g, df, dg, D, (r * df).sum(-1) + (s * dg).sum(-1), gamma)
                n_iter += 1
        return f, g, n_iter

    def search(
        self, f: Tensor, g: Tensor, df: Tensor, dg: Tensor, D: Tensor, slope: Tensor, gamma: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Halve the Newton step of each problem until D rises as it should (Armijo's rule).

        Where D still rises half as steeply behind the step, it is nearly linear: a part of the plan has no
        mass yet and is far from where it gets some. There the step grows instead, while all goes well and
        no potential moves by more than the largest cost.
        """
        # Near the maximum the rise drowns in the rounding of D; the slope behind the step, which does
        # not, then shows a step that went far beyond the maximum along its line.
        size = (self.a * f.abs()).sum(-1) + (self.b * g.abs()).sum(-1) + D.abs()
        rounding = 8 * torch.finfo(D.dtype).eps * size
        reach = torch.maximum(df.abs().amax(-1), dg.abs().amax(-1)) / self.size
        t, fell = torch.ones_like(D), torch.zeros_like(D, dtype=torch.bool)
        for _ in range(40):
            g_t = g + t[..., None] * dg
            f_t = self.rows(g_t, gamma) if self.semi else f + t[..., None] * df
            D_t, P, W = self.evaluate(f_t, g_t, gamma)
            behind = ((self.a - P.sum(-1)) * df).sum(-1) + ((self.b - P.sum(-2)) * dg).sum(-1)
            good = (D_t >= D + 1e-4 * t * slope - rounding) & (behind >= -slope / 2)
            rising = good & ~fell & (behind > slope / 2) & (slope > rounding) & (4 * t * reach <= 1)
            if (good & ~rising).all():
                break
            fell = fell | ~good
            # After growth back to the last good step: twice that would mirror what it has solved.
            t = torch.where(rising, 4 * t, torch.where(good, t, torch.where(t > 1, t / 4, t / 2)))
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
