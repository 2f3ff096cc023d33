"""Sinkhorn's iterations on record: automatic differentiation through every one of them."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from .._result import ConvergenceWarning, OTResult
from ..costs import PointCloudCost


def unrolled(
    C: Tensor | PointCloudCost,
    a: Tensor,
    b: Tensor,
    *,
    eps: float,
    tol: float,
    max_iter: int,
    g0: Tensor | None,
    report: Callable[[int, Tensor, Tensor], None] | None,
) -> OTResult:
    """Plain log-domain iterations from g0 (zeros), until the marginal error is at most tol.

    The arguments are those of :func:`~otbook.entropic.sinkhorn`, which calls this. The graph grows by
    six matrices an iteration.
    """
    C = C.dense() if isinstance(C, PointCloudCost) else C
    batch = C.shape[:-2]
    a, b = a.expand(*batch, a.shape[-1]), b.expand(*batch, b.shape[-1])
    g = torch.zeros_like(b) if g0 is None else g0
    n_iter = 0
    while True:
        f = _softmin(C, g, b, eps)
        P = a[..., :, None] * b[..., None, :] * _exp((f[..., :, None] + g[..., None, :] - C) / eps)
        error = (P.sum(-1) - a).detach().abs().sum(-1) + (P.sum(-2) - b).detach().abs().sum(-1)
        value = (a * f).sum(-1) + (b * g).sum(-1) - eps * (P.sum((-2, -1)) - 1)
        if report:
            report(n_iter, error, value.detach())
        if n_iter == max_iter or (error <= tol).all():
            break
        g, n_iter = _softmin(C.mT, f, a, eps), n_iter + 1
    converged = bool((error <= tol).all())
    if not converged:
        warnings.warn(
            f"sinkhorn stopped after {n_iter} unrolled iterations with marginal error "
            f"{error.max().item():.2g} above tol = {tol:g}: raise max_iter or eps",
            ConvergenceWarning,
            stacklevel=3,
        )
    shift = ((a * f).sum(-1, keepdim=True) - (b * g).sum(-1, keepdim=True)) / 2
    transport = torch.where(P > 0, C, 0.0).mul(P).sum((-2, -1))
    return OTResult(value, transport, f - shift, g + shift, n_iter, error, converged, P)


def _softmin(C: Tensor, g: Tensor, b: Tensor, eps: float) -> Tensor:
    """f_i = −ε log Σ_j b_j exp((g_j − C_ij)/ε), differentiable also where a weight is 0."""
    E = (g[..., None, :] - C) / eps
    peak = E.detach().masked_fill(b[..., None, :] == 0, -torch.inf).amax(-1, keepdim=True)
    peak = peak.masked_fill(peak == -torch.inf, 0.0)
    total = (_exp(E - peak) * b[..., None, :]).sum(-1)
    return -eps * (peak.squeeze(-1) + total.log())


def _exp(E: Tensor) -> Tensor:
    """The exponential; beyond the range of the dtype there is no mass, and no gradient."""
    return E.clamp(max=80.0).exp()
