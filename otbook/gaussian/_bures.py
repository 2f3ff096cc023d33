"""The W₂ geometry of Gaussians: distance, optimal map, geodesic and barycentre."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import _check
from .._check import ArrayLike
from .._result import ConvergenceWarning
from .._roots import polar, psd_root, symmetric
from ._moments import gaussian, pair, root

#: Where the iteration for the barycentre stops by default.
_TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


def bures_wasserstein(m0: ArrayLike, S0: ArrayLike, m1: ArrayLike, S1: ArrayLike) -> Tensor:
    """W₂ of two Gaussians; the root is taken.

        W₂² = ‖m₀ − m₁‖² + tr(S₀ + S₁ − 2 (S₀^{1/2} S₁ S₀^{1/2})^{1/2})
            = ‖m₀ − m₁‖² + min_U ‖S₀^{1/2} − S₁^{1/2} U‖², over orthogonal U.

    The second form is the one computed: it has no cancellation. Differentiable once; at W₂ = 0,
    where the distance has a kink, the derivative of ``bures_wasserstein(…) ** 2`` is right.
    A singular covariance has a finite value, but no derivative along its null space: there the
    gradient is taken to be 0.

    Args:
        m0: first mean, shape (…, d).
        S0: first covariance, shape (…, d, d); may be singular.
        m1: second mean, shape (…, d).
        S1: second covariance, shape (…, d, d); may be singular.

    Returns:
        Distances, shape (…), in units of m0.

    Raises:
        ValueError: for a covariance that is not symmetric, not finite or has a negative eigenvalue,
            and for shapes, dtypes or devices that disagree.

    Source:
        Peyré and Cuturi (2019), remark 2.31; Bhatia, Jain, Lim (2019), theorem 1, for the second form.

    Example:
        >>> bures_wasserstein([0.0, 0.0], torch.eye(2), [3.0, 0.0], 25 * torch.eye(2)) ** 2
        tensor(41.)
    """
    m0, S0, m1, S1 = pair(m0, S0, m1, S1)
    R0, R1 = root(S0, "S0"), root(S1, "S1")
    # U minimises, so by the envelope theorem it is a constant for gradients.
    U = polar(R0 @ R1).detach()
    return torch.linalg.vector_norm(torch.cat([m0 - m1, (R0 - R1 @ U).flatten(-2)], -1), dim=-1)


@dataclass(frozen=True, eq=False)
class AffineMap:
    """The map T(x) = m₁ + A (x − m₀).

    Attributes:
        matrix: A, shape (…, d, d).
        source_mean: m₀, shape (…, d).
        target_mean: m₁, shape (…, d).
    """

    matrix: Tensor
    source_mean: Tensor
    target_mean: Tensor

    def __call__(self, x: ArrayLike) -> Tensor:
        """Map points x: any shape (…, d), or (…, k, d) with the leading axes of a batch of maps."""
        x = _check.tensor(x, "x", like=self.matrix)
        d, batch = self.matrix.shape[-1], self.matrix.shape[:-2]
        if x.shape[-1:] != (d,) or (batch and x.shape[:-2] != batch):
            raise ValueError(
                f"x must have shape {(*batch, 'k', d) if batch else ('…', d)}, but has shape {tuple(x.shape)}"
            )
        if not batch:
            return self.target_mean + (x - self.source_mean) @ self.matrix.mT
        return self.target_mean[..., None, :] + (x - self.source_mean[..., None, :]) @ self.matrix.mT


def optimal_map(m0: ArrayLike, S0: ArrayLike, m1: ArrayLike, S1: ArrayLike) -> AffineMap:
    """The optimal map between Gaussians, T(x) = m₁ + A (x − m₀).

    A = S₀^{-1/2} (S₀^{1/2} S₁ S₀^{1/2})^{1/2} S₀^{-1/2} is the symmetric matrix without negative
    eigenvalue for which A S₀ A = S₁: T is the gradient of a convex function that pushes
    N(m₀, S₀) to N(m₁, S₁).

    Args:
        m0: source mean, shape (…, d).
        S0: source covariance, shape (…, d, d), positive definite.
        m1: target mean, shape (…, d).
        S1: target covariance, shape (…, d, d); may be singular.

    Returns:
        A function of points (…, d), whose attribute ``matrix`` is A.

    Raises:
        ValueError: as for :func:`bures_wasserstein`, and when S0 is singular.

    Source:
        Peyré and Cuturi (2019), remark 2.31.

    Example:
        >>> T = optimal_map([0.0], [[1.0]], [5.0], [[4.0]])
        >>> T([[0.0], [1.0]])
        tensor([[5.],
                [7.]])
    """
    m0, S0, m1, S1 = pair(m0, S0, m1, S1)
    return AffineMap(_map_matrix(root(S0, "S0", invertible=True), root(S1, "S1")), m0, m1)


def geodesic(
    m0: ArrayLike, S0: ArrayLike, m1: ArrayLike, S1: ArrayLike, t: float | Tensor
) -> tuple[Tensor, Tensor]:
    """McCann's interpolation: the Gaussian law of (1 − t) X + t Y for an optimal coupling of X and Y.

    The mean is (1 − t) m₀ + t m₁ and the covariance L Lᵀ with L = (1 − t) R₀ + t R₁U, which is
    ((1 − t) I + t A) S₀ ((1 − t) I + t A) when S₀ has an inverse.

    Args:
        m0: first mean, shape (…, d).
        S0: first covariance, shape (…, d, d); may be singular.
        m1: second mean, shape (…, d).
        S1: second covariance, shape (…, d, d); may be singular.
        t: time in [0, 1]: a number, or a tensor that broadcasts with the leading axes.

    Returns:
        Means (…, d) and covariances (…, d, d).

    Raises:
        ValueError: as for :func:`bures_wasserstein`, and for t outside [0, 1].

    Source:
        McCann (1997); Takatsu (2011), for Gaussians.

    Example:
        >>> geodesic([0.0], [[1.0]], [4.0], [[9.0]], 0.5)
        (tensor([2.]), tensor([[4.]]))
    """
    m0, S0, m1, S1 = pair(m0, S0, m1, S1)
    t = _check.tensor(t, "t", like=S0)
    if not ((t >= 0) & (t <= 1)).all():
        raise ValueError(f"t must lie in [0, 1], but holds {t[~((t >= 0) & (t <= 1))][0].item():g}")
    R0, R1 = root(S0, "S0"), root(S1, "S1")
    t = t[..., None]
    mean = (1 - t) * m0 + t * m1
    L = (1 - t[..., None]) * R0 + t[..., None] * (R1 @ polar(R0 @ R1))
    return mean, L @ L.mT


def barycenter(
    means: ArrayLike,
    covs: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    tol: float | None = None,
    max_iter: int = 1000,
) -> tuple[Tensor, Tensor]:
    """The Gaussian that minimises Σ_k w_k W₂²(·, N(m_k, S_k)): mean Σ w_k m_k, covariance S.

    S solves Σ w_k A_k = I, where A_k is the matrix of the optimal map to the k-th Gaussian. The
    iteration pushes S forward by the mean of these maps, S ← Ā S Ā, until Ā is the identity.
    Differentiable once, through the iterations.

    Args:
        means: means, shape (…, k, d).
        covs: covariances, shape (…, k, d, d), positive definite.
        weights: weights, shape (k,) or (…, k), sum 1; uniform if None.
        tol: largest accepted displacement ‖(Ā − I) S^{1/2}‖ / ‖S^{1/2}‖, without unit; None means
            1e-10 in float64 and 1e-5 in float32.
        max_iter: largest number of iterations.

    Returns:
        Mean (…, d) and covariance (…, d, d).

    Raises:
        ValueError: as for :func:`bures_wasserstein`, for singular covariances or invalid weights.

    Warns:
        ConvergenceWarning: when ``tol`` is not reached in ``max_iter`` iterations.

    Source:
        Álvarez-Esteban, del Barrio, Cuesta-Albertos, Matrán (2016), theorem 4.2;
        Agueh and Carlier (2011), theorem 6.1.

    Example:
        >>> barycenter([[0.0], [4.0]], [[[1.0]], [[9.0]]])
        (tensor([2.]), tensor([[4.]]))
    """
    means, covs = gaussian(means, covs, "means", "covs", like=_check.first_array(means, covs))
    if means.ndim < 2:
        raise ValueError(
            f"means must have shape (…, k, d), one row a Gaussian, but has shape {tuple(means.shape)}"
        )
    weights = _check.weights(weights, means.shape[-2], "weights", like=means)
    tol = _TOLERANCE[means.dtype] if tol is None else _check.positive(tol, "tol")
    max_iter = _check.positive_int(max_iter, "max_iter")
    _check.batch({"means": means.shape[:-2], "weights": weights.shape[:-1]})

    mean = (weights[..., None] * means).sum(-2)
    weights = weights[..., None, None]
    roots = root(covs, "covs", invertible=True)
    identity = torch.eye(means.shape[-1], dtype=means.dtype, device=means.device)
    S = (weights * covs).sum(-3)
    for _ in range(max_iter):
        R = psd_root(S)[0]
        A = (weights * _map_matrix(R.unsqueeze(-3), roots)).sum(-3)
        displacement = (_norm((A - identity) @ R) / _norm(R)).detach()
        S = symmetric(A @ S @ A)
        if (displacement <= tol).all():
            return mean, S
    warnings.warn(
        f"the barycentre still moves by {displacement.max().item():.2g} > tol = {tol:g} (relative) after "
        f"{max_iter} iterations; raise max_iter or tol, or use float64",
        ConvergenceWarning,
        stacklevel=2,
    )
    return mean, S


def _map_matrix(R0: Tensor, R1: Tensor) -> Tensor:
    """A = R₁ U R₀⁻¹, symmetric, with A R₀² A = R₁²."""
    return symmetric(torch.linalg.solve(R0, polar(R0 @ R1).mT @ R1))


def _norm(S: Tensor) -> Tensor:
    return torch.linalg.matrix_norm(S)
