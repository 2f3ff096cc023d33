"""Derivatives of KL-unbalanced transport, of any order: the potentials by the implicit function theorem,
value, cost and plan through them.

With the density D_ij = exp((f_i + g_j − C_ij)/ε) of the plan P = diag(a) D diag(b), the optimal
potentials solve exp(−f/ρ) = D b and exp(−g/ρ) = Dᵀ a, at points without mass as well. Each backward
pass here is made of differentiable operations, so derivatives may be taken of it in turn.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import Function

from ._relaxed import HUGE, KL, solve_grounded
from ._rows import blocks, plan_rows


def potentials(
    C: Tensor, a: Tensor, b: Tensor, f: Tensor, g: Tensor, eps: float, rho: float
) -> tuple[Tensor, Tensor]:
    """The optimal potentials f and g, now differentiable in C, a and b."""
    return _Potentials.apply(C, a, b, f, g, eps, rho)


def value(
    dual: Tensor, C: Tensor, a: Tensor, b: Tensor, f: Tensor, g: Tensor, eps: float, rho: float
) -> Tensor:
    """The optimal value, now differentiable in C, a and b.

    The first derivative needs none of f and g, which maximise ``dual``; the second one does, and
    finds it if they come from :func:`potentials`.
    """
    return _Value.apply(dual, C, a, b, f, g, eps, rho)


def transport(C: Tensor, a: Tensor, b: Tensor, f: Tensor, g: Tensor, eps: float) -> Tensor:
    """⟨C, P⟩, differentiable; a plan is formed in the backward pass only."""
    return _Transport.apply(C, a, b, f, g, eps)


def plan(C: Tensor, a: Tensor, b: Tensor, f: Tensor, g: Tensor, eps: float) -> Tensor:
    """P_ij = a_i b_j D_ij in the dtype of C; at less expense where no derivative is recorded."""
    if not (torch.is_grad_enabled() and any(t.requires_grad for t in (C, a, b, f, g))):
        return plan_rows(C, a, b, f, g, eps)
    return (a[..., :, None] * _density(C, f, g, eps) * b[..., None, :]).to(C.dtype)


def _density(C: Tensor, f: Tensor, g: Tensor, eps: float) -> Tensor:
    # It exceeds the bound only between points that both have no mass.
    return ((f[..., :, None] + g[..., None, :] - C) / eps).clamp(max=HUGE).exp()


class _Potentials(Function):
    """Differentiated, exp(−f/ρ) = D b and exp(−g/ρ) = Dᵀ a become, with η = ε/ρ, u = D b and v = Dᵀ a,

        (1 + η) u_i df_i + Σ_j D_ij b_j dg_j = Σ_j D_ij (b_j dC_ij − ε db_j),
        (1 + η) v_j dg_j + Σ_i D_ij a_i df_i = Σ_i D_ij (a_i dC_ij − ε da_i).

    The backward pass solves the transposed system: its solution is λ = λ⁰ + a x and μ = μ⁰ + b y, where
    λ⁰ and μ⁰ are that of the diagonal alone and [(1+η) diag(P1), P; Pᵀ, (1+η) diag(Pᵀ1)] (x, y) is
    what they leave.
    """

    @staticmethod
    def forward(ctx, C, a, b, f, g, eps, rho):
        f, g = f.clone(), g.clone()
        ctx.save_for_backward(C, a, b, f, g)
        ctx.set_materialize_grads(False)
        ctx.eps, ctx.eta = eps, eps / rho
        return f, g

    @staticmethod
    def backward(ctx, in_f, in_g):
        if in_f is None and in_g is None:
            return (None,) * 7
        C, a, b, f, g = ctx.saved_tensors
        eps, eta = ctx.eps, ctx.eta
        D = _density(C, f, g, eps)
        u, v = _times(D, b), _times(D.mT, a)
        lam, mu = _ratio(in_f, (1 + eta) * u), _ratio(in_g, (1 + eta) * v)
        P = a[..., :, None] * D * b[..., None, :]
        x, y = solve_grounded(P, eta * a * u, eta * b * v, -a * _times(D, mu), -b * _times(D.mT, lam))
        if not (torch.isfinite(x).all() and torch.isfinite(y).all()):
            raise RuntimeError(
                "the derivative of the potentials of sinkhorn_unbalanced is lost to rounding: raise eps, "
                "or lower rho"
            )
        lam, mu = lam + a * x, mu + b * y
        in_C = D * (lam[..., :, None] * b[..., None, :] + mu[..., None, :] * a[..., :, None])
        return in_C.to(C.dtype), -eps * _times(D, mu), -eps * _times(D.mT, lam), None, None, None, None


class _Value(Function):
    """The envelope theorem: the derivatives of the dual objective in C, a and b at f and g held fixed."""

    @staticmethod
    def forward(ctx, dual, C, a, b, f, g, eps, rho):
        ctx.save_for_backward(C, a, b, f, g)
        ctx.eps, ctx.relaxed = eps, KL(rho)
        return dual.clone()

    @staticmethod
    def backward(ctx, grad):
        C, a, b, f, g = ctx.saved_tensors
        eps, relaxed, grad = ctx.eps, ctx.relaxed, grad[..., None]
        in_C = grad[..., None] * plan(C, a, b, f, g, eps) if ctx.needs_input_grad[1] else None
        # P1/a is exp(−f/ρ), the slope of F.
        in_a = grad * (relaxed.dual(f) + eps * (b.sum(-1, keepdim=True) - relaxed.derivatives(f)[0]))
        in_b = grad * (relaxed.dual(g) + eps * (a.sum(-1, keepdim=True) - relaxed.derivatives(g)[0]))
        return None, in_C, in_a, in_b, None, None, None, None


class _Transport(Function):
    @staticmethod
    def forward(ctx, C, a, b, f, g, eps):
        ctx.save_for_backward(C, a, b, f, g)
        ctx.eps = eps
        total = torch.zeros_like(f[..., 0])
        for i in blocks(C):
            P = plan_rows(C[..., i, :], a[..., i], b, f[..., i], g, eps).to(f.dtype)
            total += (P * _finite(C[..., i, :])).sum((-2, -1))
        return total

    @staticmethod
    def backward(ctx, grad):
        C, a, b, f, g = ctx.saved_tensors
        D, grad = _density(C, f, g, ctx.eps), grad[..., None]
        CD = _finite(C) * D
        in_a, in_b = grad * _times(CD, b), grad * _times(CD.mT, a)
        in_C = grad[..., None] * a[..., :, None] * (D - CD / ctx.eps) * b[..., None, :]
        return in_C.to(C.dtype), in_a, in_b, a * in_a / ctx.eps, b * in_b / ctx.eps, None


def _finite(C: Tensor) -> Tensor:
    return torch.where(torch.isfinite(C), C, 0.0)


def _times(D: Tensor, x: Tensor) -> Tensor:
    return (D @ x.unsqueeze(-1)).squeeze(-1)


def _ratio(x: Tensor | None, w: Tensor) -> Tensor:
    """x/w, and 0 where w underflows: there the potential stands still."""
    return torch.zeros_like(w) if x is None else torch.where(w > 0, x / torch.where(w > 0, w, 1.0), 0.0)
