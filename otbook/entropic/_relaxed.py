"""The core loop of unbalanced transport: block ascent of its dual, and Newton where that is slow.

The dual is D(f, g) = ⟨a, F(f)⟩ + ⟨b, F(g)⟩ − ε (Σ P − Σ a Σ b) with P_ij = a_i b_j exp((f_i + g_j − C_ij)/ε).
A class for each divergence knows its F; the rest is the same for all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ._dual import PATIENCE, STAGE_TOL, _remaining
from ._rows import plan_rows, softmin

#: exp(±HUGE) is the edge of float64: a potential f = HUGE ρ says that a point sends nothing.
HUGE = 700.0

#: Newton's method factorises matrices of size min(n, m) up to LARGEST (a batch: of as many entries in all),
#: with a relative shift that makes singular ones regular. It tries TRIALS steps at most: first one of up
#: to REACH ε, then half of it, or four times as much while the dual rises steadily.
LARGEST, SHIFT, REACH, TRIALS = 4096, 1e-10, 50.0, 12


@dataclass(frozen=True)
class KL:
    """Marginals relaxed by ρ KL: how the potentials are updated, and F in the dual."""

    rho: float

    def step(self, s: Tensor, eps: float) -> Tensor:
        """The f that maximises F(f) − ε exp((f − s)/ε); s = +∞ where a point can send nothing."""
        return self.rho / (self.rho + eps) * s.clamp(max=HUGE * (self.rho + eps))

    def project(self, f: Tensor) -> Tensor:
        """The nearest potential that the dual needs to consider."""
        return f

    def dual(self, f: Tensor) -> Tensor:
        return -self.rho * torch.expm1(-f / self.rho)

    def derivatives(self, f: Tensor) -> tuple[Tensor, Tensor]:
        """F′ and −F″."""
        slope = (-f / self.rho).exp()
        return slope, slope / self.rho

    def free(self, f: Tensor, gradient: Tensor) -> Tensor:
        """Which potentials may follow the gradient."""
        return torch.ones_like(f, dtype=torch.bool)

    def shift(self, f: Tensor, g: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """The c that maximises ⟨a, F(f + c)⟩ + ⟨b, F(g − c)⟩."""
        A = torch.logsumexp(a.log() - f / self.rho, -1, keepdim=True)
        B = torch.logsumexp(b.log() - g / self.rho, -1, keepdim=True)
        return self.rho / 2 * (A - B)


@dataclass(frozen=True)
class TV:
    """Marginals relaxed by ρ TV."""

    rho: float

    def step(self, s: Tensor, eps: float) -> Tensor:
        return self.project(s)

    def project(self, f: Tensor) -> Tensor:
        return f.clamp(-self.rho, self.rho)

    def dual(self, f: Tensor) -> Tensor:
        return f.clamp(max=self.rho)

    def derivatives(self, f: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(f), torch.zeros_like(f)

    def free(self, f: Tensor, gradient: Tensor) -> Tensor:
        return torch.where(gradient > 0, f < self.rho, f > -self.rho)

    def shift(self, f: Tensor, g: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """As for KL, of a concave, piecewise linear function of c.

        Its slope starts at Σ a and falls by a_i at ρ − f_i and by b_j at g_j − ρ. Where it is 0 on
        an interval, the c nearest to 0 is taken.
        """
        kinks, order = torch.cat([self.rho - f, g - self.rho], -1).sort(-1)
        fallen = torch.cat([a, b], -1).gather(-1, order).cumsum(-1)
        total = a.sum(-1, keepdim=True)
        rounding = 1e-12 * total
        first = torch.searchsorted(fallen, total - rounding).clamp(max=kinks.shape[-1] - 1)
        last = torch.searchsorted(fallen, total + rounding, right=True).clamp(max=kinks.shape[-1] - 1)
        least, most = kinks.gather(-1, first), kinks.gather(-1, last)
        c = torch.zeros_like(least).clamp(least, most)
        # f + c ≥ −ρ and g − c ≥ −ρ, where there is mass.
        least = -self.rho - f.masked_fill(a == 0, math.inf).amin(-1, keepdim=True)
        most = self.rho + g.masked_fill(b == 0, math.inf).amin(-1, keepdim=True)
        return c.clamp(least, most)


def maximise(
    relaxed: KL | TV, C: Tensor, a: Tensor, b: Tensor, stages: list[float], tol: float, max_iter: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, int]:
    """Block ascent of the dual, through the stages of ε.

    Returns f, g, the soft minima s = softmin(C − g) and t = softmin(C − f) that they are to match,
    by how much of the plan's mass they fail to, and the number of iterations.
    """
    C_T = C.mT.contiguous()
    factorisable = C.numel() // max(C.shape[-2:]) * min(C.shape[-2:]) <= LARGEST**2
    g, n_iter, path = torch.zeros_like(b), 0, []
    for k, eps in enumerate(stages, start=1 - len(stages)):
        goal = tol if k == 0 else STAGE_TOL
        sweeps, last = 0, math.inf
        if len(path) > 1:
            # The maximiser is a smooth function of ε: the line through the last two is a better start.
            (before, g_before), (now, g) = path[-2:]
            g = relaxed.project(g + (g - g_before) * (eps - now) / (now - before))
        s = softmin(C, g, b, eps)
        while True:
            f = relaxed.step(s, eps)
            t = softmin(C_T, f, a, eps)
            g = relaxed.step(t, eps)
            c = relaxed.shift(f, g, a, b)
            f, g, t = f + c, g - c, t - c
            s = softmin(C, g, b, eps)
            n_iter, sweeps = n_iter + 1, sweeps + 1
            errors = _change(relaxed, f, s, a, eps) + _change(relaxed, g, t, b, eps)
            errors = errors / pair(a, ((f - s) / eps).exp()).clamp(min=torch.finfo(a.dtype).tiny)
            # Each of the stages to come takes one iteration at least.
            if n_iter >= max_iter + k or (errors <= goal).all():
                break
            error = errors.max().item()
            slow = sweeps > 2 and math.isfinite(error) and _remaining(goal / error, error / last) > PATIENCE
            last = error
            if slow and factorisable and n_iter + 1 < max_iter + k:
                g = _newton(relaxed, C, a, b, f, g, eps)
                s = softmin(C, g, b, eps)
                n_iter, sweeps, last = n_iter + 1, 0, math.inf
        path.append((eps, g))
    return f, g, s, t, errors, n_iter


def _newton(relaxed: KL | TV, C: Tensor, a: Tensor, b: Tensor, f: Tensor, g: Tensor, eps: float) -> Tensor:
    """A projected Newton step of the dual in (f, g), as in Bertsekas (1982); returns the new g.

    It finds what block ascent finds only slowly: constants that clusters of points share, which
    hardly exchange any mass.
    """
    n = C.shape[-2]
    w = torch.cat([a, b], -1)

    def gradient(z: Tensor) -> tuple[Tensor, Tensor]:
        P = plan_rows(C.to(w.dtype), a, b, z[..., :n], z[..., n:], eps)
        G = w * relaxed.derivatives(z)[0] - torch.cat([P.sum(-1), P.sum(-2)], -1)
        return P, torch.where(w > 0, G, 0.0)

    z = relaxed.project(torch.cat([f, g], -1))
    P, G = gradient(z)
    free = relaxed.free(z, G) & (w > 0)
    sums = torch.cat([P.sum(-1), P.sum(-2)], -1)
    P = torch.where(free[..., :n, None] & free[..., None, n:], P, 0.0)
    # Entries of the Hessian times ε. The relative shift is for the constant of f⊕g where it is undetermined.
    curvature = eps * w * relaxed.derivatives(z)[1]
    ground = (1 + SHIFT) * (sums + curvature) - torch.cat([P.sum(-1), P.sum(-2)], -1)
    G_free = eps * torch.where(free, G, 0.0)
    x = torch.cat(solve_grounded(P, ground[..., :n], ground[..., n:], G_free[..., :n], G_free[..., n:]), -1)
    # The model is of exponentials: it says nothing about moves of many ε, which are tried only after.
    x = x * (REACH * eps / x.abs().amax(-1, keepdim=True).clamp(min=REACH * eps))
    best, step = z, torch.ones_like(z[..., :1])
    done = torch.zeros_like(step, dtype=torch.bool)
    for _ in range(TRIALS):
        trial = relaxed.project(z + step * x)
        move = trial - z
        before, after = ((slopes * move).sum(-1, keepdim=True) for slopes in (G, gradient(trial)[1]))
        # The approximate Wolfe condition of Hager and Zhang (2005); NaN, after an overflow or a failed
        # factorisation, fails it.
        good = after >= -0.5 * before
        best = torch.where(good & ~done, trial, best)
        # Where the dual still rises half as steeply, it is nearly linear: clusters that exchange no mass
        # may be far from where they begin to.
        rising = good & (after > 0.5 * before) & (before > 0)
        done = done | (good & ~rising) | (~good & (step > 1))
        if done.all():
            break
        step = torch.where(rising, 4 * step, torch.where(good, step, step / 2))
    return best[..., n:]


def solve_grounded(P: Tensor, alpha: Tensor, beta: Tensor, r: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """The x, y with diag(P1 + α) x + P y = r and Pᵀ x + diag(Pᵀ1 + β) y = s, for P, α, β ≥ 0.

    Up to the sign of y this is the graph whose edges P join the rows to the columns, grounded by α
    and β. Eliminating the larger side leaves another such graph, among the points of the smaller
    one; its diagonal is summed from the edges, which loses nothing to cancellation. An x or y with
    no edge is 0 if its r or s is. NaN where the factorisation fails.
    """
    if P.shape[-2] < P.shape[-1]:
        y, x = solve_grounded(P.mT, beta, alpha, s, r)
        return x, y
    d = P.sum(-1) + alpha
    d = torch.where(d > 0, d, 1.0)
    Q = P / d.unsqueeze(-1)
    S = P.mT @ Q
    S = S - torch.diag_embed(S.diagonal(dim1=-2, dim2=-1))
    degree = beta + (Q.mT @ alpha.unsqueeze(-1)).squeeze(-1) + S.sum(-1)
    S = torch.diag_embed(torch.where(degree > 0, degree, 1.0)) - S
    L, failed = torch.linalg.cholesky_ex(S)
    y = torch.cholesky_solve((s - (Q.mT @ r.unsqueeze(-1)).squeeze(-1)).unsqueeze(-1), L)
    y = torch.where((failed > 0)[..., None, None], torch.nan, y)
    return (r - (P @ y).squeeze(-1)) / d, y.squeeze(-1)


def _change(relaxed: KL | TV, f: Tensor, s: Tensor, a: Tensor, eps: float) -> Tensor:
    """By how much a step in f would change the row sums a exp((f − s)/ε) of the plan, in ‖·‖₁."""
    return pair(a, (((relaxed.step(s, eps) - s) / eps).exp() - ((f - s) / eps).exp()).abs())


def pair(a: Tensor, x: Tensor) -> Tensor:
    """⟨a, x⟩, where x may overflow at atoms without mass."""
    return torch.where(a > 0, a * x, 0.0).sum(-1)
