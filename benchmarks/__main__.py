"""Run the benchmarks, print their tables and keep them under ``benchmarks/results``."""

from __future__ import annotations

import datetime
import os
import platform
from importlib.metadata import version
from pathlib import Path

from . import dense

RESULTS = Path(__file__).parent / "results"


def machine() -> str:
    """What the numbers depend on."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "numpy", "pot"))
    return (
        f"{datetime.date.today().isoformat()}, {platform.machine()}, {os.cpu_count()} cores, "
        f"Python {platform.python_version()}, {packages}"
    )


def main() -> None:
    """Print each table as soon as it is measured."""
    lines = [machine(), "ratio: time of the other library / our time, to the same tolerance", ""]
    print("\n".join(lines), flush=True)
    for block in dense.run():
        print(block, flush=True)
        lines.append(block)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "dense.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
