"""Barycentres of images, iterated by Gaussian blurs along the rows and the columns."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from .. import _check
from .._check import ArrayLike
from .._result import ConvergenceWarning

#: If the smallest entry of a kernel is exp(−this), what underflows next to it is below rounding.
_SAFE_EXPONENT = {torch.float32: 50.0, torch.float64: 600.0}


def convolutional(
    images: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    eps: float,
    debiased: bool = False,
    spacing: float | None = None,
    tol: float = 1e-5,
    max_iter: int = 10_000,
) -> Tensor:
    """Entropic barycentre of images, by Gaussian blurs along the rows and the columns.

    Minimises Σ_k λ_k OT_ε(a_k, p) over images p of mass 1, where

        OT_ε(a, p) = min_P ⟨C, P⟩ + ε Σ_ij P_ij (log P_ij − 1),   C_ij = ‖x_i − x_j‖².

    This entropy does not know the marginals, unlike the KL term of ``sinkhorn``, and it blurs: even
    the barycentre of equal images is wider than they are. The debiased barycentre minimises
    Σ_k λ_k S_ε(a_k, p) with the Sinkhorn divergence S_ε(a, p) = OT_ε(a, p) − ½ OT_ε(a, a)
    − ½ OT_ε(p, p), where the blur cancels: equal images are their own barycentre.

    The kernel exp(−C/ε) is a Gaussian of variance ε/2 along each axis. Scalings are kept as
    logarithms, in float64 where the device has it, so that any ε is stable. On an axis whose squared
    length is beyond 600 ε matrix products give way to slower log-sum-exps. Small ε, and debiased
    also large ε, take many iterations.

    Args:
        images: K images, shape (…, K, h, w), non-negative, each of sum 1. Zeros are allowed.
        weights: λ, shape (K,) or (…, K), sum 1; uniform if None.
        eps: ε, in squared units of ``spacing``; by default the longer side of the image has length 1,
            and 1e-3 is a blur of standard deviation 0.022.
        debiased: minimise Sinkhorn divergences instead.
        spacing: distance between neighbouring pixels along both axes; None means 1 / max(h, w), and
            with 1 the unit is a pixel.
        tol: stop when Σ_k λ_k ‖P_kᵀ1 − p‖₁ ≤ tol for every problem of the batch, where P_k1 = a_k
            holds exactly; the debiased barycentre counts the plan from p to itself too.
        max_iter: largest number of iterations; one blurs 2K images.

    Returns:
        Barycentre p, shape (…, h, w), of sum 1; detached: no gradient passes through it.

    Raises:
        ValueError: for images that are no measures, invalid weights, and for eps, spacing, tol or
            max_iter that are not positive.

    Warns:
        ConvergenceWarning: when ``tol`` is not reached in ``max_iter`` iterations.

    Note:
        ``ot.bregman.convolutional_barycenter2d(A, reg)`` has its pixels at ``linspace(0, 1, n)``: for
        square images it is this function with ``spacing=1 / (n - 1)``.

    Source:
        Benamou, Carlier, Cuturi, Nenna and Peyré (2015), section 3.2; Solomon et al. (2015),
        algorithm 2; debiased: Janati, Cuturi and Gramfort (2020), the debiased Sinkhorn iterations.

    Example:
        >>> images = torch.zeros(2, 1, 5, dtype=torch.float64)
        >>> images[0, 0, 0] = images[1, 0, 2] = 1
        >>> convolutional(images, eps=0.01, debiased=True).round(decimals=4)
        tensor([[0., 1., 0., 0., 0.]], dtype=torch.float64)
    """
    images = _images(images)
    lam = _check.weights(weights, images.shape[-3], "weights", like=images)
    eps = _check.positive(eps, "eps")
    spacing = 1 / max(images.shape[-2:]) if spacing is None else _check.positive(spacing, "spacing")
    tol = _check.positive(tol, "tol")
    max_iter = _check.positive_int(max_iter, "max_iter")
    batch = _check.batch({"images": images.shape[:-3], "weights": lam.shape[:-1]})

    dtype = torch.float32 if images.device.type == "mps" else torch.float64
    log_a = images.detach().to(dtype).expand(*batch, *images.shape[-3:]).log()
    lam = lam.detach().to(dtype)[..., None, None]
    lam = lam / lam.sum(-3, keepdim=True)
    blur = _blur(log_a, spacing, eps)

    # u, v and d of the algorithms, as logarithms; without debiasing d stays 1.
    v, d = torch.zeros_like(log_a), torch.zeros_like(log_a[..., :1, :, :])
    for _ in range(max_iter):
        Ku = blur(log_a - blur(v))
        log_p = d + (lam * Ku).sum(-3, keepdim=True)
        p = log_p.exp()
        error = (lam * ((v + Ku).exp() - p).abs()).sum((-3, -2, -1))
        v = log_p - Ku
        if debiased:
            Kd = blur(d)
            error = error + ((d + Kd).exp() - p).abs().sum((-3, -2, -1))
            d = (d + log_p - Kd) / 2
        if (error <= tol).all():
            break
    else:
        warnings.warn(
            f"convolutional stopped after {max_iter} iterations with marginal error "
            f"{error.max().item():.2g} above tol = {tol:g}: raise max_iter or tol, "
            f"or {'change' if debiased else 'raise'} eps",
            ConvergenceWarning,
            stacklevel=2,
        )
    return (p / p.sum((-2, -1), keepdim=True)).squeeze(-3).to(images.dtype)


def _blur(like: Tensor, spacing: float, eps: float) -> Callable[[Tensor], Tensor]:
    """The map L ↦ log(K exp L) for images L (…, h, w) and the separable kernel K = exp(−C/ε)."""
    exponents = []
    for n in like.shape[-2:]:
        t = spacing * torch.arange(n, dtype=like.dtype, device=like.device)
        exponents.append(-(t[:, None] - t).square() / eps)
    kernels = [E.exp() if E.min() >= -_SAFE_EXPONENT[E.dtype] else None for E in exponents]

    def along_rows(L: Tensor, E: Tensor, K: Tensor | None) -> Tensor:
        if K is None:
            return torch.stack([torch.logsumexp(L + row, -1) for row in E], -1)
        peak = L.amax(-1, keepdim=True).clamp(min=torch.finfo(L.dtype).min)  # a row may be empty: all −∞
        return ((L - peak).exp() @ K).log() + peak

    def blur(L: Tensor) -> Tensor:
        L = along_rows(L, exponents[1], kernels[1]).mT
        return along_rows(L, exponents[0], kernels[0]).mT

    return blur


def _images(images: ArrayLike) -> Tensor:
    """Images (…, K, h, w), each a probability measure on the pixels."""
    images = _check.tensor(images, "images")
    if images.ndim < 3 or 0 in images.shape:
        raise ValueError(
            f"images must have shape (…, K, h, w), at least one image of one pixel, "
            f"but has shape {tuple(images.shape)}"
        )
    values = images.detach()
    for wrong, what in ((~torch.isfinite(values), "not finite"), (values < 0, "negative")):
        if wrong.any():
            where = ", ".join(str(i) for i in torch.nonzero(wrong)[0].tolist())
            raise ValueError(
                f"images has a pixel that is {what}, {values[wrong][0].item():.6g} at images[{where}]; "
                "pixels are masses: use images.nan_to_num(0).clamp(min=0) and divide by the sum"
            )
    mass = values.sum((-2, -1), dtype=torch.float64)
    off = (mass - 1).abs() > _check.MASS_TOLERANCE[images.dtype]
    if off.any():
        raise ValueError(
            f"images has an image of mass {mass[off][0].item():.8g}, not 1; divide by the sum: "
            "images / images.sum((-2, -1), keepdim=True)"
        )
    return images
