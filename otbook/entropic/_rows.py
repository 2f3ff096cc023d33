"""Rows of the Gibbs kernel and of the plan of a cost, a block at a time and in the log domain.

Kernels are powers of the base B here, e or 2 (see ``_base``): exp((g − C)/ε) = B^((g − C)/η) with η = ε ln B.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import threshold_

from ..costs import PointCloudCost
from ._base import BASE, LEAST, LEAST_SHARE

#: What a power at a limit may exceed exp of it by, in the exponent: rounding, with a wide margin.
_MARGIN = 0.01

#: Rows are handled in blocks of about this many float64 entries, so that a block stays in cache.
_BLOCK = 1 << 17
#: A block of a point cloud cost reads the targets again, d numbers a column; it has d rows, but neither fewer
#: nor more than these.
_ROWS = 8, 64
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
    least = min(max(C.x.shape[-1], _ROWS[0]), _ROWS[1]) if isinstance(C, PointCloudCost) else 1
    size = max(least, entries * n // C.numel())
    return [slice(i, i + size) for i in range(0, n, size)]


def softmin(C: Tensor | PointCloudCost, g: Tensor, b: Tensor, eps: float) -> Tensor:
    """The entropic c-transform of g, by blocks of rows; +∞ where every allowed target has weight 0."""
    eta = eps * BASE.ln
    right = (g / eta + BASE.log(b)).unsqueeze(-2)
    rows = (torch.add(right, C[..., i, :], alpha=-1 / eta) for i in blocks(C))
    return torch.cat([-eta * _log_sum(E) for E in rows], dim=-1)


def _log_sum(E: Tensor) -> Tensor:
    """log_B of the row sums of B^E, which is overwritten."""
    peak = E.amax(-1, keepdim=True).clamp_(min=torch.finfo(E.dtype).min)
    return BASE.log(BASE.power(E.sub_(peak), out=E).sum(-1)) + peak.squeeze(-1)


def half_step(C: Tensor, g: Tensor, b: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The entropic c-transform of g, f_i = −ε log Σ_j b_j exp((g_j − C_ij)/ε), and its kernel T.

    Both have the precision of g.
    """
    eta = eps * BASE.ln
    log_sum, T = softmax(torch.add((g / eta + BASE.log(b)).unsqueeze(-2), C, alpha=-1 / eta))
    return -eta * log_sum, T


def half_steps(
    C: Tensor, g: Tensor, b: Tensor, eps: float, out: Tensor | None, *, coarse: bool = False
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """A half-step by blocks of rows: a slice i, and f and T there, which is written to ``out``, if given.

    The exponents have the precision of g, whatever that of ``out``, or if ``coarse`` that of ``out``. Without
    it a block of T is gone when the next is made, in the same memory.
    """
    eta = eps * BASE.ln
    right, room = (g / eta + BASE.log(b)).unsqueeze(-2), None
    if coarse:
        right = right.to(out.dtype)
        for i in blocks(C, out.dtype):
            log_sum, T = softmax(out[..., i, :].copy_(C[..., i, :]).mul_(-1 / eta).add_(right))
            yield i, -eta * log_sum, T
        return
    fits = out is not None and out.dtype == g.dtype
    for i in blocks(C):
        rows, T = C[..., i, :], None if out is None else out[..., i, :]
        if room is None and not fits:
            room = torch.empty(rows.shape, dtype=g.dtype, device=g.device)
        E = T if fits else room[..., : rows.shape[-2], :]
        log_sum, T = softmax(torch.add(right, rows, alpha=-1 / eta, out=E), T)
        yield i, -eta * log_sum, T


def softmax(E: Tensor, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """log_B of the row sums of B^E, and B^E with rows divided by them.

    Rows of −∞, where every allowed target has weight 0, stay empty instead of NaN. E is overwritten, and
    holds the result if ``out`` does not, in whose dtype it is then formed.
    """
    peak = E.amax(-1, keepdim=True)
    closed = peak == -math.inf
    if closed.any():
        peak = peak.masked_fill(closed, 0.0)
    T = E.sub_(peak) if out is None else out.copy_(E.sub_(peak))
    least = LEAST_SHARE[T.dtype]
    total = BASE.power(T.clamp_(min=least / BASE.ln), out=T).sum(-1, keepdim=True).masked_fill_(closed, 1.0)
    threshold_(T.div_(total), math.exp(least + _MARGIN), 0.0)
    return (peak + BASE.log(total)).squeeze(-1), T


def plan_rows(C: Tensor, a: Tensor, b: Tensor, f: Tensor, g: Tensor, eps: float) -> Tensor:
    """P_ij = a_i b_j exp((f_i + g_j − C_ij)/ε), rounded to the dtype of C."""
    eta = eps * BASE.ln
    left, right = (f / eta + BASE.log(a)).unsqueeze(-1), (g / eta + BASE.log(b)).unsqueeze(-2)
    shape = torch.broadcast_shapes(left.shape, right.shape, C.shape)
    P = torch.empty(shape, dtype=C.dtype, device=C.device)
    for i in blocks(C):
        E = torch.add(right, C[..., i, :], alpha=-1 / eta).add_(left[..., i, :])
        least = LEAST[E.dtype]
        power = BASE.power(E.clamp_(min=least / BASE.ln), out=E)
        P[..., i, :] = threshold_(power, math.exp(least + _MARGIN), 0.0)
    return P
