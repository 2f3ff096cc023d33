"""Gradients of an optimal value by the envelope theorem, for every solver that returns one.

If v(θ) = min_z F(z, θ), then v'(θ) = ∂F/∂θ at the minimiser: how the minimiser itself moves does not
matter, so no derivative passes through the solver. For the second derivative it does matter, and a
solver that cannot tell says so here, instead of letting its solution pass for a constant.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

#: A gradient, None where there is none, or a function that forms it only if it is asked for.
Gradient = Tensor | Callable[[], Tensor] | None


def attach(
    value: Tensor,
    inputs: tuple[Tensor | None, ...],
    gradients: Callable[[], tuple[Gradient, ...]],
    solver: str,
) -> Tensor:
    """Give ``value`` its first derivatives, ∂value/∂inputs[i] = ``gradients()[i]``.

    Args:
        value: optimal values, shape (…).
        inputs: what they depend on, each of shape (…, its own axes), or None.
        gradients: called in the backward pass, once for each; returns one gradient for each input,
            of the shape of that input, detached. A large one that costs something to form, such
            as a plan, is better given as a function of no arguments.
        solver: name of the public function, for the error message.

    Returns:
        A copy of ``value`` that may be differentiated once in ``inputs``. A second derivative raises
        NotImplementedError, also where it would only be one part of a sum.

    Source:
        Danskin (1967).

    Example:
        >>> C = torch.tensor([[3.0, 1.0, 2.0]], requires_grad=True)
        >>> least = attach(C.min(-1).values, (C,), lambda: (torch.tensor([[0.0, 1.0, 0.0]]),), "least")
        >>> torch.autograd.grad(10 * least.sum(), C)[0]
        tensor([[ 0., 10.,  0.]])
    """
    return _Value.apply(gradients, solver, value.detach(), *inputs)


def refuse(value: Tensor, inputs: tuple[Tensor | None, ...], reason: str) -> Tensor:
    """A copy of ``value`` whose backward pass raises RuntimeError(reason): it has no gradient.

    For a solution so far from optimal that the envelope theorem does not hold. Detached, the value
    would count as a constant without a word.
    """

    def gradients() -> tuple[Gradient, ...]:
        raise RuntimeError(reason)

    return attach(value, inputs, gradients, "")


class _Value(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gradients, solver, value, *inputs):
        # Saved so that a change in place is noticed, and for the record in _Gradient.
        ctx.save_for_backward(*inputs)
        ctx.gradients, ctx.solver = gradients, solver
        return value.clone()

    @staticmethod
    def backward(ctx, grad):
        wanted = ctx.needs_input_grad[3:]
        return None, None, None, *_Gradient.apply(ctx.gradients, ctx.solver, wanted, grad, *ctx.saved_tensors)


class _Gradient(torch.autograd.Function):
    """The gradients, on record as functions of the inputs, so that a second derivative finds its way here."""

    @staticmethod
    def forward(ctx, gradients, solver, wanted, grad, *inputs):
        ctx.solver = solver
        return tuple(
            _times(grad, gradient).to(x.dtype) if want and gradient is not None else None
            for gradient, want, x in zip(gradients(), wanted, inputs, strict=True)
        )

    @staticmethod
    def backward(ctx, *_):
        raise NotImplementedError(
            f"the value of {ctx.solver} can be differentiated once; its gradient, which holds the solution, "
            "cannot: detach the gradient, or do without create_graph=True"
        )


def _times(grad: Tensor, gradient: Tensor | Callable[[], Tensor]) -> Tensor:
    """The incoming gradient (…) times the gradient (…, axes of the input)."""
    gradient = gradient() if callable(gradient) else gradient
    return grad.reshape(grad.shape + (1,) * (gradient.ndim - grad.ndim)) * gradient
