"""Transport between the words of texts: a loss for models that write, and distances of bags of words."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _check, costs
from .._check import ArrayLike
from ..entropic import ipot
from ..entropic._base import LEAST
from ..exact import emd


def soft_embeddings(logits: ArrayLike, embeddings: ArrayLike, *, temperature: float = 1.0) -> Tensor:
    r"""Mean embedding of the word that a model is about to write, x_t = Σ_v softmax(z_t/τ)_v e_v.

    A word that is chosen has no derivative in the logits; its mean has one. As τ → 0 the mean tends to the
    embedding of the likeliest word, and its derivative to zero almost everywhere.

    Args:
        logits: scores z of all words at each position, shape (…, T, V).
        embeddings: one row e_v a word, shape (V, d), or (…, V, d) with the leading axes of several
            models, for example (R, V, d) with logits (R, B, T, V).
        temperature: τ, in units of the logits.

    Returns:
        Points of shape (…, T, d), differentiable in both arguments.

    Raises:
        ValueError: if the numbers of words or the leading axes do not agree, for entries that are not
            finite, or a temperature that is not positive.

    Source:
        Chen et al. (2019), who call it soft argmax. Their published code has τ = 1.

    Example:
        >>> soft_embeddings([[0.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]])
        tensor([[0.5000, 0.5000]])
    """
    logits = _check.points(logits, "logits", like=_like(logits, embeddings))
    embeddings = _check.points(embeddings, "embeddings", like=logits)
    temperature = _check.positive(temperature, "temperature")
    if embeddings.shape[-2] != logits.shape[-1]:
        raise ValueError(
            f"logits score {logits.shape[-1]} words, but embeddings has {embeddings.shape[-2]} rows; "
            "give one row for each word"
        )
    models = embeddings.shape[:-2]
    if models != logits.shape[: len(models)] or len(models) > logits.ndim - 2:
        raise ValueError(
            f"embeddings has leading axes {tuple(models)}, but logits has shape {tuple(logits.shape)}; "
            "its first axes must be the same"
        )
    extra = (1,) * (logits.ndim - 2 - len(models))
    table = embeddings.reshape(*models, *extra, *embeddings.shape[-2:])
    return (logits / temperature).softmax(-1) @ table


def sequence_ot_loss(
    generated: ArrayLike,
    reference: ArrayLike,
    generated_mask: ArrayLike | None = None,
    reference_mask: ArrayLike | None = None,
    *,
    beta: float = 0.5,
    n_steps: int = 20,
) -> Tensor:
    r"""Transport cost between the words of two sentences, by IPOT, as a loss for the first.

    With the words x_1, …, x_T that a model writes and y_1, …, y_S of a reference, it is

        L = ⟨C, P⟩,   C_ts = 1 − ⟨x_t, y_s⟩ / (‖x_t‖ ‖y_s‖),

    where P is the plan after ``n_steps`` steps of :func:`otbook.ipot` with one inner iteration, held
    fixed in the backward pass: dL/dC = P. This is the gradient of the exact cost if P is the optimal
    plan, and a supergradient up to its own error ⟨C, P⟩ − min otherwise; it is not the gradient of the
    number L, for which one would have to differentiate through the steps.

    The loss does not depend on the order of the words, nor on the lengths of their vectors, nor on how
    often a whole sentence is repeated. It is zero for every permutation of the reference, and for any
    sentences if all vectors have one direction. So add it to a likelihood, do not replace one.
    With the words of the *source* in place of the reference it is the soft-copying term.

    Args:
        generated: vectors of the words written, shape (…, T, d); see :func:`soft_embeddings`.
        reference: vectors of the words to be matched, shape (…, S, d). Detach what is not to be trained.
        generated_mask: weights of the words, shape (…, T): True or 1 for a word, False or 0 for padding;
            other non-negative numbers weigh words. Normalised to sum 1. None means equal weights.
        reference_mask: the same for the reference, shape (…, S).
        beta: weight β of the proximal term, in units of the cost, which is at most 2.
        n_steps: number of proximal steps; the plan is near that of Sinkhorn at ε = β/n_steps.

    Returns:
        Losses, shape (…), the leading axes broadcast; between 0 and 2, without unit.

    Raises:
        ValueError: for sentences of different dimension, dtype, device or leading axes, vectors that are
            not finite or zero where there is a word, masks that are negative or of the wrong shape, a
            sentence without words, or beta and n_steps that are not positive.

    Note:
        Columns of P sum to the weights of the reference, rows to those of the generated words up to the
        error that the steps leave. What stands in padded places does not matter, as long as it is finite.

    Source:
        Chen et al. (2019), algorithms 1 and 2; IPOT is that of Xie et al. (2020).

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        >>> sequence_ot_loss(x, x.flip(0)).item() < 1e-3  # the order does not matter
        True
        >>> sequence_ot_loss(x[:1], x[1:], None, [1, 0])  # padding does not either
        tensor(1.)
    """
    x = _check.points(generated, "generated", like=_like(generated, reference))
    y = _check.points(reference, "reference", like=x)
    _check.same_dimension(x, y, ("generated", "reference"))
    shapes = {"generated": x.shape[:-2], "reference": y.shape[:-2]}
    a = _words(generated_mask, x, "generated_mask")
    b = _words(reference_mask, y, "reference_mask")
    shapes |= {"generated_mask": a.shape[:-1], "reference_mask": b.shape[:-1]}
    batch = _check.batch(shapes)

    # Padding gets a direction, so that a zero vector there is no error and no NaN.
    x = torch.where(a[..., None] > 0, x, 1.0)
    y = torch.where(b[..., None] > 0, y, 1.0)
    for name, z in (("generated", x), ("reference", y)):
        if (z.detach() == 0).all(-1).any():
            raise ValueError(
                f"{name} holds a zero vector, which has no direction; mask that place, or train the vector"
            )
    C = costs.cosine(x, y).expand(*batch, x.shape[-2], y.shape[-2])
    a, b = a.expand(*batch, a.shape[-1]), b.expand(*batch, b.shape[-1])
    beta, n_steps = _check.positive(beta, "beta"), _check.positive_int(n_steps, "n_steps")
    return (_plan(C.detach(), a, b, beta, n_steps) * C).sum((-2, -1))


def word_movers_distance(p: ArrayLike, q: ArrayLike, embeddings: ArrayLike) -> Tensor:
    r"""Word Mover's Distance between two texts: W₁ of their bags of words, W = min ⟨C, P⟩, not squared.

    The bags are normalised counts, and C_vw = ‖e_v − e_w‖ is the distance of two words. Only the words
    that occur take part, so the cost is that of an exact problem between the two vocabularies used.

    Args:
        p: counts or weights of all V words in the first text, shape (…, V), non-negative; normalised.
        q: the same for the second text, shape (…, V); leading axes broadcast.
        embeddings: one row a word, shape (V, d).

    Returns:
        Distances, shape (…), in units of the embeddings, differentiable in them.

    Raises:
        ValueError: for counts that are negative or all zero, or shapes that do not agree.

    Source:
        Kusner, Sun, Kolkin, Weinberger (2015), equation (1).

    Example:
        >>> word_movers_distance([2, 1, 0], [0, 0, 1], [[0.0], [1.0], [3.0]])
        tensor(2.6667)
    """
    p, q, x = _bags(p, q, embeddings)
    batch = _check.batch({"p": p.shape[:-1], "q": q.shape[:-1]})
    rows, columns = (z.expand(*batch, z.shape[-1]).reshape(-1, z.shape[-1]) for z in (p, q))
    values = []
    for a, b in zip(rows, columns, strict=True):
        i, j = a > 0, b > 0
        values.append(emd(costs.euclidean(x[i], x[j]), a[i], b[j]).value)
    return torch.stack(values).reshape(batch)


def word_centroid_distance(p: ArrayLike, q: ArrayLike, embeddings: ArrayLike) -> Tensor:
    r"""Distance of the mean words, ‖Σ_v p_v e_v − Σ_v q_v e_v‖: a lower bound of the Word Mover's Distance.

    Arguments, returns and errors are those of :func:`word_movers_distance`. The bound is Jensen's
    inequality: it is zero for texts with the same mean.

    Source:
        Kusner, Sun, Kolkin, Weinberger (2015), section 4.

    Example:
        >>> word_centroid_distance([2, 1, 0], [0, 0, 1], [[0.0], [1.0], [3.0]])
        tensor(2.6667)
    """
    p, q, x = _bags(p, q, embeddings)
    _check.batch({"p": p.shape[:-1], "q": q.shape[:-1]})
    return torch.linalg.vector_norm(p @ x - q @ x, dim=-1)


def relaxed_word_movers_distance(p: ArrayLike, q: ArrayLike, embeddings: ArrayLike) -> Tensor:
    r"""The larger of two lower bounds of the Word Mover's Distance, each without one of the marginals.

    Without the second marginal every word goes to its nearest in the other text,
    Σ_v p_v min_{w: q_w > 0} ‖e_v − e_w‖, and the other way round. Arguments, returns and errors are
    those of :func:`word_movers_distance`. It is zero for texts that use the same words, however often.

    Source:
        Kusner, Sun, Kolkin, Weinberger (2015), section 4.

    Example:
        >>> relaxed_word_movers_distance([2, 1, 0], [0, 0, 1], [[0.0], [1.0], [3.0]])
        tensor(2.6667)
        >>> relaxed_word_movers_distance([2, 1, 0], [1, 2, 0], [[0.0], [1.0], [3.0]])
        tensor(0.)
    """
    p, q, x = _bags(p, q, embeddings)
    _check.batch({"p": p.shape[:-1], "q": q.shape[:-1]})
    C = costs.euclidean(x, x)

    def nearest(support: Tensor) -> Tensor:  # (…, V): from each word to the nearest that occurs
        return C.masked_fill(~support[..., None, :], torch.inf).amin(-1)

    return torch.maximum((p * nearest(q > 0)).sum(-1), (q * nearest(p > 0)).sum(-1))


def _plan(C: Tensor, a: Tensor, b: Tensor, beta: float, n_steps: int) -> Tensor:
    """The plan of :func:`otbook.ipot` with one inner iteration, several times faster for small problems.

    Cosine costs are at most 2, so the whole run can be foreseen: unless exp(−2 n_steps/β) underflows,
    kernels do as well as logarithms. P^t = diag(U) K^t diag(V) with the powers of K = exp(−C/β) entry by
    entry. The scaling of the columns carries over from step to step: the next one starts from V²/V'.
    """
    if 2 * n_steps / beta > -LEAST[C.dtype]:
        return ipot(C, a, b, beta=beta, n_outer=n_steps).plan
    K = torch.exp(C / -beta)
    power, empty = torch.ones_like(K), (b == 0).to(b.dtype)[..., None]
    a, b = a[..., None], b[..., None]
    V = last = b
    for _ in range(n_steps):
        power *= K
        U = a / (power @ (V * (V / (last + empty))))
        V, last = b / (power.mT @ U), V
    return U * power * V.mT


def _like(first: ArrayLike, second: ArrayLike) -> Tensor | None:
    """What a list takes its dtype from."""
    return None if isinstance(first, Tensor) else _check.first_array(first, second)


def _weights(w: ArrayLike, n: int, name: str, like: Tensor, each: str) -> Tensor:
    """Non-negative numbers (…, n), divided by their sum."""
    if isinstance(w, Tensor):
        w = w.to(like.dtype)
    w = _check.tensor(w, name).to(like.dtype)
    if w.device != like.device:
        raise ValueError(f"{name} is on {w.device}, the other arguments on {like.device}; move it there")
    if w.ndim < 1 or w.shape[-1] != n:
        raise ValueError(
            f"{name} must have shape (…, {n}), one number {each}, but has shape {tuple(w.shape)}"
        )
    if not (torch.isfinite(w) & (w >= 0)).all():
        raise ValueError(f"{name} must hold finite numbers of at least 0; 0 means that the word is absent")
    total = w.sum(-1, keepdim=True)
    if (total == 0).any():
        raise ValueError(f"{name} leaves a text without words; drop it, a plan needs something to move")
    return w / total


def _words(mask: ArrayLike | None, z: Tensor, name: str) -> Tensor:
    """The weights of the words of a sentence, from its mask."""
    n = z.shape[-2]
    if mask is None:
        return torch.full((n,), 1.0 / n, dtype=z.dtype, device=z.device)
    return _weights(mask, n, name, z, "a place")


def _bags(p: ArrayLike, q: ArrayLike, embeddings: ArrayLike) -> tuple[Tensor, Tensor, Tensor]:
    """Two normalised bags of words and the vectors of the words."""
    x = _check.points(embeddings, "embeddings")
    if x.ndim != 2:
        raise ValueError(f"embeddings must have shape (V, d), but has shape {tuple(x.shape)}; pass one table")
    p = _weights(p, len(x), "p", x, "a word")
    q = _weights(q, len(x), "q", x, "a word")
    return p, q, x
