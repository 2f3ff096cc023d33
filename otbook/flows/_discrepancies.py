"""Discrepancies between clouds that particle flows descend: of kernels, and of the negative distance."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .. import _check
from .._check import ArrayLike
from ..costs import euclidean, sqeuclidean


def mmd2(
    x: ArrayLike,
    y: ArrayLike,
    a: ArrayLike | None = None,
    b: ArrayLike | None = None,
    *,
    kernel: str = "gaussian",
    bandwidth: float,
) -> Tensor:
    """Squared MMD, Σ a_i a_j k(x_i, x_j) − 2 Σ a_i b_j k(x_i, y_j) + Σ b_i b_j k(y_i, y_j).

    The kernel k is exp(−|x − y|² / 2h²) or exp(−|x − y| / h). Not rooted. The sums include i = j, so it is
    never negative, and zero only for equal measures. Differentiable.

    Args:
        x: source points, shape (…, n, d).
        y: target points, shape (…, m, d).
        a: source weights, shape (n,) or (…, n), sum 1; None means uniform.
        b: target weights, shape (m,) or (…, m), sum 1; None means uniform.
        kernel: ``"gaussian"`` or ``"laplacian"``.
        bandwidth: h, in units of x.

    Returns:
        Squared discrepancies, shape (…), without unit.

    Raises:
        ValueError: for clouds that are empty, not finite or of different dimension, invalid weights, an
            unknown kernel, and a bandwidth that is not positive.

    Source:
        Gretton, Borgwardt, Rasch, Schölkopf, Smola (2012), equation (5), the biased statistic.

    Example:
        >>> mmd2([[0.0]], [[1.0]], bandwidth=1.0)  # 2 − 2 exp(−1/2)
        tensor(0.7869)
    """
    _check.choice(kernel, "kernel", ("gaussian", "laplacian"))
    h = _check.positive(bandwidth, "bandwidth")
    if kernel == "gaussian":
        return _discrepancy(x, y, a, b, lambda x, y: -torch.exp(sqeuclidean(x, y) / (-2 * h**2)))
    return _discrepancy(x, y, a, b, lambda x, y: -torch.exp(euclidean(x, y) / -h))


def energy_distance(
    x: ArrayLike, y: ArrayLike, a: ArrayLike | None = None, b: ArrayLike | None = None
) -> Tensor:
    """Energy distance 2 Σ a_i b_j |x_i − y_j| − Σ a_i a_j |x_i − x_j| − Σ b_i b_j |y_i − y_j|, not rooted.

    It is the squared maximum mean discrepancy of the kernel −|x − y|: never negative, zero only for equal
    measures. On the line it is 2 ∫ (F − G)² for the distribution functions F and G. Differentiable; where
    points coincide, with the subgradient 0.

    Args:
        x: source points, shape (…, n, d).
        y: target points, shape (…, m, d).
        a: source weights, shape (n,) or (…, n), sum 1; None means uniform.
        b: target weights, shape (m,) or (…, m), sum 1; None means uniform.

    Returns:
        Distances, shape (…), in units of x.

    Raises:
        ValueError: for clouds that are empty, not finite or of different dimension, and invalid weights.

    Source:
        Székely, Rizzo (2013).

    Example:
        >>> energy_distance([[0.0], [2.0]], [[1.0]])
        tensor(1.)
    """
    return _discrepancy(x, y, a, b, euclidean)


def _discrepancy(
    x: ArrayLike,
    y: ArrayLike,
    a: ArrayLike | None,
    b: ArrayLike | None,
    cost: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """2⟨a, C b⟩ − ⟨a, C a⟩ − ⟨b, C b⟩ for the cost C = −k."""
    x, y = _check.clouds(x, y)
    a = _check.weights(a, x.shape[-2], "a", like=x)
    b = _check.weights(b, y.shape[-2], "b", like=x)

    def mean(x: Tensor, a: Tensor, y: Tensor, b: Tensor) -> Tensor:
        return (a * (cost(x, y) @ b[..., None])[..., 0]).sum(-1)

    return 2 * mean(x, a, y, b) - mean(x, a, x, a) - mean(y, b, y, b)
