"""The core loop of entropic transport: Sinkhorn, and Newton where Sinkhorn is slow.

Everything here maximises the semi-dual D(g) = ⟨a, f(g)⟩ + ⟨b, g⟩, where f(g) is the entropic
c-transform, by products with a kernel. Its gradient is b − c, c the column sums of the plan;
its Hessian is −S/ε, S a graph Laplacian. A Sinkhorn step is g += ε log(b/c); a Newton step is
g += ε x with S x = b − c.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from .._result import ConvergenceWarning
from ._kernel import DRIFT, DenseKernel

#: ε falls by this factor from stage to stage, and a stage ends when the column sums are right to
#: this share. Random clouds, n = 200, ε = 1e-6 max C: with a share of 1 it takes fifteen times as
#: many iterations, with 0.003 no fewer.
FACTOR, STAGE_TOL = 4.0, 0.01

#: Newton takes over where Sinkhorn, at its observed rate, would need more iterations than this.
PATIENCE = 10

#: A relative shift that keeps the singular Laplacian factorisable.
SHIFT = 1e4

#: Conjugate gradients that solve a system to working precision may take this many iterations.
SOLVE_LIMIT = 2_000

Report = Callable[[int, Tensor, Tensor], None]


def schedule(eps: float, start: float) -> list[float]:
    """Decreasing values of ε that end at ``eps``: ε-scaling, as in Schmitzer (2019), §3.2."""
    stages = [eps]
    while stages[-1] < start:
        stages.append(stages[-1] * FACTOR)
    return stages[::-1]


def maximise(
    kernel: DenseKernel,
    g: Tensor,
    stages: list[float],
    *,
    tol: float,
    max_iter: int,
    ceiling: float = math.inf,
    accelerate: bool = True,
    report: Report | None = None,
) -> tuple[Tensor, int]:
    """Follow the maximiser g of the semi-dual through the stages; returns g and the number of iterations.

    ``ceiling`` bounds the value of any feasible plan at the first ε: a larger dual value proves
    that there is none, and ends the run.
    """
    light = tol / kernel.b.shape[-1]
    n_iter, path = 0, []
    for eps in stages:
        if len(path) > 1:
            # The maximiser is a smooth function of ε: the line through the last two is a better start.
            (before, g_before), (last, g) = path[-2:]
            g = g + (g - g_before) * (eps - last) / (last - before)
        if eps == stages[-1]:
            goal, measure = tol, _total_error
        else:
            goal, measure = STAGE_TOL, partial(_relative_error, light=light)
        g, n_iter = _stage(kernel, g, eps, goal, measure, n_iter, max_iter, ceiling, accelerate, report)
        path.append((eps, g))
    return g, n_iter


def _total_error(c: Tensor, b: Tensor) -> Tensor:
    """‖c − b‖₁, the error that the user sees."""
    return (c - b).abs().sum(-1)


def _relative_error(c: Tensor, b: Tensor, light: float) -> Tensor:
    """max_j |c_j/b_j − 1|: about how far, in units of ε, a Sinkhorn step would still move a potential.

    On the way down this is what counts, since an atom left behind has far to go later. Only atoms
    lighter than ``light``, which cannot matter in the end, are let go.
    """
    return ((c - b).abs() / (b + light)).amax(-1)


def _stage(
    kernel: DenseKernel,
    g: Tensor,
    eps: float,
    goal: float,
    measure: Callable[[Tensor, Tensor], Tensor],
    n_iter: int,
    max_iter: int,
    ceiling: float,
    accelerate: bool,
    report: Report | None,
) -> tuple[Tensor, int]:
    """Maximise at one ε. The potentials are split: one part absorbed, the rest in the scalings u, v."""
    a, b = kernel.a, kernel.b
    newton = Newton(kernel)
    steps, last, exact = 0, math.inf, False
    while True:
        f, c = kernel.absorb(g, eps, exact=exact)
        u, v, log_v = torch.ones_like(a), torch.ones_like(b), torch.zeros_like(b)
        errors, base = measure(c, b), 0.0 if exact else kernel.rounding
        blur, trusted = base, True
        if not exact and errors.max().item() <= 5 * base:
            exact, trusted = True, False  # so close that it takes exact sums to see the error
        while trusted:
            # Here the plan diag(a u) T diag(v) has row sums a and column sums c, but for the blur.
            done = (errors <= goal) & (blur <= 0.2 * goal)
            if report or ceiling < math.inf:
                dual = kernel.total(a * (f + eps * u.log())) + (b * (g + eps * log_v)).sum(-1)
                done |= dual > ceiling
                if report:
                    report(n_iter, _total_error(c, b), dual)
            if n_iter >= max_iter or done.all():
                return g + eps * log_v, n_iter

            error = errors.max().item()
            slow = steps >= 2 and _remaining(goal / error, error / last) > PATIENCE
            if accelerate and slow and max_iter - n_iter > 2:
                step, cost = newton.step(u, v, c, max_iter - n_iter)
                steps = 0
            else:
                step, cost = torch.where(b > 0, b / c, 1.0).log(), 1
                steps += 1
            n_iter, last = n_iter + cost, error
            log_v = log_v + step.clamp(-DRIFT, DRIFT)
            v = log_v.exp()
            r, product = kernel.sweep(v, lambda r, i: a[..., i] / _or_one(r))
            u, c = 1 / _or_one(r), v * product
            errors = measure(c, b)
            # T is stochastic, so 1/u = T v lies between the least and the largest v: u drifts no
            # further than v. The closer v is to 1, the less the products show of their rounding.
            drift = log_v.abs().max().item()
            blur = base + 2 * kernel.rounding * min(1.0, drift)
            exact = errors.max().item() <= 5 * blur
            trusted = drift <= DRIFT and not exact
        g = g + eps * log_v


def _remaining(reduction: float, rate: float) -> float:
    """Iterations to reduce the error by a factor, at a linear rate."""
    return math.inf if rate >= 1 else math.log(min(reduction, 1.0)) / math.log(max(rate, 1e-300))


class Newton:
    """Newton directions of the semi-dual, by conjugate gradients until factorising is cheaper."""

    def __init__(self, kernel: DenseKernel) -> None:
        self.kernel, self.factorise = kernel, False

    def step(self, u: Tensor, v: Tensor, c: Tensor, budget: int) -> tuple[Tensor, int]:
        """The change of log v, and what it cost in iterations."""
        kernel, b = self.kernel, self.kernel.b
        cost = 0
        if not self.factorise:
            # Rent before buying: conjugate gradients for about as long as a factorisation takes, m/10
            # pairs of products, which are bound by memory where the factorisation is not.
            limit = b.shape[-1] // 10 + 1 if kernel.factorisable else 500
            x, cost, solved = self._conjugate_gradients(u, v, c, min(limit, budget - 2))
            self.factorise = kernel.factorisable and not solved
        if self.factorise:
            x, cost = self._factorised(u, v, c), cost + 1
        x = x - (b * x).sum(-1, keepdim=True)
        t, trials = self._line_search(v, c, x, min(10, budget - cost))
        return t * x, cost + trials

    def _conjugate_gradients(self, u: Tensor, v: Tensor, c: Tensor, limit: int) -> tuple[Tensor, int, bool]:
        """S x = b − c, to a residual that keeps Newton fast."""
        kernel, b = self.kernel, self.kernel.b
        w = kernel.a * u * u
        # A column that got nothing yet counts with a tenth of its due.
        inverse = _ratio(torch.ones_like(c), torch.maximum(c, 0.1 * b))
        accuracy = min(0.1, max(0.01, (b - c).abs().sum(-1).max().item()))

        def S(p: Tensor) -> Tensor:
            return c * p - v * kernel.sweep(v * p, lambda r, i: w[..., i] * r)[1]

        return conjugate_gradients(S, b - c, inverse, accuracy, limit)

    def _factorised(self, u: Tensor, v: Tensor, c: Tensor) -> Tensor:
        """S x = b − c by Cholesky; where rounding spoils the factor, an ascent direction all the same."""
        x, failed = _cholesky_solve(self.kernel, u, v, self.kernel.b - c)
        return torch.where(failed, _ratio(self.kernel.b - c, c), x)

    def _line_search(self, v: Tensor, c: Tensor, x: Tensor, limit: int) -> tuple[Tensor, int]:
        """A step t with D'(t) ≥ −½ D'(0), the approximate Wolfe condition of Hager and Zhang (2005).

        For a quadratic it is the condition of sufficient ascent, and unlike a difference of dual
        values it stays meaningful down to rounding. The first trial keeps within the drift.
        """
        kernel, a, b = self.kernel, self.kernel.a, self.kernel.b
        slope = ((b - c) * x).sum(-1, keepdim=True)
        t = _ratio(torch.full_like(slope, 0.9 * DRIFT), x.abs().amax(-1, keepdim=True)).clamp(max=1.0)
        trials = 0
        while trials < limit:
            trials += 1
            w = v * (t * x).exp()
            _, product = kernel.sweep(w, lambda r, i: a[..., i] / _or_one(r))
            new = ((b - w * product) * x).sum(-1, keepdim=True)
            over = new < -0.5 * slope
            if not over.any():
                break
            t = torch.where(over, t * _ratio(slope, slope - new).clamp(0.1, 0.5), t)
        return t, trials


def conjugate_gradients(
    S: Callable[[Tensor], Tensor], r: Tensor, inverse: Tensor, accuracy: float, limit: int
) -> tuple[Tensor, int, bool]:
    """Solve S x = r, preconditioned by ``inverse``; returns x, the iterations, and whether it is solved.

    S is singular: its rows sum to 0, and so must r, or rounding would pile up in the kernel of S.
    ``accuracy`` is the share of the residual that may be left, in the norm of the preconditioner.
    """
    share = _ratio(torch.ones_like(inverse), inverse)
    share = share / share.sum(-1, keepdim=True)

    def balanced(z: Tensor) -> Tensor:
        return z - share * z.sum(-1, keepdim=True)

    r = balanced(r)
    x, p = torch.zeros_like(r), r * inverse
    square = (r * p).sum(-1, keepdim=True)
    stop = square * accuracy**2
    for k in range(1, limit + 1):
        Sp = balanced(S(p))
        # A problem of the batch that is solved stands still while the others go on.
        step = _ratio(square, (p * Sp).sum(-1, keepdim=True)) * (square > stop)
        x, r = x + step * p, r - step * Sp
        z = r * inverse
        previous, square = square, (r * z).sum(-1, keepdim=True)
        if (square <= stop).all():
            return x, k, True
        p = z + _ratio(square, previous) * p
    return x, limit, False


def laplacian_solve(kernel: DenseKernel, c: Tensor, r: Tensor) -> Tensor:
    """Solve S x = r to working precision for the plan diag(a) T with column sums c, r summing to 0."""
    limit = min(SOLVE_LIMIT, c.shape[-1] // 10 + 50) if kernel.factorisable else SOLVE_LIMIT
    inverse = _ratio(torch.ones_like(c), c)
    w = kernel.a

    def S(p: Tensor) -> Tensor:
        return c * p - kernel.sweep(p, lambda r, i: w[..., i] * r)[1]

    x, _, solved = conjugate_gradients(S, r, inverse, 1e-12, limit)
    if not solved and kernel.factorisable:
        exact, failed = _cholesky_solve(kernel, torch.ones_like(w), torch.ones_like(c), r)
        x = torch.where(failed, x, exact)
        solved = not failed.any()
    left = ((S(x) - r).abs().sum(-1) / r.abs().sum(-1).clamp(min=1e-300)).max().item()
    if not solved and left > 1e-6:
        warnings.warn(
            f"the linear system of an implicit gradient is solved only to a share of {left:.1g} of its right "
            "side: raise eps, or differentiate the value, which needs no such system",
            ConvergenceWarning,
            stacklevel=3,
        )
    return x


def _cholesky_solve(kernel: DenseKernel, u: Tensor, v: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
    """Solve S x = r for the plan diag(a u) T diag(v) by Cholesky; returns x and where that failed, (…, 1)."""
    S = kernel.laplacian(u, v)
    shift = SHIFT * torch.finfo(r.dtype).eps * kernel.b
    S.diagonal(dim1=-2, dim2=-1).add_(torch.where(kernel.b > 0, shift, 1.0))
    L, failed = torch.linalg.cholesky_ex(S)
    return torch.cholesky_solve(r.unsqueeze(-1), L).squeeze(-1), (failed > 0).unsqueeze(-1)


def _or_one(x: Tensor) -> Tensor:
    """Keep x where it is positive, else 1: an empty row or column is left alone."""
    return torch.where(x > 0, x, 1.0)


def _ratio(x: Tensor, y: Tensor) -> Tensor:
    """Divide x by y, giving 0 where y is not positive."""
    return torch.where(y > 0, x / _or_one(y), 0.0)
