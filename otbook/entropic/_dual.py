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

from ._kernel import DRIFT, NEAR, DenseKernel
from ._laplacian import cholesky_solve, conjugate_gradients, or_one, ratio

#: ε falls by this factor from stage to stage, and a stage ends when the column sums are right to
#: this share. Random clouds, n = 200, ε = 1e-6 max C: with a share of 1 it takes fifteen times as
#: many iterations, with 0.003 no fewer.
FACTOR, STAGE_TOL = 4.0, 0.01

#: Newton takes over where Sinkhorn, at its observed rate, would need more iterations than this.
PATIENCE = 10

#: Where scalings drift all they can and leave more than this share of the error, the way is long; then steps
#: double, at most so often.
STALLED, FURTHEST = 0.9, 20

Report = Callable[[int, Tensor, Tensor], None]


def schedule(eps: float, start: float) -> list[float]:
    """Decreasing values of ε that end at ``eps``: ε-scaling, as in Schmitzer (2019), §3.2.

    The last half of the way down to ``eps`` is not worth a stage of its own.
    """
    stages = [eps]
    while 2 * eps < start and stages[-1] < start:
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
    a, newton = kernel.a, Newton(kernel)
    # A target without mass stands still: it counts as one that gets the 1 that it wants.
    idle = (kernel.b == 0).to(a.dtype)
    b = kernel.b + idle

    steps, last, exact, final = 0, math.inf, False, goal < STAGE_TOL
    while True:
        exact = exact or (kernel.eager and final)
        f, c = kernel.absorb(g, eps, exact=exact)
        r, v, log_v, c = torch.ones_like(a), torch.ones_like(b), torch.zeros_like(b), c + idle
        errors, base = measure(c, b), 0.0 if exact else kernel.rounding
        error, blur, trusted = _largest(errors), base, True
        began, drift = error, 0.0
        if not exact and error <= 5 * base:
            exact, trusted = True, False  # so close that it takes exact sums to see the error
        while trusted:
            # Here the plan diag(a/r) T diag(v) has row sums a and column sums c, but for the blur.
            done = error <= goal and blur <= 0.2 * goal
            if report or ceiling < math.inf:
                dual = kernel.total(a * (f - eps * or_one(r).log())) + (kernel.b * (g + eps * log_v)).sum(-1)
                done = bool(((errors <= goal) & (blur <= 0.2 * goal) | (dual > ceiling)).all())
                if report:
                    report(n_iter, _total_error(c, b), dual)
            if n_iter >= max_iter or done:
                g = g + eps * log_v
                if kernel.sharp:
                    kernel.settle(g, eps, f - eps * or_one(r).log(), a / or_one(r), v)
                return g, n_iter

            slow = steps >= 2 and _remaining(goal / error, error / last) > PATIENCE
            if accelerate and slow and max_iter - n_iter > 2:
                step, cost = newton.step(1 / or_one(r), v, c - idle, max_iter - n_iter)
                steps = 0
            else:
                step, cost = (b / c).log_(), 1
                steps += 1
            n_iter, last = n_iter + cost, error
            log_v = log_v + step.clamp_(-DRIFT, DRIFT)
            drift = _largest(log_v.abs())
            v = log_v.exp()
            for _ in range(2):  # once more where float64 takes over
                r, product = kernel.sweep(v, near=drift < NEAR)
                c = torch.addcmul(idle, v, product)
                errors = measure(c, b)
                # T is stochastic, so r = T v lies between the least and the largest v: it drifts no
                # further than v. The closer v is to 1, the less the products show of their rounding.
                error, blur = _largest(errors), base + 2 * kernel.rounding * min(1.0, drift)
                if error > max(goal, 5 * blur) or not kernel.sharpen():
                    break
            exact = error <= 5 * blur
            trusted = drift <= DRIFT and not exact
        g = g + eps * log_v
        if accelerate and drift > DRIFT and error > STALLED * began:
            g, cost = _further(kernel, g, eps * log_v, eps, max_iter - n_iter)
            n_iter += cost


def _further(kernel: DenseKernel, g: Tensor, d: Tensor, eps: float, limit: int) -> tuple[Tensor, int]:
    """Go on along d, in steps that double, as long as the semi-dual rises; returns g and the absorptions.

    Where groups of points exchange no mass yet at this ε, the semi-dual is a plane along the way from one
    to the other, and what the scalings can hold is a small part of that way.
    """
    rising, length, n = torch.ones_like(g[..., :1], dtype=torch.bool), 1.0, 0
    while rising.any() and n < min(limit, FURTHEST):
        trial = torch.where(rising, g + length * d, g)
        _, c = kernel.absorb(trial, eps, exact=False)
        rising = rising & (((kernel.b - c) * d).sum(-1, keepdim=True) > 0)
        g, length, n = torch.where(rising, trial, g), 2 * length, n + 1
    return g, n


def _largest(x: Tensor) -> float:
    return (x.max() if x.ndim else x).item()


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
        # A target without mass stays where it is, and does not shorten the step of the others.
        x = torch.where(b > 0, x - (b * x).sum(-1, keepdim=True), 0.0)
        t, trials = self._line_search(v, c, x, min(10, budget - cost))
        return t * x, cost + trials

    def _conjugate_gradients(self, u: Tensor, v: Tensor, c: Tensor, limit: int) -> tuple[Tensor, int, bool]:
        """S x = b − c, to a residual that keeps Newton fast."""
        kernel, b = self.kernel, self.kernel.b
        w = kernel.a * u * u
        # A column that got nothing yet counts with a tenth of its due.
        inverse = ratio(torch.ones_like(c), torch.maximum(c, 0.1 * b))
        accuracy = min(0.1, max(0.01, (b - c).abs().sum(-1).max().item()))

        def S(p: Tensor) -> Tensor:
            return c * p - v * kernel.gram(w, v * p)

        return conjugate_gradients(S, b - c, inverse, accuracy, limit)

    def _factorised(self, u: Tensor, v: Tensor, c: Tensor) -> Tensor:
        """S x = b − c by Cholesky; where rounding spoils the factor, an ascent direction all the same."""
        x, failed = cholesky_solve(self.kernel, u, v, self.kernel.b - c)
        return torch.where(failed, ratio(self.kernel.b - c, c), x)

    def _line_search(self, v: Tensor, c: Tensor, x: Tensor, limit: int) -> tuple[Tensor, int]:
        """A step t with D'(t) ≥ −½ D'(0), the approximate Wolfe condition of Hager and Zhang (2005).

        For a quadratic it is the condition of sufficient ascent, and unlike a difference of dual
        values it stays meaningful down to rounding. The first trial keeps within the drift.
        """
        kernel, b = self.kernel, self.kernel.b
        slope = ((b - c) * x).sum(-1, keepdim=True)
        t = ratio(torch.full_like(slope, 0.9 * DRIFT), x.abs().amax(-1, keepdim=True)).clamp(max=1.0)
        trials = 0
        while trials < limit:
            trials += 1
            w = v * (t * x).exp()
            _, product = kernel.sweep(w)
            new = ((b - w * product) * x).sum(-1, keepdim=True)
            over = new < -0.5 * slope
            if not over.any():
                break
            t = torch.where(over, t * ratio(slope, slope - new).clamp(0.1, 0.5), t)
        return t, trials
