"""Optimal transport in time: the least kinetic energy that carries one density to another.

The problem of Benamou and Brenier on a grid of cells, densities on the faces in time and momenta on
the faces in space, so that the continuity equation holds to rounding. And the same path for discrete
plans, where it is a formula.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import _check
from .._check import ArrayLike
from .._result import ConvergenceWarning
from ._staggered import StaggeredGrid, with_walls

#: Over-relaxation of the splitting; any number in (0, 2) converges.
_RELAX = 1.8


@dataclass(frozen=True, eq=False, repr=False)
class DynamicPlan:
    """A path of densities between two measures, with the momenta that drive it.

    ``T`` is the number of time steps, ``n_1, …, n_d`` are the numbers of cells along the axes.

    Attributes:
        value: ∬ |m|²/ρ dx dt in squared units of length, without a factor ½: it approximates W₂².
        lower_bound: certified lower bound of the least value on this grid, by duality.
        density: ρ per unit of volume at the times 0, 1/T, …, 1, shape (T + 1, n_1, …, n_d).
        momentum: m = ρv in the cells at the middle of each time step, shape (T, n_1, …, n_d, d).
        flux: for each axis k the normal component of m on the faces, shape (T, …, n_k + 1, …, n_d).
        continuity_error: largest |∂ₜρ + div m| over all cells, relative to the mean of ρ.
        n_iter: number of iterations.
        converged: whether the iterations reached the tolerance.
    """

    value: Tensor
    lower_bound: Tensor
    density: Tensor
    momentum: Tensor
    flux: tuple[Tensor, ...]
    continuity_error: Tensor
    n_iter: int
    converged: bool

    @property
    def velocity(self) -> Tensor:
        """The velocity m/ρ in the cells at the middle of each time step, 0 where there is no mass."""
        middle = (self.density[1:] + self.density[:-1]) / 2
        mass = middle > 1e-9 * middle.mean()
        return torch.where(mass[..., None], self.momentum / torch.where(mass, middle, 1)[..., None], 0)

    def __repr__(self) -> str:
        shape = " × ".join(map(str, self.density.shape[1:]))
        return (
            f"DynamicPlan(value={self.value.item():.6g}, {len(self.momentum)} steps on {shape} cells, "
            f"n_iter={self.n_iter}, converged={self.converged})"
        )


@torch.no_grad()
def benamou_brenier(
    mu: ArrayLike,
    nu: ArrayLike,
    *,
    n_steps: int = 16,
    sides: float | Sequence[float] = 1.0,
    gamma: float = 1.0,
    tol: float = 1e-5,
    max_iter: int = 5000,
) -> DynamicPlan:
    """Carry one density to another with least kinetic energy, on a grid in a box.

    min ∬ |m|²/ρ dx dt over ρ ≥ 0 and m with ∂ₜρ + div m = 0, no flux through the walls, ρ = μ at time
    0 and ν at time 1. The minimum is W₂²(μ, ν), without a factor ½, and the minimiser is the displacement
    interpolation. For smooth positive densities the error is of second order in the sizes of the cells
    and time steps. No gradients.

    Staggered grid of Papadakis, Peyré and Oudet (2014), section 3; solved by the alternating direction
    method of multipliers, which is Douglas–Rachford on the dual. One step projects on the continuity
    equation, in the norm of the cell averages, by cosine transforms; the other is the proximal map of
    |m|²/ρ, a cubic equation in each cell.

    Args:
        mu: masses of the cells at time 0, sum 1, shape (n_1, …, n_d) with d = 1, 2 or 3.
        nu: masses of the cells at time 1, the same shape.
        n_steps: number of time steps T.
        sides: lengths of the sides of the box, one for all axes or one an axis.
        gamma: parameter of the proximal map; larger values are faster for densities that are nearly
            uniform, smaller ones where there are regions without mass.
        tol: stop when the two copies of (ρ, m), and two consecutive ones, differ by at most
            this in quadratic mean, relative to the quadratic mean of (ρ, m).
        max_iter: maximal number of iterations; a :class:`~otbook.ConvergenceWarning` when reached.

    Returns:
        The path, its value, a certified lower bound and diagnostics.

    Raises:
        ValueError: for negative or unnormalised masses, shapes that differ, axes of fewer than two
            cells, and options out of range.

    Source:
        J.-D. Benamou and Y. Brenier, A computational fluid mechanics solution to the Monge–Kantorovich
        mass transfer problem, Numerische Mathematik 84 (2000), (36)–(38); N. Papadakis, G. Peyré and
        E. Oudet, Optimal transport with proximal splitting, SIAM J. Imaging Sci. 7 (2014), section 3.

    Example:
        >>> x = (torch.arange(32.0, dtype=torch.float64) + 0.5) / 32
        >>> mu = torch.exp(-200 * (x - 0.3) ** 2)
        >>> nu = torch.exp(-200 * (x - 0.7) ** 2)
        >>> result = benamou_brenier(mu / mu.sum(), nu / nu.sum())
        >>> f"{result.value.item():.3f}"  # the square of 0.7 − 0.3
        '0.160'
    """
    mu, nu, sides = _arguments(mu, nu, sides)
    T, gamma = _check.positive_int(n_steps, "n_steps"), _check.positive(gamma, "gamma")
    tol, max_iter = _check.positive(tol, "tol"), _check.positive_int(max_iter, "max_iter")
    if T < 2:
        raise ValueError(f"n_steps must be at least 2, but is {T}; one step leaves nothing to choose")

    # In the units of the grid the longest side of the box is 1, and so is the mean of the density.
    longest, cells = max(sides), mu.numel()
    grid = StaggeredGrid(mu * cells, nu * cells, T, [side / longest for side in sides])
    V = grid.mixture()
    Z, converged, n_iter = torch.zeros_like(V), False, 0
    while n_iter < max_iter and not converged:
        n_iter += 1
        U = grid.project(V - Z)
        X = grid.average(U)
        relaxed, before = _RELAX * X + (1 - _RELAX) * V, V
        V = _prox(relaxed + Z, gamma)
        Z = Z + relaxed - V
        gap = max((X - V).square().sum().item(), (V - before).square().sum().item())
        converged = gap <= tol**2 * V.square().sum().item()
    if not converged:
        warnings.warn(
            f"benamou_brenier stopped after {n_iter} iterations above tol={tol:g}; increase max_iter, or "
            "change gamma by a factor of 3 up or down",
            ConvergenceWarning,
            stacklevel=2,
        )

    volume = math.prod(sides)
    to_flux = longest / volume
    density = torch.cat([grid.start[None], U[0], grid.end[None]]) / volume
    flux = tuple(to_flux * with_walls(u, k) for k, u in enumerate(U[1:], start=1))
    return DynamicPlan(
        value=longest**2 * _energy(V),
        lower_bound=longest**2 * grid.lower_bound(Z / gamma),
        density=density,
        momentum=to_flux * X[1:].movedim(0, -1),
        flux=flux,
        continuity_error=grid.divergence(U).abs().amax(),
        n_iter=n_iter,
        converged=converged,
    )


def displacement_interpolation(
    x: ArrayLike, y: ArrayLike, plan: ArrayLike, t: float, *, threshold: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Move every piece of a plan straight ahead: the points (1 − t) x_i + t y_j with the weights P_ij.

    For an optimal plan of the squared cost this is the geodesic of W₂ at the time t (McCann 1997).

    Args:
        x: source points, shape (n, d).
        y: target points, shape (m, d).
        plan: coupling P, shape (n, m), for example of :func:`~otbook.emd`.
        t: time, 0 at the source and 1 at the target.
        threshold: entries of P up to this are left out; the weights do not change.

    Returns:
        The points, shape (k, d), and their weights, shape (k,), one for each entry above the threshold.

    Raises:
        ValueError: for a plan whose shape does not fit the points, negative entries, or t outside [0, 1].

    Example:
        >>> displacement_interpolation([[0.0]], [[1.0], [3.0]], [[0.5, 0.5]], 0.5)
        (tensor([[0.5000],
                [1.5000]]), tensor([0.5000, 0.5000]))
    """
    x, y = _check.clouds(x, y)
    P = _check.tensor(plan, "plan", like=x)
    if P.shape != (len(x), len(y)):
        raise ValueError(f"plan must have shape {(len(x), len(y))}, but has shape {tuple(P.shape)}")
    if (P < 0).any():
        raise ValueError(f"plan holds a negative mass, {P.min().item():.6g}; use plan.clamp(min=0)")
    if not 0 <= t <= 1:
        raise ValueError(f"t must lie in [0, 1], but is {t:g}")
    i, j = torch.nonzero(threshold < P, as_tuple=True)
    return (1 - t) * x[i] + t * y[j], P[i, j]


