"""Sinkhorn over two processes, started by torchrun, against one process that holds all rows.

This file is also the program that the two processes run: each solves every case for its rows, and
saves what it found for the tests to compare. They talk by gloo and, where there are GPUs, by NCCL.
"""

import os
import subprocess
import sys
import warnings
from contextlib import redirect_stderr
from datetime import timedelta
from functools import partial
from io import StringIO
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from otbook import ConvergenceWarning, sinkhorn
from otbook.costs import PointCloudCost
from otbook.entropic._distributed import ShardedKernel, sinkhorn_sharded
from otbook.entropic._dual import Newton
from otbook.entropic._kernel import PointCloudKernel

from .checks import assert_coupling
from .problems import clouds

if not dist.is_available():
    pytest.skip("this PyTorch comes without torch.distributed", allow_module_level=True)

#: The rows of the two processes: 13 and 28 of 41.
SHARDS = slice(0, 13), slice(13, 41)
#: Backends and where the rows are. gloo shares a GPU between processes; NCCL wants one for each.
GPUS = torch.cuda.device_count()
GROUPS = ["gloo cpu"] + ["gloo cuda"] * (GPUS >= 1) + ["nccl cuda"] * (GPUS >= 2)


def case(d=2, *, share, massless=0, dtype=torch.float64, device="cpu", **options):
    """A problem with weights of zero on both sides, and the options to solve it with."""
    x, y, a, b = clouds(41, 30, d, seed=d)
    a[: 2 + massless], a[40], b[:4] = 0, 0, 0
    C = PointCloudCost(x, y, options.get("cost", "sqeuclidean"))
    eps = share * C.dense().max().item()
    tensors = [t.to(device, dtype) for t in (x, y, a / a.sum(), b / b.sum())]
    return tensors, {"eps": eps, "tol": 1e-12} | options


CASES = {
    "large eps": partial(case, share=0.1),
    "Newton steps": partial(case, share=5e-3),
    "a process without mass": partial(case, share=0.02, massless=11),
    "Euclidean, with progress": partial(case, 3, share=0.02, cost="euclidean", progress=True),
    "cosine in float32": partial(case, 20, share=0.1, cost="cosine", dtype=torch.float32, tol=1e-5),
}


def sweep(kernel, eps):
    """A product of the core loop where the scalings are near 1, and another where they are not."""
    kernel.absorb(torch.zeros_like(kernel.b), eps, exact=True)
    v = torch.linspace(1.0, 1.1, 30, dtype=torch.float64, device=kernel.b.device)
    return [kernel.sweep(w)[1] for w in (v, 3 * v)]


def run_cases(rank, folder, device):
    """What one of the two processes does."""
    rows, found = SHARDS[rank], {}

    def attempt(name, *arguments, **options):
        try:
            with warnings.catch_warnings(record=True) as caught, redirect_stderr(StringIO()) as printed:
                warnings.simplefilter("always", ConvergenceWarning)
                result = sinkhorn_sharded(*arguments, **options)
            found[name] = {
                key: getattr(result, key)
                for key in ("value", "cost", "f", "g", "n_iter", "marginal_error", "converged", "plan")
            } | {"warning": "".join(str(w.message) for w in caught), "printed": printed.getvalue()}
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"

    for name, make in CASES.items():
        (x, y, a, b), options = make(device=device)
        attempt(name, x[rows], y, a[rows], b, **options)

    (x, y, a, b), options = case(share=0.1, device=device)
    found["sweep"] = sweep(ShardedKernel(PointCloudCost(x[rows], y), a[rows], b, None), options["eps"])
    here, a_here, second = x[rows], a[rows], rank == 1
    attempt("uniform", here, y, eps=1.0, tol=1e-12)
    attempt("three iterations", here, y, a_here, b, **options | {"max_iter": 3, "eps": 1e-3})
    attempt("bad on one", here, y, -a_here if second else a_here, b, **options)
    attempt("NaN on one", here * torch.nan if second else here, y, a_here, b, **options)
    attempt("eps", here, y, a_here, b, eps=2.0 if second else 1.0)
    attempt("order of y", here, y.flip(0) if second else y, a_here, b, **options)
    attempt("b", here, y, a_here, None if second else b, **options)
    attempt("None on one", here, y, None if second else a_here, b, **options)
    attempt("progress on one", here, y, a_here, b, progress=second, **options)
    attempt("dtypes", *(t.float() if second else t for t in (here, y, a_here, b)), **options)
    attempt("mass", here, y, 2 * a_here, b, **options)
    attempt("a group of the first", x, y, a, b, group=dist.new_group([0]), **options)
    torch.set_num_threads(1 + rank)
    attempt("threads", here, y, a_here, b, **options)
    torch.save(found, folder / f"{rank}.pt")


