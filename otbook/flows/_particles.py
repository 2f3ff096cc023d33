"""Particle flows: clouds that descend a loss between measures, and Stein variational gradient descent."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import _check
from .._check import ArrayLike
from ..costs import sqeuclidean


@dataclass(frozen=True, eq=False, repr=False)
class ParticleFlow:
    """The path of a cloud under a flow, with the numbers that judge it.

    ``K`` is the number of steps, ``S`` that of the stored clouds.

    Attributes:
        x: particles after the last step, shape (…, n, d), detached.
        path: stored clouds, the first and the last among them, shape (S, …, n, d).
        steps: the numbers k of the steps after which they were stored, from 0 to K, S of them.
        speeds: (1/n Σ_i |v_i|²)^{1/2} of the velocity of each step, in units of x over time, shape (K, …).
            Zero at rest; in :func:`particle_flow` without noise its square is the rate of descent.
        losses: losses where the velocities were taken, in units of the loss, shape (K, …); None for
            :func:`svgd`, which knows no loss.
    """

    x: Tensor
    path: Tensor
    steps: list[int]
    speeds: Tensor
    losses: Tensor | None

    def __repr__(self) -> str:
        return f"ParticleFlow(path of shape {tuple(self.path.shape)}, speed → {self.speeds[-1].mean():.2g})"


def particle_flow(
    x0: ArrayLike,
    loss: Callable[[Tensor], Tensor],
    *,
    step: float,
    n_steps: int,
    every: int = 1,
    noise: float | Callable[[int], float] = 0.0,
    generator: torch.Generator | None = None,
) -> ParticleFlow:
    """Particles x_i ← x_i + τ v_i with v_i = −n ∂F/∂x_i: explicit Euler for a Wasserstein gradient flow.

    The factor n belongs to the metric ‖v‖² = 1/n Σ_i |v_i|². With it, v_i = −∇(δF/δμ)(x_i) for a loss F of
    the measure μ = 1/n Σ_i δ_{x_i}, and the flow does not depend on the number of particles.

    Noise injection moves x by the velocity at x + σ_k ξ, with a standard normal ξ. In the mean this descends
    E F(x + σξ), which has a force where F has none, but another minimiser, so let σ_k fall to 0.

    Args:
        x0: particles, shape (…, n, d); leading axes are independent flows.
        loss: F, a differentiable function from (…, n, d) to (…): one number for each flow.
        step: τ, in units of time.
        n_steps: number of steps K.
        every: store every so many steps.
        noise: σ in units of x, or a function of k = 0, …, K − 1 that returns σ_k.
        generator: source of the noise, on the device of x0; not needed without noise.

    Returns:
        The last cloud, the stored path, the losses and the speeds.

    Raises:
        ValueError: for clouds that are empty or not finite, options out of range, a loss of the wrong shape,
            a negative noise, a generator on another device, and when particles have run off to infinity
            because the step is too long.
        TypeError: when there is noise but no generator.

    Source:
        Ambrosio, Gigli, Savaré (2008), chapter 11, for the flow; the noise is that of Arbel, Korba, Salim,
        Gretton (2019), section 4, except that they perturb the place where the force is felt, and not
        the particles that exert it.

    Example:
        >>> flow = particle_flow([[4.0]], lambda x: x.square().mean((-2, -1)) / 2, step=0.5, n_steps=2)
        >>> flow.x
        tensor([[1.]])
        >>> flow.losses
        tensor([8., 2.])
    """
    x = _check.points(x0, "x0").detach()
    sigma = noise if callable(noise) else (lambda k: noise)
    noisy = callable(noise) or noise != 0
    if noisy:
        _check.generator(generator)
        if generator.device.type != x.device.type:
            raise ValueError(
                f"generator is on {generator.device}, but x0 is on {x.device}; "
                f"write torch.Generator(device='{x.device}')"
            )
    losses = []

    def velocity(k: int, x: Tensor) -> Tensor:
        if noisy:
            scale = float(sigma(k))
            if not (math.isfinite(scale) and scale >= 0):
                raise ValueError(f"noise must be finite and at least 0, but is {scale:g} at step {k}")
            x = x + scale * torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
        with torch.enable_grad():
            z = x.detach().requires_grad_()
            value = loss(z)
            if not isinstance(value, Tensor) or value.shape != x.shape[:-2]:
                shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise ValueError(
                    f"loss must map shape {tuple(x.shape)} to {tuple(x.shape[:-2])}, one number a flow, "
                    f"but returned {shape}"
                )
            (gradient,) = torch.autograd.grad(value.sum(), z)
        losses.append(value.detach())
        return -x.shape[-2] * gradient

    x, path, steps, speeds = _euler(x, velocity, step, n_steps, every)
    return ParticleFlow(x, path, steps, speeds, torch.stack(losses))


def svgd(
    x0: ArrayLike,
    score: Callable[[Tensor], Tensor],
    *,
    step: float,
    n_steps: int,
    bandwidth: float | None = None,
    every: int = 1,
) -> ParticleFlow:
    """Stein variational gradient descent, x_i ← x_i + τ/n Σ_j [k(x_j, x_i) s(x_j) + ∇_{x_j} k(x_j, x_i)].

    Here s = ∇ log π is the score of the target and k(x, y) = exp(−|x − y|² / 2h²). The first term carries
    particles to where π is large, the second one keeps them apart. It descends KL(μ ‖ π) along the
    direction −∇ log(μ/π) blurred with the kernel, so it is not the Wasserstein gradient flow of KL; with one
    particle it is gradient ascent on log π.

    Args:
        x0: particles, shape (…, n, d); leading axes are independent flows.
        score: s, a function from (…, n, d) to (…, n, d), particle by particle.
        step: τ, in units of time.
        n_steps: number of steps K.
        bandwidth: h, in units of x; None sets 2h² = med² / log(n + 1) at every step, with the median med of
            the distances between particles of one flow.
        every: store every so many steps.

    Returns:
        The last cloud, the stored path and the speeds; ``losses`` is None.

    Raises:
        ValueError: for clouds that are empty or not finite, options out of range, a score of the wrong
            shape, and when particles have run off to infinity because the step is too long.

    Source:
        Liu, Wang (2016), algorithm 1, with plain steps; their median rule has log n.

    Example:
        >>> svgd([[4.0]], lambda x: -x, step=0.5, n_steps=2).x  # one particle climbs to the mode
        tensor([[1.]])
    """
    x = _check.points(x0, "x0").detach()
    n = x.shape[-2]
    if bandwidth is not None:
        bandwidth = _check.positive(bandwidth, "bandwidth")

    def velocity(k: int, x: Tensor) -> Tensor:
        s = score(x.detach()).detach()
        if s.shape != x.shape:
            raise ValueError(f"score must keep the shape {tuple(x.shape)}, but returned {tuple(s.shape)}")
        C = sqeuclidean(x, x)  # (…, n, n)
        if bandwidth is None:
            h2 = median_rule(C)[..., None, None]
        else:
            h2 = torch.as_tensor(bandwidth**2, dtype=x.dtype, device=x.device)
        K = torch.exp(-C / (2 * h2))
        return (K @ s + (K.sum(-1, keepdim=True) * x - K @ x) / h2) / n

    return ParticleFlow(*_euler(x, velocity, step, n_steps, every), None)


def median_rule(C: Tensor) -> Tensor:
    """h² = med² / (2 log(n + 1)), shape (…), for squared distances C (…, n, n) with the median med²."""
    n = C.shape[-1]
    i, j = torch.triu_indices(n, n, 1, device=C.device)
    h2 = C[..., i, j].median(-1).values / (2 * math.log(n + 1)) if n > 1 else C[..., 0, 0]
    return torch.where(h2 > 0, h2, 1.0)  # where particles coincide, any bandwidth is as good


def _euler(
    x: Tensor, velocity: Callable[[int, Tensor], Tensor], step: float, n_steps: int, every: int
) -> tuple[Tensor, Tensor, list[int], Tensor]:
    """Explicit Euler steps: the last cloud, the stored ones with their numbers, and the speeds."""
    step = _check.positive(step, "step")
    n_steps, every = _check.positive_int(n_steps, "n_steps"), _check.positive_int(every, "every")
    path, steps, speeds = [x], [0], []
    for k in range(n_steps):
        v = velocity(k, x)
        x = x + step * v
        speeds.append(v.square().sum(-1).mean(-1).sqrt())
        if not torch.isfinite(x).all():
            raise ValueError(
                f"step = {step:g} is too long: particles ran off to infinity in step {k + 1}; take a step "
                "below 2 / L for a velocity with Lipschitz constant L"
            )
        if (k + 1) % every == 0 or k + 1 == n_steps:
            path.append(x)
            steps.append(k + 1)
    return x, torch.stack(path), steps, torch.stack(speeds)
