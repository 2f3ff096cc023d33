"""Validation at the boundary: every public solver checks its arguments here, once.

Each check returns the cleaned argument or raises an error that names the argument,
says what was received and how to mend it. Nothing past this boundary checks again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

ArrayLike = Tensor | np.ndarray | Sequence[float]

#: The two precisions that every solver supports.
FLOATS = (torch.float32, torch.float64)

#: How far the sum of a weight vector may be from 1. A vector normalised in float32
#: and then stored in float64 is off by a few units of 1e-7, hence the 1e-6.
MASS_TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-6}

#: What PyTorch's errors say, on Linux, Windows, CUDA or MPS, when an allocation fails.
_NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "bad_alloc")


def tensor(value: ArrayLike, name: str, *, like: Tensor | None = None) -> Tensor:
    """``value`` as a float32 or float64 tensor that agrees with ``like``.

    Tensors keep their dtype and device, NumPy arrays their dtype; lists and integers
    take the dtype of ``like`` (or PyTorch's default).
    """
    if isinstance(value, Tensor):
        result = value
    elif isinstance(value, np.ndarray):
        result = torch.from_numpy(np.ascontiguousarray(value))
    else:
        try:
            result = torch.as_tensor(value, dtype=like.dtype if like is not None else None)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(
                f"{name} must be a tensor, an array or a list of numbers, "
                f"but a {type(value).__name__} was given"
            ) from error
        if like is not None:
            result = result.to(like.device)
    if not (result.is_floating_point() or result.is_complex()):
        result = result.to(like.dtype if like is not None else torch.get_default_dtype())
    if result.dtype not in FLOATS:
        raise ValueError(
            f"{name} has dtype {_short(result.dtype)}; use float32 or float64, for example {name}.double()"
        )
    if like is not None and (result.dtype != like.dtype or result.device != like.device):
        raise ValueError(
            f"{name} is {_short(result.dtype)} on {result.device}, but the other arguments are "
            f"{_short(like.dtype)} on {like.device}; convert it with "
            f"{name}.to(dtype=torch.{_short(like.dtype)}, device='{like.device}')"
        )
    return result


def cost_matrix(C: ArrayLike, name: str = "C") -> Tensor:
    """A ground cost (…, n, m): not empty, no NaN, no −∞, a finite entry in every row and column."""
    if hasattr(C, "dense"):
        return C.dense()  # a PointCloudCost, checked when it was made, for a solver that needs the matrix
    C = tensor(C, name)
    if C.ndim < 2:
        raise ValueError(f"{name} must have shape (…, n, m), but has shape {tuple(C.shape)}")
    if 0 in C.shape:
        raise ValueError(
            f"{name} has shape {tuple(C.shape)}: an empty measure has no transport plan; "
            "give each measure at least one point"
        )
    values = C.detach()
    # One pass decides the common case: the extremes are finite only if all entries are.
    if all(torch.isfinite(extreme) for extreme in torch.aminmax(values)):
        return C
    if torch.isnan(values).any():
        raise ValueError(f"{name} holds NaN {_first(torch.isnan(values), name)}; remove those points")
    if (values == -math.inf).any():
        raise ValueError(f"{name} holds −inf {_first(values == -math.inf, name)}; costs are above −inf")
    if torch.isinf(values).any():
        for axis, line in ((-1, "row"), (-2, "column")):
            closed = torch.isinf(values).all(axis)
            if closed.any():
                index = tuple(torch.nonzero(closed)[0].tolist())
                where = index[0] if len(index) == 1 else index
                raise ValueError(
                    f"{name} has an infinite cost in all of {line} {where}, so its mass has nowhere "
                    f"to go; give that {line} a finite entry or remove the point"
                )
    return C


def points(x: ArrayLike, name: str, *, like: Tensor | None = None) -> Tensor:
    """A point cloud (…, n, d): finite, at least one point."""
    x = tensor(x, name, like=like)
    if x.ndim < 2:
        raise ValueError(
            f"{name} must have shape (…, n, d), one point a row, but has shape {tuple(x.shape)}; "
            f"for points on the line write {name}[:, None]"
        )
    return _finite_not_empty(x, name)


def line_points(x: ArrayLike, name: str, *, like: Tensor | None = None) -> Tensor:
    """Points on the line (…, n): finite, at least one point."""
    x = tensor(x, name, like=like)
    if x.ndim < 1:
        raise ValueError(f"{name} must have shape (…, n), but is a single number; write [{name}]")
    return _finite_not_empty(x, name)


def weights(a: ArrayLike | None, n: int, name: str, *, like: Tensor) -> Tensor:
    """Weights (…, n): non-negative, sum 1. ``None`` means uniform.

    The last rounding errors of the sum are divided out, so that two measures have the
    same mass to working precision; the factor counts as a constant for gradients.
    """
    if a is None:
        return torch.full((n,), 1.0 / n, dtype=like.dtype, device=like.device)
    a = tensor(a, name, like=like)
    if a.ndim < 1 or a.shape[-1] != n:
        raise ValueError(
            f"{name} must have shape (…, {n}), one weight a point, but has shape {tuple(a.shape)}"
        )
    values = a.detach()
    bad = ~torch.isfinite(values)
    if bad.any():
        raise ValueError(f"{name} holds {values[bad][0].item()} {_first(bad, name)}; weights are finite")
    if (values < 0).any():
        raise ValueError(
            f"{name} holds a negative weight, {values.min().item():.6g}, {_first(values < 0, name)}; "
            f"weights are masses: use {name}.clamp(min=0) and divide by the sum"
        )
    mass = values.sum(-1, dtype=torch.float64)
    off = (mass - 1).abs() > MASS_TOLERANCE[a.dtype]
    if off.any():
        raise ValueError(
            f"{name} has mass {mass[off].flatten()[0].item():.8g}, not 1, so the two masses differ; "
            f"divide by the sum: {name} / {name}.sum(-1, keepdim=True), "
            "or use an unbalanced formulation"
        )
    return a * (1 / mass).to(a.dtype).unsqueeze(-1)


def problem(
    C: ArrayLike, a: ArrayLike | None, b: ArrayLike | None, *, lazy: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """A discrete problem: cost (…, n, m) with weights broadcast to (…, n) and (…, m).

    Solvers that never need the matrix say ``lazy`` and get a ``PointCloudCost`` as it is.
    """
    if not (lazy and hasattr(C, "bound")):
        C = cost_matrix(C)
    n, m = C.shape[-2:]
    a = weights(a, n, "a", like=C)
    b = weights(b, m, "b", like=C)
    batch = C.shape[:-2]
    for name, w in (("a", a), ("b", b)):
        if w.ndim > 1 and w.shape[:-1] != batch:
            raise ValueError(
                f"{name} has batch shape {tuple(w.shape[:-1])}, but C has {tuple(batch)}; "
                f"give {name} the shape {(*batch, w.shape[-1])} or {(w.shape[-1],)}"
            )
    return C, a.expand(*batch, n), b.expand(*batch, m)


def clouds(x: ArrayLike, y: ArrayLike) -> tuple[Tensor, Tensor]:
    """Two point clouds in the same space."""
    x = points(x, "x", like=None if isinstance(x, Tensor) else first_array(x, y))
    y = points(y, "y", like=x)
    same_dimension(x, y)
    return x, y


def same_dimension(x: Tensor, y: Tensor, names: tuple[str, str] = ("x", "y")) -> None:
    """The points of two clouds live in the same space."""
    if x.shape[-1] != y.shape[-1]:
        raise ValueError(
            f"{names[0]} has points in dimension {x.shape[-1]} and {names[1]} in dimension "
            f"{y.shape[-1]}; bring both to one space, or compare them by Gromov–Wasserstein"
        )


def batch(shapes: dict[str, torch.Size]) -> torch.Size:
    """The leading axes that all arguments broadcast to; ``shapes`` gives those of each, by name."""
    try:
        return torch.broadcast_shapes(*shapes.values())
    except RuntimeError as error:
        listing = ", ".join(f"{name} {tuple(shape)}" for name, shape in shapes.items() if shape)
        raise ValueError(f"the batch shapes do not agree: {listing}; make the leading axes equal") from error


def generator(value: torch.Generator) -> torch.Generator:
    """A source of randomness, which the caller owns."""
    if not isinstance(value, torch.Generator):
        raise TypeError(
            f"generator must be a torch.Generator, but a {type(value).__name__} was given; "
            "write torch.Generator().manual_seed(0)"
        )
    return value


@contextmanager
def memory(shape: Sequence[int], dtype: torch.dtype) -> Iterator[None]:
    """A context that stores costs of this shape: if memory runs out, the error says how to do without.

    PyTorch's own error, a RuntimeError or its subclass on CUDA, becomes a MemoryError.
    """
    try:
        yield
    except RuntimeError as error:
        if not any(sign in str(error) for sign in _NO_MEMORY):
            raise
        size = math.prod(shape) * dtype.itemsize / 2**30
        raise MemoryError(
            f"out of memory: costs of shape {tuple(shape)} in {_short(dtype)} take {size:.3g} GiB each time "
            "they are stored; pass PointCloudCost(x, y) to sinkhorn instead, which never stores them, or use "
            "fewer points"
        ) from error


def first_array(*arguments: ArrayLike) -> Tensor | None:
    """The first argument with a dtype of its own, which lists and integers then take on."""
    for argument in arguments:
        if isinstance(argument, (Tensor, np.ndarray)):
            return torch.as_tensor(argument)
    return None


def positive(value: float, name: str, *, remedy: str = "") -> float:
    """A finite number above 0."""
    number = _number(value, name)
    if not (math.isfinite(number) and number > 0):
        tail = f"; {remedy}" if remedy else ""
        raise ValueError(f"{name} must be a finite number above 0, but is {number:g}{tail}")
    return number


def positive_int(value: int, name: str) -> int:
    """A whole number of at least 1."""
    number = _number(value, name)
    if number != int(number) or number < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, but is {number:g}")
    return int(number)


def choice(value: str, name: str, allowed: Sequence[str]) -> str:
    """One of a few words."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, but is {value!r}")
    return value


def _number(value: float, name: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} must be a number, but a {type(value).__name__} was given") from error


def _finite_not_empty(x: Tensor, name: str) -> Tensor:
    if 0 in x.shape:
        raise ValueError(
            f"{name} has shape {tuple(x.shape)}: an empty measure cannot be transported; "
            "give at least one point"
        )
    bad = ~torch.isfinite(x.detach())
    if bad.any():
        raise ValueError(f"{name} holds {x.detach()[bad][0].item()} {_first(bad, name)}; remove that point")
    return x


def _first(mask: Tensor, name: str) -> str:
    """Where a mask is first true, as an index a user can type."""
    index = ", ".join(str(i) for i in torch.nonzero(mask)[0].tolist())
    return f"at {name}[{index}]"


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
