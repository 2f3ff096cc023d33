"""What holds a critic back: the gradient penalty of WGAN-GP, and the weight clipping of the first WGAN."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from .. import _check
from .._check import ArrayLike


def gradient_penalty(
    critic: Callable[[Tensor], Tensor],
    real: ArrayLike,
    fake: ArrayLike,
    *,
    target: float = 1.0,
    one_sided: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    """How far the slope of a critic is from ``target``, at random points between data and samples.

    ``E (‖∇D(x̂)‖ − target)²`` with ``x̂ = t·real + (1 − t)·fake``, one uniform t in [0, 1] a sample. The
    norm is the Euclidean one over all axes but the first, whatever the shape of the data. With
    ``one_sided`` only slopes above the target count, ``E max(‖∇D(x̂)‖ − target, 0)²``; with ``target=0``
    it is ``E ‖∇D(x̂)‖²``, without a kink at 0. ``gradient_penalty(critic, real, real, target=0)`` is the
    zero-centred penalty at the data themselves (R₁, up to its factor ½).

    The result can be differentiated in the parameters of the critic, any number of times, also where
    the slope is 0: there the norm counts as constant. ``real`` and ``fake`` count as constants, so that
    nothing flows back to the generator. Under ``torch.no_grad()`` only the value is computed.

    Args:
        critic: maps (n, …) to one number a sample, (n,) or (n, 1, …). Samples must not see each other,
            so no batch normalisation.
        real: data, shape (n, …), not empty.
        fake: samples of the generator, of the same shape, dtype and device.
        target: the slope that costs nothing, at least 0.
        one_sided: forgive slopes below the target.
        generator: source of t, on any device; PyTorch's own on the CPU if None. One generator
            gives the same t for every device and dtype of the data.

    Returns:
        The penalty, a tensor with one number, not multiplied by any λ.

    Raises:
        ValueError: for shapes, dtypes or devices that differ, no samples, a negative target, or a critic
            that does not return one number a sample.
        TypeError: for a generator of another kind.

    Source:
        Gulrajani, Ahmed, Arjovsky, Dumoulin, Courville (2017), equation (3) and algorithm 1; target 0 at
        the data: Mescheder, Geiger, Nowozin (2018), equation (9).

    Example:
        >>> real, fake = torch.zeros(5, 1, 8, 8), torch.ones(5, 1, 8, 8)
        >>> gradient_penalty(lambda x: 2 * x[:, 0, 0, 0], real, fake)
        tensor(1.)
    """
    real = _check.tensor(real, "real", like=None if isinstance(real, Tensor) else _check.first_array(fake))
    fake = _check.tensor(fake, "fake", like=real)
    if real.shape != fake.shape or real.ndim == 0:
        raise ValueError(
            f"real and fake must have one shape (n, …), but have {tuple(real.shape)} and "
            f"{tuple(fake.shape)}; draw as many samples as there are data, in the same layout"
        )
    if 0 in real.shape:
        raise ValueError(f"real and fake have shape {tuple(real.shape)}; give at least one sample")
    target = float(target)
    if not (math.isfinite(target) and target >= 0):
        raise ValueError(f"target must be a finite slope of at least 0, but is {target:g}")

    n = len(real)
    device = "cpu" if generator is None else _check.generator(generator).device
    # One weight a sample, with as many axes as the data: (n, 1) alone would meet the last axes of an image.
    t = torch.rand(n, generator=generator, dtype=torch.float64, device=device)
    t = t.to(device=real.device, dtype=real.dtype).reshape(n, *[1] * (real.ndim - 1))
    keep_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        x = torch.lerp(fake.detach(), real.detach(), t).requires_grad_()
        value = critic(x)
        if value.numel() != n or value.shape[:1] != (n,):
            raise ValueError(
                f"critic must return one number a sample, shape ({n},) or ({n}, 1), but returned "
                f"{tuple(value.shape)}"
            )
        if value.requires_grad:
            (slope,) = torch.autograd.grad(
                value.sum(), x, create_graph=keep_graph, allow_unused=True, materialize_grads=True
            )
        else:  # a critic without parameters that ignores its input
            slope = torch.zeros_like(x)
    square = slope.reshape(n, -1).square().sum(1)
    if target == 0:
        return square.mean()
    # √ has an infinite derivative at 0; the inner ``where`` keeps it out of the graph, at every order.
    flat = square == 0
    excess = torch.where(flat, 1, square).sqrt().masked_fill(flat, 0) - target
    return (excess.clamp(min=0) if one_sided else excess).square().mean()


@torch.no_grad()
def clip_weights_(critic: nn.Module | Iterable[Tensor], bound: float) -> None:
    """Move every weight of a critic into [−bound, bound], in place: the constraint of the first WGAN.

    The critic then belongs to a compact set of networks with a common Lipschitz constant K, which depends
    on the architecture and on the bound, and is not 1. This is not gradient clipping
    (``torch.nn.utils.clip_grad_value_``), which bounds a step and not the function.

    Args:
        critic: a module, or its parameters.
        bound: largest absolute value of a weight or bias, above 0.

    Raises:
        ValueError: for a bound that is not a finite number above 0.
        TypeError: for something that is neither a module nor tensors.

    Source:
        Arjovsky, Chintala, Bottou (2017), algorithm 1, line 7.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> clip_weights_(layer, 0.01)
        >>> bool(layer.weight.abs().max() <= 0.01)
        True
    """
    bound = _check.positive(bound, "bound")
    parameters = critic.parameters() if isinstance(critic, nn.Module) else critic
    for p in [parameters] if isinstance(parameters, Tensor) else parameters:
        if not isinstance(p, Tensor):
            raise TypeError(f"critic must be a module or tensors, but holds a {type(p).__name__}")
        p.clamp_(-bound, bound)
