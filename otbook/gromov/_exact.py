"""Gromov–Wasserstein transport without a regulariser, and its fusion with a cost between features."""

from __future__ import annotations

import math

import torch

from .._check import ArrayLike
from .._result import OTResult
from ._conditional import Callback, conditional_gradient
from ._solve import Structure, problem, solve


def gromov_wasserstein(
    Cx: Structure,
    Cy: Structure,
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
        Cx: costs within the first space, shape (…, n, n); need not be symmetric. Costs of low rank, as a
            :class:`LowRankCost` or a squared Euclidean :class:`~otbook.costs.PointCloudCost` of the points
            with themselves, are multiplied by their factors and never formed; a matrix is factorised where
            its rank turns out to be small.
        Cy: costs within the second space, shape (…, m, m), in the same units.
        a: weights of the first space, shape (n,) or (…, n), sum 1; uniform if None. Zeros are allowed.
        b: weights of the second space, shape (m,) or (…, m), sum 1; uniform if None. Zeros are allowed.
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
        are one choice of several. ``cost``, ``plan``, ``f`` and ``g`` are detached. Leading axes, broadcast
        against each other, are solved one problem after the other.

    Raises:
        ValueError: for costs that are no finite square matrices, for leading axes that do not agree, for
            invalid weights, tol, max_iter or n_restarts, and for restarts without a generator.

    Warns:
        ConvergenceWarning: if the best start of some problem used up max_iter.

    Note:
        An iteration takes a linear program and O(nm(n + m)) time, or O(nm(r + s)) for costs of ranks r and
        s; memory is O(n² + m² + nm), or O(nm). The work is done in float64, where the device has it.
        Mémoli's distance between metric spaces is ½ √value at the global minimum.

    Source:
        Mémoli (2011), section 5; the products of Peyré, Cuturi and Solomon (2016), proposition 1, and
        for low rank of Scetbon, Peyré and Cuturi (2022), section 3; the conditional gradient of Vayer et
        al. (2019), with the away steps of Lacoste-Julien and Jaggi (2015).

    Example:
        Two pairs of points, at distances 1 and 2. They differ by 1, and half of the mass of P⊗P sees it.

        >>> Cx = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
        >>> gromov_wasserstein(Cx, 2 * Cx).value
        tensor(0.5000, dtype=torch.float64)
    """
    return solve(
        conditional_gradient,
        problem(Cx, Cy, a, b),
        n_restarts=n_restarts,
        generator=generator,
        tol=tol,
        max_iter=max_iter,
        callback=callback,
    )


def fused_gromov_wasserstein(
    M: ArrayLike,
    Cx: Structure,
    Cy: Structure,
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
    Pᵀ1 = b, as :func:`gromov_wasserstein` does, with the same arguments, costs of low rank and leading
    axes included. So α = 0 is :func:`emd`, and α = 1 ignores M.

    Args:
        M: finite ground cost between the features, shape (…, n, m), in squared units of Cx.
        Cx: costs within the first space, shape (…, n, n).
        Cy: costs within the second space, shape (…, m, m).
        a: weights of the first space, shape (n,) or (…, n), sum 1; uniform if None.
        b: weights of the second space, shape (m,) or (…, m), sum 1; uniform if None.
        alpha: share α of the structure, between 0 and 1.
        n_restarts: number of starts.
        generator: source of the random couplings; needed if n_restarts > 1.
        tol: as there, with s = (1 − α) (max M − min M) + α times the s of that function.
        max_iter: largest number of iterations of each start.
        callback: as there.

    Returns:
        The best stationary plan. ``value`` is F(P), and so is ``cost``; ``f`` and ``g`` certify the plan:
        f⊕g ≤ ∇F(P), with equality where P > 0. ``value`` may be differentiated once in M, Cx, Cy, a and b,
        as the value of the plan found; ``cost``, ``plan``, ``f`` and ``g`` are detached.

    Raises:
        ValueError: as for :func:`gromov_wasserstein`, for an M of another shape or with entries that are
            not finite, and for alpha outside [0, 1].

    Warns:
        ConvergenceWarning: if the best start of some problem used up max_iter.

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
    alpha = float(alpha)
    if math.isnan(alpha) or not 0 <= alpha <= 1:
        raise ValueError(
            f"alpha must lie between 0 (features only) and 1 (structure only), but is {alpha:g}; "
            "to weigh the two otherwise, rescale M"
        )
    return solve(
        conditional_gradient,
        problem(Cx, Cy, a, b, M, alpha),
        n_restarts=n_restarts,
        generator=generator,
        tol=tol,
        max_iter=max_iter,
        callback=callback,
    )
