"""Transport of a part of the mass: relaxed marginals (unbalanced) and a fixed amount (partial)."""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor

from .. import _check
from .._check import ArrayLike
from .._result import ConvergenceWarning, OTResult
from ..exact import _Envelope, emd
from ._dual import schedule
from ._kernel import blocks, plan_rows
from ._relaxed import HUGE, KL, TV, maximise, pair
from ._sinkhorn import START


def sinkhorn_unbalanced(
    C: ArrayLike,
    a: ArrayLike | None = None,
    b: ArrayLike | None = None,
    *,
    eps: float,
    rho: float,
    divergence: str = "kl",
    tol: float = 1e-6,
    max_iter: int = 10_000,
) -> OTResult:
    r"""Entropic transport with relaxed marginals: mass may be created and destroyed at a price.

    Solves min_{P ≥ 0} ⟨C, P⟩ + ε KL(P ‖ a⊗b) + ρ D(P1 ‖ a) + ρ D(Pᵀ1 ‖ b), for D the
    Kullback–Leibler divergence of masses, KL(p ‖ q) = Σ p log(p/q) − p + q, or the total variation
    TV(p ‖ q) = Σ |p − q|. The dual is

        max ⟨a, F(f)⟩ + ⟨b, F(g)⟩ − ε Σ_ij a_i b_j (exp((f_i + g_j − C_ij)/ε) − 1),

    with F(f) = ρ (1 − exp(−f/ρ)) for KL, and F(f) = min(f, ρ) where f ≥ −ρ for TV; again
    P_ij = a_i b_j exp((f_i + g_j − C_ij)/ε). For KL the optimal plan has P1 = a exp(−f/ρ).
    For TV a point sends all of its mass, and no more, where |f| < ρ; and as f, g ≤ ρ where there is
    mass, P_ij ≤ a_i b_j exp((2ρ − C_ij)/ε): nothing goes further than its price.
    As ρ → ∞ both become :func:`sinkhorn`, if a and b have the same mass.

    Args:
        C: ground cost, shape (…, n, m); +∞ forbids a pair.
        a: source masses, shape (n,) or (…, n), of any positive sum; None means 1/n each. Zeros are
            allowed.
        b: target masses, shape (m,) or (…, m), of any positive sum; None means 1/m each.
        eps: weight ε of the KL term of the plan, in units of C.
        rho: price ρ of a unit of mass that is created or destroyed, in units of C.
        divergence: ``"kl"`` or ``"tv"``.
        tol: stop when one more step in either potential would change the marginals of P by no more
            than ``tol`` of its mass, in ‖·‖₁, for every problem of the batch; as ρ → ∞ this is the
            marginal error of :func:`sinkhorn`.
        max_iter: largest number of iterations, each one update of f, of g, and of f + c, g − c, or
            a Newton step where those are slow and n + m ≤ 4096 (less in batches).

    Returns:
        An :class:`OTResult`. ``value`` is the dual objective, in units of C × mass, and may be
        differentiated once in C, a and b by the envelope theorem: its gradients are P,
        F(f) + ε (Σ b − P1/a) and F(g) + ε (Σ a − Pᵀ1/b). (For TV with equal masses of a and b the
        value may have a kink in the total mass; there they are subgradients.) ``cost``, ``plan``, ``f``
        and ``g`` are detached: no gradient passes through them. ``marginal_error`` is
        ‖P1 − a‖₁ + ‖Pᵀ1 − b‖₁ as for every solver, but no error here: it is the mass that the
        optimal plan leaves, or adds.

    Raises:
        ValueError: for costs or masses that make no problem, for eps, rho, tol or max_iter that are
            not positive, and for costs so far below 0 that the optimal mass overflows.

    Warns:
        ConvergenceWarning: if the tolerance is not reached.

    Note:
        POT's ``ot.unbalanced.sinkhorn_unbalanced(a, b, C, eps, rho)`` has the same KL plan. Its
        ``total_cost`` takes KL without the terms −p + q: with M = Σ P, it is
        value − ε (Σ a Σ b − M) − ρ (Σ a + Σ b − 2M).

    Source:
        Chizat, Peyré, Schmitzer and Vialard (2018), the scaling algorithm, here on the potentials and
        with ε-scaling; the update of the constant c, without which the iterations are slow for ρ ≫ ε,
        is for KL that of Séjourné, Vialard and Peyré (2022); projected Newton steps as in
        Bertsekas (1982).

    Example:
        >>> import torch
        >>> C = torch.tensor([[0.0, 16.0], [1.0, 9.0]], dtype=torch.float64)  # the last target is far off
        >>> sinkhorn_unbalanced(C, eps=0.1, rho=1.0, divergence="tv").plan.round(decimals=4)
        tensor([[0.5000, 0.0000],
                [0.0000, 0.0000]], dtype=torch.float64)
        >>> sinkhorn_unbalanced(C, eps=0.1, rho=1.0).plan.round(decimals=2)
        tensor([[0.4100, 0.0000],
                [0.1700, 0.0000]], dtype=torch.float64)
    """
    C, a, b = _problem(C, a, b)
    eps = _check.positive(eps, "eps")
    rho = _check.positive(rho, "rho")
    relaxed = {"kl": KL, "tv": TV}[_check.choice(divergence, "divergence", ("kl", "tv"))](rho)
    tol = _check.positive(tol, "tol")
    max_iter = _check.positive_int(max_iter, "max_iter")

    # Costs over ε lose their digits in float32 exactly when ε is small.
    exact = torch.float32 if C.device.type == "mps" else torch.float64
    cost, a_exact, b_exact = C.detach(), a.detach().to(exact), b.detach().to(exact)
    low, high = (x.item() for x in cost[torch.isfinite(cost)].aminmax())
    if -low > HUGE / 2 * (rho + eps):
        raise ValueError(
            f"C goes down to {low:.6g}, far below 0 for rho = {rho:g} and eps = {eps:g}: the optimal "
            "mass grows like exp(−C/(2 rho + eps)) and overflows; raise rho, or add a constant to C"
        )
    # To move nothing is an option, too, so 0 belongs to the range of the costs.
    stages = schedule(eps, START * (max(high, 0.0) - min(low, 0.0)))[-max_iter:]
    f, g, s, t, error, n_iter = maximise(relaxed, cost, a_exact, b_exact, stages, tol, max_iter)

    converged = bool((error <= tol).all())
    if not converged:
        warnings.warn(
            f"sinkhorn_unbalanced stopped after {n_iter} iterations with a relative change of the marginals "
            f"of {error.max().item():.2g} above tol = {tol:g}: raise max_iter, eps or tol",
            ConvergenceWarning,
            stacklevel=2,
        )
    # The densities P1/a and Pᵀ1/b, defined also where there is no mass.
    u, v = ((f - s) / eps).exp(), ((g - t) / eps).exp()
    mass_a, mass_b = a_exact.sum(-1, keepdim=True), b_exact.sum(-1, keepdim=True)
    value = pair(a_exact, relaxed.dual(f)) + pair(b_exact, relaxed.dual(g))
    value = value - eps * (pair(a_exact, u) - (mass_a * mass_b).squeeze(-1))
    gradients = relaxed.dual(f) + eps * (mass_b - u), relaxed.dual(g) + eps * (mass_a - v)
    transport = torch.zeros_like(value)
    for i in blocks(cost):
        P = plan_rows(cost[..., i, :], a_exact[..., i], b_exact, f[..., i], g, eps).to(exact)
        transport += (P * cost[..., i, :]).nan_to_num(0.0).sum((-2, -1))
    return OTResult(
        value=_Value.apply(C, a, b, f, g, value.to(C.dtype), eps, *gradients),
        cost=transport.to(C.dtype),
        f=f.to(C.dtype),
        g=g.to(C.dtype),
        n_iter=n_iter,
        marginal_error=(pair(a_exact, (u - 1).abs()) + pair(b_exact, (v - 1).abs())).to(C.dtype),
        converged=converged,
        _plan=lambda: plan_rows(cost, a_exact, b_exact, f, g, eps),
    )


