"""Entropic optimal transport between discrete measures."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import torch
from torch import Tensor
from tqdm import tqdm

from .. import _check
from .._check import ArrayLike
from .._result import ConvergenceWarning, OTResult
from ..costs import PointCloudCost
from ._dual import maximise, schedule
from ._kernel import DenseKernel, PointCloudKernel, blocks, plan_rows, softmin

#: ε-scaling starts at this share of the spread of C; from there on Sinkhorn is fast anyway.
START = 0.05


def sinkhorn(
    C: ArrayLike | PointCloudCost,
    a: ArrayLike | None = None,
    b: ArrayLike | None = None,
    *,
    eps: float,
    tol: float = 1e-6,
    max_iter: int = 10_000,
    g0: ArrayLike | None = None,
    accelerate: bool = True,
    callback: Callable[[int, float, float], None] | None = None,
    progress: bool = False,
) -> OTResult:
    r"""Entropic optimal transport, stable at every ε.

    Solves min_P ⟨C, P⟩ + ε KL(P ‖ a⊗b) subject to P1 = a, Pᵀ1 = b, where
    KL(P ‖ Q) = Σ P log(P/Q). The solution is P_ij = a_i b_j exp((f_i + g_j − C_ij)/ε), where f, g
    maximise the dual ⟨a, f⟩ + ⟨b, g⟩ − ε Σ_ij a_i b_j (exp((f_i + g_j − C_ij)/ε) − 1). So
    exact ≤ cost = ⟨C, P⟩ ≤ value.

    Args:
        C: ground cost, shape (…, n, m); +∞ forbids a pair. With a :class:`~otbook.costs.PointCloudCost`
            memory is O(n + m), until the plan is asked for, and the value is differentiable in both clouds.
        a: source weights, shape (n,) or (…, n), sum 1; None means uniform. Zeros are allowed.
        b: target weights, shape (m,) or (…, m), sum 1; None means uniform. Zeros are allowed.
        eps: weight ε of the KL term, in units of C.
        tol: stop when ‖P1 − a‖₁ + ‖Pᵀ1 − b‖₁ ≤ tol for every problem of the batch.
        max_iter: largest number of iterations. One iteration is one product with the kernel and
            one with its transpose, or one factorisation.
        g0: potential to start from, shape (m,) or (…, m), for example ``g`` of a similar problem;
            None starts from ε-scaling.
        accelerate: False runs Sinkhorn's plain iterations at ``eps``, for comparison.
        callback: called as ``callback(n_iter, marginal_error, dual_value)`` at every step with the
            largest error and the smallest dual value of the batch; during ε-scaling these belong to
            the current, larger ε.
        progress: show a progress bar.

    Returns:
        An :class:`OTResult`. ``value`` is the dual objective, in units of C. It may be
        differentiated once in C, a and b: by the envelope theorem its gradients are P, f and g,
        the last two up to a constant, which weights of sum 1 do not see. ``cost``, ``plan``, ``f``
        and ``g`` are detached: no gradient passes through them. The potentials are normalised by
        ⟨a, f⟩ = ⟨b, g⟩. The plan is computed on first use from C, which must not be changed in
        place before.

    Raises:
        ValueError: for weights or costs that make no problem, and for eps, tol or max_iter that are
            not positive.

    Warns:
        ConvergenceWarning: if the tolerance is not reached, or if forbidden pairs leave no plan.

    Note:
        POT's ``ot.sinkhorn(a, b, C, eps)`` has the same plan. It regularises by Σ P log P, so its
        objective is value + ε (Σ a log a + Σ b log b); where an author writes Σ P (log P − 1), it
        is smaller by another ε.

    Source:
        Cuturi (2013), algorithm 1, and Peyré and Cuturi (2019), equations (4.15) and (4.30);
        absorption and ε-scaling as in Schmitzer (2019), §3; Newton steps on the semi-dual as in
        Brauer, Clason, Lorenz and Wirth (2017) and Tang et al. (2024), here by conjugate gradients
        and where they are slow by Cholesky.

    Example:
        >>> import torch
        >>> C = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
        >>> result = sinkhorn(C, [0.5, 0.5], [0.1, 0.9], eps=1.0)
        >>> result.plan
        tensor([[0.0863, 0.4137],
                [0.0137, 0.4863]], dtype=torch.float64)
    """
    C, a, b = _check.problem(C, a, b, lazy=True)
    eps = _check.positive(eps, "eps", remedy="for the unregularised problem use emd")
    tol = _check.positive(tol, "tol")
    max_iter = _check.positive_int(max_iter, "max_iter")

    cost = C.detach()
    make = PointCloudKernel if isinstance(C, PointCloudCost) else DenseKernel
    kernel = make(cost, _exact(a), _exact(b))
    g = torch.zeros_like(kernel.b) if g0 is None else _potential(g0, kernel.b, like=C)
    low, high, forbidden = _range(cost)
    stages = schedule(eps, START * (high - low) if accelerate and g0 is None else 0.0)
    # KL(P ‖ a⊗b) is at most the entropy of either marginal.
    ceiling = high + stages[0] * math.log(max(cost.shape[-2:])) if forbidden else math.inf

    with tqdm(disable=not progress, unit="it") as bar:

        def report(n_iter: int, error: Tensor, dual: Tensor) -> None:
            bar.update(n_iter - bar.n)
            bar.set_postfix_str(f"marginal error {error.max().item():.1e}", refresh=False)
            if callback:
                callback(n_iter, error.max().item(), dual.min().item())

        f, g, n_iter = maximise(
            kernel,
            g,
            stages,
            tol=0.8 * tol,  # the rest is for rounding the plan to its dtype
            max_iter=max_iter,
            ceiling=ceiling,
            accelerate=accelerate,
            report=report if callback or progress else None,
        )
    return _result(C, a, b, kernel, f, g, eps, tol, n_iter, max_iter, ceiling)


def _range(C: Tensor | PointCloudCost) -> tuple[float, float, bool]:
    """The least and the largest finite cost, and whether there are infinite ones."""
    low, high, forbidden = math.inf, -math.inf, False
    for i in blocks(C):
        block = C[..., i, :]
        allowed = torch.isfinite(block)
        if not allowed.all():
            forbidden, block = True, block[allowed]
        if block.numel():
            low, high = min(low, block.min().item()), max(high, block.max().item())
    return low, high, forbidden


def _exact(w: Tensor) -> Tensor:
    """Weights in float64 (where the device has it), so that both masses are 1 to its precision."""
    w = w.detach().to(torch.float32 if w.device.type == "mps" else torch.float64)
    return w / w.sum(-1, keepdim=True)


def _potential(g0: ArrayLike, b: Tensor, *, like: Tensor) -> Tensor:
    g = _check.tensor(g0, "g0", like=like).detach()
    if g.ndim < 1 or g.shape[-1] != b.shape[-1] or not torch.isfinite(g).all():
        raise ValueError(
            f"g0 must be a finite potential of shape (…, {b.shape[-1]}), but has shape {tuple(g.shape)}"
            f"{'' if torch.isfinite(g).all() else ' and an entry that is not finite'}; "
            "pass the g of a similar problem, or None"
        )
    return g.to(b.dtype).expand(b.shape)


def _result(
    C: Tensor | PointCloudCost,
    a: Tensor,
    b: Tensor,
    kernel: DenseKernel,
    f: Tensor,
    g: Tensor,
    eps: float,
    tol: float,
    n_iter: int,
    max_iter: int,
    ceiling: float,
) -> OTResult:
    """Measure the plan of the potentials as it will be returned, and wrap it up."""
    cost, a_exact, b_exact = kernel.C, kernel.a, kernel.b
    if (b_exact == 0).any():
        # The loop leaves g alone where there is no mass; the c-transform of f belongs there.
        g = torch.where(b_exact > 0, g, softmin(cost.mT, f, a_exact, eps))
    dual = (a_exact * f).sum(-1) + (b_exact * g).sum(-1)
    shift = ((a_exact * f).sum(-1, keepdim=True) - (b_exact * g).sum(-1, keepdim=True)) / 2
    f, g = f - shift, g + shift

    rows, columns = torch.empty_like(f), torch.zeros_like(g)
    transport = torch.zeros_like(dual)
    for i in blocks(cost):
        P = plan_rows(cost[..., i, :], a_exact[..., i], b_exact, f[..., i], g, eps).to(f.dtype)
        rows[..., i] = P.sum(-1)
        columns += P.sum(-2)
        transport += (P * cost[..., i, :]).nan_to_num(0.0).sum((-2, -1))
    error = (rows - a_exact).abs().sum(-1) + (columns - b_exact).abs().sum(-1)
    value = dual - eps * (rows.sum(-1) - 1)

    converged = bool((error <= tol).all())
    if not converged:
        if (dual > ceiling).any():
            remedy = (
                "the forbidden (infinite) pairs of C leave no plan with these marginals; allow more pairs"
            )
        else:
            # A solver that stopped early did reach tol, before the plan was rounded.
            spent = (
                "raise max_iter or eps" if n_iter >= max_iter else "tol is below rounding; raise tol or eps"
            )
            remedy = spent + (", or compute in float64" if C.dtype != f.dtype else "")
        warnings.warn(
            f"sinkhorn stopped after {n_iter} iterations with marginal error {error.max().item():.2g} "
            f"above tol = {tol:g}: {remedy}",
            ConvergenceWarning,
            stacklevel=3,
        )
    return OTResult(
        value=_differentiable(C, a, b, f, g, value.to(C.dtype), eps),
        cost=transport.to(C.dtype),
        f=f.to(C.dtype),
        g=g.to(C.dtype),
        n_iter=n_iter,
        marginal_error=error.to(C.dtype),
        converged=converged,
        _plan=lambda: plan_rows(cost[..., :, :], a_exact, b_exact, f, g, eps),
    )


def _differentiable(
    C: Tensor | PointCloudCost, a: Tensor, b: Tensor, f: Tensor, g: Tensor, value: Tensor, eps: float
) -> Tensor:
    """Attach the gradients of the envelope theorem to the value."""
    if isinstance(C, PointCloudCost):
        return _PointCloudValue.apply(C.x, C.y, a, b, f, g, value, eps, C.cost)
    return _Value.apply(C, a, b, f, g, value, eps)


class _Value(torch.autograd.Function):
    """The optimal value with its gradients by the envelope theorem: P in C, f in a, g in b.

    The plan is formed in the backward pass, so the forward pass keeps nothing of size n × m.
    """

    @staticmethod
    def forward(ctx, C, a, b, f, g, value, eps):
        ctx.save_for_backward(C, a, b, f, g)
        ctx.eps = eps
        return value.clone()

    @staticmethod
    def backward(ctx, grad):
        C, a, b, f, g = ctx.saved_tensors
        gradients = _Gradient.apply(C, a, b, f, g, grad, ctx.eps, ctx.needs_input_grad[:3])
        return *gradients, None, None, None, None


class _PointCloudValue(torch.autograd.Function):
    """The optimal value as a function of the clouds: the chain rule through C, a block of rows at a time."""

    @staticmethod
    def forward(ctx, x, y, a, b, f, g, value, eps, cost):
        ctx.save_for_backward(x, y, a, b, f, g)
        ctx.eps, ctx.cost = eps, cost
        return value.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        x, y, a, b, f, g = ctx.saved_tensors
        grad_x, grad_y = torch.empty_like(x), torch.zeros_like(y)
        a_exact, b_exact = a.to(f.dtype), b.to(f.dtype)
        for i in blocks(PointCloudCost(x, y, ctx.cost)):
            with torch.enable_grad():
                points, targets = x[..., i, :].detach().requires_grad_(), y.detach().requires_grad_()
                C = PointCloudCost(points, targets, ctx.cost)[..., :, :]
            P = plan_rows(C.detach(), a_exact[..., i], b_exact, f[..., i], g, ctx.eps)
            grad_x[..., i, :], part = torch.autograd.grad(C, (points, targets), P * grad[..., None, None])
            grad_y += part
        gradients = grad_x, grad_y, grad[..., None] * f.to(a.dtype), grad[..., None] * g.to(b.dtype)
        return *gradients, None, None, None, None, None


class _Gradient(torch.autograd.Function):
    """The gradients of the value, on record as functions of the inputs: a second derivative, which
    would need the derivative of P, f and g, is refused instead of silently taken for zero.
    """

    @staticmethod
    def forward(ctx, C, a, b, f, g, grad, eps, wanted):
        in_C, in_a, in_b = wanted
        return (
            grad[..., None, None] * plan_rows(C, a.to(f.dtype), b.to(f.dtype), f, g, eps) if in_C else None,
            grad[..., None] * f.to(a.dtype) if in_a else None,
            grad[..., None] * g.to(b.dtype) if in_b else None,
        )

    @staticmethod
    def backward(ctx, *_):
        raise NotImplementedError(
            "the value of sinkhorn can be differentiated once; its gradient, which holds the plan and the "
            "potentials, cannot: detach the gradient, or do without create_graph=True"
        )
