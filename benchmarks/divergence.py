"""B4: the Sinkhorn divergence and its gradient in the first cloud, in float32."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import torch

import otbook

from . import memory
from .harness import Competitor, race, table
from .peers import Clouds, constant

#: Largest relative error of the value, and of the gradient in the norm of all its entries.
TOLERANCE = 1e-3


@cache
def _reference(n: int, d: int, scale: float) -> tuple[float, torch.Tensor]:
    """Value and gradient in float64, to a marginal error of 1e-9."""
    p = Clouds.normal(n, d, scale, 1e-9, torch.float32)
    return _ours(p.x.double(), p.y.double(), p.eps, p.tol)


def _ours(x: torch.Tensor, y: torch.Tensor, eps: float, tol: float) -> tuple[float, torch.Tensor]:
    x = x.clone().requires_grad_()
    value = otbook.sinkhorn_divergence(x, y, eps=eps, tol=tol)
    return value.item(), torch.autograd.grad(value, x)[0]


def competitors(n: int, d: int, scale: float) -> list[Competitor]:
    p = Clouds.normal(n, d, scale, TOLERANCE, torch.float32)

    def error(result) -> float:
        value, gradient = _reference(n, d, scale)
        g = torch.as_tensor(result[1]).double()
        return max(abs(float(result[0]) / value - 1), float((g - gradient).norm() / gradient.norm()))

    def ours(_: float):
        # The marginal error that makes value and gradient right to the tolerance is found by tightening.
        return lambda level: _ours(p.x, p.y, p.eps, 10.0 ** -(2 + level))

    def geomloss(backend: str):
        def prepare(_: float):
            from geomloss import SamplesLoss

            def solve(level: int):
                x = p.x.clone().requires_grad_()
                value = 2 * SamplesLoss("sinkhorn", **constant(p.eps, level), backend=backend)(x, p.y)
                return value.item(), torch.autograd.grad(value, x)[0]

            return solve

        return prepare

    def ott(lazy: bool):
        def prepare(_: float):
            import jax
            import jax.numpy as jnp
            from ott.geometry import pointcloud
            from ott.tools import sinkhorn_divergence

            jax.config.update("jax_enable_x64", False)

            def loss(x, y, threshold):
                return sinkhorn_divergence.sinkhorn_divergence(
                    pointcloud.PointCloud,
                    x,
                    y,
                    epsilon=p.eps,
                    batch_size=1000 if lazy else None,
                    solve_kwargs={"threshold": threshold, "max_iterations": 2000},
                )[0]

            x, y = jnp.asarray(p.x.numpy()), jnp.asarray(p.y.numpy())
            ready = jax.jit(jax.value_and_grad(loss)).lower(x, y, 1e-2).compile()

            def solve(level: int):
                import numpy as np

                value, gradient = jax.block_until_ready(ready(x, y, 10.0 ** -(2 + level)))
                return float(value), np.array(gradient)

            return solve

        return prepare

    def pot(_: float):
        import ot

        def solve(level: int):
            x = p.x.clone().requires_grad_()

            def value(u, v):
                C, w = torch.cdist(u, v).square(), torch.full((n,), 1 / n)
                result = ot.solve(C, w, w, reg=p.eps, max_iter=level, tol=0, grad="envelope")
                return result.value

            divergence = value(x, p.y) - (value(x, x) + value(p.y, p.y)) / 2
            return divergence.item(), torch.autograd.grad(divergence, x)[0]

        return solve

    return [
        Competitor("otbook.sinkhorn_divergence", ours, error, level="tightness", count=lambda _: 0),
        Competitor("GeomLoss tensorized, constant ε", geomloss("tensorized"), error),
        Competitor("GeomLoss online, constant ε", geomloss("online"), error),
        Competitor("OTT sinkhorn_divergence", ott(False), error, level="tightness", count=lambda _: 0),
        Competitor("OTT sinkhorn_divergence, online", ott(True), error, level="tightness", count=lambda _: 0),
        Competitor("POT solve, envelope gradients, 3 calls", pot, error),
    ]


def run(quick: bool, patience: float = 5.0) -> Iterator[str]:
    """One table for each size and ε."""
    for n, scale in ((100, 0.1),) if quick else ((2000, 0.1), (2000, 0.01), (5000, 0.1), (5000, 0.01)):
        rows = race(competitors(n, 3, scale), tol=TOLERANCE, patience=patience)
        if not quick and scale == 0.1:
            memory.measure(rows, __name__, (n, 3, scale), (100, 3, scale))
        yield table(
            f"B4  n = {n}, d = 3, ε = {scale:g}·mean(C), value and gradient, error relative",
            rows,
            tol=TOLERANCE,
        )
