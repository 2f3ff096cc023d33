"""B3: a thousand small entropic problems in one call, in float64."""

from __future__ import annotations

from collections.abc import Iterator

import torch

import otbook

from .harness import Competitor, race, table, timed
from .peers import affordable

TOLERANCE = 1e-6


def competitors(problems: int, n: int, scale: float) -> list[Competitor]:
    generator = torch.Generator().manual_seed(problems)
    x, y = (torch.randn(problems, n, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    C = otbook.costs.sqeuclidean(x, y + 0.5)
    w = torch.full((problems, n), 1 / n, dtype=torch.float64)
    eps = scale * C.mean().item()

    def error(P) -> float:
        """That of the worst problem."""
        P = torch.as_tensor(P).double()
        return float(((P.sum(-1) - w).abs().sum(-1) + (P.sum(-2) - w).abs().sum(-1)).max())

    def ours(_: float):
        def solve(level: int):
            result = otbook.sinkhorn(C, eps=eps, tol=TOLERANCE / 2**level)
            return result, result.plan

        return solve

    def pot_batch(method: str):
        def prepare(_: float):
            from ot.batch import solve_batch

            def on(C, w):
                return lambda level: (
                    solve_batch(C, eps, w, w, max_iter=level, tol=0.0, method=method, grad="detach").plan
                )

            numpy, torches = on(C.numpy(), w.numpy()), on(C, w)
            return min((numpy, torches), key=lambda call: (call(1), timed(call, 5)[0])[1])

        return prepare

    def pot_loop(_: float):
        import numpy as np
        import ot

        costs, weights = C.numpy(), w[0].numpy()

        def solve(level: int):
            plans = [ot.sinkhorn(weights, weights, c, eps, numItermax=level, stopThr=0) for c in costs]
            return np.stack(plans)

        return solve

    def ott(patience: float):
        import jax
        import jax.numpy as jnp
        from ott.geometry import geometry
        from ott.solvers import linear

        jax.config.update("jax_enable_x64", True)

        costs = jnp.asarray(C.numpy())

        def compiled(iterations: int):
            def one(cost, threshold):
                made = geometry.Geometry(cost_matrix=cost, epsilon=eps)
                return linear.solve(made, threshold=threshold, max_iterations=iterations).matrix

            ready = jax.jit(jax.vmap(one, in_axes=(0, None))).lower(costs, TOLERANCE).compile()
            return lambda tol: jax.block_until_ready(ready(costs, tol))

        solve = compiled(affordable(compiled(10), patience))
        return lambda level: solve(TOLERANCE / 2**level)

    def ott_error(P) -> float:
        import numpy as np

        return error(np.array(P))

    return [
        Competitor(
            "otbook.sinkhorn", ours, lambda r: error(r[1]), level="tightness", count=lambda r: r[0].n_iter
        ),
        Competitor("POT solve_batch, sinkhorn", pot_batch("sinkhorn"), error),
        Competitor("POT solve_batch, log_sinkhorn", pot_batch("log_sinkhorn"), error),
        Competitor("POT sinkhorn in a loop, NumPy", pot_loop, error),
        Competitor("OTT under vmap", ott, ott_error, level="tightness", count=lambda _: 0),
    ]


def run(quick: bool, patience: float = 10.0) -> Iterator[str]:
    """One table for each ε; times include the plans."""
    problems, n = (50, 16) if quick else (1000, 32)
    for scale in (0.1,) if quick else (0.1, 0.02):
        rows = race(competitors(problems, n, scale), tol=TOLERANCE, patience=patience)
        yield table(f"B3  {problems} problems of {n} × {n}, ε = {scale:g}·mean(C)", rows, tol=TOLERANCE)
