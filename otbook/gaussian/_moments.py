"""Means and covariances at the boundary: checked once, with common leading axes."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _check
from .._check import ArrayLike
from .._roots import psd_root, symmetric

#: Relative asymmetry of a covariance that counts as rounding.
_ASYMMETRY = {torch.float32: 1e-4, torch.float64: 1e-8}


def pair(m0: ArrayLike, S0: ArrayLike, m1: ArrayLike, S1: ArrayLike) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Two checked Gaussians in one space, with common leading axes."""
    m0, S0 = gaussian(m0, S0, "m0", "S0", like=_check.first_array(m0, S0, m1, S1))
    m1, S1 = gaussian(m1, S1, "m1", "S1", like=m0)
    _check.same_dimension(m0, m1, ("m0", "m1"))
    batch = _check.batch({"(m0, S0)": m0.shape[:-1], "(m1, S1)": m1.shape[:-1]})
    d = m0.shape[-1]
    return m0.expand(*batch, d), S0.expand(*batch, d, d), m1.expand(*batch, d), S1.expand(*batch, d, d)


def gaussian(
    m: ArrayLike, S: ArrayLike, name_m: str, name_S: str, *, like: Tensor | None
) -> tuple[Tensor, Tensor]:
    """A checked mean (…, d) and a symmetric covariance (…, d, d), with common leading axes."""
    m = _check.tensor(m, name_m, like=like)
    S = _check.tensor(S, name_S, like=m)
    if m.ndim < 1 or m.numel() == 0:
        raise ValueError(f"{name_m} must have shape (…, d) with d ≥ 1, but has shape {tuple(m.shape)}")
    d = m.shape[-1]
    if S.shape[-2:] != (d, d):
        raise ValueError(
            f"{name_S} must have shape (…, {d}, {d}) to go with {name_m} of shape {tuple(m.shape)}, "
            f"but has shape {tuple(S.shape)}"
        )
    for name, t in ((name_m, m), (name_S, S)):
        if not torch.isfinite(t.detach()).all():
            raise ValueError(f"{name} has entries that are not finite; estimate it from finite points")
    values = S.detach()
    asymmetry = (values - values.mT).abs().amax((-2, -1))
    if (asymmetry > _ASYMMETRY[S.dtype] * values.abs().amax((-2, -1))).any():
        raise ValueError(
            f"{name_S} is not symmetric: entries differ from the transpose by {asymmetry.max().item():.3g}; "
            f"symmetrise it, ({name_S} + {name_S}.mT) / 2"
        )
    batch = _check.batch({name_m: m.shape[:-1], name_S: S.shape[:-2]})
    return m.expand(*batch, d), symmetric(S).expand(*batch, d, d)


def root(S: Tensor, name: str, *, invertible: bool = False) -> Tensor:
    """S^{1/2}; complains about negative eigenvalues, and about zero ones if asked."""
    R, values = psd_root(S)
    rounding = S.shape[-1] * torch.finfo(S.dtype).eps * values[..., -1].abs()
    smallest = values[..., 0]
    # Covariances estimated in their own precision miss symmetry and positivity by far more than
    # one rounding, hence the factor.
    if (smallest < -100 * rounding).any():
        raise ValueError(
            f"{name} is no covariance: its smallest eigenvalue is {smallest.min().item():.6g}; "
            f"add a multiple of the identity or set negative eigenvalues to 0"
        )
    if invertible and (smallest <= rounding).any():
        raise ValueError(
            f"{name} must be positive definite, but its smallest eigenvalue is {smallest.min().item():.6g}; "
            f"add a small multiple of the identity, {name} + 1e-6 * torch.eye({S.shape[-1]})"
        )
    return R
