"""The target density away from the grid: a function with its gradient, or a spline through values."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .._check import ArrayLike
from ._fourier import density, finite_grid, frequencies, grid


def periodic_spline(values: ArrayLike) -> Callable[[Tensor], Tensor]:
    """The periodic spline of degree 5 through the values at the points (i/m1, j/m2).

    It is four times continuously differentiable and approximates smooth functions with an error of
    order 6 in the spacing. Between positive values it may be negative, if they jump.

    Args:
        values: shape (m1, m2), m1 and m2 even.

    Returns:
        A function of points (k, 2), with any real coordinates, that returns values (k,).

    Source:
        Unser (1999), Splines: a perfect fit for signal and image processing, equations 4 and 5; the
        recursive filter is replaced by a division of Fourier series.

    Example:
        >>> spline = periodic_spline(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        >>> torch.round(spline(torch.tensor([[0.5, 0.0], [1.5, 3.5]])), decimals=4)
        tensor([3., 4.])
    """
    values = finite_grid(values, "values", None)
    m1, m2 = values.shape
    theta = [frequencies(m, like=values)[0] / m for m in (m1, m2)]
    # The B-spline of degree 5 is 66/120, 26/120 and 1/120 at 0, ±1 and ±2.
    taps = [(66 + 52 * t.cos() + 2 * (2 * t).cos()) / 120 for t in theta]
    spectrum = torch.fft.fft2(values) / (taps[0][:, None] * taps[1])
    coefficients = torch.fft.ifft2(spectrum).real.flatten()

    def evaluate(y: Tensor) -> Tensor:
        z = y * y.new_tensor([m1, m2])
        cell = z.detach().floor()
        weights = _b_spline(z - cell)  # (6, k, 2)
        near = cell.long() + torch.arange(-2, 4, device=y.device)[:, None, None]
        rows, columns = near[..., 0] % m1, near[..., 1] % m2  # (6, k)
        patch = coefficients[rows[:, None] * m2 + columns]  # (6, 6, k)
        return torch.einsum("ak,abk,bk->k", weights[..., 0], patch, weights[..., 1])

    return evaluate


def _b_spline(t: Tensor) -> Tensor:
    """The six B-splines of degree 5 that do not vanish at t ∈ [0, 1), by the recursion over the degree."""
    values = [torch.ones_like(t)]
    for p in range(1, 6):
        carry = torch.zeros_like(t)
        for r in range(p):
            share = values[r] / p
            values[r] = carry + (r + 1 - t) * share
            carry = (t + p - 1 - r) * share
        values.append(carry)
    return torch.stack(values)


def target(
    g: ArrayLike | Callable[[Tensor], Tensor],
    grad_g: Callable[[Tensor], Tensor] | None,
    f: Tensor,
    mass_tol: float,
) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """The function y ↦ (log g(y), ∇log g(y)), after a check of the mass of g against that of f."""
    if callable(g):
        at = g
        fine = [n * math.ceil(64 / n) for n in f.shape]
        values, _ = _evaluate(at, grad_g, grid(*fine, like=f).reshape(-1, 2))
    else:
        if grad_g is not None:
            raise ValueError("grad_g goes with a function g, but g holds values; leave grad_g out")
        values = density(g, "g", like=f)
        at = periodic_spline(values)
    masses = f.mean().item(), values.mean().item()
    if abs(masses[0] - masses[1]) > mass_tol * masses[0]:
        raise ValueError(
            f"f has mass {masses[0]:.6g} and g has mass {masses[1]:.6g}, but a map preserves mass; divide "
            "each density by its mean over the grid"
        )

    def log_density(y: Tensor) -> tuple[Tensor, Tensor]:
        values, gradient = _evaluate(at, grad_g, y)
        return values.log(), gradient / values[:, None]

    return log_density


def _evaluate(
    g: Callable[[Tensor], Tensor], grad_g: Callable[[Tensor], Tensor] | None, y: Tensor
) -> tuple[Tensor, Tensor]:
    """Values and gradients of the target density at points (k, 2), checked."""
    with torch.enable_grad():
        y = y.detach().requires_grad_(grad_g is None)
        values = g(y)
        if not isinstance(values, Tensor) or values.shape != y.shape[:1]:
            received = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise ValueError(
                f"g(y) must be a tensor of shape ({len(y)},) for y {tuple(y.shape)}, not {received}"
            )
        if grad_g is not None:
            gradient = grad_g(y)
        elif values.requires_grad:
            (gradient,) = torch.autograd.grad(values.sum(), y)
        else:
            raise TypeError("g must be differentiable by PyTorch; otherwise pass its gradient as grad_g")
    values, gradient = values.detach(), gradient.detach()
    if gradient.shape != y.shape:
        raise ValueError(f"grad_g(y) must have shape {tuple(y.shape)}, but has {tuple(gradient.shape)}")
    bad = ~((values > 0) & torch.isfinite(values))
    if bad.any():
        where = ", ".join(f"{c % 1:.4g}" for c in y.detach()[bad][0].tolist())
        raise ValueError(
            f"g is {values[bad][0].item():.4g} at the point ({where}); densities must be positive: add a "
            "constant, or smooth the values that g interpolates"
        )
    return values, gradient
