"""conversions: calls of GeomLoss and OTT-JAX, and ours that give the same number; checked, not timed.

The page `book/appendix/choosing` prints these calls beside ours; `tests/test_choosing.py` compares the texts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

import otbook
from otbook import costs, flows


@dataclass
class Row:
    """A number of another library and ours, which differ by at most ``atol``."""

    name: str
    theirs: object
    ours: object
    atol: float

    def difference(self) -> float:
        theirs, ours = (np.asarray(t.detach() if isinstance(t, torch.Tensor) else t) for t in self.pair())
        return float(np.abs(theirs - ours).max())

    def pair(self) -> tuple[object, object]:
        return self.theirs, self.ours

    def line(self) -> str:
        """One line of the table; an AssertionError, which names the row, if the two disagree."""
        gap = self.difference()
        assert gap <= self.atol, f"{self.name}: the two differ by {gap:.1e} > {self.atol:g}"
        return f"  {self.name:45}|Δ| = {gap:.1e} ≤ {self.atol:g}"


def data() -> tuple[torch.Tensor, ...]:
    """Seven points against five, weights that are not uniform, and five points of another space."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x, y, z = normal(7, 2), normal(5, 2) + 1, normal(5, 3)
    return x, y, normal(7).softmax(0), normal(5).softmax(0), z


def geomloss() -> Iterator[Row]:
    """GeomLoss: the cost is ‖x − y‖²/2, and ``scaling`` near 1 makes its annealing accurate."""
    from geomloss import SamplesLoss

    x, y, a, b, _ = data()
    C = costs.sqeuclidean(x, y)
    eps, rho, s = 0.5, 1.0, 0.7
    blur, reach = math.sqrt(eps / 2), math.sqrt(rho / 2)

    theirs = SamplesLoss("sinkhorn", p=2, blur=blur, debias=False, scaling=0.999)(a, x, b, y)
    ours = otbook.sinkhorn(C, a, b, eps=2 * blur**2).value / 2
    yield Row("entropic transport", theirs, ours, 1e-4)

    theirs = SamplesLoss("sinkhorn", p=2, blur=blur, scaling=0.999)(a, x, b, y)
    ours = otbook.sinkhorn_divergence(x, y, a, b, eps=2 * blur**2) / 2
    yield Row("Sinkhorn divergence", theirs, ours, 1e-4)

    theirs = SamplesLoss("sinkhorn", p=1, blur=eps, scaling=0.999)(a, x, b, y)
    ours = otbook.sinkhorn_divergence(x, y, a, b, eps=eps, cost="euclidean")
    yield Row("Sinkhorn divergence, Euclidean cost", theirs, ours, 1e-3)

    theirs = SamplesLoss("sinkhorn", p=2, blur=blur, reach=reach, debias=False, scaling=0.999)(a, x, b, y)
    ours = otbook.sinkhorn_unbalanced(C, a, b, eps=2 * blur**2, rho=2 * reach**2).value / 2
    yield Row("unbalanced transport", theirs, ours, 1e-4)

    theirs = SamplesLoss("energy")(a, x, b, y)
    ours = flows.energy_distance(x, y, a, b) / 2
    yield Row("energy distance", theirs, ours, 1e-3)  # it keeps its square roots away from 0

    theirs = SamplesLoss("gaussian", blur=s)(a, x, b, y)
    ours = flows.mmd2(x, y, a, b, bandwidth=s) / 2
    yield Row("squared MMD, Gaussian kernel", theirs, ours, 1e-9)


def ott() -> Iterator[Row]:
    """OTT-JAX: the cost is ‖x − y‖²; entropies are not relative to a⊗b, except in ``reg_ot_cost``."""
    import jax
    import jax.numpy as jnp
    from ott.geometry.geometry import Geometry
    from ott.geometry.pointcloud import PointCloud
    from ott.problems.quadratic.quadratic_problem import QuadraticProblem
    from ott.solvers import linear
    from ott.solvers.linear.sinkhorn import Sinkhorn
    from ott.solvers.quadratic.gromov_wasserstein import GromovWasserstein
    from ott.tools.sinkhorn_divergence import sinkdiv
    from ott.tools.sliced import sliced_wasserstein

    jax.config.update("jax_enable_x64", True)
    x, y, a, b, z = data()
    C, Cx, Cy = costs.sqeuclidean(x, y), costs.euclidean(x, x), costs.euclidean(z, z)
    eps, rho = 0.5, 1.0
    X, Y, A, B, MX, MY = (jnp.asarray(t.numpy()) for t in (x, y, a, b, Cx, Cy))

    out = linear.solve(PointCloud(X, Y, epsilon=eps), a=A, b=B, threshold=1e-9)
    result = otbook.sinkhorn(C, a, b, eps=eps, tol=1e-9)
    yield Row("entropic transport, value", out.reg_ot_cost, result.value, 1e-6)
    yield Row("entropic transport, cost", out.primal_cost, result.cost, 1e-6)
    yield Row("entropic transport, plan", out.matrix, result.plan, 1e-6)

    theirs = sinkdiv(X, Y, a=A, b=B, epsilon=eps, solve_kwargs={"threshold": 1e-9})[0]
    ours = otbook.sinkhorn_divergence(x, y, a, b, eps=eps)
    yield Row("Sinkhorn divergence", theirs, ours, 1e-6)

    tau = rho / (rho + eps)
    out = linear.solve(PointCloud(X, Y, epsilon=eps), A, B, tau, tau, threshold=1e-9)
    shifted = C + eps * (a.log()[:, None] + b.log())
    result = otbook.sinkhorn_unbalanced(shifted, a, b, eps=eps, rho=rho, tol=1e-9)
    yield Row("unbalanced transport, plan", out.matrix, result.plan, 1e-6)

    problem = QuadraticProblem(Geometry(MX), Geometry(MY), a=A, b=B)
    solver = GromovWasserstein(Sinkhorn(threshold=1e-9), epsilon=eps / 2, threshold=1e-9)
    result = otbook.entropic_gromov_wasserstein(Cx, Cy, a, b, eps=eps, tol=1e-9)
    yield Row("entropic Gromov–Wasserstein, plan", solver(problem).matrix, result.plan, 1e-6)

    theirs = sliced_wasserstein(X, Y, A, B, n_proj=100_000)[0]
    rng = torch.Generator().manual_seed(0)
    ours = otbook.sliced_wasserstein(x, y, a, b, n_projections=100_000, generator=rng) ** 2
    yield Row("sliced distance, squared, Monte Carlo", theirs, ours, 0.05)


def run(quick: bool, patience: float = 0.0) -> Iterator[str]:
    """A table for each library; nothing here depends on the size or on patience."""
    for title, rows in {"GeomLoss": geomloss, "OTT-JAX": ott}.items():
        try:
            lines = [row.line() for row in rows()]
        except ImportError as error:
            lines = [f"  not installed ({error.name})"]
        yield "\n".join([title, *lines])
