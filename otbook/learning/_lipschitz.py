"""Critics that cannot be too steep: a sorting activation, orthonormal weights, a test of the constant.

A composition of 1-Lipschitz layers is 1-Lipschitz. Layers that also keep the length of the gradient lose
nothing on the way: sorting permutes it, orthonormal weights rotate it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import _check
from .._check import ArrayLike


def orthonormalise(W: ArrayLike, *, n_iter: int = 12, order: int = 1) -> Tensor:
    """Move matrices towards the nearest ones with orthonormal rows or columns, whichever are fewer.

    Divides W by a bound of its spectral norm, then iterates, for a matrix A with no more columns than rows,

        A ← A (I + ½ Q + ⅜ Q² + … + c_p Q^p) ,    Q = I − Aᵀ A ,    c_p = (2p choose p) / 4^p .

    The limit is U Vᵀ for W = U Σ Vᵀ. A singular value σ ≤ 1 goes to a number in [σ, 1], so the spectral
    norm is at most 1 up to rounding after any number of iterations; with too few, some singular values
    are still below 1. The error of one close to 1 is raised to the power p + 1. A small one grows by the
    factor 1 + ½ + … + c_p only, which is 3/2 for p = 1.

    Args:
        W: matrices, shape (…, m, k).
        n_iter: number of iterations.
        order: the degree p ≥ 1.

    Returns:
        The matrices, shape (…, m, k), differentiable in W. Zero stays zero.

    Raises:
        ValueError: if W is no finite matrix, or n_iter or order is below 1.

    Source:
        Björck and Bowie (1971); the scaling before it as in Anil, Lucas and Grosse (2019), with the bound
        σ_max⁴ ≤ ‖Wᵀ W‖², in the Frobenius norm.

    Example:
        >>> Q = orthonormalise(torch.tensor([[3.0, 0.0], [4.0, 5.0]], dtype=torch.float64))
        >>> (Q @ Q.T - torch.eye(2)).abs().max().item() < 1e-12
        True
    """
    W = _check.points(W, "W")
    n_iter, order = _check.positive_int(n_iter, "n_iter"), _check.positive_int(order, "order")
    return _bjorck(W, n_iter, order)


def _bjorck(W: Tensor, n_iter: int, order: int) -> Tensor:
    tall = W.shape[-2] >= W.shape[-1]
    A = W if tall else W.mT  # so that Aᵀ A is small
    if W.ndim > 2:
        A = A.reshape(-1, *A.shape[-2:])
    multiply = torch.addmm if W.ndim == 2 else torch.baddbmm  # one call for β·first + α·second·third
    tiny = torch.finfo(A.dtype).tiny
    A = A / A.detach().abs().amax((-2, -1), keepdim=True).clamp(min=tiny)  # no overflow in the fourth power
    A = A / torch.linalg.matrix_norm(A.mT @ A, keepdim=True).clamp(min=tiny).sqrt()
    eye = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
    for _ in range(n_iter if A.shape[-1] > 1 else 0):  # a single column is normalised by now
        Q = multiply(eye, A.mT, A, alpha=-1)
        series = Q  # Horner, with c_j = c_{j−1} (2j − 1) / 2j and c_1 = ½
        for j in range(order, 1, -1):
            series = multiply(Q, Q, series, alpha=(2 * j - 1) / (2 * j))
        A = multiply(A, A, series, alpha=0.5)
    return (A if tall else A.mT).reshape(W.shape)


class GroupSort(nn.Module):
    """Sort the features in groups: h = (h₁, …, h_k) ↦ each group of consecutive ones in ascending order.

    Where it is differentiable, its Jacobian is a permutation: it is 1-Lipschitz for every p-norm, and it
    keeps the norm of a gradient. Groups of two are called MaxMin; one group of all features FullSort.

    Args:
        group_size: features a group; must divide the width.

    Raises:
        ValueError: for a size below 1, and on a call with a width that is no multiple of it.

    Source:
        Anil, Lucas and Grosse (2019), section 4.1.

    Example:
        >>> GroupSort(2)(torch.tensor([[3.0, 1.0, 2.0, 5.0]])).tolist()
        [[1.0, 3.0, 2.0, 5.0]]
    """

    def __init__(self, group_size: int = 2) -> None:
        super().__init__()
        self.group_size = _check.positive_int(group_size, "group_size")

    def forward(self, x: Tensor) -> Tensor:
        """Shape (…, width) to the same shape."""
        width, size = x.shape[-1], self.group_size
        if width % size:
            raise ValueError(
                f"x has {width} features, no multiple of group_size = {size}; choose a width that is one"
            )
        return x.unflatten(-1, (width // size, size)).sort(-1).values.flatten(-2)

    def extra_repr(self) -> str:
        """What is shown by ``print``."""
        return f"group_size={self.group_size}"


class BjorckLinear(nn.Module):
    """An affine layer with orthonormal weights, x ↦ Ŵ x + b, where Ŵ = :func:`orthonormalise` of a parameter.

    Rows of Ŵ are orthonormal if there are no more outputs than inputs, columns otherwise. The spectral norm
    is at most 1 up to rounding, whatever the parameter, so the layer is 1-Lipschitz during training too.
    If no output is lost (out_features ≥ in_features) it is an isometry once the iteration has converged.

    Args:
        in_features: dimension k of the inputs.
        out_features: dimension m of the outputs.
        bias: whether to add b.
        n_iter: iterations a call.
        order: of the iteration.
        generator: source of randomness, on ``device``; PyTorch's own, as for every ``nn.Module``, if None.
        dtype: of the parameters; PyTorch's default if None.
        device: of the parameters; PyTorch's default if None.

    Attributes:
        weight: parameter, shape (m, k); starts orthonormal, and is not kept so by training.
        bias: parameter, shape (m,), or None; starts uniform in ±1/√k.

    Raises:
        ValueError: for sizes, n_iter or order below 1.
        TypeError: for a generator that is none.

    Source:
        Anil, Lucas and Grosse (2019), section 4.2.

    Example:
        >>> layer = BjorckLinear(2, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> x = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
        >>> round((layer(x) - layer(0 * x)).norm().item(), 6)
        5.0
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool = True,
        n_iter: int = 12,
        order: int = 1,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.in_features = _check.positive_int(in_features, "in_features")
        self.out_features = _check.positive_int(out_features, "out_features")
        self.n_iter = _check.positive_int(n_iter, "n_iter")
        self.order = _check.positive_int(order, "order")
        if generator is not None:
            generator = _check.generator(generator)
        options = {"dtype": dtype, "device": device}
        shape = max(self.out_features, self.in_features), min(self.out_features, self.in_features)
        tall = torch.linalg.qr(torch.randn(*shape, generator=generator, **options)).Q
        weight = tall if self.out_features >= self.in_features else tall.T
        self.weight = nn.Parameter(weight.contiguous())
        self.bias = None
        if bias:
            uniform = torch.rand(self.out_features, generator=generator, **options)
            self.bias = nn.Parameter((2 * uniform - 1) / math.sqrt(self.in_features))

    def orthonormal_weight(self) -> Tensor:
        """Ŵ, shape (m, k), differentiable in the parameter."""
        return _bjorck(self.weight, self.n_iter, self.order)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (…, k) to (…, m)."""
        if x.shape[-1] != self.in_features:
            raise ValueError(f"x has {x.shape[-1]} features, but the layer takes {self.in_features}")
        return F.linear(x, self.orthonormal_weight(), self.bias)

    def extra_repr(self) -> str:
        """What is shown by ``print``."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, n_iter={self.n_iter}, order={self.order}"
        )


