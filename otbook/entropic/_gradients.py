r"""Derivatives of entropic transport: the envelope theorem, and implicit differentiation beyond it.

The potentials solve, with the Gibbs density q_ij = exp((f_i + g_j − C_ij)/ε) of the plan P = a⊗b q,

    Σ_j b_j q_ij = 1 for all i,   Σ_i a_i q_ij = 1 for all j,   ⟨a, f⟩ = ⟨b, g⟩.

The value is stationary in them, so its gradients are P, f and g as they stand. What is not stationary
(f, g, P, ⟨C, P⟩, and the gradients of the value) is differentiated through these equations: one linear
system with the Laplacian S = diag(Pᵀ1) − Pᵀ diag(1/a) P of the core loop, by products with P.

Every function here works on blocks of rows and takes the cost as ``make(*leaves)``: of a matrix, its one
leaf, or of two clouds, through which the gradient is then carried on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from ..costs import PointCloudCost
from ._base import BASE
from ._kernel import DenseKernel, PointCloudKernel
from ._laplacian import laplacian_solve
from ._rows import blocks, plan_rows
from ._tiles import Exponents

#: exp of more than this is not needed: an entry of q is at most 1/a_i or 1/b_j where one is positive.
_LARGEST = 596.0

Make = Callable[..., Tensor | PointCloudCost]


class Value(Function):
    """The optimal value with its gradients by the envelope theorem: P in C, f in a, g in b."""

    @staticmethod
    def forward(ctx, value, f, g, eps, make, a, b, *leaves):
        ctx.save_for_backward(f, g, a, b, *leaves)
        ctx.eps, ctx.make = eps, make
        return value.clone()

    @staticmethod
    def backward(ctx, grad):
        f, g, a, b, *leaves = ctx.saved_tensors
        in_a, in_b, *in_leaves = ctx.needs_input_grad[5:]
        if torch.is_grad_enabled():  # a second derivative is to come
            f, g = Potentials.apply(f, g, ctx.eps, ctx.make, a, b, *leaves)
        in_C, C = [None] * len(leaves), ctx.make(*leaves) if any(in_leaves) else None
        if isinstance(C, PointCloudCost) and C.cost == "sqeuclidean" and not torch.is_grad_enabled():
            in_C = _pull_back_squares(C, in_leaves, grad[..., None] * a, b, f, g, ctx.eps)
        elif C is not None:

            def weights(C: Tensor, i: slice) -> Tensor:
                return grad[..., None, None] * Plan.apply(C, a[..., i], b, f[..., i], g, ctx.eps)

            in_C = _pull_back(ctx.make, leaves, in_leaves, weights)
        return (
            *(None,) * 5,
            grad[..., None] * f.to(a.dtype) if in_a else None,
            grad[..., None] * g.to(b.dtype) if in_b else None,
            *in_C,
        )


class Plan(Function):
    """Some rows of the plan as a function of C, a, b, f and g; ``P``, if they are known."""

    @staticmethod
    def forward(ctx, C, a, b, f, g, eps, P=None):
        ctx.save_for_backward(C, a, b, f, g)
        ctx.eps = eps
        if P is not None:
            return P.to(C.dtype)
        return plan_rows(C, a.to(f.dtype), b.to(f.dtype), f, g, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        C, a, b, f, g = ctx.saved_tensors
        grad = grad.to(f.dtype)
        q, p = _density(C, f, g, ctx.eps) * grad, a.to(f.dtype)
        in_a, in_b = (q * b.unsqueeze(-2)).sum(-1), (p.unsqueeze(-2) @ q).squeeze(-2)
        in_f, in_g = p * in_a / ctx.eps, b * in_b / ctx.eps
        in_C = q.mul_(b.unsqueeze(-2)).mul_(p.unsqueeze(-1) / -ctx.eps)
        return in_C.to(C.dtype), in_a.to(a.dtype), in_b.to(b.dtype), in_f, in_g, None, None


class Cost(Function):
    """The transport cost ⟨C, P⟩ as a function of C, a, b, f and g, a block of rows at a time."""

    @staticmethod
    def forward(ctx, cost, eps, make, f, g, a, b, *leaves):
        ctx.save_for_backward(f, g, a, b, *leaves)
        ctx.eps, ctx.make = eps, make
        return cost.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        f, g, a, b, *leaves = ctx.saved_tensors
        eps, p, b_exact = ctx.eps, a.to(f.dtype), b.to(f.dtype)
        in_a, in_b = torch.empty_like(f), torch.zeros_like(g)
        for i, C, q in _densities(ctx.make(*leaves), f, g, eps):
            qC = q * torch.where(q > 0, C, 0.0)
            in_a[..., i] = (qC @ b_exact[..., None]).squeeze(-1)
            in_b += (p[..., None, i] @ qC).squeeze(-2)

        def weights(C: Tensor, i: slice) -> Tensor:
            P = plan_rows(C, p[..., i], b_exact, f[..., i], g, eps)
            return grad[..., None, None] * torch.where(P > 0, P * (1 - C / eps), 0.0)

        in_C = _pull_back(ctx.make, leaves, ctx.needs_input_grad[7:], weights)
        in_a, in_b = grad[..., None] * in_a, grad[..., None] * in_b
        in_f, in_g = p * in_a / eps, b_exact * in_b / eps
        return None, None, None, in_f, in_g, in_a.to(a.dtype), in_b.to(b.dtype), *in_C


class Potentials(Function):
    """The potentials as functions of C, a and b: the adjoint of the linearised optimality conditions."""

    @staticmethod
    def forward(ctx, f, g, eps, make, a, b, *leaves):
        ctx.save_for_backward(f, g, a, b, *leaves)
        ctx.eps, ctx.make = eps, make
        return f.clone(), g.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_f, grad_g):
        f, g, a, b, *leaves = ctx.saved_tensors
        eps, p, b_exact = ctx.eps, a.to(f.dtype), b.to(f.dtype)
        # Adding a number to f and taking it from g changes nothing; ⟨a, f⟩ = ⟨b, g⟩ makes up for it.
        surplus = (grad_f.sum(-1, keepdim=True) - grad_g.sum(-1, keepdim=True)) / 2
        C = ctx.make(*(leaf.detach() for leaf in leaves))
        lam, mu = _adjoint(C, p, b_exact, f, g, grad_f - surplus * p, grad_g + surplus * b_exact, eps)

        in_a, in_b = -surplus * f, surplus * g
        for i, _, q in _densities(C, f, g, eps):
            in_a[..., i] -= eps * (q @ mu[..., None]).squeeze(-1)
            in_b -= eps * (lam[..., None, i] @ q).squeeze(-2)

        def weights(C: Tensor, i: slice) -> Tensor:
            q = _density(C.detach(), f[..., i], g, eps)
            return q * (lam[..., i, None] * b_exact.unsqueeze(-2) + p[..., i, None] * mu.unsqueeze(-2))

        in_C = _pull_back(ctx.make, leaves, ctx.needs_input_grad[6:], weights)
        return None, None, None, None, in_a.to(a.dtype), in_b.to(b.dtype), *in_C


def _adjoint(
    C: Tensor | PointCloudCost,
    a: Tensor,
    b: Tensor,
    f: Tensor,
    g: Tensor,
    in_f: Tensor,
    in_g: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Solve λ + Uμ = in_f, Tᵀλ + μ = in_g, where T = q diag(b) and U = diag(a) q.

    With μ = c x for the column sums c of P = diag(a) T this is S x = in_g − Tᵀ in_f; but where b_j = 0
    column j of T vanishes, so that μ_j = in_g_j is known and Uμ has a part of its own.
    """
    kernel = (PointCloudKernel if isinstance(C, PointCloudCost) else DenseKernel)(C, a, b, dtype=a.dtype)
    _, c = kernel.absorb(g, eps, exact=True)
    massless = b == 0
    if massless.any():
        known = torch.where(massless, in_g, 0.0)
        in_f = in_f.clone()
        for i, _, q in _densities(C, f, g, eps):
            in_f[..., i] -= a[..., i] * (q @ known[..., None]).squeeze(-1)
    x = laplacian_solve(kernel, c, torch.where(massless, 0.0, in_g - kernel.columns(in_f)))
    mu = torch.where(massless, in_g, c * x)
    return in_f - a * kernel.rows(x), mu


