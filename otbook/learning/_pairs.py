"""Pairs for flow matching: the points that a path is to join, from a coupling of two minibatches."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _check
from .._check import ArrayLike
from ..costs import sqeuclidean
from ..entropic import sinkhorn
from ..exact import assignment, emd


def ot_cfm_pairs(
    x0: ArrayLike,
    x1: ArrayLike,
    generator: torch.Generator,
    *,
    a: ArrayLike | None = None,
    b: ArrayLike | None = None,
    eps: float | None = None,
    n_pairs: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Pairs of points from the optimal coupling of two minibatches, for the squared distance.

    The coupling minimises Σ P_ij ‖x0_i − x1_j‖², plus ε KL(P ‖ a⊗b) if ``eps`` is given. Without weights,
    ``eps`` and ``n_pairs``, and with as many points on both sides, it is a permutation, and nothing is
    left to chance: **every point is used exactly once**, x0 comes back as it is, and x1 permuted.
    Otherwise ``n_pairs`` index pairs are drawn from the plan, independently, with replacement.

    Args:
        x0: source batch, shape (…, n, d); flatten images first.
        x1: target batch, shape (…, m, d); its leading axes are separate problems.
        generator: source of randomness, on any device.
        a: source weights, shape (n,) or (…, n), sum 1; uniform if None.
        b: target weights, shape (m,) or (…, m), sum 1; uniform if None.
        eps: weight ε of the entropy, above 0, in squared units of x0; ε = 2σ² is the coupling of the
            Schrödinger bridge of :func:`bridge_path`. None means exact transport.
        n_pairs: pairs to draw for each problem; max(n, m) if None.

    Returns:
        Points x0 and x1, paired row by row, shape (…, n_pairs, d) each; constants for gradients.

    Raises:
        ValueError: for clouds, weights or options that make no problem.
        TypeError: for something that is not a generator.

    Source:
        Tong, Fatras, Malkin, Huguet, Zhang, Rector-Brooks, Wolf, Bengio (2024), OT-CFM and SB-CFM;
        Pooladian et al. (2023), BatchOT.

    Example:
        >>> x0, x1 = torch.tensor([[0.0], [1.0]]), torch.tensor([[1.1], [0.2]])
        >>> ot_cfm_pairs(x0, x1, torch.Generator())[1]
        tensor([[0.2000],
                [1.1000]])
    """
    x0 = _check.points(x0, "x0", like=None if isinstance(x0, Tensor) else _check.first_array(x0, x1))
    x1 = _check.points(x1, "x1", like=x0)
    _check.same_dimension(x0, x1, ("x0", "x1"))
    if x0.shape[:-2] != x1.shape[:-2]:
        raise ValueError(
            f"x0 and x1 must have the same leading axes, but have shapes {tuple(x0.shape)} and "
            f"{tuple(x1.shape)}; expand the smaller one"
        )
    generator = _check.generator(generator)
    x0, x1 = x0.detach(), x1.detach()
    n, m = x0.shape[-2], x1.shape[-2]
    C = sqeuclidean(x0, x1)
    if n == m and a is None and b is None and eps is None and n_pairs is None:
        permutation, _ = assignment(C)
        return x0, _take(x1, permutation)
    n_pairs = max(n, m) if n_pairs is None else _check.positive_int(n_pairs, "n_pairs")
    plan = emd(C, a, b).plan if eps is None else sinkhorn(C, a, b, eps=eps, tol=1e-3).plan
    i, j = _draw(plan.detach(), n_pairs, generator)
    return _take(x0, i), _take(x1, j)


def _take(x: Tensor, index: Tensor) -> Tensor:
    return x.gather(-2, index[..., None].expand(*index.shape, x.shape[-1]))


def _draw(plan: Tensor, n_pairs: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Index pairs with probabilities P_ij, by inversion; ``torch.multinomial`` stops at 2²⁴ entries."""
    heights = plan.flatten(-2).double().cumsum(-1)
    u = torch.rand(
        (*plan.shape[:-2], n_pairs), generator=generator, dtype=torch.float64, device=generator.device
    ).to(plan.device)
    flat = torch.searchsorted(heights, u * heights[..., -1:], right=True)
    # Rounding can bring u to the very end; the last entry with mass is the one meant.
    last = (heights < heights[..., -1:]).sum(-1, keepdim=True)
    flat = torch.minimum(flat, last)
    return flat // plan.shape[-1], flat % plan.shape[-1]
