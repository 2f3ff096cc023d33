"""Linear systems S x = r with the Laplacian S of a plan, for Newton's method and implicit gradients.

S = diag(Pᵀ1) − Pᵀ diag(1/a) P joins two targets when they share a source. Its rows sum to 0: so must r, and
x is known up to a constant.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from .._result import ConvergenceWarning
from ._kernel import DenseKernel

#: A relative shift that keeps the singular Laplacian factorisable.
SHIFT = 1e4

#: Conjugate gradients that solve a system to working precision may take this many iterations.
SOLVE_LIMIT = 2_000


def conjugate_gradients(
    S: Callable[[Tensor], Tensor], r: Tensor, inverse: Tensor, accuracy: float, limit: int
) -> tuple[Tensor, int, bool]:
    """Solve S x = r, preconditioned by ``inverse``; returns x, the iterations, and whether it is solved.

    The residual is kept balanced, or rounding would pile up in the constants, the kernel of S.
    ``accuracy`` is the share of the residual that may be left, in the norm of the preconditioner.
    """
    share = ratio(torch.ones_like(inverse), inverse)
    share = share / share.sum(-1, keepdim=True)

    def balanced(z: Tensor) -> Tensor:
        return torch.addcmul(z, share, z.sum(-1, keepdim=True), value=-1)

    r = balanced(r)
    x, p = torch.zeros_like(r), r * inverse
    square = _dot(r, p)
    stop = square * accuracy**2
    for k in range(1, limit + 1):
        Sp = balanced(S(p))
        # A problem of the batch that is solved stands still while the others go on.
        step = ratio(square, _dot(p, Sp)) * (square > stop)
        x, r = torch.addcmul(x, step, p), torch.addcmul(r, step, Sp, value=-1)
        z = r * inverse
        previous, square = square, _dot(r, z)
        if (square <= stop).all():
            return x, k, True
        p = torch.addcmul(z, ratio(square, previous), p)
    return x, limit, False


def _dot(x: Tensor, y: Tensor) -> Tensor:
    """The inner product along the last axis, which stays."""
    return torch.linalg.vecdot(x, y).unsqueeze(-1)


def laplacian_solve(kernel: DenseKernel, c: Tensor, r: Tensor) -> Tensor:
    """Solve S x = r to working precision for the plan diag(a) T with column sums c, r summing to 0."""
    limit = min(SOLVE_LIMIT, c.shape[-1] // 10 + 50) if kernel.factorisable else SOLVE_LIMIT
    inverse = ratio(torch.ones_like(c), c)

    def S(p: Tensor) -> Tensor:
        return c * p - kernel.gram(kernel.a, p)

    x, _, solved = conjugate_gradients(S, r, inverse, 1e-12, limit)
    if not solved and kernel.factorisable:
        exact, failed = cholesky_solve(kernel, torch.ones_like(kernel.a), torch.ones_like(c), r)
        x = torch.where(failed, x, exact)
        solved = not failed.any()
    left = ((S(x) - r).abs().sum(-1) / r.abs().sum(-1).clamp(min=1e-300)).max().item()
    if not solved and left > 1e-6:
        warnings.warn(
            f"the linear system of an implicit gradient is solved only to a share of {left:.1g} of its right "
            "side: raise eps, or differentiate the value, which needs no such system",
            ConvergenceWarning,
            stacklevel=3,
        )
    return x


def cholesky_solve(kernel: DenseKernel, u: Tensor, v: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
    """Solve S x = r for the plan diag(a u) T diag(v) by Cholesky; returns x and where that failed, (…, 1)."""
    S = kernel.laplacian(u, v)
    shift = SHIFT * torch.finfo(r.dtype).eps * kernel.b
    S.diagonal(dim1=-2, dim2=-1).add_(torch.where(kernel.b > 0, shift, 1.0))
    L, failed = torch.linalg.cholesky_ex(S)
    return torch.cholesky_solve(r.unsqueeze(-1), L).squeeze(-1), (failed > 0).unsqueeze(-1)


def or_one(x: Tensor) -> Tensor:
    """Keep x where it is positive, else 1: an empty row or column is left alone."""
    return torch.where(x > 0, x, 1.0)


def ratio(x: Tensor, y: Tensor) -> Tensor:
    """Divide x by y, giving 0 where y is not positive."""
    return torch.where(y > 0, x / y, 0.0)
