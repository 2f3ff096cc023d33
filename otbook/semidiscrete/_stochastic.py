"""Transport from a density to weighted points: concave maximisation over one price per point.

The density is known by its samples only. For potentials g the points compete for every x, and
f(x) = min_j c(x, y_j) − g_j says what the winner pays: −g_j is the price of point j. The x that
it wins are its Laguerre cell. The prices are right when each cell has the mass of its point.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from .. import _check, costs
from .._check import ArrayLike
from .._result import ConvergenceWarning

#: Probability with which ``converged=True`` may be wrong.
_RISK = 0.01

#: Entries of the cost between fresh samples and points that are held at a time: they fit in cache.
_CHUNK = 2**17


@dataclass(frozen=True, eq=False, repr=False)
class SemiDiscreteDual:
    """Potentials of the transport from a density to m weighted points, and the map they define.

    Attributes:
        g: dual potential of the points, shape (m,), normalised by ⟨b, g⟩ = 0; −g are prices.
        value: estimate of the dual objective at g, E f(x) + ⟨b, g⟩, in units of the cost.
        standard_error: standard error of that estimate.
        marginal_error: upper bound of Σ_j |P(cell j) − b_j|, which holds with 99 % confidence.
        n_iter: number of iterations.
        converged: whether ``marginal_error`` reached the tolerance.
        points, weights, eps, cost: the problem, as it was given.
    """

    g: Tensor
    value: Tensor
    standard_error: Tensor
    marginal_error: Tensor
    n_iter: int
    converged: bool
    points: Tensor
    weights: Tensor
    eps: float
    cost: str

    def potential(self, x: ArrayLike) -> Tensor:
        """f(x) = min_j c(x, y_j) − g_j, or −ε log Σ_j b_j exp((g_j − c(x, y_j))/ε), shape (k,).

        Differentiable in x and in ``points``, with g fixed. So by the envelope theorem the mean of f
        over samples has the gradient of the transport value in the points.
        """
        return _potential(self._excess(x), self.weights, self.eps)

    def coupling(self, x: ArrayLike) -> Tensor:
        """Conditional law of the target given x, shape (k, m): rows sum to 1, and are 0 or 1 at ε = 0."""
        return _coupling(self._excess(x), self.weights, self.eps)

    def assign(self, x: ArrayLike) -> Tensor:
        """Number of the point whose Laguerre cell holds x, shape (k,); the likeliest one at ε > 0."""
        return self.coupling(x).argmax(-1)

    def __call__(self, x: ArrayLike) -> Tensor:
        """The transport map x ↦ Σ_j P(j | x) y_j, shape (k, d): the assigned point at ε = 0."""
        return self.coupling(x) @ self.points

    def _excess(self, x: ArrayLike) -> Tensor:
        x = _check.points(x, "x", like=self.points)
        excess = costs.BY_NAME[self.cost](x, self.points) - self.g
        return excess.masked_fill(self.weights == 0, math.inf)

    def __repr__(self) -> str:
        value = f"{self.value.item():.6g} ± {self.standard_error.item():.2g}"
        error = f"marginal_error={self.marginal_error.item():.2g}, n_iter={self.n_iter}"
        return f"SemiDiscreteDual(value={value}, {error}, converged={self.converged})"


def stochastic_dual(
    points: ArrayLike,
    weights: ArrayLike | None,
    sample: Callable[[int, torch.Generator], Tensor],
    *,
    eps: float = 0.0,
    cost: str = "sqeuclidean",
    tol: float = 0.05,
    max_iter: int = 100_000,
    batch_size: int = 256,
    step: float = 1.0,
    generator: torch.Generator,
    progress: bool = False,
) -> SemiDiscreteDual:
    """Transport from a sampled density to weighted points, by averaged stochastic gradient ascent.

    Maximises over g the concave semi-dual

        E f(x) + ⟨b, g⟩,  f(x) = min_j c(x, y_j) − g_j  or  −ε log Σ_j b_j exp((g_j − c(x, y_j))/ε),

    whose gradient is b_j minus the mass of cell j. Step k goes along its estimate from a batch of
    fresh samples, with length proportional to 1/√k; the answer is an average of all iterates. After
    1, 2, 4, … × as many samples as one check takes, the cells are weighed by fresh samples.

    Args:
        points: target points y, shape (m, d).
        weights: their weights b, shape (m,), sum 1; uniform if None. Zeros are allowed.
        sample: ``sample(n, generator)`` draws n independent points of the density, shape (n, d).
        eps: weight ε of the KL term, in units of the cost; 0 gives hard Laguerre cells.
        cost: ``"sqeuclidean"`` (‖x − y‖², without ½), ``"euclidean"`` or ``"cosine"``.
        tol: largest accepted marginal error Σ_j |P(cell j) − b_j|. A check takes about
            (2√m + 8)²/tol² samples, so halving it quadruples the work.
        max_iter: largest number of batches.
        batch_size: samples in a batch.
        step: length of the first step, in units of the spread of the cost; without unit.
        generator: passed to ``sample``, for example ``torch.Generator().manual_seed(0)``.
        progress: show a progress bar.

    Returns:
        A :class:`SemiDiscreteDual`: potentials, the value with its standard error, and functions of
        any x: the map itself (a call), ``assign``, ``coupling`` and ``potential``. g, value and
        errors are detached; with g fixed, the functions carry gradients of ``points``. Where b is 0, g is
        the c-transform of f over fresh samples.

    Raises:
        ValueError: for points or weights that make no measure, samples that do not match the points,
            an unknown cost and options out of range.
        TypeError: if generator is not a ``torch.Generator`` or sample not a function.

    Warns:
        ConvergenceWarning: if the tolerance is not reached.

    Note:
        The dual objective at g is never above the transport value; ``value`` estimates it by fresh samples.
        ``marginal_error`` is the L1 error measured with N fresh samples plus
        (√(m − 1) + √(2 log(1/δ)))/√N. By McDiarmid's inequality the true error is larger with
        probability at most δ; the δ of all checks add up to 1 %.

    Source:
        Genevay, Cuturi, Peyré and Bach (2016), algorithm 2; here with batches and, instead of the plain
        average, one that weighs iterate k in proportion to k, which forgets the start faster.

    Example:
        >>> def sample(n, generator):
        ...     return torch.rand(n, 1, generator=generator, dtype=torch.float64)
        >>> y = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
        >>> rng = torch.Generator().manual_seed(0)
        >>> dual = stochastic_dual(y, [0.25, 0.75], sample, generator=rng)
        >>> dual.assign([[0.2], [0.3]])  # cells [0, 0.25] and [0.25, 1]
        tensor([0, 1])
    """
    points = _check.points(points, "points")
    y = points.detach()
    if y.ndim != 2:
        raise ValueError(f"points must have shape (m, d), but has shape {tuple(y.shape)}; solve them singly")
    b = _check.weights(weights, len(y), "weights", like=y).detach()
    if b.ndim != 1:
        raise ValueError(f"weights must have shape ({len(y)},), but has shape {tuple(b.shape)}")
    if not callable(sample):
        raise TypeError(
            f"sample must be a function (n, generator) ↦ points, but a {type(sample).__name__} was given"
        )
    _check.generator(generator)
    eps = 0.0 if eps == 0 else _check.positive(eps, "eps", remedy="0 gives hard cells")
    cost = _check.choice(cost, "cost", tuple(costs.BY_NAME))
    tol, step = _check.positive(tol, "tol"), _check.positive(step, "step")
    max_iter, batch_size = (
        _check.positive_int(max_iter, "max_iter"),
        _check.positive_int(batch_size, "batch_size"),
    )

    def draw(n: int, y: Tensor) -> Tensor:
        """Cost between n fresh samples and the points, shape (n, m)."""
        x = _check.points(sample(n, generator), "what sample draws", like=y).detach()
        if x.shape != (n, y.shape[1]):
            expected = (n, y.shape[1])
            raise ValueError(f"sample({n}, generator) must have shape {expected}, but has {tuple(x.shape)}")
        return _fast_sqeuclidean(x, y) if cost == "sqeuclidean" else costs.BY_NAME[cost](x, y)

    competes = b > 0
    support, mass = y[competes], b[competes]
    checks = max_iter.bit_length() + 1
    confidence = math.sqrt(len(mass) - 1) + math.sqrt(2 * math.log(checks / _RISK))
    n_fresh = max(2, math.ceil((2 * confidence / tol) ** 2))  # half of tol is for the confidence interval
    next_check = math.ceil(n_fresh / batch_size)
    with tqdm(total=max_iter, disable=not progress, unit="it") as bar:
        for n_iter, g in _averaged_ascent(lambda: draw(batch_size, support), mass, eps, step):
            bar.update()
            if n_iter in (next_check, max_iter):
                f, cells = _weigh(lambda n: draw(n, support), g, mass, eps, n_fresh)
                error = (cells - mass).abs().sum() + confidence / math.sqrt(n_fresh)
                bar.set_postfix_str(f"marginal error {error.item():.1e}", refresh=False)
                if error <= tol or n_iter == max_iter:
                    break
                next_check *= 2
    if not error <= tol:
        warnings.warn(
            f"stochastic_dual stopped after {n_iter} iterations with marginal error up to {error.item():.2g} "
            f"above tol = {tol:g}: raise max_iter or batch_size, change step, or raise tol",
            ConvergenceWarning,
            stacklevel=2,
        )
    full = torch.zeros_like(b)
    full[competes] = g - (mass * g).sum()
    if not competes.all():
        full[~competes] = _transform(lambda n: draw(n, y), full, b, eps, n_fresh)[~competes]
    return SemiDiscreteDual(
        g=full,
        value=f.mean() + (mass * g).sum(),
        standard_error=f.std() / math.sqrt(n_fresh),
        marginal_error=error,
        n_iter=n_iter,
        converged=bool(error <= tol),
        points=points,
        weights=b,
        eps=eps,
        cost=cost,
    )


def _averaged_ascent(batch: Callable[[], Tensor], b: Tensor, eps: float, step: float) -> Iterator:
    """Algorithm 2 of Genevay et al. (2016): yields k and the average of the first k iterates.

    ``batch()`` is the cost (k, m) between fresh samples and points, all of them with mass.
    """
    C = batch()
    step = step * C.std(correction=0)
    g, average = torch.zeros_like(b), torch.zeros_like(b)
    for k in itertools.count(1):
        gradient = b - _masses(C - g, b, eps)
        g = g + step / math.sqrt(k) * gradient
        average = average + 2 / (k + 1) * (g - average)  # iterate i has weight 2i/(k(k + 1))
        yield k, average
        C = batch()


def _fast_sqeuclidean(x: Tensor, y: Tensor) -> Tensor:
    """‖x − y‖² by one matrix product: several times faster, and its rounding is far below sampling error."""
    centre = y.mean(0)
    x, y = x - centre, y - centre
    C = torch.addmm(y.square().sum(-1), x, y.T, alpha=-2)
    return C.add_(x.square().sum(-1, keepdim=True))


def _potential(excess: Tensor, b: Tensor, eps: float) -> Tensor:
    """The potential f(x) from c(x, y_j) − g_j, shape (k, m); infinite where b is 0."""
    return excess.amin(-1) if eps == 0 else -eps * torch.logsumexp(b.log() - excess / eps, -1)


def _coupling(excess: Tensor, b: Tensor, eps: float) -> Tensor:
    """P(j | x), shape (k, m)."""
    if eps == 0:
        return torch.nn.functional.one_hot(excess.argmin(-1), len(b)).to(b.dtype)
    return torch.softmax(b.log() - excess / eps, -1)


def _masses(excess: Tensor, b: Tensor, eps: float) -> Tensor:
    """Share of each point in the samples, the mean of P(j | x), shape (m,)."""
    if eps == 0:
        return torch.bincount(excess.argmin(-1), minlength=len(b)).to(b.dtype) / len(excess)
    return _coupling(excess, b, eps).mean(0)


def _weigh(draw: Callable[[int], Tensor], g: Tensor, b: Tensor, eps: float, n: int) -> tuple[Tensor, Tensor]:
    """The potential f at n fresh samples, and the share of each point in them."""
    f, masses = [], torch.zeros_like(b)
    for k in _pieces(n, len(b)):
        excess = draw(k) - g
        f.append(_potential(excess, b, eps))
        masses += k / n * _masses(excess, b, eps)
    return torch.cat(f), masses


def _transform(draw: Callable[[int], Tensor], g: Tensor, b: Tensor, eps: float, n: int) -> Tensor:
    """The c-transform of f over n fresh samples: min_x c(x, y_j) − f(x), or its soft form."""
    pieces = []
    for k in _pieces(n, len(b)):
        C = draw(k)
        excess = (C - g).masked_fill(b == 0, math.inf)
        gap = C - _potential(excess, b, eps)[:, None]
        pieces.append(gap.amin(0) if eps == 0 else torch.logsumexp(-gap / eps, 0))
    pieces = torch.stack(pieces)
    return pieces.amin(0) if eps == 0 else -eps * (torch.logsumexp(pieces, 0) - math.log(n))


def _pieces(n: int, m: int) -> Iterator[int]:
    """Split n samples into parts whose cost has a bounded number of entries."""
    size = max(1, _CHUNK // m)
    for start in range(0, n, size):
        yield min(size, n - start)
