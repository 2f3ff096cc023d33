"""``python -m benchmarks [B1 B2 … floors] [--quick] [--patience S]``: print tables, keep them in results/."""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import time
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

RESULTS = Path(__file__).parent / "results"
BENCHMARKS = {
    "floors": "floors",
    "B1": "dense",
    "B2": "matrix_free",
    "B3": "batched",
    "B4": "divergence",
    "B5": "exact",
    "B6": "sliced",
    "B7": "gromov",
    "B8": "growth",
    "B9": "gpu",
    "B10": "sharded",
    "large": "large",
    "conversions": "conversions",
}
PACKAGES = ("torch", "numpy", "scipy", "pot", "geomloss", "pykeops", "ott-jax", "jax", "flash-sinkhorn")


def machine() -> str:
    """What the numbers depend on."""
    try:
        names = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("model name", 1)[1]
        processor = names.split(":", 1)[1].split("\n", 1)[0].strip()
    except (OSError, IndexError):
        processor = platform.processor() or platform.machine()
    return (
        f"{datetime.date.today().isoformat()}, {processor}, {os.cpu_count()} cores, "
        f"{torch.get_num_threads()} used, Python {platform.python_version()}\n"
        + ", ".join(f"{name} {_version(name)}" for name in PACKAGES)
    )


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"


def main(arguments: list[str] | None = None) -> None:
    """Print each table as soon as it is measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="B1 … B10, floors", help="which ones (default: all)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that everything runs")
    parser.add_argument("--patience", type=float, help="longest run of another library, in seconds")
    chosen = parser.parse_args(arguments)
    if unknown := [name for name in chosen.names if name not in BENCHMARKS]:
        parser.error(f"unknown benchmark {', '.join(unknown)}; choose from {', '.join(BENCHMARKS)}")

    header = machine()
    print(header, flush=True)
    for name in chosen.names or BENCHMARKS:
        module = import_module(f".{BENCHMARKS[name]}", __package__)
        patience = chosen.patience or (0.3 if chosen.quick else None)
        options = {"patience": patience} if patience else {}
        start = time.perf_counter()
        blocks = [header, f"{name}  {module.__doc__.split(': ', 1)[1].splitlines()[0]}"]
        print("\n" + blocks[1], flush=True)
        for block in module.run(chosen.quick, **options):
            print("\n" + block, flush=True)
            blocks.append(block)
        blocks.append(f"({time.perf_counter() - start:.0f} s)")
        print(blocks[-1], flush=True)
        if not chosen.quick:
            RESULTS.mkdir(exist_ok=True)
            (RESULTS / f"{name}.txt").write_text("\n\n".join(blocks) + "\n", encoding="utf-8")


def pin() -> None:
    """Give every library the same cores, as many as PyTorch has threads: each counts its own way."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: torch.get_num_threads()])


if __name__ == "__main__":
    pin()
    main()
