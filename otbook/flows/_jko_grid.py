"""The JKO scheme on a grid: implicit Euler steps in W₂, each computed by entropic scaling iterations."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from .. import _check
from .._check import ArrayLike
from .._result import ConvergenceWarning

#: If the smallest entry of a kernel is exp(−this), what underflows next to it is below rounding.
_SAFE_EXPONENT = {torch.float32: 50.0, torch.float64: 600.0}


def jko_grid(
    density: ArrayLike,
    potential: ArrayLike | None = None,
    *,
    spacing: float,
    tau: float,
    n_steps: int,
    eps: float,
    power: float = 1.0,
    debiased: bool = True,
    tol: float = 1e-6,
    max_iter: int = 5000,
) -> Tensor:
    """Steps ρ_{k+1} = argmin_ρ F(ρ) + W²(ρ, ρ_k) / 2τ of densities on a grid, where

        F(ρ) = ∫ V dρ + ∫ U(ρ) dx,   U(r) = r log r,  or  U(r) = rᵐ / (m − 1) for a power m > 1,

    and W² is entropic: the least ∫ |x − y|² dP + ε ∫ P log P over couplings P of ρ and ρ_k. The steps
    follow ∂ρ/∂t = Δρᵐ + div(ρ∇V), the Fokker–Planck (m = 1) or porous medium equation, without flux
    through the boundary of the grid.

    *Blur.* The entropy of P spreads mass: a step adds ε/2 to a variance that diffusion itself
    increases by 2τ, as if the temperature were 1 + ε/4τ. ``debiased`` removes this to first order: it
    subtracts ½ε ∫ ρ log ρ, the leading part of half the entropic cost of ρ with itself.

    *Locking.* Mass that would move by less than a cell stays where it is, unless the kernel, a Gaussian
    of variance ε/2, is wide enough for the grid. With ε ≥ spacing² small displacements are right to 0.2 %;
    with ε = spacing²/4 the flow runs at a quarter of its speed, and far below it stands still. So choose
    spacing² ≤ ε ≤ τ; the smaller ε/τ is, the more iterations are needed.

    Args:
        density: ρ_0, non-negative, shape (n,) or (h, w), with density.sum() · spacing^d = 1.
        potential: finite values of V on the grid, of the same shape; 0 if None.
        spacing: distance between neighbouring grid points along every axis, in units of length.
        tau: step τ, in units of time.
        n_steps: number of steps.
        eps: ε, in units of length², for the cost |x − y|².
        power: m ≥ 1.
        debiased: subtract the leading part of the blur.
        tol: stop the iterations of a step when the coupling's marginal on the side of ρ_k is right to
            ``tol`` in L¹; on the other side it is exact.
        max_iter: largest number of iterations in one step; for m = 1 the error of the logarithmic
            scalings shrinks at least by |2τ − ε'| / (2τ + ε − ε') each time, ε' = ε/2 if debiased, else 0.

    Returns:
        Densities, shape (n_steps + 1, *density.shape), the first is ρ_0; detached: no gradient passes.

    Raises:
        ValueError: for a density or potential of the wrong shape, negative or infinite values, a mass
            other than 1, and for options that are out of range.

    Warns:
        ConvergenceWarning: when a step does not reach ``tol`` in ``max_iter`` iterations.

    Source:
        Peyré (2015), section 3; Chizat, Peyré, Schmitzer and Vialard (2018), algorithm 1.

    Example:
        >>> x = torch.arange(-4, 4.05, 0.1, dtype=torch.float64)
        >>> start = torch.exp(-2 * (x - 1) ** 2)
        >>> start = start / start.sum() / 0.1
        >>> flow = jko_grid(start, x**2 / 2, spacing=0.1, tau=0.1, n_steps=10, eps=0.05)
        >>> mean = (flow * x).sum(1) * 0.1
        >>> round(mean[0].item(), 4), round(mean[-1].item(), 4), round(1.1**-10, 4)
        (1.0, 0.3855, 0.3855)
    """
    spacing = _check.positive(spacing, "spacing")
    density = _density(density, spacing)
    V = _potential(potential, density)
    tau, eps = _check.positive(tau, "tau"), _check.positive(eps, "eps")
    n_steps, max_iter = _check.positive_int(n_steps, "n_steps"), _check.positive_int(max_iter, "max_iter")
    tol = _check.positive(tol, "tol")
    power = _check.positive(power, "power")
    if power < 1:
        raise ValueError(f"power must be at least 1, but is {power:g}; 1 is linear diffusion")

    dtype = torch.float32 if density.device.type == "mps" else torch.float64
    rho, V = density.detach().to(dtype), V.detach().to(dtype)
    # Work on masses a = ρ · volume; the cell volume only enters the argument of U.
    log_volume = rho.ndim * math.log(spacing)
    blur = _blur(rho, spacing, eps)
    proximal = _proximal(2 * tau, V, power, eps, eps / 2 if debiased else 0.0, log_volume)

    flow, Kv = [rho], blur(torch.zeros_like(rho))
    worst = 0.0
    for _ in range(n_steps):
        a = flow[-1] * math.exp(log_volume)
        a = a / a.sum()
        log_a = a.log()
        for _ in range(max_iter):
            # Couplings diag(u) K diag(v): u fits the marginal a, then v minimises over the other one.
            log_u = log_a - Kv
            log_s = blur(log_u)
            log_p = proximal(log_s)
            Kv = blur(log_p - log_s)
            error = ((log_u + Kv).exp() - a).abs().sum().item()
            if error <= tol:
                break
        worst = max(worst, error)
        p = log_p.exp()
        flow.append(p / p.sum() * math.exp(-log_volume))
    if worst > tol:
        warnings.warn(
            f"a step of jko_grid stopped after {max_iter} iterations with marginal error {worst:.2g} above "
            f"tol = {tol:g}; raise max_iter or tol, or raise eps, which needs fewer iterations",
            ConvergenceWarning,
            stacklevel=2,
        )
    return torch.stack(flow).to(density.dtype)


def _proximal(
    tau: float, V: Tensor, power: float, eps: float, debias: float, log_volume: float
) -> Callable[[Tensor], Tensor]:
    """The map log s ↦ log p for the p that minimises ε KL(p‖s) − ε' Σ p log p + τ (⟨V, p⟩ + Σ U).

    With the density r = p / volume its condition is (ε − ε') log r + τ (U'(r) + V) = ε log s + const.
    The constant only scales p, and the total mass is fixed by the other marginal.
    """

    def linear(log_s: Tensor) -> Tensor:
        return (eps * log_s - tau * V) / (eps - debias + tau)

    def nonlinear(log_s: Tensor) -> Tensor:
        # y + log y = z for y = rate · r^{m−1}; log y comes from Newton's method.
        rate = tau * power / (eps - debias)
        z = (power - 1) * (eps * (log_s - log_volume) - tau * V) / (eps - debias) + math.log(rate)
        return (_log_omega(z) - math.log(rate)) / (power - 1) + log_volume

    return linear if power == 1 else nonlinear


def _log_omega(z: Tensor) -> Tensor:
    """The t with eᵗ + t = z (e^t is Wright's omega function), by Newton steps from above the root.

    The left side is convex and increasing, so all iterates stay above the root and decrease.
    """
    t = torch.where(z > 1, z.clamp(min=1).log(), z)
    for _ in range(10):
        e = t.exp()
        t = t - (e + t - z) / (e + 1)
    return t


def _blur(like: Tensor, spacing: float, eps: float) -> Callable[[Tensor], Tensor]:
    """The map L ↦ log(K exp L) for the separable kernel K = exp(−|x − y|²/ε) on a grid like this one."""
    exponents = []
    for n in like.shape:
        t = spacing * torch.arange(n, dtype=like.dtype, device=like.device)
        exponents.append(-(t[:, None] - t).square() / eps)
    safe = _SAFE_EXPONENT[like.dtype]
    kernels = [E.exp() if E.min() >= -safe else None for E in exponents]

    def along_last(L: Tensor, E: Tensor, K: Tensor | None) -> Tensor:
        if K is None:
            return torch.logsumexp(L[..., None, :] + E, -1)
        peak = L.amax(-1, keepdim=True).clamp(min=torch.finfo(L.dtype).min)  # a line may be empty: all −∞
        return ((L - peak).exp() @ K).log() + peak

    def blur(L: Tensor) -> Tensor:
        for E, K in zip(exponents, kernels, strict=True):
            L = along_last(L.movedim(0, -1), E, K)  # after all axes had their turn, the order is restored
        return L

    return blur


def _density(density: ArrayLike, spacing: float) -> Tensor:
    """A probability density on a grid of one or two axes."""
    density = _check.tensor(density, "density")
    if density.ndim not in (1, 2) or 0 in density.shape:
        raise ValueError(
            f"density must have shape (n,) or (h, w), one value a grid point, "
            f"but has shape {tuple(density.shape)}"
        )
    values = density.detach()
    for wrong, what in ((~torch.isfinite(values), "not finite"), (values < 0, "negative")):
        if wrong.any():
            raise ValueError(
                f"density has a value that is {what}, {values[wrong][0].item():.6g}; "
                "use density.nan_to_num(0).clamp(min=0) and divide by the mass"
            )
    mass = values.sum(dtype=torch.float64).item() * spacing**density.ndim
    if abs(mass - 1) > _check.MASS_TOLERANCE[density.dtype]:
        raise ValueError(
            f"density has mass {mass:.8g}, not 1: density.sum() * spacing ** {density.ndim} must be 1; "
            f"divide by it"
        )
    return density


def _potential(potential: ArrayLike | None, density: Tensor) -> Tensor:
    """Finite values on the grid of the density."""
    if potential is None:
        return torch.zeros_like(density)
    potential = _check.tensor(potential, "potential", like=density)
    if potential.shape != density.shape:
        raise ValueError(
            f"potential must have the shape {tuple(density.shape)} of density, "
            f"but has shape {tuple(potential.shape)}"
        )
    if not torch.isfinite(potential.detach()).all():
        raise ValueError("potential has values that are not finite; use a large finite value for a wall")
    return potential
