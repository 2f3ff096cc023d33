"""Barycentres of point clouds: every point moves to the mean of where the optimal plans send it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import _check
from .._check import ArrayLike
from .._result import ConvergenceWarning, OTResult
from ..costs import sqeuclidean
from ..entropic import sinkhorn
from ..exact import emd

#: Where the points stop by default, relative to the spread of the measures.
_TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-8}


@dataclass(frozen=True, eq=False)
class FreeSupport:
    """A discrete barycentre.

    Attributes:
        points: support, shape (n, d); detached.
        weights: weights of the support, shape (n,).
        value: Σ_k λ_k W₂²(μ, ν_k) at these points, with the entropic terms if there are any; a scalar.
        history: the value at the start and after every iteration, shape (n_iter + 1,); it never
            rises by more than the error of the plans.
        displacement: root mean square of the step that the iteration would take next, in units of the points.
        n_iter: number of iterations.
        converged: whether the displacement reached the tolerance.
    """

    points: Tensor
    weights: Tensor
    value: Tensor
    history: Tensor
    displacement: float
    n_iter: int
    converged: bool

    def __repr__(self) -> str:
        return (
            f"FreeSupport(points of shape {tuple(self.points.shape)}, value={self.value.item():.6g}, "
            f"n_iter={self.n_iter}, displacement={self.displacement:.2g}, converged={self.converged})"
        )


def free_support(
    measures: Sequence[tuple[ArrayLike, ArrayLike | None]],
    weights: ArrayLike | None = None,
    *,
    n_support: int | None = None,
    x0: ArrayLike | None = None,
    support_weights: ArrayLike | None = None,
    eps: float | None = None,
    tol: float | None = None,
    max_iter: int = 1000,
    generator: torch.Generator | None = None,
) -> FreeSupport:
    """Barycentre of point clouds, as a cloud of n points that are free to move and whose weights are not.

    Minimises F(x) = Σ_k λ_k W₂²(Σ_i a_i δ_{x_i}, ν_k), not rooted. Every point moves to the mean of
    where the optimal plans P_k send it, the barycentric projection

        x_i ← x̄_i = Σ_k λ_k Σ_j (P_k)_ij y_kj / a_i,

    which lowers F by at least Σ_i a_i ‖x̄_i − x_i‖². F is not convex in x, so in more than one
    dimension the fixed point depends on the start and may be a local minimum; compare starts by
    ``value``. A point of weight 0 stays where it is.

    Args:
        measures: K pairs (points, weights) with points (n_k, d) and weights (n_k,), sum 1, or None
            for uniform ones.
        weights: λ, shape (K,), sum 1; uniform if None.
        n_support: number n of points; None means that of x0, or else of the largest measure.
        x0: points to start from, shape (n, d). None starts from the points and the weights of the
            largest measure; if n_support or generator is given, from n points picked from Σ_k λ_k ν_k,
            evenly through the list of all points.
        support_weights: a, shape (n,), sum 1; None means uniform, or the weights that x0 = None brings.
        eps: None for exact plans; otherwise the plans and the value are those of ``sinkhorn`` at this
            ε, in squared units of the points, and the cloud shrinks.
        tol: stop when the root mean square displacement is at most this share of the root mean square
            radius of Σ_k λ_k ν_k; also the marginal error of the plans if eps is given. None means
            1e-8 in float64 and 1e-5 in float32.
        max_iter: largest number of iterations; one solves K transport problems. Exact plans settle
            after finitely many.
        generator: picks the start at random instead of evenly, on the CPU.

    Returns:
        A :class:`FreeSupport`. Its ``value`` may be differentiated once in the measures, their
        weights, λ and the weights of the support: by the envelope theorem, which holds once
        converged, the points count as constants. ``points`` and ``history`` are detached.

    Raises:
        ValueError: for measures that differ in dimension, dtype or device, invalid weights, or
            options that disagree.

    Warns:
        ConvergenceWarning: when the points still move after max_iter iterations.

    Source:
        Cuturi and Doucet (2014), algorithm 2 with step 1; Álvarez-Esteban, del Barrio,
        Cuesta-Albertos and Matrán (2016), section 3, for the descent.

    Example:
        >>> left, right = torch.tensor([[0.0], [1.0]]), torch.tensor([[6.0], [9.0]])
        >>> free_support([(left, None), (right, None)], [0.5, 0.5]).points
        tensor([[3.],
                [5.]])
    """
    clouds, masses = _measures(measures)
    lam = _weights(weights, len(clouds), "weights", like=clouds[0])
    eps = None if eps is None else _check.positive(eps, "eps", remedy="for exact plans leave it None")
    tol = _TOLERANCE[lam.dtype] if tol is None else _check.positive(tol, "tol")
    max_iter = _check.positive_int(max_iter, "max_iter")
    x, a = _start(clouds, masses, lam, n_support, x0, support_weights, generator)

    # Far from the origin the differences that matter would be lost to rounding.
    pool, shares = _mixture(clouds, masses, lam)
    centre = shares @ pool
    x, clouds = x - centre, [y - centre for y in clouds]
    radius = (shares @ (pool - centre).square().sum(-1)).sqrt().item()

    history: list[Tensor] = []
    results: list[OTResult] = []
    for n_iter in range(max_iter + 1):
        results = _plans(x, a, clouds, masses, eps, tol, results)
        value = (lam * torch.stack([result.value for result in results])).sum()
        history.append(value.detach())
        mean = _projection(x, clouds, lam, results)
        displacement = (a.detach() @ (mean - x).square().sum(-1)).sqrt().item()
        settled = displacement <= tol * radius
        if settled or n_iter == max_iter:
            break
        x = mean

    converged = settled and all(result.converged for result in results)
    if not converged:
        what = (
            "the transport plans missed tol; raise tol or eps"
            if settled
            else f"the points still move by {displacement:.2g} > tol × radius = {tol * radius:.2g}; "
            "raise max_iter or tol"
        )
        warnings.warn(
            f"free_support stopped after {n_iter} iterations: {what}", ConvergenceWarning, stacklevel=2
        )
    if value.requires_grad:
        value.register_hook(_once)
    return FreeSupport(x + centre, a, value, torch.stack(history), displacement, n_iter, converged)


def _measures(measures: Sequence[tuple[ArrayLike, ArrayLike | None]]) -> tuple[list[Tensor], list[Tensor]]:
    """The points and the weights of every measure."""
    if not isinstance(measures, Sequence):
        raise TypeError(
            f"measures must be a list of pairs (points, weights), but a {type(measures).__name__} was given; "
            "write [(x, a), (y, b)], with None for uniform weights"
        )
    if not measures:
        raise ValueError("measures is empty; give at least one pair (points, weights)")
    for k, pair in enumerate(measures):
        if not (isinstance(pair, (tuple, list)) and len(pair) == 2):
            raise TypeError(
                f"measures[{k}] must be a pair (points, weights), but a {type(pair).__name__} was given; "
                "for uniform weights write (points, None)"
            )
    like = _check.first_array(*(pair[0] for pair in measures))
    clouds: list[Tensor] = []
    masses: list[Tensor] = []
    for k, (y, b) in enumerate(measures):
        clouds.append(_cloud(y, f"measures[{k}][0]", like=like))
        like = clouds[0]
        _check.same_dimension(like, clouds[k], ("measures[0][0]", f"measures[{k}][0]"))
        masses.append(_weights(b, len(clouds[k]), f"measures[{k}][1]", like=like))
    return clouds, masses


def _mixture(clouds: list[Tensor], masses: list[Tensor], lam: Tensor) -> tuple[Tensor, Tensor]:
    """The points and the weights of Σ_k λ_k ν_k, detached."""
    shares = [s * b for s, b in zip(lam, masses, strict=True)]
    return torch.cat(clouds).detach(), torch.cat(shares).detach()


def _cloud(x: ArrayLike, name: str, *, like: Tensor | None) -> Tensor:
    x = _check.points(x, name, like=like)
    if x.ndim > 2:
        raise ValueError(
            f"{name} must have shape (n, d), but has shape {tuple(x.shape)}; solve one batch at a time"
        )
    return x


def _weights(w: ArrayLike | None, n: int, name: str, *, like: Tensor) -> Tensor:
    w = _check.weights(w, n, name, like=like)
    if w.ndim > 1:
        raise ValueError(
            f"{name} must have shape ({n},), but has shape {tuple(w.shape)}; solve one batch at a time"
        )
    return w


def _start(
    clouds: list[Tensor],
    masses: list[Tensor],
    lam: Tensor,
    n_support: int | None,
    x0: ArrayLike | None,
    support_weights: ArrayLike | None,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor]:
    """The support to start from, detached, and its weights."""
    n = None if n_support is None else _check.positive_int(n_support, "n_support")
    largest = max(range(len(clouds)), key=lambda k: len(clouds[k]))
    x, a = clouds[largest], masses[largest]
    if x0 is not None:
        x = _cloud(x0, "x0", like=lam)
        _check.same_dimension(clouds[0], x, ("measures[0][0]", "x0"))
        if n not in (None, len(x)):
            raise ValueError(f"n_support is {n}, but x0 has {len(x)} points; leave n_support out")
    elif n is not None or generator is not None:
        x = _pick(clouds, masses, lam, n or len(x), generator)
    if support_weights is not None or x is not clouds[largest]:
        a = _weights(support_weights, len(x), "support_weights", like=lam)
    return x.detach(), a


def _pick(
    clouds: list[Tensor], masses: list[Tensor], lam: Tensor, n: int, generator: torch.Generator | None
) -> Tensor:
    """Systematic sampling: the quantiles (i + u)/n of Σ_k λ_k ν_k, its points in any order."""
    pool, shares = _mixture(clouds, masses, lam)
    u = 0.5
    if generator is not None:
        order = torch.randperm(len(pool), generator=generator).to(pool.device)
        pool, shares = pool[order], shares[order]
        u = torch.rand((), generator=generator).item()
    levels = (torch.arange(n, dtype=lam.dtype, device=lam.device) + u) / n
    return pool[torch.searchsorted(shares.cumsum(0), levels).clamp(max=len(pool) - 1)]


def _plans(
    x: Tensor,
    a: Tensor,
    clouds: list[Tensor],
    masses: list[Tensor],
    eps: float | None,
    tol: float,
    previous: list[OTResult],
) -> list[OTResult]:
    """Transport from the support to every measure; entropic problems start from the last potentials."""
    results = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the caller reports on all of them together
        for k, (y, b) in enumerate(zip(clouds, masses, strict=True)):
            C = sqeuclidean(x, y)
            g0 = previous[k].g if previous else None
            results.append(emd(C, a, b) if eps is None else sinkhorn(C, a, b, eps=eps, tol=tol, g0=g0))
    return results


def _once(grad: Tensor) -> None:
    """Refuse a second derivative, which would need that of the points instead of taking it for zero."""
    if torch.is_grad_enabled():
        raise NotImplementedError(
            "the value of free_support can be differentiated once; do without create_graph=True"
        )


def _projection(x: Tensor, clouds: list[Tensor], lam: Tensor, results: list[OTResult]) -> Tensor:
    """The mean of the barycentric projections of all plans; a point without mass stays."""
    mean = torch.zeros_like(x)
    for k, (y, result) in enumerate(zip(clouds, results, strict=True)):
        mass = result.plan.sum(-1, keepdim=True)
        image = result.plan @ y.detach() / torch.where(mass > 0, mass, 1.0)
        mean += lam[k].detach() * torch.where(mass > 0, image, x)
    return mean
