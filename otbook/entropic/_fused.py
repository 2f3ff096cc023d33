"""Fused kernels for CUDA: sums over exp((f_i + g_j − C_ij)/ε) without the matrix, in one pass each.

The cost of two clouds is formed tile by tile in fast memory and reduced there, as attention is in
FlashAttention (Dao et al., 2022), with the running maximum of Milakov and Gimelshein (2018). Memory
is O(n + m). Triton is optional: :func:`available` says where these kernels apply, and the blocked
products in PyTorch are the reference and serve everywhere else.

Everything of size n × m is float32, everything of size n + m may be float64. With u = 2⁻²⁴, the
exponent of a pair is wrong by at most u (|f_i + g_j| + k C_ij)/ε, k = d + 3, in the few dimensions
where C is a sum of squared differences, and by u (|f_i + g_j| + k (‖x_i‖ + ‖y_j‖)²)/ε, k = d + 8,
for centred clouds in more dimensions. The potentials themselves are not rounded: what float32
leaves of them is put back into the sums, which are compensated and do not lose digits with m.
"""

from __future__ import annotations

import importlib.util
import math
import os
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..costs import PointCloudCost
from ._kernel import COARSE, PointCloudKernel, near_one
from ._tiles import Exponents

if TYPE_CHECKING:
    import triton.language as tl

#: A program holds a tile of this many rows by this many columns, and takes the coordinates of its
#: points in chunks. Twice the tile takes 168 instead of 128 registers a thread on sm_90 where d = 3, so
#: that fewer programs run side by side.
_ROWS, _COLUMNS, _CHUNK = 32, 64, 32

#: Up to this dimension costs are sums of squared differences, as in :mod:`otbook.costs`.
_EXACT_DIMENSION = 16

_COSTS = ("sqeuclidean", "euclidean")

#: Half the spacing of float32 numbers at 1.
_ROUNDING = 2.0**-24


def available(x: Tensor, cost: str = "sqeuclidean") -> bool:
    """Whether the fused kernels take clouds like ``x`` with this ground cost.

    They take float32 on GPUs that Triton knows, of compute capability 7 or more, where it is installed;
    and on any device under Triton's interpreter, which is slow and meant for tests.
    """
    device = os.environ.get("TRITON_INTERPRET") == "1" or (
        x.is_cuda and torch.cuda.get_device_capability(x.device)[0] >= 7
    )
    return device and x.dtype == torch.float32 and cost in _COSTS and _installed()


@cache
def _installed() -> bool:
    return importlib.util.find_spec("triton") is not None


def softmin(x: Tensor, y: Tensor, h: Tensor, eps: float, *, cost: str = "sqeuclidean") -> Tensor:
    """The soft minimum f_i = −ε log Σ_j exp((h_j − C_ij)/ε), an entropic c-transform.

    Args:
        x: points, float32, shape (…, n, d).
        y: points, float32, shape (…, m, d), with the same leading axes.
        h: a potential, shape (m,) or (…, m), in units of C; −∞ leaves a point out.
        eps: temperature ε, in units of C.
        cost: ``"sqeuclidean"`` or ``"euclidean"``.

    Returns:
        f, shape (…, n), in units of C, with the dtype of h; +∞ where every h_j is −∞.

    Raises:
        RuntimeError: if a gradient is asked for, which the kernel has not.

    Note:
        Two passes: the sums of the first are formed at the scale of h, which costs digits where the
        potentials are large and the costs that matter small; the second sums exp((f + h − C)/ε),
        which is 1 but for the error of f.

    Source:
        Milakov and Gimelshein (2018), algorithm 3; the tiling of Dao et al. (2022), algorithm 1.
    """
    left, one = h.new_zeros(x.shape[:-1]), torch.ones_like(h)
    peak, total = _sums(x, y, left, h, one, eps, cost)
    f = -peak - eps * total.log()
    peak, total = _sums(x, y, f.nan_to_num(posinf=0.0), h, one, eps, cost)
    return (f - peak - eps * total.log()).to(h.dtype)


