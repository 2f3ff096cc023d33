"""Densities in the plane that can be integrated exactly over polygons: constant on each pixel.

By Green's theorem the integral of a function over a polygon is a sum over its edges, of the primitive
in x times dy. On a pixel all primitives needed here are polynomials of degree 3 at most, for which two
Gauss nodes are exact. So it is enough to cut every edge where it crosses the grid.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .. import _check
from .._check import ArrayLike


@dataclass(frozen=True, eq=False, repr=False)
class Density:
    """A probability density in the plane: constant on each pixel of a box, and 0 outside a convex polygon.

    Made by :func:`uniform_density` and :func:`pixel_density`.

    Attributes:
        values: density on the pixels, per unit of area, shape (h, w); as in a picture, row 0 is on top.
        box: lower left and upper right corner of the picture, shape (2, 2).
        domain: corners of the polygon, counter-clockwise, shape (k, 2); it lies in the box.
    """

    values: Tensor
    box: Tensor
    domain: Tensor

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw n independent points, shape (n, 2), on the device of the density.

        It may be passed to :func:`~otbook.semidiscrete.stochastic_dual`. The generator lives on the CPU.
        """
        n = _check.positive_int(n, "n")
        _check.generator(generator)
        values, box, domain = (t.detach().cpu().double() for t in (self.values, self.box, self.domain))
        h, w = values.shape
        inward = _normals(domain)
        points = torch.empty(0, 2, dtype=torch.float64)
        while len(points) < n:  # the polygon may leave out a part of the box: reject
            pixel = torch.multinomial(values.flatten(), n, replacement=True, generator=generator)
            corner = torch.stack([pixel % w, h - 1 - pixel // w], dim=1)
            within = torch.rand(n, 2, generator=generator, dtype=torch.float64)
            x = box[0] + (box[1] - box[0]) * (corner + within) / torch.tensor([w, h])
            inside = ((x[:, None] - domain) * inward).sum(-1) >= 0
            points = torch.cat([points, x[inside.all(1)]])
        return points[:n].to(self.values)

    def __repr__(self) -> str:
        h, w = self.values.shape
        return f"Density({h}×{w} pixels, domain with {len(self.domain)} corners)"


def uniform_density(domain: ArrayLike | None = None) -> Density:
    """The uniform density on a convex polygon.

    Args:
        domain: its corners in order, in either direction, shape (k, 2); the unit square if None.

    Returns:
        A :class:`Density`.

    Raises:
        ValueError: if the corners do not go around a convex polygon once.

    Example:
        >>> triangle = uniform_density([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> triangle.values
        tensor([[2.]])
    """
    if domain is None:
        domain = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]], dtype=torch.float64)
    domain = _check.points(domain, "domain").detach()
    if domain.ndim != 2 or domain.shape[1] != 2 or len(domain) < 3:
        raise ValueError(
            f"domain must have shape (k, 2) with at least 3 corners, but has shape {tuple(domain.shape)}"
        )
    area = _area(domain)
    if area < 0:
        domain, area = domain.flip(0), -area
    edges = (domain.roll(-1, 0) - domain).double()
    following = edges.roll(-1, 0)
    turns = edges[:, 0] * following[:, 1] - edges[:, 1] * following[:, 0]
    angles = torch.atan2(turns, (edges * following).sum(1))
    sizes = edges.norm(dim=1)
    if not (area > 0 and sizes.min() > 0 and (turns >= -1e-12 * area.double()).all() and angles.sum() < 6.5):
        raise ValueError(
            "domain is not a convex polygon with positive area and distinct corners in order; "
            "pass the corners of its convex hull, one after the other"
        )
    box = torch.stack([domain.amin(0), domain.amax(0)])
    return Density(values=(1 / area).reshape(1, 1), box=box, domain=domain)


