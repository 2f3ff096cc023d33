"""The costs within one space, as a product of one or two factors: what Gromov–Wasserstein multiplies by."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .. import _check
from .._check import ArrayLike
from ..costs import PointCloudCost

#: Ranks up to about this are found, in spaces of so many points: smaller ones are multiplied as they are.
RANK, SMALL = 32, 128


class LowRankCost:
    """The cost C = A Bᵀ of rank r between n and m points, by its factors: n r + m r numbers, not n m.

    Squared Euclidean costs in R^d are of this form, with r = d + 2; ``PointCloudCost(x, x)`` is then
    factorised by the solvers themselves.

    Args:
        A: left factor, shape (…, n, r).
        B: right factor, shape (…, m, r), with the same leading axes.

    Raises:
        ValueError: for factors that are empty, not finite, or of different rank or batch shape.

    Source:
        Scetbon, Peyré and Cuturi (2022), section 3.

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [3.0]])
        >>> one = torch.ones_like(x)
        >>> LowRankCost(torch.cat([x**2, -2 * x, one], 1), torch.cat([one, x, x**2], 1)).dense()
        tensor([[0., 1., 9.],
                [1., 0., 4.],
                [9., 4., 0.]])
    """

    def __init__(self, A: ArrayLike, B: ArrayLike) -> None:
        self.A = _check.points(A, "A", like=None if isinstance(A, Tensor) else _check.first_array(A, B))
        self.B = _check.points(B, "B", like=self.A)
        if self.A.shape[-1] != self.B.shape[-1]:
            raise ValueError(
                f"A has rank {self.A.shape[-1]} and B has rank {self.B.shape[-1]}; "
                "give both factors the same number of columns"
            )
        if self.A.shape[:-2] != self.B.shape[:-2]:
            raise ValueError(
                f"the batch shapes do not agree: A {tuple(self.A.shape[:-2])}, B {tuple(self.B.shape[:-2])}; "
                "make the leading axes equal"
            )

    @property
    def shape(self) -> torch.Size:
        return torch.Size((*self.A.shape[:-1], self.B.shape[-2]))

    def dense(self) -> Tensor:
        """The whole matrix, shape (…, n, m)."""
        return self.A @ self.B.mT


@dataclass(frozen=True)
class Space:
    """The costs C (…, n, n) within one space, as the product of its factors: (C,) or (A, Bᵀ)."""

    factors: tuple[Tensor, ...]
    symmetric: bool

    @property
    def n(self) -> int:
        return self.factors[0].shape[-2]

    @property
    def batch(self) -> torch.Size:
        return self.factors[0].shape[:-2]

    @property
    def T(self) -> Space:
        return Space(tuple(t.mT for t in reversed(self.factors)), self.symmetric)

    def minus(self, mean: Tensor) -> Space:
        """The costs less a constant, which as a low-rank cost has one more column."""
        if len(self.factors) == 1:
            return Space((self.factors[0] - mean,), self.symmetric)
        A, B = self.factors
        one = torch.ones_like(A[:, :1])
        return Space((torch.cat([A, -mean * one], 1), torch.cat([B, one.T])), self.symmetric)

    def factorised(self, eps: float) -> Space:
        """The same costs by two factors, if their rank is small: C = A B to the relative rounding eps.

        B are rows of C and A combines columns of C, so that neither has errors of its own. They are those
        that elimination picks from a basis of C Ω, for a random Ω of more columns than the rank (Halko,
        Martinsson and Tropp 2011, sections 4.1 and 5.2); whether A B is C is then seen from every entry.
        """
        if len(self.factors) > 1 or self.n < SMALL:
            return self
        (C,) = self.factors
        random = torch.Generator().manual_seed(self.n)
        sketch = C @ torch.randn(self.n, RANK + 8, generator=random, dtype=C.dtype).to(C.device)
        Q, sizes, _ = torch.linalg.svd(sketch.cpu(), full_matrices=False)
        rank = int((sizes > self.n * eps * sizes[0]).sum())
        if not 0 < rank <= RANK:
            return self
        B = C[pivots(Q[:, :rank])]
        columns = pivots(B.mT.cpu())
        A = torch.linalg.solve(B[:, columns].mT, C[:, columns].mT).mT
        if (A @ B).sub_(C).abs_().max() > 16 * eps * C.abs().max():
            return self
        return Space((A, B), self.symmetric)

    def times(self, w: Tensor) -> Tensor:
        """Σ_k C_ik w_k, for each i."""
        for factor in reversed(self.factors):
            w = factor @ w
        return w

    def squares(self, w: Tensor) -> Tensor:
        """Σ_k C_ik² w_k, for each i."""
        if len(self.factors) == 1:
            return self.factors[0].square() @ w
        A, B = self.factors
        return (A @ ((B * w) @ B.mT) * A).sum(-1)


def space(C: ArrayLike | PointCloudCost | LowRankCost, name: str, like: Tensor | None) -> Space:
    """The checked costs within one space, factorised where that is exact and known."""
    if isinstance(C, PointCloudCost | LowRankCost) and C.shape[-1] != C.shape[-2]:
        raise ValueError(
            f"{name} must be square, but has shape {tuple(C.shape)}; compare the points of one space to "
            "each other"
        )
    if isinstance(C, LowRankCost):
        _check.tensor(C.A, name, like=like)
        return Space((C.A, C.B.mT), symmetric=C.A is C.B)
    if isinstance(C, PointCloudCost):
        _check.tensor(C.x, name, like=like)
        if C.cost == "sqeuclidean":
            return _squared_distances(C.x, C.y)
        C = C.dense()
    C = _check.tensor(C, name, like=like)
    if C.ndim < 2 or C.shape[-1] != C.shape[-2] or 0 in C.shape:
        raise ValueError(
            f"{name} must be a square matrix (…, n, n) of at least one point, but has shape "
            f"{tuple(C.shape)}; compare the points of one space to each other"
        )
    finite(C, name)
    return Space((C,), symmetric=torch.equal(C, C.mT))


def _squared_distances(x: Tensor, y: Tensor) -> Space:
    """‖x_i − y_j‖² = ‖x_i‖² − 2⟨x_i, y_j⟩ + ‖y_j‖², centred so that little cancels."""
    centre = x.detach().mean(-2, keepdim=True)
    x, y, same = x - centre, y - centre, x is y or torch.equal(x, y)
    xx, yy = x.square().sum(-1, keepdim=True), y.square().sum(-1, keepdim=True)
    A = torch.cat([xx, -2 * x, torch.ones_like(xx)], -1)
    B = torch.cat([torch.ones_like(yy), y, yy], -1)
    return Space((A, B.mT), symmetric=same)


def pivots(Q: Tensor) -> list[int]:
    """The rows of Q (n, r) that elimination with partial pivoting picks."""
    order = list(range(len(Q)))
    for i, k in enumerate(torch.linalg.lu_factor(Q).pivots.tolist()):
        order[i], order[k - 1] = order[k - 1], order[i]
    return order[: Q.shape[1]]


def finite(C: Tensor, name: str) -> None:
    """Refuse infinite and missing costs, saying where the first one is."""
    bad = ~torch.isfinite(C.detach())
    if bad.any():
        index = torch.nonzero(bad)[0].tolist()
        raise ValueError(
            f"{name} holds {C.detach()[tuple(index)].item()} at {name}[{', '.join(map(str, index))}]; "
            "replace it by a finite number"
        )
