"""B10: Sinkhorn with its rows spread over two processes, and the share of time they spend on each other."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist

import otbook

from .peers import Clouds

PROCESSES = 2
RUNS = 5
#: The collective operations in which a process talks to the others, or waits for them.
COLLECTIVES = ("all_reduce", "all_gather", "all_gather_object", "broadcast", "broadcast_object_list")


class Clock:
    """Adds up the seconds spent in the collectives of ``torch.distributed``."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __enter__(self) -> Clock:
        self.originals = {name: getattr(dist, name) for name in COLLECTIVES}
        for name, original in self.originals.items():
            setattr(dist, name, self._watch(original))
        return self

    def __exit__(self, *_: object) -> None:
        for name, original in self.originals.items():
            setattr(dist, name, original)

    def _watch(self, call):
        def watched(*arguments, **options):
            start = time.perf_counter()
            try:
                return call(*arguments, **options)
            finally:
                self.seconds += time.perf_counter() - start

        return watched


def problem(n: int, dtype: torch.dtype, tol: float) -> Clouds:
    return Clouds.normal(n, 3, 0.1, tol, dtype)


def worker(rank: int, processes: int, folder: str, case: tuple, runs: int) -> None:
    """One process: solve with its rows, and leave what came out, seconds and seconds of talk in a file."""
    from otbook.entropic import sinkhorn_sharded

    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=processes)
    try:
        p = problem(*case)
        rows = slice(rank * len(p.x) // processes, (rank + 1) * len(p.x) // processes)
        weights = p.w[rows]
        measured = []
        for _ in range(runs):
            dist.barrier()
            with Clock() as clock:
                start = time.perf_counter()
                result = sinkhorn_sharded(p.x[rows], p.y, weights, eps=p.eps, tol=p.tol)
                measured.append((time.perf_counter() - start, clock.seconds))
        out = {"f": result.f, "g": result.g, "value": result.value, "n_iter": result.n_iter}
        torch.save({**out, "measured": measured}, Path(folder) / f"{rank}.pt")
    finally:
        dist.destroy_process_group()


def spread(case: tuple, runs: int) -> list[dict]:
    """What every process saved."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_on_its_core, (folder, case, runs), nprocs=PROCESSES)
        return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(PROCESSES)]


def _on_its_core(rank: int, folder: str, case: tuple, runs: int) -> None:
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {rank % (os.cpu_count() or 1)})
    worker(rank, PROCESSES, folder, case, runs)


def run(quick: bool, patience: float = 0.0) -> Iterator[str]:
    """First that the result is that of one process, then what the second process brings."""
    try:
        from otbook.entropic import sinkhorn_sharded  # noqa: F401
    except ImportError:
        yield "this otbook has no sinkhorn_sharded: nothing measured"
        return
    case = (200 if quick else 2000), torch.float64, 1e-11
    yield _equality(case)
    case = (1000 if quick else 20_000), torch.float32, 1e-3
    yield _speed(case, 2 if quick else RUNS)


def _equality(case: tuple) -> str:
    p, parts = problem(*case), spread(case, 1)
    alone = otbook.sinkhorn(otbook.costs.PointCloudCost(p.x, p.y), eps=p.eps, tol=p.tol)
    f = torch.cat([part["f"] for part in parts])
    gap = max(float((f - alone.f).abs().max()), float((parts[0]["g"] - alone.g).abs().max()))
    gap = max(gap, abs(float(parts[0]["value"] - alone.value)))
    verdict = "met" if gap <= 1e-10 else "MISSED"
    return (
        f"n = {case[0]}, float64, marginal error {case[2]:g}: potentials and value of {PROCESSES} processes "
        f"and of one differ by at most {gap:.1e} after {parts[0]['n_iter']} iterations; {verdict}: ≤ 1e-10"
    )


def _speed(case: tuple, runs: int) -> str:
    p, single = problem(*case), []
    C = otbook.costs.PointCloudCost(p.x, p.y)
    otbook.sinkhorn(C, eps=p.eps, tol=p.tol)
    for _ in range(min(runs, 3)):
        start = time.perf_counter()
        otbook.sinkhorn(C, eps=p.eps, tol=p.tol)
        single.append(time.perf_counter() - start)
    parts = spread(case, runs)
    lines = [f"n = {case[0]}, d = 3, float32, ε = 0.1·mean(C), marginal error {case[2]:g}, one core each"]
    lines.append(f"  one process      {statistics.median(single):8.3g} s")
    shares = []
    for rank, part in enumerate(parts):
        totals, talk = zip(*part["measured"], strict=True)
        shares.append(statistics.median(t / total for total, t in part["measured"]))
        lines.append(
            f"  process {rank} of {len(parts)}   {statistics.median(totals):8.3g} s, of which "
            f"{statistics.median(talk):.3g} s ({100 * shares[-1]:.1f} %) in collectives, waiting included"
        )
    verdict = "met" if max(shares) <= 0.1 else "MISSED"
    lines.append(f"  {verdict}: communication ≤ 10 %; {parts[0]['n_iter']} iterations, {runs} runs")
    return "\n".join(lines)
