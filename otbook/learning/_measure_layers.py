"""Layers whose input is a measure: pooling, pairwise interaction, and attention with one or both marginals.

A measure is a cloud of points with weights. Nothing here depends on the order of the points, on whether a
point is written once or twice with half the weight, or on points of weight zero, which serve as padding.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from .. import _check
from .._check import ArrayLike
from ..entropic import sinkhorn


class MeasurePooling(nn.Module):
    """Features of a measure: α = Σ a_i δ(x_i) ↦ ∫ φ dα = Σ a_i φ(x_i).

    If φ is L-Lipschitz, so is the pooling, from W₁ to the Euclidean norm.

    Args:
        phi: from shape (…, d) to (…, k), point by point. Its parameters become those of the layer if it is
            an ``nn.Module``.

    Raises:
        TypeError: if phi cannot be called.

    Source:
        Zaheer et al. (2017), theorem 2, here with a mean in place of the sum.

    Example:
        >>> x = torch.tensor([[0.0], [2.0]])
        >>> MeasurePooling(torch.square)(x, torch.tensor([0.75, 0.25]))
        tensor([1.])
    """

    def __init__(self, phi: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.phi = _function(phi, "phi")

    def forward(self, x: ArrayLike, a: ArrayLike | None = None) -> Tensor:
        """Pool one measure, or a batch of them.

        Args:
            x: points, shape (…, n, d).
            a: weights, shape (…, n), sum 1; None means uniform. The leading axes of x and a broadcast, so
                that many measures on the same points need φ only once.

        Returns:
            Features, shape (…, k).

        Raises:
            ValueError: for points or weights that make no measure.
        """
        x, a = _measure(x, a)
        return torch.einsum("...i,...ik->...k", a, _values(self.phi, x, "phi"))


class ElementaryBlock(nn.Module):
    """A layer from measures to measures: the law of X becomes the law of E[f(X, X′) | X], X′ ~ α independent.

    On α = Σ a_i δ(x_i) it returns the points y_i = Σ_j a_j f(x_i, x_j); the weights stay. If f depends on its
    first argument alone, this is the push-forward; if on the second alone, all points become the pooled
    features. If f is L₁-Lipschitz in the first argument and L₂-Lipschitz in the second, the layer is
    (L₁ + L₂)-Lipschitz for W₁.

    Args:
        f: from shape (…, 2d), the pair (x, x′) as one vector, to (…, r). Its parameters become those of the
            layer if it is an ``nn.Module``.

    Raises:
        TypeError: if f cannot be called.

    Source:
        De Bie, Peyré and Cuturi (2019), elementary blocks; the constant is proved in the book.

    Example:
        >>> minus = ElementaryBlock(lambda z: z[..., :1] - z[..., 1:])  # X − E X
        >>> minus(torch.tensor([[0.0], [4.0]]), torch.tensor([0.75, 0.25])).flatten()
        tensor([-1.,  3.])
    """

    def __init__(self, f: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.f = _function(f, "f")

    def forward(self, x: ArrayLike, a: ArrayLike | None = None) -> Tensor:
        """The points of the new measure, whose weights are those of the old one.

        Args:
            x: points, shape (…, n, d).
            a: weights, shape (…, n), sum 1; None means uniform. The leading axes of x and a broadcast, so
                that many measures on the same points need f only once.

        Returns:
            Points, shape (…, n, r). Memory is quadratic in n.

        Raises:
            ValueError: for points or weights that make no measure.
        """
        x, a = _measure(x, a)
        n, d = x.shape[-2:]
        shape = (*x.shape[:-2], n, n, d)
        pairs = torch.cat([x.unsqueeze(-2).expand(shape), x.unsqueeze(-3).expand(shape)], -1)
        return torch.einsum("...j,...ijr->...ir", a, _values(self.f, pairs, "f"))


def softmax_attention(scores: ArrayLike, b: ArrayLike | None = None) -> Tensor:
    """Attention of each query to a measure of keys: A_ij = b_j exp(S_ij) / Σ_l b_l exp(S_il).

    Args:
        scores: S, shape (…, n, m), one row a query; −∞ forbids a pair.
        b: weights of the keys, shape (m,) or (…, m), sum 1; None means uniform. Keys of weight zero get no
            attention.

    Returns:
        Attention, shape (…, n, m). Every row sums to 1.

    Raises:
        ValueError: for scores that are NaN or +∞, a row that attends to nothing, or weights that make no
            measure.

    Source:
        Vaswani et al. (2017), equation (1), with weights.

    Example:
        >>> softmax_attention(torch.zeros(1, 2), torch.tensor([0.75, 0.25]))
        tensor([[0.7500, 0.2500]])
    """
    S = _scores(scores)
    return _softmax(S, _check.weights(b, S.shape[-1], "b", like=S))


def sinkhorn_attention(
    scores: ArrayLike,
    a: ArrayLike | None = None,
    b: ArrayLike | None = None,
    *,
    tol: float | None = None,
    max_iter: int = 10_000,
) -> Tensor:
    """Attention in which every key is heard as much as its weight says.

    A_ij = b_j exp(S_ij + f_i + g_j) with Σ_j A_ij = 1 and Σ_i a_i A_ij = b_j: row i is the conditional law
    P_ij / a_i under the plan P that minimises −⟨S, P⟩ + KL(P ‖ a⊗b) between the weights. With n = m and
    uniform weights A is doubly stochastic. It is :func:`softmax_attention` to the scores S_ij + g_j.

    Args:
        scores: S, shape (…, n, m), one row a query; −∞ forbids a pair.
        a: weights of the queries, shape (n,) or (…, n), sum 1; None means uniform.
        b: weights of the keys, shape (m,) or (…, m), sum 1; None means uniform. Zeros are allowed in both.
        tol: largest error of a column sum, in the sense Σ_j |Σ_i a_i A_ij − b_j| ≤ tol / max(n, m), so that
            with uniform weights a column sums to 1 up to tol; None means 1e-6 in float64 and 1e-4 in
            float32. Rows sum to 1 up to rounding in any case.
        max_iter: largest number of iterations of the solver.

    Returns:
        Attention, shape (…, n, m), differentiable once in scores and weights, implicitly.

    Raises:
        ValueError: as :func:`softmax_attention`, and for weights, tol or max_iter that make no sense.

    Warns:
        ConvergenceWarning: if the tolerance is not reached.

    Source:
        Sander, Ablin, Blondel and Peyré (2022); the solver is :func:`otbook.entropic.sinkhorn`.

    Example:
        >>> A = sinkhorn_attention(torch.tensor([[0.0, 0.0], [0.0, 2 * math.log(3.0)]], dtype=torch.float64))
        >>> A
        tensor([[0.7500, 0.2500],
                [0.2500, 0.7500]], dtype=torch.float64)
    """
    S = _scores(scores)
    n, m = S.shape[-2:]
    a, b = _check.weights(a, n, "a", like=S), _check.weights(b, m, "b", like=S)
    tol = _check.positive({torch.float32: 1e-4, torch.float64: 1e-6}[S.dtype] if tol is None else tol, "tol")
    result = sinkhorn(-S, a, b, eps=1.0, tol=tol / max(n, m), max_iter=max_iter)
    return _softmax(S + result.g.unsqueeze(-2), b)


def _softmax(S: Tensor, b: Tensor) -> Tensor:
    """Rows b_j exp(S_ij) / Σ, with the right derivative also where b_j = 0."""
    b = b.unsqueeze(-2)
    top = torch.where(b > 0, S, -math.inf).detach().amax(-1, keepdim=True)
    if (top == -math.inf).any():
        raise ValueError(
            "scores has a row that is −inf at every key with weight: that query has nothing to attend to; "
            "give it a finite score"
        )
    limit = 0.9 * math.log(torch.finfo(S.dtype).max)  # only keys without weight can be so far above
    E = b * (S - top).clamp(max=limit).exp()
    return E / E.sum(-1, keepdim=True)


def _scores(scores: ArrayLike) -> Tensor:
    S = _check.tensor(scores, "scores")
    if S.ndim < 2 or 0 in S.shape:
        raise ValueError(
            f"scores must have shape (…, n, m) with at least one query and one key, but has {tuple(S.shape)}"
        )
    values = S.detach()
    if torch.isnan(values).any() or (values == math.inf).any():
        raise ValueError("scores holds NaN or +inf; scores are finite, or −inf to forbid a pair")
    return S


def _measure(x: ArrayLike, a: ArrayLike | None) -> tuple[Tensor, Tensor]:
    x = _check.points(x, "x")
    a = _check.weights(a, x.shape[-2], "a", like=x)
    _check.batch({"x": x.shape[:-2], "a": a.shape[:-1]})
    return x, a


def _function(f: Callable[[Tensor], Tensor], name: str) -> Callable[[Tensor], Tensor]:
    if not callable(f):
        raise TypeError(f"{name} must be a function or an nn.Module, but a {type(f).__name__} was given")
    return f


def _values(f: Callable[[Tensor], Tensor], z: Tensor, name: str) -> Tensor:
    values = f(z)
    if values.shape[:-1] != z.shape[:-1]:
        raise ValueError(
            f"{name} must map {tuple(z.shape)} to {(*z.shape[:-1], 'k')}, one vector a row, but returned "
            f"{tuple(values.shape)}"
        )
    return values