def _pull_back(
    make: Make, leaves: list[Tensor], wanted: list[bool], weights: Callable[[Tensor, slice], Tensor]
) -> list[Tensor | None]:
    """The gradients in the leaves of Σ_ij W_ij C_ij, a block of rows W_i = ``weights``(C_i, i) at a time.

    Under ``create_graph`` they stay differentiable, which takes memory for all blocks.
    """
    if not any(wanted):
        return [None] * len(leaves)
    C = make(*leaves)
    if isinstance(C, Tensor):
        return [torch.cat([weights(C[..., i, :], i).to(C.dtype) for i in blocks(C)], -2)]
    again = torch.is_grad_enabled()
    x, y = leaves
    in_x, in_y = [], torch.zeros_like(y)
    with torch.enable_grad():
        for i in blocks(C):
            points, targets = x[..., i, :], y.view_as(y)  # apart, also where y is x
            rows = make(points, targets).dense()
            with torch.set_grad_enabled(again):
                W = weights(rows if again else rows.detach(), i).to(rows.dtype)
            sources = [leaf for leaf, want in zip((points, targets), wanted, strict=True) if want]
            parts = list(torch.autograd.grad(rows, sources, W, create_graph=again))
            if wanted[0]:
                in_x.append(parts.pop(0))
            if wanted[1]:
                in_y = in_y + parts.pop(0)
    return [torch.cat(in_x, -2) if wanted[0] else None, in_y if wanted[1] else None]


