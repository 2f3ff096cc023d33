"""Conditional gradient: down a quadratic objective by one linear transport problem after the other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..exact import emd
from ._quadratic import Quadratic

#: Called with the iteration, the objective and the quantity that is to fall below the tolerance.
Callback = Callable[[int, float, float], None]

#: Parts of a plan below this weight are rounding errors.
LIGHT = 1e-14


@dataclass(frozen=True)
class End:
    """Where a start led: the plan, its potentials, objective and transport cost, and what is to be ≤ tol."""

    P: Tensor
    f: Tensor
    g: Tensor
    value: Tensor
    cost: Tensor
    rest: float
    n_iter: int


def conditional_gradient(
    q: Quadratic, P: Tensor, *, tol: float, max_iter: int, callback: Callback | None
) -> End:
    """Conditional gradient with away steps: P is kept as a convex combination of extreme couplings.

    A step goes towards the solution of the linear problem, or away from the worst part of P where that
    is steeper; without the latter, plans that are not extreme are approached in ever smaller zigzags
    (Lacoste-Julien and Jaggi 2015, algorithm 1). The step length is exact.
    """
    parts, weights = [(P, q.product(P))], [1.0]
    n_iter = 0
    while True:
        P, S = (sum(w * t for w, t in zip(weights, ts, strict=True)) for ts in zip(*parts, strict=True))
        G = q.gradient(S)
        linear = emd(G, q.a, q.b)
        new = linear.plan, q.product(linear.plan)
        level = (G * P).sum().item()
        gap = max(level - (G * linear.plan).sum().item(), 0.0)
        slopes = [(G * part).sum().item() - level for part, _ in parts]
        worst = max(range(len(parts)), key=slopes.__getitem__)
        towards = gap >= slopes[worst]
        if towards:
            slope, longest, D, SD = gap, 1.0, new[0] - P, new[1] - S
        else:
            # The longest step takes the worst part out altogether.
            slope, longest = slopes[worst], weights[worst] / (1 - weights[worst])
            D, SD = P - parts[worst][0], S - parts[worst][1]
        # F(P + tD) = F(P) − slope t + curvature t², since D has no mass in any row or column.
        curvature = -q.alpha * (SD * D).sum().item()
        step = slope / (2 * curvature) if 2 * curvature * longest > slope else longest
        # Where all directions look alike (gap 0), the curvature may still lead down.
        gain = max(gap, step * (slope - step * curvature))
        value = q.value(P, S)
        if callback:
            callback(n_iter, value.item(), gain)
        if gain <= tol * q.scale or n_iter == max_iter:
            return End(P, linear.f, linear.g, value, value, gain / q.scale, n_iter)
        n_iter += 1
        if towards:
            weights = [w * (1 - step) for w in weights]
            known = [k for k, (part, _) in enumerate(parts) if torch.equal(part, new[0])]
            if known:
                weights[known[0]] += step
            else:
                parts, weights = [*parts, new], [*weights, step]
        else:
            weights = [w * (1 + step) for w in weights]
            weights[worst] -= step
        kept = [(w, part) for w, part in zip(weights, parts, strict=True) if w > LIGHT]
        total = sum(w for w, _ in kept)
        weights, parts = [w / total for w, _ in kept], [part for _, part in kept]
