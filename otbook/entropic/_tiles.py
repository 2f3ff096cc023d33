"""Blocks of the exponents left_i + right_j − C_ij/ε of two clouds, each one matrix product.

For the squared Euclidean cost C_ij = ‖x_i‖² + ‖y_j‖² − 2⟨x_i, y_j⟩, and for the cosine cost
C_ij = 1 − ⟨x_i, y_j⟩ for unit vectors: the squares join the potentials, and the potentials join the
clouds as two more coordinates.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..costs import PointCloudCost


class Exponents:
    """The matrix E_ij = left_i + right_j − C_ij/ε; ``E[i]`` makes the rows of a slice in one precision.

    ``left`` (…, n) is finite, ``right`` (…, m) may be −∞. The clouds are centred, in the precision of
    ``left``, before anything is rounded; ``rounding`` bounds the error of an entry.
    """

    def __init__(
        self, C: PointCloudCost, left: Tensor, right: Tensor, eps: float, dtype: torch.dtype
    ) -> None:
        x, y = C.x.to(left.dtype), C.y.to(left.dtype)
        self.eps, self.dtype, self.distance = eps, dtype, C.cost == "euclidean"
        if C.cost == "cosine":
            x, y = (z / torch.linalg.vector_norm(z, dim=-1, keepdim=True) for z in (x, y))
            left = left - 1 / eps
        else:
            centre = x.mean(-2, keepdim=True)
            x, y = x - centre, y - centre
        squares = x.square().sum(-1), y.square().sum(-1)
        radii = (square.amax().sqrt() for square in squares)
        if C.cost == "sqeuclidean":
            x = 2 * x
            left, right = left - squares[0] / eps, right - squares[1] / eps
        # An infinite entry of the product would meet the zeros of no row, but finite ones are safer.
        right = right.clamp(min=-1e30)
        largest = torch.stack([2 * torch.stack(list(radii)).prod() / eps, *map(_largest, (left, right))])
        if self.distance:
            self.x, self.y, self.left, self.right = x, y, left, right
            largest[0] = torch.cdist(x[..., :1, :], y).amax() * 2 / eps
        else:
            one = torch.ones_like
            self.x = torch.cat([x / eps, left[..., None], one(left[..., None])], -1).to(dtype)
            self.y = torch.cat([y, one(right[..., None]), right[..., None]], -1).to(dtype).mT.contiguous()
        self.rounding = torch.finfo(dtype).eps * (1 + largest.sum().item())

    def __getitem__(self, i: slice) -> Tensor:
        if not self.distance:
            return self.x[..., i, :] @ self.y
        E = torch.cdist(
            self.x[..., i, :].to(self.dtype),
            self.y.to(self.dtype),
            compute_mode="donot_use_mm_for_euclid_dist",
        )
        return (
            E.mul_(-1 / self.eps)
            .add_(self.right.to(self.dtype).unsqueeze(-2))
            .add_(self.left.to(self.dtype)[..., i, None])
        )


def _largest(t: Tensor) -> Tensor:
    """The largest magnitude of the entries that count."""
    return torch.where(t > -1e29, t.abs(), 0.0).amax()
