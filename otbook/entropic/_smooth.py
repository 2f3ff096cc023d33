"""Smoothed optimal transport: squared 2-norm or entropy, by Newton's method on the dual or semi-dual."""

from __future__ import annotations

import warnings

import torch

from .. import _check, _envelope
from .._check import ArrayLike
from .._result import ConvergenceWarning, OTResult
from ._dual import schedule
from ._sinkhorn import _exact
from ._smooth_dual import REGULARISERS, Dual


def smooth_ot(
    C: ArrayLike,
    a: ArrayLike | None = None,
    b: ArrayLike | None = None,
    *,
    gamma: float,
    regulariser: str = "l2",
    semi: bool = False,
    tol: float = 1e-6,
    max_iter: int = 1000,
) -> OTResult:
    r"""Optimal transport with a strongly convex regulariser; the squared 2-norm keeps plans sparse.

    Solves min_P ⟨C, P⟩ + γ Ω(P) subject to P ≥ 0, P1 = a, Pᵀ1 = b, with

    - ``"l2"``: Ω(P) = ½ Σ P_ij², not relative to a⊗b. The solution P = max(f⊕g − C, 0)/γ has exact
      zeros. Entries of P are of the order of 1/n, so its γ is to be compared with n × C.
    - ``"entropy"``: Ω(P) = KL(P ‖ a⊗b), the problem of :func:`sinkhorn` with ε = γ, here by another
      method; :func:`sinkhorn` remains the solver for it, in memory and options.

    The dual maximises ⟨a, f⟩ + ⟨b, g⟩ − Σ_ij ψ(f_i + g_j − C_ij) over f and g, where ψ is the
    convex conjugate of γΩ: ψ(x) = max(x, 0)²/(2γ) for the squared norm. The semi-dual has f
    maximised out exactly, row by row, for example by a projection on the simplex.

    Args:
        C: ground cost, shape (…, n, m); +∞ forbids a pair.
        a: source weights, shape (n,) or (…, n), sum 1; None means uniform. Zeros are allowed.
        b: target weights, shape (m,) or (…, m), sum 1; None means uniform. Zeros are allowed.
        gamma: weight γ of the regulariser, in units of C.
        regulariser: ``"l2"`` or ``"entropy"``.
        semi: solve the semi-dual in g instead of the dual in f and g; then the rows of the plan
            sum to a exactly, whenever the iteration stops.
        tol: stop when ‖P1 − a‖₁ + ‖Pᵀ1 − b‖₁ ≤ tol for every problem of the batch.
        max_iter: largest number of Newton steps, each with one m × m factorisation.

    Returns:
        An :class:`OTResult`. ``value`` is the primal objective, regulariser included, in units of C;
        the dual objective of ``f``, ``g`` differs from it by at most marginal_error × max(|f|, |g|).
        It may be differentiated once in C, a and b: by the envelope theorem its gradients are P,
        f and g, the last two up to a constant, which weights of sum 1 do not see. ``cost``,
        ``plan``, ``f`` and ``g`` are detached: no gradient passes through them. The potentials are
        normalised by ⟨a, f⟩ = ⟨b, g⟩.

    Raises:
        ValueError: for weights or costs that make no problem, for gamma, tol or max_iter that are
            not positive, and for an unknown regulariser.

    Warns:
        ConvergenceWarning: if the tolerance is not reached, or if forbidden pairs leave no plan.

    Source:
        Blondel, Seguy and Rolet (2018), section 3, who use L-BFGS; the semismooth Newton method for
        the squared norm follows Lorenz, Manns and Meyer (2021), here with γ lowered in stages.

    Example:
        >>> import torch
        >>> C = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
        >>> smooth_ot(C, [0.5, 0.5], [0.1, 0.9], gamma=1.0).plan
        tensor([[0.1000, 0.4000],
                [0.0000, 0.5000]], dtype=torch.float64)
    """
    C, a, b = _check.problem(C, a, b)
    gamma = _check.positive(gamma, "gamma", remedy="for the unregularised problem use emd")
    _check.choice(regulariser, "regulariser", tuple(REGULARISERS))
    tol = _check.positive(tol, "tol")
    max_iter = _check.positive_int(max_iter, "max_iter")

    a_exact, b_exact = _exact(a), _exact(b)
    cost = C.detach().to(a_exact.dtype)
    finite = cost[torch.isfinite(cost)]
    omega = REGULARISERS[regulariser]
    start = omega.start(*C.shape[-2:]) * (finite.max() - finite.min()).item()
    problem = Dual(omega, cost, a_exact, b_exact, semi)
    f, g, n_iter = problem.maximise(schedule(gamma, start), 0.8 * tol, max_iter)

    # Where there is no mass the iteration leaves the potentials alone; their transforms belong there.
    f = torch.where(a_exact > 0, f, problem.rows(g, gamma))
    g = torch.where(b_exact > 0, g, problem.columns(f, gamma))
    shift = ((a_exact * f).sum(-1, keepdim=True) - (b_exact * g).sum(-1, keepdim=True)) / 2
    f, g = f - shift, g + shift

    mass = (a_exact[..., :, None] > 0) & (b_exact[..., None, :] > 0)
    P = torch.where(mass, problem.evaluate(f, g, gamma)[1], 0.0)
    transport = (P * torch.where(P > 0, cost, 0.0)).sum((-2, -1))
    value = transport + gamma * omega.penalty(P, a_exact, b_exact)
    P = P.to(C.dtype)
    rounded = P.to(a_exact.dtype)
    error = (rounded.sum(-1) - a_exact).abs().sum(-1) + (rounded.sum(-2) - b_exact).abs().sum(-1)
    converged = bool((error <= tol).all())
    if not converged:
        remedy = "raise max_iter" if n_iter >= max_iter else "tol is below rounding; raise tol"
        if not torch.isfinite(cost).all():
            remedy += ", or allow more pairs: the infinite costs may leave no plan"
        warnings.warn(
            f"smooth_ot stopped after {n_iter} Newton steps with marginal error {error.max().item():.2g} "
            f"above tol = {tol:g}: {remedy}, or raise gamma",
            ConvergenceWarning,
            stacklevel=2,
        )
    f, g = f.to(C.dtype), g.to(C.dtype)
    return OTResult(
        value=_envelope.attach(value.to(C.dtype), (C, a, b), lambda: (P, f, g), "smooth_ot"),
        cost=transport.to(C.dtype),
        f=f,
        g=g,
        n_iter=n_iter,
        marginal_error=error.to(C.dtype),
        converged=converged,
        _plan=P,
    )
