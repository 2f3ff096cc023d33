"""The tangent kernel of a network: how training at one point moves the output at another."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

from .. import _check


def tangent_kernel(
    model: nn.Module, x: Tensor, x2: Tensor | None = None, *, scale: float | None = None
) -> Tensor:
    """The empirical neural tangent kernel K(x, x') = scale · ⟨∇f(x), ∇f(x')⟩.

    The gradients are with respect to all trainable parameters θ. Under the flow θ' = −scale · ∇L of
    L = ½ E[(f(x) − y)²], the mean over m inputs X, the outputs move by f'(x) = −(1/m) K(x, X) (f(X) − y).

    Args:
        model: any network that maps inputs (m, …) to outputs (m,), (m, 1) or (m, k), and that treats
            every row by itself (batch normalisation in training mode does not).
        x: inputs, shape (m, …).
        x2: inputs, shape (m2, …); x if None.
        scale: unit of the flow's time. If None, ``model.time_scale`` where the model has one, as a
            ``TwoLayer`` does (then K is the average over the neurons, for every width and scaling), else 1.

    Returns:
        K of shape (m, m2) for outputs (m,) or (m, 1); of shape (m, m2, k, k) for outputs (m, k) with
        k > 1, the last two axes for the output at x and at x2. Carries no gradient.

    Raises:
        TypeError: if the model is no ``nn.Module``.
        ValueError: if it has nothing to train, x2 has rows of another shape, or scale is not positive.

    Source:
        Jacot, Gabriel and Hongler (2018), section 4.

    Example:
        >>> K = tangent_kernel(nn.Linear(2, 1), torch.tensor([[1.0, 2.0], [3.0, 0.0]]))
        >>> K  # ⟨x, x'⟩ + 1 for a linear model with a bias
        tensor([[ 6.,  4.],
                [ 4., 10.]])
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, but a {type(model).__name__} was given")
    parameters = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    if not parameters:
        raise ValueError("model has no parameter with requires_grad=True, so its tangent kernel is empty")
    fixed = {name: p.detach() for name, p in model.named_parameters() if not p.requires_grad}
    fixed |= {name: b.detach() for name, b in model.named_buffers()}
    x = _inputs(x, "x", next(iter(parameters.values())))
    if x2 is not None:
        x2 = _inputs(x2, "x2", x)
        if x2.shape[1:] != x.shape[1:]:
            raise ValueError(
                f"x2 has rows of shape {tuple(x2.shape[1:])}, but x has rows of shape {tuple(x.shape[1:])}"
            )
    if scale is None:
        scale = getattr(model, "time_scale", 1.0)
    scale = _check.positive(scale, "scale")

    def output(theta: dict[str, Tensor], row: Tensor) -> Tensor:
        return functional_call(model, (theta, fixed), (row[None],)).reshape(-1)  # (k,)

    jacobian = vmap(jacrev(output), in_dims=(None, 0))  # a dictionary of (m, k, *shape of the parameter)
    left = jacobian(parameters, x)
    right = left if x2 is None else jacobian(parameters, x2)
    # Parameter by parameter: the sum of their kernels, without one long row of all gradients.
    K = sum(torch.einsum("ikp,jlp->ijkl", left[p].flatten(2), right[p].flatten(2)) for p in parameters)
    return scale * (K[:, :, 0, 0] if K.shape[2:] == (1, 1) else K)


def _inputs(x: Tensor, name: str, like: Tensor) -> Tensor:
    x = _check.tensor(x, name, like=like)
    if x.ndim < 2 or len(x) == 0:
        raise ValueError(
            f"{name} must have shape (m, …), one input a row and at least one row, "
            f"but has shape {tuple(x.shape)}"
        )
    return x