def pixel_density(values: ArrayLike, *, box: ArrayLike | None = None) -> Density:
    """The density that is constant on each pixel of a picture.

    Args:
        values: non-negative numbers, shape (h, w), up to a factor; row 0 is on top, as in a picture.
        box: lower left and upper right corner of the picture, shape (2, 2); if None, its height is 1
            and its pixels are squares: [0, w/h] × [0, 1].

    Returns:
        A :class:`Density`, of mass 1.

    Raises:
        ValueError: for negative values, a zero sum or an empty box.

    Example:
        >>> dark_left = pixel_density([[3.0, 1.0]], box=[[0.0, 0.0], [1.0, 1.0]])
        >>> dark_left.values
        tensor([[1.5000, 0.5000]])
    """
    values = _check.points(values, "values").detach()
    if values.ndim != 2:
        raise ValueError(f"values must have shape (h, w), but has shape {tuple(values.shape)}")
    if (values < 0).any() or values.sum() <= 0:
        raise ValueError(
            f"values of a density are non-negative with a positive sum, but the least is "
            f"{values.min().item():.6g} and the sum {values.sum().item():.6g}; use values.clamp(min=0)"
        )
    h, w = values.shape
    corners = [[0.0, 0.0], [w / h, 1.0]] if box is None else box
    box = _check.points(corners, "box", like=values).detach()
    if box.shape != (2, 2) or not (box[0] < box[1]).all():
        raise ValueError(
            f"box must be [lower left, upper right], shape (2, 2), but is {box.tolist()}; order the corners"
        )
    (left, bottom), (right, top) = box
    domain = torch.stack([left, bottom, right, bottom, right, top, left, top]).reshape(4, 2)
    pixel = (box[1] - box[0]).prod() / (h * w)
    return Density(values=values / (values.sum() * pixel), box=box, domain=domain)


def check_density(density: Density | ArrayLike | None, like: Tensor) -> Density:
    """What a solver was given: a density of the dtype and device of the points, or what makes one."""
    if density is None:
        unit = uniform_density()
        return Density(*(t.to(like) for t in (unit.values, unit.box, unit.domain)))
    if not isinstance(density, Density):
        return pixel_density(_check.points(density, "density", like=like))
    for name in ("values", "box", "domain"):
        _check.tensor(getattr(density, name), "density", like=like)
    return density


