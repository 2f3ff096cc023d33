"""Blocks of the exponents (g_j − C_ij)/ε of two clouds, each one matrix product.

For the squared Euclidean cost C_ij = ‖x_i‖² + ‖y_j‖² − 2⟨x_i, y_j⟩, and for the cosine cost
C_ij = 1 − ⟨x_i, y_j⟩ for unit vectors. What depends on i alone stays out: a softmax does not see it. What
depends on j alone joins the clouds as one more coordinate. All exponents are in bits (see ``_rows``).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..costs import PointCloudCost
from ._rows import LEAST_SHARE, LOG_2

#: Entries of T below 2^−CUT do not count, in either precision.
CUT = -LEAST_SHARE[torch.float32]

#: Stands for −∞, which a matrix product might multiply by 0.
_NEVER = -1e30


class Exponents:
    """The matrix E_ij = (right_j − C_ij/ε)/log 2 + shift_i; ``E.rows(i)`` makes a slice of it.

    ``right`` (…, m) may be −∞. The clouds are centred, in the precision of ``right``, before anything is
    rounded; ``rounding`` bounds the error of an entry that counts. The tiles share one piece of memory:
    each is gone when the next is made.
    """

    #: The memory of the tiles, and of what is made of one while it is still needed.
    tile: Tensor | None = None
    other: Tensor | None = None

    def __init__(self, C: PointCloudCost, right: Tensor, eps: float, dtype: torch.dtype) -> None:
        x, y = C.x.to(right.dtype), C.y.to(right.dtype)
        right, eps = right / LOG_2, eps * LOG_2  # so that 2^E is meant from here on
        self.eps, self.dtype, self.distance = eps, dtype, C.cost == "euclidean"
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
        self.rounding, self.deep = torch.finfo(dtype).eps * (1 + largest * LOG_2), largest
        if self.distance:
            self.x, self.y, self.right = x.to(dtype), y.to(dtype), right.to(dtype)
        else:
            one, nothing = torch.ones_like(x[..., :1]), torch.zeros_like(x[..., :1])
            self.x = torch.cat([x / eps, one, nothing], -1).to(dtype)
            self.y = torch.cat([y, right[..., None], torch.ones_like(y[..., :1])], -1)
            self.y = self.y.to(dtype).mT.contiguous()

    def absorb(self, f: Tensor) -> None:
        """Add f_i/η − shift_i to each row, after which E_ij = f_i/η + right_j − C_ij/η, η = ε log 2."""
        self.left = (f / self.eps - self.shift).to(self.dtype)
        self.deep += self.left.abs().amax().item()
        if not self.distance:
            self.x[..., -1] = self.left

    def rows(self, i: slice) -> Tensor:
        """The rows E_i of a slice, shape (…, r, m)."""
        x = self.x[..., i, :]
        self.tile = _room(self.tile, x, self.y.shape[-2 if self.distance else -1])
        E = self.tile[..., : x.shape[-2], :]
        if not self.distance:
            return torch.matmul(x, self.y, out=E)
        # Distances from inner products would lose half the digits of small ones.
        C = torch.cdist(x, self.y, compute_mode="donot_use_mm_for_euclid_dist")
        torch.add(self.right.unsqueeze(-2), C, alpha=-1 / self.eps, out=E)
        return E if self.left is None else E.add_(self.left[..., i, None])

    def kernel(self, i: slice) -> Tensor:
        """2^E_i, whose rows sum to 1, but for rounding, once f is absorbed."""
        E = self.rows(i)
        deep = self.deep > CUT or self.never is not None
        return self._closed((E.clamp_(min=-CUT) if deep else E).exp2_())

    def half_step(self, i: slice) -> tuple[Tensor, Tensor, Tensor]:
        """f_i = −ε log Σ_j exp(right_j − C_ij/ε), and K_i = 2^E_i up to a factor with its row sums."""
        E = self.rows(i)
        peak = E.amax(-1, keepdim=True)
        self.other = _room(self.other, E, E.shape[-1])
        K = self._closed(torch.exp2(E.sub_(peak).clamp_(min=-CUT), out=self.other[..., : E.shape[-2], :]))
        total = K.sum(-1).to(self.shift.dtype)
        return self.eps * (self.shift[..., i] - peak.squeeze(-1) - total.log2()), K, total

    def paid(self, f: Tensor, K: Tensor, total: Tensor) -> Tensor:
        """Σ_j T_ij C_ij for the rows of the last half-step, where T is K with rows that sum to 1."""
        spent = self.tile[..., : K.shape[-2], :].mul_(K).sum(-1)
        arrived = (K @ self.known.to(K.dtype).unsqueeze(-1)).squeeze(-1)
        return f + self.eps * ((arrived - spent) / total + total.log2())

    def _closed(self, K: Tensor) -> Tensor:
        """K without what the clamp left in columns that get nothing."""
        return K if self.never is None else K.masked_fill_(self.never, 0.0)


def _room(room: Tensor | None, rows: Tensor, columns: int) -> Tensor:
    """Memory for a tile with as many rows as ``rows``: what there is, or a new piece."""
    shape = (*rows.shape[:-1], columns)
    if room is not None and room.shape[:-2] == shape[:-2] and room.shape[-2] >= shape[-2]:
        return room
    return rows.new_empty(shape)
