"""Rows of the Gibbs kernel and of the plan of a cost, a block at a time and in the log domain."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import threshold_

from ..costs import PointCloudCost

#: Exponents below this count as −∞; the exponential of one just above it is a normal number still.
LEAST = {torch.float32: -86.0, torch.float64: -700.0}

#: Rows are handled in blocks of about this many float64 entries, so that a block stays in cache.
_BLOCK = 1 << 17
#: A batch is cut less finely, and a GPU works best on large blocks.
_BATCH_BLOCK, _GPU_BLOCK = 1 << 20, 1 << 25


def blocks(C: Tensor | PointCloudCost, dtype: torch.dtype = torch.float64) -> list[slice]:
    """Slices of the rows of C, each of about as many entries of the dtype as suits the device."""
    n = C.shape[-2]
    if C.device.type != "cpu":
        entries = _GPU_BLOCK
    elif C.ndim > 2:
        entries = _BATCH_BLOCK
    else:
        entries = 2 * _BLOCK if dtype == torch.float32 else _BLOCK
    size = max(1, entries * n // C.numel())
    return [slice(i, i + size) for i in range(0, n, size)]


def softmin(C: Tensor | PointCloudCost, g: Tensor, b: Tensor, eps: float) -> Tensor:
    """The entropic c-transform of g, a block of rows at a time."""
    return torch.cat([half_step(C[..., i, :], g, b, eps)[0] for i in blocks(C)], dim=-1)


def half_step(
    C: Tensor, g: Tensor, b: Tensor, eps: float, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """The entropic c-transform of g, f_i = −ε log Σ_j b_j exp((g_j − C_ij)/ε), and its kernel T.

    The exponents are formed in the precision of g, the exponentials in ``dtype``, by default the same.
    """
    log_sum, T = softmax(torch.add((g / eps + b.log()).unsqueeze(-2), C, alpha=-1 / eps), dtype)
    return -eps * log_sum, T


def softmax(E: Tensor, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
    """The logarithm of the row sums of exp(E), and exp(E) with rows divided by them, in ``dtype``.

    Rows of −∞, where every allowed target has weight 0, stay empty instead of NaN. E is overwritten.
    """
    peak = E.amax(-1, keepdim=True)
    closed = peak == -math.inf
    if closed.any():
        peak = peak.masked_fill(closed, 0.0)
    T = _exp_(E.sub_(peak).to(dtype or E.dtype))
    total = T.sum(-1, keepdim=True)
    T.div_(total.masked_fill(closed, 1.0))
    return (peak + total.masked_fill_(closed, 1.0).log()).squeeze(-1), T


def _exp_(E: Tensor) -> Tensor:
    """exp(E) in place, 0 where it would be a denormal number, which takes a hundred times as long to form."""
    cut = LEAST[E.dtype]
    return threshold_(E.clamp_(min=cut).exp_(), 2 * math.exp(cut), 0.0)


def plan_rows(C: Tensor, a: Tensor, b: Tensor, f: Tensor, g: Tensor, eps: float) -> Tensor:
    """P_ij = a_i b_j exp((f_i + g_j − C_ij)/ε), rounded to the dtype of C."""
    left, right = (f / eps + a.log()).unsqueeze(-1), (g / eps + b.log()).unsqueeze(-2)
    shape = torch.broadcast_shapes(left.shape, right.shape, C.shape)
    P = torch.empty(shape, dtype=C.dtype, device=C.device)
    for i in blocks(C):
        E = torch.add(right, C[..., i, :], alpha=-1 / eps)
        P[..., i, :] = _exp_(E.add_(left[..., i, :]))
    return P
