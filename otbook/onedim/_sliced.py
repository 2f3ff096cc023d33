"""Transport along directions: the mean and the maximum over the sphere of distances on the line."""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor

from .. import _check
from .._check import ArrayLike
from .._result import ConvergenceWarning
from ._distance import distance, exponent, power_mean

#: Projected points that `sliced_wasserstein` sorts at a time.
_CHUNK = 2**22

#: A step of the ascent counts if it gains this share of what the slope promises (Armijo's rule).
_ARMIJO = 1e-2


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
    p = exponent(p)
    if math.isinf(p):
        raise ValueError("p must be finite for the sliced distance, but is inf; use max_sliced_wasserstein")
    n_projections = _check.positive_int(n_projections, "n_projections")
    x, y, a, b = _measures(x, y, a, b)
    theta = _directions(n_projections, x, generator)
    chunk = max(1, _CHUNK * x.shape[-1] // (x.numel() + y.numel()))
    slices = [distance(part @ x.mT, part @ y.mT, a, b, p) for part in theta.split(chunk)]
    return power_mean(torch.cat(slices, -1), None, p)


def max_sliced_wasserstein(
    x: ArrayLike,
    y: ArrayLike,
    a: ArrayLike | None = None,
    b: ArrayLike | None = None,
    *,
    p: float = 2,
    n_starts: int = 16,
    tol: float = 1e-4,
    max_iter: int = 200,
    generator: torch.Generator,
) -> Tensor:
    """Max-sliced Wasserstein distance, max_θ W_p(⟨θ, x⟩, ⟨θ, y⟩) over unit vectors θ: the root is taken.

    The direction comes from :func:`max_sliced_direction`; it is the best of local searches, so the
    number is a lower bound of the maximum, and of W_p(x, y). Differentiable in x, y and the weights:
    by the envelope theorem the best direction is a constant.

    Args:
        x: source points, shape (…, n, d).
        y: target points, shape (…, m, d).
        a: source weights, shape (n,) or (…, n), sum 1; uniform if None.
        b: target weights, shape (m,) or (…, m), sum 1; uniform if None.
        p: order, at least 1; ``math.inf`` for the largest displacement.
        n_starts: number of random directions to start from.
        tol: stop when no step of this length, in radians, leads up.
        max_iter: largest number of steps.
        generator: source of the starts, for example ``torch.Generator().manual_seed(0)``.

    Returns:
        Distances, shape (…), in units of x.

    Raises:
        ValueError: for clouds that are empty, not finite or of different dimension, invalid weights,
            p < 1, or options that are not positive.
        TypeError: if generator is not a ``torch.Generator``.

    Warns:
        ConvergenceWarning: when the best search still moves by more than ``tol`` after ``max_iter`` steps.

    Source:
        Deshpande et al. (2019); Kolouri et al. (2019), for the projected ascent.

    Example:
        >>> x = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
        >>> rng = torch.Generator().manual_seed(0)
        >>> distance = max_sliced_wasserstein(x, x + torch.tensor([3.0, 4.0]), generator=rng)
        >>> print(f"{distance:.4f}")
        5.0000
    """
    options = {"p": p, "n_starts": n_starts, "tol": tol, "max_iter": max_iter, "generator": generator}
    x, y, a, b = _measures(x, y, a, b)
    theta = _ascend(x, y, a, b, **options)
    # Sums, not matrix products: they round a point alike wherever it stands, so that equal clouds stay equal.
    projected = ((theta * z).sum(-1).unsqueeze(-2) for z in (x, y))
    return distance(*projected, a, b, exponent(p)).squeeze(-1)


def max_sliced_direction(
    x: ArrayLike,
    y: ArrayLike,
    a: ArrayLike | None = None,
    b: ArrayLike | None = None,
    *,
    p: float = 2,
    n_starts: int = 16,
    tol: float = 1e-4,
    max_iter: int = 200,
    generator: torch.Generator,
) -> Tensor:
    """The direction along which two measures differ most, argmax_θ W_p(⟨θ, x⟩, ⟨θ, y⟩).

    W(θ) is homogeneous of degree 1, so ⟨∇W(θ), θ⟩ = W(θ), and ∇W/W − θ is the tangent direction of
    steepest ascent, free of units. A step of size 1 along it replaces θ by the direction of ∇W, as
    the power method does; each start halves its step where it gains too little and doubles it where it
    gains enough. W is not concave, and it has ridges where projected points change places, on which an
    ascent may end early: the best of ``n_starts`` local searches is returned.

    Args:
        x: source points, shape (…, n, d).
        y: target points, shape (…, m, d).
        a: source weights, shape (n,) or (…, n), sum 1; uniform if None.
        b: target weights, shape (m,) or (…, m), sum 1; uniform if None.
        p: order, at least 1; ``math.inf`` for the largest displacement.
        n_starts: number of random directions to start from.
        tol: stop when no step of this length, in radians, leads up.
        max_iter: largest number of steps.
        generator: source of the starts, for example ``torch.Generator().manual_seed(0)``.

    Returns:
        Unit vectors, shape (…, d), without gradient; the sign is arbitrary.

    Raises:
        ValueError, TypeError: as for :func:`max_sliced_wasserstein`.

    Warns:
        ConvergenceWarning: as for :func:`max_sliced_wasserstein`.

    Source:
        As for :func:`max_sliced_wasserstein`.

    Example:
        >>> x = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
        >>> rng = torch.Generator().manual_seed(0)
        >>> max_sliced_direction(x, x + torch.tensor([3.0, 4.0]), generator=rng).abs()
        tensor([0.6000, 0.8000])
    """
    options = {"p": p, "n_starts": n_starts, "tol": tol, "max_iter": max_iter, "generator": generator}
    return _ascend(*_measures(x, y, a, b), **options).squeeze(-2)


def _ascend(
    x: Tensor,
    y: Tensor,
    a: Tensor | None,
    b: Tensor | None,
    *,
    p: float,
    n_starts: int,
    tol: float,
    max_iter: int,
    generator: torch.Generator,
) -> Tensor:
    """The best direction of checked measures, shape (…, 1, d): ascent from all starts at once."""
    p = exponent(p)
    tol, max_iter = _check.positive(tol, "tol"), _check.positive_int(max_iter, "max_iter")
    starts = _directions(_check.positive_int(n_starts, "n_starts"), x, generator)
    x, y = x.detach(), y.detach()
    a, b = (w if w is None else w.detach() for w in (a, b))

    def slope(theta: Tensor) -> tuple[Tensor, Tensor]:
        """W(θ) and the tangent part of ∇W/W; 0 where W is."""
        with torch.enable_grad():
            theta = theta.detach().requires_grad_()
            W = distance(theta @ x.mT, theta @ y.mT, a, b, p)
            (gradient,) = torch.autograd.grad(W.sum(), theta)
        W, theta = W.detach()[..., None], theta.detach()
        relative = gradient / torch.where(W > 0, W, 1.0)
        return W, relative - (relative * theta).sum(-1, keepdim=True) * theta

    theta = starts.expand(*x.shape[:-2], *starts.shape)
    W, u = slope(theta)
    step = torch.ones_like(W)
    for _ in range(max_iter):
        trial = _normalised(theta + step * u)
        higher, v = slope(trial)
        gain = _ARMIJO * step * u.square().sum(-1, keepdim=True)
        up = higher > W * (1 + gain)
        theta, u, W = (torch.where(up, new, old) for new, old in ((trial, theta), (v, u), (higher, W)))
        step = torch.where(up, 2 * step, step / 2)
        best = W.argmax(-2, keepdim=True)
        moves = (step * _norm(u)).take_along_dim(best, -2)
        if (moves <= tol).all():
            break
    else:
        warnings.warn(
            f"the best direction still moves by {moves.max().item():.2g} > tol = {tol:g} after {max_iter} "
            "steps; raise max_iter or tol",
            ConvergenceWarning,
            stacklevel=3,
        )
    return theta.take_along_dim(best, -2)


def _measures(
    x: ArrayLike, y: ArrayLike, a: ArrayLike | None, b: ArrayLike | None
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Checked clouds (…, n, d) and float64 weights (…, 1, n), None if uniform, with common leading axes."""
    x, y = _check.clouds(x, y)
    # Only differences count; near the origin fewer of their digits are lost.
    centre = x.detach().mean(tuple(range(x.ndim - 1)))
    x, y = x - centre, y - centre
    if a is not None:
        a = _check.weights(a, x.shape[-2], "a", like=x).double().unsqueeze(-2)
    if b is not None:
        b = _check.weights(b, y.shape[-2], "b", like=x).double().unsqueeze(-2)
    named = {name: t for name, t in (("x", x), ("y", y), ("a", a), ("b", b)) if t is not None}
    batch = _check.batch({name: t.shape[:-2] for name, t in named.items()})
    return tuple(t if t is None else t.expand(*batch, *t.shape[-2:]) for t in (x, y, a, b))


def _directions(n: int, x: Tensor, generator: torch.Generator) -> Tensor:
    """Independent uniform points of the unit sphere, shape (n, d)."""
    _check.generator(generator)
    theta = torch.randn(n, x.shape[-1], generator=generator, device=generator.device, dtype=torch.float64)
    return _normalised(theta.to(x))


def _normalised(theta: Tensor) -> Tensor:
    return theta / _norm(theta)


def _norm(theta: Tensor) -> Tensor:
    return torch.linalg.vector_norm(theta, dim=-1, keepdim=True)