def lipschitz_mlp(
    widths: Sequence[int],
    *,
    activation: str = "groupsort",
    group_size: int = 2,
    n_iter: int = 12,
    order: int = 1,
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> nn.Sequential:
    """A 1-Lipschitz network: :class:`BjorckLinear` layers with an activation between them.

    Args:
        widths: of input, hidden layers and output, at least two; hidden ones are multiples of group_size.
        activation: ``"groupsort"``, or ``"relu"`` for comparison, which loses gradient norm.
        group_size: of :class:`GroupSort`.
        n_iter: of the layers.
        order: of the layers.
        generator: as for the layers, which draw from it one after the other.
        dtype: of the parameters.
        device: of the parameters.

    Returns:
        The network, from shape (…, widths[0]) to (…, widths[-1]).

    Raises:
        ValueError: for fewer than two widths, a hidden one that is no multiple, or an unknown activation.

    Source:
        Anil, Lucas and Grosse (2019).

    Example:
        >>> f = lipschitz_mlp([2, 16, 16, 1], generator=torch.Generator().manual_seed(0))
        >>> f(torch.zeros(5, 2)).shape
        torch.Size([5, 1])
    """
    widths = [_check.positive_int(w, "widths") for w in widths]
    _check.choice(activation, "activation", ("groupsort", "relu"))
    group_size = _check.positive_int(group_size, "group_size")
    if len(widths) < 2:
        raise ValueError(f"widths must name input and output at least, but is {widths}")
    if activation == "groupsort" and any(w % group_size for w in widths[1:-1]):
        raise ValueError(
            f"widths has hidden layers {widths[1:-1]}, which must be multiples of group_size = {group_size}"
        )
    options = {"n_iter": n_iter, "order": order, "generator": generator, "dtype": dtype, "device": device}
    layers: list[nn.Module] = []
    for k, m in pairwise(widths):
        layers += [
            BjorckLinear(k, m, **options),
            GroupSort(group_size) if activation == "groupsort" else nn.ReLU(),
        ]
    return nn.Sequential(*layers[:-1])


def empirical_lipschitz(f: Callable[[Tensor], Tensor], x: ArrayLike) -> Tensor:
    """The steepest that a function was seen to be: a lower bound of its Lipschitz constant.

    The largest of the gradient norms |∇f(xᵢ)| and of the quotients |f(xᵢ) − f(xⱼ)| / |xᵢ − xⱼ|. No finite set
    of points can give an upper bound. Pairs closer than √eps times the largest norm of a point are left
    out, since rounding would decide their quotient.

    Args:
        f: a function from shape (n, d) to (n,) or (n, 1) that treats rows one by one; PyTorch must be able
            to differentiate it.
        x: points, shape (n, d).

    Returns:
        The number, a tensor without axes and without gradient. Memory and time are quadratic in n.

    Raises:
        ValueError: if x is no single finite cloud, or f returns another shape.

    Example:
        >>> x = torch.tensor([[0.0, 0.0], [3.0, 4.0]], dtype=torch.float64)
        >>> round(empirical_lipschitz(lambda z: 2 * z.square().sum(1).add(1).sqrt(), x).item(), 4)
        1.9612
    """
    x = _check.points(x, "x").detach()
    if x.ndim != 2:
        raise ValueError(f"x must be a single cloud (n, d), but has shape {tuple(x.shape)}")
    with torch.enable_grad():
        z = x.clone().requires_grad_()
        values = f(z)
        if values.shape not in ((len(x),), (len(x), 1)):
            raise ValueError(
                f"f must return shape ({len(x)},) or ({len(x)}, 1), but returned {tuple(values.shape)}"
            )
        (gradient,) = torch.autograd.grad(values.sum(), z)
    values = values.detach().flatten()
    far = math.sqrt(torch.finfo(x.dtype).eps) * x.norm(dim=1).max()
    distance = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
    rise = (values[:, None] - values).abs()
    quotients = torch.where(distance > far, rise / distance, 0)
    return torch.maximum(gradient.norm(dim=1).max(), quotients.max())
