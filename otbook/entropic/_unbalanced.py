"""Unbalanced transport: marginals are not constraints but have a price."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from .. import _check, _envelope
from .._check import ArrayLike
from .._result import ConvergenceWarning, OTResult
from . import _unbalanced_gradient as _derivatives
from ._dual import schedule
from ._relaxed import HUGE, KL, TV, maximise, pair
from ._rows import plan_rows
from ._sinkhorn import START

_NO_GRADIENT = (
    "cost, plan and potentials of sinkhorn_unbalanced with divergence='tv' have kinks and no derivatives "
    "here: detach them, differentiate the value, or use divergence='kl'"
)


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
            a Newton step where those are slow and min(n, m) ≤ 4096 (less in batches).

    Returns:
        An :class:`OTResult`. ``value`` is the dual objective, in units of C × mass. Its gradients in C,
        a and b are P, F(f) + ε (Σ b − P1/a) and F(g) + ε (Σ a − Pᵀ1/b), by the envelope theorem.
        For KL everything but ``marginal_error`` may be differentiated in C, a and b, and as often as
        you like: derivatives of the potentials come from their equations, implicitly. For TV the
        value may be differentiated once, and the rest not: its backward pass raises an error. (With
        equal masses of a and b the value for TV may have a kink in the total mass; there its
        gradients are subgradients.) ``marginal_error`` is ‖P1 − a‖₁ + ‖Pᵀ1 − b‖₁ as for every
        solver, but no error here: it is the mass that the optimal plan leaves, or adds.

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
    error = pair(a_exact, (u - 1).abs()) + pair(b_exact, (v - 1).abs())

    smooth = divergence == "kl"
    inputs = (C, a.to(exact), b.to(exact)) if smooth else (cost, a_exact, b_exact)
    if smooth:
        f, g = _derivatives.potentials(*inputs, f, g, eps, rho)
        value = _derivatives.value(value, *inputs, f, g, eps, rho)
    else:
        in_a, in_b = relaxed.dual(f) + eps * (mass_b - u), relaxed.dual(g) + eps * (mass_a - v)
        gradients = lambda: (lambda: plan_rows(*inputs, f, g, eps), in_a, in_b)  # noqa: E731
        value = _envelope.attach(value, (C, a, b), gradients, "sinkhorn_unbalanced with divergence='tv'")

    def finish(t: Tensor) -> Tensor:
        return t.to(C.dtype) if smooth else _envelope.refuse(t.to(C.dtype), (C, a, b), _NO_GRADIENT)

    def plan() -> Tensor:
        return finish(_derivatives.plan(*inputs, f, g, eps))

    return OTResult(
        value=value.to(C.dtype),
        cost=finish(_derivatives.transport(*inputs, f, g, eps)),
        f=finish(f),
        g=finish(g),
        n_iter=n_iter,
        marginal_error=error.to(C.dtype),
        converged=converged,
        _plan=plan,
    )


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