def _pull_back_squares(
    C: PointCloudCost, wanted: list[bool], w: Tensor, b: Tensor, f: Tensor, g: Tensor, eps: float
) -> list[Tensor | None]:
    """The gradients of Σ_ij W_ij ‖x_i − y_j‖² in x and y, where W_ij = w_i b_j exp((f_i + g_j − C_ij)/ε).

    In x_i it is 2 Σ_j W_ij (x_i − y_j): a product of W with 1 and y. Products take a tenth of the time that
    a derivative of every entry takes.
    """
    E = Exponents(C, g / eps + b.to(g.dtype).log(), eps, f.dtype)
    E.absorb(f)
    x, y, w = C.x.to(f.dtype), C.y.to(f.dtype), w.to(f.dtype).unsqueeze(-1)
    centre = x.mean(-2, keepdim=True)
    x, y = x - centre, y - centre
    from_x = w * torch.cat([torch.ones_like(x[..., :1]), x], -1)
    from_y = torch.cat([torch.ones_like(y[..., :1]), y], -1)
    at_x, at_y = torch.zeros_like(from_x), torch.zeros_like(from_y)
    for tile in E.tiles:
        i, K = tile.rows, E.kernel(tile)
        if wanted[0]:
            at_x[..., i, :] = w[..., i, :] * (K @ from_y)
        if wanted[1]:
            at_y += K.mT @ from_x[..., i, :]
    sides = zip(wanted, (x, y), (at_x, at_y), (C.x, C.y), strict=True)
    return [
        (2 * (z * at[..., :1] - at[..., 1:])).to(leaf.dtype) if want else None for want, z, at, leaf in sides
    ]


def _density(C: Tensor, f: Tensor, g: Tensor, eps: float) -> Tensor:
    """The Gibbs density q_ij = exp((f_i + g_j − C_ij)/ε)."""
    eta = eps * BASE.ln
    E = torch.add((g / eta).unsqueeze(-2), C, alpha=-1 / eta)
    return BASE.power(E.add_((f / eta).unsqueeze(-1)).clamp_(max=_LARGEST / BASE.ln), out=E)


def _densities(
    C: Tensor | PointCloudCost, f: Tensor, g: Tensor, eps: float
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    for i in blocks(C):
        rows = C[..., i, :].detach()
        yield i, rows, _density(rows, f[..., i], g, eps)
