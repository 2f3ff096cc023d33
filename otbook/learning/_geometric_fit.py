"""The heights of a semi-discrete map: by Newton's method in the plane, by samples elsewhere."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import _check
from .._check import ArrayLike
from ..semidiscrete import solve, stochastic_dual
from ._geometric import SemidiscreteMap, draw

#: Root mean square of the codes' coordinates, in units of the noise's, while heights are sought by samples:
#: the cells of equal prices then are all near the noise.
_SPREAD = 0.3

#: First step of the stochastic ascent. So long a step suits codes of that spread.
_STEP = 10.0


def fit_semidiscrete_map(
    codes: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    source: str = "uniform",
    tol: float | None = None,
    max_iter: int = 20_000,
    batch_size: int = 256,
    n_centres: int = 50_000,
    generator: torch.Generator,
) -> SemidiscreteMap:
    """The Brenier map from noise to codes: heights of planes, so that every code gets its share of noise.

    Finds h such that the map ∇φ, φ(z) = max_j ⟨z, y_j⟩ − h_j, pushes the source to Σ_j b_j δ_{y_j}; it
    is the optimal map for the squared distance. In the plane, from the uniform source, by Newton's method
    with exact areas (:func:`otbook.semidiscrete.solve`); else by samples
    (:func:`otbook.semidiscrete.stochastic_dual`).

    Args:
        codes: y, shape (m, d); in the plane with the uniform source all different.
        weights: b, shape (m,), sum 1, all positive; uniform if None.
        source: ``"uniform"``, on the unit cube, or ``"gaussian"``, the standard normal.
        tol: largest accepted Σ_j |mass of cell j − b_j|; 1e-10 for Newton's method and 0.5 for samples
            if None. By samples, the work grows like m/tol².
        max_iter: largest number of batches, by samples.
        batch_size: noise in a batch, by samples.
        n_centres: noise by which the centres and masses of the cells are estimated, by samples.
        generator: source of randomness, on the CPU; not used by Newton's method.

    Returns:
        A :class:`SemidiscreteMap`, detached, with the dtype and device of the codes. Moving all codes
        changes no cell, nor does scaling them, since samples meet codes that are centred and scaled.

    Raises:
        ValueError: for codes or weights that make no measure with positive masses, or an unknown source.
        TypeError: if generator is not a ``torch.Generator``.

    Warns:
        ConvergenceWarning: if the tolerance is not reached.

    Source:
        An, Guo, Lei, Luo, Yau, Gu (2020), AE-OT, where the heights are minus these; Gu, Luo,
        Sun, Yau (2016) for the polyhedron. They detect jumps by the angle.

    Example:
        >>> rng = torch.Generator().manual_seed(0)
        >>> fit = fit_semidiscrete_map([[0.0, 0.0], [2.0, 0.0]], [0.75, 0.25], generator=rng)
        >>> fit([[0.7, 0.5], [0.8, 0.5]])  # the wall is at 3/4
        tensor([[0., 0.],
                [2., 0.]])
        >>> fit.extend([[0.7, 0.5]], k=2, threshold=1.0)  # a jump of 2 is not bridged
        tensor([[0., 0.]])
    """
    y = _check.points(codes, "codes").detach()
    if y.ndim != 2:
        raise ValueError(f"codes must have shape (m, d), but has shape {tuple(y.shape)}")
    b = _check.weights(weights, len(y), "weights", like=y).detach()
    if b.ndim != 1 or not (b > 0).all():
        raise ValueError(f"weights must be {len(y)} positive numbers; drop the codes of weight 0")
    source = _check.choice(source, "source", ("uniform", "gaussian"))
    _check.generator(generator)
    n_centres = _check.positive_int(n_centres, "n_centres")
    if y.shape[1] == 2 and source == "uniform":
        plan = solve(y, b, tol=1e-10 if tol is None else tol)
        heights = (y.square().sum(1) + plan.prices) / 2
        centres, masses, error = plan.barycentres, plan.masses, plan.mass_error.item()
        centres = centres.masked_fill((masses == 0)[:, None], math.nan)
    else:
        heights, error = _by_samples(
            y, b, source, 0.5 if tol is None else tol, max_iter, batch_size, generator
        )
        fit = SemidiscreteMap(y, heights, y, b, b, error, source)
        z = draw(source, n_centres, y, generator)
        owner = fit.assign(z)
        masses = torch.bincount(owner, minlength=len(y)).to(y) / n_centres
        centres = torch.zeros_like(y).index_add(0, owner, z) / (n_centres * masses)[:, None]
    return SemidiscreteMap(y, heights - heights.mean(), centres, masses, b, error, source)


def _by_samples(
    y: Tensor, b: Tensor, source: str, tol: float, max_iter: int, batch_size: int, generator: torch.Generator
) -> tuple[Tensor, float]:
    """Heights by stochastic ascent, for codes in coordinates in which the start has cells of similar mass.

    With y' = s (y − mean) and noise z' = z − centre, the planes ⟨z', y'⟩ − h' differ from those of y and
    h = h'/s + ⟨centre, y⟩ by a factor and a common affine function: the cells are the same.
    """
    middle = 0.5 if source == "uniform" else 0.0
    spread = math.sqrt(1 / 12) if source == "uniform" else 1.0
    centred = y - b @ y
    size = (b @ centred.square().mean(1)).sqrt().item()
    s = _SPREAD * spread / size if size > 0 else 1.0

    def sample(n: int, generator: torch.Generator) -> Tensor:
        return draw(source, n, y, generator) - middle

    dual = stochastic_dual(
        s * centred,
        b,
        sample,
        tol=tol,
        max_iter=max_iter,
        batch_size=batch_size,
        step=_STEP,
        generator=generator,
    )
    heights = ((s * centred).square().sum(1) - dual.g) / (2 * s)
    return heights + middle * y.sum(1), dual.marginal_error.item()
