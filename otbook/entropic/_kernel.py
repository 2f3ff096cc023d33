"""The absorbed kernel: Sinkhorn's matrix with the potentials inside, stable at every ε.

With its potentials absorbed the kernel is T_ij = b_j exp((f_i + g_j − C_ij)/ε), whose row i says
where the plan sends point i. Its rows sum to 1, so nothing that matters can underflow, and every
iteration is a pair of plain matrix–vector products.

Potentials are kept in float64; the products are done in float32, whatever the dtype of C. Since
T1 = 1 and Tᵀa = c are known, T v = 1 + m with m = T(v − 1), and Tᵀ(a/(1 + m)) = c − Tᵀ(a m/(1 + m)). So
rounding enters only in proportion to how far the scalings v are from 1, and few absorptions are needed.
A small kernel is kept in float64 besides, for the last products and for the plan, which saves one absorption.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import threshold_

from ..costs import PointCloudCost
from ._base import LEAST_SHARE
from ._rows import blocks, half_steps
from ._tiles import ColumnSums, Exponents, Tile, times

#: Scalings may drift to exp(±DRIFT) before they are absorbed.
DRIFT = 12.0

#: All scalings are near 1 if their logarithms are smaller than this.
NEAR = 0.4

#: The relative error of a softmax in float32, which trades the last two bits for speed.
ROUNDING = {torch.float32: 5e-7, torch.float64: 1e-15}

#: A relative error of T above which its exponents are formed in float64.
COARSE = 5e-4

#: A kernel of up to this many entries is kept in float64 too where it is absorbed exactly, and one of up to
#: this many is absorbed exactly from the start.
_KEPT, _EAGER = 1 << 22, 1 << 20

#: Newton's matrix may have this many entries where the kernel itself is not stored.
_FACTORISABLE = 1 << 22


class DenseKernel:
    """The kernel T of a dense cost C (…, n, m); :meth:`absorb` builds it, the core loop multiplies by it.

    Its entries have the dtype given and the relative error ``rounding``. Vectors are float64 always,
    because (f + g − C)/ε loses its digits exactly when ε is small.
    """

    #: Where it was measured last, and what was found: g, eps, f, row sums, cost of each row.
    measured: tuple | None = None

    #: T in float64 if the last absorption kept it, and the plan that it became when it was measured.
    exact_T: Tensor | None = None
    plan: Tensor | None = None

    #: Whether exact absorptions keep T in float64, from the first on, products use it, a row can be empty.
    keeps: bool = False
    eager: bool = False
    sharp: bool = False
    gaps: bool = False

    def __init__(self, C: Tensor, a: Tensor, b: Tensor, dtype: torch.dtype = torch.float32) -> None:
        self.C, self.a, self.b, self.wanted = C, a, b, dtype
        self.rough_T, self.rough_a = torch.empty(C.shape, dtype=dtype, device=C.device), a.to(dtype)
        self.keeps, self.gaps = dtype != a.dtype and C.numel() <= _KEPT, True
        self.eager = self.keeps and C.numel() <= _EAGER
        # Newton's matrix is m × m: not much larger than C, or else small.
        m = C.shape[-1]
        self.factorisable = m <= 4096 and C.numel() // C.shape[-2] * m <= max(4 * C.numel(), 1 << 22)

    def absorb(self, g: Tensor, eps: float, *, exact: bool) -> tuple[Tensor, Tensor]:
        """Build T from g: f_i = −ε log Σ_j b_j exp((g_j − C_ij)/ε), a half-step in the log domain.

        Returns f and the column sums c of the plan diag(a) T, exact to float64 or only to ``rounding``.
        """
        self._begin(exact)
        f, self.c = torch.empty_like(self.a), torch.zeros_like(self.b)
        rows, paid = torch.empty_like(self.a), torch.empty_like(self.a)
        out, coarse = self.exact_T if exact else self.T, False
        if not exact and self.wanted != self.a.dtype:
            # Exponents in float32 take half the time, and will do where costs are not too large for ε.
            largest = (max(map(abs, self.extremes[:2])) + g.abs().max().item()) / eps
            rounding = torch.finfo(self.wanted).eps * (1 + largest)
            coarse = rounding <= COARSE
            self.rounding += rounding if coarse else 0.0
        for i, f_i, T in half_steps(self.C, g, self.b, eps, out, coarse=coarse):
            f[..., i], a = f_i, self.a[..., i]
            self.c += times(T.mT, a.to(T.dtype))
            if exact:
                rough = self.T[..., i, :]
                threshold_(rough.copy_(T), math.exp(LEAST_SHARE[rough.dtype]), 0.0)
            if exact and not self.keeps:
                rows[..., i], paid[..., i] = a * T.sum(-1), a * _paid(T.mul_(self.C[..., i, :]))
        self.measured = (g, eps, f, rows, paid) if exact and not self.keeps else None
        return f, self.c

    @cached_property
    def extremes(self) -> tuple[float, float, bool]:
        """The least and the largest finite cost, or bounds of them, and whether there are infinite ones."""
        low, high = (t.item() for t in torch.aminmax(self.C))
        if math.isfinite(high):
            return low, high, False
        return low, self.C[torch.isfinite(self.C)].max().item(), True

    def sharpen(self) -> bool:
        """Change over to T in float64, if it was kept; says whether this is news."""
        if self.exact_T is None or self.sharp:
            return False
        self.T, self.mass, self.sharp = self.exact_T, self.a, True
        self.rounding = ROUNDING[self.T.dtype]
        return True

    def measure(self, g: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What g leads to: f, the row and column sums of the plan diag(a) T, and its transport cost."""
        if self.measured is None or self.measured[0] is not g or self.measured[1] != eps:
            f, _ = self.absorb(g, eps, exact=True)
            if self.exact_T is not None:
                self.settle(g, eps, f, self.a, torch.ones_like(self.b))
        _, _, f, rows, paid = self.measured
        return f, rows, self.c, self.total(paid)

    def settle(self, g: Tensor, eps: float, f: Tensor, left: Tensor, right: Tensor) -> None:
        """Measure g and f where the plan is known: diag(left) T diag(right), with T in float64."""
        self.plan, self.exact_T, self.c = self.exact_T, None, torch.zeros_like(self.b)
        rows, paid = torch.empty_like(self.a), torch.empty_like(self.a)
        for i in blocks(self.C):
            P = self.plan[..., i, :].mul_(left[..., i, None]).mul_(right.unsqueeze(-2))
            self.c += P.sum(-2)
            rows[..., i], paid[..., i] = P.sum(-1), _paid(P * self.C[..., i, :])
        self.measured = (g, eps, f, rows, paid)

    def _begin(self, exact: bool) -> None:
        self.T, self.mass, self.sharp, self.plan = self.rough_T, self.rough_a, False, None
        self.rounding = ROUNDING[self.wanted]
        self.exact_T = torch.empty_like(self.T, dtype=self.a.dtype) if exact and self.keeps else None

    def rows(self, v: Tensor) -> Tensor:
        """The product T v."""
        if near_one(v):
            return 1 + times(self.T, (v - 1).to(self.T.dtype)).to(v.dtype)
        return times(self.T, v.to(self.T.dtype)).to(v.dtype)

    def columns(self, w: Tensor) -> Tensor:
        """The product Tᵀ w."""
        return times(self.T.mT, w.to(self.T.dtype)).to(w.dtype)

    def sweep(self, v: Tensor, near: bool | None = None) -> tuple[Tensor, Tensor]:
        """The products r = T v and Tᵀ(a/r), an iteration of Sinkhorn; ``near``, if all v are near 1."""
        if near_one(v) if near is None else near:
            m = times(self.T, (v - 1).to(self.T.dtype))
            return 1 + m.to(v.dtype), self.c - times(self.T.mT, self.mass * m / (1 + m)).to(v.dtype)
        r = times(self.T, v.to(self.T.dtype))
        w = self.mass / (torch.where(r > 0, r, 1.0) if self.gaps else r)  # nothing leaves an empty row
        return r.to(v.dtype), times(self.T.mT, w).to(v.dtype)

    def gram(self, w: Tensor, v: Tensor) -> Tensor:
        """The product Tᵀ diag(w) T v."""
        return times(self.T.mT, w.to(self.T.dtype) * times(self.T, v.to(self.T.dtype))).to(v.dtype)

    def total(self, x: Tensor) -> Tensor:
        """The sum over all rows."""
        return x.sum(-1)

    def laplacian(self, u: Tensor, v: Tensor) -> Tensor:
        """S = diag(Pᵀ1) − Pᵀ diag(1/a) P for P = diag(a u) T diag(v) with P1 = a.

        S is the Laplacian of the graph that joins two targets when they share a source; so its
        diagonal is summed from the other entries, which loses nothing to cancellation.
        """
        S = torch.zeros(*v.shape, v.shape[-1], dtype=v.dtype, device=v.device)
        for i, T in self._blocks():
            Q = T.to(v.dtype) * v.unsqueeze(-2)
            Q *= (u * self.a.sqrt())[..., i, None]
            S -= Q.mT @ Q
        diagonal = S.diagonal(dim1=-2, dim2=-1)
        diagonal.zero_()
        diagonal.copy_(-S.sum(-1))
        return S

    def _blocks(self) -> Iterator[tuple[slice, Tensor]]:
        yield slice(None), self.T


