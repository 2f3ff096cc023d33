"""Transport maps from samples: the stochastic dual, projections of plans, the Monge gap, and a score."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _check, costs
from .._check import ArrayLike
from ..entropic import sinkhorn
from ..exact import assignment

COSTS = {"sqeuclidean": costs.sqeuclidean, "euclidean": costs.euclidean, "cosine": costs.cosine}


def plan_density(
    f: ArrayLike, g: ArrayLike, C: ArrayLike, *, eps: float, regulariser: str = "entropy"
) -> Tensor:
    """The density of a regularised plan with respect to the product of its marginals, from potentials.

    h_ij = exp((f_i + g_j − C_ij)/ε) for the entropy, max(f_i + g_j − C_ij, 0)/ε for ``"l2"``. At the
    optimal potentials P = a⊗b · h is the plan; at others it has the wrong marginals.

    Args:
        f: potential at the source points, shape (…, n).
        g: potential at the target points, shape (…, m).
        C: ground cost, shape (…, n, m).
        eps: weight ε of the regulariser, in units of C.
        regulariser: ``"entropy"``, KL(P ‖ a⊗b), or ``"l2"``, ½ Σ_ij a_i b_j h_ij².

    Returns:
        h, shape (…, n, m), without unit; differentiable.

    Raises:
        ValueError: for shapes that do not agree, eps ≤ 0 or another regulariser.

    Source:
        Seguy, Damodaran, Flamary, Courty, Rolet, Blondel (2018), section 3.

    Example:
        >>> plan_density([0.0], [0.5, 0.0], [[0.5, 1.0]], eps=0.5, regulariser="l2")
        tensor([[0., 0.]])
    """
    slack, eps = _slack(f, g, C, eps, regulariser)
    return torch.exp(slack / eps) if regulariser == "entropy" else slack.clamp(min=0) / eps


def stochastic_dual(
    f: ArrayLike, g: ArrayLike, C: ArrayLike, *, eps: float, regulariser: str = "entropy"
) -> Tensor:
    """The dual objective of regularised transport on a minibatch; unbiased, and to be maximised.

    mean f + mean g − ε mean(h − 1) with h of :func:`plan_density` for the entropy, and
    mean f + mean g − ε/2 mean(h²) for ``"l2"``. For points drawn independently from μ and from ν, both
    the value and the gradient in any parameters of f and g have as expectation those of the whole
    measures, since the objective is an integral against μ⊗ν.

    Args:
        f: potential at n draws of μ, shape (…, n), for example the output of a network.
        g: potential at m draws of ν, shape (…, m).
        C: ground cost between them, shape (…, n, m).
        eps: weight ε of the regulariser, in units of C.
        regulariser: ``"entropy"`` or ``"l2"``, as in :func:`plan_density`.

    Returns:
        Values, shape (…), in units of C. Their maximum over f and g is the regularised transport cost
        (for the entropy, the ``value`` of :func:`otbook.sinkhorn`).

    Raises:
        ValueError: for shapes that do not agree, eps ≤ 0 or another regulariser.

    Source:
        Seguy et al. (2018), section 3 and algorithm 1; Genevay, Cuturi, Peyré, Bach (2016), with the dual of
        KL(P ‖ a⊗b) and, for ``"l2"``, 1/(2ε) where Seguy et al. have 1/(4ε).

    Example:
        >>> C = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
        >>> stochastic_dual(torch.zeros(2), torch.zeros(2), C, eps=1.0)
        tensor(0.3161)
    """
    slack, eps = _slack(f, g, C, eps, regulariser)
    f, g = _check.tensor(f, "f", like=slack), _check.tensor(g, "g", like=slack)
    if regulariser == "entropy":
        penalty = eps * torch.expm1(slack / eps)
    else:
        penalty = slack.clamp(min=0).square() / (2 * eps)
    return f.mean(-1) + g.mean(-1) - penalty.mean((-2, -1))


def barycentric_projection(plan: ArrayLike, y: ArrayLike) -> Tensor:
    """The mean target of each source point, T(x_i) = Σ_j P_ij y_j / Σ_j P_ij.

    It is E[Y | X = x_i] under the plan, and minimises Σ_ij P_ij ‖y_j − T(x_i)‖² over all maps T.

    Args:
        plan: plan or its density, shape (…, n, m), non-negative; rows need not sum to a weight, since
            they are normalised here.
        y: target points, shape (…, m, d).

    Returns:
        Images, shape (…, n, d); differentiable.

    Raises:
        ValueError: for shapes that do not agree, negative entries, or a row without mass.

    Source:
        Seguy et al. (2018), section 4, for the squared Euclidean cost.

    Example:
        >>> barycentric_projection([[0.1, 0.3]], [[0.0], [4.0]])
        tensor([[3.]])
    """
    like = _check.first_array(plan, y)
    P = _check.tensor(plan, "plan", like=like)
    y = _check.points(y, "y", like=P)
    if P.ndim < 2 or P.shape[-1] != y.shape[-2]:
        raise ValueError(
            f"plan must have shape (…, n, {y.shape[-2]}) to go with y, but has shape {tuple(P.shape)}"
        )
    if not (P.detach() >= 0).all():
        raise ValueError("plan has a negative entry or NaN; its entries are masses")
    mass = P.sum(-1, keepdim=True)
    if (mass.detach() == 0).any():
        raise ValueError(
            "plan has a row without mass, where the projection is not defined; drop that source point, "
            "or train the potentials longer, or raise eps"
        )
    return (P / mass) @ y


def monge_gap(
    x: ArrayLike,
    y_mapped: ArrayLike,
    *,
    eps: float | None = None,
    cost: str = "sqeuclidean",
    tol: float = 1e-6,
) -> Tensor:
    """How much a map wastes: M = mean_i c(x_i, T(x_i)) − OT(x, T(x)), for y_mapped[i] = T(x_i).

    With ``eps=None`` OT is the exact cost between the two clouds; then M ≥ 0, and M = 0 exactly if the
    pairs (x_i, T(x_i)) are c-cyclically monotone. With ε > 0 it is the ``value`` of
    :func:`otbook.sinkhorn`, smooth in T and quicker for large clouds; then M_ε lies between
    M − ε log n and M, and may be negative. The gradient in T is that of the first term minus that of the
    second at a fixed plan (envelope theorem).

    Args:
        x: source points, shape (…, n, d).
        y_mapped: their images, shape (…, n, d), in the same order.
        eps: weight ε of the entropy, in units of the cost; None for the exact cost.
        cost: ``"sqeuclidean"`` (‖x − y‖², without ½), ``"euclidean"`` or ``"cosine"``.
        tol: marginal error at which Sinkhorn's iteration stops; without meaning for the exact cost.

    Returns:
        Gaps, shape (…), in units of the cost.

    Raises:
        ValueError: for clouds of different shape, eps ≤ 0 or an unknown cost.

    Source:
        Uscidda and Cuturi (2023), section 3, with KL(P ‖ a⊗b) in place of minus the entropy.

    Example:
        >>> x = torch.tensor([[-1.0], [1.0]])
        >>> monge_gap(x, x + 3.0), monge_gap(x, -x)  # a translation, and a swap
        (tensor(0.), tensor(4.))
    """
    x, y = _check.clouds(x, y_mapped)
    if x.shape != y.shape:
        raise ValueError(
            f"y_mapped must have the shape of x, {tuple(x.shape)}, one image a point, "
            f"but has shape {tuple(y.shape)}"
        )
    C = COSTS[_check.choice(cost, "cost", tuple(COSTS))](x, y)
    paid = C.diagonal(dim1=-2, dim2=-1).mean(-1)
    least = assignment(C)[1] if eps is None else sinkhorn(C, eps=eps, tol=tol).value
    return paid - least


def l2_uvp(T_x: ArrayLike, T_true_x: ArrayLike, variance: float | Tensor) -> Tensor:
    """The L² unexplained variance of a map, 100 · mean ‖T(x) − T*(x)‖² / Var(ν), in per cent.

    0 is perfect, and 100 is what the constant map to the mean of ν scores. Values below 10 are
    customarily called good.

    Args:
        T_x: images under the map, shape (…, n, d).
        T_true_x: images of the same points under the true map, shape (…, n, d).
        variance: total variance of the target, E‖Y − EY‖² (the trace of its covariance), above 0.

    Returns:
        Scores, shape (…), in per cent.

    Raises:
        ValueError: for clouds of different shape, and for a variance that is not positive.

    Source:
        Korotin, Li, Genevay, Solomon, Filippov, Burnaev (2021), the score of their benchmark.

    Example:
        >>> l2_uvp([[0.0], [0.0]], [[-1.0], [1.0]], 1.0)
        tensor(100.)
    """
    T, true = _check.clouds(T_x, T_true_x)
    if T.shape != true.shape:
        raise ValueError(
            f"T_x and T_true_x must be images of the same points, but have the shapes {tuple(T.shape)} "
            f"and {tuple(true.shape)}"
        )
    variance = _check.positive(variance, "variance", remedy="a constant target has nothing to explain")
    return 100 * (T - true).square().sum(-1).mean(-1) / variance


def _slack(f: ArrayLike, g: ArrayLike, C: ArrayLike, eps: float, regulariser: str) -> tuple[Tensor, float]:
    """f_i + g_j − C_ij, with everything checked."""
    _check.choice(regulariser, "regulariser", ("entropy", "l2"))
    eps = _check.positive(eps, "eps")
    C = _check.cost_matrix(_check.tensor(C, "C", like=_check.first_array(C, f, g)))
    f, g = _check.tensor(f, "f", like=C), _check.tensor(g, "g", like=C)
    n, m = C.shape[-2:]
    for name, potential, size in (("f", f, n), ("g", g, m)):
        if potential.shape[-1:] != (size,):
            raise ValueError(
                f"{name} must have shape (…, {size}) to go with C of shape {tuple(C.shape)}, "
                f"but has shape {tuple(potential.shape)}"
            )
    return f[..., :, None] + g[..., None, :] - C, eps
