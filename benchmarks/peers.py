"""The entropic solvers of other libraries on two clouds, each at its best settings and imported on use.

Every function returns a :class:`Competitor` for a :class:`Clouds` problem. All are held to one measure, the
L1 error of both marginals of the plan that their output stands for, computed in float64 outside the timing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

import otbook

from .harness import Competitor, timed


@dataclass
class Clouds:
    """Two clouds with uniform weights, ‖x − y‖² and ε; ``sample`` rows and columns stand for all if given."""

    x: Tensor
    y: Tensor
    eps: float
    tol: float
    sample: int | None = None

    @classmethod
    def normal(
        cls, n: int, d: int, scale: float, tol: float, dtype: torch.dtype, sample: int | None = None
    ) -> Clouds:
        """Standard normal points, the second cloud moved by ½ in every coordinate, ε = scale·mean(C)."""
        generator = torch.Generator().manual_seed(n)
        x, y = (torch.randn(n, d, generator=generator, dtype=torch.float64) for _ in range(2))
        y = y + 0.5
        mean = x.square().sum(1).mean() + y.square().sum(1).mean() - 2 * x.mean(0) @ y.mean(0)
        return cls(x.to(dtype), y.to(dtype), scale * mean.item(), tol, sample)

    @cached_property
    def C(self) -> Tensor:
        return otbook.costs.sqeuclidean(self.x, self.y)

    @cached_property
    def w(self) -> Tensor:
        return self.x.new_full((self.x.shape[0],), 1 / self.x.shape[0])

    def plan_error(self, P: Tensor) -> float:
        """‖P1 − a‖₁ + ‖Pᵀ1 − b‖₁ of a stored plan."""
        P = torch.as_tensor(P).double()
        return float((P.sum(1) - 1 / P.shape[0]).abs().sum() + (P.sum(0) - 1 / P.shape[1]).abs().sum())

    def dual_error(self, f: Tensor, g: Tensor) -> float:
        """The same for P_ij = exp((f_i + g_j − C_ij)/ε)/n², in blocks of rows."""
        f, g = (torch.as_tensor(t).detach().flatten().double().to(self.x.device) for t in (f, g))
        x, y = self.x.double(), self.y.double()
        if self.sample is None:
            columns, error = torch.zeros_like(g), 0.0
            for rows in torch.arange(len(f), device=f.device).split(max(1, 4_000_000 // len(g))):
                P = self._rows(x[rows], y, f[rows], g)
                columns += P.sum(0)
                error += float((P.sum(1) - 1 / len(f)).abs().sum())
            return error + float((columns - 1 / len(g)).abs().sum())
        # Every row counts alike, so the mean over random ones estimates the sum without bias.
        chosen = torch.randperm(len(f), generator=torch.Generator().manual_seed(0))[: self.sample].to(
            f.device
        )
        total = 0.0
        for rows in chosen.split(max(1, 4_000_000 // len(g))):
            total += float((self._rows(x[rows], y, f[rows], g).sum(1) - 1 / len(f)).abs().sum())
            total += float((self._rows(y[rows], x, g[rows], f).sum(1) - 1 / len(g)).abs().sum())
        return total * len(f) / len(chosen)

    def _rows(self, x: Tensor, y: Tensor, f: Tensor, g: Tensor) -> Tensor:
        C = otbook.costs.sqeuclidean(x, y)
        return ((f[:, None] + g - C) / self.eps).exp() / (len(self.x) * len(self.y))


def ours(p: Clouds, *, lazy: bool) -> Competitor:
    """`otbook.sinkhorn`; on a stored cost it also forms the plan, which POT's functions return."""

    def prepare(_: float):
        C = otbook.costs.PointCloudCost(p.x, p.y) if lazy else p.C

        def solve(level: int):
            result = otbook.sinkhorn(C, eps=p.eps, tol=p.tol / 2**level)
            return result if lazy else (result, result.plan)

        return solve

    return Competitor(
        "otbook.sinkhorn" + (", PointCloudCost" if lazy else ""),
        prepare,
        (lambda r: p.dual_error(r.f, r.g)) if lazy else (lambda r: p.plan_error(r[1])),
        level="tightness",
        count=(lambda r: r.n_iter) if lazy else (lambda r: r[0].n_iter),
    )


def pot(p: Clouds, method: str) -> Competitor:
    """`ot.sinkhorn` on a stored cost, on the faster of its NumPy and PyTorch backends."""

    def prepare(_: float):
        import ot

        def on(C, w):
            return lambda level: ot.sinkhorn(w, w, C, p.eps, method=method, numItermax=level, stopThr=0)

        return _faster(on(p.C, p.w), on(p.C.numpy(), p.w.numpy()))

    return Competitor(f"POT {method}", prepare, p.plan_error)


