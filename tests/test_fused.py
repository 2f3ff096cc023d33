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


@pytest.mark.parametrize("d", [2, 20])
def test_compiles_for_a_gpu_without_one(d, tmp_path, monkeypatch):
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernel = _fused._kernel()
    names = kernel.arg_names
    constants = dict(zip(names[12:], (d, d <= 16, d <= 16, 16, 16, 16), strict=True))
    types = ["*fp32"] * 9 + ["i32", "i32", "fp32"] + ["constexpr"] * 6
    source = ASTSource(kernel, dict(zip(names, types, strict=True)), constexprs=constants)
    code = compile(source, target=GPUTarget("cuda", 80, 32), options={"enable_fp_fusion": True})
    assert code.asm["cubin"]
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
