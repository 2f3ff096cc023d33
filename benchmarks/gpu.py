"""B9: matrix-free entropic transport on a GPU, in float32, and its agreement with the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

import otbook

from . import peers
from .harness import Competitor, race, table

TOLERANCE = 1e-3


def competitors(n: int, d: int, scale: float) -> list[Competitor]:
    p = peers.Clouds.normal(n, d, scale, TOLERANCE, torch.float32)
    p = replace(p, x=p.x.cuda(), y=p.y.cuda())
    return [
        synchronised(competitor)
        for competitor in (peers.ours(p, lazy=True), peers.flash(p), peers.geomloss(p, "online"))
    ]


def synchronised(competitor: Competitor) -> Competitor:
    """The same, timed until the GPU is done."""

    def prepare(patience: float):
        solve = competitor.prepare(patience)

        def call(level: int):
            result = solve(level)
            torch.cuda.synchronize()
            return result

        return call

    return replace(competitor, prepare=prepare)


def agreement(n: int = 700) -> str:
    """Dense, batched and matrix-free results on the GPU against float64 on the CPU."""
    lines = [f"share of the mass that goes elsewhere than in float64 on the CPU, n = {n}"]
    for dtype, tol in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        for scale in (0.1, 0.01):
            p = peers.Clouds.normal(n, 3, scale, tol, dtype)
            u, v = p.x.double(), p.y.double()
            exact = otbook.sinkhorn(otbook.costs.sqeuclidean(u, v), eps=p.eps, tol=1e-10).plan
            x, y = p.x.cuda(), p.y.cuda()
            kinds = {
                "dense": lambda x=x, y=y: otbook.costs.sqeuclidean(x, y),
                "batch": lambda x=x, y=y: otbook.costs.sqeuclidean(x, y).expand(2, n, n),
                "matrix-free": lambda x=x, y=y: otbook.costs.PointCloudCost(x, y),
            }
            for kind, cost in kinds.items():
                result = otbook.sinkhorn(cost(), eps=p.eps, tol=p.tol)
                gap = (result.plan.cpu().double() - exact).abs().sum((-2, -1)).max().item() / 2
                lines.append(
                    f"  {kind:12} {str(dtype)[6:]:8} ε = {scale:g}·mean(C)  {gap:.1e}, marginal error "
                    f"{result.marginal_error.max().item():.1e}, converged {result.converged}"
                )
    return "\n".join(lines)


def run(quick: bool, patience: float = 10.0) -> Iterator[str]:
    """Nothing but a sentence where there is no GPU."""
    if not torch.cuda.is_available():
        yield "no GPU on this machine: nothing measured"
        return
    yield torch.cuda.get_device_name()
    yield agreement(200 if quick else 700)
    for n in (2000,) if quick else (10_000, 50_000):
        for d in (3, 64):
            rows = race(competitors(n, d, 0.1), tol=TOLERANCE, patience=patience)
            yield table(f"B9  n = {n}, d = {d}, ε = 0.1·mean(C), float32", rows, tol=TOLERANCE)
