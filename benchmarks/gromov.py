"""B7: entropic Gromov–Wasserstein transport, in float64."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import torch

import otbook

from . import memory
from .harness import Competitor, race, table

#: How far the plan may be, in L1, from the entropic plan of the cost linearised at it.
TOLERANCE = 1e-5

#: OTT linearises E at P without the factor 2 of its gradient, so its ε is half of ours.
OTT_FACTOR = 0.5


class Spaces:
    """Two clouds of different shape, compared through their squared distances."""

    def __init__(self, n: int, scale: float) -> None:
        generator = torch.Generator().manual_seed(n)
        self.x = torch.randn(n, 2, generator=generator, dtype=torch.float64)
        y = torch.randn(n, 3, generator=generator, dtype=torch.float64)
        self.y = y * torch.tensor([1.5, 0.7, 0.4], dtype=torch.float64)
        self.x = self.x * torch.tensor([1.3, 0.6], dtype=torch.float64)
        self.Cx = otbook.costs.sqeuclidean(self.x, self.x)
        self.Cy = otbook.costs.sqeuclidean(self.y, self.y)
        self.w = torch.full((n,), 1 / n, dtype=torch.float64)
        self.eps = scale * (self.Cx.square().mean() + self.Cy.square().mean()).item()

    def gradient(self, P: torch.Tensor) -> torch.Tensor:
        """∇E(P) of E(P) = Σ |Cx_ik − Cy_jl|² P_ij P_kl, for symmetric costs."""
        squares = self.Cx.square() @ P.sum(1)
        return 2 * (squares[:, None] + self.Cy.square() @ P.sum(0) - 2 * self.Cx @ P @ self.Cy)

    def error(self, P) -> float:
        """‖P − argmin_Q ⟨∇E(P), Q⟩ + ε KL(Q ‖ a⊗b)‖₁: zero at a stationary point, and only there."""
        P = torch.as_tensor(P).double()
        Q = otbook.sinkhorn(self.gradient(P), eps=self.eps, tol=TOLERANCE / 100).plan
        return float((P - Q).abs().sum())


def competitors(n: int, scale: float) -> list[Competitor]:
    s = Spaces(n, scale)

    def ours(lazy: bool):
        def prepare(_: float):
            C = [otbook.costs.PointCloudCost(p, p) for p in (s.x, s.y)] if lazy else [s.Cx, s.Cy]

            def solve(level: int):
                result = otbook.entropic_gromov_wasserstein(*C, eps=s.eps, tol=TOLERANCE / 2**level)
                return result.plan, result.n_iter

            return solve

        return prepare

    def pot(convert):
        def prepare(_: float):
            import ot

            C, w = [convert(s.Cx), convert(s.Cy)], convert(s.w)

            def solve(level: int):
                # The inner problems stop where they no longer matter (in L2). Its warm start gives NaN here.
                stop = {"stopThr": TOLERANCE / 10 / n**0.5, "numItermax": 10_000}
                return ot.gromov.entropic_gromov_wasserstein(
                    *C, w, w, epsilon=s.eps, max_iter=level, tol=0, **stop
                )

            return solve

        return prepare

    def ott(_: float):
        import jax
        import jax.numpy as jnp
        from ott.geometry import geometry
        from ott.solvers import quadratic

        jax.config.update("jax_enable_x64", True)
        Cx, Cy = (jnp.asarray(C.numpy()) for C in (s.Cx, s.Cy))

        @cache
        def compiled(iterations: int):
            def solve(Cx, Cy):
                made = [geometry.Geometry(cost_matrix=C) for C in (Cx, Cy)]
                out = quadratic.solve(
                    *made,
                    epsilon=OTT_FACTOR * s.eps,
                    max_iterations=iterations,
                    min_iterations=iterations,
                    threshold=0.0,
                    relative_epsilon=None,
                    linear_solver_kwargs={"threshold": TOLERANCE / 10, "max_iterations": 5000},
                )
                return out.matrix

            return jax.jit(solve).lower(Cx, Cy).compile()

        def solve(level: int):
            return jax.block_until_ready(compiled(level)(Cx, Cy))

        solve.ready = compiled
        return solve

    def from_jax(P) -> float:
        import numpy as np

        return s.error(np.array(P))

    count = {"level": "tightness", "count": lambda r: r[1]}
    return [
        Competitor("otbook, costs stored", ours(False), lambda r: s.error(r[0]), **count),
        Competitor("otbook, costs of rank d + 2", ours(True), lambda r: s.error(r[0]), **count),
        Competitor("POT PGD, NumPy", pot(lambda t: t.numpy()), s.error),
        Competitor("POT PGD, PyTorch", pot(lambda t: t), s.error),
        Competitor("OTT GromovWasserstein", ott, from_jax),
    ]


def run(quick: bool, patience: float = 8.0) -> Iterator[str]:
    """One table for each size and ε."""
    for n, scale in ((40, 0.1),) if quick else ((300, 0.1), (300, 0.02), (1000, 0.1), (1000, 0.02)):
        rows = race(competitors(n, scale), tol=TOLERANCE, patience=patience)
        if not quick and scale == 0.1:
            memory.measure(rows, __name__, (n, scale), (40, scale))
        yield table(f"B7  n = {n}, ε = {scale:g}·mean(Cx² + Cy²), error of stationarity", rows, tol=TOLERANCE)
