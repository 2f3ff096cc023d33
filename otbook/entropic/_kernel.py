"""The absorbed kernel: Sinkhorn's matrix with the potentials inside, stable at every ε.

With its potentials absorbed the kernel is T_ij = b_j exp((f_i + g_j − C_ij)/ε), whose row i says
where the plan sends point i. Its rows sum to 1, so nothing that matters can underflow, and every
iteration is a pair of plain matrix–vector products.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import threshold_

from ..costs import PointCloudCost

#: Scalings may drift to exp(±DRIFT) before they are absorbed.
DRIFT = {torch.float32: 12.0, torch.float64: 50.0}

#: Entries of T below exp(−CUT) become 0. They stay below rounding even after the scalings drift;
#: kept, they would be denormal numbers in the products, ten to a hundred times slower.
CUT = {torch.float32: 57.0, torch.float64: 600.0}

#: Below this marginal error the rounding of T shows and the products are no longer to be trusted.
FLOOR = {torch.float32: 2e-6, torch.float64: 0.0}

#: Rows are handled in blocks of about this many entries, so that a block stays in cache.
_BLOCK = 1 << 17


class DenseKernel:
    """The kernel T of a dense cost C (…, n, m); :meth:`absorb` builds it, the core loop multiplies by it.

    Vectors are float64 whatever the dtype of C, because (f + g − C)/ε loses its digits exactly
    when ε is small. Only T has the dtype of C: it carries the memory and the time.
    """

    def __init__(self, C: Tensor, a: Tensor, b: Tensor) -> None:
        self.C, self.a, self.b = C, a, b
        self.T = torch.empty_like(C, memory_format=torch.contiguous_format)
        self.drift, self.floor = DRIFT[C.dtype], FLOOR[C.dtype]
        # Newton's matrix is m × m: not much larger than C, or else small.
        m = C.shape[-1]
        self.factorisable = m <= 4096 and C.numel() // C.shape[-2] * m <= max(4 * C.numel(), 1 << 22)

    def absorb(self, g: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """Build T from g: f_i = −ε log Σ_j b_j exp((g_j − C_ij)/ε), an exact half-step in the log domain.

        Returns f and the column sums of the plan diag(a) T, both in float64.
        """
        f, columns = torch.empty_like(self.a), torch.zeros_like(self.b)
        for i in blocks(self.C):
            f[..., i], T = half_step(self.C[..., i, :], g, self.b, eps)
            columns += (self.a[..., None, i] @ T).squeeze(-2)
            self.T[..., i, :] = threshold_(T, math.exp(-CUT[self.C.dtype]), 0.0)
        return f, columns

    def rows(self, v: Tensor) -> Tensor:
        """The product T v."""
        return _times(self.T.mT, v)

    def columns(self, w: Tensor) -> Tensor:
        """The product Tᵀ w."""
        return _times(self.T, w)

    def laplacian(self, u: Tensor, v: Tensor) -> Tensor:
        """S = diag(Pᵀ1) − Pᵀ diag(1/a) P for P = diag(a u) T diag(v) with P1 = a.

        S is the Laplacian of the graph that joins two targets when they share a source; so its
        diagonal is summed from the other entries, which loses nothing to cancellation.
        """
        Q = self.T.to(v.dtype) * v.unsqueeze(-2)
        Q *= (u * self.a.sqrt()).unsqueeze(-1)
        S = Q.mT @ Q
        diagonal = S.diagonal(dim1=-2, dim2=-1)
        diagonal.zero_()
        degree = S.sum(-1)
        S.neg_()
        diagonal.copy_(degree)
        return S


class PointCloudKernel(DenseKernel):
    """The kernel T of a :class:`~otbook.costs.PointCloudCost`: its rows are made anew for each product.

    Memory is O(n + m). The entries are those of a :class:`DenseKernel`, but for their cut.
    """

    factorisable = False

    def __init__(self, C: PointCloudCost, a: Tensor, b: Tensor) -> None:
        self.C, self.a, self.b = C, a, b
        self.drift, self.floor = DRIFT[C.dtype], FLOOR[C.dtype]

    def absorb(self, g: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """Remember g and its exact half-step f; returns f and the column sums of diag(a) T."""
        f, columns = torch.empty_like(self.a), torch.zeros_like(self.b)
        for i in blocks(self.C):
            f[..., i], T = half_step(self.C[..., i, :], g, self.b, eps)
            columns += (self.a[..., None, i] @ T).squeeze(-2)
        self.f, self.g, self.eps = f, g, eps
        return f, columns

    def rows(self, v: Tensor) -> Tensor:
        """The product T v."""
        product = torch.empty_like(self.a)
        for i, T in self._blocks():
            product[..., i] = (T @ v.unsqueeze(-1).to(T.dtype)).squeeze(-1).to(v.dtype)
        return product

    def columns(self, w: Tensor) -> Tensor:
        """The product Tᵀ w."""
        product = torch.zeros_like(self.b)
        for i, T in self._blocks():
            product += (w[..., None, i].to(T.dtype) @ T).squeeze(-2)
        return product

    def _blocks(self) -> Iterator[tuple[slice, Tensor]]:
        one = torch.ones_like(self.a)
        for i in blocks(self.C):
            yield i, plan_rows(self.C[..., i, :], one[..., i], self.b, self.f[..., i], self.g, self.eps)


def softmin(C: Tensor | PointCloudCost, g: Tensor, b: Tensor, eps: float) -> Tensor:
    """The entropic c-transform of g, a block of rows at a time."""
    return torch.cat([half_step(C[..., i, :], g, b, eps)[0] for i in blocks(C)], dim=-1)


def half_step(C: Tensor, g: Tensor, b: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The entropic c-transform of g, f_i = −ε log Σ_j b_j exp((g_j − C_ij)/ε), and its kernel T."""
    E = torch.add((g / eps + b.log()).unsqueeze(-2), C.to(g.dtype), alpha=-1 / eps)
    peak = E.amax(-1, keepdim=True)
    T = torch.softmax(E, -1)
    closed = peak == -math.inf
    if closed.any():
        # Every allowed target of this row has weight 0: the row stays empty instead of NaN.
        peak, T = peak.masked_fill(closed, 0.0), T.masked_fill(closed, 0.0)
    # The largest entry is exp(peak − logsumexp), which gives the logarithm of the sum.
    top = T.amax(-1, keepdim=True)
    return -eps * (peak - top.masked_fill(top == 0, 1.0).log()).squeeze(-1), T


def plan_rows(C: Tensor, a: Tensor, b: Tensor, f: Tensor, g: Tensor, eps: float) -> Tensor:
    """P_ij = a_i b_j exp((f_i + g_j − C_ij)/ε), rounded to the dtype of C."""
    right = g / eps + b.log()
    E = torch.add(right.unsqueeze(-2), C.to(g.dtype), alpha=-1 / eps)
    return E.add_((f / eps + a.log()).unsqueeze(-1)).exp_().to(C.dtype)


def blocks(C: Tensor | PointCloudCost) -> list[slice]:
    """Slices of the rows of C, each of about ``_BLOCK`` entries."""
    n = C.shape[-2]
    size = max(1, _BLOCK * n // C.numel())
    return [slice(i, i + size) for i in range(0, n, size)]


def _times(T: Tensor, w: Tensor) -> Tensor:
    """Tᵀ w, for T (…, n, m) and w (…, n); a row times a matrix is what batches multiply fastest."""
    w_T = w.to(T.dtype)
    product = T.mT @ w_T if T.ndim == 2 else (w_T.unsqueeze(-2) @ T).squeeze(-2)
    return product.to(w.dtype)