@pytest.fixture(scope="module", params=GROUPS)
def group(request):
    """The backend of the processes, and the device of their rows."""
    return request.param.split()


@pytest.fixture(scope="module")
def found(group, tmp_path_factory):
    """What the two processes found, each a dictionary by case, on the CPU."""
    folder = tmp_path_factory.mktemp("shards")
    root, launch = Path(__file__).parents[1], "torch.distributed.run --standalone --nproc-per-node 2"
    run = subprocess.run(
        [sys.executable, *f"-m {launch} -m tests.test_distributed {folder} {' '.join(group)}".split()],
        cwd=root,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(root), *sys.path])},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    return [torch.load(folder / f"{rank}.pt", map_location="cpu") for rank in (0, 1)]


@pytest.mark.parametrize("name", CASES)
def test_two_processes_find_what_one_finds(name, found, monkeypatch):
    newton, step = [], Newton.step
    monkeypatch.setattr(Newton, "step", lambda *t: newton.append(t) or step(*t))
    (x, y, a, b), options = CASES[name]()
    cost = options.pop("cost", "sqeuclidean")
    one = sinkhorn(PointCloudCost(x, y, cost), a, b, **options | {"progress": False})
    assert newton or name != "Newton steps"
    shards = [shares[name] for shares in found]
    atol = 1e-10 if x.dtype == torch.float64 else 1e-4
    for rows, shard in zip(SHARDS, shards, strict=True):
        assert shard["converged"]
        for key in ("value", "cost", "g"):
            torch.testing.assert_close(shard[key], getattr(one, key), rtol=0, atol=atol)
        for key in ("f", "plan"):
            torch.testing.assert_close(shard[key], getattr(one, key)[rows], rtol=0, atol=atol)
    # Every process saw the same numbers, to the last bit, and took the same steps.
    for key in ("n_iter", "value", "cost", "g", "marginal_error"):
        there, here = (torch.as_tensor(shard[key]) for shard in shards)
        torch.testing.assert_close(there, here, rtol=0, atol=0)
    plan = torch.cat([shard["plan"] for shard in shards])
    assert_coupling(plan, a, b, atol=options["tol"])
    measured = (plan.sum(-1) - a).abs().sum() + (plan.sum(-2) - b).abs().sum()
    torch.testing.assert_close(shards[0]["marginal_error"], measured, rtol=0, atol=options["tol"])


def test_products_run_over_all_rows(found):
    (x, y, a, b), options = case(share=0.1)
    whole = sweep(PointCloudKernel(PointCloudCost(x, y), a, b), options["eps"])
    for shares in found:
        # The products are done in float32.
        torch.testing.assert_close(shares["sweep"], whole, rtol=0, atol=1e-6)


def test_no_weights_are_uniform_over_all_processes(found):
    (x, y, _, _), _ = case(share=1.0)
    one = sinkhorn(PointCloudCost(x, y), eps=1.0, tol=1e-12)
    for shares in found:
        torch.testing.assert_close(shares["uniform"]["value"], one.value, rtol=0, atol=1e-10)


def test_one_bar_for_all(found):
    first, second = (shares["Euclidean, with progress"]["printed"] for shares in found)
    assert "marginal error" in first
    assert second == ""


def test_stopped_early_says_so_everywhere(found):
    for shares in found:
        assert not shares["three iterations"]["converged"]
        assert "after 3 iterations" in shares["three iterations"]["warning"]
        assert "raise max_iter" in shares["three iterations"]["warning"]


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        ("bad on one", "RuntimeError: process 1 of the group refused", "ValueError: a_local holds -"),
        ("NaN on one", "RuntimeError: process 1 of the group refused", "ValueError: x_local holds nan"),
    ]
    + [
        (name, f"ValueError: {what}", f"ValueError: {what}")
        for name, what in {
            "eps": "eps differs between processes: 1.0 on the first, 2.0 on number 1",
            "order of y": "y differs between",
            "b": "b differs between",
            "None on one": "a_local=None differs between",
            "progress on one": "progress differs between",
            "dtypes": "the dtype differs between",
            "mass": "a_local has mass 2 over all processes, not 1",
            "threads": "the machine differs between",
        }.items()
    ],
)
def test_an_error_anywhere_ends_all(name, first, second, found, group):
    if name == "threads" and group[1] == "cuda":
        pytest.skip("threads of the CPU do not round what a GPU sums")
    for shares, message in zip(found, (first, second), strict=True):
        assert str(shares[name]).startswith(message)


