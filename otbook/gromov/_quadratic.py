"""The objective of Gromov–Wasserstein transport: a quadratic function of the plan."""

from __future__ import annotations

import torch
from torch import Tensor

from ._space import Space


class Quadratic:
    """F(P) = (1 − α) ⟨M, P⟩ + α E(P), one problem in working precision.

    On couplings of a and b, E(P) = ½⟨u, a⟩ + ½⟨v, b⟩ − ⟨S(P), P⟩ with S(P) = Cx P Cyᵀ + Cxᵀ P Cy: a few
    matrix products, not a sum over four indices (Peyré, Cuturi and Solomon 2016, proposition 1).
    """

    def __init__(self, X: Space, Y: Space, a: Tensor, b: Tensor, M: Tensor | None, alpha: float):
        # mps has no float64.
        work = torch.float32 if a.device.type == "mps" else torch.float64
        X, Y = (Space(tuple(t.detach().to(work) for t in s.factors), s.symmetric) for s in (X, Y))
        a, b = (t.detach().to(work) for t in (a, b))
        self.a, self.b, self.alpha = a / a.sum(), b / b.sum(), alpha
        # Only differences Cx_ik − Cy_jl matter: without the common mean, their squares cancel less.
        mean = (self.a @ X.times(self.a) + self.b @ Y.times(self.b)) / 2
        self.X, self.Y = X.minus(mean), Y.minus(mean)
        self.symmetric = X.symmetric and Y.symmetric
        self.u, self.v = squares(self.X, self.a), squares(self.Y, self.b)
        self.M = a.new_zeros(len(a), len(b)) if M is None else (1 - alpha) * M.detach().to(work)
        #: E(P) + ⟨S(P), P⟩ on couplings.
        self.squares = (self.u @ self.a + self.v @ self.b) / 2
        self.scale = (self.M.max() - self.M.min() + alpha * self.squares).item() or 1.0

    @property
    def outer(self) -> Tensor:
        """The coupling a⊗b."""
        return self.a[:, None] * self.b

    def product(self, P: Tensor) -> Tensor:
        """S(P), in the cheapest order: O(nm (r + s)) for costs of rank r and s, else O(nm (n + m))."""
        forth = sandwich(self.X, P, self.Y)
        return 2 * forth if self.symmetric else forth + sandwich(self.X.T, P, self.Y.T)

    def gradient(self, S: Tensor) -> Tensor:
        """∇F(P) = (1 − α) M + α Σ_kl ((Cx_ik − Cy_jl)² + (Cx_ki − Cy_lj)²) P_kl, where S = S(P)."""
        return self.M + self.alpha * (self.u[:, None] + self.v - 2 * S)

    def value(self, P: Tensor, S: Tensor) -> Tensor:
        quadratic = ((self.u[:, None] + self.v) / 2 - S).mul(P).sum()
        # The difference of two large sums can fall below zero by rounding; E cannot.
        return (self.M * P).sum() + self.alpha * quadratic.clamp(min=0)


def sandwich(X: Space, P: Tensor, Y: Space) -> Tensor:
    """Cx P Cyᵀ."""
    return torch.linalg.multi_dot([*X.factors, P, *Y.T.factors])


def squares(X: Space, p: Tensor) -> Tensor:
    """Σ_k (C_ik² + C_ki²) p_k."""
    return 2 * X.squares(p) if X.symmetric else X.squares(p) + X.T.squares(p)


def gradients(X: Space, Y: Space, P: Tensor, weight: float) -> tuple[Tensor, ...]:
    """The derivatives of weight · E at a fixed P, in every factor of Cx and of Cy."""
    leaves = [t.detach().to(P.dtype).requires_grad_() for t in (*X.factors, *Y.factors)]
    k, p, q = len(X.factors), P.sum(1), P.sum(0)
    with torch.enable_grad():
        X, Y = Space(tuple(leaves[:k]), X.symmetric), Space(tuple(leaves[k:]), Y.symmetric)
        E = p @ X.squares(p) + q @ Y.squares(q) - 2 * (sandwich(X, P, Y) * P).sum()
        return torch.autograd.grad(weight * E, leaves)
