"""Ground costs: matrices C with C[i, j] = c(x_i, y_j), differentiable in both clouds.

Every function takes x of shape (…, n, d) and y of shape (…, m, d) and returns (…, n, m).
Gradients are finite everywhere, also where two points coincide. :class:`PointCloudCost` stands for
such a matrix without storing it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import _check
from ._check import ArrayLike

#: Up to this dimension distances are summed coordinate by coordinate, which is exact for
#: coincident points; above it one matrix product is several times faster.
_EXACT_DIMENSION = 16


def sqeuclidean(x: ArrayLike, y: ArrayLike) -> Tensor:
    """Squared Euclidean cost C_ij = ‖x_i − y_j‖², without a factor ½.

    Args:
        x: source points, shape (…, n, d).
        y: target points, shape (…, m, d).

    Returns:
        Costs (…, n, m), in squared units of x; zero where points coincide.

    Raises:
        ValueError: for empty clouds, entries that are not finite, or clouds that differ in
            dimension, dtype or device.
        MemoryError: for a matrix that cannot be stored; :class:`PointCloudCost` needs no matrix.

    Note:
        For d > 16 the cost is expanded as ‖x‖² + ‖y‖² − 2⟨x, y⟩ after centring; its
        absolute error is then a few units of rounding of the largest squared radius.

    Example:
        >>> sqeuclidean([[0.0], [1.0]], [[0.0], [3.0]])
        tensor([[0., 9.],
                [1., 4.]])
    """
    x, y = _check.clouds(x, y)
    with _check.memory(_shape(x, y), x.dtype):
        if x.shape[-1] <= _EXACT_DIMENSION:
            total = (x[..., :, None, 0] - y[..., None, :, 0]).square()
            for k in range(1, x.shape[-1]):
                total = total + (x[..., :, None, k] - y[..., None, :, k]).square()
            return total
        centre = x.detach().mean(-2, keepdim=True)
        x, y = x - centre, y - centre
        squares = x.square().sum(-1)[..., :, None] + y.square().sum(-1)[..., None, :]
        return (squares - 2 * x @ y.mT).clamp(min=0)


def euclidean(x: ArrayLike, y: ArrayLike) -> Tensor:
    """Euclidean cost C_ij = ‖x_i − y_j‖, the ground distance of W₁.

    The gradient where two points coincide is taken to be 0, a subgradient.

    Args:
        x: source points, shape (…, n, d).
        y: target points, shape (…, m, d).

    Returns:
        Costs (…, n, m), in units of x.

    Raises:
        ValueError: as for :func:`sqeuclidean`.

    Example:
        >>> euclidean([[0.0, 0.0]], [[3.0, 4.0]])
        tensor([[5.]])
    """
    x, y = _check.clouds(x, y)
    dtype = x.dtype
    if x.shape[-1] > _EXACT_DIMENSION and x.device.type != "mps":
        x, y = x.double(), y.double()  # the root would make much of the rounding of squares near 0
    squared = sqeuclidean(x, y)
    with _check.memory(squared.shape, squared.dtype):
        apart = squared > 0
        # The square root sees 1 where points coincide, so that its derivative stays finite.
        return torch.where(apart, torch.where(apart, squared, 1.0).sqrt(), 0.0).to(dtype)


def cosine(x: ArrayLike, y: ArrayLike) -> Tensor:
    """Cosine cost C_ij = 1 − ⟨x_i, y_j⟩ / (‖x_i‖ ‖y_j‖), between 0 and 2.

    Args:
        x: source vectors, shape (…, n, d).
        y: target vectors, shape (…, m, d).

    Returns:
        Costs (…, n, m), without unit.

    Raises:
        ValueError: as for :func:`sqeuclidean`, and for a zero vector, which has no direction.

    Example:
        >>> cosine([[1.0, 0.0]], [[2.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
        tensor([[0., 1., 2.]])
    """
    x, y = _check.clouds(x, y)
    for name, cloud in (("x", x), ("y", y)):
        if (cloud.detach() == 0).all(-1).any():
            raise ValueError(
                f"{name} holds a zero vector, which has no direction; remove it or add a constant feature"
            )
    unit_x = x / torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    unit_y = y / torch.linalg.vector_norm(y, dim=-1, keepdim=True)
    with _check.memory(_shape(x, y), x.dtype):
        return (1 - unit_x @ unit_y.mT).clamp(min=0)


def lp(x: ArrayLike, y: ArrayLike, *, p: float) -> Tensor:
    """ℓᵖ cost to the power p, C_ij = Σ_k |x_ik − y_jk|ᵖ, so that p = 2 is the squared Euclidean cost.

    Args:
        x: source points, shape (…, n, d).
        y: target points, shape (…, m, d).
        p: exponent, at least 1.

    Returns:
        Costs (…, n, m), in units of x to the power p; not rooted.

    Raises:
        ValueError: as for :func:`sqeuclidean`, and for p < 1.

    Example:
        >>> lp([[0.0, 0.0]], [[1.0, 2.0]], p=3)
        tensor([[9.]])
    """
    x, y = _check.clouds(x, y)
    p = _check.positive(p, "p")
    if p < 1:
        raise ValueError(f"p must be at least 1 for a convex cost, but is {p:g}")
    with _check.memory(_shape(x, y), x.dtype):
        total = (x[..., :, None, 0] - y[..., None, :, 0]).abs() ** p
        for k in range(1, x.shape[-1]):
            total = total + (x[..., :, None, k] - y[..., None, :, k]).abs() ** p
        return total


def _shape(x: Tensor, y: Tensor) -> torch.Size:
    """The shape of the costs between two clouds."""
    return torch.Size((*max(x.shape[:-2], y.shape[:-2], key=len), x.shape[-2], y.shape[-2]))


#: The ground costs that a name selects; each is symmetric and vanishes where two points coincide.
BY_NAME = {"sqeuclidean": sqeuclidean, "euclidean": euclidean, "cosine": cosine}


class PointCloudCost:
    """The ground cost C_ij = c(x_i, y_j) of two clouds, computed a few rows at a time, never stored.

    :func:`~otbook.sinkhorn` then uses memory proportional to n + m instead of n·m; solvers that need the
    matrix form it.

    Args:
        x: source points, shape (…, n, d).
        y: target points, shape (…, m, d), with the same leading axes.
        cost: ``"sqeuclidean"`` (‖x − y‖², without ½), ``"euclidean"`` or ``"cosine"``.

    Raises:
        ValueError: as for :func:`sqeuclidean`, for leading axes that differ and for an unknown cost.

    Example:
        >>> C = PointCloudCost([[0.0], [1.0]], [[0.0], [3.0]])
        >>> C.shape
        torch.Size([2, 2])
        >>> C[..., 1:2, :]
        tensor([[1., 4.]])
    """

    def __init__(self, x: ArrayLike, y: ArrayLike, cost: str = "sqeuclidean") -> None:
        self.x, self.y = _check.clouds(x, y)
        if self.x.shape[:-2] != self.y.shape[:-2]:
            raise ValueError(
                f"the batch shapes do not agree: x {tuple(self.x.shape[:-2])}, y {tuple(self.y.shape[:-2])}; "
                "make the leading axes equal"
            )
        self.cost = _check.choice(cost, "cost", tuple(BY_NAME))

    @property
    def shape(self) -> torch.Size:
        return torch.Size((*self.x.shape[:-1], self.y.shape[-2]))

    @property
    def dtype(self) -> torch.dtype:
        return self.x.dtype

    @property
    def device(self) -> torch.device:
        return self.x.device

    @property
    def ndim(self) -> int:
        return self.x.ndim

    @property
    def mT(self) -> PointCloudCost:
        return PointCloudCost(self.y, self.x, self.cost)

    def numel(self) -> int:
        """The number of entries that a stored matrix would have."""
        return self.shape.numel()

    def bound(self) -> float:
        """A bound of the largest entry, from the radii of the clouds."""
        if self.cost == "cosine":
            return 2.0
        centre = self.x.detach().mean(-2, keepdim=True)
        radii = ((z.detach() - centre).square().sum(-1).max().sqrt() for z in (self.x, self.y))
        return sum(radii).item() ** (2 if self.cost == "sqeuclidean" else 1)

    def detach(self) -> PointCloudCost:
        """The same cost without gradients."""
        return PointCloudCost(self.x.detach(), self.y.detach(), self.cost)

    def __getitem__(self, index: tuple[type(...), slice, slice]) -> Tensor:
        """Some rows, ``C[..., i, :]`` for a slice i, as a tensor (…, k, m) that is differentiable."""
        _, rows, _ = index
        return BY_NAME[self.cost](self.x[..., rows, :], self.y)

    def dense(self) -> Tensor:
        """The whole matrix, shape (…, n, m)."""
        return self[..., :, :]
