"""Rows of the Gibbs kernel and of the plan of a cost, a block at a time and in the log domain.

Exponents are in bits here, with η = ε log 2: exp((g − C)/ε) = 2^((g − C)/η). Powers of 2 are what
processors form fastest, three times as fast as those of e on some.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import threshold_

from ..costs import PointCloudCost

LOG_2 = math.log(2.0)

#: Exponents below this count as −∞. What is just above it is a normal number, and the softmax's too, since
#: denormal numbers take a hundred times as long; there less than rounding, even after the scalings drift.
LEAST = {torch.float32: -124.0, torch.float64: -1010.0}
LEAST_SHARE = {torch.float32: -82.0, torch.float64: -1000.0}

#: Rows are handled in blocks of about this many float64 entries, so that a block stays in cache.
_BLOCK = 1 << 18
#: A block of a point cloud cost reads the targets again, d numbers a column; it has d rows, or this many.
_ROWS = 64
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
    least = min(_ROWS, C.x.shape[-1]) if isinstance(C, PointCloudCost) else 1
    size = max(least, entries * n // C.numel())
    return [slice(i, i + size) for i in range(0, n, size)]


def softmin(C: Tensor | PointCloudCost, g: Tensor, b: Tensor, eps: float) -> Tensor:
    """The entropic c-transform of g, by blocks of rows; +∞ where every allowed target has weight 0."""
    eta = eps * LOG_2
    right = (g / eta + b.log2()).unsqueeze(-2)
    rows = (torch.add(right, C[..., i, :], alpha=-1 / eta) for i in blocks(C))
    return torch.cat([-eta * _log_sum(E) for E in rows], dim=-1)


def _log_sum(E: Tensor) -> Tensor:
    """The logarithm to the base 2 of the row sums of 2^E, which is overwritten."""
    peak = E.amax(-1, keepdim=True).clamp_(min=torch.finfo(E.dtype).min)
    return E.sub_(peak).exp2_().sum(-1).log2_() + peak.squeeze(-1)


def half_step(
    C: Tensor, g: Tensor, b: Tensor, eps: float, out: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The entropic c-transform of g, f_i = −ε log Σ_j b_j exp((g_j − C_ij)/ε), and its kernel T.

    The exponents have the precision of g; T has it too, or is written to ``out`` in the dtype of that.
    """
    eta = eps * LOG_2
    right, fits = (g / eta + b.log2()).unsqueeze(-2), out is not None and out.dtype == g.dtype
    log_sum, T = softmax(torch.add(right, C, alpha=-1 / eta, out=out if fits else None), out)
    return -eta * log_sum, T


def softmax(E: Tensor, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The logarithm to the base 2 of the row sums of 2^E, and 2^E with rows divided by them.

    Rows of −∞, where every allowed target has weight 0, stay empty instead of NaN. E is overwritten, and
    holds the result if ``out`` does not, in whose dtype it is then formed.
    """
    peak = E.amax(-1, keepdim=True)
    closed = peak == -math.inf
    if closed.any():
        peak = peak.masked_fill(closed, 0.0)
    T = E.sub_(peak) if out is None else out.copy_(E.sub_(peak))
    least = LEAST_SHARE[T.dtype]
    total = T.clamp_(min=least).exp2_().sum(-1, keepdim=True)
    threshold_(T.div_(total.masked_fill(closed, 1.0)), 2.0**least, 0.0)
    return (peak + total.masked_fill(closed, 1.0).log2()).squeeze(-1), T


def plan_rows(C: Tensor, a: Tensor, b: Tensor, f: Tensor, g: Tensor, eps: float) -> Tensor:
    """P_ij = a_i b_j exp((f_i + g_j − C_ij)/ε), rounded to the dtype of C."""
    eta = eps * LOG_2
    left, right = (f / eta + a.log2()).unsqueeze(-1), (g / eta + b.log2()).unsqueeze(-2)
    shape = torch.broadcast_shapes(left.shape, right.shape, C.shape)
    P = torch.empty(shape, dtype=C.dtype, device=C.device)
    for i in blocks(C):
        E = torch.add(right, C[..., i, :], alpha=-1 / eta).add_(left[..., i, :])
        least = LEAST[E.dtype]
        P[..., i, :] = threshold_(E.clamp_(min=least).exp2_(), 2.0 ** (least + 1), 0.0)
    return P