def partial(C: ArrayLike, a: ArrayLike | None = None, b: ArrayLike | None = None, *, mass: float) -> OTResult:
    r"""Exact partial transport: the cheapest way to move a given amount of the mass.

    Minimises ⟨C, P⟩ over P ≥ 0 with P1 ≤ a, Pᵀ1 ≤ b and Σ P = ``mass``. One dummy point on either
    side takes what stays behind, 1 − mass, and :func:`emd` solves the extended problem. Its dual is

        max ⟨a, f⟩ + ⟨b, g⟩ − (1 − mass) (max f + max g)  subject to  f⊕g ≤ C,

    Kantorovich's for mass = 1; max f + max g is what another bit of mass would cost. A point with
    f_i < max f gives away all that it has.

    ``value`` (and ``cost``, which is the same) is differentiable: its derivative is P in C,
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
    value = _Envelope.apply(C, a, b, transport, plan, df, dg)
    return OTResult(value, value, f, g, 0, error, result.converged, plan)


def _with_dummy(w: Tensor, left: float) -> Tensor:
    """Weights with a dummy of weight ``left`` at their end, all of mass 1 together."""
    w = w.detach().cpu().double()
    w = w / w.sum(-1, keepdim=True)
    return torch.cat([w, torch.full_like(w[..., :1], left)], -1) / (1 + left)


def _problem(C: ArrayLike, a: ArrayLike | None, b: ArrayLike | None) -> tuple[Tensor, Tensor, Tensor]:
    """A problem between measures of any mass: cost (…, n, m), masses broadcast to (…, n) and (…, m)."""
    C = _check.cost_matrix(C)
    batch = C.shape[:-2]
    sides = []
    for w, n, name in ((a, C.shape[-2], "a"), (b, C.shape[-1], "b")):
        w = _masses(w, n, name, like=C)
        if w.ndim > 1 and w.shape[:-1] != batch:
            raise ValueError(
                f"{name} has batch shape {tuple(w.shape[:-1])}, but C has {tuple(batch)}; "
                f"give {name} the shape {(*batch, n)} or {(n,)}"
            )
        sides.append(w.expand(*batch, n))
    return C, *sides


def _masses(w: ArrayLike | None, n: int, name: str, *, like: Tensor) -> Tensor:
    """Masses (…, n): finite, non-negative, not all 0. ``None`` means 1/n each."""
    if w is None:
        return _check.weights(None, n, name, like=like)
    w = _check.tensor(w, name, like=like)
    if w.ndim < 1 or w.shape[-1] != n:
        raise ValueError(f"{name} must have shape (…, {n}), one mass a point, but has shape {tuple(w.shape)}")
    values = w.detach()
    if not torch.isfinite(values).all():
        raise ValueError(f"{name} holds {values[~torch.isfinite(values)][0].item()}; masses are finite")
    if (values < 0).any():
        raise ValueError(
            f"{name} holds a negative mass, {values.min().item():.6g}; use {name}.clamp(min=0), or move the "
            "negative part to the other side"
        )
    if (values.sum(-1) <= 0).any():
        raise ValueError(f"{name} has no mass: all its entries are 0; give it at least one positive entry")
    return w


class _Value(torch.autograd.Function):
    """The optimal value with its gradients by the envelope theorem; the plan is formed when needed."""

    @staticmethod
    def forward(ctx, C, a, b, f, g, value, eps, da, db):
        ctx.save_for_backward(C, a, b, f, g, da, db)
        ctx.eps = eps
        return value.clone()

    @staticmethod
    def backward(ctx, grad):
        gradients = _Gradient.apply(*ctx.saved_tensors, grad, ctx.eps, ctx.needs_input_grad[:3])
        return *gradients, None, None, None, None, None, None


class _Gradient(torch.autograd.Function):
    """The gradients of the value, on record as functions of the inputs: a second derivative is refused
    instead of silently taken for zero.
    """

    @staticmethod
    def forward(ctx, C, a, b, f, g, da, db, grad, eps, wanted):
        in_C, in_a, in_b = wanted
        return (
            grad[..., None, None] * plan_rows(C, a.to(f.dtype), b.to(f.dtype), f, g, eps) if in_C else None,
            grad[..., None] * da.to(a.dtype) if in_a else None,
            grad[..., None] * db.to(b.dtype) if in_b else None,
        )

    @staticmethod
    def backward(ctx, *_):
        raise NotImplementedError(
            "the value of sinkhorn_unbalanced can be differentiated once; its gradient, which holds the plan "
            "and the potentials, cannot: detach the gradient, or do without create_graph=True"
        )
