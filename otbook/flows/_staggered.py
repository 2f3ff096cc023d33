"""A staggered grid in time and space: differences, averages, and the projection on the continuity equation.

Densities live on the faces between time steps, momenta on the faces between cells, where the continuity
equation is exact; the kinetic energy needs both in one place, the cells, as averages of two faces.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


class StaggeredGrid:
    """The staggered grid: U lives on the inner faces, V in the cells; axis 0 is time.

    On each axis D takes differences of neighbouring faces and A averages them, from the n − 1 inner
    faces to the n cells. Cosines diagonalise D (AᵀA)⁻¹ Dᵀ: since AᵀA = 1 − h²/4 DᵀD, its eigenvalue
    for the k-th cosine is (2 sin θ/h)² / cos² θ = (2 tan θ/h)² with θ = πk/2n.
    """

    def __init__(self, start: Tensor, end: Tensor, T: int, lengths: list[float]) -> None:
        self.start, self.end = start, end
        sizes = (T, *start.shape)
        steps = [length / n for length, n in zip((1.0, *lengths), sizes, strict=True)]
        self.D, self.A, self.Q, self.cosines, eigenvalues = [], [], [], [], 0
        for axis, (n, h) in enumerate(zip(sizes, steps, strict=True)):
            k = torch.arange(n, dtype=torch.float64)
            cells, faces = torch.eye(n, dtype=torch.float64)[:, :-1], torch.eye(n, dtype=torch.float64)[:, 1:]
            D, A = (cells - faces) / h, (cells + faces) / 2
            F = torch.cos(math.pi * k[:, None] * (k + 0.5) / n) * math.sqrt(2 / n)
            F[0] /= math.sqrt(2)
            for into, M in ((self.D, D), (self.A, A), (self.Q, torch.linalg.inv(A.T @ A)), (self.cosines, F)):
                into.append(M.to(start))
            tangents = (2 * torch.tan(math.pi * k / (2 * n)) / h).square()
            eigenvalues = eigenvalues + tangents.reshape(-1, *[1] * (len(sizes) - axis - 1))
        # The constant mode has no equation: all masses agree.
        self.inverse = torch.where(eigenvalues > 0, 1 / eigenvalues, 0).to(start)
        # What the given ends contribute to divergences and averages.
        self.source, self.ends = (torch.zeros(sizes, dtype=start.dtype, device=start.device) for _ in "ab")
        self.source[0], self.source[-1] = start * T, -end * T
        self.ends[0], self.ends[-1] = start / 2, end / 2

    def mixture(self) -> Tensor:
        """The averages at the start of the iterations: mass fades from one density into the other."""
        T = len(self.ends)
        t = ((torch.arange(T) + 0.5) / T).to(self.start).reshape(-1, *[1] * self.start.ndim)
        rho = (1 - t) * self.start + t * self.end
        return torch.stack([rho, *[torch.zeros_like(rho)] * self.start.ndim])

    def divergence(self, U: list[Tensor]) -> Tensor:
        """∂ₜρ + div m in the cells."""
        return sum(_along(D, u, k) for k, (D, u) in enumerate(zip(self.D, U, strict=True))) - self.source

    def average(self, U: list[Tensor]) -> Tensor:
        """(ρ, m) in the cells."""
        V = torch.stack([_along(A, u, k) for k, (A, u) in enumerate(zip(self.A, U, strict=True))])
        V[0] += self.ends
        return V

    def project(self, Y: Tensor) -> list[Tensor]:
        """The U with zero divergence whose averages are nearest to Y."""
        shifted = [Y[0] - self.ends, *Y[1:]]
        U = [_along(self.Q[k] @ self.A[k].T, y, k) for k, y in enumerate(shifted)]
        phi = self._multiplier(self.divergence(U))
        return [u - _along(self.Q[k] @ self.D[k].T, phi, k) for k, u in enumerate(U)]

    def lower_bound(self, w: Tensor) -> Tensor:
        """Value of the dual problem at a feasible point near w, the slopes of the energy in the cells.

        Feasible are w with Aᵀw = Dᵀφ for some φ, and w₀ + |w₁…d|²/4 ≤ 0 in every cell; the dual value is
        the sum of φ·source + w₀·ends. The first is mended by a projection; then w₀ is lowered, by a
        number for each time step, until the second holds.
        """
        r = [_along(A.T, w[k], k) for k, A in enumerate(self.A)]
        DQr = sum(_along(self.D[k] @ self.Q[k], r[k], k) for k in range(len(w)))
        phi = self._multiplier(DQr)
        e = [r[k] - _along(D.T, phi, k) for k, D in enumerate(self.D)]
        w = torch.stack([w[k] - _along(self.A[k] @ self.Q[k], e[k], k) for k in range(len(w))])
        excess = (w[0] + w[1:].square().sum(0) / 4).flatten(1).amax(1)
        return (phi * self.source + w[0] * self.ends).mean() - excess.mean()

    def _multiplier(self, residual: Tensor) -> Tensor:
        """Solve Σ D (AᵀA)⁻¹ Dᵀ φ = residual, with mean 0."""
        for k, F in enumerate(self.cosines):
            residual = _along(F, residual, k)
        phi = residual * self.inverse
        for k, F in enumerate(self.cosines):
            phi = _along(F.T, phi, k)
        return phi


def with_walls(u: Tensor, axis: int) -> Tensor:
    """Add the two faces in the walls, through which nothing flows."""
    wall = torch.zeros_like(u.narrow(axis, 0, 1))
    return torch.cat([wall, u, wall], dim=axis)


def _along(M: Tensor, x: Tensor, axis: int) -> Tensor:
    """Apply a matrix along one axis; on grids that fit in memory as fast as an FFT, and on any device."""
    return torch.tensordot(x, M, dims=([axis], [1])).movedim(-1, axis)