def test_a_group_may_be_a_part_of_all(found):
    member, other = (shares["a group of the first"] for shares in found)
    assert other.startswith("ValueError: group does not hold this process")
    (x, y, a, b), options = case(share=0.1)
    torch.testing.assert_close(member["value"], sinkhorn(PointCloudCost(x, y), a, b, **options).value)


@pytest.fixture
def alone(request):
    """A group of one process."""
    backend = getattr(request, "param", "gloo")
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    yield backend
    dist.destroy_process_group()


def test_what_is_summed_is_on_the_device_of_the_points(device, alone, monkeypatch):
    seen, all_reduce = set(), dist.all_reduce
    monkeypatch.setattr(dist, "all_reduce", lambda t, *p, **k: seen.add(t.device) or all_reduce(t, *p, **k))
    (x, y, a, b), options = case(share=5e-3)  # with Newton steps, and weights of zero
    here = sinkhorn_sharded(x, y, a, b, **options)
    assert seen == {x.device}
    seen.clear()
    there = sinkhorn_sharded(*(t.to(device) for t in (x, y, a, b)), **options)
    assert seen == {device}
    assert there.plan.device == device
    for key in ("value", "f", "g", "plan"):
        torch.testing.assert_close(getattr(there, key).cpu(), getattr(here, key), rtol=0, atol=1e-10)


@pytest.mark.skipif(not GPUS, reason="needs a GPU")
@pytest.mark.parametrize("alone", ["nccl"], indirect=True)
def test_one_process_with_nccl(alone):
    (x, y, a, b), options = case(share=5e-3)
    one = sinkhorn(PointCloudCost(x, y), a, b, **options)
    result = sinkhorn_sharded(*(t.cuda() for t in (x, y, a, b)), **options)
    assert result.plan.is_cuda
    for key in ("value", "f", "g", "plan"):
        torch.testing.assert_close(getattr(result, key).cpu(), getattr(one, key), rtol=0, atol=1e-10)
    with pytest.raises(ValueError, match=r"x_local is on the CPU.*x_local.cuda\(\) or a gloo group"):
        sinkhorn_sharded(x, y, a, b, **options)


def test_a_process_group_is_needed():
    with pytest.raises(RuntimeError, match=r"init_process_group.*torchrun"):
        sinkhorn_sharded([[0.0]], [[1.0]], eps=1.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x_local": torch.zeros(2)}, r"x_local must have shape \(…, n, d\)"),
        ({"x_local": torch.zeros(1, 2, 3)}, "x_local has shape .* spread"),
        ({"y": torch.zeros(4, 2)}, "x_local has points in dimension 3 and y in dimension 2"),
        ({"y": torch.zeros(4, 3, dtype=torch.float64)}, "y is float64"),
        ({"y": torch.ones(4, 3, requires_grad=True)}, r"y requires a gradient.*y.detach\(\)"),
        ({"b": torch.full((4,), 0.25).requires_grad_()}, r"b requires a gradient.*b.detach\(\)"),
        ({"a_local": [1.0]}, r"a_local must have shape \(2,\)"),
        ({"a_local": [1.5, -0.5]}, "a_local holds -0.5"),
        ({"b": [1.0, 1.0, 0.0, 0.0]}, "b has mass 2"),
        ({"eps": 0.0}, "eps must be a finite number above 0"),
        ({"tol": -1.0}, "tol must be"),
        ({"max_iter": 0}, "max_iter must be"),
        ({"cost": "taxicab"}, "cost must be one of"),
    ],
)
def test_bad_input(change, message, alone):
    good = {"x_local": torch.zeros(2, 3), "y": torch.ones(4, 3), "a_local": None, "b": None, "eps": 1.0}
    with pytest.raises(ValueError, match=message):
        sinkhorn_sharded(**good | change)


if __name__ == "__main__":
    folder, backend, device = sys.argv[1:]
    dist.init_process_group(backend, timeout=timedelta(seconds=60))
    rank = dist.get_rank()
    if device == "cuda":
        torch.cuda.set_device(rank % GPUS)
    run_cases(rank, Path(folder), device)
    dist.destroy_process_group()
