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
        given = torch.finfo(a.dtype).eps
        X, Y = (Space(tuple(t.detach().to(work) for t in s.factors), s.symmetric) for s in (X, Y))
        X, Y = X.factorised(given), Y.factorised(given)
        a, b = (t.detach().to(work) for t in (a, b))
        self.a, self.b, self.alpha = a / a.sum(), b / b.sum(), alpha
        # Only differences Cx_ik − Cy_jl matter: without the common mean, their squares cancel less.
        mean = (self.a @ X.times(self.a) + self.b @ Y.times(self.b)) / 2
        self.X, self.Y = X.minus(mean), Y.minus(mean)
        self.symmetric = X.symmetric and Y.symmetric
        self.u, self.v = squares(self.X, self.a), squares(self.Y, self.b)
        shape = len(a), len(b)
        self.M = a.new_zeros(()).expand(shape) if M is None else (1 - alpha) * M.detach().to(work)
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


class Split:
    """S(P) = rows⊕columns + R(P), where R b = 0 and Rᵀa = 0, and R is known by its core.

    Couplings do not see rows⊕columns. For symmetric costs Cx = A Bᵀ and Cy = A' B'ᵀ the rest is
    R = 2 (A − 1 aᵀA) K (A' − 1 bᵀA')ᵀ with the core K = Bᵀ P B', r s numbers for costs of rank r and s;
    a cost without factors has A = 1, and its side of the core is centred instead.
    """

    def __init__(self, q: Quadratic) -> None:
        self.q = q
        self.factor = 2.0 if q.symmetric else 1.0
        spaces = (q.X, q.Y) if q.symmetric else (None, None)
        self.x, self.y = (_Side(s, w) for s, w in zip(spaces, (q.a, q.b), strict=True))

    def __call__(self, P: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The core, and the rows and columns that are split off."""
        q, x, y = self.q, self.x, self.y
        right = q.X.factors[-1], q.Y.factors[-1].mT
        K = torch.linalg.multi_dot([right[0], P, right[1]]) if q.symmetric else q.product(P)
        rows, columns = K @ y.mean, x.mean @ K
        constant = x.mean @ rows
        if x.centred is None:
            K -= columns
        if y.centred is None:
            K -= (K @ y.mean)[:, None]
        return K, self.factor * x.lift(rows), self.factor * (y.lift(columns) - constant)

    def expand(self, K: Tensor, out: Tensor | None = None) -> Tensor:
        """R, of shape (n, m), from its core; in memory of its own, or in that of a matrix given."""
        A, B = self.x.centred, self.y.centred
        if A is not None:
            return torch.mm(self.factor * A, K if B is None else K @ B.mT, out=out)
        if B is not None:
            return torch.mm(self.factor * K, B.mT, out=out)
        return torch.mul(K, self.factor, out=out)

    def times(self, K: Tensor, P: Tensor) -> Tensor:
        """⟨R, P⟩."""
        if self.x.centred is not None:
            P = self.x.centred.mT @ P
        if self.y.centred is not None:
            P = P @ self.y.centred
        return self.factor * (K.flatten() @ P.flatten())

    def metric(self, K: Tensor) -> Tensor:
        """G with ⟨G, K'⟩ = Σ_ij a_i b_j R_ij R'_ij, up to a factor, for cores of shape (…, r, s)."""
        x, y = self.x, self.y
        K = x.weights[:, None] * K if x.centred is None else x.weights @ K
        return K * y.weights if y.centred is None else K @ y.weights


class _Side:
    """The left factor A of one space, 1 for a cost without factors; its mean under w, and A less its mean."""

    def __init__(self, space: Space | None, w: Tensor) -> None:
        self.A = space.factors[0] if space and len(space.factors) == 2 else None
        self.mean = w if self.A is None else w @ self.A
        self.centred = None if self.A is None else self.A - self.mean
        #: The diagonal, or the matrix, by which cores are weighted.
        self.weights = w if self.A is None else (self.centred.mT * w) @ self.centred

    def lift(self, v: Tensor) -> Tensor:
        """A v."""
        return v if self.A is None else self.A @ v


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
