"""Generating by a semi-discrete map: noise is carried to the codes of data by the gradient of a polyhedron.

The potential φ(z) = max_j ⟨z, y_j⟩ − h_j has a face for every code y_j, and the heights h make the noise on
each face as heavy as its code. Where two faces meet, the map ∇φ jumps. Small jumps are bridged, which
gives new codes; large ones are the gaps between the modes of the data, and are left open.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import _check
from .._check import ArrayLike

#: Entries of the planes at the queries that are held at a time.
_CHUNK = 2**20

#: If less than this share of the noise is accepted, ``sample`` gives up …
_LEAST_ACCEPTED = 1e-3

#: … after it has looked at this much noise at least.
_LEAST_BATCH = 2000


@dataclass(frozen=True, eq=False, repr=False)
class SemidiscreteMap:
    """The Brenier map from a simple noise to weighted codes, and its extension between the codes.

    Attributes:
        codes: y, shape (m, d).
        heights: h of the planes ⟨z, y_j⟩ − h_j, shape (m,), with mean 0.
        centres: barycentre of the noise on each cell, shape (m, d); NaN where a cell has no noise.
        masses: noise on each cell, shape (m,).
        weights: the masses that the cells should have, shape (m,).
        mass_error: Σ_j |mass of cell j − weight j|: exact in the plane, else an upper bound that holds
            with 99 % confidence.
        source: ``"uniform"`` (on the unit cube) or ``"gaussian"`` (standard normal).
    """

    codes: Tensor
    heights: Tensor
    centres: Tensor
    masses: Tensor
    weights: Tensor
    mass_error: float
    source: str

    def noise(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw n points of the source, shape (n, d); the generator lives on the CPU."""
        n = _check.positive_int(n, "n")
        return draw(self.source, n, self.codes, _check.generator(generator))

    def potential(self, z: ArrayLike) -> Tensor:
        """φ(z) = max_j ⟨z, y_j⟩ − h_j, shape (n,): convex, and its gradient in z is the map."""
        z = self._points(z)
        return (z @ self.codes.T - self.heights).amax(1)

    def neighbours(self, z: ArrayLike, k: int) -> Tensor:
        """Numbers of the k highest planes over z, the highest first, shape (n, k)."""
        z, k = self._points(z).detach(), self._count(k)
        pieces = z.split(max(1, _CHUNK // len(self.codes)))
        return torch.cat([(piece @ self.codes.T - self.heights).topk(k, 1).indices for piece in pieces])

    def assign(self, z: ArrayLike) -> Tensor:
        """Number of the cell that holds z, shape (n,)."""
        return self.neighbours(z, 1)[:, 0]

    def __call__(self, z: ArrayLike) -> Tensor:
        """The Brenier map T(z) = ∇φ(z): the code of the cell that holds z, shape (n, d)."""
        return self.codes[self.assign(z)]

    def jumps(self, z: ArrayLike, *, k: int, measure: str = "distance") -> Tensor:
        """How far the codes of the k highest planes over z are from the code of z's own cell, shape (n, k).

        Args:
            z: noise, shape (n, d).
            k: number of planes, the cell's own one included, whose jump is 0.
            measure: ``"distance"``, ‖y_i − y_j‖, by which the map jumps at the wall of cells i and j; or
                ``"angle"``, the dihedral angle of the planes, between their normals (y, −1), in radians.
                Angles depend on the origin and the unit of the codes, distances on neither origin nor
                anything else.

        Returns:
            The jumps, in the order of :meth:`neighbours`.
        """
        measure = _check.choice(measure, "measure", ("distance", "angle"))
        near = self.codes[self.neighbours(z, k)]
        own = near[:, :1]
        if measure == "distance":
            return (near - own).norm(dim=2)
        # tan of the half angle from two unit normals: no loss of digits at small angles.
        normals = torch.cat([near, torch.full_like(near[..., :1], -1.0)], 2)
        normals = normals / normals.norm(dim=2, keepdim=True)
        plus, minus = normals + normals[:, :1], normals - normals[:, :1]
        return 2 * torch.atan2(minus.norm(dim=2), plus.norm(dim=2))

    def extend(
        self, z: ArrayLike, *, k: int | None = None, threshold: float = math.inf, measure: str = "distance"
    ) -> Tensor:
        """The extended map: a weighted mean of the codes of the k highest planes over z.

            T̃(z) = Σ_j λ_j y_j,   λ_j ∝ 1/‖z − c_j‖,   j among the k planes with jump ≤ threshold

        with the centres c_j of the cells. It sends c_j to y_j. The jump to the own code is 0, so
        T̃(z) lies within ``threshold`` of T(z), and is T(z) if no other code does.

        Args:
            z: noise, shape (n, d).
            k: number of planes; d + 1 if None.
            threshold: planes whose jump is larger are left out; in units of ``measure``.
            measure: as for :meth:`jumps`.

        Returns:
            Codes, shape (n, d), detached.
        """
        z = self._points(z).detach()
        threshold = self._threshold(threshold)
        k = self._count(k)
        near = self.neighbours(z, k)
        away = (z[:, None] - self.centres[near]).norm(dim=2)  # (n, k)
        away = away.nan_to_num(nan=math.inf)
        taken = self.jumps(z, k=k, measure=measure) <= threshold
        # All weights times the least distance: no division by 0 at a centre.
        least = away.masked_fill(~taken, math.inf).amin(1, keepdim=True)
        ratio = torch.where(away == least, 1.0, least / away).masked_fill(~taken, 0.0)
        # A cell whose own centre is unknown does not interpolate.
        ratio = torch.where(away[:, :1].isinf(), torch.eye(1, near.shape[1]).to(ratio), ratio)
        share = ratio / ratio.sum(1, keepdim=True)
        return (share[..., None] * self.codes[near]).sum(1)

    def sample(
        self,
        n: int,
        *,
        k: int | None = None,
        threshold: float = math.inf,
        reject: bool = True,
        measure: str = "distance",
        generator: torch.Generator,
    ) -> tuple[Tensor, float]:
        """New codes: the extended map of noise, without the noise near large jumps.

        Args:
            n: number of codes.
            k: number of planes; d + 1 if None.
            threshold: the largest jump that is bridged, in units of ``measure``.
            reject: noise over which one of the k planes has a larger jump is drawn anew. If False, it is
                kept and those planes are left out: nothing is lost, and the modes keep their masses.
            measure: as for :meth:`jumps`.
            generator: source of randomness, on the CPU.

        Returns:
            Codes, shape (n, d), and the share of the noise that was accepted.

        Raises:
            ValueError: if hardly any noise is accepted; raise the threshold.
        """
        n, generator = _check.positive_int(n, "n"), _check.generator(generator)
        threshold = self._threshold(threshold)
        k = self._count(k)
        kept, drawn, found, batch = [], 0, 0, max(n, _LEAST_BATCH) if reject else n
        while found < n:
            z = draw(self.source, batch, self.codes, generator)
            drawn += batch
            if reject:
                z = z[(self.jumps(z, k=k, measure=measure) <= threshold).all(1)]
            kept.append(z)
            found += len(z)
            if found < _LEAST_ACCEPTED * drawn:
                seen = f"only {found} of {drawn} draws have no jump above threshold = {threshold:g}"
                raise ValueError(f"{seen}; raise it, or pass reject=False")
        z = torch.cat(kept)[:n]
        return self.extend(z, k=k, threshold=threshold, measure=measure), found / drawn

    def _points(self, z: ArrayLike) -> Tensor:
        z = _check.points(z, "z", like=self.codes)
        if z.ndim != 2 or z.shape[1] != self.codes.shape[1]:
            raise ValueError(f"z must have shape (n, {self.codes.shape[1]}), but has shape {tuple(z.shape)}")
        return z

    def _count(self, k: int | None) -> int:
        if k is None:
            return min(self.codes.shape[1] + 1, len(self.codes))
        k = _check.positive_int(k, "k")
        if k > len(self.codes):
            raise ValueError(f"k must be at most the number of codes, {len(self.codes)}, but is {k}")
        return k

    @staticmethod
    def _threshold(value: float) -> float:
        if not value >= 0:
            raise ValueError(
                f"threshold must be a number of at least 0, but is {value!r}; inf bridges all jumps"
            )
        return float(value)

    def __repr__(self) -> str:
        m, d = self.codes.shape
        return f"SemidiscreteMap({m} codes in dimension {d}, {self.source}, mass_error={self.mass_error:.2g})"


def draw(source: str, n: int, like: Tensor, generator: torch.Generator) -> Tensor:
    """Noise, drawn in float64 on the CPU, so that a seed means the same everywhere."""
    draw = torch.rand if source == "uniform" else torch.randn
    return draw(n, like.shape[1], generator=generator, dtype=torch.float64).to(like)
