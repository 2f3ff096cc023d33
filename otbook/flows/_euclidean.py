"""Minimising movements of a function on Euclidean space: its gradient flow by implicit Euler steps."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import _check
from .._check import ArrayLike
from .._result import ConvergenceWarning

#: Default of ``tol``, the accuracy asked of each inner problem, by precision.
_TOL = {torch.float32: 1e-5, torch.float64: 1e-10}

#: Sufficient decrease, as a fraction of what the slope promises (Armijo).
_ARMIJO = 1e-4

#: Moves below this, relative to 1 + ‖x_k‖, may be judged by their slopes instead.
_SHORT = 1e-3


@dataclass(frozen=True, eq=False, repr=False)
class MinimizingMovement:
    """The points of a minimising movement, with the certificate of every step.

    ``K`` is the number of steps.

    Attributes:
        path: x_0, …, x_K, shape (K + 1, …).
        energies: F(x_0), …, F(x_K), in units of F, shape (K + 1,).
        residuals: ‖x_{k+1} − x_k + τ∇F(x_{k+1})‖ of the steps, in units of x, shape (K,). For a λ-convex F
            with 1 + τλ > 0 the distance to the exact minimiser is at most the residual over 1 + τλ.
        n_iter: number of Newton iterations, all steps together.
        converged: whether every step reached the tolerance.
    """

    path: Tensor
    energies: Tensor
    residuals: Tensor
    n_iter: int
    converged: bool

    def __repr__(self) -> str:
        return (
            f"MinimizingMovement(path of shape {tuple(self.path.shape)}, "
            f"energy {self.energies[0].item():.6g} → {self.energies[-1].item():.6g}, n_iter={self.n_iter}, "
            f"residual={self.residuals.max().item():.2g}, converged={self.converged})"
        )


def minimizing_movement(
    F: Callable[[Tensor], Tensor],
    x0: ArrayLike,
    *,
    tau: float,
    n_steps: int,
    tol: float | None = None,
    max_iter: int = 100,
) -> MinimizingMovement:
    """Steps x_{k+1} = argmin_x F(x) + ‖x − x_k‖² / 2τ, implicit Euler for x' = −∇F(x).

    Each step is a descent from x_k by Newton's method with conjugate gradients, which only needs
    products with the Hessian, and a line search. So F(x_{k+1}) + ‖x_{k+1} − x_k‖² / 2τ ≤ F(x_k) for every
    τ. For a λ-convex F with 1 + τλ > 0 the minimiser is unique, and found. For longer steps the result is
    a point where the gradient vanishes, on the side of x_k; another one may be lower, and a stationary x_k
    is not left.

    Args:
        F: the function, from a tensor of the shape of x0 to a scalar, twice differentiable by autograd.
            For independent points let F be the sum of their values. At a kink, as that of |x|, the
            gradient does not vanish: a step that ends there is reported as not converged.
        x0: where to start, any shape, float32 or float64.
        tau: step τ, in units of time, ‖x‖² over F.
        n_steps: number of steps.
        tol: largest residual ‖x_{k+1} − x_k + τ∇F(x_{k+1})‖, relative to 1 + ‖x_k‖; 1e-10 in float64 and
            1e-5 in float32 if None.
        max_iter: limit of the Newton iterations of one step.

    Returns:
        MinimizingMovement; detached: no gradient passes through it.

    Raises:
        ValueError: for a start that is not finite, options out of range, an F that returns no scalar, does
            not depend on x differentiably, or is not finite at x0.
        TypeError: when F is no function.

    Source:
        De Giorgi's minimising movements, Ambrosio, Gigli and Savaré (2008), section 2.0.

    Example:
        >>> flow = minimizing_movement(lambda x: x**2 / 2, torch.tensor(1.0), tau=0.5, n_steps=2)
        >>> flow.path
        tensor([1.0000, 0.6667, 0.4444])
    """
    if not callable(F):
        raise TypeError(f"F must be a function of a tensor, but a {type(F).__name__} was given")
    x = _check.tensor(x0, "x0").detach()
    if x.numel() == 0 or not torch.isfinite(x).all():
        raise ValueError(f"x0 must hold finite numbers, at least one, but is {_describe(x)}")
    tau, n_steps = _check.positive(tau, "tau"), _check.positive_int(n_steps, "n_steps")
    tol = _TOL[x.dtype] if tol is None else _check.positive(tol, "tol")
    max_iter = _check.positive_int(max_iter, "max_iter")
    _value_at_start(F, x)

    path, energies, residuals, n_iter, missed = [x], [], [], 0, []
    for k in range(n_steps):
        target = tol * (1 + x.norm().item())
        x, before, value, residual, used = _step(F, x, tau, target, max_iter)
        path.append(x)
        energies.append(before)
        residuals.append(residual)
        n_iter += used
        if not residual <= target:
            missed.append(k)
    energies.append(value)
    result = MinimizingMovement(
        torch.stack(path), torch.stack(energies), torch.stack(residuals), n_iter, not missed
    )
    if missed:
        warnings.warn(
            f"minimizing_movement: {len(missed)} of {n_steps} steps, the first with index {missed[0]}, did "
            f"not reach tol = {tol:g}; the largest residual is {result.residuals.max().item():.2g}. "
            f"Raise max_iter = {max_iter} or tol, compute in float64, or smooth F where it has a kink",
            ConvergenceWarning,
            stacklevel=2,
        )
    return result


def _step(
    F: Callable[[Tensor], Tensor], origin: Tensor, tau: float, target: float, max_iter: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
    """Minimise J(x) = τF(x) + ½‖x − x_k‖² from x = x_k; (x, F(x_k), F(x), ‖∇J(x)‖, iterations)."""
    x = origin
    value, gradient, product = _derivatives(F, x)
    start = value
    for used in range(max_iter + 1):
        r = x - origin + tau * gradient  # ∇J
        size = r.norm()
        if size <= target or used == max_iter:
            break
        # Inexact Newton: the system is solved only as well as the present residual deserves.
        p = _direction(product, r, tau, min(0.1, math.sqrt(size.item() / (1 + size.item()))) * size)
        promise, t = (r * p).sum(), 1.0
        energy = tau * value + (x - origin).square().sum() / 2
        short = _SHORT * (1 + origin.norm()) / p.norm()
        while t > 1e-12:
            y = x + t * p
            new = _derivatives(F, y)
            change = tau * new[0] + (y - origin).square().sum() / 2 - energy
            if change <= _ARMIJO * t * promise:
                break
            # Near the minimum the decrease drowns in the rounding of J. The slopes at both ends give it,
            # too, by the trapezoidal rule, without cancellation.
            slopes = r + (y - origin + tau * new[1])
            if t <= short and (slopes - r).norm() <= size / 2 and (slopes * p).sum() / 2 <= _ARMIJO * promise:
                break
            t /= 2
        else:
            break  # no descent along p: a kink, or the precision is exhausted
        x, (value, gradient, product) = y, new
    return x, start, value, size, used


def _direction(product: Callable[[Tensor], Tensor], r: Tensor, tau: float, tol: Tensor) -> Tensor:
    """Conjugate gradients for (I + τ∇²F) p = −r, stopped where the curvature is not positive."""
    p, s = torch.zeros_like(r), r
    d, rho = -r, r.square().sum()
    for _ in range(min(2 * r.numel() + 5, 500)):
        Hd = d + tau * product(d)
        curvature = (d * Hd).sum()
        if not curvature > 0:
            # Steihaug's rule without a radius: what is there descends; at first, steepest descent.
            return p if p.any() else d
        step = rho / curvature
        p, s = p + step * d, s + step * Hd
        rho, previous = s.square().sum(), rho
        if rho.sqrt() <= tol:
            break
        d = -s + (rho / previous) * d
    return p


def _derivatives(
    F: Callable[[Tensor], Tensor], x: Tensor
) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
    """F(x), ∇F(x), and the product with ∇²F(x)."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        value = F(x)
        (gradient,) = torch.autograd.grad(value, x, create_graph=True)

    def product(v: Tensor) -> Tensor:
        if not gradient.requires_grad:  # F is affine
            return torch.zeros_like(v)
        (Hv,) = torch.autograd.grad(gradient, x, v, retain_graph=True, allow_unused=True)
        return torch.zeros_like(v) if Hv is None else Hv

    return value.detach(), gradient.detach(), product


def _value_at_start(F: Callable[[Tensor], Tensor], x: Tensor) -> None:
    """Complain about an F that is no differentiable scalar function."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        value = F(x)
    if not isinstance(value, Tensor) or value.ndim > 0:
        got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise ValueError(f"F must return a scalar tensor, but returned {got}; for independent points sum")
    if value.dtype != x.dtype:
        raise ValueError(f"F must keep the dtype of x0, {x.dtype}, but returned {value.dtype}")
    if not value.requires_grad or torch.autograd.grad(value, x, allow_unused=True)[0] is None:
        raise ValueError("F must depend on x differentiably by autograd, but its value has no gradient")
    if not torch.isfinite(value):
        raise ValueError(f"F(x0) must be finite, but is {value.item()}; start where F is finite")


def _describe(x: Tensor) -> str:
    return "empty" if x.numel() == 0 else f"{x[~torch.isfinite(x)][0].item()} in one place"
