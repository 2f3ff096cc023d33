"""Problems between two spaces: checked, solved one by one from every start, and put together again."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import _check
from .._check import ArrayLike
from .._envelope import attach
from .._result import ConvergenceWarning, OTResult
from ..costs import PointCloudCost
from ..exact import emd
from ._conditional import End
from ._quadratic import Quadratic, gradients
from ._space import LowRankCost, Space, finite, space

#: What solvers take as the costs within one space.
Structure = ArrayLike | PointCloudCost | LowRankCost


@dataclass(frozen=True)
class Problem:
    """Two spaces with weights and perhaps a ground cost between their features, in leading axes ``batch``."""

    X: Space
    Y: Space
    a: Tensor
    b: Tensor
    M: Tensor | None
    alpha: float
    batch: torch.Size

    def __iter__(self):
        """The problems of the batch, one by one."""
        if not self.batch:
            yield self
            return

        def flat(t: Tensor, own: int) -> Tensor:
            return t.expand(*self.batch, *t.shape[t.ndim - own :]).flatten(0, len(self.batch) - 1)

        spaces = [[flat(t, 2) for t in s.factors] for s in (self.X, self.Y)]
        a, b, M = flat(self.a, 1), flat(self.b, 1), None if self.M is None else flat(self.M, 2)
        for i in range(self.batch.numel()):
            X, Y = (
                replace(s, factors=tuple(t[i] for t in ts))
                for s, ts in zip((self.X, self.Y), spaces, strict=True)
            )
            yield Problem(X, Y, a[i], b[i], None if M is None else M[i], self.alpha, torch.Size())


def problem(
    Cx: Structure,
    Cy: Structure,
    a: ArrayLike | None,
    b: ArrayLike | None,
    M: ArrayLike | None = None,
    alpha: float = 1.0,
    weights: Callable[..., Tensor] = _check.weights,
) -> Problem:
    """The checked problem; lists and integers take the dtype of the first argument that has one."""
    like = _first_float(Cx, Cy, M, a, b)
    X = space(Cx, "Cx", like)
    like = X.factors[0]
    Y = space(Cy, "Cy", like)
    a, b = weights(a, X.n, "a", like=like), weights(b, Y.n, "b", like=like)
    shapes = {"Cx": X.batch, "Cy": Y.batch, "a": a.shape[:-1], "b": b.shape[:-1]}
    if M is not None:
        M = _check.tensor(M, "M", like=like)
        if M.shape[-2:] != (X.n, Y.n):
            raise ValueError(
                f"M must have shape (…, {X.n}, {Y.n}), one row a point of Cx and one column a point of Cy, "
                f"but has shape {tuple(M.shape)}"
            )
        finite(M, "M")
        shapes["M"] = M.shape[:-2]
    return Problem(X, Y, a, b, M, alpha, _check.batch(shapes))


def solve(
    descend: Callable[..., End],
    problem: Problem,
    *,
    n_restarts: int,
    generator: torch.Generator | None,
    tol: float,
    max_iter: int,
    callback: Any,
    finish: Callable[[Problem, Quadratic, End], OTResult] | None = None,
) -> OTResult:
    """Descend from every start, keep the best end, and measure its plan as it will be returned.

    ``descend(q, P, tol=…, max_iter=…, callback=…)`` leads from the plan P to an end.
    """
    tol = _check.positive(tol, "tol")
    max_iter = _check.positive_int(max_iter, "max_iter")
    n_restarts = _check.positive_int(n_restarts, "n_restarts")
    if n_restarts > 1 and generator is None:
        raise ValueError(
            f"n_restarts = {n_restarts} needs random couplings, but generator is None; "
            "pass generator=torch.Generator().manual_seed(0)"
        )
    if generator is not None:
        _check.generator(generator)
    results, worst, spent = [], 0.0, 0
    for single in problem:
        q = Quadratic(single.X, single.Y, single.a, single.b, single.M, single.alpha)
        ends = [
            descend(q, P, tol=tol, max_iter=max_iter, callback=callback)
            for P in _starts(q, n_restarts, generator)
        ]
        best = min(ends, key=lambda end: end.value.item())
        result = (finish or _finish)(single, q, replace(best, n_iter=sum(end.n_iter for end in ends)))
        # A plan is rounded to its dtype, and its marginals with it.
        wrong = 0.0 if finish else result.marginal_error.item() - torch.finfo(single.a.dtype).eps
        worst, spent = max((worst, spent), (max(best.rest, wrong), best.n_iter))
        results.append(replace(result, converged=max(best.rest, wrong) <= tol))
    if worst > tol:
        warnings.warn(
            f"the best start stopped after {spent} iterations, {worst:.2g} away from rest or from its "
            f"marginals for tol = {tol:g}: raise max_iter or tol",
            ConvergenceWarning,
            stacklevel=3,
        )
    return _stack(results, problem.batch)


def _finish(single: Problem, q: Quadratic, end: End) -> OTResult:
    """The result of one problem between couplings, with derivatives by the envelope theorem."""
    X, Y, M, dtype = single.X, single.Y, single.M, single.a.dtype
    plan, f, g = (t.to(dtype) for t in (end.P, end.f, end.g))
    rows, columns = (plan.sum(axis, dtype=end.P.dtype) for axis in (1, 0))

    def derivatives() -> tuple[Tensor | None, ...]:
        in_M = None if M is None else (1 - single.alpha) * end.P
        return (*gradients(X, Y, end.P, single.alpha), end.f, end.g, in_M)

    inputs = (*X.factors, *Y.factors, single.a, single.b, M)
    return OTResult(
        value=attach(end.value.to(dtype), inputs, derivatives, "Gromov–Wasserstein transport"),
        cost=end.cost.to(dtype),
        f=f,
        g=g,
        n_iter=end.n_iter,
        marginal_error=((rows - q.a).abs().sum() + (columns - q.b).abs().sum()).to(dtype),
        converged=True,
        _plan=plan,
    )


def _stack(results: list[OTResult], batch: torch.Size) -> OTResult:
    if not batch:
        return results[0]

    def stack(name: str) -> Tensor:
        t = torch.stack([getattr(result, name) for result in results])
        return t.reshape(*batch, *t.shape[1:])

    return OTResult(
        *(stack(name) for name in ("value", "cost", "f", "g")),
        n_iter=sum(result.n_iter for result in results),
        marginal_error=stack("marginal_error"),
        converged=all(result.converged for result in results),
        _plan=stack("plan"),
    )


def _starts(q: Quadratic, n_restarts: int, generator: torch.Generator | None) -> list[Tensor]:
    """The coupling a⊗b, then random ones: extreme points of the set of couplings, half-way back to a⊗b."""
    starts = [q.outer]
    for _ in range(n_restarts - 1):
        C = torch.rand(q.outer.shape, generator=generator, device=generator.device, dtype=q.outer.dtype)
        starts.append((q.outer + emd(C.to(q.outer.device), q.a, q.b).plan) / 2)
    return starts


def _first_float(*arguments: Structure | None) -> Tensor | None:
    """The first argument with a floating dtype of its own, which lists and integers then take on."""
    for argument in arguments:
        if isinstance(argument, PointCloudCost | LowRankCost):
            return argument.x if isinstance(argument, PointCloudCost) else argument.A
        if isinstance(argument, Tensor | np.ndarray):
            t = torch.as_tensor(argument)
            if t.is_floating_point():
                return t
    return None