def product(
    x: Tensor, y: Tensor, left: Tensor, right: Tensor, v: Tensor, eps: float, *, cost: str = "sqeuclidean"
) -> Tensor:
    """The product of a scaled Gibbs kernel with a vector, Σ_j exp(left_i + right_j − C_ij/ε) v_j.

    Args:
        x: points, float32, shape (…, n, d).
        y: points, float32, shape (…, m, d), with the same leading axes.
        left: logarithms of the scaling of rows, f/ε for example, shape (n,) or (…, n); may be −∞.
        right: logarithms of the scaling of columns, shape (m,) or (…, m); may be −∞.
        v: a vector, shape (m,) or (…, m), of any sign.
        eps: temperature ε, in units of C.
        cost: ``"sqeuclidean"`` or ``"euclidean"``.

    Returns:
        The product, shape (…, n), with the dtype of v.

    Raises:
        RuntimeError: if a gradient is asked for, which the kernel has not.
    """
    peak, total = _sums(x, y, eps * left.double(), eps * right.double(), v, eps, cost)
    return (total * (peak / eps).exp()).to(v.dtype)


class FusedKernel(PointCloudKernel):
    """The kernel T of two clouds, for the core loop, by fused products.

    Where their error is too large, at a small ε or for the last digits, the blocked products step in.
    """

    def absorb(self, g: Tensor, eps: float, *, exact: bool) -> tuple[Tensor, Tensor]:
        """Remember g and its half-step f; returns f and the column sums c of diag(a) T."""
        x, y, cost, rounding = self.C.x, self.C.y, self.C.cost, _rounding(self.C, eps)
        self.fused = rounding <= COARSE
        right = g / eps + self.b.log()
        if exact or not self.fused:
            f, c = super().absorb(g, eps, exact=exact)
        else:
            f = softmin(x, y, eps * right, eps, cost=cost)
            # For Newton's matrix, which is made of blocks.
            self.E, self.measured, self.parts = Exponents(self.C, right, eps, self.wanted), None, None
            self.E.absorb(f)
        if self.fused:
            left, self.rounding = f / eps, rounding
            self.products = partial(product, x, y, left, right, eps=eps, cost=cost)
            self.transposed = partial(product, y, x, right, left, eps=eps, cost=cost)
            c = self.c = c if exact else self.transposed(self.a)
        return f, c

    def rows(self, v: Tensor) -> Tensor:
        """The product T v."""
        if not self.fused:
            return super().rows(v)
        return 1 + self.products(v - 1) if near_one(v) else self.products(v)

    def columns(self, w: Tensor) -> Tensor:
        """The product Tᵀ w."""
        return self.transposed(w) if self.fused else super().columns(w)

    def sweep(self, v: Tensor, near: bool | None = None) -> tuple[Tensor, Tensor]:
        """The products r = T v and Tᵀ(a/r), in two passes."""
        if not self.fused:
            return super().sweep(v, near)
        if near_one(v) if near is None else near:
            m = self.products(v - 1)
            return 1 + m, self.c - self.transposed(self.a * m / (1 + m))
        r = self.products(v)
        return r, self.transposed(self.a / r)

    def gram(self, w: Tensor, v: Tensor) -> Tensor:
        """The product Tᵀ diag(w) T v, in two passes."""
        return self.transposed(w * self.products(v)) if self.fused else super().gram(w, v)


def _rounding(C: PointCloudCost, eps: float) -> float:
    """A bound of the relative error of an entry of T that counts, for which f_i + g_j is about C_ij."""
    d, bound = C.x.shape[-1], C.bound()
    if d <= _EXACT_DIMENSION:
        return _ROUNDING * ((d + 4) * bound / eps + 64)
    if C.cost == "sqeuclidean":
        return _ROUNDING * ((d + 9) * bound / eps + 64)
    return math.sqrt(_ROUNDING * (d + 8)) * bound / eps