def pot_lazy(p: Clouds) -> Competitor:
    """`ot.bregman.empirical_sinkhorn`, matrix-free, on the faster of its backends."""

    def prepare(_: float):
        import ot

        def on(x, y):
            return lambda level: ot.bregman.empirical_sinkhorn(
                x, y, p.eps, numIterMax=level, stopThr=0, isLazy=True, batchSize=1000, log=True
            )[2]

        return _faster(on(p.x, p.y), on(p.x.numpy(), p.y.numpy()))

    def error(log) -> float:
        # The potentials of a plan exp(u + v − C/ε), without the weights a⊗b.
        u, v = (torch.as_tensor(log[key]).double() for key in "uv")
        shift = math.log(len(p.x))
        return p.dual_error(p.eps * (u + shift), p.eps * (v + shift))

    return Competitor("POT empirical_sinkhorn, lazy", prepare, error)


def _faster(*calls):
    for call in calls:
        call(1)
    return min(calls, key=lambda call: timed(call, 3)[0])


def geomloss(p: Clouds, backend: str) -> Competitor:
    """GeomLoss on stored costs (``tensorized``) or matrix-free through KeOps (``online``), at constant ε.

    It cannot be stopped at a tolerance. Its annealing from the diameter down to the blur leaves an error
    like 1/steps; told that the diameter is the blur, it takes as many steps as the level says at constant ε,
    which converges linearly.
    """

    def prepare(_: float):
        from geomloss import SamplesLoss

        def solve(level: int):
            loss = SamplesLoss(
                "sinkhorn", **constant(p.eps, level), debias=False, potentials=True, backend=backend
            )
            return loss(p.x, p.y)

        return solve

    # Its cost is ½‖x − y‖², so are its potentials.
    return Competitor(f"GeomLoss {backend}, constant ε", prepare, lambda r: p.dual_error(2 * r[0], 2 * r[1]))


def constant(eps: float, steps: int) -> dict[str, float]:
    """GeomLoss's parameters for so many steps at ε; ``scaling`` must be below 1, hence the margin."""
    blur, margin = math.sqrt(eps / 2), 1e-6
    return {"blur": blur, "diameter": blur * math.exp(margin), "scaling": math.exp(-margin / steps)}


def flash(p: Clouds) -> Competitor:
    """flash-sinkhorn, for CUDA, at constant ε and without TF32, whose rounding the tolerance would notice."""

    def prepare(_: float):
        from flash_sinkhorn import SamplesLoss

        def solve(level: int):
            loss = SamplesLoss(
                "sinkhorn",
                blur=math.sqrt(p.eps),
                use_epsilon_scaling=False,
                eps=p.eps,
                n_iters=level,
                debias=False,
                potentials=True,
                allow_tf32=False,
            )
            return loss(p.x, p.y)

        return solve

    return Competitor("flash-sinkhorn, constant ε", prepare, lambda r: p.dual_error(r[0], r[1]))


def ott(p: Clouds, *, lazy: bool, log: bool = True) -> Competitor:
    """OTT-JAX, compiled ahead, with adaptive momentum; in its log or its kernel domain."""

    def prepare(patience: float):
        import jax
        import jax.numpy as jnp
        from ott.geometry import geometry, pointcloud
        from ott.problems.linear import linear_problem
        from ott.solvers.linear import acceleration, sinkhorn

        jax.config.update("jax_enable_x64", p.x.dtype == torch.float64)
        if lazy:
            made = pointcloud.PointCloud(
                jnp.asarray(p.x.numpy()), jnp.asarray(p.y.numpy()), epsilon=p.eps, batch_size=1000
            )
        else:
            made = geometry.Geometry(cost_matrix=jnp.asarray(p.C.numpy()), epsilon=p.eps)
        problem = linear_problem.LinearProblem(made)

        def compiled(iterations: int):
            def run(problem, threshold):
                solver = sinkhorn.Sinkhorn(
                    lse_mode=log,
                    threshold=threshold,
                    max_iterations=iterations,
                    momentum=acceleration.Momentum(start=40),
                )
                return solver(problem)

            # The error is monitored in float32 or float64 of the data, like the rest.
            ready = jax.jit(run).lower(problem, p.tol).compile()
            return lambda tol: jax.block_until_ready(ready(problem, tol))

        solve = compiled(affordable(compiled(10), patience))
        return lambda level: solve(p.tol / 2**level)

    def error(out) -> float:
        import numpy as np

        # P = exp((f + g − C)/ε), without the weights a⊗b.
        shift = p.eps * math.log(len(p.x))
        f, g = (torch.from_numpy(np.array(t)).double() + shift for t in (out.f, out.g))
        return p.dual_error(f, g)

    kind = "online" if lazy else "log domain" if log else "kernel domain"
    return Competitor(
        f"OTT {kind}, adaptive momentum",
        prepare,
        error,
        level="tightness",
        count=lambda out: int(out.n_iters),
    )


def affordable(ten: Callable[[float], object], patience: float) -> int:
    """How many iterations fit into the patience, given a solver that takes ten at tolerance 0."""
    return 10 * math.ceil(min(max(patience / timed(ten, 0.0)[0], 5.0), 1e4))
