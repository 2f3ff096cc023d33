"""Peak memory of one call, measured in a process of its own."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import multiprocessing
import resource
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

from .harness import Row

MIB = 2**20


def measure(rows: Sequence[Row], module: str, case: tuple, warm: tuple) -> None:
    """Fill in the peaks of the competitors that ran; four iterations show as much as all of them."""
    for row in rows:
        if row.seconds and not row.problem:
            row.peak = peak(module, case, warm, row.name, min(row.level, 4))


def peak(module: str, case: tuple, warm: tuple, name: str, level: int) -> float | None:
    """MiB that the competitor ``name`` of ``module.competitors(*case)`` needs on top of its problem.

    The small problem ``warm`` is solved first, so that libraries and thread pools count for the baseline.
    None if the measuring process fails.
    """
    return apart(_solve, module, case, warm, name, level)


def apart(work: Callable[..., float], *arguments: object) -> float | None:
    """What ``work(*arguments)``, a function of some module, returns in a fresh process."""
    receiver, sender = (context := multiprocessing.get_context("spawn")).Pipe(duplex=False)
    process = context.Process(target=_send, args=(sender, work, arguments))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:  # killed, for want of memory say
        return None
    finally:
        process.join()


def _send(sender, work: Callable[..., float], arguments: tuple) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            sender.send(work(*arguments))
    except Exception:
        sender.send(None)


def _solve(module: str, case: tuple, warm: tuple, name: str, level: int) -> float:
    competitors = import_module(module).competitors
    for problem in (warm, case):
        solve = next(c for c in competitors(*problem) if c.name == name).prepare(1.0)
        if problem is warm:
            solve(level)
    return growth(lambda: solve(level))


def growth(call: Callable[[], object]) -> float:
    """MiB by which the resident set of this process grows at most during the call.

    ``ru_maxrss`` would not do on Linux: a new process inherits the peak of the one that started it. The
    kernel's own mark of this address space, VmHWM, starts afresh and can be reset.
    """
    if not sys.platform.startswith("linux"):
        unit = 1 if sys.platform == "darwin" else 1024
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        call()
        return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit / MIB
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # what was freed goes back first, else it hides growth
        ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = _status("VmRSS")
    call()
    return (_status("VmHWM") - before) / 1024


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field):
            return int(line.split()[1])  # kB
    raise KeyError(field)
