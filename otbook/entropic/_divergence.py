"""The Sinkhorn divergence: entropic transport with its bias taken out, a loss between point clouds."""

from __future__ import annotations

from torch import Tensor

from .. import _check, costs
from .._check import ArrayLike
from ._sinkhorn import sinkhorn


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
    μ = ν; it tends to the transport cost as ε → 0 and, for the squared Euclidean cost, to
    ‖mean(μ) − mean(ν)‖² as ε → ∞. Not rooted. Differentiable once in x, y, a and b, by the envelope
    theorem; the derivatives in the weights are determined up to a constant.

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
        whatever the dtype of x; the costs take n² + nm + m² numbers.

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
    a = None if a is None else _check.weights(a, x.shape[-2], "a", like=x).double()
    b = None if b is None else _check.weights(b, y.shape[-2], "b", like=x).double()
    c = costs.BY_NAME[_check.choice(cost, "cost", tuple(costs.BY_NAME))]
    u, v = x.double(), y.double()

    def value(C: Tensor, a: Tensor | None, b: Tensor | None) -> Tensor:
        return sinkhorn(C, a, b, eps=eps, tol=tol, max_iter=max_iter).value

    self_terms = value(c(u, u), a, a) + value(c(v, v), b, b)
    return (value(c(u, v), a, b) - self_terms / 2).to(x.dtype)
