"""The core loop of entropic transport: Sinkhorn, and Newton where Sinkhorn is slow.

Everything here maximises the semi-dual D(g) = ⟨a, f(g)⟩ + ⟨b, g⟩, where f(g) is the entropic
c-transform, by products with a kernel. Its gradient is b − c, c the column sums of the plan;
its Hessian is −S/ε, S a graph Laplacian. A Sinkhorn step is g += ε log(b/c); a Newton step is
g += ε x with S x = b − c.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from ._kernel import DenseKernel

#: ε falls by this factor from stage to stage, and a stage ends when the column sums are right to
#: this share. Random clouds, n = 200, ε = 1e-6 max C: with a share of 1 it takes fifteen times as
#: many iterations, with 0.003 no fewer.
FACTOR, STAGE_TOL = 4.0, 0.01

#: Newton takes over where Sinkhorn, at its observed rate, would need more iterations than this.
PATIENCE = 10

#: A relative shift that keeps the singular Laplacian factorisable.
SHIFT = 1e4

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
) -> tuple[Tensor, Tensor, int]:
    """Follow the maximiser of the dual through the stages; returns f, g and the number of iterations.

    ``ceiling`` bounds the value of any feasible plan at the first ε: a larger dual value proves
    that there is none, and ends the run.
    """
    light = max(tol, kernel.floor) / kernel.b.shape[-1]
    n_iter = 0
    for eps in stages:
        if eps == stages[-1]:
            goal, measure = tol, _total_error
        else:
            goal, measure = STAGE_TOL, partial(_relative_error, light=light)
        f, g, n_iter = _stage(kernel, g, eps, goal, measure, n_iter, max_iter, ceiling, accelerate, report)
    return f, g, n_iter


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
) -> tuple[Tensor, Tensor, int]:
    """Maximise at one ε. The potentials are split: one part absorbed, the rest in the scalings u, v."""
    a, b = kernel.a, kernel.b
    newton = Newton(kernel)
    steps, last = 0, math.inf
    while True:
        f, c = kernel.absorb(g, eps)
        u, v, log_v = torch.ones_like(a), torch.ones_like(b), torch.zeros_like(b)
        errors = measure(c, b)
        trusted = True
        while trusted:
            # Here the plan diag(a u) T diag(v) has row sums a and column sums c.
            done = errors <= goal
            if report or ceiling < math.inf:
                dual = (a * (f + eps * u.log())).sum(-1) + (b * (g + eps * log_v)).sum(-1)
                done |= dual > ceiling
                if report:
                    report(n_iter, _total_error(c, b), dual)
            if n_iter >= max_iter or done.all():
                return f + eps * u.log(), g + eps * log_v, n_iter

            error = errors.max().item()
            if accelerate and steps >= 2 and _remaining(goal / error, error / last) > PATIENCE:
                step, cost = newton.step(u, v, c, max_iter - n_iter)
                steps = 0
            else:
                step, cost = torch.where(b > 0, b / c, 1.0).log(), 1
                steps += 1
            n_iter, last = n_iter + cost, error
            log_v = log_v + step.clamp(-kernel.drift, kernel.drift)
            v = log_v.exp()
            u = 1 / _or_one(kernel.rows(v))
            c = v * kernel.columns(a * u)
            errors = measure(c, b)
            # T is stochastic, so 1/u = T v lies between the least and the largest v: u drifts no
            # further than v. Below the floor the products only show their own rounding.
            trusted = log_v.abs().max().item() <= kernel.drift and errors.max().item() > kernel.floor
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
            x, cost, solved = self._conjugate_gradients(u, v, c, min(limit, budget))
            self.factorise = kernel.factorisable and not solved
        if self.factorise:
            x, cost = self._factorised(u, v, c), cost + 1
        x = x - (b * x).sum(-1, keepdim=True)
        t, trials = self._line_search(v, c, x)
        return t * x, cost + trials

    def _conjugate_gradients(self, u: Tensor, v: Tensor, c: Tensor, limit: int) -> tuple[Tensor, int, bool]:
        """S x = b − c, preconditioned by the diagonal c, to a residual that keeps Newton superlinear."""
        kernel, b = self.kernel, self.kernel.b
        w = kernel.a * u * u
        r = b - c
        # A column that got nothing yet counts with a tenth of its due.
        inverse = _ratio(torch.ones_like(c), torch.maximum(c, 0.1 * b))
        x, p = torch.zeros_like(r), r * inverse
        square = (r * p).sum(-1, keepdim=True)
        stop = square * min(0.1, r.abs().sum(-1).max().item()) ** 2
        for k in range(1, limit + 1):
            Sp = c * p - v * kernel.columns(w * kernel.rows(v * p))
            # A problem of the batch that is solved stands still while the others go on.
            step = _ratio(square, (p * Sp).sum(-1, keepdim=True)) * (square > stop)
            x, r = x + step * p, r - step * Sp
            z = r * inverse
            previous, square = square, (r * z).sum(-1, keepdim=True)
            if (square <= stop).all():
                return x, k, True
            p = z + _ratio(square, previous) * p
        return x, limit, False

    def _factorised(self, u: Tensor, v: Tensor, c: Tensor) -> Tensor:
        """S x = b − c by Cholesky."""
        b = self.kernel.b
        S = self.kernel.laplacian(u, v)
        shift = SHIFT * torch.finfo(b.dtype).eps * b
        S.diagonal(dim1=-2, dim2=-1).add_(torch.where(b > 0, shift, 1.0))
        L, failed = torch.linalg.cholesky_ex(S)
        x = torch.cholesky_solve((b - c).unsqueeze(-1), L).squeeze(-1)
        # Where rounding spoils the factor, the diagonal still gives an ascent direction.
        return torch.where((failed > 0).unsqueeze(-1), _ratio(b - c, c), x)

    def _line_search(self, v: Tensor, c: Tensor, x: Tensor) -> tuple[Tensor, int]:
        """A step t with D'(t) ≥ −½ D'(0), the approximate Wolfe condition of Hager and Zhang (2005).

        For a quadratic it is the condition of sufficient ascent, and unlike a difference of dual
        values it stays meaningful down to rounding. The first trial keeps within the drift.
        """
        kernel, a, b = self.kernel, self.kernel.a, self.kernel.b
        slope = ((b - c) * x).sum(-1, keepdim=True)
        t = _ratio(torch.full_like(slope, 0.9 * kernel.drift), x.abs().amax(-1, keepdim=True)).clamp(max=1.0)
        trials = 0
        while trials < 10:
            trials += 1
            w = v * (t * x).exp()
            u = 1 / _or_one(kernel.rows(w))
            new = ((b - w * kernel.columns(a * u)) * x).sum(-1, keepdim=True)
            over = new < -0.5 * slope
            if not over.any():
                break
            t = torch.where(over, t * _ratio(slope, slope - new).clamp(0.1, 0.5), t)
        return t, trials


def _or_one(x: Tensor) -> Tensor:
    """Keep x where it is positive, else 1: an empty row or column is left alone."""
    return torch.where(x > 0, x, 1.0)


def _ratio(x: Tensor, y: Tensor) -> Tensor:
    """Divide x by y, giving 0 where y is not positive."""
    return torch.where(y > 0, x / _or_one(y), 0.0)
