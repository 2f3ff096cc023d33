"""Flow matching: conditional paths with their velocities, and the energy of a flow.

A velocity field is learned by regression. Each function here makes one ingredient of the regression, or
measures its result; the network and the loop stay with the reader.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .. import _check
from .._check import ArrayLike
from ._runge_kutta import integrate


class PathSample(NamedTuple):
    """Points of conditional paths, and the velocities with which they move.

    Attributes:
        x: points x_t, with the shape of the end points.
        velocity: ∂x_t/∂t with ends and noise held fixed, of the same shape: the target of the regression.
    """

    x: Tensor
    velocity: Tensor


def conditional_path(x0: ArrayLike, x1: ArrayLike, t: ArrayLike, *, sigma_min: float = 0.0) -> PathSample:
    """The straight conditional path, x_t = (1 − (1 − σ_min) t) x0 + t x1, with velocity x1 − (1 − σ_min) x0.

    With ``sigma_min=0`` it ends in x1. With standard normal x0 and fixed x1 its law is
    N(t x1, (1 − (1 − σ_min) t)²), which is a Gaussian of width σ_min at t = 1.

    Args:
        x0: source points, shape (…).
        x1: target points, of the same shape.
        t: times in [0, 1]: one number, or a tensor whose axes are the first axes of x0, such as (n,) for
            points (n, d) or images (n, 1, 8, 8).
        sigma_min: width σ_min at the end, at least 0, in units of x0.

    Returns:
        Points and velocities, differentiable in x0, x1 and t.

    Raises:
        ValueError: for shapes that differ, times outside [0, 1] or a negative width.

    Source:
        Lipman, Chen, Ben-Hamu, Nickel, Le (2023), equations (20) to (22); σ_min = 0: Liu, Gong, Liu (2023).

    Example:
        >>> conditional_path(torch.tensor([[1.0]]), torch.tensor([[3.0]]), 0.5, sigma_min=0.5)
        PathSample(x=tensor([[2.2500]]), velocity=tensor([[2.5000]]))
    """
    x0, x1, t = _ends(x0, x1, t)
    if not 0 <= sigma_min < float("inf"):
        raise ValueError(f"sigma_min must be a finite width of at least 0, but is {sigma_min:g}")
    keep = 1 - sigma_min
    return PathSample((1 - keep * t) * x0 + t * x1, x1 - keep * x0)


def noisy_path(
    x0: ArrayLike, x1: ArrayLike, t: ArrayLike, generator: torch.Generator, *, sigma: float
) -> PathSample:
    """A straight path in a tube: x_t = (1 − t) x0 + t x1 + σ ξ with ξ ~ N(0, I), with velocity x1 − x0.

    The noise does not depend on t: *both* end laws are blurred by σ, and the velocity does not change.

    Args:
        x0: source points, shape (…).
        x1: target points, of the same shape.
        t: times in [0, 1], as for :func:`conditional_path`.
        generator: source of ξ, on any device.
        sigma: width σ of the tube, above 0, in units of x0; without noise use :func:`conditional_path`.

    Returns:
        Points and velocities.

    Raises:
        ValueError: for shapes that differ, times outside [0, 1] or a width that is not positive.
        TypeError: for something that is not a generator.

    Source:
        Tong et al. (2024), equations (14) and (15).

    Example:
        >>> x = torch.zeros(2, 3), torch.ones(2, 3)
        >>> noisy_path(*x, 0.5, torch.Generator().manual_seed(0), sigma=0.1).velocity[0]
        tensor([1., 1., 1.])
    """
    x0, x1, t = _ends(x0, x1, t)
    sigma = _check.positive(sigma, "sigma", remedy="without noise use conditional_path")
    return PathSample((1 - t) * x0 + t * x1 + sigma * _noise(x0, generator), x1 - x0)


def bridge_path(
    x0: ArrayLike, x1: ArrayLike, t: ArrayLike, generator: torch.Generator, *, sigma: float
) -> PathSample:
    """A Brownian bridge at time t: x_t = μ_t + σ √(t(1 − t)) ξ with μ_t = (1 − t) x0 + t x1, ξ ~ N(0, I).

    The velocity is ``(1 − 2t)/(2t(1 − t)) (x_t − μ_t) + x1 − x0``. Its second moment has the part
    σ² d (1 − 2t)²/(4t(1 − t)), which is not integrable at the ends: draw t in [δ, 1 − δ].

    Args:
        x0: source points, shape (…).
        x1: target points, of the same shape.
        t: times strictly between 0 and 1, as for :func:`conditional_path`.
        generator: source of ξ, on any device.
        sigma: diffusivity σ of the bridge, above 0, in units of x0.

    Returns:
        Points and velocities.

    Raises:
        ValueError: for shapes that differ, times at or outside the ends or σ ≤ 0.
        TypeError: for something that is not a generator.

    Source:
        Tong et al. (2024), SB-CFM.

    Example:
        >>> x = torch.zeros(2, 3), torch.ones(2, 3)
        >>> bridge_path(*x, 0.5, torch.Generator().manual_seed(0), sigma=0.1).velocity[0]
        tensor([1., 1., 1.])
    """
    x0, x1, t = _ends(x0, x1, t)
    if ((t <= 0) | (t >= 1)).any():
        raise ValueError(
            "t must lie strictly between 0 and 1, where the velocity of a bridge is finite; "
            "draw it from [1e-3, 1 - 1e-3]"
        )
    sigma = _check.positive(sigma, "sigma", remedy="without noise use conditional_path")
    width = (t * (1 - t)).sqrt()
    xi = sigma * _noise(x0, generator)
    return PathSample((1 - t) * x0 + t * x1 + width * xi, x1 - x0 + (1 - 2 * t) / (2 * width) * xi)


def path_energy(velocity: Callable[[Tensor, Tensor], Tensor], x0: ArrayLike, *, n_steps: int = 50) -> Tensor:
    """The kinetic energy ∫₀¹ E‖v(t, X_t)‖² dt of a flow X'_t = v(t, X_t) from the points x0; no ½.

    It is at least the mean cost E‖X_1 − X_0‖² of the flow's own coupling, with equality if and only if
    every point moves straight at constant speed. The classical Runge–Kutta method of order 4 integrates
    points and energy together.

    Args:
        velocity: maps a time, a tensor with one number, and points (…, n, d) to velocities (…, n, d).
        x0: starting points, shape (…, n, d).
        n_steps: steps of length 1/n_steps, each with four evaluations.

    Returns:
        Energies, shape (…), in squared units of x0; differentiable.

    Raises:
        ValueError: for points or steps that are not valid, or velocities of another shape.

    Source:
        Benamou, Brenier (2000); as a score of flows: Tong et al. (2024).

    Example:
        >>> energy = path_energy(lambda t, x: torch.ones_like(x), torch.zeros(5, 2))
        >>> round(energy.item(), 4)
        2.0
    """
    x = _check.points(x0, "x0")
    n_steps = _check.positive_int(n_steps, "n_steps")

    def rates(t: float, x: Tensor) -> tuple[Tensor, Tensor]:
        v = velocity(x.new_tensor(t), x)
        if v.shape != x.shape:
            raise ValueError(f"velocity must return shape {tuple(x.shape)}, but returned {tuple(v.shape)}")
        return v, v.square().sum(-1).mean(-1)

    return integrate(rates, x, 0.0, 1.0, n_steps)[1]


def normalised_path_energy(energy: ArrayLike, w2_squared: ArrayLike) -> Tensor:
    """The normalised path energy |∫E‖v‖²dt − W₂²| / W₂², which is 0 for the optimal flow.

    Args:
        energy: path energies, shape (…), from :func:`path_energy`.
        w2_squared: W₂² of source and target, above 0, broadcastable to it, in the same units.

    Returns:
        Ratios without unit, shape (…).

    Raises:
        ValueError: for distances that are not positive.

    Source:
        Tong et al. (2024), the normalised path energy of their experiments.

    Example:
        >>> normalised_path_energy([1.5, 1.0], 1.0)
        tensor([0.5000, 0.0000])
    """
    energy = _check.tensor(energy, "energy")
    like = None if isinstance(w2_squared, Tensor) else energy
    w2_squared = _check.tensor(w2_squared, "w2_squared", like=like)
    if not (w2_squared > 0).all():
        raise ValueError("w2_squared must be above 0; for equal laws compare the energies themselves")
    return (energy - w2_squared).abs() / w2_squared


def _ends(x0: ArrayLike, x1: ArrayLike, t: ArrayLike) -> tuple[Tensor, Tensor, Tensor]:
    """Both ends, and t with as many axes as they have."""
    x0 = _check.tensor(x0, "x0", like=None if isinstance(x0, Tensor) else _check.first_array(x0, x1))
    x1 = _check.tensor(x1, "x1", like=x0)
    if x0.shape != x1.shape:
        raise ValueError(
            f"x0 and x1 must have one shape, but have {tuple(x0.shape)} and {tuple(x1.shape)}; "
            "pair them first, for example by ot_cfm_pairs"
        )
    t = _check.tensor(t, "t", like=x0)
    if t.ndim > x0.ndim or any(k not in (1, n) for k, n in zip(t.shape, x0.shape, strict=False)):
        raise ValueError(
            f"t must be one number or have the first axes of x0, such as {tuple(x0.shape[:1])}, "
            f"but has shape {tuple(t.shape)} for x0 of shape {tuple(x0.shape)}"
        )
    if not ((t >= 0) & (t <= 1)).all():
        raise ValueError("t must lie in [0, 1]; the paths are defined nowhere else")
    return x0, x1, t.reshape(*t.shape, *[1] * (x0.ndim - t.ndim))


def _noise(x: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal, the same for every device and dtype of x."""
    generator = _check.generator(generator)
    return torch.randn(x.shape, generator=generator, dtype=torch.float64, device=generator.device).to(x)
