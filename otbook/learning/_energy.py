"""The minibatch energy distance: an unbiased loss for generators, from transport between batches."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .. import _check, costs
from .._check import ArrayLike
from ..entropic import sinkhorn

#: The six terms of the estimate: two places in (x, x2, y, y2), and a weight.
_TERMS = ((0, 2, 1.0), (0, 3, 1.0), (1, 2, 1.0), (1, 3, 1.0), (0, 1, -2.0), (2, 3, -2.0))


def minibatch_energy_distance(
    x: ArrayLike,
    x2: ArrayLike,
    y: ArrayLike,
    y2: ArrayLike,
    *,
    eps: float,
    cost: str | Callable[[Tensor, Tensor], Tensor] = "sqeuclidean",
    tol: float = 1e-6,
    max_iter: int = 10_000,
) -> Tensor:
    r"""Estimate of twice the squared minibatch energy distance between two laws, from two batches of each.

    Returns L = W(x, y) + W(x, y2) + W(x2, y) + W(x2, y2) − 2 W(x, x2) − 2 W(y, y2), where W is the
    ``value`` of :func:`otbook.sinkhorn`, min ⟨C, P⟩ + ε KL(P ‖ a⊗b) over the plans between two batches
    of equal weights. Let x and x2 be independent batches of one law p, y and y2 of another law g, all of n
    points. Each of the four cross terms has the mean E W(X, Y), and so

        E L = 2 D²(p, g),   D²(p, g) = 2 E W(X, Y) − E W(X, X′) − E W(Y, Y′).

    The gradients of L are unbiased for those of 2 D² in the same way. D² depends on n and is zero for p = g.
    It can be zero for other pairs, and for some costs, ``"sqeuclidean"`` and ``"cosine"`` too, negative.

    Args:
        x: first batch of p, shape (…, n, d).
        x2: second batch of p, independent of the first, shape (…, n, d).
        y: first batch of g, shape (…, m, d), with the same leading axes.
        y2: second batch of g, independent of the first, shape (…, m, d).
        eps: weight ε of the entropy, in units of the cost.
        cost: ``"sqeuclidean"`` (‖x − y‖², without ½), ``"euclidean"``, ``"cosine"``, or a function of two
            batches that returns their costs, shape (…, n, m).
        tol: marginal error at which each of the six problems stops.
        max_iter: largest number of iterations.

    Returns:
        L, shape (…), in units of the cost and with the dtype of x; neither halved nor rooted, and of either
        sign. Differentiable in all batches, and in the parameters of ``cost`` if that is a network, by the
        envelope theorem: the plans are held fixed. (This is why W is the value and not the transport cost
        ⟨C, P⟩: of that, the gradient with fixed plans would be wrong.)

    Raises:
        ValueError: for batches that are empty, not finite or of different dimension or leading axes, two
            batches of one law that differ in size, eps ≤ 0, an unknown cost, or a function that returns
            costs of another shape.
        TypeError: for a cost that is neither a name nor a function, or a function that returns no tensor.

    Warns:
        ConvergenceWarning: if a problem does not reach the tolerance.

    Note:
        The terms nearly cancel when the laws are close, so the problems are solved in float64 whatever the
        dtype. The four batches should be of one size n = m; otherwise E L is not 0 for equal laws. If all
        have one shape, the six problems are solved as one batch.

    Source:
        Salimans, Zhang, Radford, Metaxas (2018), equation (8) and line 3 of algorithm 1.

    Example:
        >>> import torch
        >>> x, y = torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0], [3.0]])
        >>> minibatch_energy_distance(x, x, y, y, eps=0.5)  # with equal batches, 4 times the divergence
        tensor(4.)
    """
    like = _check.first_array(x, x2, y, y2)
    x = _check.points(x, "x", like=like)
    clouds = [x]
    for name, cloud in (("x2", x2), ("y", y), ("y2", y2)):
        clouds.append(_check.points(cloud, name, like=x))
        _check.same_dimension(x, clouds[-1], ("x", name))
        if clouds[-1].shape[:-2] != x.shape[:-2]:
            raise ValueError(
                f"the batch shapes do not agree: x {tuple(x.shape[:-2])}, {name} "
                f"{tuple(clouds[-1].shape[:-2])}; make the leading axes equal"
            )
    for k, names in ((0, ("x", "x2")), (2, ("y", "y2"))):
        n, m = clouds[k].shape[-2], clouds[k + 1].shape[-2]
        if n != m:
            raise ValueError(
                f"{names[0]} has {n} points and {names[1]} {m}; draw the two batches of one law in one size"
            )
    eps = _check.positive(eps, "eps", remedy="an exact cost has no unique plan to differentiate with")
    ground = _ground(cost)

    if clouds[0].shape == clouds[2].shape:  # one problem of six times the batch is faster than six
        first = torch.stack([clouds[i] for i, _, _ in _TERMS])
        second = torch.stack([clouds[j] for _, j, _ in _TERMS])
        C = ground(first, second)
        values = sinkhorn(C, eps=eps, tol=tol, max_iter=max_iter).value
    else:
        problems = [ground(clouds[i], clouds[j]) for i, j, _ in _TERMS]
        values = torch.stack([sinkhorn(C, eps=eps, tol=tol, max_iter=max_iter).value for C in problems])
    return sum(weight * value for (_, _, weight), value in zip(_TERMS, values, strict=True)).to(x.dtype)


def _ground(cost: str | Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """The cost matrix in float64, from its name or from the caller's function in the caller's dtype."""
    if isinstance(cost, str):
        named = costs.BY_NAME[_check.choice(cost, "cost", tuple(costs.BY_NAME))]
        return lambda x, y: named(x.double(), y.double())
    if not callable(cost):
        raise TypeError(
            f"cost must be one of {', '.join(map(repr, costs.BY_NAME))} or a function of two batches, "
            f"but a {type(cost).__name__} was given"
        )

    def checked(x: Tensor, y: Tensor) -> Tensor:
        C, shape = cost(x, y), (*x.shape[:-1], y.shape[-2])
        if not isinstance(C, Tensor):
            raise TypeError(f"cost must return a tensor of shape {shape}, but returned a {type(C).__name__}")
        if tuple(C.shape) != shape:
            raise ValueError(
                f"cost must return costs of shape {shape} for batches of shapes {tuple(x.shape)} and "
                f"{tuple(y.shape)}, but returned {tuple(C.shape)}; leading axes are batches of problems"
            )
        return C.double()

    return checked
