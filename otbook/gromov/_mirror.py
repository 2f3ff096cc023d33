"""Mirror descent for entropic Gromov–Wasserstein transport, as a fixed point that is extrapolated.

A plan is stationary if it solves the linear entropic problem whose cost is the gradient at itself:
C = ∇E(P(C)), for P(C) the entropic plan of the cost C. The iteration C ← C + θ (∇E(P(C)) − C) is mirror
descent with steps of length θ/ε: with θ = 1 that of Peyré, Cuturi and Solomon (2016).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ._conditional import Callback, End

#: Differences that are kept for the extrapolation, and how close to rest it begins: further away it
#: might lead into another valley than the descent. n = 300, ε = 0.01 max ∇E: 34 iterations instead of 334.
DEPTH, NEAR = 5, 0.1

#: Marginals of the inner problems: right to this share of the distance from rest, and to this at least.
#: With a share of 0.1 the errors spoil the extrapolation: up to ten times the iterations. They cost the
#: objective about ε (1 + rest) each, and are kept below its last decrease, so that a plan that goes to and
#: fro is told from one that goes down.
SHARE, COARSE = 0.01, 1e-3


@dataclass(frozen=True)
class Response:
    """The plan P(C) of mass 1, its potentials, objective and cost, and R = ∇E(P) − C where it matters.

    ``rest`` is how far the next plan goes in ‖·‖₁ at most: to first order its logarithm differs by −R/ε
    less a projection, so that this is (Σ P R²)^½/ε.
    """

    P: Tensor
    f: Tensor
    g: Tensor
    value: Tensor
    cost: Tensor
    residual: Tensor
    rest: Tensor


class Map(Protocol):
    """C ↦ P(C). Costs and residuals may be given in any linear coordinates, a tensor."""

    def __call__(self, C: Tensor, accuracy: float) -> Response: ...

    def metric(self, residuals: Tensor) -> Tensor:
        """Residuals (k, …) in the form in which their products with others sum to inner products."""
        ...


def distance(P: Tensor, squares: Tensor) -> Tensor:
    """(Σ P R²)^½, from R²."""
    return (P.flatten() @ squares.flatten()).sqrt()


def mirror_descent(
    respond: Map,
    C: Tensor,
    *,
    eps: float,
    scale: float,
    tol: float,
    max_iter: int,
    callback: Callback | None,
) -> End:
    """Iterate C ← C + θ R, R = ∇E(P(C)) − C, from the cost C on, extrapolated once it is near its limit.

    Stops when the next plan is within tol of P in ‖·‖₁. Should the objective rise, an extrapolated step
    is taken back; a plain one is halved.
    """
    history, theta, rest, drop = History(C, respond.metric), 1.0, math.inf, math.inf
    best, start, known, extrapolated = None, C, 0.0, False
    exact = max(SHARE * tol, 100 * torch.finfo(C.dtype).eps)
    for n_iter in range(1, max_iter + 1):
        accuracy = max(min(COARSE, SHARE * rest, 0.3 * drop / (eps * (1 + rest))), exact)
        trial = respond(C, accuracy)
        # Marginals that are wrong by δ leave the objective uncertain by ⟨R, ΔP⟩, about δ ε (1 + rest).
        slack = eps * (known * (1 + rest) + accuracy * (1 + trial.rest)) + 1e-13 * scale
        if best and trial.value > best.value + slack:
            if extrapolated:
                C = start + theta * best.residual
            elif known > exact:
                # Was it the step, or did the plan before it look too good? Look again, exactly.
                C, best, drop = start, None, 0.0
            else:
                theta /= 2
                C = start + theta * best.residual
            history, extrapolated = History(C, respond.metric), False
            continue
        if best:
            drop = best.value.item() - trial.value.item()
        best, start, known = trial, C, accuracy
        rest = best.rest.item()
        if callback:
            callback(n_iter, best.value.item(), rest)
        if rest <= tol and accuracy <= tol:
            break
        extrapolated = rest < NEAR
        C = history.extrapolate(C, best.residual, theta) if extrapolated else C + theta * best.residual
    best = best or trial
    return End(best.P, best.f, best.g, best.value, best.cost, rest, n_iter)


class History:
    """Anderson's extrapolation of a fixed-point iteration (Walker and Ni 2011, section 2).

    The last steps dC changed the residual by dR. Where the combination Σ_k c_k dR_k comes closest to the
    residual R in the metric, the step C + θR − Σ_k c_k (dC_k + θ dR_k) would undo it, were all linear.
    """

    def __init__(self, like: Tensor, metric: Callable[[Tensor], Tensor]) -> None:
        self.last, self.count, self.metric = None, 0, metric
        self.dC, self.dR = (like.new_empty(DEPTH, *like.shape) for _ in range(2))

    def extrapolate(self, C: Tensor, R: Tensor, theta: float) -> Tensor:
        """The next C; falls back to C + θR while nothing is known."""
        if self.last:
            k = self.count % DEPTH
            for kept, new, old in zip((self.dC, self.dR), (C, R), self.last, strict=True):
                torch.sub(new, old, out=kept[k])
            self.count += 1
        self.last = C, R
        dC, dR = (t[: min(self.count, DEPTH)].flatten(1) for t in (self.dC, self.dR))
        weighted = self.metric(self.dR[: len(dR)]).flatten(1)
        gram, right = weighted @ dR.T, weighted @ R.flatten()
        size = gram.diagonal().sqrt()
        size = torch.where(size > 0, size, 1.0)
        gram = gram / size / size[:, None]
        gram.diagonal().add_(1e-12)
        c = torch.linalg.solve(gram, right / size) / size
        return C + theta * R - (c @ dC + theta * (c @ dR)).view_as(C)
