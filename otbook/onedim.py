"""Transport on the line, in closed form: sorting is solving; and its use along random directions.

Everything rests on the quantile function G⁻¹(q) = inf {t : G(t) ≥ q}. Cumulative weights are
kept in float64, and two levels that differ by rounding only count as one level.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from . import _check
from ._check import ArrayLike

#: Projected points that `sliced_wasserstein` sorts at a time.
_CHUNK = 2**24


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
    x, a = _measure(x, a, "x", "a")
    t = _queries(t, "t", x)
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
    x, a = _measure(x, a, "x", "a")
    q = _queries(q, "q", x)
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
    x, y, a, b = _pair(x, y, a, b)

    def transport(t: ArrayLike) -> Tensor:
        return _quantile(y, b, _cdf(x, a, _queries(t, "t", x)))

    return transport


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
    x, y, a, b = _pair(x, y, a, b)
    n, m = x.shape[-1], y.shape[-1]
    rank_x, rank_y = x.argsort(-1), y.argsort(-1)
    i, j, mass = _staircase(a.gather(-1, rank_x), b.gather(-1, rank_y), _rounding(x, n + m))
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
    p = _order(p)
    uniform = a is None and b is None
    x, y, a, b = _pair(x, y, a, b)
    return _wasserstein_1d(x, y, *((None, None) if uniform else (a, b)), p)


def sliced_wasserstein(
    x: ArrayLike,
    y: ArrayLike,
    a: ArrayLike | None = None,
    b: ArrayLike | None = None,
    *,
    p: float = 2,
    n_projections: int,
    generator: torch.Generator,
) -> Tensor:
    """Sliced Wasserstein distance, SW_p = (E_θ W_p(⟨θ, x⟩, ⟨θ, y⟩)ᵖ)^{1/p}: the root is taken.

    The mean is over ``n_projections`` directions θ drawn uniformly from the unit sphere; SW_pᵖ is
    unbiased, with standard error of order n_projections^{-1/2}. Differentiable in x and y.

    Args:
        x: source points, shape (…, n, d).
        y: target points, shape (…, m, d).
        a: source weights, shape (n,) or (…, n), sum 1; uniform if None.
        b: target weights, shape (m,) or (…, m), sum 1; uniform if None.
        p: order, at least 1 and finite.
        n_projections: number of directions, shared by the whole batch.
        generator: source of the directions, for example ``torch.Generator().manual_seed(0)``.

    Returns:
        Distances, shape (…), in units of x.

    Raises:
        ValueError: for clouds that are empty, not finite or of different dimension, invalid weights,
            p < 1 or n_projections < 1.
        TypeError: if generator is not a ``torch.Generator``.

    Source:
        Rabin, Peyré, Delon, Bernot (2012); Bonneel, Rabin, Peyré, Pfister (2015).

    Example:
        >>> x = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
        >>> rng = torch.Generator().manual_seed(0)
        >>> sliced_wasserstein(x, x.flip(0), n_projections=10, generator=rng)
        tensor(0.)
    """
    p = _order(p)
    if math.isinf(p):
        raise ValueError("p must be finite for the sliced distance, but is inf; take a large p instead")
    n_projections = _check.positive_int(n_projections, "n_projections")
    if not isinstance(generator, torch.Generator):
        raise TypeError(
            f"generator must be a torch.Generator, but a {type(generator).__name__} was given; "
            "write torch.Generator().manual_seed(0)"
        )
    x, y = _check.clouds(x, y)
    if a is not None:
        a = _check.weights(a, x.shape[-2], "a", like=x).double().unsqueeze(-2)
    if b is not None:
        b = _check.weights(b, y.shape[-2], "b", like=x).double().unsqueeze(-2)
    _check.batch(
        {name: t.shape[:-2] for name, t in (("x", x), ("y", y), ("a", a), ("b", b)) if t is not None}
    )
    theta = torch.randn(
        n_projections, x.shape[-1], generator=generator, device=generator.device, dtype=torch.float64
    ).to(x)
    theta = theta / torch.linalg.vector_norm(theta, dim=-1, keepdim=True)
    chunk = max(1, _CHUNK * x.shape[-1] // (x.numel() + y.numel()))
    slices = [_wasserstein_1d(part @ x.mT, part @ y.mT, a, b, p) for part in theta.split(chunk)]
    uniform = torch.full((n_projections,), 1 / n_projections, dtype=x.dtype, device=x.device)
    return _power_mean(torch.cat(slices, -1), uniform, p)


def _wasserstein_1d(x: Tensor, y: Tensor, a: Tensor | None, b: Tensor | None, p: float) -> Tensor:
    """W_p of checked arguments whose leading axes broadcast; no weights at all means uniform."""
    x, rank_x = x.sort(-1)
    y, rank_y = y.sort(-1)
    n, m = x.shape[-1], y.shape[-1]
    if a is None and b is None and n == m:
        return _power_mean((x - y).abs(), x.new_full((n,), 1 / n), p)
    a = _uniform(x) if a is None else torch.take_along_dim(a, rank_x, -1)
    b = _uniform(y) if b is None else torch.take_along_dim(b, rank_y, -1)
    i, j, width = _staircase(a, b, _rounding(x, n + m))
    gaps = torch.take_along_dim(x, i, -1) - torch.take_along_dim(y, j, -1)
    return _power_mean(gaps.abs(), width.to(x.dtype), p)


def _staircase(a: Tensor, b: Tensor, tol: float) -> tuple[Tensor, Tensor, Tensor]:
    """The north-west corner rule: n + m steps (i, j, mass) that couple sorted weights a and b.

    The levels of both distribution functions, merged, cut [0, 1] into intervals on which both
    quantile functions are constant: at atom number i = how many levels of a lie below.
    """
    batch = torch.broadcast_shapes(a.shape[:-1], b.shape[:-1])
    n, m = a.shape[-1], b.shape[-1]
    A, B = _levels(a).expand(*batch, n).contiguous(), _levels(b).expand(*batch, m).contiguous()
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


def _power_mean(d: Tensor, w: Tensor, p: float) -> Tensor:
    """(Σ w dᵖ)^{1/p} for d ≥ 0, without over- or underflow and with derivative 0 where it is 0."""
    largest = torch.where(w > 0, d, 0.0).amax(-1)
    if math.isinf(p):
        return largest
    # By homogeneity the scale is a constant for gradients.
    scale = torch.where(largest > 0, largest, 1.0).detach()
    # Only points without mass can lie beyond the scale; the bound keeps 0 · ∞ away from them.
    bound = torch.finfo(d.dtype).max ** (0.5 / p)
    total = (w * (d / scale[..., None]).clamp(max=bound) ** p).sum(-1)
    apart = total > 0
    return torch.where(apart, scale * torch.where(apart, total, 1.0) ** (1 / p), 0.0)


def _cdf(x: Tensor, a: Tensor, t: Tensor) -> Tensor:
    """F(t) in float64."""
    x, rank = x.detach().sort(-1)
    levels = _levels(a.gather(-1, rank))
    steps = torch.cat([torch.zeros_like(levels[..., :1]), levels], -1)
    return _take(steps, torch.searchsorted(x, t.detach().contiguous(), right=True))


def _quantile(y: Tensor, b: Tensor, q: Tensor) -> Tensor:
    """G⁻¹(q); a level of G that q exceeds by rounding only counts as reached."""
    y, rank = y.sort(-1)
    levels = _levels(b.gather(-1, rank)).detach()
    # Above 0, so that an atom without mass is no quantile.
    q = (q.detach() - _rounding(y, y.shape[-1])).clamp(min=torch.finfo(torch.float64).tiny)
    return _take(y, torch.searchsorted(levels, q.contiguous()))


def _levels(a: Tensor) -> Tensor:
    """Cumulative weights; the last is 1 exactly."""
    total = a.cumsum(-1)
    return total / total[..., -1:].detach()


def _take(values: Tensor, index: Tensor) -> Tensor:
    return values[index] if values.ndim == 1 else values.gather(-1, index)


def _rounding(x: Tensor, n: int) -> float:
    """How far two equal cumulative weights may differ: stored in the dtype of x, n times added."""
    return torch.finfo(x.dtype).eps + n * torch.finfo(torch.float64).eps


def _uniform(x: Tensor) -> Tensor:
    return torch.full_like(x, 1 / x.shape[-1], dtype=torch.float64).detach()


def _weights(a: ArrayLike | None, x: Tensor, name: str) -> Tensor:
    """Checked weights of sorted-to-be points x, in float64."""
    return _uniform(x) if a is None else _check.weights(a, x.shape[-1], name, like=x).double()


def _measure(x: ArrayLike, a: ArrayLike | None, name: str, name_a: str) -> tuple[Tensor, Tensor]:
    """A checked measure with points and weights (…, n)."""
    x = _check.line_points(x, name)
    a = _weights(a, x, name_a)
    batch = _check.batch({name: x.shape[:-1], name_a: a.shape[:-1]})
    return x.expand(*batch, -1), a.expand(*batch, -1)


def _pair(
    x: ArrayLike, y: ArrayLike, a: ArrayLike | None, b: ArrayLike | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Two checked measures with common leading axes."""
    x = _check.line_points(x, "x", like=y if isinstance(y, Tensor) and not isinstance(x, Tensor) else None)
    y = _check.line_points(y, "y", like=x)
    a, b = _weights(a, x, "a"), _weights(b, y, "b")
    batch = _check.batch({name: t.shape[:-1] for name, t in (("x", x), ("y", y), ("a", a), ("b", b))})
    return tuple(t.expand(*batch, -1) for t in (x, y, a, b))


def _queries(t: ArrayLike, name: str, x: Tensor) -> Tensor:
    """Where to evaluate a function of the measure x: numbers with its leading axes."""
    t = _check.tensor(t, name, like=x)
    if torch.isnan(t).any():
        raise ValueError(f"{name} holds NaN; remove it")
    if x.ndim == 1:
        return t
    if t.ndim == 0 or t.shape[:-1] not in (x.shape[:-1], torch.Size()):
        raise ValueError(
            f"{name} must have shape {(*x.shape[:-1], 'k')} or ('k',), but has shape {tuple(t.shape)}"
        )
    return t.expand(*x.shape[:-1], t.shape[-1])


def _order(p: float) -> float:
    if isinstance(p, bool) or not isinstance(p, (int, float)):
        raise TypeError(f"p must be a number of at least 1, but a {type(p).__name__} was given")
    if not p >= 1:
        raise ValueError(f"p must be at least 1 for a distance, but is {p:g}")
    return float(p)
