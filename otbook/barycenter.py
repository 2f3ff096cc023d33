"""Wasserstein barycentres: of point clouds by a fixed point, of images by Gaussian convolutions.

A barycentre minimises Σ_k λ_k W₂²(μ, ν_k), the mean squared distance to given measures, as the
mean of numbers does. With Gaussians it has its own closed form: ``otbook.gaussian.barycenter``.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import _check
from ._check import ArrayLike
from ._result import ConvergenceWarning, OTResult
from .costs import sqeuclidean
from .entropic import sinkhorn
from .exact import emd

#: Where the points stop by default, relative to the spread of the measures.
_TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-8}

#: If the smallest entry of a kernel is exp(−this), what underflows next to it is below rounding.
_SAFE_EXPONENT = {torch.float32: 50.0, torch.float64: 600.0}


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


def convolutional(
    images: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    eps: float,
    debiased: bool = False,
    spacing: float | None = None,
    tol: float = 1e-5,
    max_iter: int = 10_000,
) -> Tensor:
    """Entropic barycentre of images, by Gaussian blurs along the rows and the columns.

    Minimises Σ_k λ_k OT_ε(a_k, p) over images p of mass 1, where

        OT_ε(a, p) = min_P ⟨C, P⟩ + ε Σ_ij P_ij (log P_ij − 1),   C_ij = ‖x_i − x_j‖².

    This entropy does not know the marginals, unlike the KL term of ``sinkhorn``, and it blurs: even
    the barycentre of equal images is wider than they are. The debiased barycentre minimises
    Σ_k λ_k S_ε(a_k, p) with the Sinkhorn divergence S_ε(a, p) = OT_ε(a, p) − ½ OT_ε(a, a)
    − ½ OT_ε(p, p), where the blur cancels: equal images are their own barycentre.

    The kernel exp(−C/ε) is a Gaussian of variance ε/2 along each axis. Scalings are kept as
    logarithms, in float64 where the device has it, so that any ε is stable. On an axis whose squared
    length is beyond 600 ε matrix products give way to slower log-sum-exps. Small ε, and debiased
    also large ε, take many iterations.

    Args:
        images: K images, shape (…, K, h, w), non-negative, each of sum 1. Zeros are allowed.
        weights: λ, shape (K,) or (…, K), sum 1; uniform if None.
        eps: ε, in squared units of ``spacing``; by default the longer side of the image has length 1,
            and 1e-3 is a blur of standard deviation 0.022.
        debiased: minimise Sinkhorn divergences instead.
        spacing: distance between neighbouring pixels along both axes; None means 1 / max(h, w), and
            with 1 the unit is a pixel.
        tol: stop when Σ_k λ_k ‖P_kᵀ1 − p‖₁ ≤ tol for every problem of the batch, where P_k1 = a_k
            holds exactly; the debiased barycentre counts the plan from p to itself too.
        max_iter: largest number of iterations; one blurs 2K images.

    Returns:
        Barycentre p, shape (…, h, w), of sum 1; detached: no gradient passes through it.

    Raises:
        ValueError: for images that are no measures, invalid weights, and for eps, spacing, tol or
            max_iter that are not positive.

    Warns:
        ConvergenceWarning: when ``tol`` is not reached in ``max_iter`` iterations.

    Note:
        ``ot.bregman.convolutional_barycenter2d(A, reg)`` has its pixels at ``linspace(0, 1, n)``: for
        square images it is this function with ``spacing=1 / (n - 1)``.

    Source:
        Benamou, Carlier, Cuturi, Nenna and Peyré (2015), section 3.2; Solomon et al. (2015),
        algorithm 2; debiased: Janati, Cuturi and Gramfort (2020), the debiased Sinkhorn iterations.

    Example:
        >>> images = torch.zeros(2, 1, 5, dtype=torch.float64)
        >>> images[0, 0, 0] = images[1, 0, 2] = 1
        >>> convolutional(images, eps=0.01, debiased=True).round(decimals=4)
        tensor([[0., 1., 0., 0., 0.]], dtype=torch.float64)
    """
    images = _images(images)
    lam = _check.weights(weights, images.shape[-3], "weights", like=images)
    eps = _check.positive(eps, "eps")
    spacing = 1 / max(images.shape[-2:]) if spacing is None else _check.positive(spacing, "spacing")
    tol = _check.positive(tol, "tol")
    max_iter = _check.positive_int(max_iter, "max_iter")
    batch = _check.batch({"images": images.shape[:-3], "weights": lam.shape[:-1]})

    dtype = torch.float32 if images.device.type == "mps" else torch.float64
    log_a = images.detach().to(dtype).expand(*batch, *images.shape[-3:]).log()
    lam = lam.detach().to(dtype)[..., None, None]
    lam = lam / lam.sum(-3, keepdim=True)
    blur = _blur(log_a, spacing, eps)

    # u, v and d of the algorithms, as logarithms; without debiasing d stays 1.
    v, d = torch.zeros_like(log_a), torch.zeros_like(log_a[..., :1, :, :])
    for _ in range(max_iter):
        Ku = blur(log_a - blur(v))
        log_p = d + (lam * Ku).sum(-3, keepdim=True)
        p = log_p.exp()
        error = (lam * ((v + Ku).exp() - p).abs()).sum((-3, -2, -1))
        v = log_p - Ku
        if debiased:
            Kd = blur(d)
            error = error + ((d + Kd).exp() - p).abs().sum((-3, -2, -1))
            d = (d + log_p - Kd) / 2
        if (error <= tol).all():
            break
    else:
        warnings.warn(
            f"convolutional stopped after {max_iter} iterations with marginal error "
            f"{error.max().item():.2g} above tol = {tol:g}: raise max_iter or tol, "
            f"or {'change' if debiased else 'raise'} eps",
            ConvergenceWarning,
            stacklevel=2,
        )
    return (p / p.sum((-2, -1), keepdim=True)).squeeze(-3).to(images.dtype)


def _blur(like: Tensor, spacing: float, eps: float) -> Callable[[Tensor], Tensor]:
    """The map L ↦ log(K exp L) for images L (…, h, w) and the separable kernel K = exp(−C/ε)."""
    exponents = []
    for n in like.shape[-2:]:
        t = spacing * torch.arange(n, dtype=like.dtype, device=like.device)
        exponents.append(-(t[:, None] - t).square() / eps)
    kernels = [E.exp() if E.min() >= -_SAFE_EXPONENT[E.dtype] else None for E in exponents]

    def along_rows(L: Tensor, E: Tensor, K: Tensor | None) -> Tensor:
        if K is None:
            return torch.stack([torch.logsumexp(L + row, -1) for row in E], -1)
        peak = L.amax(-1, keepdim=True).clamp(min=torch.finfo(L.dtype).min)  # a row may be empty: all −∞
        return ((L - peak).exp() @ K).log() + peak

    def blur(L: Tensor) -> Tensor:
        L = along_rows(L, exponents[1], kernels[1]).mT
        return along_rows(L, exponents[0], kernels[0]).mT

    return blur


def _images(images: ArrayLike) -> Tensor:
    """Images (…, K, h, w), each a probability measure on the pixels."""
    images = _check.tensor(images, "images")
    if images.ndim < 3 or 0 in images.shape:
        raise ValueError(
            f"images must have shape (…, K, h, w), at least one image of one pixel, "
            f"but has shape {tuple(images.shape)}"
        )
    values = images.detach()
    for wrong, what in ((~torch.isfinite(values), "not finite"), (values < 0, "negative")):
        if wrong.any():
            where = ", ".join(str(i) for i in torch.nonzero(wrong)[0].tolist())
            raise ValueError(
                f"images has a pixel that is {what}, {values[wrong][0].item():.6g} at images[{where}]; "
                "pixels are masses: use images.nan_to_num(0).clamp(min=0) and divide by the sum"
            )
    mass = values.sum((-2, -1), dtype=torch.float64)
    off = (mass - 1).abs() > _check.MASS_TOLERANCE[images.dtype]
    if off.any():
        raise ValueError(
            f"images has an image of mass {mass[off][0].item():.8g}, not 1; divide by the sum: "
            "images / images.sum((-2, -1), keepdim=True)"
        )
    return images


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
