"""Matrix roots and rotations with derivatives that stay finite where eigenvalues coincide.

PyTorch differentiates through eigenvectors, which divides by differences of eigenvalues and
returns NaN at the identity matrix. The functions of the spectrum below need no eigenvector to
be unique, and their derivatives divide by sums only. They can be differentiated once.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable


def psd_root(S: Tensor) -> tuple[Tensor, Tensor]:
    """S^{1/2} of symmetric matrices (…, d, d), and the eigenvalues of S in ascending order.

    Eigenvalues below rounding count as 0; the caller judges the negative ones. The eigenvalues
    are constants for gradients, and the null space of S has derivative 0.
    """
    return _PsdRoot.apply(S)


def polar(M: Tensor) -> Tensor:
    """The orthogonal U for which tr(MU) is largest: U = BAᵀ for M = AΣBᵀ, shape (…, d, d)."""
    return _Polar.apply(M)


def symmetric(S: Tensor) -> Tensor:
    """The symmetric part (S + Sᵀ)/2."""
    return (S + S.mT) / 2


class _PsdRoot(Function):
    """From R R = S, R dR + dR R = dS: in the eigenbasis a division by sums of roots."""

    @staticmethod
    def forward(ctx, S):
        values, V = torch.linalg.eigh(S)
        # The root of a rounding error would be a thousand million roundings.
        floor = S.shape[-1] * torch.finfo(S.dtype).eps * values[..., -1:]
        roots = torch.where(values > floor, values, 0.0).sqrt()
        ctx.save_for_backward(roots, V)
        ctx.mark_non_differentiable(values)
        return (V * roots[..., None, :]) @ V.mT, values

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, _):
        roots, V = ctx.saved_tensors
        return V @ _divide(V.mT @ symmetric(grad) @ V, roots[..., :, None] + roots[..., None, :]) @ V.mT


class _Polar(Function):
    """From MU = AΣAᵀ symmetric, dU = B X Aᵀ with X skew: a division by sums of singular values."""

    @staticmethod
    def forward(ctx, M):
        A, sigma, Bt = torch.linalg.svd(M)
        ctx.save_for_backward(A, sigma, Bt)
        return Bt.mT @ A.mT

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        A, sigma, Bt = ctx.saved_tensors
        X = A.mT @ grad.mT @ Bt.mT
        return A @ _divide(X - X.mT, sigma[..., :, None] + sigma[..., None, :]) @ Bt


def _divide(x: Tensor, y: Tensor) -> Tensor:
    """Quotient x / y, and 0 where y is 0."""
    return torch.where(y > 0, x / torch.where(y > 0, y, 1.0), 0.0)
