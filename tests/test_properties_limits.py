"""What no solver may leave behind when it is interrupted, and what it says when memory runs out."""

from __future__ import annotations

import linecache
import math
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import otbook
from otbook import costs, sinkhorn

from . import problems
from .test_properties import SOLVERS, random_problem

PACKAGE = str(Path(otbook.__file__).parent)


def process_state() -> tuple:
    """What a solver might have changed for the whole process."""
    tiny = torch.tensor([1e-310], dtype=torch.float64) * 1
    return (
        torch.is_grad_enabled(),
        torch.get_num_threads(),
        torch.get_default_dtype(),
        tiny.item() > 0,  # denormal numbers are not flushed
        torch.get_rng_state().tolist(),
        list(warnings.filters),
    )


def run(call: Callable[[], object], lines: float = math.inf) -> int:
    """Call, and raise KeyboardInterrupt before the given number of lines of the package has been run."""
    done = 0

    def trace(frame, event, argument):
        nonlocal done
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        if event == "line":
            done += 1
            # Tracing visits a `with` once more on the way out, where Python lets no real signal in.
            line = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
            if done >= lines and not line.lstrip().startswith("with "):
                raise KeyboardInterrupt
        return trace

    previous = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(previous)
    return done


GROMOV = {
    "gromov_wasserstein": lambda Cx, Cy, a, b, **options: otbook.gromov_wasserstein(Cx, Cy, a, b, **options),
    "fused_gromov_wasserstein": lambda Cx, Cy, a, b, **options: otbook.fused_gromov_wasserstein(
        random_problem(len(Cx), len(Cy))[0], Cx, Cy, a, b, alpha=0.5, **options
    ),
    "entropic_gromov_wasserstein": lambda Cx, Cy, a, b, **options: otbook.entropic_gromov_wasserstein(
        Cx, Cy, a, b, eps=0.5, **options
    ),
}


def spaces() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, y, a, b = problems.clouds(seed=3)
    return costs.euclidean(x, x), costs.euclidean(y, y), a, b


