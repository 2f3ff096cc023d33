"""Policies as measures: Gibbs laws, the soft Bellman equation, and the entropy of a cloud of particles.

A policy that pays for its distance to a prior is a Gibbs law, over parameters or over actions. The first
functions compute such laws where they can be summed. The last one gives a cloud of particles an entropy,
to descend with :func:`otbook.flows.particle_flow` or by implicit steps with
:func:`otbook.flows.minimizing_movement`. Experience to learn from is collected in ``_rollout``.
"""

from __future__ import annotations

import math
import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from .. import _check
from .._check import ArrayLike
from .._result import ConvergenceWarning
from ..costs import sqeuclidean
from ..flows._particles import median_rule


class GibbsLaw(NamedTuple):
    """Weights of a Gibbs law, shape (…, k), and the maximum it attains, shape (…), in units of the return."""

    weights: Tensor
    value: Tensor


class SoftOptimum(NamedTuple):
    """The solution of a soft Bellman equation.

    Attributes:
        value: V, shape (…, S), in units of the reward.
        q: Q, shape (…, S, A), likewise.
        policy: π(a|s), shape (…, S, A).
        error: bound of max |V − V*| by the contraction, shape ().
        n_iter: number of applications of the Bellman operator.
        converged: whether the bound is at most the tolerance.
    """

    value: Tensor
    q: Tensor
    policy: Tensor
    error: Tensor
    n_iter: int
    converged: bool


def gibbs(returns: ArrayLike, *, alpha: float, prior: ArrayLike | None = None) -> GibbsLaw:
    """The law p ∝ p₀ exp(J/α), the only maximiser of Σ q J − α KL(q ‖ p₀).

    The maximum is α log Σ p₀ exp(J/α), and any other q is worse by exactly α KL(q ‖ p).

    Args:
        returns: J, shape (…, k), finite.
        alpha: temperature α, above 0, in units of J.
        prior: p₀, shape (k,) or (…, k), sum 1. None means the counting measure: the law is that of the
            uniform prior, but the objective is Σ q J + α H(q), larger by α log k.

    Returns:
        Weights and value, differentiable in the returns.

    Raises:
        ValueError: for returns, weights or a temperature that make no problem.

    Source:
        Zhang, Chen, Li, Carin (2018), their indirect policies, with the prior kept.

    Example:
        >>> gibbs([math.log(3.0), 0.0], alpha=1.0)
        GibbsLaw(weights=tensor([0.7500, 0.2500]), value=tensor(1.3863))
    """
    J = _check.tensor(returns, "returns")
    if J.ndim < 1 or 0 in J.shape or not torch.isfinite(J).all():
        raise ValueError(
            f"returns must be finite numbers of shape (…, k), k ≥ 1, but have shape {tuple(J.shape)}"
            + ("" if 0 in J.shape or J.ndim < 1 else " and hold NaN or infinity; clip them first")
        )
    alpha = _check.positive(alpha, "alpha", remedy="for α = 0 take the maximum")
    z = J / alpha
    if prior is not None:
        z = z + _check.weights(prior, J.shape[-1], "prior", like=J).log()
    return GibbsLaw(z.softmax(-1), alpha * z.logsumexp(-1))


