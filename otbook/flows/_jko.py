"""The JKO scheme between Gaussians: implicit Euler steps of the Fokker–Planck equation, in closed form."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _check
from .._check import ArrayLike
from .._roots import psd_root
from ..gaussian._moments import gaussian, root


def jko_gaussian(
    mean: ArrayLike,
    cov: ArrayLike,
    precision: ArrayLike,
    centre: ArrayLike | None = None,
    *,
    tau: float,
    n_steps: int,
) -> tuple[Tensor, Tensor]:
    """Steps ρ_{k+1} = argmin_ρ F(ρ) + W₂²(ρ, ρ_k) / 2τ from a Gaussian, where

        F(ρ) = ∫ V dρ + ∫ ρ log ρ dx,   V(x) = ½ (x − c)ᵀ A (x − c).

    Every ρ_k is Gaussian. With M = I + τA the step is

        M (m' − c) = m − c,   M S' M + τ² S'⁻¹ = S + 2τM,

    solved by S' = L⁻ᵀ Y L⁻¹, M = LLᵀ, √Y = (√Q + √(Q + 4τI)) / 2, Q = L⁻¹ S L⁻ᵀ. For positive
    definite A the steps converge to N(c, A⁻¹) for every τ, without bias. Differentiable once.

    Args:
        mean: mean of ρ_0, shape (…, d).
        cov: covariance S of ρ_0, shape (…, d, d); may be singular, and need not commute with A.
        precision: A, symmetric, shape (…, d, d). Zero gives the heat flow; negative eigenvalues
            are allowed as long as M is positive definite.
        centre: c, shape (…, d); the origin if None.
        tau: step τ, in units of time; the flow is ∂ρ/∂t = Δρ + div(ρ∇V).
        n_steps: number of steps.

    Returns:
        Means, shape (n_steps + 1, …, d), and covariances, shape (n_steps + 1, …, d, d); the first
        are those of ρ_0.

    Raises:
        ValueError: for matrices that are not symmetric, not finite or of the wrong shape, a
            covariance with a negative eigenvalue, and a tau for which M is not positive definite.

    Source:
        Jordan, Kinderlehrer and Otto (1998), their discrete scheme; the formula solves its
        optimality condition.

    Example:
        >>> means, covs = jko_gaussian([2.0], [[0.0]], [[1.0]], tau=1.0, n_steps=1)
        >>> means[1], covs[1]
        (tensor([1.]), tensor([[0.5000]]))
    """
    mean, cov = gaussian(mean, cov, "mean", "cov", like=_check.first_array(mean, cov, precision))
    centre = torch.zeros_like(mean) if centre is None else centre
    centre, precision = gaussian(centre, precision, "centre", "precision", like=mean)
    _check.same_dimension(mean, centre, ("mean", "centre"))
    tau = _check.positive(tau, "tau")
    n_steps = _check.positive_int(n_steps, "n_steps")
    batch = _check.batch({"(mean, cov)": mean.shape[:-1], "(centre, precision)": centre.shape[:-1]})
    root(cov, "cov")  # for its complaint about negative eigenvalues

    identity = torch.eye(mean.shape[-1], dtype=mean.dtype, device=mean.device)
    L, failed = torch.linalg.cholesky_ex(identity + tau * precision)
    if failed.any():
        lowest = torch.linalg.eigvalsh(precision.detach()).min().item()
        raise ValueError(
            f"tau = {tau:g} is too long for a precision with the eigenvalue {lowest:.6g}: "
            f"I + tau * precision must be positive definite; take tau < {-1 / lowest:.6g}"
        )
    # One step is affine in m − c; in the coordinates of L the equation for S' is scalar.
    offset = (mean - centre).expand(*batch, -1)[..., None]
    S = cov.expand(*batch, *cov.shape[-2:])
    means, covs = [offset], [S]
    for _ in range(n_steps):
        offset = torch.cholesky_solve(offset, L.expand(*batch, *L.shape[-2:]))
        half = torch.linalg.solve_triangular(
            L, torch.linalg.solve_triangular(L, S, upper=False).mT, upper=False
        )
        Q = (half + half.mT) / 2
        Y = (psd_root(Q)[0] + psd_root(Q + 4 * tau * identity)[0]) / 2  # √Y of the docstring
        G = torch.linalg.solve_triangular(L.mT, Y, upper=True)
        S = G @ G.mT
        means.append(offset)
        covs.append(S)
    return torch.stack(means).squeeze(-1) + centre, torch.stack(covs)
