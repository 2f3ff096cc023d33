"""Gromov–Wasserstein transport: couplings between spaces that share no ground cost.

Each space is a square matrix of distances, similarities or edge weights between its own points. The
objective is quadratic in the plan and in general not convex, so that the solvers find stationary plans.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from . import _check
from ._check import ArrayLike
from ._gromov import Callback, End, Quadratic, Value, conditional_gradient, mirror_descent
from ._result import ConvergenceWarning, OTResult
from .exact import emd


def gromov_wasserstein(
    Cx: ArrayLike,
    Cy: ArrayLike,
    a: ArrayLike | None = None,
    b: ArrayLike | None = None,
    *,
    n_restarts: int = 1,
    generator: torch.Generator | None = None,
    tol: float = 1e-7,
    max_iter: int = 1000,
    callback: Callback | None = None,
) -> OTResult:
    """Gromov–Wasserstein transport with the square loss, by conditional gradient.

    Minimises E(P) = Σ_ijkl |Cx_ik − Cy_jl|² P_ij P_kl over P ≥ 0 with P1 = a and Pᵀ1 = b; no root is
    taken, and there is no factor ½. Each iteration solves the linear problem min ⟨∇E(P), Q⟩ by
    :func:`emd` and goes to the lowest point of the segment from P to Q, on which E is a parabola, or away
    from the worst of the Q so far. E never rises, and the end is a stationary plan: often the best,
    sometimes not. Restarts raise the odds.

    Args:
        Cx: costs within the first space, shape (n, n); need not be symmetric.
        Cy: costs within the second space, shape (m, m), in the same units.
        a: weights of the first space, shape (n,), sum 1; uniform if None. Zeros are allowed.
        b: weights of the second space, shape (m,), sum 1; uniform if None. Zeros are allowed.
        n_restarts: number of starts, of which the best is kept. The first is a⊗b, the others are
            random couplings.
        generator: source of the random couplings; needed if n_restarts > 1.
        tol: stop when neither the linear problem nor a step gains more than tol·s, where
            s = Σ Cx_ik² a_i a_k + Σ Cy_jl² b_j b_l, with the mean of all costs taken off both.
        max_iter: largest number of iterations of each start.
        callback: called as ``callback(n_iter, value, gain)`` at each plan of each start.

    Returns:
        The best stationary plan. ``value`` is E(P), in squared units of Cx, and so is ``cost``; ``n_iter``
        adds up all starts. f⊕g ≤ ∇E(P), with equality where P > 0: so ``f`` and ``g``, potentials of the
        linear problem, certify that P is stationary (not that it is best). ``value`` may be
        differentiated once in Cx, Cy, a and b, as the value of the plan found (envelope theorem): in a
        and b these are f and g, up to a constant. Where the plan or the potentials are not isolated, they
        are one choice of several. ``cost``, ``plan``, ``f`` and ``g`` are detached.

    Raises:
        ValueError: for costs that are no finite square matrices (one problem a call, no batches), for
            invalid weights, tol, max_iter or n_restarts, and for restarts without a generator.

    Warns:
        ConvergenceWarning: if the best start used up max_iter.

    Note:
        An iteration takes a linear program and O(n²m + nm²) time; memory is O(n² + m² + nm). The work is
        done in float64, where the device has it. Mémoli's distance between metric spaces is ½ √value
        at the global minimum.

    Source:
        Mémoli (2011), section 5; the products of Peyré, Cuturi and Solomon (2016), proposition 1; the
        conditional gradient of Vayer et al. (2019), with the away steps of Lacoste-Julien and Jaggi (2015).

    Example:
        Two pairs of points, at distances 1 and 2. They differ by 1, and half of the mass of P⊗P sees it.

        >>> Cx = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
        >>> gromov_wasserstein(Cx, 2 * Cx).value
        tensor(0.5000, dtype=torch.float64)
    """
    inputs = _spaces(Cx, Cy, a, b)
    return _solve(conditional_gradient, inputs, 1.0, n_restarts, generator, tol, max_iter, callback)


def fused_gromov_wasserstein(
    M: ArrayLike,
    Cx: ArrayLike,
    Cy: ArrayLike,
    a: ArrayLike | None = None,
    b: ArrayLike | None = None,
    *,
    alpha: float,
    n_restarts: int = 1,
    generator: torch.Generator | None = None,
    tol: float = 1e-7,
    max_iter: int = 1000,
    callback: Callback | None = None,
) -> OTResult:
    """Fused Gromov–Wasserstein transport: features by M, structure by Cx and Cy.

    Minimises F(P) = (1 − α) ⟨M, P⟩ + α Σ_ijkl |Cx_ik − Cy_jl|² P_ij P_kl over P ≥ 0 with P1 = a and
    Pᵀ1 = b, as :func:`gromov_wasserstein` does. So α = 0 is :func:`emd`, and α = 1 ignores M.

    Args:
        M: finite ground cost between the features, shape (n, m), in squared units of Cx.
        Cx: costs within the first space, shape (n, n); need not be symmetric.
        Cy: costs within the second space, shape (m, m).
        a: weights of the first space, shape (n,), sum 1; uniform if None. Zeros are allowed.
        b: weights of the second space, shape (m,), sum 1; uniform if None. Zeros are allowed.
        alpha: share α of the structure, between 0 and 1.
        n_restarts: as for :func:`gromov_wasserstein`.
        generator: as for :func:`gromov_wasserstein`.
        tol: as there, with s = (1 − α) (max M − min M) + α times the s of that function.
        max_iter: largest number of iterations of each start.
        callback: as for :func:`gromov_wasserstein`.

    Returns:
        The best stationary plan. ``value`` is F(P), and so is ``cost``; ``f`` and ``g`` certify the plan:
        f⊕g ≤ ∇F(P), with equality where P > 0. ``value`` may be differentiated once in M, Cx, Cy, a and b,
        as the value of the plan found; ``cost``, ``plan``, ``f`` and ``g`` are detached.

    Raises:
        ValueError: as for :func:`gromov_wasserstein`, for an M of another shape or with entries that are
            not finite, and for alpha outside [0, 1].

    Warns:
        ConvergenceWarning: if the best start used up max_iter.

    Source:
        Vayer, Chapel, Flamary, Tavenard and Courty (2019), with q = 2 on the structure; POT has the same
        objective in ``ot.gromov.fused_gromov_wasserstein``.

    Example:
        The structure is the same under both numberings of the points; the features decide.

        >>> Cx = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
        >>> M = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
        >>> fused_gromov_wasserstein(M, Cx, 2 * Cx, alpha=0.5).plan
        tensor([[0.0000, 0.5000],
                [0.5000, 0.0000]], dtype=torch.float64)
    """
    inputs = _spaces(Cx, Cy, a, b, M)
    if not 0 <= alpha <= 1:
        raise ValueError(
            f"alpha must lie between 0 (features only) and 1 (structure only), but is {alpha:g}; "
            "to weigh the two otherwise, rescale M"
        )
    return _solve(conditional_gradient, inputs, float(alpha), n_restarts, generator, tol, max_iter, callback)


def entropic_gromov_wasserstein(
    Cx: ArrayLike,
    Cy: ArrayLike,
    a: ArrayLike | None = None,
    b: ArrayLike | None = None,
    *,
    eps: float,
    n_restarts: int = 1,
    generator: torch.Generator | None = None,
    tol: float = 1e-6,
    max_iter: int = 1000,
    callback: Callback | None = None,
) -> OTResult:
    """Entropic Gromov–Wasserstein transport, by mirror descent with :func:`sinkhorn` inside.

    Minimises F(P) = Σ_ijkl |Cx_ik − Cy_jl|² P_ij P_kl + ε KL(P ‖ a⊗b) over P1 = a and Pᵀ1 = b. An
    iteration replaces P by argmin_Q ⟨∇E(P), Q⟩ + ε KL(Q ‖ a⊗b) + (λ − ε) KL(Q ‖ P), an entropic problem
    at λ. With λ = ε this is the iteration of the source; should F rise, λ is doubled, which shortens the
    step. It ends at a stationary plan, P_ij = a_i b_j exp((f_i + g_j − ∇E(P)_ij)/ε).

    Args:
        Cx: costs within the first space, shape (n, n); need not be symmetric.
        Cy: costs within the second space, shape (m, m), in the same units.
        a: weights of the first space, shape (n,), sum 1; uniform if None. Zeros are allowed.
        b: weights of the second space, shape (m,), sum 1; uniform if None. Zeros are allowed.
        eps: weight ε of the KL term, in squared units of Cx.
        n_restarts: as for :func:`gromov_wasserstein`.
        generator: as for :func:`gromov_wasserstein`.
        tol: stop when an iteration moves the plan by at most tol in ‖·‖₁, times ε/λ; the marginals are
            then right to tol as well.
        max_iter: largest number of iterations of each start, trials with too long a step included.
        callback: called as ``callback(n_iter, value, move)`` at each plan of each start.

    Returns:
        The best stationary plan. ``value`` = F(P) may be differentiated once in Cx, Cy, a and b, by the
        envelope theorem at the plan found. ``cost`` is the quadratic term alone; ``cost``, ``plan``,
        ``f`` and ``g`` are detached. ``n_iter`` counts the entropic problems of all starts.

    Raises:
        ValueError: as for :func:`gromov_wasserstein`, and for eps that is not positive.

    Warns:
        ConvergenceWarning: if the best start did not come to rest within max_iter iterations.

    Note:
        Where all points look alike, as in a cycle, a⊗b is stationary, and only a restart leaves it.
        POT regularises by Σ P log P: the plans agree, the objectives differ as for :func:`sinkhorn`.

    Source:
        Peyré, Cuturi and Solomon (2016), propositions 1 and 2.

    Example:
        >>> Cx = torch.tensor([[0.0, 1.0, 2.0], [1.0, 0.0, 1.5], [2.0, 1.5, 0.0]], dtype=torch.float64)
        >>> result = entropic_gromov_wasserstein(Cx, Cx, eps=0.01)
        >>> (result.plan - torch.eye(3) / 3).abs().max() < 0.01
        tensor(True)
    """
    inputs = _spaces(Cx, Cy, a, b)
    eps = _check.positive(eps, "eps", remedy="for the unregularised problem use gromov_wasserstein")
    descend = partial(mirror_descent, eps=eps)
    return _solve(descend, inputs, 1.0, n_restarts, generator, tol, max_iter, callback)


def _solve(
    descend: Callable[..., End],
    inputs: tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None],
    alpha: float,
    n_restarts: int,
    generator: torch.Generator | None,
    tol: float,
    max_iter: int,
    callback: Callback | None,
) -> OTResult:
    """Descend from every start, keep the best end, and measure its plan as it will be returned."""
    tol = _check.positive(tol, "tol")
    max_iter = _check.positive_int(max_iter, "max_iter")
    q = Quadratic(*inputs, alpha)
    ends = [
        descend(q, P, tol=tol, max_iter=max_iter, callback=callback)
        for P in _starts(q, n_restarts, generator)
    ]
    best = min(ends, key=lambda end: end.value.item())

    dtype = inputs[0].dtype
    plan, f, g = (t.to(dtype) for t in (best.P, best.f, best.g))
    rows, columns = (plan.sum(axis, dtype=best.P.dtype) for axis in (1, 0))
    error = (rows - q.a).abs().sum() + (columns - q.b).abs().sum()
    # A plan is rounded to its dtype, and its marginals with it.
    converged = best.rest <= tol and error.item() <= tol + torch.finfo(dtype).eps
    if not converged:
        warnings.warn(
            f"the best start stopped after {best.n_iter} iterations {best.rest:.2g} away from rest, with "
            f"marginal error {error.item():.2g}, for tol = {tol:g}: raise max_iter or tol",
            ConvergenceWarning,
            stacklevel=3,
        )
    return OTResult(
        value=Value.apply(*inputs, best.value.to(dtype), best.P, f, g, alpha),
        cost=q.value(best.P, q.product(best.P)).to(dtype),
        f=f,
        g=g,
        n_iter=sum(end.n_iter for end in ends),
        marginal_error=error.to(dtype),
        converged=converged,
        _plan=plan,
    )


def _starts(q: Quadratic, n_restarts: int, generator: torch.Generator | None) -> list[Tensor]:
    """The coupling a⊗b, then random ones: extreme points of the set of couplings, half-way back to a⊗b."""
    n_restarts = _check.positive_int(n_restarts, "n_restarts")
    if n_restarts > 1 and generator is None:
        raise ValueError(
            f"n_restarts = {n_restarts} needs random couplings, but generator is None; "
            "pass generator=torch.Generator().manual_seed(0)"
        )
    if not isinstance(generator, torch.Generator | None):
        raise TypeError(
            f"generator must be a torch.Generator, but a {type(generator).__name__} was given; "
            "pass torch.Generator().manual_seed(0)"
        )
    outer = q.a[:, None] * q.b
    starts = [outer]
    for _ in range(n_restarts - 1):
        C = torch.rand(outer.shape, generator=generator, device=generator.device, dtype=outer.dtype)
        starts.append((outer + emd(C.to(outer.device), q.a, q.b).plan) / 2)
    return starts


def _spaces(
    Cx: ArrayLike, Cy: ArrayLike, a: ArrayLike | None, b: ArrayLike | None, M: ArrayLike | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    like = _first_float(Cx, Cy, M, a, b)
    Cx = _structure(Cx, "Cx", like)
    Cy = _structure(Cy, "Cy", Cx)
    a = _check.weights(a, len(Cx), "a", like=Cx)
    b = _check.weights(b, len(Cy), "b", like=Cx)
    for name, w in (("a", a), ("b", b)):
        if w.ndim != 1:
            raise ValueError(f"{name} has shape {tuple(w.shape)}, but one problem is solved a call; pass one")
    if M is not None:
        M = _check.tensor(M, "M", like=Cx)
        if M.shape != (len(Cx), len(Cy)):
            raise ValueError(
                f"M must have shape ({len(Cx)}, {len(Cy)}), one row a point of Cx and one column a point "
                f"of Cy, but has shape {tuple(M.shape)}"
            )
        _finite(M, "M")
    return Cx, Cy, a, b, M


def _structure(C: ArrayLike, name: str, like: Tensor | None) -> Tensor:
    """The costs (n, n) within one space."""
    C = _check.tensor(C, name, like=like)
    if C.ndim != 2 or C.shape[0] != C.shape[1] or 0 in C.shape:
        remedy = "solve a batch one by one" if C.ndim > 2 else "compare the points of one space to each other"
        raise ValueError(
            f"{name} must be a square matrix (n, n) of at least one point, but has shape {tuple(C.shape)}; "
            f"{remedy}"
        )
    _finite(C, name)
    return C


def _finite(C: Tensor, name: str) -> None:
    bad = ~torch.isfinite(C.detach())
    if bad.any():
        i, j = torch.nonzero(bad)[0].tolist()
        raise ValueError(
            f"{name} holds {C.detach()[i, j].item()} at {name}[{i}, {j}]; replace it by a finite number"
        )


def _first_float(*arguments: ArrayLike | None) -> Tensor | None:
    """The first argument with a floating dtype of its own, which lists and integers then take on."""
    for argument in arguments:
        if isinstance(argument, (Tensor, np.ndarray)):
            t = torch.as_tensor(argument)
            if t.is_floating_point():
                return t
    return None