class Grid:
    """A density in float64 and NumPy, in coordinates u = (x − centre)/radius, ready to be integrated."""

    def __init__(self, density: Density):
        box, values, domain = (
            t.detach().cpu().double().numpy() for t in (density.box, density.values, density.domain)
        )
        self.centre, self.radius = box.mean(0), float((box[1] - box[0]).max()) / 2
        self.domain = (domain - self.centre) / self.radius
        self.lower = (box[0] - self.centre) / self.radius
        self.values = self.radius**2 * np.flipud(values)  # row 0 is at the bottom from here on
        self.shape = np.array(values.shape[::-1])  # pixels in x and in y
        self.pixel = (box[1] - box[0]) / self.radius / self.shape
        self._accumulate()
        parts, _ = self.masses(self.domain, np.roll(self.domain, -1, 0))
        self.values /= parts.sum()  # a density in float32 has mass 1 to seven digits only
        self._accumulate()

    def _accumulate(self) -> None:
        """∫ s^p ρ(s, y) ds from the left to each grid line, p = 0, 1, 2, shape (3, h, w)."""
        powers = np.arange(1, 4)[:, None]
        lines = self.lower[0] + self.pixel[0] * np.arange(self.shape[0] + 1)
        increments = np.diff(lines**powers / powers)[:, None] * self.values
        self.primitives = np.cumsum(increments, axis=2) - increments

    def blend(self, share: float) -> Grid:
        """The mixture of the density with the uniform one, in which the latter has this share."""
        mixed = object.__new__(Grid)
        vars(mixed).update(vars(self))
        area = 0.5 * np.sum(_cross(self.domain, np.roll(self.domain, -1, 0)))
        mixed.values = (1 - share) * self.values + share / area
        mixed._accumulate()
        return mixed

    def masses(self, start: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What each edge, (e, 2) to (e, 2), adds to the mass on its left, and ∫ ρ along it, both (e,)."""
        edge, t0, t1 = self._pieces(start, end)
        step = (end - start)[edge]
        middle = start[edge] + ((t0 + t1) / 2)[:, None] * step
        pixel, line = self._pixels(middle)
        rho = self.values.ravel()[pixel]
        # The primitive is affine along a piece: its middle is enough.
        part = (self.primitives[0].ravel()[pixel] + rho * (middle[:, 0] - line)) * step[:, 1] * (t1 - t0)
        along = rho * (t1 - t0) * np.hypot(step[:, 0], step[:, 1])
        return tuple(np.bincount(edge, p, minlength=len(start)) for p in (part, along))

    def moments(self, start: np.ndarray, end: np.ndarray) -> np.ndarray:
        """What each edge adds to ∫ xρ, ∫ yρ and ∫ (x² + y²)ρ on its left, shape (3, e)."""
        edge, t0, t1 = self._pieces(start, end)
        start, step = start[edge], (end - start)[edge]
        middle, half = (t0 + t1) / 2, (t1 - t0) / 2
        pixel, line = self._pixels(start + middle[:, None] * step)
        rho = self.values.ravel()[pixel]
        R0, R1, R2 = self.primitives.reshape(3, -1)[:, pixel]
        parts = np.zeros((3, len(edge)))
        for node in (-1 / math.sqrt(3), 1 / math.sqrt(3)):
            x, y = (start + (middle + node * half)[:, None] * step).T
            S0, S1, S2 = (R + rho * (x**p - line**p) / p for p, R in ((1, R0), (2, R1), (3, R2)))
            parts += np.stack([S1, y * S0, S2 + y**2 * S0])
        parts *= half * step[:, 1]
        return np.stack([np.bincount(edge, part, minlength=edge.max(initial=-1) + 1) for part in parts])

    def _pixels(self, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The pixel of each point, numbered row by row from below, and where in x it begins."""
        place = np.clip(np.floor((u - self.lower) / self.pixel).astype(int), 0, self.shape - 1)
        return place @ [1, self.shape[0]], self.lower[0] + self.pixel[0] * place[:, 0]

    def _pieces(self, start: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Cut edges where they cross the grid: for each piece its edge and where on it, t0 ≤ t ≤ t1."""
        edges, cuts = [np.arange(len(start))], [np.zeros(len(start))]
        for axis in (0, 1):
            a, b = ((u[:, axis] - self.lower[axis]) / self.pixel[axis] for u in (start, end))
            first = np.maximum(np.floor(np.minimum(a, b)) + 1, 1).astype(int)
            last = np.minimum(np.ceil(np.maximum(a, b)) - 1, self.shape[axis] - 1).astype(int)
            count = np.maximum(last - first + 1, 0)
            edge = np.repeat(np.arange(len(start)), count)
            rank = np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count)
            edges.append(edge)
            cuts.append((first[edge] + rank - a[edge]) / (b - a)[edge])
        edge, t0 = np.concatenate(edges), np.concatenate(cuts)
        order = np.lexsort((t0, edge))
        edge, t0 = edge[order], t0[order]
        t1 = np.append(t0[1:], 1.0)
        t1[np.append(edge[1:] != edge[:-1], True)] = 1.0  # the last piece of each edge
        return edge, t0, t1


def _area(domain: Tensor) -> Tensor:
    """Signed area of a polygon, positive if it is counter-clockwise."""
    a, b = domain - domain[0], domain.roll(-1, 0) - domain[0]
    return (a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]).sum() / 2


def _normals(domain: Tensor) -> Tensor:
    """Inward normals of the edges of a counter-clockwise polygon, shape (k, 2)."""
    edges = domain.roll(-1, 0) - domain
    return torch.stack([-edges[:, 1], edges[:, 0]], dim=1)


def _cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]
