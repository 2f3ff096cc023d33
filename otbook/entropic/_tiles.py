"""Blocks of the exponents (g_j − C_ij)/ε of two clouds, each one matrix product.

For the squared Euclidean cost C_ij = ‖x_i‖² + ‖y_j‖² − 2⟨x_i, y_j⟩, and for the cosine cost
C_ij = 1 − ⟨x_i, y_j⟩ for unit vectors. What depends on i alone stays out: a softmax does not see it. What
depends on j alone joins the clouds as one more coordinate. Kernels are powers of B, e or 2 (see ``_base``).
"""

from __future__ import annotations

import itertools
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from ..costs import PointCloudCost
from ._base import BASE, LEAST_SHARE
from ._rows import blocks

#: Entries of T below exp(−CUT) do not count, in either precision.
CUT = -LEAST_SHARE[torch.float32]

#: Products with this many rows are added up in float32 before float64 takes over.
_RECENT = 128

#: Stands for −∞, which a matrix product might multiply by 0.
_NEVER = -1e30


class Tile(NamedTuple):
    """Some rows of a matrix of exponents: which, of which points, the memory for them, also transposed."""

    rows: slice
    x: Tensor
    E: Tensor
    E_T: Tensor


class Exponents:
    """The matrix E_ij = (right_j − C_ij/ε)/ln B + shift_i; ``fill`` makes the rows of one of its ``tiles``.

    ``right`` (…, m) may be −∞. The clouds are centred, in the precision of ``right``, before anything is
    rounded; ``rounding`` bounds the error of an entry that counts. The tiles share one piece of memory:
    each is gone when the next is made.
    """

    def __init__(self, C: PointCloudCost, right: Tensor, eps: float, dtype: torch.dtype) -> None:
        x, y = C.x.to(right.dtype), C.y.to(right.dtype)
        right, eps = right / BASE.ln, eps * BASE.ln  # so that B^E is meant from here on
        self.C, self.eps, self.dtype, self.distance = C, eps, dtype, C.cost == "euclidean"
        self.known, self.left = torch.where(right > _NEVER, right, 0.0), None
        if C.cost == "cosine":
            x, y = (z / torch.linalg.vector_norm(z, dim=-1, keepdim=True) for z in (x, y))
            self.shift = torch.full_like(x[..., 0], 1 / eps)
        else:
            centre = x.mean(-2, keepdim=True)
            x, y = x - centre, y - centre
            self.shift = torch.zeros_like(x[..., 0])
        if C.cost == "sqeuclidean":
            self.shift, right, x = x.square().sum(-1) / eps, right - y.square().sum(-1) / eps, 2 * x
        never = right <= _NEVER
        self.never = never.unsqueeze(-2) if never.any() else None
        right = right.clamp(min=_NEVER)
        largest = C.bound() / eps + torch.where(right > _NEVER, right.abs(), 0.0).amax().item()
        self.rounding, self.deep = torch.finfo(dtype).eps * (1 + largest * BASE.ln), largest
        if self.distance:
            self.x, self.y, self.right = x.to(dtype), y.to(dtype), right.to(dtype)
        else:
            one, nothing = torch.ones_like(x[..., :1]), torch.zeros_like(x[..., :1])
            self.x = torch.cat([x / eps, one, nothing], -1).to(dtype)
            self.y = torch.cat([y, right[..., None], torch.ones_like(y[..., :1])], -1)
            self.y = self.y.to(dtype).mT.contiguous()

    def absorb(self, f: Tensor) -> None:
        """Add f_i/η − shift_i to each row, after which E_ij = f_i/η + right_j − C_ij/η, η = ε ln B."""
        self.left = (f / self.eps - self.shift).to(self.dtype)
        self.deep += self.left.abs().amax().item()
        if not self.distance:
            self.x[..., -1] = self.left

    @cached_property
    def tiles(self) -> list[Tile]:
        """All rows, in blocks."""
        slices, m = blocks(self.C, self.dtype), self.y.shape[-2 if self.distance else -1]
        room = self.x.new_empty(*self.x[..., slices[0], 0].shape, m)
        rows = (self.x[..., i, :] for i in slices)
        last = room[..., : (self.x.shape[-2] - 1) % room.shape[-2] + 1, :]
        memory = itertools.chain(itertools.repeat((room, room.mT), len(slices) - 1), [(last, last.mT)])
        return [Tile(i, x, *E) for i, x, E in zip(slices, rows, memory, strict=True)]

    def fill(self, tile: Tile) -> Tensor:
        """The exponents of a tile, shape (…, r, m)."""
        i, x, E, _ = tile
        if not self.distance:
            return torch.mm(x, self.y, out=E) if x.ndim == 2 else torch.matmul(x, self.y, out=E)
        # Distances from inner products would lose half the digits of small ones.
        C = torch.cdist(x, self.y, compute_mode="donot_use_mm_for_euclid_dist")
        torch.add(self.right.unsqueeze(-2), C, alpha=-1 / self.eps, out=E)
        return E if self.left is None else E.add_(self.left[..., i, None])

    def kernel(self, tile: Tile) -> Tensor:
        """B^E, whose rows sum to 1, but for rounding, once f is absorbed."""
        E = self.fill(tile)
        if self.deep > CUT / BASE.ln or self.never is not None:
            E.clamp_min_(-CUT / BASE.ln)
        return self._closed(BASE.power(E, out=E))

    def half_step(self, a: Tensor, *, paid: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        """f_i = −ε log Σ_j exp(right_j − C_ij/ε), and the column sums of the plan diag(a) T that f leads to.

        On request also the row sums of T_ij C_ij.
        """
        columns, product = ColumnSums(self.known, self.dtype), torch.mm if a.ndim == 1 else torch.matmul
        pair = torch.stack([torch.ones_like(self.known), self.known], -2).to(self.dtype)
        peak, spent = self.x.new_empty(2, *a.shape)
        sums = self.x.new_empty(*a.shape[:-1], 2, a.shape[-1])
        other = torch.empty_like(self.tiles[0].E) if paid else None  # for K, while E is still needed
        parts = (z.split(self.tiles[0].x.shape[-2], -1) for z in (a.to(self.dtype), peak, spent, sums))
        for tile, a_i, peak_i, spent_i, sums_i in zip(self.tiles, *parts, strict=True):
            E = self.fill(tile)
            E.sub_(torch.amax(E, -1, out=peak_i).unsqueeze(-1)).clamp_min_(-CUT / BASE.ln)
            K = self._closed(BASE.power(E, out=other[..., : E.shape[-2], :] if paid else E))
            product(pair, K.mT, out=sums_i)
            columns.add(K.mT, a_i / sums_i[..., 0, :])
            if paid:
                torch.sum(E.mul_(K), -1, out=spent_i)
        total, arrived = sums.to(self.shift.dtype).unbind(-2)
        moved = BASE.log(total)
        f = self.eps * (self.shift - peak - moved)
        return f, columns.total(), f + self.eps * ((arrived - spent) / total + moved) if paid else None

    def _closed(self, K: Tensor) -> Tensor:
        """K without what the clamp left in columns that get nothing."""
        return K if self.never is None else K.masked_fill_(self.never, 0.0)


class ColumnSums:
    """The sum of Kᵀ w over blocks K of rows: in the precision of K for some rows, then in that of b."""

    def __init__(self, b: Tensor, dtype: torch.dtype) -> None:
        self.sums, self.recent, self.rows = torch.zeros_like(b), torch.zeros_like(b, dtype=dtype), 0

    def add(self, K_T: Tensor, w: Tensor) -> None:
        if self.rows + K_T.shape[-1] > _RECENT:
            self.total()
        w = w.to(K_T.dtype)
        if K_T.ndim == 2:
            self.recent.addmv_(K_T, w)
        else:
            self.recent += times(K_T, w)
        self.rows += K_T.shape[-1]

    def total(self) -> Tensor:
        self.sums += self.recent
        self.recent.zero_()
        self.rows = 0
        return self.sums


def times(T: Tensor, v: Tensor) -> Tensor:
    """T v, for T (…, n, m) and v (…, m); a row times a matrix is what batches multiply fastest."""
    return torch.mv(T, v) if T.ndim == 2 else (v.unsqueeze(-2) @ T.mT).squeeze(-2)
