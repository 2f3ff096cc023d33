"""Distribution and quantile functions on the line, and the monotone map that they compose to."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .._check import ArrayLike
from ._measure import cumulative, measure, pair, queries, rounding, sort


def cdf(x: ArrayLike, t: ArrayLike, a: ArrayLike | None = None) -> Tensor:
    """Distribution function F(t) = Σ_i a_i 1[x_i ≤ t], continuous from the right.

    Args:
        x: atoms, shape (…, n).
        t: where to evaluate, shape (…, k) with the same leading axes; any shape if x is (n,).
        a: weights, shape (n,) or (…, n), sum 1; uniform if None.

    Returns:
        F(t), between 0 and 1, with the shape of t.

    Raises:
        ValueError: for atoms that are empty or not finite, or invalid weights.

    Example:
        >>> cdf([0.0, 1.0], [-1.0, 0.0, 0.5, 1.0])
        tensor([0.0000, 0.5000, 0.5000, 1.0000])
    """
    x, a = measure(x, a, "x", "a")
    t = queries(t, "t", x)
    return _cdf(x, a, t).to(x.dtype)


def quantile(x: ArrayLike, q: ArrayLike, a: ArrayLike | None = None) -> Tensor:
    """Quantile function F⁻¹(q) = inf {t : F(t) ≥ q}; at q = 0 the smallest atom that has mass.

    Args:
        x: atoms, shape (…, n).
        q: levels in [0, 1], shape (…, k) with the same leading axes; any shape if x is (n,).
        a: weights, shape (n,) or (…, n), sum 1; uniform if None.

    Returns:
        Atoms of x, with the shape of q; differentiable in x.

    Raises:
        ValueError: as for :func:`cdf`, and for levels outside [0, 1].

    Example:
        >>> quantile([3.0, 1.0, 2.0], [0.0, 0.3, 0.4, 1.0])
        tensor([1., 1., 2., 3.])
    """
    x, a = measure(x, a, "x", "a")
    q = queries(q, "q", x)
    if ((q < 0) | (q > 1)).any():
        raise ValueError(f"q must lie in [0, 1], but holds {q[(q < 0) | (q > 1)][0].item():g}")
    return _quantile(x, a, q.double())


def quantile_map(
    x: ArrayLike, y: ArrayLike, a: ArrayLike | None = None, b: ArrayLike | None = None
) -> Callable[[ArrayLike], Tensor]:
    """The monotone map T = G⁻¹∘F from the law of x to the law of y.

    Where F is continuous T pushes the first law to the second and is optimal for every convex cost
    c(x − y). An atom cannot be split by a map: T sends it where its right limit F(t) points, so
    that T pushes x to y if and only if every level of G is one of F. For samples of equal size and
    weight it is: T sends the i-th smallest x to the i-th smallest y.

    Args:
        x: source atoms, shape (…, n).
        y: target atoms, shape (…, m).
        a: source weights, shape (n,) or (…, n), sum 1; uniform if None.
        b: target weights, shape (m,) or (…, m), sum 1; uniform if None.

    Returns:
        A function t ↦ T(t), for t of shape (…, k), any shape if x and y are (n,) and (m,);
        constant between atoms of x, and differentiable in y.

    Raises:
        ValueError: for atoms that are empty or not finite, or invalid weights.

    Source:
        Peyré and Cuturi (2019), remark 2.30; Santambrogio (2015), chapter 2.

    Example:
        >>> T = quantile_map([0.0, 1.0, 2.0], [9.0, 7.0, 8.0])
        >>> T([1.0, 0.0, 2.0])
        tensor([8., 7., 9.])
    """
    x, y, a, b = pair(x, y, a, b)

    def transport(t: ArrayLike) -> Tensor:
        return _quantile(y, b, _cdf(x, a, queries(t, "t", x)))

    return transport


def _cdf(x: Tensor, a: Tensor, t: Tensor) -> Tensor:
    """F(t) in float64."""
    x, rank = sort(x.detach())
    levels = cumulative(a.gather(-1, rank))
    steps = torch.cat([torch.zeros_like(levels[..., :1]), levels], -1)
    return _take(steps, torch.searchsorted(x, t.detach().contiguous(), right=True))


def _quantile(y: Tensor, b: Tensor, q: Tensor) -> Tensor:
    """G⁻¹(q); a level of G that q exceeds by rounding only counts as reached."""
    y, rank = sort(y)
    levels = cumulative(b.gather(-1, rank)).detach()
    # Above 0, so that an atom without mass is no quantile.
    q = (q.detach() - rounding(y, y.shape[-1])).clamp(min=torch.finfo(torch.float64).tiny)
    return _take(y, torch.searchsorted(levels, q.contiguous()))


def _take(values: Tensor, index: Tensor) -> Tensor:
    return values[index] if values.ndim == 1 else values.gather(-1, index)
