"""Langevin dynamics: particles whose law follows the Fokker–Planck equation, in discrete time."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .. import _check
from .._check import ArrayLike

Field = Callable[[Tensor], Tensor]


def langevin(
    x0: ArrayLike,
    grad_potential: Field,
    *,
    step: float,
    n_steps: int,
    generator: torch.Generator,
    temperature: float = 1.0,
    metropolis: Field | None = None,
    callback: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Particles x_{k+1} = x_k − τ ∇V(x_k) + √(2Tτ) ξ_k with standard normal ξ_k, all independent.

    The Euler–Maruyama scheme of dX = −∇V dt + √(2T) dW, whose law follows ∂ρ/∂t = TΔρ + div(ρ∇V)
    and tends to the density proportional to exp(−V/T). The scheme (ULA) has another stationary law,
    with an error of order τ: for V = ½αx² its variance is T / (α (1 − ατ/2)), and for ατ ≥ 2 there is
    none. ``metropolis=V`` accepts or rejects each move (MALA), which makes exp(−V/T) stationary.

    Args:
        x0: particles, shape (…, d): every leading index is one particle.
        grad_potential: ∇V, a function from (…, d) to (…, d), particle by particle.
        step: τ, in units of time.
        n_steps: number of steps.
        generator: source of randomness, on the device of x0.
        temperature: T, in units of V.
        metropolis: V itself, a function from (…, d) to (…), to accept or reject moves; None accepts all.
        callback: called as callback(k, x) after step k = 1, 2, …, n_steps with the current particles,
            which it must not change; for trajectories and averages over time.

    Returns:
        Particles after the last step, shape (…, d); detached: no gradient passes through them.

    Raises:
        ValueError: for particles that are not finite, options out of range, a function that returns
            the wrong shape, a generator on another device, and when particles have run off to
            infinity because the step is too long.
        TypeError: when ``generator`` is no generator.

    Source:
        Roberts and Tweedie (1996), who name the two schemes ULA and MALA.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> x = langevin(torch.zeros(20_000, 1), lambda x: x, step=0.5, n_steps=50, generator=generator)
        >>> bool((x.var() - 1 / (1 - 0.25)).abs() < 0.06)
        True
    """
    x = _particles(x0)
    step, temperature = _check.positive(step, "step"), _check.positive(temperature, "temperature")
    n_steps = _check.positive_int(n_steps, "n_steps")
    _check.generator(generator)
    if generator.device.type != x.device.type:
        raise ValueError(
            f"generator is on {generator.device}, but x0 is on {x.device}; "
            f"write torch.Generator(device='{x.device}')"
        )
    sigma = math.sqrt(2 * temperature * step)

    def evaluate(function: Field, name: str, x: Tensor, shape: torch.Size) -> Tensor:
        # A view, so that a function may set requires_grad on what it gets.
        value = function(x.detach()).detach()
        if value.shape != shape:
            raise ValueError(
                f"{name} must map shape {tuple(x.shape)} to {tuple(shape)}, but returned {tuple(value.shape)}"
            )
        return value

    def proposal_energy(to: Tensor, origin: Tensor, gradient: Tensor) -> Tensor:
        """−T log of the density of moving to ``to``, up to a constant."""
        return (to - origin + step * gradient).square().sum(-1) / (4 * step)

    g = evaluate(grad_potential, "grad_potential", x, x.shape)
    V = None if metropolis is None else evaluate(metropolis, "metropolis", x, x.shape[:-1])
    for k in range(1, n_steps + 1):
        noise = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
        y = x - step * g + sigma * noise
        gy = evaluate(grad_potential, "grad_potential", y, x.shape)
        if metropolis is None:
            x, g = y, gy
        else:
            Vy = evaluate(metropolis, "metropolis", y, x.shape[:-1])
            gain = V - Vy + proposal_energy(y, x, g) - proposal_energy(x, y, gy)
            uniform = torch.rand(V.shape, generator=generator, dtype=x.dtype, device=x.device)
            # NaN compares as false, so a move to where V overflows is rejected.
            accept = uniform.log() < gain / temperature
            x, g = torch.where(accept[..., None], y, x), torch.where(accept[..., None], gy, g)
            V = torch.where(accept, Vy, V)
        if callback is not None:
            callback(k, x)
    if not torch.isfinite(x).all():
        raise ValueError(
            f"step = {step:g} is too long: particles ran off to infinity; take step < 2 / L for a gradient "
            "with Lipschitz constant L on the region visited, or pass metropolis"
        )
    return x


def _particles(x0: ArrayLike) -> Tensor:
    """Finite particles of shape (…, d), detached."""
    x = _check.tensor(x0, "x0").detach()
    if x.ndim < 1 or 0 in x.shape:
        raise ValueError(f"x0 must have shape (…, d), at least one particle, but has shape {tuple(x.shape)}")
    if not torch.isfinite(x).all():
        raise ValueError("x0 has coordinates that are not finite; remove those particles")
    return x
