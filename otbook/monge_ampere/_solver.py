"""Transport between two densities on the flat torus by Newton's method for the Monge–Ampère equation.

The optimal map of the periodic problem is T(x) = x + ∇u(x), with u periodic and φ(x) = |x|²/2 + u(x)
convex. That T carries the density f to g is the change of variables det D²φ · g(∇φ) = f. Here it is
solved in logarithms, with Fourier series for the derivatives, Newton's method for the nonlinearity and
GMRES for the linearised equation, which is preconditioned by its version with averaged coefficients.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import _check
from .._check import ArrayLike
from .._result import ConvergenceWarning
from ._fourier import density, finite_grid, frequencies, grid
from ._newton import Problem
from ._target import target

#: A Newton step is halved at most this often.
_HALVINGS = 25

#: Points at which the map is evaluated at a time.
_CHUNK = 4096


@dataclass(frozen=True, eq=False, repr=False)
class PeriodicMap:
    """Optimal map of the torus [0, 1)² with the cost d(x, y)², the squared distance modulo 1.

    Attributes:
        u: periodic part of the potential φ(x) = |x|²/2 + u(x), mean zero, shape (n1, n2).
        map: T(x) = x + ∇u(x) at the grid points x = (i/n1, j/n2), shape (n1, n2, 2); not reduced
            modulo 1, so that T(x) − x is the displacement.
        jacobian: det DT = det D²φ at the grid points, shape (n1, n2).
        cost: W₂² = ∫ |T(x) − x|² f(x) dx, without ½, for masses as given.
        residual: max over the grid of |log(det D²φ · g(T)) − log f − log λ|, with the λ that makes the
            mean of this zero. Up to λ the relative error of the transported density at the grid points.
        mass_defect: log λ. Zero for the exact solution; what is left of it tells how far the grid is from
            resolving the problem, or by how much the masses differ.
        n_iter: number of Newton steps.
        n_krylov: number of GMRES iterations in all.
        converged: whether ``residual`` and ``mass_defect`` reached their tolerances.
    """

    u: Tensor
    map: Tensor
    jacobian: Tensor
    cost: Tensor
    residual: float
    mass_defect: float
    n_iter: int
    n_krylov: int
    converged: bool

    def __call__(self, x: ArrayLike) -> Tensor:
        """The map at any points x, shape (k, 2) → (k, 2), by the Fourier series of u; differentiable in x."""
        x = _check.points(x, "x", like=self.u)
        if x.ndim != 2 or x.shape[1] != 2:
            raise ValueError(f"x must have shape (k, 2), points of the torus, but has {tuple(x.shape)}")
        n1, n2 = self.u.shape
        (k1, d1), (k2, d2) = frequencies(n1, like=self.u), frequencies(n2, like=self.u)
        u = torch.fft.fft2(self.u, norm="forward")
        gradient = torch.stack([1j * d1[:, None] * u, 1j * d2 * u])  # (2, n1, n2)
        pieces = []
        for part in x.split(_CHUNK):
            rows = torch.exp(1j * part[:, :1] * k1) @ gradient  # (2, k, n2)
            pieces.append((rows * torch.exp(1j * part[:, 1:] * k2)).sum(-1).real.T)
        return x + torch.cat(pieces)

    def __repr__(self) -> str:
        size = "×".join(map(str, self.u.shape))
        return (
            f"PeriodicMap({size} grid, cost={self.cost.item():.6g}, residual={self.residual:.2g}, "
            f"mass_defect={self.mass_defect:.2g}, n_iter={self.n_iter}, converged={self.converged})"
        )


def solve_periodic(
    f: ArrayLike,
    g: ArrayLike | Callable[[Tensor], Tensor],
    *,
    grad_g: Callable[[Tensor], Tensor] | None = None,
    u0: ArrayLike | None = None,
    tol: float | None = None,
    mass_tol: float = 1e-2,
    max_iter: int = 50,
) -> PeriodicMap:
    """Optimal map from the density f to the density g on the torus [0, 1)².

    Finds the periodic u, mean zero, with φ = |x|²/2 + u convex and, for all x,

        det D²φ(x) · g(∇φ(x)) = λ f(x),

    where λ → 1 as the grid is refined. The map ∇φ minimises ∫ d(x, T(x))² f(x) dx over all maps T from
    f to g, d being the distance modulo 1 (squared, without ½).

    Args:
        f: source density at the points (i/n1, j/n2), shape (n1, n2), positive; n1 and n2 even.
        g: target density, positive, of the same mass. Either a function of points (k, 2), with any real
            coordinates, that returns values (k,) and is periodic and differentiable; or values at the
            points (i/m1, j/m2), shape (m1, m2), between which a periodic spline of degree 5 interpolates.
            With a smooth function the error decays faster than any power of 1/n, with values like m⁻⁶.
        grad_g: gradient of the function g, (k, 2) → (k, 2); by automatic differentiation if None.
        u0: potential to start from, shape (n1, n2); zero if None.
        tol: largest accepted ``residual``, a relative error of densities; 1e-10 in float64 and 1e-4 in
            float32 if None.
        mass_tol: largest accepted relative difference of the masses of f and g, measured on grids, and
            largest accepted ``mass_defect`` of the solution. Both are errors of the quadrature, or should be.
        max_iter: largest number of Newton steps.

    Returns:
        A :class:`PeriodicMap`: potential, map, cost and diagnostics. Nothing in it carries gradients.

    Raises:
        ValueError: for densities that are not positive, have an odd size or different masses.
        TypeError: for a g that is neither numbers nor a differentiable function.

    Warns:
        ConvergenceWarning: if a tolerance is not reached, because Newton's method stalls, max_iter is too
            small, or the grid does not resolve the map.

    Note:
        A step is halved until φ stays convex at the grid points and the residual falls. The unknown is Δu,
        which determines D²u through bounded Fourier multipliers, so rounding is not amplified.

    Source:
        Loeper and Rapetti (2005) for a constant g, with the FFT as preconditioner as in Saumier, Agueh and
        Khouider (2015), section 3; here in logarithms, and without a relaxation parameter.

    Example:
        >>> x = grid(32, 32, like=torch.empty(0, dtype=torch.float64))
        >>> def g(y):
        ...     return 1 + 0.5 * torch.cos(2 * torch.pi * y[:, 0])
        >>> T = solve_periodic(torch.ones_like(x[..., 0]), g)
        >>> T
        PeriodicMap(...)
        >>> print(f"{T.cost:.8f} = {0.5**2 / (8 * torch.pi**2):.8f}")
        0.00316629 = 0.00316629
    """
    f = density(f, "f")
    if not mass_tol > 0:
        raise ValueError(f"mass_tol must be above 0, but is {mass_tol}; math.inf accepts every defect")
    g = target(g, grad_g, f, mass_tol)
    if tol is None:
        tol = 1e-10 if f.dtype == torch.float64 else 1e-4
    tol, max_iter = _check.positive(tol, "tol"), _check.positive_int(max_iter, "max_iter")
    problem = Problem(f, g)
    w = torch.zeros_like(problem.laplacian)
    if u0 is not None:
        w = problem.laplacian * torch.fft.rfft2(finite_grid(u0, "u0", f))
    state = problem.state(w)
    if state is None:
        raise ValueError("u0 makes |x|²/2 + u0 non-convex on the grid; scale it down, or leave it out")

    n_iter = n_krylov = 0
    stalled = False
    while not (state.error <= tol or stalled or n_iter == max_iter):
        step, inner = problem.newton_step(state)
        n_krylov += inner
        stalled = True
        for halving in range(_HALVINGS):
            t = 0.5**halving
            trial = problem.state(w + t * step)
            # The decrease that Newton's direction promises, up to a small share (Armijo's rule).
            if trial is not None and trial.norm <= (1 - 1e-4 * t) * state.norm:
                w, state, stalled = w + t * step, trial, False
                n_iter += 1
                break

    converged = state.error <= tol and abs(state.shift) <= mass_tol
    if not converged:
        reason = "no shorter step helps" if stalled else "max_iter is reached"
        if state.error <= tol:
            reason = "the grid does not resolve the map"
        warnings.warn(
            f"solve_periodic stopped after {n_iter} Newton steps ({reason}) with residual {state.error:.2g}, "
            f"tol = {tol:g}, and mass defect {state.shift:.2g}, mass_tol = {mass_tol:g}: use a finer grid or "
            "smoother densities or ones further from zero, or exchange f and g and invert the map; or raise "
            "max_iter or the tolerance",
            ConvergenceWarning,
            stacklevel=2,
        )
    displacement = state.map - grid(*f.shape, like=f)
    return PeriodicMap(
        u=torch.fft.irfft2(w / problem.laplacian, s=f.shape),
        map=state.map,
        jacobian=state.jacobian,
        cost=(displacement.square().sum(-1) * f).mean(),
        residual=state.error,
        mass_defect=state.shift,
        n_iter=n_iter,
        n_krylov=n_krylov,
        converged=converged,
    )
