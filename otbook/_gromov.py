"""The core of Gromov–Wasserstein transport: a quadratic objective, two ways down, and its derivatives."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd import Function

from ._result import ConvergenceWarning
from .entropic import sinkhorn
from .exact import emd

#: Called with the iteration, the objective and the quantity that is to fall below the tolerance.
Callback = Callable[[int, float, float], None]

#: Parts of a plan below this weight are rounding errors.
LIGHT = 1e-14


class Quadratic:
    """F(P) = (1 − α) ⟨M, P⟩ + α E(P) on the couplings of a and b, in working precision.

    There E(P) = ½⟨u, a⟩ + ½⟨v, b⟩ − ⟨S(P), P⟩ with S(P) = Cx P Cyᵀ + Cxᵀ P Cy: a few matrix products,
    not a sum over four indices (Peyré, Cuturi and Solomon 2016, proposition 1).
    """

    def __init__(self, Cx: Tensor, Cy: Tensor, a: Tensor, b: Tensor, M: Tensor | None, alpha: float):
        # mps has no float64.
        work = torch.float32 if Cx.device.type == "mps" else torch.float64
        Cx, Cy, a, b = (t.detach().to(work) for t in (Cx, Cy, a, b))
        self.a, self.b, self.alpha = a / a.sum(), b / b.sum(), alpha
        # Only differences Cx_ik − Cy_jl matter: without the common mean, their squares cancel less.
        mean = (self.a @ Cx @ self.a + self.b @ Cy @ self.b) / 2
        self.Cx, self.Cy = Cx - mean, Cy - mean
        self.symmetric = torch.equal(Cx, Cx.T) and torch.equal(Cy, Cy.T)
        self.u = (self.Cx.square() + self.Cx.T.square()) @ self.a
        self.v = (self.Cy.square() + self.Cy.T.square()) @ self.b
        self.M = Cx.new_zeros(len(a), len(b)) if M is None else (1 - alpha) * M.detach().to(work)
        squares = (self.u @ self.a + self.v @ self.b) / 2
        self.scale = (self.M.max() - self.M.min() + alpha * squares).item() or 1.0

    def product(self, P: Tensor) -> Tensor:
        forth = self.Cx @ P @ self.Cy.T
        return 2 * forth if self.symmetric else forth + self.Cx.T @ P @ self.Cy

    def gradient(self, S: Tensor) -> Tensor:
        """∇F(P) = (1 − α) M + α Σ_kl ((Cx_ik − Cy_jl)² + (Cx_ki − Cy_lj)²) P_kl, where S = S(P)."""
        return self.M + self.alpha * (self.u[:, None] + self.v - 2 * S)

    def value(self, P: Tensor, S: Tensor) -> Tensor:
        quadratic = ((self.u[:, None] + self.v) / 2 - S).mul(P).sum()
        # The difference of two large sums can fall below zero by rounding; E cannot.
        return (self.M * P).sum() + self.alpha * quadratic.clamp(min=0)


@dataclass(frozen=True)
class End:
    """Where a start led: the plan, its potentials and objective, and what was to fall below tol."""

    P: Tensor
    f: Tensor
    g: Tensor
    value: Tensor
    rest: float
    n_iter: int


def conditional_gradient(
    q: Quadratic, P: Tensor, *, tol: float, max_iter: int, callback: Callback | None
) -> End:
    """Conditional gradient with away steps: P is kept as a convex combination of extreme couplings.

    A step goes towards the solution of the linear problem, or away from the worst part of P where that
    is steeper; without the latter, plans that are not extreme are approached in ever smaller zigzags
    (Lacoste-Julien and Jaggi 2015, algorithm 1). The step length is exact.
    """
    parts, weights = [(P, q.product(P))], [1.0]
    n_iter = 0
    while True:
        P, S = (sum(w * t for w, t in zip(weights, ts, strict=True)) for ts in zip(*parts, strict=True))
        G = q.gradient(S)
        linear = emd(G, q.a, q.b)
        new = linear.plan, q.product(linear.plan)
        level = (G * P).sum().item()
        gap = max(level - (G * linear.plan).sum().item(), 0.0)
        slopes = [(G * part).sum().item() - level for part, _ in parts]
        worst = max(range(len(parts)), key=slopes.__getitem__)
        towards = gap >= slopes[worst]
        if towards:
            slope, longest, D, SD = gap, 1.0, new[0] - P, new[1] - S
        else:
            slope, longest = slopes[worst], weights[worst] / (1 - weights[worst])
            D, SD = P - parts[worst][0], S - parts[worst][1]
        # F(P + tD) = F(P) − slope t + curvature t², since D has no mass in any row or column.
        curvature = -q.alpha * (SD * D).sum().item()
        step = slope / (2 * curvature) if 2 * curvature * longest > slope else longest
        # Where all directions look alike (gap 0), the curvature may still lead down.
        gain = max(gap, step * (slope - step * curvature))
        value = q.value(P, S)
        if callback:
            callback(n_iter, value.item(), gain)
        if gain <= tol * q.scale or n_iter == max_iter:
            return End(P, linear.f, linear.g, value, gain / q.scale, n_iter)
        n_iter += 1
        if towards:
            weights = [w * (1 - step) for w in weights]
            known = [k for k, (part, _) in enumerate(parts) if torch.equal(part, new[0])]
            if known:
                weights[known[0]] += step
            else:
                parts, weights = [*parts, new], [*weights, step]
        else:
            weights = [w * (1 + step) for w in weights]
            weights[worst] -= step
        kept = [(w, part) for w, part in zip(weights, parts, strict=True) if w > LIGHT]
        total = sum(w for w, _ in kept)
        weights, parts = [w / total for w, _ in kept], [part for _, part in kept]


def mirror_descent(
    q: Quadratic, P: Tensor, *, eps: float, tol: float, max_iter: int, callback: Callback | None
) -> End:
    """P ← argmin_Q ⟨∇E(P), Q⟩ + ε KL(Q ‖ a⊗b) + (λ − ε) KL(Q ‖ P), with λ = ε as long as F falls."""
    outer = q.a[:, None] * q.b
    lam, value, g = eps, math.inf, None
    log_density = torch.zeros_like(P)  # log(P / a⊗b), which the first step does not need
    G = q.gradient(q.product(P))
    for n_iter in range(1, max_iter + 1):
        C = G - (lam - eps) * log_density
        with warnings.catch_warnings():
            # The marginals of the plan that is returned are measured at the end.
            warnings.simplefilter("ignore", ConvergenceWarning)
            inner = sinkhorn(C, q.a, q.b, eps=lam, tol=0.1 * tol, g0=g)
        trial = (inner.f[:, None] + inner.g - C) / lam
        Q = torch.where(outer > 0, outer * trial.exp(), 0.0)
        S = q.product(Q)
        lower = q.value(Q, S) + eps * (trial * Q).sum()
        if lower > value + tol * (q.scale + eps):
            lam, g = 2 * lam, None
            continue
        move = lam / eps * (Q - P).abs().sum().item()
        P, log_density, value, f, g = Q, trial, lower, inner.f, inner.g
        if callback:
            callback(n_iter, value.item(), move)
        if move <= tol:
            break
        G = q.gradient(S)
    return End(P, f, g, value, move, n_iter)


class Value(Function):
    """The value with its derivatives at the plan found: of the objective in Cx, Cy, M; f, g in a, b."""

    @staticmethod
    def forward(ctx, Cx, Cy, a, b, M, value, P, f, g, alpha):
        ctx.save_for_backward(Cx, Cy, a, b, M, P, f, g)
        ctx.alpha = alpha
        return value.clone()

    @staticmethod
    def backward(ctx, grad):
        return *_Gradient.apply(grad, *ctx.saved_tensors, ctx.alpha), None, None, None, None, None


class _Gradient(Function):
    """The gradients of the value, on record as functions of the inputs: a second derivative, which
    would need the derivative of P, f and g, is refused instead of silently taken for zero.
    """

    @staticmethod
    def forward(ctx, grad, Cx, Cy, a, b, M, P, f, g, alpha):
        dtype, Cx, Cy, p, q = Cx.dtype, Cx.to(P.dtype), Cy.to(P.dtype), P.sum(1), P.sum(0)
        in_Cx = 2 * alpha * (p[:, None] * p * Cx - P @ Cy @ P.T)
        in_Cy = 2 * alpha * (q[:, None] * q * Cy - P.T @ Cx @ P)
        in_M = None if M is None else (1 - alpha) * P
        return tuple(None if t is None else grad * t.to(dtype) for t in (in_Cx, in_Cy, f, g, in_M))

    @staticmethod
    def backward(ctx, *_):
        raise NotImplementedError(
            "the value of Gromov–Wasserstein transport can be differentiated once; its gradient, which holds "
            "the plan, cannot: detach the gradient, or do without create_graph=True"
        )