def _arguments(
    mu: ArrayLike, nu: ArrayLike, sides: float | Sequence[float]
) -> tuple[Tensor, Tensor, list[float]]:
    first = _check.first_array(mu, nu)
    mu = _check.tensor(mu, "mu", like=None if isinstance(mu, Tensor) else first)
    nu = _check.tensor(nu, "nu", like=mu)
    if mu.shape != nu.shape:
        raise ValueError(f"mu has shape {tuple(mu.shape)} and nu {tuple(nu.shape)}; use one grid for both")
    if not 1 <= mu.ndim <= 3 or min(mu.shape) < 2:
        raise ValueError(
            f"mu must have one to three axes of at least two cells each, but has shape {tuple(mu.shape)}"
        )
    mu, nu = (
        _check.weights(t.flatten(), t.numel(), name, like=mu).reshape(t.shape)
        for t, name in ((mu, "mu"), (nu, "nu"))
    )
    lengths = [sides] * mu.ndim if isinstance(sides, int | float) else list(sides)
    if len(lengths) != mu.ndim:
        raise ValueError(f"sides must be one number or {mu.ndim}, one an axis, but are {len(lengths)}")
    return mu, nu, [_check.positive(length, "sides") for length in lengths]


def _prox(V: Tensor, gamma: float) -> Tensor:
    """The minimiser (ρ, m) of γ |m|²/ρ + |(ρ, m) − V|²/2 in each cell.

    m = ρ/(ρ + 2γ) V₁…d, and s = ρ + 2γ is the largest root of s²(s − c) = γ |V₁…d|² with c = V₀ + 2γ;
    if that gives ρ ≤ 0 the minimiser is 0. Newton's method decreases to the root from any upper bound.
    """
    c, q = V[0] + 2 * gamma, gamma * V[1:].square().sum(0)
    tiny = torch.finfo(V.dtype).tiny
    s = c.clamp(min=0) + q.clamp(min=tiny) ** (1 / 3)
    for _ in range(8):
        s = s - (s * s * (s - c) - q) / (s * (3 * s - 2 * c)).clamp(min=tiny)
    rho = (s - 2 * gamma).clamp(min=0)
    return torch.cat([rho[None], rho / (rho + 2 * gamma) * V[1:]])


def _energy(V: Tensor) -> Tensor:
    """The mean of |m|²/ρ over all cells; 0 where ρ = 0, since the proximal map leaves m = 0 there."""
    return torch.where(V[0] > 0, V[1:].square().sum(0) / torch.where(V[0] > 0, V[0], 1), 0).mean()