def soft_bellman(
    reward: ArrayLike,
    transition: ArrayLike,
    *,
    gamma: float,
    alpha: float,
    prior: ArrayLike | None = None,
    tol: float | None = None,
    max_iter: int = 100_000,
) -> SoftOptimum:
    """The soft Bellman equation at temperature α, solved by value iteration:

        Q(s, a) = r(s, a) + γ Σ P(s'|s, a) V(s'),   V(s) = α log Σ_a p₀(a|s) exp(Q(s, a)/α).

    V is the largest value of E Σ γᵗ [r − α log(π/p₀)], and π = p₀ exp((Q − V)/α) attains it. The operator
    contracts the maximum norm by γ, so ``n_iter`` grows like log(tol) / log(γ).

    Args:
        reward: r, shape (…, S, A).
        transition: P(s'|s, a), shape (…, S, A, S) with the same leading axes or none, sum 1 over s'.
        gamma: discount γ, in [0, 1).
        alpha: temperature α, above 0, in units of the reward.
        prior: p₀(a|s), shape (A,) or (…, S, A). None means the counting measure, that is, a bonus αH(π).
        tol: bound of max |V − V*|, relative to max |V| + α; 1e-11 in float64 and 1e-4 in float32 if None.
        max_iter: limit of the iterations; a ``ConvergenceWarning`` says that it did not suffice.

    Returns:
        Values, Q, policy and certificate; differentiable through the iterations.

    Raises:
        ValueError: for shapes, probabilities, discounts or temperatures that make no problem.

    Source:
        Haarnoja, Tang, Abbeel, Levine (2017), soft Q-iteration.

    Example:
        >>> stay = torch.ones(1, 2, 1)  # one state, two equal actions: V = log 2 / (1 − γ)
        >>> soft_bellman(torch.zeros(1, 2), stay, gamma=0.5, alpha=1.0, tol=1e-6).value
        tensor([1.3863])
    """
    r = _check.tensor(reward, "reward")
    P = _check.tensor(transition, "transition", like=r)
    if r.ndim < 2 or P.ndim < 3 or P.shape[-3:] != (*r.shape[-2:], r.shape[-2]):
        raise ValueError(
            "reward and transition must have shapes (…, S, A) and (…, S, A, S), but have "
            f"{tuple(r.shape)} and {tuple(P.shape)}"
        )
    if not torch.isfinite(r).all():
        raise ValueError("reward must be finite; give forbidden actions a prior of 0 instead of −inf")
    if not ((P >= 0).all() and ((P.sum(-1) - 1).abs() <= _check.MASS_TOLERANCE[P.dtype]).all()):
        raise ValueError(
            "transition must hold probabilities over its last axis; divide it by its sum over that axis"
        )
    gamma = float(gamma)
    if not 0 <= gamma < 1:
        raise ValueError(
            f"gamma must lie in [0, 1), but is {gamma:g}; without discount the sum has no bound, "
            "solve a finite horizon instead"
        )
    max_iter = _check.positive_int(max_iter, "max_iter")
    tol = (1e-11 if r.dtype == torch.float64 else 1e-4) if tol is None else _check.positive(tol, "tol")
    V = gibbs(r, alpha=alpha, prior=prior).value  # checks the rest
    for k in range(1, max_iter + 1):
        Q = r + gamma * (P @ V[..., None, :, None])[..., 0]
        policy, new = gibbs(Q, alpha=alpha, prior=prior)
        error = gamma / (1 - gamma) * (new - V).detach().abs().max()
        V = new
        if error <= tol * (V.detach().abs().max() + alpha):
            return SoftOptimum(V, Q, policy, error, k, True)
    warnings.warn(
        f"soft_bellman: after {max_iter} iterations the error is at most {error.item():.2g}, which is above "
        f"the tolerance; raise max_iter or tol = {tol:g}, or lower gamma = {gamma:g}",
        ConvergenceWarning,
        stacklevel=2,
    )
    return SoftOptimum(V, Q, policy, error, max_iter, False)


def blob_energy(x: ArrayLike, *, bandwidth: float | None = None) -> Tensor:
    """The entropy functional of a blurred cloud, ∫ log(φ_h * μ) dμ with φ_h the density of N(0, h²I).

    For μ = 1/n Σ δ_{x_i} it is 1/n Σ_i log 1/n Σ_j φ_h(x_i − x_j), finite where ∫ μ log μ is not. For a
    smooth density it falls below ∫ μ log μ by h⁴/8 ∫ |Δμ|²/μ + O(h⁶), so a minimiser of free energy is off
    by O(h⁴). Add the mean of −log p for the free energy of a target p.

    Args:
        x: particles, shape (…, n, d); leading axes are separate clouds.
        bandwidth: h, in units of x; None is the rule of :func:`otbook.flows.svgd`, 2h² = med² / log(n + 1)
            with the median distance of each cloud, a constant for gradients.

    Returns:
        Energies, shape (…), in nats; differentiable in x.

    Raises:
        ValueError: for clouds or bandwidths that are not valid.

    Source:
        Carrillo, Craig, Patacchini (2019), the regularised energy of the heat equation.

    Example:
        >>> blob_energy([[0.0]], bandwidth=1.0)  # log 1/√(2π)
        tensor(-0.9189)
    """
    x = _check.points(x, "x")
    n, d = x.shape[-2:]
    C = sqeuclidean(x, x)
    if bandwidth is not None:
        h2 = torch.as_tensor(_check.positive(bandwidth, "bandwidth") ** 2, dtype=x.dtype, device=x.device)
    else:
        h2 = median_rule(C.detach())
    inside = torch.logsumexp(-C / (2 * h2[..., None, None]), -1).mean(-1)
    return inside - math.log(n) - d / 2 * torch.log(2 * math.pi * h2)
