"""Exact partial transport: a given amount of the mass moves, as cheaply as it can."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import _check, _envelope
from .._check import ArrayLike
from .._result import OTResult
from ..exact import emd


def partial(C: ArrayLike, a: ArrayLike | None = None, b: ArrayLike | None = None, *, mass: float) -> OTResult:
    r"""Exact partial transport: the cheapest way to move a given amount of the mass.

    Minimises ⟨C, P⟩ over P ≥ 0 with P1 ≤ a, Pᵀ1 ≤ b and Σ P = ``mass``. One dummy point on either
    side takes what stays behind, 1 − mass, and :func:`emd` solves the extended problem. Its dual is

        max ⟨a, f⟩ + ⟨b, g⟩ − (1 − mass) (max f + max g)  subject to  f⊕g ≤ C,

    Kantorovich's for mass = 1; max f + max g is what another bit of mass would cost. A point with
    f_i < max f gives away all that it has.

    ``value`` (and ``cost``, which is the same) is differentiable once: its derivative is P in C,
    f − max f in a and g − max g in b (envelope theorem); where the optimum is not unique this is
    one of the super- or subgradients. ``plan``, ``f`` and ``g`` are constants for gradients.

    Args:
        C: ground cost, shape (…, n, m); +∞ forbids an entry.
        a: source weights, shape (n,) or (…, n), sum 1; uniform if None.
        b: target weights, shape (m,) or (…, m), sum 1; uniform if None.
        mass: the amount to move, above 0 and at most 1.

    Returns:
        The solution. The potentials are feasible at every atom and shifted so that
        each side pays half: ⟨a, f⟩ − (1 − mass) max f = ⟨b, g⟩ − (1 − mass) max g.
        ``marginal_error`` is ‖P1 − a‖₁ + ‖Pᵀ1 − b‖₁ as for every solver, here 2 (1 − mass).

    Raises:
        ValueError: for invalid costs, weights or mass, and when the forbidden entries leave no plan
            of this mass.

    Note:
        The solver runs on the CPU in float64, one problem of the batch after the other; results
        come back with the dtype and on the device of C.

    Source:
        Caffarelli and McCann (2010); by dummy points as in Chapel, Alaya and Gasso (2020).

    Example:
        >>> import torch
        >>> C = torch.tensor([[0.0, 4.0], [1.0, 9.0]], dtype=torch.float64)
        >>> result = partial(C, [0.5, 0.5], [0.75, 0.25], mass=0.75)
        >>> result.plan
        tensor([[0.5000, 0.0000],
                [0.2500, 0.0000]], dtype=torch.float64)
        >>> result.value
        tensor(0.2500, dtype=torch.float64)
    """
    C, a, b = _check.problem(C, a, b)
    mass = _check.positive(mass, "mass")
    if mass > 1:
        raise ValueError(f"mass must be at most 1, the mass of a and b, but is {mass:g}")
    left = 1 - mass

    cost = C.detach().cpu().double()
    allowed = torch.isfinite(cost)
    # What stays behind pays the least cost, a constant in all, so that the range of costs stays as it is.
    idle = cost.masked_fill(~allowed, math.inf).amin((-2, -1), keepdim=True)
    extended = torch.cat([cost, idle.expand(*cost.shape[:-1], 1)], -1)
    last = torch.cat([idle.expand(*cost.shape[:-2], 1, cost.shape[-1]), torch.full_like(idle, math.inf)], -1)
    extended = torch.cat([extended, last], -2)
    try:
        result = emd(extended, _with_dummy(a, left), _with_dummy(b, left))
    except ValueError as error:
        raise ValueError(
            f"C forbids every plan of mass {mass:g}: the rest of it has nowhere to go; make more entries "
            "of C finite, or lower mass"
        ) from error

    plan = result.plan[..., :-1, :-1] * (1 + left)
    f, g = result.f[..., :-1], result.g[..., :-1]
    df, dg = f - f.amax(-1, keepdim=True), g - g.amax(-1, keepdim=True)
    a_exact, b_exact = a.detach().cpu().double(), b.detach().cpu().double()
    pay_f = (a_exact * f).sum(-1, keepdim=True) - left * f.amax(-1, keepdim=True)
    pay_g = (b_exact * g).sum(-1, keepdim=True) - left * g.amax(-1, keepdim=True)
    half = (pay_f - pay_g) / (2 * mass)
    f, g = f - half, g + half
    error = (plan.sum(-1) - a_exact).abs().sum(-1) + (plan.sum(-2) - b_exact).abs().sum(-1)
    transport = torch.where(allowed, cost * plan, 0.0).sum((-2, -1))
    plan, f, g, df, dg, transport, error = (t.to(C) for t in (plan, f, g, df, dg, transport, error))
    value = _envelope.attach(transport, (C, a, b), lambda: (plan, df, dg), "partial")
    return OTResult(value, value, f, g, 0, error, result.converged, plan)


def _with_dummy(w: Tensor, left: float) -> Tensor:
    """Weights with a dummy of weight ``left`` at their end, all of mass 1 together."""
    w = w.detach().cpu().double()
    w = w / w.sum(-1, keepdim=True)
    return torch.cat([w, torch.full_like(w[..., :1], left)], -1) / (1 + left)
