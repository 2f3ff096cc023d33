"""The Sinkhorn divergence: entropic transport with its bias taken out, a loss between point clouds."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from .. import _check, costs
from .._check import ArrayLike
from .._result import ConvergenceWarning
from ._gradients import Value
from ._kernel import DRIFT, DenseKernel, PointCloudKernel
from ._sinkhorn import absorbed_kernel, as_function, solve

#: Costs of more entries than this are not stored, and kernels are not kept.
DENSE = 1 << 25

#: The cost of one problem of more than this many is not stored either, if a matrix product makes its entries
#: anew: that is faster than to fetch them from memory.
PRODUCT = 1 << 17

#: How far a potential goes towards its c-transform when both measures are the same.
RELAXATION = 2 / 3


def sinkhorn_divergence(
    x: ArrayLike,
    y: ArrayLike,
    a: ArrayLike | None = None,
    b: ArrayLike | None = None,
    *,
    eps: float,
    cost: str = "sqeuclidean",
    tol: float = 1e-6,
    max_iter: int = 10_000,
) -> Tensor:
    """Sinkhorn divergence S_ε(μ, ν) = OT_ε(μ, ν) − ½ OT_ε(μ, μ) − ½ OT_ε(ν, ν) of μ = Σ a_i δ_{x_i}, ν.

    OT_ε is the ``value`` of :func:`sinkhorn`. S_ε is symmetric, non-negative and zero only for
    μ = ν (for the cosine cost, which sees directions only, for equal laws of directions); it tends to
    the transport cost as ε → 0 and, for the squared Euclidean cost, to ‖mean(μ) − mean(ν)‖² as ε → ∞.
    Not rooted. Differentiable twice in x, y, a and b; the derivatives in the weights are determined up
    to a constant.

    Args:
        x: source points, shape (…, n, d).
        y: target points, shape (…, m, d), with the same leading axes.
        a: source weights, shape (n,) or (…, n), sum 1; None means uniform.
        b: target weights, shape (m,) or (…, m), sum 1; None means uniform.
        eps: weight ε of the entropy, in units of the cost.
        cost: ``"sqeuclidean"`` (‖x − y‖², without ½), ``"euclidean"`` or ``"cosine"``.
        tol: marginal error at which each of the three problems stops.
        max_iter: largest number of iterations of each.

    Returns:
        Divergences, shape (…), in units of the cost.

    Raises:
        ValueError: for clouds that are empty, not finite, or of different dimension or batch shape,
            invalid weights, eps ≤ 0 or an unknown cost.

    Warns:
        ConvergenceWarning: if one of the three problems does not reach the tolerance.

    Note:
        The three values nearly cancel when the clouds are close, so they are computed in float64
        whatever the dtype of x. A kernel of up to 2²⁵ entries is kept in float32, where that is accurate
        enough; above, and for the gradient, memory is of order n + m (of a Euclidean cost, above 2²⁵).

    Source:
        Feydy, Séjourné, Vialard, Amari, Trouvé, Peyré (2019), equation (3) and theorem 1.

    Example:
        >>> import torch
        >>> x = torch.tensor([[0.0], [1.0]])
        >>> sinkhorn_divergence(x, x + 2.0, eps=0.5)  # a translation costs its square, at any eps
        tensor(4.)
    """
    x, y = _check.clouds(x, y)
    if x.shape[:-2] != y.shape[:-2]:
        raise ValueError(
            f"the batch shapes do not agree: x {tuple(x.shape[:-2])}, y {tuple(y.shape[:-2])}; "
            "make the leading axes equal"
        )
    a = _check.weights(a, x.shape[-2], "a", like=x).double().expand(x.shape[:-1])
    b = _check.weights(b, y.shape[-2], "b", like=x).double().expand(y.shape[:-1])
    _check.choice(cost, "cost", tuple(costs.BY_NAME))
    eps = _check.positive(eps, "eps", remedy="for the unregularised problem use emd")
    tol = _check.positive(tol, "tol")
    max_iter = _check.positive_int(max_iter, "max_iter")
    u, v = x.double(), y.double()

    def ground(x: Tensor, y: Tensor) -> Tensor | costs.PointCloudCost:
        entries = x.shape[-2] * y.shape[-2]
        stored = x.shape[:-2].numel() * entries <= DENSE and (cost == "euclidean" or entries <= PRODUCT)
        return costs.BY_NAME[cost](x, y) if stored else costs.PointCloudCost(x, y, cost)

    of_u = _to_itself(ground(u, u), a, a, eps, tol, max_iter)
    of_v = _to_itself(ground(v, v), b, b, eps, tol, max_iter)
    if u.shape == v.shape and torch.equal(u, v) and torch.equal(a, b):
        between = _to_itself(ground(u, v), a, b, eps, tol, max_iter)  # so that S_ε(μ, μ) = 0 exactly
    else:
        C = ground(u, v)
        between = solve(C, a, b, _kernel(C, a, b), eps=eps, tol=tol, max_iter=max_iter).value
    return (between - (of_u + of_v) / 2).to(x.dtype)


class KeptKernel(PointCloudKernel):
    """The kernel T of two clouds, made from them where it is absorbed and kept for the products after."""

    kept: Tensor | None = None
    fresh: bool = False

    def absorb(self, g: Tensor, eps: float, *, exact: bool) -> tuple[Tensor, Tensor]:
        """Remember g and its half-step f; returns f and the column sums c of the plan diag(a) T."""
        self.fresh = False
        return super().absorb(g, eps, exact=exact)

    @property
    def T(self) -> Tensor:
        """The rows of T, made when they are needed first."""
        if not self.fresh:
            if self.kept is None or self.kept.dtype != self.E.dtype:
                self.kept = torch.empty(self.C.shape, dtype=self.E.dtype, device=self.C.device)
            for p in self._products(torch.zeros_like(self.b)):
                torch.div(p.tile.E, p.total.unsqueeze(-1), out=self.kept[..., p.tile.rows, :])
            self.fresh, self.mass = True, self.a.to(self.E.dtype)
        return self.kept

    rows, columns, sweep, gram = DenseKernel.rows, DenseKernel.columns, DenseKernel.sweep, DenseKernel.gram
    _blocks = DenseKernel._blocks


def _kernel(C: Tensor | costs.PointCloudCost, a: Tensor, b: Tensor) -> DenseKernel:
    """The kernel of C, kept where it is not too large."""
    return absorbed_kernel(C, a, b, clouds=KeptKernel if C.numel() <= DENSE else PointCloudKernel)


def _to_itself(
    C: Tensor | costs.PointCloudCost, a: Tensor, b: Tensor, eps: float, tol: float, max_iter: int
) -> Tensor:
    """OT_ε(μ, μ), where one potential p serves both sides: p ← p + ⅔ (T_ε p − p), T_ε the c-transform.

    For a positive definite kernel exp(−C/ε) the derivative of T_ε at the solution has its spectrum in
    [−1, 0], so that of the relaxed step is in [−⅓, ⅓]: a rate that does not depend on ε. All three named
    costs have such kernels. (With ½ instead of ⅔, as in Feydy et al. 2019, the rate is ½.)
    """
    kernel = _kernel(C, a, b)
    p, f, error, n_iter = _fixed_point(kernel, eps, 0.9 * tol, max_iter)
    if not (error <= tol).all():
        warnings.warn(
            f"sinkhorn_divergence stopped after {n_iter} iterations with marginal error "
            f"{error.max().item():.2g} above tol = {tol:g}: raise max_iter or eps",
            ConvergenceWarning,
            stacklevel=3,
        )
    value = (kernel.a * (f + p)).sum(-1)
    make, leaves = as_function(C)
    return Value.apply(value, f, p, eps, make, a, b, *leaves)


def _fixed_point(
    kernel: DenseKernel, eps: float, goal: float, max_iter: int
) -> tuple[Tensor, Tensor, Tensor, int]:
    """The potential p, its c-transform, the marginal error of their plan, and the number of iterations."""
    a, p = kernel.a, torch.zeros_like(kernel.b)
    n_iter, exact = 0, kernel.eager
    while True:
        f, _ = kernel.absorb(p, eps, exact=exact)
        ahead, log_v, log_r = (f - p) / eps, torch.zeros_like(p), torch.zeros_like(p)
        base = 0.0 if exact else kernel.rounding
        blur, trusted = base, True
        if not exact and (2 * (a * torch.expm1(-ahead).abs()).sum(-1)).max().item() <= 5 * base:
            exact, trusted = True, False
        while trusted:
            # In units of ε the potential is p + log v, and its c-transform f − log r with r = T v.
            gap = ahead - log_r - log_v
            error = 2 * (a * torch.expm1(-gap).abs()).sum(-1)
            largest = error.max().item()
            if largest <= max(goal, 5 * blur) and kernel.sharpen():
                log_r, blur = kernel.rows(log_v.exp()).log(), 0.0
                continue
            if n_iter == max_iter or (largest <= goal and blur <= 0.2 * goal):
                p = p + eps * log_v
                return p, f - eps * log_r if kernel.sharp else kernel.measure(p, eps)[0], error, n_iter
            log_v = log_v + RELAXATION * gap
            n_iter += 1
            drift = log_v.abs().max().item()
            blur = base + 2 * kernel.rounding * min(1.0, drift)
            exact = kernel.eager or largest <= 5 * blur
            trusted = drift <= DRIFT and largest > 5 * blur
            if trusted:
                log_r = kernel.rows(log_v.exp()).log()
        p = p + eps * log_v
