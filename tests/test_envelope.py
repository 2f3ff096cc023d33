"""The envelope helper: right gradients for any function whose minimum is known, and no made-up ones."""

from __future__ import annotations

import pytest
import torch

from otbook import _envelope

from . import problems

F64 = torch.float64


def minimum(A, b):
    """min_z ½ zᵀ A z − bᵀ z = −½ bᵀ A⁻¹ b: at z = A⁻¹ b its derivatives are ½ z zᵀ in A and −z in b."""
    z = torch.linalg.solve(A.detach(), b.detach())
    gradients = lambda: (lambda: z[..., :, None] * z[..., None, :] / 2, -z)  # noqa: E731
    return _envelope.attach(-(b * z).sum(-1) / 2, (A, b), gradients, "minimum")


def quadratic(*batch):
    R = torch.randn(*batch, 3, 3, generator=problems.generator(0), dtype=F64)
    b = torch.randn(*batch, 3, generator=problems.generator(1), dtype=F64)
    return (R @ R.mT + torch.eye(3, dtype=F64)).requires_grad_(), b.requires_grad_()


@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
def test_gradcheck(batch):
    A, b = quadratic(*batch)
    assert torch.autograd.gradcheck(lambda R, b: minimum(R + R.mT, b), (A, b))
    assert torch.autograd.gradcheck(lambda b: minimum(A.detach(), b), b)


def test_incoming_gradients_weigh_the_problems_of_a_batch():
    A, b = quadratic(2, 3)
    factor = torch.arange(6.0, dtype=F64).reshape(2, 3) - 2
    (gradient,) = torch.autograd.grad((factor * minimum(A, b)).sum(), b)
    expected = -factor[..., None] * torch.linalg.solve(A.detach(), b.detach())
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-12)


def test_an_input_shared_by_the_batch_collects_the_gradients_of_all():
    A, b = quadratic(4)
    (gradient,) = torch.autograd.grad(minimum(A, b[0].expand(4, 3)).sum(), b)
    expected = -torch.linalg.solve(A.detach(), b[0].detach().expand(4, 3)).sum(0)
    torch.testing.assert_close(gradient[0], expected, rtol=0, atol=1e-12)


def test_only_what_is_asked_for_is_formed_and_only_in_the_backward_pass():
    formed = []

    def large():
        formed.append("large")
        return torch.ones(3)

    def value(x, y):
        return _envelope.attach(torch.tensor(1.0), (x, y, None), lambda: (large, torch.ones(2), None), "it")

    x, y = torch.ones(3, requires_grad=True), torch.ones(2, requires_grad=True)
    value(x.detach(), y).backward()
    result = value(x, y)
    assert formed == []
    result.backward()
    assert formed == ["large"]


def test_value_is_a_copy_without_the_history_of_the_solver():
    x = torch.ones(2, requires_grad=True)
    inside = (3 * x).sum()
    value = _envelope.attach(inside, (x,), lambda: (torch.tensor([7.0, 8.0]),), "it")
    assert value.data_ptr() != inside.data_ptr()
    value.backward()
    assert x.grad.tolist() == [7.0, 8.0]
    assert not _envelope.attach(inside, (x.detach(),), lambda: (x,), "it").requires_grad


def test_gradient_takes_the_dtype_of_its_input():
    x = torch.ones(2, requires_grad=True)
    value = _envelope.attach(torch.tensor(0.0), (x,), lambda: (torch.full((2,), 1 / 3, dtype=F64),), "it")
    (gradient,) = torch.autograd.grad(value, x)
    assert gradient.dtype == torch.float32
    torch.testing.assert_close(gradient, torch.full((2,), 1 / 3), rtol=0, atol=1e-7)


@pytest.mark.parametrize("wrt", [0, 1])
def test_no_second_derivative_is_made_up(wrt):
    inputs = quadratic()
    x = inputs[wrt]
    (gradient,) = torch.autograd.grad(minimum(*inputs), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="the value of minimum can be differentiated once.*detach"):
        # The other term has a derivative, which alone would be wrong.
        (gradient.square().sum() + x.square().sum()).backward()
    # Nor in the other input, on which the gradient depends as well.
    other = inputs[1 - wrt]
    (gradient,) = torch.autograd.grad(minimum(*inputs), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="minimum"):
        torch.autograd.grad(gradient.sum(), other, allow_unused=True)


def test_detached_gradient_may_be_used():
    A, b = quadratic()
    (gradient,) = torch.autograd.grad(minimum(A, b), b, create_graph=True)
    (gradient.detach() * b).sum().backward()
    torch.testing.assert_close(b.grad, gradient.detach(), rtol=0, atol=0)


def test_refusal():
    x = torch.ones(2, requires_grad=True)
    value = _envelope.refuse(torch.tensor(1.0), (x, None), "has not converged: raise max_iter")
    assert value.item() == 1.0
    assert value.requires_grad
    with pytest.raises(RuntimeError, match="has not converged: raise max_iter"):
        value.backward()


def test_a_change_in_place_is_noticed():
    A, b = quadratic()
    b = b.detach()
    value = minimum(A, b)
    b += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()
