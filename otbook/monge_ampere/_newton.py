"""One step of Newton's method: residual, linearised equation, and GMRES preconditioned by the FFT."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ._fourier import frequencies, grid

#: Krylov vectors kept by GMRES before it restarts, and restarts in one Newton step.
_KRYLOV, _RESTARTS = 40, 3


@dataclass(frozen=True, eq=False)
class State:
    """What Newton's method knows at one potential: residual and coefficients of the linearised equation."""

    map: Tensor
    jacobian: Tensor
    residual: Tensor
    shift: float
    coefficients: Tensor

    @property
    def error(self) -> float:
        return self.residual.abs().max().item()

    @property
    def norm(self) -> float:
        return self.residual.norm().item()


class Problem:
    """The equation on one grid; ``w`` is the half spectrum of Δu, shape (n1, n2//2 + 1)."""

    def __init__(self, f: Tensor, g: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
        n1, n2 = f.shape
        (k1, d1), (k2, d2) = frequencies(n1, like=f), frequencies(n2, like=f, half=True)
        k1, d1 = k1[:, None], d1[:, None]
        self.g, self.points, self.log_f = g, grid(n1, n2, like=f), f.log()
        self.laplacian = -(k1**2 + k2**2)
        self.laplacian[0, 0] = 1  # the mean of u is zero, whatever it is divided by
        self.second = torch.stack([-(k1**2) + 0 * k2, -d1 * d2, -(k2**2) + 0 * k1])
        first = torch.stack([1j * d1 + 0 * k2, 1j * d2 + 0 * k1])
        # Multipliers from Δu to u₁₁, u₁₂, u₂₂ (bounded) and to u₁, u₂.
        self.derivatives = torch.cat([self.second + 0j, first]) / self.laplacian
        self.derivatives[:, 0, 0] = 0

    def state(self, w: Tensor) -> State | None:
        """The state at a potential, or None where it is not convex."""
        a, b, c, *gradient = torch.fft.irfft2(self.derivatives * w, s=self.log_f.shape)
        a, c = 1 + a, 1 + c
        jacobian = a * c - b * b
        if not ((jacobian > 0) & (a > 0)).all():
            return None
        image = self.points + torch.stack(gradient, dim=-1)
        log_g, slope = self.g(image.reshape(-1, 2))
        residual = jacobian.log() + log_g.reshape(a.shape) - self.log_f
        shift = residual.mean()
        slope = slope.reshape(image.shape)
        coefficients = torch.stack(
            [c / jacobian, -2 * b / jacobian, a / jacobian, slope[..., 0], slope[..., 1]]
        )
        return State(image, jacobian, residual - shift, shift.item(), coefficients)

    def newton_step(self, state: State) -> tuple[Tensor, int]:
        """Solve tr((D²φ)⁻¹ D²v) + ∇log g(T)·∇v = −residual up to a constant: (Δv, GMRES iterations)."""
        mean = state.coefficients[:3].mean((1, 2))
        averaged = torch.einsum("i,ikl->kl", mean, self.second)
        averaged[0, 0] = 1
        precondition = self.laplacian / averaged  # from the averaged operator applied to v, to Δv

        def spectrum(z: Tensor) -> Tensor:
            return precondition * torch.fft.rfft2(z)

        def apply(z: Tensor) -> Tensor:
            parts = torch.fft.irfft2(self.derivatives * spectrum(z), s=z.shape)
            result = (state.coefficients * parts).sum(0)
            return result - result.mean()

        floor = 1e-5 if state.residual.dtype == torch.float64 else 1e-3
        rtol = min(0.1, max(floor, state.error))  # no more digits than this Newton step can use
        z, n_iter = _gmres(apply, -state.residual, rtol)
        return spectrum(z), n_iter


def _gmres(apply: Callable[[Tensor], Tensor], b: Tensor, rtol: float) -> tuple[Tensor, int]:
    """Restarted GMRES from zero: z with ‖apply(z) − b‖ ≤ rtol ‖b‖, or the best one, and its iterations."""
    z, residual, target, n_iter = torch.zeros_like(b), b, rtol * b.norm(), 0
    for _ in range(_RESTARTS):
        start = residual.norm()
        basis = [residual / start]
        hessenberg = torch.zeros(_KRYLOV + 1, _KRYLOV, dtype=torch.float64)
        for j in range(_KRYLOV):
            n_iter += 1
            new = apply(basis[j])
            for i, q in enumerate(basis):  # modified Gram–Schmidt
                hessenberg[i, j] = torch.vdot(q.flatten(), new.flatten()).item()
                new = new - hessenberg[i, j].item() * q
            hessenberg[j + 1, j] = new.norm().item()
            h, e = hessenberg[: j + 2, : j + 1], torch.zeros(j + 2, dtype=torch.float64)
            e[0] = start.item()
            y = torch.linalg.lstsq(h, e[:, None]).solution[:, 0]
            if (h @ y - e).norm() <= target or hessenberg[j + 1, j] <= 1e-12 * h[:, 0].norm():
                break
            basis.append(new / hessenberg[j + 1, j].item())
        z = z + sum(coefficient * q for coefficient, q in zip(y.tolist(), basis, strict=False))
        residual = b - apply(z)
        if residual.norm() <= 1.1 * target:
            break
    return z, n_iter