def _sums(
    x: Tensor, y: Tensor, f: Tensor, g: Tensor, v: Tensor, eps: float, cost: str
) -> tuple[Tensor, Tensor]:
    """Σ_j exp((f_i + g_j − C_ij)/ε) v_j in two factors, exp(peak_i/ε) and total_i, in float64."""
    if torch.is_grad_enabled() and any(t.requires_grad for t in (x, y, f, g, v)):
        raise RuntimeError("the fused kernels have no gradient: detach x, y and the potentials first")
    *batch, n, d = x.shape
    m = y.shape[-2]
    x2, y2 = x, y  # not read, unless the cost is expanded
    if d > _EXACT_DIMENSION:
        centre = y.double().mean(-2, keepdim=True)
        x, y = (x - centre).float(), (y - centre).float()
        x2, y2 = x.square().sum(-1), y.square().sum(-1)

    # A constant may go from g to f; float32 holds most digits of both when the largest g is 0.
    f, g, v = f.double().expand(*batch, n), g.double().expand(*batch, m), v.double().expand(*batch, m)
    constant = g.amax(-1, keepdim=True).nan_to_num(neginf=0.0)
    f, g = f + constant, g - constant
    f_high, g_high = f.float(), g.float()
    f_low, g_low = ((t - high).nan_to_num(nan=0.0) for t, high in ((f, f_high), (g, g_high)))
    v = (v * (g_low / eps).exp()).float()

    peak, total = torch.empty_like(f_high), torch.empty_like(f_high)
    programs = math.prod(batch) * -(-n // _ROWS)
    arguments = (t.contiguous() for t in (x, y, x2, y2, f_high, g_high, v))
    with torch.cuda.device_of(x):
        _kernel()[(programs,)](
            *arguments, peak, total, n, m, 1 / eps,
            d, d <= _EXACT_DIMENSION, cost == "euclidean", _ROWS, _COLUMNS, _CHUNK, enable_fp_fusion=True,
        )  # fmt: skip
    return peak.double() + f_low, total.double()


@cache
def _kernel() -> Any:
    """The kernel, compiled for the GPU at its first launch."""
    import triton
    import triton.language

    globals()["tl"] = triton.language
    return triton.jit(_tile_sums)


def _tile_sums(
    x, y, x2, y2, f, g, v, peak, total, n, m, inverse_eps,
    d: tl.constexpr, exact: tl.constexpr, root: tl.constexpr,
    rows: tl.constexpr, columns: tl.constexpr, chunk: tl.constexpr,
):  # fmt: skip
    """One program: some rows i of one problem of the batch, all columns j, a tile at a time."""
    blocks = tl.cdiv(n, rows)
    problem, first = tl.program_id(0) // blocks, tl.program_id(0) % blocks * rows
    row, column = problem.to(tl.int64) * n + first, problem.to(tl.int64) * m
    i, j, k = tl.arange(0, rows), tl.arange(0, columns), tl.arange(0, chunk)
    has_i = i < n - first

    f_i = tl.load(f + row + i, has_i, 0.0)
    peak_i = tl.full([rows], -float("inf"), tl.float32)
    total_i, lost_i = tl.zeros([rows], tl.float32), tl.zeros([rows], tl.float32)
    for start in range(0, m, columns):
        at = column + start
        has_j = j < m - start

        C = tl.zeros([rows, columns], tl.float32)
        if exact:
            for axis in range(d):
                x_i = tl.load(x + row * d + i * d + axis, has_i, 0.0)
                y_j = tl.load(y + at * d + j * d + axis, has_j, 0.0)
                difference = x_i[:, None] - y_j[None, :]
                C += difference * difference
        else:
            for axis in range(0, d, chunk):
                has_k = k < d - axis
                x_i = tl.load(x + row * d + axis + i[:, None] * d + k[None, :], has_i[:, None] & has_k, 0.0)
                y_j = tl.load(y + at * d + axis + j[None, :] * d + k[:, None], has_j & has_k[:, None], 0.0)
                C = tl.dot(x_i, y_j, C, input_precision="ieee")
            squares = tl.load(x2 + row + i, has_i, 0.0)[:, None] + tl.load(y2 + at + j, has_j, 0.0)[None, :]
            C = tl.maximum(squares - 2 * C, 0.0)
        if root:
            C = tl.sqrt(C)

        # The differences are formed in units of C, where they are exact, and scaled after that.
        E = f_i[:, None] + tl.load(g + at + j, has_j, -float("inf"))[None, :] - C
        new_peak = tl.maximum(peak_i, tl.max(E, 1))
        shift = tl.where(new_peak == -float("inf"), 0.0, new_peak)
        P = tl.exp((E - shift[:, None]) * inverse_eps) * tl.load(v + at + j, has_j, 0.0)[None, :]
        scale = tl.exp((peak_i - shift) * inverse_eps)
        peak_i, total_i, lost_i = new_peak, total_i * scale, lost_i * scale
        # Kahan (1965): what an addition rounds away is taken off the next term.
        term = tl.sum(P, 1) - lost_i
        new_total = total_i + term
        lost_i = (new_total - total_i) - term
        total_i = new_total
    tl.store(peak + row + i, peak_i, has_i)
    tl.store(total + row + i, total_i, has_i)
