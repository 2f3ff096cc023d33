"""The monotone coupling on the line and what it costs, W_p."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .._check import ArrayLike
from ._measure import cumulative, pair, rounding, sort, sort_values, uniform


def monotone_plan(
    x: ArrayLike, y: ArrayLike, a: ArrayLike | None = None, b: ArrayLike | None = None
) -> Tensor:
    """The monotone coupling P, optimal on the line for every convex cost c(x − y).

    P_ij is the length of the levels q at which both F⁻¹(q) = x_i and G⁻¹(q) = y_j: in sorted order
    the north-west corner rule. At most n + m − 1 entries are positive.

    Args:
        x: source atoms, shape (…, n), in any order.
        y: target atoms, shape (…, m), in any order.
        a: source weights, shape (n,) or (…, n), sum 1; uniform if None.
        b: target weights, shape (m,) or (…, m), sum 1; uniform if None.

    Returns:
        The plan, shape (…, n, m).

    Raises:
        ValueError: as for :func:`quantile_map`.

    Source:
        Peyré and Cuturi (2019), section 3.4.2 and remark 2.30.

    Example:
        >>> monotone_plan([0.0, 1.0], [5.0, 4.0], [0.5, 0.5], [0.75, 0.25])
        tensor([[0.2500, 0.2500],
                [0.5000, 0.0000]])
    """
    x, y, a, b = pair(x, y, a, b)
    n, m = x.shape[-1], y.shape[-1]
    rank_x, rank_y = sort(x)[1], sort(y)[1]
    i, j, mass = _staircase(a.gather(-1, rank_x), b.gather(-1, rank_y), rounding(x, n + m))
    entry = rank_x.gather(-1, i) * m + rank_y.gather(-1, j)
    plan = mass.new_zeros(*x.shape[:-1], n * m).scatter_add(-1, entry, mass)
    return plan.unflatten(-1, (n, m)).to(x.dtype)


def wasserstein_1d(
    x: ArrayLike, y: ArrayLike, a: ArrayLike | None = None, b: ArrayLike | None = None, *, p: float = 2
) -> Tensor:
    """Wasserstein distance on the line, W_p = (∫₀¹ |F⁻¹(q) − G⁻¹(q)|ᵖ dq)^{1/p}: the root is taken.

    Differentiable in x and y, and in the weights up to an additive constant. At W_p = 0, where the
    distance has a kink, the derivative is taken to be 0; so W_p ** p has the right one everywhere.

    Args:
        x: source atoms, shape (…, n), in any order.
        y: target atoms, shape (…, m), in any order.
        a: source weights, shape (n,) or (…, n), sum 1; uniform if None.
        b: target weights, shape (m,) or (…, m), sum 1; uniform if None.
        p: order, at least 1, not necessarily whole; ``math.inf`` for the largest displacement.

    Returns:
        Distances, shape (…), in units of x.

    Raises:
        ValueError: for atoms that are empty or not finite, invalid weights, or p < 1.

    Source:
        Peyré and Cuturi (2019), remark 2.30.

    Example:
        >>> wasserstein_1d([0.0, 1.0], [5.0, 4.0])
        tensor(4.)
        >>> wasserstein_1d([0.0], [0.0, 1.0], b=[0.75, 0.25], p=1)
        tensor(0.2500)
    """
    p = exponent(p)
    unweighted = a is None and b is None
    x, y, a, b = pair(x, y, a, b)
    return distance(x, y, *((None, None) if unweighted else (a, b)), p)


def distance(x: Tensor, y: Tensor, a: Tensor | None, b: Tensor | None, p: float) -> Tensor:
    """W_p of checked arguments whose leading axes broadcast; no weights at all means uniform."""
    n, m = x.shape[-1], y.shape[-1]
    if a is None and b is None and n == m:
        return power_mean((sort_values(x) - sort_values(y)).abs(), None, p)
    x, a = _sorted_measure(x, a)
    y, b = _sorted_measure(y, b)
    i, j, width = _staircase(a, b, rounding(x, n + m))
    gaps = torch.take_along_dim(x, i, -1) - torch.take_along_dim(y, j, -1)
    return power_mean(gaps.abs(), width.to(x.dtype), p)


def _sorted_measure(x: Tensor, a: Tensor | None) -> tuple[Tensor, Tensor]:
    """Atoms in ascending order with their weights; None means uniform."""
    if a is None:
        return sort_values(x), uniform(x)
    x, ranks = sort(x)
    return x, torch.take_along_dim(a, ranks, -1)


def _staircase(a: Tensor, b: Tensor, tol: float) -> tuple[Tensor, Tensor, Tensor]:
    """The north-west corner rule: n + m steps (i, j, mass) that couple sorted weights a and b.

    The levels of both distribution functions, merged, cut [0, 1] into intervals on which both
    quantile functions are constant: at atom number i = how many levels of a lie below.
    """
    batch = torch.broadcast_shapes(a.shape[:-1], b.shape[:-1])
    n, m = a.shape[-1], b.shape[-1]
    A, B = cumulative(a).expand(*batch, n).contiguous(), cumulative(b).expand(*batch, m).contiguous()
    above = torch.searchsorted(A.detach(), B.detach()).clamp(max=n - 1)
    upper, lower = (A.detach().gather(-1, k) for k in (above, (above - 1).clamp(min=0)))
    nearest = torch.where(upper - B < B - lower, upper, lower)
    # Moved onto the nearest level of a, but still a function of b for gradients.
    B = torch.where((B - nearest).abs() <= tol, nearest + (B - B.detach()), B)
    levels, order = torch.cat([A, B], -1).sort(dim=-1, stable=True)
    of_a = (order < n).long()
    i = (of_a.cumsum(-1) - of_a).clamp(max=n - 1)
    j = ((1 - of_a).cumsum(-1) - (1 - of_a)).clamp(max=m - 1)
    return i, j, torch.diff(levels, dim=-1, prepend=torch.zeros_like(levels[..., :1]))


def power_mean(d: Tensor, w: Tensor | None, p: float) -> Tensor:
    """(Σ w dᵖ)^{1/p} for d ≥ 0, without over- or underflow and with derivative 0 where it is 0.

    Without weights it is the plain mean.
    """
    largest = (d if w is None else torch.where(w > 0, d, 0.0)).amax(-1)
    if math.isinf(p):
        return largest
    # By homogeneity the scale is a constant for gradients.
    scale = torch.where(largest > 0, largest, 1.0).detach()
    relative = d / scale[..., None]
    if w is None:
        total = (relative**p).mean(-1)
    else:
        # Only points without mass can lie beyond the scale; the bound keeps 0 · ∞ away from them.
        total = (w * relative.clamp(max=torch.finfo(d.dtype).max ** (0.5 / p)) ** p).sum(-1)
    apart = total > 0
    return torch.where(apart, scale * torch.where(apart, total, 1.0) ** (1 / p), 0.0)


def exponent(p: float) -> float:
    """A checked order of the distance."""
    if isinstance(p, bool) or not isinstance(p, (int, float)):
        raise TypeError(f"p must be a number of at least 1, but a {type(p).__name__} was given")
    if not p >= 1:
        raise ValueError(f"p must be at least 1 for a distance, but is {p:g}")
    return float(p)
