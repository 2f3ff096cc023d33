"""Weighted measures on the line at the boundary, their cumulative weights, and fast sorting.

Cumulative weights are kept in float64, and two levels that differ by rounding only count as one.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad

from .. import _check
from .._check import ArrayLike

#: Numbers that one thread sorts faster than a second one starts.
_ONE_THREAD = 2**15


def measure(x: ArrayLike, a: ArrayLike | None, name: str, name_a: str) -> tuple[Tensor, Tensor]:
    """A checked measure with points and weights (…, n)."""
    x = _check.line_points(x, name)
    a = _weights(a, x, name_a)
    batch = _check.batch({name: x.shape[:-1], name_a: a.shape[:-1]})
    return x.expand(*batch, -1), a.expand(*batch, -1)


def pair(
    x: ArrayLike, y: ArrayLike, a: ArrayLike | None, b: ArrayLike | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Two checked measures with common leading axes."""
    x = _check.line_points(x, "x", like=y if isinstance(y, Tensor) and not isinstance(x, Tensor) else None)
    y = _check.line_points(y, "y", like=x)
    a, b = _weights(a, x, "a"), _weights(b, y, "b")
    batch = _check.batch({name: t.shape[:-1] for name, t in (("x", x), ("y", y), ("a", a), ("b", b))})
    return tuple(t.expand(*batch, -1) for t in (x, y, a, b))


def _weights(a: ArrayLike | None, x: Tensor, name: str) -> Tensor:
    """Checked weights of sorted-to-be points x, in float64."""
    return uniform(x) if a is None else _check.weights(a, x.shape[-1], name, like=x).double()


def uniform(x: Tensor) -> Tensor:
    return torch.full_like(x, 1 / x.shape[-1], dtype=torch.float64).detach()


def queries(t: ArrayLike, name: str, x: Tensor) -> Tensor:
    """Where to evaluate a function of the measure x: numbers with its leading axes."""
    t = _check.tensor(t, name, like=x)
    if torch.isnan(t).any():
        raise ValueError(f"{name} holds NaN; remove it")
    if x.ndim == 1:
        return t
    if t.ndim == 0 or t.shape[:-1] not in (x.shape[:-1], torch.Size()):
        raise ValueError(
            f"{name} must have shape {(*x.shape[:-1], 'k')} or ('k',), but has shape {tuple(t.shape)}"
        )
    return t.expand(*x.shape[:-1], t.shape[-1])


def cumulative(a: Tensor) -> Tensor:
    """Cumulative weights; the last is 1 exactly."""
    total = a.cumsum(-1)
    return total / total[..., -1:].detach()


def rounding(x: Tensor, n: int) -> float:
    """How far two equal cumulative weights may differ: stored in the dtype of x, n times added."""
    return torch.finfo(x.dtype).eps + n * torch.finfo(torch.float64).eps


def sort(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows in ascending order and their ranks, as ``x.sort(-1)`` gives them."""
    ranks = _by_numpy(np.argsort, x)
    return x.sort(-1) if ranks is None else (x.gather(-1, ranks), ranks)


def sort_values(x: Tensor) -> Tensor:
    """Rows in ascending order. Their ranks, which take as long again, are found for derivatives only."""
    if (x.requires_grad and torch.is_grad_enabled()) or forward_ad.unpack_dual(x).tangent is not None:
        return sort(x)[0]
    values = _by_numpy(np.sort, x)
    return x.sort(-1).values if values is None else values


def _by_numpy(function: Callable[[np.ndarray], np.ndarray], x: Tensor) -> Tensor | None:
    """NumPy's sort of the rows, which is vectorised and much faster than PyTorch's on the CPU.

    It runs in as many threads as PyTorch may use. None where NumPy cannot see the numbers: on other
    devices, and within the transformations of ``torch.func``.
    """
    if x.device.type != "cpu":
        return None
    try:
        rows = x.detach().numpy().reshape(-1, x.shape[-1])
    except RuntimeError:
        return None
    threads = min(torch.get_num_threads(), len(rows)) if rows.size > _ONE_THREAD else 1
    if threads == 1:
        result = function(rows)
    else:
        with ThreadPoolExecutor(threads) as pool:
            result = np.concatenate(list(pool.map(function, np.array_split(rows, threads))))
    return torch.from_numpy(result).view(x.shape)
