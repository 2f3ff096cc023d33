"""The damped Newton method for the prices of semi-discrete transport in the plane.

The price of a point rises where its cell is too heavy. How masses answer to prices is the Laplacian of a
graph whose edges are the walls between cells, so that one sparse linear system gives all prices at once.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse
from scipy.sparse.linalg import spsolve
from torch import Tensor

from .. import _check, _envelope
from .._check import ArrayLike
from .._result import ConvergenceWarning
from ._cells import Diagram, Frame, LaguerreCells, cheapest, check_points, check_prices
from ._density import Density, Grid, check_density

#: A Newton step is halved until it is this short.
_LEAST_STEP = 2.0**-30

#: Share of the uniform density below which a blend is as good as the density itself.
_LEAST_SHARE = 1e-9


@dataclass(frozen=True, eq=False, repr=False)
class SemiDiscretePlan:
    """The optimal map from a density in the plane to weighted points.

    Attributes:
        prices: one for each point, in units of ‖x − y‖² (no ½), shape (m,), with ⟨b, prices⟩ = 0.
        value: dual objective Σ_j ∫_{cell j} (‖x − y_j‖² + price_j) dρ − ⟨b, prices⟩: W₂², not rooted.
            Differentiable once in points and weights.
        cost: ∫ ‖x − T(x)‖² dρ(x), of the map, which equals the value when the masses are right.
        cells: the :class:`~otbook.semidiscrete.LaguerreCells`: polygons, walls, costs of each cell.
        n_iter: number of Newton steps.
        mass_error: Σ_j |mass of cell j − b_j|.
        history: this error before the first step and after each, shape (n_iter + 1,); only the last stage
            counts where the density was blended with a uniform one first.
        converged: whether ``mass_error`` reached the tolerance.
        weights: b, as given.
    """

    prices: Tensor
    value: Tensor
    cost: Tensor
    cells: LaguerreCells
    n_iter: int
    mass_error: Tensor
    history: Tensor
    converged: bool
    weights: Tensor

    @property
    def masses(self) -> Tensor:
        """Mass of each cell, shape (m,)."""
        return self.cells.masses

    @property
    def barycentres(self) -> Tensor:
        """Barycentre of each cell, shape (m, 2)."""
        return self.cells.barycentres

    @property
    def polygons(self) -> list[Tensor]:
        """Corners of each cell, counter-clockwise, m tensors of shape (k_j, 2)."""
        return self.cells.polygons

    def assign(self, x: ArrayLike) -> Tensor:
        """Number of the cell that holds x, shape (k,)."""
        return cheapest(x, self.cells.points, self.prices)

    def potential(self, x: ArrayLike) -> Tensor:
        """f(x) = min_j ‖x − y_j‖² + price_j, shape (k,); its gradient is 2(x − T(x))."""
        x = _check.points(x, "x", like=self.prices)
        j = self.assign(x)
        return (x - self.cells.points[j]).square().sum(1) + self.prices[j]

    def __call__(self, x: ArrayLike) -> Tensor:
        """The optimal map: the point y_j in whose cell x lies, shape (k, 2)."""
        return self.cells.points[self.assign(x)]

    def __repr__(self) -> str:
        return (
            f"SemiDiscretePlan(value={self.value.item():.6g}, mass_error={self.mass_error.item():.2g}, "
            f"n_iter={self.n_iter}, converged={self.converged})"
        )


def solve(
    points: ArrayLike,
    weights: ArrayLike | None = None,
    density: Density | ArrayLike | None = None,
    *,
    prices: ArrayLike | None = None,
    tol: float = 1e-10,
    max_iter: int = 200,
) -> SemiDiscretePlan:
    """Transport from a density in the plane to weighted points, to rounding, by damped Newton.

    Maximises over the prices p the concave

        Σ_j ∫_{cell j} (‖x − y_j‖² + p_j) ρ(x) dx − ⟨b, p⟩,

    whose gradient is mass of cell j minus b_j. The value is the squared distance W₂².

    Args:
        points: y, all different, anywhere in the plane, shape (m, 2).
        weights: b, shape (m,), sum 1; uniform if None. Points of weight 0 get an empty cell.
        density: a :class:`~otbook.semidiscrete.Density`; or pixel values, shape (h, w), as in
            :func:`~otbook.semidiscrete.pixel_density`; the uniform density on the unit square if None.
        prices: where to start, shape (m,), for example at the solution of a similar problem. They are not
            used if some cell has no mass there.
        tol: largest accepted Σ_j |mass_j − b_j|. Rounding leaves about 1e-16 for each cell.
        max_iter: largest number of Newton steps.

    Returns:
        A :class:`SemiDiscretePlan`: call it to map points. Computed in float64 on the CPU, returned in the
        dtype and on the device of the points. The value has the gradients 2 b_j (y_j − barycentre_j) in
        the points and −p_j (up to one constant) in the weights; all else is detached.

    Raises:
        ValueError: for points that coincide or are not in the plane, and weights that make no measure.

    Warns:
        ConvergenceWarning: if the tolerance is not reached. Convergence is proved for densities that are
            positive and Hölder continuous on the domain.

    Source:
        Kitagawa, Mérigot and Thibert (2019), algorithm 1. It starts where all cells have mass: from
        the Voronoi cells of the points, all scaled to fill the domain. If a density with holes leaves
        a cell without mass there, it is blended with the uniform one, by less and less.

    Example:
        >>> plan = solve([[0.25, 0.5], [0.75, 0.5]], [0.75, 0.25])
        >>> plan.prices[1] - plan.prices[0], plan([[0.7, 0.2], [0.8, 0.9]])
        (tensor(0.2500), tensor([[0.2500, 0.5000],
                [0.7500, 0.5000]]))
    """
    y = check_points(points)
    given = _check.points(points, "points")
    b_given = _check.weights(weights, len(y), "weights", like=y)
    if b_given.ndim != 1:
        raise ValueError(f"weights must have shape ({len(y)},), but has shape {tuple(b_given.shape)}")
    density = check_density(density, y)
    tol, max_iter = _check.positive(tol, "tol"), _check.positive_int(max_iter, "max_iter")
    grid, full = Grid(density), b_given.detach().cpu().double().numpy()
    competes = full > 0
    frame, b = Frame(y, grid), full[competes] / full.sum()
    z = frame.z[competes]
    h = _start(z, grid)
    if prices is not None:
        proposed = frame.heights(check_prices(prices, y))[competes]
        if Diagram(z, proposed, grid).masses.min() > 0:
            h = proposed
    h, history, n_iter = _ascend(z, h, b, grid, tol, max_iter)
    heights = _hide(frame.z, competes, h, Diagram(z, h, grid))
    prices = frame.prices(heights)
    prices = prices - full @ prices / full.sum()
    cells = frame.cells(heights, points=y, prices=torch.from_numpy(prices).to(y), density=density)
    masses, costs = cells.masses.cpu().double().numpy(), cells.costs.cpu().double().numpy()
    converged = history[-1] <= tol
    if not converged:
        warnings.warn(
            f"solve stopped after {n_iter} Newton steps with mass error {history[-1]:.2g} above tol = "
            f"{tol:g}: raise max_iter or tol; if the density vanishes somewhere, add a small constant to it",
            ConvergenceWarning,
            stacklevel=2,
        )
    value = torch.tensor(costs.sum() + prices @ (masses - full / full.sum())).to(y)
    return SemiDiscretePlan(
        prices=cells.prices,
        value=_envelope.attach(
            value,
            (given, b_given),
            lambda: (2 * cells.masses[:, None] * (y - cells.barycentres), -cells.prices),
            "solve",
        ),
        cost=cells.costs.sum(),
        cells=cells,
        n_iter=n_iter,
        mass_error=torch.tensor(history[-1]).to(y),
        history=torch.tensor(history).to(y),
        converged=bool(converged),
        weights=b_given.detach(),
    )


def _ascend(
    z: np.ndarray, h: np.ndarray, b: np.ndarray, grid: Grid, tol: float, max_iter: int
) -> tuple[np.ndarray, list[float], int]:
    """Heights for the masses b, errors in the last stage, and the number of all steps.

    Where the density has holes, some cell may be without mass at the start, or Newton's method may get
    stuck. Then the density is blended with the uniform one, by less and less: a cell that has mass
    under (1 − s)ρ + s·uniform has some under every blend with a smaller s.
    """
    share, total = 1.0, 0
    while True:
        best, history, steps = _newton(z, h, b, grid, tol, max_iter - total)
        total += steps
        if history[-1] <= tol or total >= max_iter or share < _LEAST_SHARE:
            return best, history, total
        h = _start(z, grid) if share == 1 else h
        h, _, steps = _newton(z, h, b, grid.blend(share), 0.1 * b.min(), max_iter - total)
        share, total = share / 4, total + steps


def _start(z: np.ndarray, grid: Grid) -> np.ndarray:
    """Heights whose cells are the Voronoi cells of κz + centroid, all of them inside the domain.

    Those of κz + c minimise ‖u − κz_j − c‖², which is κ times an affine function h_j − 2⟨u, z_j⟩ plus
    something that all have in common.
    """
    edges = np.roll(grid.domain, -1, 0) - grid.domain
    outward = np.stack([edges[:, 1], -edges[:, 0]], 1)
    centre = grid.domain.mean(0)
    room = ((grid.domain - centre) * outward).sum(1)
    reach = (z @ outward.T).max(0)
    tight = reach > 0
    kappa = 0.9 * (room[tight] / reach[tight]).min() if tight.any() else 1.0
    return np.square(kappa * z + centre).sum(1) / kappa


def _newton(
    z: np.ndarray, h: np.ndarray, b: np.ndarray, grid: Grid, tol: float, max_iter: int
) -> tuple[np.ndarray, list[float], int]:
    """Algorithm 1 of Kitagawa, Mérigot and Thibert (2019), if all cells have mass at h: else no step."""
    diagram = Diagram(z, h, grid)
    least = min(diagram.masses.min(), b.min()) / 2  # ε₀: no cell may lose more
    history, t = [float(np.abs(diagram.masses - b).sum())], 1.0
    while least > 0 and history[-1] > tol and len(history) <= max_iter:
        excess = diagram.masses - b
        step = _laplacian_solve(diagram.flows, excess)
        t = min(1.0, 4 * t)  # where the last step had to be short, it is a waste to begin with 1
        while t > _LEAST_STEP:
            trial = Diagram(z, h + t * step, grid)
            shrinks = np.linalg.norm(trial.masses - b) <= (1 - t / 2) * np.linalg.norm(excess)
            if shrinks and trial.masses.min() >= least:
                break
            t /= 2
        else:
            break  # no step helps: the density is cut in two, or rounding has the last word
        h, diagram = h + t * step, trial
        history.append(float(np.abs(diagram.masses - b).sum()))
    return h, history, len(history) - 1


def _laplacian_solve(flows: sparse.csr_array, excess: np.ndarray) -> np.ndarray:
    """Raise of heights that takes the excess away to first order; that of the first point is 0."""
    out = flows.sum(1)
    laplacian = sparse.diags_array(out) - flows
    # Islands of cells with no flow between them make it singular; this share of its size is harmless.
    laplacian = laplacian + sparse.diags_array(np.full(len(out), 1e-14 * out.max(initial=0)))
    step = np.zeros(len(out))
    if len(out) > 1:
        step[1:] = spsolve(laplacian.tocsc()[1:, 1:], excess[1:])
    return step


def _hide(z: np.ndarray, competes: np.ndarray, h: np.ndarray, diagram: Diagram) -> np.ndarray:
    """Heights of all points: those without weight get the least at which nobody buys from them.

    It is max_u (min_k h_k − 2⟨u, z_k⟩) + 2⟨u, z_j⟩, and this concave function is largest at a corner of
    a cell.
    """
    heights = np.zeros(len(z))
    heights[competes] = h
    if not competes.all():
        corners = np.concatenate(diagram.polygons())
        least = (h - 2 * corners @ z[competes].T).min(1)
        heights[~competes] = (least[:, None] + 2 * corners @ z[~competes].T).max(0)
    return heights
