"""Continuous-time gradient flows: move points along ∇φ and keep account of their density."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .. import _check
from .._check import ArrayLike
from ._runge_kutta import integrate

Potential = Callable[[Tensor, Tensor], Tensor]


class FlowResult(NamedTuple):
    """Where points went, how their log-density changed, and what the journey cost.

    Attributes:
        x: positions at the end, shape (…, n, d).
        log_density: log p(x(end), end) − log p(x(start), start) along each path, shape (…, n).
        energy: ∫ ‖∇φ‖² dt along each path, shape (…, n); not halved, and never negative.
    """

    x: Tensor
    log_density: Tensor
    energy: Tensor


def potential_flow(
    potential: Potential,
    x: ArrayLike,
    *,
    n_steps: int,
    start: float = 0.0,
    end: float = 1.0,
    trace: str = "exact",
    probes: int = 1,
    generator: torch.Generator | None = None,
) -> FlowResult:
    """Integrate a gradient flow and the instantaneous change of variables, by Runge-Kutta steps of order 4.

    ``dx/dt = ∇φ(x, t)``, ``d/dt log p(x(t), t) = −Δφ(x(t), t)``. With ``end < start`` time runs
    backwards; the same equations hold, so the way back undoes the way there up to the error of
    the steps. A model with base density p₀ at time 0 has the log-density
    ``log p₀(back.x) − back.log_density`` at a datum y, where ``back`` starts in y at time 1 and ends at 0.

    The Laplacian is the trace of the Hessian H of φ. ``trace="exact"`` takes d Hessian-vector products;
    ``trace="hutchinson"`` the mean of ``zᵀHz`` over ``probes`` random vectors of signs, one set a call
    and a point, kept along the path. This is unbiased for given paths; its variance is
    ``2 Σ_{i≠j} H_ij²`` a probe at one time.

    The results are differentiable in x and in the parameters of the potential, any number of times
    if the potential is: one derivative uses third derivatives of φ. Under ``torch.no_grad()`` memory
    does not grow with the number of steps.

    Args:
        potential: φ, a function of points (…, n, d) and of a time (a tensor with one number), that returns
            one number a point, (…, n). Points must not see each other. Twice differentiable: ReLU is not.
        x: points at time ``start``, shape (…, n, d).
        n_steps: steps of equal length, at least 1; each evaluates the potential four times.
        start: first time.
        end: last time.
        trace: "exact" or "hutchinson".
        probes: random vectors a point, for "hutchinson".
        generator: source of the signs, on any device; required for "hutchinson".

    Returns:
        Positions, change of the log-density, and energy, with the dtype and device of x.

    Raises:
        ValueError: for points that are empty or not finite, bad options, a potential that does not
            return one number a point, or a flow that overflows.
        TypeError: for a generator of another kind.

    Source:
        Zhang, E, Wang (2018), arXiv 1809.10188 (gradient flow, its density, fourth-order steps);
        Chen, Rubanova, Bettencourt, Duvenaud (2018), theorem 1; the random trace: Grathwohl, Chen,
        Bettencourt, Sutskever, Duvenaud (2019), section 3.1.

    Example:
        >>> stretch = lambda x, t: x.square().sum(-1) / 2  # dx/dt = x
        >>> result = potential_flow(stretch, torch.tensor([[1.0, 2.0]]), n_steps=20)
        >>> result.x, result.log_density
        (tensor([[2.7183, 5.4366]]), tensor([-2.0000]))
    """
    x = _check.points(x, "x")
    n_steps = _check.positive_int(n_steps, "n_steps")
    probes = _check.positive_int(probes, "probes")
    start, end = float(start), float(end)
    if not (math.isfinite(start) and math.isfinite(end)):
        raise ValueError(f"start and end must be finite times, but are {start:g} and {end:g}")
    signs = None
    if _check.choice(trace, "trace", ("exact", "hutchinson")) == "hutchinson":
        if generator is None:
            raise ValueError(
                "trace='hutchinson' draws random signs; pass generator=torch.Generator().manual_seed(0), "
                "or use trace='exact'"
            )
        device = _check.generator(generator).device
        bits = torch.randint(2, (probes, *x.shape), generator=generator, device=device)
        signs = (2 * bits - 1).to(x)

    with torch.enable_grad():
        value = potential(x.detach(), x.new_tensor(start))
    if not isinstance(value, Tensor) or value.shape != x.shape[:-1] or value.dtype != x.dtype:
        got = f"{tuple(value.shape)}, {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(
            f"potential must return one number a point, shape {tuple(x.shape[:-1])} and {x.dtype}, but "
            f"returned {got}; sum over the last axis only, and keep the dtype of x"
        )
    keep = torch.is_grad_enabled() and (x.requires_grad or value.requires_grad)

    def rates(t: float, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return _slopes(potential, x, x.new_tensor(t), signs, keep)

    x, divergence, energy = integrate(rates, x, start, end, n_steps)
    log_density, energy = -divergence, energy if end >= start else -energy
    if not (torch.isfinite(x.detach()).all() and torch.isfinite(log_density.detach()).all()):
        raise ValueError(
            f"the flow overflows within {n_steps} steps; use more steps, a shorter time, or a potential that "
            "grows at most quadratically"
        )
    return FlowResult(x, log_density, energy)


def _slopes(
    potential: Potential, x: Tensor, t: Tensor, signs: Tensor | None, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Velocity ∇φ (…, n, d), Laplacian (…, n) and squared speed (…, n) at one time."""
    with torch.enable_grad():
        if not (keep and x.requires_grad):
            x = x.detach().requires_grad_()
        value = potential(x, t).sum()
        if value.requires_grad:
            options = {"create_graph": True, "allow_unused": True, "materialize_grads": True}
            (v,) = torch.autograd.grad(value, x, **options)
        else:  # φ ignores its points and has no parameters
            v = torch.zeros_like(x)

        def times_hessian(direction: Tensor) -> Tensor:
            if not v.requires_grad:  # φ is linear in x
                return torch.zeros_like(x)
            return torch.autograd.grad(
                v,
                x,
                direction,
                create_graph=keep,
                retain_graph=True,
                allow_unused=True,
                materialize_grads=True,
            )[0]

        if signs is None:
            units = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
            diagonal = [times_hessian(unit.expand_as(x))[..., i] for i, unit in enumerate(units)]
            laplacian = torch.stack(diagonal).sum(0)
        else:
            laplacian = torch.stack([(z * times_hessian(z)).sum(-1) for z in signs]).mean(0)
    if not keep:
        v, laplacian = v.detach(), laplacian.detach()
    return v, laplacian, v.square().sum(-1)
