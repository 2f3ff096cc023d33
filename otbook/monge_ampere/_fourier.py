"""Grids of the torus: their points, their frequencies, and checks of what lives on them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import _check
from .._check import ArrayLike


def grid(n1: int, n2: int, *, like: Tensor | None = None) -> Tensor:
    """The points (i/n1, j/n2) of the torus, shape (n1, n2, 2), with the dtype and device of ``like``.

    Example:
        >>> grid(2, 4)[1, 3]
        tensor([0.5000, 0.7500])
    """
    like = torch.empty(0) if like is None else like
    options = {"dtype": like.dtype, "device": like.device}
    axes = [torch.arange(n, **options) / n for n in (n1, n2)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)


def frequencies(n: int, *, like: Tensor, half: bool = False) -> tuple[Tensor, Tensor]:
    """2π times the integer frequencies: for even derivatives, and for odd ones, without the highest.

    The highest frequency n/2 is a cosine on the grid whose sine, its derivative, vanishes there.
    """
    options = {"dtype": torch.float64, "device": like.device}
    k = (torch.fft.rfftfreq if half else torch.fft.fftfreq)(n, 1 / n, **options)
    odd = torch.where(2 * k.abs() == n, 0, k)
    return (2 * math.pi * k).to(like.dtype), (2 * math.pi * odd).to(like.dtype)


def density(value: ArrayLike, name: str, *, like: Tensor | None = None) -> Tensor:
    """A positive density on a grid of even sizes."""
    value = finite_grid(value, name, like)
    low = value.min().item()
    if low <= 0:
        raise ValueError(
            f"{name} has the value {low:.6g}; densities must be positive, or the equation is not elliptic: "
            f"add a small constant to {name} and divide by the mean"
        )
    return value


def finite_grid(value: ArrayLike, name: str, like: Tensor | None) -> Tensor:
    """Finite values on a grid of even sizes; ``u0`` on that of ``like``."""
    value = _check.points(_check.tensor(value, name, like=like), name).detach()
    if value.ndim != 2 or value.shape[0] % 2 or value.shape[1] % 2:
        raise ValueError(f"{name} must have shape (n1, n2) with even sizes, but has {tuple(value.shape)}")
    if name == "u0" and value.shape != like.shape:
        raise ValueError(f"u0 has shape {tuple(value.shape)}, but f has {tuple(like.shape)}")
    return value
