"""Unregularised transport by proximal points: each step is an entropic problem around the last plan."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from .. import _check, _envelope
from .._check import ArrayLike
from .._result import ConvergenceWarning, OTResult
from ._rows import half_step
from ._sinkhorn import _exact

#: What counts as converged when no tolerance is asked for.
TOL = 1e-6

_NO_GRADIENT = (
    "ipot has not converged, so the envelope theorem does not give the gradient of its value: "
    "raise n_outer or n_inner, or hold the plan fixed and differentiate (result.plan * C).sum()"
)


def ipot(
    C: ArrayLike,
    a: ArrayLike | None = None,
    b: ArrayLike | None = None,
    *,
    beta: float,
    n_outer: int,
    n_inner: int = 1,
    tol: float | None = None,
) -> OTResult:
    r"""Inexact proximal point method for optimal transport (IPOT): the exact cost at a moderate β.

    Minimises ⟨C, P⟩ over P ≥ 0 with P1 = a, Pᵀ1 = b by the proximal steps

        P^{t+1} = argmin_P ⟨C, P⟩ + β KL(P ‖ P^t),   P^0 = a⊗b,

    each solved inexactly, by ``n_inner`` Sinkhorn iterations. The plan keeps the form
    P^{t}_ij = a_i b_j exp((F_i + G_j − t C_ij)/β). So after t steps that are solved exactly, it is the
    entropic plan at ε = β/t, and as t grows its cost converges to the exact one for every β: a small
    β takes few steps but many inner iterations, a large one the reverse. The potentials F and G live
    in the log domain, so nothing under- or overflows at any β.

    Args:
        C: ground cost, shape (…, n, m); +∞ forbids a pair.
        a: source weights, shape (n,) or (…, n), sum 1; None means uniform. Zeros are allowed.
        b: target weights, shape (m,) or (…, m), sum 1; None means uniform. Zeros are allowed.
        beta: weight β of the proximal term, in units of C.
        n_outer: number of proximal steps t.
        n_inner: Sinkhorn iterations in each. The usual choice, 1, is good for a β not far below C;
            with a small β it can stall, which ``marginal_error`` shows.
        tol: None takes all ``n_outer`` steps. A number stops as soon as, for every problem of the
            batch, the marginal error and the duality gap, in units of max C − min C, are at most ``tol``.

    Returns:
        An :class:`OTResult`. ``value`` = ``cost`` = ⟨C, P⟩, in units of C. The columns of the plan sum
        to b, its rows only approximately to a: see ``marginal_error``. ``f`` and ``g`` are c-transforms
        of the multipliers of the last step, F^t − F^{t−1} and G^t − G^{t−1}: they satisfy f⊕g ≤ C, so
        ⟨a, f⟩ + ⟨b, g⟩ is a lower bound of the exact cost, and they are normalised by ⟨a, f⟩ = ⟨b, g⟩.
        The duality gap is the distance of ⟨C, P⟩ to this bound. ``converged`` says that error and gap
        are at most ``tol``, or 1e-6 if that is None. ``cost``, ``plan``, ``f`` and ``g`` are detached.
        ``value`` may be differentiated once if converged: by the envelope theorem its gradients are
        then P, f and g, as for :func:`emd`. If not, its backward pass raises an error.
        The loss of Chen et al. (2019) holds the plan fixed: ``(result.plan * C).sum()``.

    Raises:
        ValueError: for weights or costs that make no problem, and for beta, n_outer, n_inner or tol
            that are not positive.

    Warns:
        ConvergenceWarning: if ``tol`` is given and not reached.

    Source:
        Xie, Wang, Wang and Zha (2020), algorithm 1; like there, the scaling of the columns carries over
        from step to step, which starts the next G from G^t + (G^t − G^{t−1}).

    Example:
        >>> C = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
        >>> ipot(C, [0.5, 0.5], [0.1, 0.9], beta=1.0, n_outer=100).value
        tensor(0.4000, dtype=torch.float64)
    """
    C, a, b = _check.problem(C, a, b)
    beta = _check.positive(beta, "beta")
    n_outer = _check.positive_int(n_outer, "n_outer")
    n_inner = _check.positive_int(n_inner, "n_inner")
    goal = TOL if tol is None else _check.positive(tol, "tol")

    a_exact, b_exact = _exact(a), _exact(b)
    cost = C.detach().to(a_exact.dtype)
    finite = cost[torch.isfinite(cost)]
    spread = (finite.max() - finite.min()).item() or 1.0
    F, G = torch.zeros_like(a_exact), torch.zeros_like(b_exact)
    dG = torch.zeros_like(b_exact)
    for t in range(1, n_outer + 1):
        # In terms of F/t and G/t, an iteration on P^t is one of Sinkhorn at ε = β/t.
        g = (G + dG) / t
        for _ in range(n_inner):
            f, _ = half_step(cost, g, b_exact, beta / t)
            g, T = half_step(cost.mT, f, a_exact, beta / t)
        dF, dG = t * f - F, t * g - G
        F, G = t * f, t * g
        if tol is not None or t == n_outer:
            P = T.mT * b_exact[..., None, :]
            transport, f_c, g_c, error, gap = _certificate(cost, a_exact, b_exact, P, dF)
            converged = bool((error <= goal).all() and (gap <= goal * spread).all())
            if converged and tol is not None:
                break
    n_iter = t
    if tol is not None and not converged:
        warnings.warn(
            f"ipot stopped after {n_iter} steps with marginal error {error.max().item():.2g} and duality gap "
            f"{gap.max().item() / spread:.2g} × (max C − min C), not both at most tol = {tol:g}: raise "
            "n_outer or n_inner, or lower beta",
            ConvergenceWarning,
            stacklevel=2,
        )
    P, f, g, transport = (x.to(C.dtype) for x in (P, f_c, g_c, transport))
    if converged:
        value = _envelope.attach(transport, (C, a, b), lambda: (P, f, g), "ipot")
    else:
        value = _envelope.refuse(transport, (C, a, b), _NO_GRADIENT)
    return OTResult(
        value=value,
        cost=transport,
        f=f,
        g=g,
        n_iter=n_iter,
        marginal_error=error.to(C.dtype),
        converged=converged,
        _plan=P,
    )


def _certificate(
    C: Tensor, a: Tensor, b: Tensor, P: Tensor, f: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """⟨C, P⟩, feasible potentials from f, the marginal error and the distance to the lower bound."""
    transport = (P * torch.where(P > 0, C, 0.0)).sum((-2, -1))
    error = (P.sum(-1) - a).abs().sum(-1) + (P.sum(-2) - b).abs().sum(-1)
    # An infinite column would leave ∞ − ∞; a price below ∞ only makes the potentials smaller.
    finite = torch.isfinite(C)
    high = C[finite].max()
    C = torch.where(finite, C, high + min(C.shape[-2:]) * (high - C[finite].min() + 1))
    # c-transforms: g from the atoms that carry mass, then f from g.
    g = (C - f[..., :, None]).masked_fill(a[..., :, None] == 0, torch.inf).amin(-2)
    f = (C - g[..., None, :]).amin(-1)
    paid, received = (a * f).sum(-1), (b * g).sum(-1)
    half = ((paid - received) / 2)[..., None]
    return transport, f - half, g + half, error, (transport - paid - received).abs()
