"""The fused kernels: their tests are started in a process of their own, on a GPU or interpreted."""

import os
import subprocess
import sys

import pytest
import torch

from otbook.entropic import _fused

pytest.importorskip("triton")

MACHINES = ["interpreter"] + ["GPU"] * torch.cuda.is_available()


@pytest.mark.parametrize("machine", MACHINES)
def test_kernels(machine):
    # Triton chooses its interpreter when it is first imported, which another test may have done.
    path = os.path.join(os.path.dirname(__file__), "fused_kernels.py")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", path],
        env=os.environ
        | {
            "TRITON_INTERPRET": "1" if machine == "interpreter" else "0",
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stdout + run.stderr


class Driver:
    """A GPU on paper: kernels are compiled for it, and cannot be launched."""

    def __init__(self, capability):
        self.capability = capability

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0


@pytest.fixture
def compiled(request, tmp_path, monkeypatch):
    """The machine code that the launches of a test were compiled to, for a GPU of some capability."""
    from triton.runtime import driver

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernel, codes = _fused._kernel.__wrapped__(), []  # a kernel keeps what it was compiled for

    class Compiler:
        def __getitem__(self, grid):
            return lambda *arguments, **options: codes.append(kernel.warmup(*arguments, grid=grid, **options))

    monkeypatch.setattr(_fused, "_kernel", Compiler)
    driver.set_active(Driver(request.param))
    yield request.param, codes
    driver.set_active(None)


@pytest.mark.parametrize("compiled", [75, 80, 90], indirect=True)  # T4, A100, H100
@pytest.mark.parametrize(("n", "m", "d"), [(1, 1, 1), (33, 70, 3), (48, 64, 20)])
@pytest.mark.parametrize("cost", ["sqeuclidean", "euclidean"])
def test_compiles_for_a_gpu_without_one(compiled, n, m, d, cost):
    x, y, h = torch.zeros(n, d), torch.zeros(m, d), torch.zeros(m, dtype=torch.float64)
    _fused.softmin(x, y, h, 1.0, cost=cost)
    capability, codes = compiled
    assert len(codes) == 2, "two passes"
    for code in codes:
        assert code.metadata.target.arch == capability
        assert code.asm["cubin"]
        assert code.metadata.shared <= 48 * 1024, "more shared memory than a program gets unasked"
        assert "tf32" not in code.asm["ptx"], "products of 10 bits would spoil the cost"


def test_available_where_it_applies(monkeypatch):
    x = torch.zeros(2, 2)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert _fused.available(x)
    assert _fused.available(x, "euclidean")
    assert not _fused.available(x, "cosine")
    assert not _fused.available(x.double())
    monkeypatch.delenv("TRITON_INTERPRET")
    assert not _fused.available(x)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(_fused, "_installed", lambda: False)
    assert not _fused.available(x)
