"""The absorbed kernel: Sinkhorn's matrix with the potentials inside, stable at every ε.

With its potentials absorbed the kernel is T_ij = b_j exp((f_i + g_j − C_ij)/ε), whose row i says
where the plan sends point i. Its rows sum to 1, so nothing that matters can underflow, and every
iteration is a pair of plain matrix–vector products.

Potentials are kept in float64; the products are done in float32, whatever the dtype of C. Since
T1 = 1 and Tᵀa = c are known, T v = s1 + T(v − s1) for every number s; with s = 1 the rounding of T
enters only in proportion to how far the scalings v have moved. So a few absorptions reach any tolerance.
A small kernel is kept in float64 besides, for the last products and for the plan, which saves one absorption.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn.functional import threshold_

from ..costs import PointCloudCost
from ._rows import LEAST_SHARE, blocks, half_step
from ._tiles import Exponents

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

#: Products with this many rows are added up in float32 before float64 takes over.
_RECENT = 128

#: How the rows r = T v (those of a slice) become the weights w of the column product Tᵀ w.
Middle = Callable[[Tensor, slice], Tensor]


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

    #: Whether an exact absorption keeps T in float64, whether products use that now, and whether a
    #: row can be empty.
    keeps: bool = False
    eager: bool = False
    sharp: bool = False
    gaps: bool = False

    def __init__(self, C: Tensor, a: Tensor, b: Tensor, dtype: torch.dtype = torch.float32) -> None:
        self.C, self.a, self.b, self.wanted = C, a, b, dtype
        self.rough_T = torch.empty(C.shape, dtype=dtype, device=C.device)
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
        for i in blocks(self.C):
            C, a = self.C[..., i, :], self.a[..., i]
            rough = self.T[..., i, :]
            room = None if self.exact_T is None else self.exact_T[..., i, :]
            f[..., i], T = half_step(C, g, self.b, eps, room if exact else rough)
            self.c += _times(T.mT, a)
            if exact:
                threshold_(rough.copy_(T), 2.0 ** LEAST_SHARE[rough.dtype], 0.0)
            if exact and not self.keeps:
                rows[..., i], paid[..., i] = a * T.sum(-1), a * _paid(T.mul_(C))
        self.measured = (g, eps, f, rows, paid) if exact and not self.keeps else None
        return f, self.c

    def sharpen(self) -> bool:
        """Change over to T in float64, if it was kept; says whether this is news."""
        if self.exact_T is None or self.sharp:
            return False
        self.T, self.rounding, self.sharp = self.exact_T, ROUNDING[self.exact_T.dtype], True
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
        self.T, self.rounding, self.sharp, self.plan = self.rough_T, ROUNDING[self.wanted], False, None
        self.exact_T = torch.empty_like(self.T, dtype=self.a.dtype) if exact and self.keeps else None

    def rows(self, v: Tensor) -> Tensor:
        """The product T v."""
        s = _centre(v)
        return s + _times(self.T, v - s) if s else _times(self.T, v)

    def sweep(self, v: Tensor, middle: Middle, near: bool | None = None) -> tuple[Tensor, Tensor]:
        """The products r = T v and Tᵀ w, where w = ``middle``(r, rows); ``near``, if all v are near 1."""
        s = _centre(v) if near is None else float(near)
        r = s + _times(self.T, v - s) if s else _times(self.T, v)
        w = middle(r, slice(None))
        return r, self.c + _times(self.T.mT, w - self.a) if s else _times(self.T.mT, w)

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


class PointCloudKernel(DenseKernel):
    """The kernel T of a :class:`~otbook.costs.PointCloudCost`: its rows are made anew when needed.

    Memory is O(n + m). A sweep makes each block of rows once and uses it for both products.
    """

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
        f, paid, columns = torch.empty_like(self.a), torch.empty_like(self.a), _ColumnSums(self.b, E.dtype)
        for i in blocks(self.C, E.dtype):
            f[..., i], K, total = E.half_step(i)
            columns.add(K, self.a[..., i] / total)
            if exact:
                paid[..., i] = self.a[..., i] * E.paid(f[..., i], K, total)
        self.E.absorb(f)
        self.c = columns.total()
        self.measured = (g, eps, f, self.a, paid) if exact else None
        return f, self.c

    def rows(self, v: Tensor) -> Tensor:
        """The product T v."""
        s = _centre(v)
        return s + torch.cat([moved for _, _, _, moved in self._products(v - s)], -1)

    def sweep(self, v: Tensor, middle: Middle, near: bool | None = None) -> tuple[Tensor, Tensor]:
        """The products r = T v and Tᵀ w, where w = ``middle``(r, rows), in one pass."""
        s = _centre(v) if near is None else float(near)
        r, columns = torch.empty_like(self.a), _ColumnSums(self.b, self.E.dtype)
        for i, K, total, moved in self._products(v - s):
            r[..., i] = s + moved
            columns.add(K, (middle(r[..., i], i) - s * self.a[..., i]) / total)
        return r, s * self.c + columns.total()

    def _products(self, v: Tensor) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
        """Rows, K = diag(total) T there, their total (1 but for rounding), and the product T v."""
        pair = torch.stack([torch.ones_like(v), v], -2).to(self.E.dtype)
        for i in blocks(self.C, self.E.dtype):
            K = self.E.kernel(i)
            total, moved = (pair @ K.mT).to(v.dtype).unbind(-2)
            yield i, K, total, moved / total

    def _blocks(self) -> Iterator[tuple[slice, Tensor]]:
        for i, K, total, _ in self._products(torch.zeros_like(self.b)):
            yield i, K / total.unsqueeze(-1)


class _ColumnSums:
    """The sum of Kᵀ w over blocks of rows: in the precision of K for some rows, then in that of b."""

    def __init__(self, b: Tensor, dtype: torch.dtype) -> None:
        self.sums, self.recent, self.rows = torch.zeros_like(b), torch.zeros_like(b, dtype=dtype), 0

    def add(self, K: Tensor, w: Tensor) -> None:
        if self.rows + K.shape[-2] > _RECENT:
            self.total()
        w = w.to(K.dtype)
        if K.ndim == 2:
            self.recent.addmv_(K.mT, w)
        else:
            self.recent += (w.unsqueeze(-2) @ K).squeeze(-2)
        self.rows += K.shape[-2]

    def total(self) -> Tensor:
        self.sums += self.recent
        self.recent.zero_()
        self.rows = 0
        return self.sums


def _paid(moved: Tensor) -> Tensor:
    """The row sums of T_ij C_ij, where forbidden pairs, which get no mass, cost nothing."""
    paid = moved.sum(-1)
    return paid if torch.isfinite(paid).all() else moved.nan_to_num_(0.0).sum(-1)


def _centre(v: Tensor) -> float:
    """The number s of T v = s1 + T(v − s1): 1 if all scalings v are near 1, else 0."""
    return float(v.log().abs().max().item() < NEAR)


def _times(T: Tensor, v: Tensor) -> Tensor:
    """T v, for T (…, n, m) and v (…, m); a row times a matrix is what batches multiply fastest."""
    v_T = v.to(T.dtype)
    product = T @ v_T if T.ndim == 2 else (v_T.unsqueeze(-2) @ T.mT).squeeze(-2)
    return product.to(v.dtype)
