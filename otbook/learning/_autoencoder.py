"""What autoencoders are trained and judged by in the latent space: penalties between codes and a prior."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _check
from .._check import ArrayLike
from ..costs import sqeuclidean

#: Multiples of 2d at which the kernel is averaged when no scales are given.
_MULTIPLES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


def mmd2_unbiased(
    x: ArrayLike,
    y: ArrayLike,
    *,
    kernel: str = "imq",
    scales: float | Sequence[float] | None = None,
) -> Tensor:
    """Unbiased estimate of the squared MMD of two samples, the penalty of WAE-MMD.

    Σ_{i≠j} k(x_i, x_j) / n(n − 1) + Σ_{i≠j} k(y_i, y_j) / m(m − 1) − 2 Σ_ij k(x_i, y_j) / nm, not rooted.
    The kernel k is the mean over the scales C of the inverse multiquadrics C / (C + |x − y|²), or of
    exp(−|x − y|² / C). Without the pairs i = j the mean over samples is exactly the squared MMD of the
    laws, so single values may be negative. Differentiable.

    The statistic with i = j, never negative, is :func:`otbook.flows.mmd2`; its bandwidth h is C = 2h².

    Args:
        x: first sample, such as codes, shape (…, n, d), n ≥ 2.
        y: second sample, such as draws from the prior, shape (…, m, d), m ≥ 2.
        kernel: ``"imq"`` or ``"gaussian"``.
        scales: C, one number or several, in squared units of x. None means 2d times 0.1, 0.2, 0.5, 1, 2,
            5 and 10, which suits a prior N(0, I): 2d is then the mean of |y − y'|².

    Returns:
        Estimates, shape (…), without unit.

    Raises:
        ValueError: for clouds that are not finite, have fewer than two points or different dimensions, an
            unknown kernel, and scales that are missing or not positive.

    Source:
        Gretton, Borgwardt, Rasch, Schölkopf, Smola (2012), equation (3); Tolstikhin, Bousquet, Gelly,
        Schölkopf (2018), algorithm 2. Their paper has the single scale C = 2dσ², their programs sum over
        the seven multiples; the mean keeps k(x, x) = 1.

    Example:
        >>> x, y = [[0.0], [2.0]], [[0.0], [2.0]]
        >>> mmd2_unbiased(x, y, scales=4.0)  # ½ + ½ − 2 (1 + ½) / 2
        tensor(-0.5000)
    """
    x, y = _check.clouds(x, y)
    _check.choice(kernel, "kernel", ("imq", "gaussian"))
    n, m, d = x.shape[-2], y.shape[-2], x.shape[-1]
    for name, size in (("x", n), ("y", m)):
        if size < 2:
            raise ValueError(f"{name} has {size} point, but a pair is needed; use otbook.flows.mmd2")
    if scales is None:
        scales = [2 * d * multiple for multiple in _MULTIPLES]
    elif not isinstance(scales, Sequence):
        scales = [scales]
    scales = [_check.positive(C, "scales") for C in scales]
    if not scales:
        raise ValueError("scales is empty; give at least one number, or None for the usual seven")

    def k(D: Tensor) -> Tensor:
        values = (C / (C + D) if kernel == "imq" else torch.exp(D / -C) for C in scales)
        return sum(values) / len(scales)

    def within(z: Tensor) -> Tensor:  # k(z, z) = 1, so the pairs i = j sum to the number of points
        size = z.shape[-2]
        return (k(sqeuclidean(z, z)).sum((-1, -2)) - size) / (size * (size - 1))

    return within(x) + within(y) - 2 * k(sqeuclidean(x, y)).mean((-1, -2))


def gaussian_kl(mean: ArrayLike, log_var: ArrayLike) -> Tensor:
    """KL(N(mean, diag exp log_var) ‖ N(0, I)) = ½ Σ_k (mean_k² + exp(log_var_k) − 1 − log_var_k).

    The penalty of the variational autoencoder, for each datum. Differentiable.

    Args:
        mean: shape (…, d).
        log_var: logarithms of the variances, shape (…, d).

    Returns:
        Divergences in nats, shape (…).

    Raises:
        ValueError: for arguments that are not finite, empty, or of different shape.

    Source:
        Kingma, Welling (2014), appendix B.

    Example:
        >>> gaussian_kl([1.0, 0.0], [0.0, 0.0])
        tensor(0.5000)
    """
    mean = _check.line_points(mean, "mean", like=_check.first_array(mean, log_var))
    log_var = _check.line_points(log_var, "log_var", like=mean)
    _same_shape(mean, log_var)
    return (mean.square() + torch.expm1(log_var) - log_var).sum(-1) / 2


def aggregate_log_density(z: ArrayLike, mean: ArrayLike, log_var: ArrayLike) -> Tensor:
    """Logarithm of the density at z of the aggregate posterior q_Z = 1/n Σ_i N(mean_i, diag exp log_var_i).

    With it the mean KL of the variational autoencoder splits into the mutual information
    I(X; Z) = E [log q(Z | X) − log q_Z(Z)] and KL(q_Z ‖ p) = E [log q_Z(Z) − log p(Z)]. Differentiable.

    Args:
        z: where to evaluate, shape (…, m, d).
        mean: of the posterior of each datum, shape (…, n, d).
        log_var: logarithms of their variances, shape (…, n, d).

    Returns:
        Logarithms of the density, in nats, shape (…, m).

    Raises:
        ValueError: for clouds that are empty, not finite or of different dimension, and for ``mean`` and
            ``log_var`` of different shape.

    Source:
        Hoffman, Johnson (2016), for the split.

    Example:
        >>> aggregate_log_density([[0.0]], [[0.0]], [[0.0]])  # −½ log 2π
        tensor([-0.9189])
    """
    like = _check.first_array(z, mean, log_var)
    z = _check.points(z, "z", like=like)
    mean, log_var = _check.points(mean, "mean", like=z), _check.points(log_var, "log_var", like=z)
    _same_shape(mean, log_var)
    _check.same_dimension(z, mean, ("z", "mean"))
    n, d = mean.shape[-2:]
    # |z − mean|² / var coordinate by coordinate: without gradients no array of the size m·n·d is stored.
    exponent = 0.0
    for k in range(d):
        gap = z[..., :, None, k] - mean[..., None, :, k]
        exponent = exponent + gap.square() * torch.exp(-log_var[..., None, :, k])
    constant = log_var.sum(-1) + d * math.log(2 * math.pi)
    return torch.logsumexp((exponent + constant[..., None, :]) / -2, -1) - math.log(n)


def uncovered_share(points: ArrayLike, codes: ArrayLike, *, radius: float) -> Tensor:
    """Share of points that have no code within a radius: with draws from a prior, the size of the holes.

    Args:
        points: draws from the prior, shape (…, m, d).
        codes: encoded data, shape (…, n, d).
        radius: in units of the codes. A quantile of the distance from one sample of the prior to the
            nearest point of another, of the size n, makes the share comparable with what a perfect
            encoder would have.

    Returns:
        Shares, shape (…), between 0 and 1.

    Raises:
        ValueError: for clouds that are empty, not finite or of different dimension, and a radius ≤ 0.

    Example:
        >>> uncovered_share([[0.0], [1.0], [2.0], [9.0]], [[0.0], [1.5]], radius=0.6)
        tensor(0.2500)
    """
    points = _check.points(points, "points", like=_check.first_array(points, codes))
    codes = _check.points(codes, "codes", like=points)
    _check.same_dimension(points, codes, ("points", "codes"))
    radius = _check.positive(radius, "radius")
    nearest = torch.cdist(points.detach(), codes.detach()).amin(-1)
    return (nearest > radius).to(points.dtype).mean(-1)


def _same_shape(mean: Tensor, log_var: Tensor) -> None:
    if mean.shape != log_var.shape:
        raise ValueError(
            f"mean has shape {tuple(mean.shape)}, but log_var has {tuple(log_var.shape)}; "
            "give one logarithm of a variance for each coordinate of the mean"
        )
