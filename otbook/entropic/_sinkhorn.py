"""Entropic optimal transport between discrete measures."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from tqdm import tqdm

from .. import _check
from .._check import ArrayLike
from .._result import ConvergenceWarning, OTResult
from ..costs import PointCloudCost
from ._dual import maximise, schedule
from ._fused import FusedKernel, available
from ._gradients import Cost, Plan, Potentials, Value
from ._kernel import DenseKernel, PointCloudKernel
from ._rows import softmin
from ._unrolled import unrolled

#: ε-scaling starts at this share of the spread of C; from there on Sinkhorn is fast anyway.
START = 0.01


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
    gradient: str = "implicit",
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
        gradient: ``"implicit"`` differentiates the solution, ``"unrolled"`` the plain iterations that lead
            to it, recorded one by one: memory for each, and accurate only as they converge; for comparison.

    Returns:
        An :class:`OTResult`. ``value`` is the dual objective, in units of C. Everything in it can be
        differentiated in C (or the clouds), a and b. The gradients of ``value`` are P, f and g, by the
        envelope theorem; those of ``cost``, ``plan``, ``f`` and ``g``, and second derivatives of
        ``value``, come from implicit differentiation: one linear system, solved by products with P.
        Gradients in the weights are determined up to a constant, which weights of sum 1 do not see. The
        potentials are normalised by ⟨a, f⟩ = ⟨b, g⟩. The plan is computed on first use from C, which
        must not be changed in place before.

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
    _check.choice(gradient, "gradient", ("implicit", "unrolled"))
    start = None if g0 is None else _potential(g0, b, like=C)

    with tqdm(disable=not progress, unit="it") as bar:

        def report(n_iter: int, error: Tensor, dual: Tensor) -> None:
            bar.update(n_iter - bar.n)
            bar.set_postfix_str(f"marginal error {error.max().item():.1e}", refresh=False)
            if callback:
                callback(n_iter, error.max().item(), dual.min().item())

        report = report if callback or progress else None
        if gradient == "unrolled":
            return unrolled(C, a, b, eps=eps, tol=tol, max_iter=max_iter, g0=start, report=report)
        kernel = absorbed_kernel(C, a, b)
        options = {"start": start, "accelerate": accelerate, "report": report}
        return solve(C, a, b, kernel, eps=eps, tol=tol, max_iter=max_iter, **options)


def solve(
    C: Tensor | PointCloudCost,
    a: Tensor,
    b: Tensor,
    kernel: DenseKernel,
    *,
    eps: float,
    tol: float,
    max_iter: int,
    start: Tensor | None = None,
    accelerate: bool = True,
    report: Callable[[int, Tensor, Tensor], None] | None = None,
) -> OTResult:
    """Transport by an absorbed kernel of C, for arguments that have been checked."""
    low, high, kernel.gaps = kernel.extremes
    stages, ceiling = schedule(eps, START * (high - low) if accelerate and start is None else 0.0), math.inf
    if kernel.gaps:
        # KL(P ‖ a⊗b) is at most the entropy of either marginal.
        ceiling = high + stages[0] * math.log(max(C.shape[-2:]))
    g, n_iter = maximise(
        kernel,
        torch.zeros_like(kernel.b) if start is None else start.to(kernel.b.dtype),
        stages,
        tol=0.8 * max(tol - _rounding(kernel, C), 0.1 * tol),
        max_iter=max_iter,
        ceiling=ceiling,
        accelerate=accelerate,
        report=report,
    )
    return _result(C, a, b, kernel, g, eps, tol, n_iter, max_iter, ceiling)


def absorbed_kernel(
    C: Tensor | PointCloudCost, a: Tensor, b: Tensor, *, clouds: type[PointCloudKernel] = PointCloudKernel
) -> DenseKernel:
    """The absorbed kernel of a cost, with the weights in float64; ``clouds`` is that of two clouds."""
    if not isinstance(C, PointCloudCost):
        kind = DenseKernel
    else:
        kind = FusedKernel if available(C.x, C.cost) else clouds
    with _check.memory(C.shape, C.dtype):
        return kind(C.detach(), _exact(a), _exact(b))


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
    return g.expand(b.shape)


def _rounding(kernel: DenseKernel, C: Tensor | PointCloudCost) -> float:
    """What the marginals lose at most when the plan is rounded to the dtype of C: half a unit in each."""
    return torch.finfo(C.dtype).eps if C.dtype != kernel.a.dtype else 0.0


def _result(
    C: Tensor | PointCloudCost,
    a: Tensor,
    b: Tensor,
    kernel: DenseKernel,
    g: Tensor,
    eps: float,
    tol: float,
    n_iter: int,
    max_iter: int,
    ceiling: float,
) -> OTResult:
    """Measure the plan of the potentials, and wrap it up with its gradients."""
    f, rows, columns, transport = kernel.measure(g, eps)
    error = kernel.total((rows - kernel.a).abs()) + (columns - kernel.b).abs().sum(-1)
    error = error + _rounding(kernel, C)
    if (kernel.b == 0).any():
        # The loop leaves g alone where there is no mass; the c-transform of f belongs there.
        there = softmin(kernel.C.mT, f, kernel.a, eps)
        g = torch.where(kernel.b > 0, g, there.masked_fill(there == math.inf, 0.0))
    value = kernel.total(kernel.a * f) + (kernel.b * g).sum(-1)
    shift = (kernel.total(kernel.a * f) - (kernel.b * g).sum(-1)).unsqueeze(-1) / 2
    f, g = f - shift, g + shift

    converged = bool((error <= tol).all())
    if not converged:
        if (value > ceiling).any():
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
            stacklevel=4,
        )
    make, leaves = as_function(C)
    value, transport = value.to(C.dtype), transport.to(C.dtype)
    if torch.is_grad_enabled() and any(t.requires_grad for t in (a, b, *leaves)):
        value = Value.apply(value, f, g, eps, make, a, b, *leaves)
        f, g = Potentials.apply(f, g, eps, make, a, b, *leaves)
        transport = Cost.apply(transport, eps, make, f, g, a, b, *leaves)
    return OTResult(
        value=value,
        cost=transport,
        f=f.to(C.dtype),
        g=g.to(C.dtype),
        n_iter=n_iter,
        marginal_error=error.to(C.dtype),
        converged=converged,
        _plan=lambda: Plan.apply(C[..., :, :], a, b, f, g, eps, kernel.plan),
    )


def as_function(
    C: Tensor | PointCloudCost,
) -> tuple[Callable[..., Tensor | PointCloudCost], tuple[Tensor, ...]]:
    """A cost as a function of the tensors that its gradients belong to."""
    if isinstance(C, PointCloudCost):
        return partial(PointCloudCost, cost=C.cost), (C.x, C.y)
    return _itself, (C,)


def _itself(C: Tensor) -> Tensor:
    return C
