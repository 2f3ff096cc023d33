"""Sparse spikes on the circle: a measure found behind its low frequencies by a flow of particles."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import _check
from .._check import ArrayLike
from .._result import ConvergenceWarning

#: Points of the grid on which the dual certificate is first searched, per frequency.
_GRID = 32


@dataclass(frozen=True, eq=False, repr=False)
class SpikesResult:
    """Particles that represent a measure on the circle, and how far from optimal they are.

    Attributes:
        positions: in [0, 1), shape (m,).
        weights: signed masses, shape (m,).
        losses: the objective before the first step and after every step, shape (n_iter + 1,).
        gap: objective minus the value of a feasible dual point; the minimum is no further below.
        residual: y − Φμ, shape (2 n_f + 1,).
        regularisation: λ.
        signed: whether negative spikes were allowed.
        n_iter: number of accepted steps.
        converged: whether the gap reached the tolerance.
    """

    positions: Tensor
    weights: Tensor
    losses: Tensor
    gap: Tensor
    residual: Tensor
    regularisation: float
    signed: bool
    n_iter: int
    converged: bool

    def certificate(self, x: ArrayLike) -> Tensor:
        """The dual certificate η(x) = ⟨φ(x), y − Φμ⟩ / λ at points of the circle, same shape as x.

        At a minimiser η ≤ 1 (|η| ≤ 1 if signed), and η is the sign of the weight on every spike.
        """
        x = _check.line_points(x, "x", like=self.positions)
        return fourier_features(x, len(self.residual) // 2) @ self.residual / self.regularisation

    def clusters(self, *, radius: float = 0.01, threshold: float = 0.01) -> tuple[Tensor, Tensor]:
        """Particles of one sign that are close to each other, merged: centres of mass and masses.

        Args:
            radius: neighbours on the circle at most this far apart belong together.
            threshold: clusters below this share of the total mass are left out.

        Returns:
            Positions in [0, 1) in increasing order, and weights, both of shape (k,).
        """
        radius, centres, masses = _check.positive(radius, "radius"), [], []
        for sign in (1, -1):
            chosen = self.weights * sign > 0
            if not chosen.any():
                continue
            x, order = self.positions[chosen].sort()
            w = self.weights[chosen][order]
            after = torch.cat([x[1:], x[:1] + 1]) - x
            first = (int(after.argmax()) + 1) % len(x)  # start behind the widest gap of the circle
            x = torch.cat([x[first:], x[:first] + 1])
            w = torch.cat([w[first:], w[:first]])
            group = torch.cat([x.new_zeros(1), (x.diff() > radius).to(x.dtype)]).cumsum(0).long()
            mass = w.new_zeros(int(group[-1]) + 1).index_add(0, group, w)
            moment = torch.zeros_like(mass).index_add(0, group, w * x)
            centres.append((moment / mass).remainder(1))
            masses.append(mass)
        centre = torch.cat([self.positions[:0], *centres])
        mass = torch.cat([self.weights[:0], *masses])
        kept = mass.abs() > threshold * mass.abs().sum()
        centre, order = centre[kept].sort()
        return centre, mass[kept][order]

    def __repr__(self) -> str:
        return (
            f"SpikesResult({len(self.positions)} particles, loss={self.losses[-1].item():.6g}, "
            f"gap={self.gap.item():.2g}, n_iter={self.n_iter}, converged={self.converged})"
        )


def fourier_features(x: ArrayLike, n_frequencies: int) -> Tensor:
    """What a low-pass instrument sees of a unit spike: φ(x) = (1, √2 cos 2πkx, √2 sin 2πkx) / √(2 n_f + 1).

    All φ(x) have norm 1, and ⟨φ(x), φ(x')⟩ is the normalised Dirichlet kernel of x − x'. A measure with
    weights w at positions x is observed as ``w @ fourier_features(x, n_frequencies)``.

    Args:
        x: positions on the circle of length 1, shape (…); any real number, taken modulo 1.
        n_frequencies: n_f, the highest frequency that passes, k = 1, …, n_f.

    Returns:
        Features, shape (…, 2 n_f + 1): the constant, the cosines, the sines.

    Raises:
        ValueError: if x is not finite or n_frequencies is below 1.

    Example:
        >>> phi = fourier_features(torch.tensor([0.0, 0.5]), 1)
        >>> (phi @ phi.T * 3).round()  # 1 + 2 cos 2π(x − x')
        tensor([[ 3., -1.],
                [-1.,  3.]])
    """
    x = _check.line_points(x, "x")
    return _features(x, _check.positive_int(n_frequencies, "n_frequencies"))[0]


def sparse_spikes(
    y: ArrayLike,
    *,
    regularisation: float,
    n_particles: int = 100,
    signed: bool = False,
    step: float = 0.2,
    n_steps: int = 20_000,
    tol: float = 1e-6,
    start: ArrayLike | None = None,
    generator: torch.Generator | None = None,
) -> SpikesResult:
    """Deconvolve spikes on the circle: minimise F(μ) = ½ ‖Φμ − y‖² + λ |μ| by a gradient flow of particles.

    Φμ = ∫ φ dμ with φ from :func:`fourier_features`, and |μ| is the total mass of a non-negative measure,
    or the total variation of a signed one. F is convex in μ; the m particles follow its gradient flow in
    their weights and positions,

        w' = −4 w J(x)   and   x' = −4 ℓ² J'(x)   with   J(x) = λ − s ⟨φ(x), y − Φμ⟩,

    where s is the sign of the particle, which never changes, J the first variation of F, and
    ℓ = 1 / |φ'| the length of the kernel. With w = s r² this is the gradient flow in a cone: r' = −2 r J.
    Steps are explicit, multiplicative in the weights, and halved when F would rise.

    Args:
        y: observation, shape (2 n_f + 1,).
        regularisation: λ > 0, in units of mass; the minimiser is 0 if λ ≥ max_x |⟨φ(x), y⟩|.
        n_particles: m; ignored if ``start`` is given. Fewer than spikes cannot, just as many often do not,
            reach the minimum.
        signed: allow negative weights; every other particle is then negative.
        step: first length of a step, in units of 1 / max_x |⟨φ(x), y⟩|.
        n_steps: largest number of steps.
        tol: stop when the duality gap is at most tol times F(0) = ½ ‖y‖². It is looked at every 50 steps.
        start: initial positions, shape (m,).
        generator: source of uniform initial positions; needed unless ``start`` is given.

    Returns:
        The particles, the losses, the duality gap and the certificate. All weights start equal, with a tenth
        of the mass scale max_x |⟨φ(x), y⟩| in total.

    Raises:
        ValueError: for an observation of even or too short length, not finite or zero, parameters that are
            not positive, ``signed`` with a single particle.
        TypeError: for a missing generator.

    Warns:
        ConvergenceWarning: if the gap is above the tolerance after the last step: too few particles or steps.

    Source:
        Chizat and Bach (2018), section 4.1, in the conic form of Chizat (2022), algorithm 1.

    Example:
        >>> phi = fourier_features(torch.tensor([0.2, 0.7], dtype=torch.float64), 6)
        >>> y = torch.tensor([1.0, 2.0], dtype=torch.float64) @ phi
        >>> g = torch.Generator().manual_seed(0)
        >>> result = sparse_spikes(y, regularisation=0.01, n_particles=30, generator=g)
        >>> x, w = result.clusters()
        >>> [round(v, 2) for v in x.tolist() + w.tolist()]
        [0.2, 0.7, 0.99, 1.99]
    """
    y = _check.line_points(y, "y")
    if y.ndim != 1 or len(y) < 3 or len(y) % 2 == 0:
        raise ValueError(
            f"y must have shape (2 n_f + 1,) with n_f ≥ 1, but has shape {tuple(y.shape)}; "
            "observe by weights @ fourier_features(positions, n_f)"
        )
    n_f, lam = len(y) // 2, _check.positive(regularisation, "regularisation")
    step, tol = _check.positive(step, "step"), _check.positive(tol, "tol")
    n_steps = _check.positive_int(n_steps, "n_steps")
    if start is None:
        m = _check.positive_int(n_particles, "n_particles")
        g = _check.generator(generator)
        x = torch.rand(m, generator=g, dtype=y.dtype, device=g.device).to(y.device)
    else:
        x = _check.line_points(start, "start", like=y).detach().clone().remainder(1)
        if x.ndim != 1:
            raise ValueError(f"start must have shape (m,), but has shape {tuple(x.shape)}")
    if signed and len(x) < 2:
        raise ValueError("signed spikes need at least 2 particles, one of each sign; raise n_particles")
    y = y.detach()
    grid = torch.arange(_GRID * n_f, dtype=y.dtype, device=y.device) / (_GRID * n_f)
    scale = float((_features(grid, n_f)[0] @ y).abs().max())
    if scale == 0:
        raise ValueError("y is zero, which the zero measure explains; there is no spike to find")
    sign = torch.ones_like(x)
    if signed:
        sign[1::2] = -1
    mass = torch.full_like(x, 0.1 * scale / len(x))
    return _flow(y, x, mass, sign, lam, signed, step / scale, n_steps, tol, grid)


@torch.no_grad()
def _flow(
    y: Tensor,
    x: Tensor,
    mass: Tensor,
    sign: Tensor,
    lam: float,
    signed: bool,
    tau: float,
    n_steps: int,
    tol: float,
    grid: Tensor,
) -> SpikesResult:
    n_f = len(y) // 2
    squared_length = 3 / (4 * math.pi**2 * n_f * (n_f + 1))  # ℓ², as |φ'|² = 4π² n_f (n_f + 1) / 3
    target = tol * float(y @ y) / 2
    phi, slope = _features(x, n_f)
    residual = y - (sign * mass) @ phi
    loss = residual @ residual / 2 + lam * mass.sum()
    losses, gap, converged = [loss], loss, False
    for k in range(n_steps + 1):
        if k % 50 == 0 or k == n_steps:
            gap = _gap(y, residual, loss, torch.cat([grid, x]), lam, signed)
            converged = bool(gap <= target)
            if converged or k == n_steps:
                break
        first = lam - sign * (phi @ residual)  # J at the particles
        pull = sign * (slope @ residual)  # −J'
        while True:
            new_mass = mass * torch.exp(-4 * tau * first)
            new_x = (x + 4 * tau * squared_length * pull).remainder(1)
            new_phi, new_slope = _features(new_x, n_f)
            new_residual = y - (sign * new_mass) @ new_phi
            new_loss = new_residual @ new_residual / 2 + lam * new_mass.sum()
            # Rounding alone may raise the loss of a particle system at rest.
            if new_loss <= loss * (1 + 10 * torch.finfo(y.dtype).eps):
                break
            tau /= 2
        x, mass, phi, slope, residual, loss = new_x, new_mass, new_phi, new_slope, new_residual, new_loss
        losses.append(loss)
    if not converged:
        warnings.warn(
            f"the duality gap is {float(gap):.2g} > {target:.2g} after {n_steps} steps with {len(x)} "
            "particles; use more particles, more steps or a larger tol",
            ConvergenceWarning,
            stacklevel=3,
        )
    return SpikesResult(
        x, sign * mass, torch.stack(losses), gap, residual, lam, signed, len(losses) - 1, converged
    )


def _gap(y: Tensor, residual: Tensor, loss: Tensor, x: Tensor, lam: float, signed: bool) -> Tensor:
    """F(μ) minus the dual value ½ ‖y‖² − ½ ‖y − p‖² of the residual scaled until ⟨φ, p⟩ ≤ λ everywhere.

    The largest value of the trigonometric polynomial ⟨φ, residual⟩ is found on the grid and the particles
    and then by Newton steps, so it is exact up to rounding unless two peaks are within the grid's resolution.
    """
    n_f = len(y) // 2
    peak = residual.new_zeros(())
    for s in (1, -1) if signed else (1,):
        values = s * (_features(x, n_f)[0] @ residual)
        best = values.argmax()
        at, peak = x[best], torch.maximum(peak, values[best])
        k = 2 * math.pi * torch.arange(1, n_f + 1, dtype=y.dtype, device=y.device)
        curvature = torch.cat([y.new_zeros(1), -(k**2), -(k**2)])
        for _ in range(3):
            phi, slope = _features(at, n_f)
            second = s * ((curvature * phi) @ residual)
            if second >= 0:
                break
            at = at - s * (slope @ residual) / second
        peak = torch.maximum(peak, s * (_features(at, n_f)[0] @ residual))
    p = residual * torch.clamp(lam / peak, max=1.0) if peak > 0 else residual
    return loss - (y @ y - (y - p) @ (y - p)) / 2


def _features(x: Tensor, n_f: int) -> tuple[Tensor, Tensor]:
    """φ(x) and φ'(x), shape (…, 2 n_f + 1)."""
    k = 2 * math.pi * torch.arange(1, n_f + 1, dtype=x.dtype, device=x.device)
    angle = x[..., None] * k
    cosine, sine = torch.cos(angle), torch.sin(angle)
    one, root = torch.ones_like(x)[..., None], math.sqrt(2)
    phi = torch.cat([one, root * cosine, root * sine], -1)
    slope = torch.cat([0 * one, -root * k * sine, root * k * cosine], -1)
    norm = math.sqrt(2 * n_f + 1)
    return phi / norm, slope / norm
