"""B6: the sliced Wasserstein distance of order 2, 100 projections, in float32."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

import otbook

from . import memory
from .harness import Competitor, race, table

PROJECTIONS = 100
DIMENSION = 3
#: The second cloud is stretched by 2 and moved by ½ along the first axis.
STRETCH, SHIFT = 2.0, 0.5


def exact() -> float:
    """SW₂² of the two normal distributions: the mean over θ of (θ·shift)² + (1 − stretch)²."""
    return SHIFT**2 / DIMENSION + (1 - STRETCH) ** 2


def tolerance(n: int) -> float:
    """Four standard errors of the estimate of SW₂², relative: from the directions and from the samples.

    (θ·e)⁴ has mean 3/(d(d + 2)), which gives the variance over directions; mean and deviation of n samples
    move W₂² by about 2 SHIFT √((1 + s²)/n) + 2 (s − 1) √((1 + s²)/(2n)) per standard error.
    """
    d, s = DIMENSION, STRETCH
    directions = SHIFT**2 * math.sqrt((3 / (d * (d + 2)) - 1 / d**2) / PROJECTIONS)
    samples = (2 * SHIFT + math.sqrt(2) * (s - 1)) * math.sqrt((1 + s**2) / n)
    return 4 * (directions + samples) / exact()


def competitors(n: int) -> list[Competitor]:
    generator = torch.Generator().manual_seed(n)
    x, y = (torch.randn(n, DIMENSION, generator=generator) for _ in range(2))
    y = STRETCH * y
    y[:, 0] += SHIFT

    def error(distance) -> float:
        return abs(float(distance) ** 2 / exact() - 1)

    def ours(_: float):
        return lambda level: otbook.sliced_wasserstein(
            x, y, n_projections=PROJECTIONS, generator=torch.Generator().manual_seed(0)
        )

    def pot(points):
        def prepare(_: float):
            import ot

            u, v = points(x), points(y)
            return lambda level: ot.sliced_wasserstein_distance(u, v, n_projections=PROJECTIONS, seed=0)

        return prepare

    def ott(_: float):
        import jax
        import jax.numpy as jnp
        from ott.tools import sliced

        jax.config.update("jax_enable_x64", False)
        u, v, key = jnp.asarray(x.numpy()), jnp.asarray(y.numpy()), jax.random.PRNGKey(0)

        def distance(u, v):
            return sliced.sliced_wasserstein(u, v, n_proj=PROJECTIONS, rng=key)[0]

        ready = jax.jit(distance).lower(u, v).compile()
        return lambda level: float(jax.block_until_ready(ready(u, v))) ** 0.5

    kind = {"level": "none", "count": lambda _: 0}
    return [
        Competitor("otbook.sliced_wasserstein", ours, error, **kind),
        Competitor("POT sliced_wasserstein_distance, NumPy", pot(lambda t: t.numpy()), error, **kind),
        Competitor("POT sliced_wasserstein_distance, PyTorch", pot(lambda t: t), error, **kind),
        Competitor("OTT sliced_wasserstein", ott, error, **kind),
    ]


def run(quick: bool, patience: float = 30.0) -> Iterator[str]:
    """One table for each size."""
    for n in (2000,) if quick else (10_000, 100_000, 1_000_000):
        tol = tolerance(n)
        rows = race(competitors(n), tol=tol, runs=5 if n < 1_000_000 else 3, patience=patience)
        if n == 100_000:
            memory.measure(rows, __name__, (n,), (1000,))
        yield table(
            f"B6  n = {n}, d = {DIMENSION}, {PROJECTIONS} projections, error of SW₂² against the closed form",
            rows,
            tol=tol,
        )
