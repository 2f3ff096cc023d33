"""Laguerre cells in the plane, as convex polygons, and exact integrals of a density over them.

Up to a function of x alone, what x pays at point j is the affine function h_j − 2⟨u, z_j⟩ of u, in
coordinates u of the density and z of the points that are centred and scaled. So the cells are where
each of these planes is the lowest. Which cells may touch is read off the lower convex hull of (z_j, h_j).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from scipy import sparse
from scipy.spatial import ConvexHull
from torch import Tensor

from .. import _check, costs
from .._check import ArrayLike
from ._density import Density, Grid, check_density

#: Entries of the cost between queries and points that are held at a time.
_CHUNK = 2**20


@dataclass(frozen=True, eq=False, repr=False)
class LaguerreCells:
    """The cells of m points with prices, and what a density has on them.

    Attributes:
        points, prices, density: the problem, as it was given.
        masses: mass of each cell, shape (m,); they sum to 1.
        barycentres: barycentre of each cell under the density, shape (m, 2); of a cell without mass,
            its point.
        costs: ∫ ‖x − y_j‖² ρ(x) dx over each cell, without ½, shape (m,).
        walls: pairs (j, k), j < k, of cells with a common wall, shape (e, 2), int64.
        flows: for each wall ∫ ρ along it, divided by 2‖y_j − y_k‖, shape (e,): how much mass passes
            from j to k for a unit of price that j charges more.
        polygons: corners of each cell, counter-clockwise: m tensors of shape (k_j, 2), k_j = 0 for an
            empty cell. Formed on first use.
    """

    points: Tensor
    prices: Tensor
    density: Density
    masses: Tensor
    barycentres: Tensor
    costs: Tensor
    walls: Tensor
    flows: Tensor
    _polygons: Callable[[], list[Tensor]]

    @cached_property
    def polygons(self) -> list[Tensor]:
        return self._polygons()

    def assign(self, x: ArrayLike) -> Tensor:
        """Number of the cell that holds x, shape (k,); x may lie outside the domain."""
        return cheapest(x, self.points, self.prices)

    def __repr__(self) -> str:
        empty = int((self.masses == 0).sum())
        return f"LaguerreCells({len(self.masses)} cells, {empty} without mass, {len(self.walls)} walls)"


def laguerre_cells(
    points: ArrayLike, prices: ArrayLike | None = None, density: Density | ArrayLike | None = None
) -> LaguerreCells:
    """The Laguerre (power) cells of points with prices: who buys where.

    Cell j = {x : ‖x − y_j‖² + price_j ≤ ‖x − y_k‖² + price_k for all k}, clipped to the domain of the
    density. With equal prices these are the Voronoi cells. Masses, barycentres, costs and wall integrals
    are exact up to rounding, not sampled.

    Args:
        points: y, all different, anywhere in the plane, shape (m, 2).
        prices: in units of ‖x − y‖², without ½, shape (m,); 0 if None. They are −g for the potentials g
            of :func:`~otbook.semidiscrete.stochastic_dual`.
        density: a :class:`~otbook.semidiscrete.Density`; or pixel values, shape (h, w), as in
            :func:`~otbook.semidiscrete.pixel_density`; the uniform density on the unit square if None.

    Returns:
        A :class:`LaguerreCells`, detached. It is computed in float64 on the CPU and returned in the dtype
        and on the device of the points.

    Raises:
        ValueError: for points that coincide or are not in the plane, and shapes that do not match.

    Source:
        Aurenhammer (1987): cells from a convex hull one dimension up.

    Example:
        >>> cells = laguerre_cells([[0.25, 0.5], [0.75, 0.5]], [0.0, 0.25])
        >>> cells.masses
        tensor([0.7500, 0.2500])
    """
    y = check_points(points)
    prices = check_prices(torch.zeros_like(y[:, 0]) if prices is None else prices, y)
    density = check_density(density, y)
    frame = Frame(y, Grid(density))
    return frame.cells(frame.heights(prices), points=y, prices=prices, density=density)


def check_points(points: ArrayLike) -> Tensor:
    """Different points in the plane, detached."""
    y = _check.points(points, "points").detach()
    if y.ndim != 2 or y.shape[1] != 2:
        raise ValueError(
            f"points must have shape (m, 2), but has shape {tuple(y.shape)}; "
            "in other dimensions use stochastic_dual"
        )
    if len(torch.unique(y, dim=0)) < len(y):
        raise ValueError("two points coincide, and their cells would too; merge them and add their weights")
    return y


def check_prices(prices: ArrayLike, y: Tensor) -> Tensor:
    """One finite price for each point, detached."""
    prices = _check.tensor(prices, "prices", like=y).detach()
    if prices.shape != (len(y),):
        raise ValueError(f"prices must have shape ({len(y)},), but has shape {tuple(prices.shape)}")
    if not torch.isfinite(prices).all():
        raise ValueError("prices must be finite; give a point without customers a high price instead")
    return prices


def cheapest(x: ArrayLike, y: Tensor, prices: Tensor) -> Tensor:
    """argmin_j ‖x − y_j‖² + price_j, shape (k,)."""
    x = _check.points(x, "x", like=y)
    if x.ndim != 2 or x.shape[1] != 2:
        raise ValueError(f"x must have shape (k, 2), but has shape {tuple(x.shape)}")
    pieces = x.detach().split(max(1, _CHUNK // len(y)))
    return torch.cat([(costs.sqeuclidean(piece, y) + prices).argmin(1) for piece in pieces])


class Frame:
    """Points z = (y − mean)/spread beside a density in its own coordinates: prices become heights.

    Moving or scaling all points changes heights by nothing, but prices by large numbers. So digits are
    lost only when prices are read in or written out.
    """

    def __init__(self, y: Tensor, grid: Grid):
        self.y, self.grid = y.cpu().double().numpy(), grid
        self.mean = self.y.mean(0)
        self.spread = float(np.abs(self.y - self.mean).max()) or 1.0  # 1 for a single point
        self.z = (self.y - self.mean) / self.spread
        self.unit = grid.radius * self.spread  # one unit of height, as a price

    def heights(self, prices: Tensor) -> np.ndarray:
        """Heights h of given prices, up to a constant."""
        squares = np.square(self.y - self.grid.centre).sum(1)
        return (prices.cpu().double().numpy() + squares) / self.unit

    def prices(self, h: np.ndarray) -> np.ndarray:
        """Prices of given heights, up to a constant."""
        return self.unit * h - np.square(self.y - self.grid.centre).sum(1)

    def cells(self, h: np.ndarray, *, points: Tensor, prices: Tensor, density: Density) -> LaguerreCells:
        """The public result."""
        diagram = Diagram(self.z, h, self.grid)
        mass, radius, centre = diagram.masses, self.grid.radius, self.grid.centre
        filled = mass > 0
        barycentres = self.y.copy()
        *first, second = diagram.moments()
        first = np.stack(first, axis=1)
        barycentres[filled] = centre + radius * first[filled] / mass[filled, None]
        d = (self.y - centre) / radius
        costs = radius**2 * (second - 2 * (d * first).sum(1) + (d**2).sum(1) * mass)
        upper = sparse.triu(diagram.flows).tocoo()
        return LaguerreCells(
            points=points,
            prices=prices,
            density=density,
            masses=torch.from_numpy(mass).to(points),
            barycentres=torch.from_numpy(barycentres).to(points),
            costs=torch.from_numpy(costs.clip(min=0)).to(points),
            walls=torch.from_numpy(np.stack([upper.row, upper.col], 1)).long().to(points.device),
            flows=torch.from_numpy(upper.data / self.unit).to(points),
            _polygons=lambda: [torch.from_numpy(centre + radius * p).to(points) for p in diagram.polygons()],
        )


class Diagram:
    """The cells of heights h in the coordinates of the grid, their masses and the flows between them."""

    def __init__(self, z: np.ndarray, h: np.ndarray, grid: Grid):
        j, k, visible = neighbours(z, h, grid.domain)
        self.grid = grid
        self.corners, self.counts, labels = _carve(z, h, grid.domain, j, k, visible)
        m, slots = labels.shape
        following = np.where(np.arange(1, slots + 1) < self.counts[:, None], np.arange(1, slots + 1), 0)
        ends = np.take_along_axis(self.corners, following[:, :, None], 1)
        # Every wall is seen from two sides; the one of the lower number is enough.
        once = (np.arange(slots) < self.counts[:, None]) & ((labels < 0) | (labels > np.arange(m)[:, None]))
        self.edges = self.corners[once], ends[once]
        self.owner, self.other = np.nonzero(once)[0], labels[once]
        parts, along = grid.masses(*self.edges)
        self.masses = self._sum(parts).clip(min=0)
        wall = self.other >= 0
        owner, other = self.owner[wall], self.other[wall]
        rates = along[wall] / (2 * np.linalg.norm(z[owner] - z[other], axis=1))
        flows = sparse.csr_array((rates, (owner, other)), shape=(m, m))
        self.flows = flows + flows.T

    def moments(self) -> np.ndarray:
        """∫ xρ, ∫ yρ and ∫ (x² + y²)ρ over each cell, shape (3, m)."""
        return np.stack([self._sum(part) for part in self.grid.moments(*self.edges)])

    def _sum(self, parts: np.ndarray) -> np.ndarray:
        """Parts of the edges, added up over the cells on their left, less those on their right."""
        m, wall = len(self.counts), self.other >= 0
        left = np.bincount(self.owner, parts, minlength=m)
        return left - np.bincount(self.other[wall], parts[wall], minlength=m)

    def polygons(self) -> list[np.ndarray]:
        return [self.corners[j, :n] for j, n in enumerate(self.counts)]


def neighbours(z: np.ndarray, h: np.ndarray, domain: np.ndarray) -> tuple[np.ndarray, ...]:
    """Ordered pairs (j, k) of points that share an edge of the lower hull of (z, h), and who is on it.

    Four ghosts around the points, too dear to be chosen anywhere in the domain, keep the hull from
    being flat, however few the points are and even if they lie on a line.
    """
    m = len(z)
    ghosts = 3 * np.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])
    cheap = h.argmin()
    dear = 2 * np.abs(domain @ (ghosts - z[cheap]).T).max() + 1
    lifted = np.column_stack([np.vstack([z, ghosts]), np.append(h - h[cheap], np.full(4, dear))])
    hull = ConvexHull(lifted)
    lower = hull.simplices[hull.equations[:, 2] < 0]
    visible = np.zeros(m + 4, dtype=bool)
    visible[lower] = True
    pairs = np.concatenate([lower[:, [0, 1]], lower[:, [1, 2]], lower[:, [2, 0]]])
    pairs = pairs[(pairs < m).all(1)]
    codes = np.unique(np.concatenate([pairs @ [m, 1], pairs @ [1, m]]))
    return codes // m, codes % m, visible[:m]


def _carve(
    z: np.ndarray, h: np.ndarray, domain: np.ndarray, j: np.ndarray, k: np.ndarray, visible: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cut the domain, for all cells at once, by the half-plane of one neighbour after the other.

    Returns:
        Corners (m, slots, 2), the number of them that each cell uses (m,), and the label of the edge that
        begins at each corner, (m, slots): the cell beyond, or −1 for the edge of the domain.
    """
    m, slots = len(z), len(domain)
    corners = np.tile(domain, (m, 1, 1))
    counts = np.where(visible, slots, 0)
    labels = np.full((m, slots), -1)
    first = np.searchsorted(j, np.arange(m))
    rank = np.arange(len(j)) - first[j]
    for turn in range(rank.max(initial=-1) + 1):
        rows, beyond = j[rank == turn], k[rank == turn]
        normal, offset = 2 * (z[beyond] - z[rows]), h[beyond] - h[rows]
        excess = np.einsum("rsi,ri->rs", corners[rows], normal) - offset[:, None]
        used = np.arange(corners.shape[1]) < counts[rows, None]
        cut = (used & (excess > 0)).any(1)
        rows = rows[cut]
        result = _clip(corners[rows], counts[rows], labels[rows], excess[cut], beyond[cut])
        if result[0].shape[1] > corners.shape[1]:
            grow = max(4, result[0].shape[1] - corners.shape[1])  # not one by one
            corners = np.pad(corners, ((0, 0), (0, grow), (0, 0)))
            labels = np.pad(labels, ((0, 0), (0, grow)))
        width = result[0].shape[1]
        corners[rows, :width], counts[rows], labels[rows, :width] = result
    return corners, counts, labels


