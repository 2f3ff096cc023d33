"""Entropic transport between Gaussians: its cost and its coupling, which is a Gaussian too."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _check
from .._check import ArrayLike
from .._roots import psd_root, symmetric
from ._moments import pair, root


def entropic_cost(m0: ArrayLike, S0: ArrayLike, m1: ArrayLike, S1: ArrayLike, *, eps: float) -> Tensor:
    """Entropic optimal transport between Gaussians, min ∫‖x − y‖² dP + ε KL(P ‖ a⊗b); not rooted.

    With the singular values σ of S₁^{1/2} S₀^{1/2} (those of W₂) and r = √(ε² + 16σ²),

        ‖m₀ − m₁‖² + tr S₀ + tr S₁ + Σ [ε/2 · log((ε + r)/(2ε)) − (r − ε)/2].

    It falls to W₂² as ε → 0 and rises to the cost of independence, ‖m₀ − m₁‖² + tr S₀ + tr S₁, as
    ε → ∞. Differentiable once, also at singular covariances.

    Args:
        m0: first mean, shape (…, d).
        S0: first covariance, shape (…, d, d); may be singular.
        m1: second mean, shape (…, d).
        S1: second covariance, shape (…, d, d); may be singular.
        eps: weight ε of the Kullback–Leibler divergence, in squared units of m0, above 0.

    Returns:
        Values, shape (…), in squared units of m0.

    Raises:
        ValueError: as for :func:`bures_wasserstein`, and for eps ≤ 0.

    Source:
        Janati, Muzellec, Peyré, Cuturi (2020), theorem 1, with their 2σ² for our ε and in terms of
        singular values instead of matrices; also Mallasto, Gerolin, Minh (2022).

    Example:
        >>> one = torch.ones(1, 1, dtype=torch.float64)
        >>> print(f"{entropic_cost(one[0], one, one[0], one, eps=1.0):.6f}")
        0.908754
    """
    m0, S0, m1, S1 = pair(m0, S0, m1, S1)
    eps = _check.positive(eps, "eps", remedy="for ε = 0 use bures_wasserstein(…) ** 2")
    with torch.no_grad():
        R0, R1 = root(S0, "S0"), root(S1, "S1")
        sigma = torch.linalg.svdvals(R1 @ R0)
        r = (eps**2 + 16 * sigma**2).sqrt()
        gain = 8 * sigma**2 / (r + eps)  # (r − ε)/2 without cancellation
        value = (eps / 2 * torch.log1p(gain / eps) - gain).sum(-1)
        # Envelope theorem: the dual potential of x is quadratic with matrix I − B, where
        # x ↦ Bx is the conditional mean of the optimal coupling.
        B01, B10 = _entropic_matrix(R1, S0, eps), _entropic_matrix(R0, S1, eps)
    slope = -(B01 * (S0 - S0.detach())).sum((-2, -1)) - (B10 * (S1 - S1.detach())).sum((-2, -1))
    return (m0 - m1).square().sum(-1) + _trace(S0) + _trace(S1) + value + slope


def entropic_coupling(
    m0: ArrayLike, S0: ArrayLike, m1: ArrayLike, S1: ArrayLike, *, eps: float
) -> tuple[Tensor, Tensor]:
    """The optimal entropic coupling of two Gaussians, itself a Gaussian on pairs (x, y).

    Its covariance is [[S₀, K], [Kᵀ, S₁]] with K = 4 S₀ R₁ (εI + (ε²I + 16 R₁S₀R₁)^{1/2})⁻¹ R₁.

    Args:
        m0: first mean, shape (…, d).
        S0: first covariance, shape (…, d, d); may be singular.
        m1: second mean, shape (…, d).
        S1: second covariance, shape (…, d, d); may be singular.
        eps: weight ε of the Kullback–Leibler divergence, in squared units of m0, above 0.

    Returns:
        Mean, shape (…, 2d), and covariance, shape (…, 2d, 2d), of the pair (x, y); differentiable
        once, for positive definite S1.

    Raises:
        ValueError: as for :func:`entropic_cost`.

    Source:
        Janati, Muzellec, Peyré, Cuturi (2020), theorem 1.

    Example:
        >>> mean, cov = entropic_coupling([0.0], [[1.0]], [2.0], [[1.0]], eps=1.0)
        >>> cov
        tensor([[1.0000, 0.7808],
                [0.7808, 1.0000]])
    """
    m0, S0, m1, S1 = pair(m0, S0, m1, S1)
    eps = _check.positive(eps, "eps", remedy="for ε = 0 use optimal_map")
    root(S0, "S0")
    K = S0 @ _entropic_matrix(root(S1, "S1"), S0, eps)
    cov = torch.cat([torch.cat([S0, K], -1), torch.cat([K.mT, S1], -1)], -2)
    return torch.cat([m0, m1], -1), cov


def _entropic_matrix(R1: Tensor, S0: Tensor, eps: float) -> Tensor:
    """B = 4 R₁ (εI + (ε²I + 16 R₁S₀R₁)^{1/2})⁻¹ R₁, with E[y | x] = B x; it is A at ε = 0."""
    identity = torch.eye(S0.shape[-1], dtype=S0.dtype, device=S0.device)
    D = psd_root(symmetric(eps**2 * identity + 16 * R1 @ S0 @ R1))[0]
    return 4 * R1 @ torch.linalg.solve(eps * identity + D, R1)


def _trace(S: Tensor) -> Tensor:
    return S.diagonal(dim1=-2, dim2=-1).sum(-1)