class TestInterrupted:
    @pytest.mark.parametrize("name", [*SOLVERS, *GROMOV])
    def test_at_any_line(self, name):
        solve, arguments = (SOLVERS[name], random_problem()) if name in SOLVERS else (GROMOV[name], spaces())
        copies = [t.clone() for t in arguments]
        before, state = solve(*arguments), process_state()
        lines = run(lambda: solve(*arguments))
        assert lines > 20
        for share in (0.02, 0.4, 0.7, 0.95):
            with pytest.raises(KeyboardInterrupt):
                run(lambda: solve(*arguments), share * lines)
            assert process_state() == state
        for t, copy in zip(arguments, copies, strict=True):
            assert torch.equal(t, copy)
        after = solve(*arguments)
        assert torch.equal(after.plan, before.plan)
        assert torch.equal(after.value, before.value)

    @pytest.mark.parametrize("name", ["sinkhorn", *GROMOV])
    def test_by_a_callback(self, name):
        if name == "sinkhorn":
            arguments = random_problem()
            solve = lambda *x, **options: sinkhorn(*x, eps=0.01, **options)  # noqa: E731
        else:
            arguments, solve = spaces(), GROMOV[name]
        copies = [t.clone() for t in arguments]
        before, state = solve(*arguments), process_state()
        calls = []

        def stop(n_iter: int, *_: float) -> None:
            calls.append(n_iter)
            if len(calls) == 2:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            solve(*arguments, callback=stop)
        assert len(calls) == 2
        assert process_state() == state
        for t, copy in zip(arguments, copies, strict=True):
            assert torch.equal(t, copy)
        assert torch.equal(solve(*arguments).plan, before.plan)

    @pytest.mark.skipif(os.name != "posix", reason="sends a POSIX signal")
    def test_by_control_c(self):
        """A process in the middle of a long solve gets SIGINT, catches it, and goes on as if nothing were."""
        with subprocess.Popen(
            [sys.executable, "-c", LONG_SOLVE], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout.readline() == "running\n"
            process.send_signal(signal.SIGINT)
            rest, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        assert rest == "interrupted\nclean\n"


LONG_SOLVE = """
import torch, otbook
rng = torch.Generator().manual_seed(0)
C = torch.rand(600, 500, generator=rng, dtype=torch.float64, requires_grad=True)
copy = C.detach().clone()
small = otbook.sinkhorn(C[:9, :7], eps=0.01)
try:
    otbook.sinkhorn(
        C, eps=1e-5, tol=1e-12, max_iter=10**9, accelerate=False,
        callback=lambda n_iter, *_: print("running", flush=True) if n_iter == 3 else None,
    )
except KeyboardInterrupt:
    print("interrupted")
assert torch.equal(C, copy) and C.grad is None
again = otbook.sinkhorn(C[:9, :7], eps=0.01)
assert torch.equal(again.plan, small.plan) and torch.equal(again.value, small.value)
assert torch.is_grad_enabled() and (torch.tensor([1e-310], dtype=torch.float64) * 1).item() > 0
print("clean")
"""


class TestOutOfMemory:
    REMEDY = r"out of memory: costs of shape .* GiB .* pass PointCloudCost\(x, y\) to sinkhorn"

    @pytest.mark.parametrize(
        "cost",
        [
            costs.sqeuclidean,
            costs.euclidean,
            costs.cosine,
            lambda x, y: costs.lp(x, y, p=1),
            lambda x, y: costs.PointCloudCost(x, y).dense(),
            lambda x, y: otbook.emd(costs.PointCloudCost(x, y)),
        ],
        ids=["sqeuclidean", "euclidean", "cosine", "lp", "dense", "emd"],
    )
    def test_no_machine_has_that_much(self, cost):
        # (5·10⁶)² numbers are more than a processor can address, so that nothing gets filled.
        x = torch.ones(1, 1, dtype=torch.float64).expand(5_000_000, 1)
        with pytest.raises(MemoryError, match=r"\(5000000, 5000000\) in float.*PointCloudCost"):
            cost(x, x)

    def test_a_batch_is_counted(self):
        x, y = (
            torch.ones(1, 1, dtype=torch.float64).expand(5_000_000, 1),
            torch.ones(1, 1, 1, dtype=torch.float64).expand(2, 5_000_000, 1),
        )
        with pytest.raises(MemoryError, match=r"\(2, 5000000, 5000000\) in float64 take 3.73e\+05 GiB"):
            costs.sqeuclidean(x, y)

    def test_other_errors_are_left_alone(self):
        with (
            pytest.raises(RuntimeError, match="must match"),
            otbook._check.memory((2, 3), torch.float32),
        ):
            torch.ones(2) + torch.ones(3)

    @pytest.mark.parametrize(
        "message",
        [
            "[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried to",
            "DefaultCPUAllocator: not enough memory: you tried to allocate 1 bytes.",
            "CUDA out of memory. Tried to allocate 20.00 GiB.",
            "std::bad_alloc",
        ],
    )
    @pytest.mark.parametrize("error", [RuntimeError, torch.cuda.OutOfMemoryError])
    def test_how_allocations_fail_elsewhere(self, error, message):
        with (
            pytest.raises(MemoryError, match=r"\(4, 1024, 1024, 256\) in float32 take 4 GiB"),
            otbook._check.memory((4, 1024, 1024, 256), torch.float32),
        ):
            raise error(message)

    @pytest.mark.skipif(sys.platform != "linux", reason="limits the address space")
    def test_a_process_that_may_not_have_more(self):
        subprocess.run(
            [sys.executable, "-c", LIMITED], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )


LIMITED = """
import resource, torch, otbook
from otbook.costs import PointCloudCost, euclidean, sqeuclidean
torch.set_num_threads(1)
rng = torch.Generator().manual_seed(0)
x = torch.rand(50, 3, generator=rng)
otbook.sinkhorn(PointCloudCost(x, x), eps=0.3)
with open("/proc/self/statm") as status:
    used = int(status.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, resource.RLIM_INFINITY))
for d in (3, 30):
    x = torch.rand(12_000, d, generator=rng)
    for cost in (sqeuclidean, euclidean, PointCloudCost(x, x)):
        try:
            cost.dense() if isinstance(cost, PointCloudCost) else cost(x, x)
        except MemoryError as error:
            assert "PointCloudCost" in str(error), error
        else:
            raise AssertionError("576 MB fit into 256")
    # What the error suggests does work.
    assert otbook.sinkhorn(PointCloudCost(x[:1500], x[1500:3000]), eps=1.0, tol=1e-3).converged
"""