class _Part(NamedTuple):
    """A tile, the weights of its rows, and the memory for their sums: both, K1 and K v."""

    tile: Tile
    a: Tensor
    sums: Tensor
    total: Tensor
    moved: Tensor


class PointCloudKernel(DenseKernel):
    """The kernel T of a :class:`~otbook.costs.PointCloudCost`: its rows are made anew when needed.

    Memory is O(n + m). A sweep makes each block of rows once and uses it for both products.
    """

    parts: list[_Part] | None = None

    @property
    def extremes(self) -> tuple[float, float, bool]:
        """Bounds of the costs, all of which are finite."""
        return 0.0, self.C.bound(), False

    def __init__(self, C: PointCloudCost, a: Tensor, b: Tensor, dtype: torch.dtype = torch.float32) -> None:
        self.C, self.a, self.b, self.wanted = C, a, b, dtype
        self.factorisable = C.shape[:-2].numel() * C.shape[-1] ** 2 <= _FACTORISABLE

    def absorb(self, g: Tensor, eps: float, *, exact: bool) -> tuple[Tensor, Tensor]:
        """Remember g and its half-step f; returns f and the column sums c of the plan diag(a) T."""
        right = g / eps + self.b.log()
        self.E = E = Exponents(self.C, right, eps, self.wanted)
        if exact or E.rounding > COARSE:
            E = Exponents(self.C, right, eps, self.a.dtype)
        if self.E.rounding > COARSE:
            self.E = E
        self.rounding = self.E.rounding + ROUNDING[self.E.dtype]
        f, self.c, paid = E.half_step(self.a, paid=exact)
        self.E.absorb(f)
        self.parts = None
        self.measured = (g, eps, f, self.a, self.a * paid) if exact else None
        return f, self.c

    def rows(self, v: Tensor) -> Tensor:
        """The product T v."""
        near = near_one(v)
        for _ in self._products(v - 1 if near else v):
            pass
        return self._rows(v.dtype, near)

    def columns(self, w: Tensor) -> Tensor:
        """The product Tᵀ w."""
        columns, w = ColumnSums(self.b, self.E.dtype), w.to(self.E.dtype)
        for p in self._products(torch.zeros_like(self.b)):
            columns.add(p.tile.E_T, w[..., p.tile.rows] / p.total)
        return columns.total()

    def sweep(self, v: Tensor, near: bool | None = None) -> tuple[Tensor, Tensor]:
        """The products r = T v and Tᵀ(a/r), in one pass."""
        near, columns = near_one(v) if near is None else near, ColumnSums(self.b, self.E.dtype)
        for p in self._products(v - 1 if near else v):
            # In terms of r = s + moved/total these are (s a − a/r)/total and (a/r)/total.
            w = (p.a * p.moved).div_((p.total + p.moved).mul_(p.total)) if near else p.a / p.moved
            columns.add(p.tile.E_T, w)
        return self._rows(v.dtype, near), self.c - columns.total() if near else columns.total()

    def gram(self, w: Tensor, v: Tensor) -> Tensor:
        """The product Tᵀ diag(w) T v, in one pass."""
        columns, w = ColumnSums(self.b, self.E.dtype), w.to(self.E.dtype)
        for p in self._products(v):
            columns.add(p.tile.E_T, (w[..., p.tile.rows] * p.moved).div_(p.total).div_(p.total))
        return columns.total()

    def _products(self, v: Tensor) -> Iterator[_Part]:
        """Tile by tile K = diag(total) T, its row sums ``total``, 1 but for rounding, and ``moved`` = K v."""
        pair = torch.stack([torch.ones_like(v), v], -2).to(self.E.dtype)
        product = torch.mm if v.ndim == 1 else torch.matmul
        for part in self._parts():
            self.E.kernel(part.tile)
            product(pair, part.tile.E_T, out=part.sums)
            yield part

    def _parts(self) -> list[_Part]:
        """What belongs to each tile, made once for all products."""
        if self.parts is None:
            a = self.a.to(self.E.dtype)
            self.sums = a.new_empty(*a.shape[:-1], 2, a.shape[-1])
            tiles = ((tile, self.sums[..., tile.rows]) for tile in self.E.tiles)
            self.parts = [_Part(t, a[..., t.rows], sums, *sums.unbind(-2)) for t, sums in tiles]
        return self.parts

    def _rows(self, dtype: torch.dtype, near: bool) -> Tensor:
        """T v from what the last products left."""
        total, moved = self.sums.to(dtype).unbind(-2)
        r = moved / total  # memory of its own: the next products overwrite the sums
        return r.add_(1) if near else r

    def _blocks(self) -> Iterator[tuple[slice, Tensor]]:
        for p in self._products(torch.zeros_like(self.b)):
            yield p.tile.rows, p.tile.E / p.total.unsqueeze(-1)


def _paid(moved: Tensor) -> Tensor:
    """The row sums of T_ij C_ij, where forbidden pairs, which get no mass, cost nothing."""
    paid = moved.sum(-1)
    return paid if torch.isfinite(paid).all() else moved.nan_to_num_(0.0).sum(-1)


def near_one(v: Tensor) -> bool:
    """Whether all scalings v are near 1."""
    return v.log().abs().max().item() < NEAR
