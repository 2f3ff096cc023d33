"""Floors: the rates of this machine, and the least time that an iteration could take at them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .harness import timed

RUNS = 7


def rate(call: Callable[[], object], work: float) -> float:
    """Units of work per second, of the fastest of several runs: a floor is what nothing can beat."""
    call()
    return work / min(timed(call)[0] for _ in range(RUNS))


def rates(dtype: torch.dtype, quick: bool = False) -> dict[str, float]:
    """Bytes, matrix–vector bytes, exponentials, powers of 2 and floating-point operations per second.

    The exponentials stay in cache; reading and the matrix–vector product stream 400 MB.
    """
    size = torch.finfo(dtype).bits // 8
    n = (2_000_000 if quick else 400_000_000) // size
    long = torch.ones(n, dtype=dtype)
    side = int(n**0.5)
    matrix, vector = long[: side * side].view(side, side), torch.ones(side, dtype=dtype)
    out = torch.empty(side, dtype=dtype)
    tile, into = torch.linspace(-30.0, 0.0, 16_384, dtype=dtype), torch.empty(16_384, dtype=dtype)
    m = 128 if quick else 1024
    A = torch.ones(m, m, dtype=dtype)
    B = torch.empty_like(A)

    def powers_of(base: Callable[..., Tensor]) -> Callable[[], None]:
        def exponentials() -> None:
            for _ in range(64):
                base(tile, out=into)

        return exponentials

    return {
        "read (sum)": rate(long.sum, n * size),
        "matrix–vector": rate(lambda: torch.mv(matrix, vector, out=out), side * side * size),
        "exponentials": rate(powers_of(torch.exp), 64 * tile.numel()),
        "powers of 2": rate(powers_of(torch.exp2), 64 * tile.numel()),
        "operations (matmul)": rate(lambda: torch.mm(A, A, out=B), 2.0 * m**3),
    }


def run(quick: bool, patience: float = 0.0) -> Iterator[str]:
    """The rates, and what follows for Sinkhorn."""
    measured = {dtype: rates(dtype, quick) for dtype in (torch.float64, torch.float32)}
    units = dict(zip(measured[torch.float64], ("GB/s", "GB/s", "G/s", "G/s", "Gflop/s"), strict=True))
    lines = [f"{'':24}{'float64':>10}{'float32':>10}"]
    for what, unit in units.items():
        values = "".join(f"{measured[dtype][what] / 1e9:>10.2f}" for dtype in measured)
        lines.append(f"{what:24}{values}  {unit}")
    yield "\n".join(lines)

    titles = "stored f64 1×, 2×", "f32 1×, 2×", "free f64", "f32"
    lines = [
        "Least milliseconds of a Sinkhorn iteration (both half-steps). Stored: the kernel is read once (1×)",
        "or twice (2×), by matrix–vector products of this size. Free: n² powers of e or 2, what is faster,",
        "and 2n²(d + 2) + 4n² operations one after the other, at the rates above.",
        f"{'n':>8}{'d':>5}" + "".join(f"{word:>18}" for word in titles),
    ]
    for n in (100,) if quick else (500, 2000, 5000, 10_000, 50_000):
        products = [_product(n, dtype) for dtype in measured]
        stored = [f"{1e3 * t:.3g}, {2e3 * t:.3g}" if t else "–" for t in products]
        for d in (2, 3, 64):
            free = [
                1e3 * n * n / max(of["exponentials"], of["powers of 2"])
                + 1e3 * n * n * (2 * (d + 2) + 4) / of["operations (matmul)"]
                for of in measured.values()
            ]
            cells = *stored, *(f"{t:.3g}" for t in free)
            lines.append(f"{n:>8}{d:>5}" + "".join(f"{cell:>18}" for cell in cells))
    yield "\n".join(lines)


def _product(n: int, dtype: torch.dtype) -> float | None:
    """Seconds of one matrix–vector product, or None where the matrix would be too large to store."""
    if n > 10_000:
        return None
    matrix, vector = torch.ones(n, n, dtype=dtype), torch.ones(n, dtype=dtype)
    return 1 / rate(lambda: torch.mv(matrix, vector), 1.0)
