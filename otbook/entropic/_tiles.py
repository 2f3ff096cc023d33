"""Blocks of the exponents (g_j − C_ij)/ε of two clouds, each one matrix product.

For the squared Euclidean cost C_ij = ‖x_i‖² + ‖y_j‖² − 2⟨x_i, y_j⟩, and for the cosine cost
C_ij = 1 − ⟨x_i, y_j⟩ for unit vectors. What depends on i alone stays out: a softmax does not see it. What
depends on j alone joins the clouds as one more coordinate.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..costs import PointCloudCost

#: Stands for −∞, which a matrix product might multiply by 0.
_NEVER = -1e30


class Exponents:
    """The matrix E_ij = right_j − C_ij/ε + shift_i; ``E[i]`` makes the rows of a slice, in one precision.

    ``right`` (…, m) may be −∞. The clouds are centred, in the precision of ``right``, before anything is
    rounded; ``rounding`` bounds the error of an entry that counts.
    """

    def __init__(self, C: PointCloudCost, right: Tensor, eps: float, dtype: torch.dtype) -> None:
        x, y = C.x.to(right.dtype), C.y.to(right.dtype)
        self.eps, self.dtype, self.distance = eps, dtype, C.cost == "euclidean"
        self.known = torch.where(right > _NEVER, right, 0.0)
        if C.cost == "cosine":
            x, y = (z / torch.linalg.vector_norm(z, dim=-1, keepdim=True) for z in (x, y))
            self.shift = torch.full_like(x[..., 0], 1 / eps)
        else:
            centre = x.mean(-2, keepdim=True)
            x, y = x - centre, y - centre
            self.shift = torch.zeros_like(x[..., 0])
        if C.cost == "sqeuclidean":
            self.shift, right, x = x.square().sum(-1) / eps, right - y.square().sum(-1) / eps, 2 * x
        right = right.clamp(min=_NEVER)
        largest = C.bound() / eps + torch.where(right > _NEVER, right.abs(), 0.0).amax().item()
        self.rounding = torch.finfo(dtype).eps * (1 + largest)
        if self.distance:
            self.x, self.y, self.right = x.to(dtype), y.to(dtype), right.to(dtype)
        else:
            one = torch.ones_like(x[..., :1])
            self.x = torch.cat([x / eps, one], -1).to(dtype)
            self.y = torch.cat([y, right[..., None]], -1).to(dtype).mT.contiguous()

    def __getitem__(self, i: slice) -> Tensor:
        x = self.x[..., i, :]
        if not self.distance:
            return x @ self.y
        # Distances from inner products would lose half the digits of small ones.
        C = torch.cdist(x, self.y, compute_mode="donot_use_mm_for_euclid_dist")
        return torch.add(self.right.unsqueeze(-2), C, alpha=-1 / self.eps)

    def paid(self, i: slice, T: Tensor, E: Tensor) -> Tensor:
        """Σ_j T_ij C_ij for the rows E of a slice, where the rows of T sum to 1."""
        arrived = (T @ self.known.to(T.dtype).unsqueeze(-1)).squeeze(-1)
        return self.eps * (arrived - torch.linalg.vecdot(T, E) + self.shift[..., i])