def _clip(
    corners: np.ndarray, counts: np.ndarray, labels: np.ndarray, excess: np.ndarray, beyond: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sutherland and Hodgman's clipping of many convex polygons: keep where the excess is ≤ 0."""
    r, slots = labels.shape
    slot = np.arange(slots)
    used = slot < counts[:, None]
    following = np.where(slot + 1 < counts[:, None], slot + 1, 0)
    next_excess = np.take_along_axis(excess, following, 1)
    inside, next_inside = excess <= 0, next_excess <= 0
    leaves, enters = used & inside & ~next_inside, used & ~inside & next_inside
    gap = np.where(leaves | enters, excess - next_excess, 1.0)
    ends = np.take_along_axis(corners, following[:, :, None], 1)
    crossing = corners + (excess / gap)[:, :, None] * (ends - corners)
    # Each slot yields its corner, if that is inside, and then the crossing of its edge, if there is one.
    keep = np.stack([used & inside, leaves | enters], 2).reshape(r, 2 * slots)
    new_corners = np.stack([corners, crossing], 2).reshape(r, 2 * slots, 2)[keep]
    new_labels = np.stack([labels, np.where(leaves, beyond[:, None], labels)], 2).reshape(r, 2 * slots)[keep]
    place, row = (np.cumsum(keep, 1) - 1)[keep], np.nonzero(keep)[0]
    counts = keep.sum(1)
    width = int(counts.max(initial=0))
    clipped, marks = np.zeros((r, width, 2)), np.full((r, width), -1)
    clipped[row, place], marks[row, place] = new_corners, new_labels
    return clipped, counts, marks
