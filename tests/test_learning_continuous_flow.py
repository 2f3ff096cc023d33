"""Potential flows: matrix exponentials, orders, the way back, random traces, gradients, bad input."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from otbook.learning import potential_flow

A = torch.tensor([[0.7, 0.4], [0.4, -0.5]], dtype=torch.float64)


def quadratic(x, t):
    return ((x @ A.to(x)) * x).sum(-1) / 2


def bumps(x, t):  # neither linear nor stationary, and with a full Hessian
    w = torch.tensor([[1.0, 0.5, -1.0], [0.3, -1.2, 0.8]], dtype=x.dtype, device=x.device)
    return (torch.tanh(x @ w + t * x.new_tensor([0.5, -0.7, 1.0])) * x.new_tensor([0.6, -0.9, 0.5])).sum(-1)


def cloud(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_quadratic_potential_is_a_matrix_exponential():
    x = cloud(5, 2)
    result = potential_flow(quadratic, x, n_steps=60)
    assert_close(result.x, x @ torch.linalg.matrix_exp(A), atol=1e-8, rtol=0)
    assert_close(result.log_density, torch.full((5,), -0.2, dtype=x.dtype), atol=1e-12, rtol=0)
    # ∫|A e^{tA} x|² dt = xᵀ A (e^{2A} − 1) x / 2, as A commutes with its exponential
    form = A @ (torch.linalg.matrix_exp(2 * A) - torch.eye(2, dtype=x.dtype)) / 2
    assert_close(result.energy, ((x @ form) * x).sum(-1), atol=1e-7, rtol=0)


def test_the_log_density_is_that_of_the_jacobian():
    x = cloud(1, 2)
    flow = lambda y: potential_flow(bumps, y, n_steps=40).x[0]  # noqa: E731
    jacobian = torch.autograd.functional.jacobian(flow, x)[:, 0]
    change = potential_flow(bumps, x, n_steps=40).log_density
    assert_close(change, -jacobian.logdet()[None], atol=1e-6, rtol=0)


@pytest.mark.parametrize("quantity", ["x", "log_density", "energy"])
def test_order_four(quantity):
    x, steps = cloud(20, 2), [8, 16, 32]
    exact = getattr(potential_flow(bumps, x, n_steps=512), quantity)
    errors = [(getattr(potential_flow(bumps, x, n_steps=k), quantity) - exact).abs().max() for k in steps]
    order = -np.polyfit(np.log(steps), np.log([e.item() for e in errors]), 1)[0]
    assert 3.7 < order < 4.4


def test_time_enters_through_the_stages():
    """φ = x cos t: the position is sin t, and its error is that of Simpson's rule."""
    x = torch.zeros(1, 1, dtype=torch.float64)
    result = potential_flow(lambda x, t: x[..., 0] * torch.cos(t), x, n_steps=10, start=0.3, end=1.3)
    assert_close(result.x.item(), math.sin(1.3) - math.sin(0.3), atol=1e-7, rtol=0)
    assert_close(result.log_density, torch.zeros(1, dtype=torch.float64), atol=0, rtol=0)


def test_the_way_back():
    x = cloud(3, 10, 2)
    there = potential_flow(bumps, x, n_steps=100)
    back = potential_flow(bumps, there.x, n_steps=100, start=1.0, end=0.0)
    assert (there.x - x).abs().max() > 0.1
    assert_close(back.x, x, atol=1e-6, rtol=0)
    assert_close(back.log_density, -there.log_density, atol=1e-6, rtol=0)
    assert_close(back.energy, there.energy, atol=1e-6, rtol=0)
    assert (back.energy > 0).all()


def test_two_halves_make_a_whole():
    x = cloud(10, 2)
    whole = potential_flow(bumps, x, n_steps=20)
    first = potential_flow(bumps, x, n_steps=10, end=0.5)
    second = potential_flow(bumps, first.x, n_steps=10, start=0.5)
    assert_close(second.x, whole.x, atol=1e-12, rtol=0)
    assert_close(first.log_density + second.log_density, whole.log_density, atol=1e-12, rtol=0)


def test_hutchinson_is_unbiased():
    generator = torch.Generator().manual_seed(1)
    x = cloud(1, 2).expand(4000, 2)
    exact = potential_flow(bumps, x[:1], n_steps=5)
    random = potential_flow(bumps, x, n_steps=5, trace="hutchinson", generator=generator)
    error = random.log_density.std() / math.sqrt(4000)
    assert error > 1e-3
    assert (random.log_density.mean() - exact.log_density).abs() < 4 * error
    assert_close(random.x, exact.x.expand(4000, 2), atol=1e-12, rtol=0)


def test_hutchinson_variance_and_probes():
    """One probe at a constant Hessian has variance 2 Σ_{i≠j} H_ij², m of them the m-th part."""
    for probes in (1, 4):
        generator = torch.Generator().manual_seed(probes)
        options = {"trace": "hutchinson", "probes": probes, "generator": generator}
        result = potential_flow(quadratic, torch.zeros(20000, 2).double(), n_steps=1, **options)
        assert_close(result.log_density.var().item(), 4 * 0.4**2 / probes, atol=0, rtol=0.06)


def test_one_generator_gives_one_result():
    def draw(seed):
        generator = torch.Generator().manual_seed(seed)
        return potential_flow(bumps, cloud(9, 2), n_steps=2, trace="hutchinson", generator=generator)

    assert_close(draw(0).log_density, draw(0).log_density, atol=0, rtol=0)
    assert (draw(0).log_density - draw(1).log_density).abs().max() > 1e-3


@pytest.mark.parametrize("trace", ["exact", "hutchinson"])
def test_gradients(trace):
    def flow(x, c):
        options = {"trace": trace, "generator": torch.Generator().manual_seed(3)}
        return potential_flow(lambda x, t: c * bumps(x, t), x, n_steps=2, **options)

    inputs = cloud(2, 2).requires_grad_(), torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(flow, inputs)
    assert torch.autograd.gradgradcheck(flow, inputs)


def test_parameters_alone_get_gradients():
    c = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    result = potential_flow(lambda x, t: c * quadratic(x, t), cloud(2, 2), n_steps=3)
    (slope,) = torch.autograd.grad(result.log_density.sum(), c)
    assert_close(slope.item(), -0.4, atol=1e-12, rtol=0)


def test_no_graph_without_need():
    x, c = cloud(2, 2), torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    assert not any(t.requires_grad for t in potential_flow(bumps, x, n_steps=2))
    with torch.no_grad():
        result = potential_flow(lambda x, t: c * bumps(x, t), x, n_steps=2)
    assert not any(t.requires_grad for t in result)
    assert_close(result.x, potential_flow(bumps, x, n_steps=2).x, atol=1e-14, rtol=0)


@pytest.mark.parametrize("trace", ["exact", "hutchinson"])
def test_float32(trace):
    x = cloud(4, 2)
    runs = []
    for dtype in (torch.float32, torch.float64):
        options = {"trace": trace, "generator": torch.Generator().manual_seed(0)}
        runs.append(potential_flow(bumps, x.to(dtype), n_steps=10, **options))
    for single, double in zip(*runs, strict=True):
        assert single.dtype == torch.float32
        assert_close(single.double(), double, atol=1e-4, rtol=1e-4)


def test_constant_and_linear_potentials():
    x = cloud(3, 2)
    still = potential_flow(lambda x, t: 0 * t + torch.ones_like(x[..., 0]), x, n_steps=2)
    assert_close(still.x, x, atol=0, rtol=0)
    drift = potential_flow(lambda x, t: x.sum(-1), x.numpy(), n_steps=2)
    assert_close(drift.x, x + 1, atol=1e-12, rtol=0)
    assert_close(drift.energy, torch.full((3,), 2.0, dtype=x.dtype), atol=1e-12, rtol=0)
    assert_close(drift.log_density, torch.zeros(3, dtype=x.dtype), atol=0, rtol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_steps": 0}, "n_steps must be a whole number"),
        ({"trace": "forward"}, "trace must be one of 'exact', 'hutchinson'"),
        ({"trace": "hutchinson"}, r"pass generator=torch\.Generator"),
        ({"trace": "hutchinson", "probes": 0}, "probes must be a whole number"),
        ({"end": math.inf}, "must be finite times"),
        ({"x": torch.zeros(3)}, r"x\[:, None\]"),
        ({"x": torch.tensor([[math.nan, 0.0]])}, "x holds nan at"),
        ({"potential": lambda x, t: x.square()}, "sum over the last axis only"),
        ({"potential": lambda x, t: 1.0}, "returned float"),
        ({"potential": lambda x, t: x.sum(-1).float()}, "keep the dtype of x"),
        ({"potential": lambda x, t: x.pow(8).sum(-1), "x": 9 * torch.ones(1, 2)}, "use more steps"),
    ],
)
def test_bad_input(options, message):
    x, potential = options.pop("x", cloud(2, 2)), options.pop("potential", quadratic)
    with pytest.raises(ValueError, match=message):
        potential_flow(potential, x, **{"n_steps": 3, **options})


def test_a_seed_is_no_generator():
    with pytest.raises(TypeError, match=r"generator must be a torch\.Generator"):
        potential_flow(quadratic, cloud(2, 2), n_steps=1, trace="hutchinson", generator=0)


@pytest.mark.parametrize("trace", ["exact", "hutchinson"])
def test_on_another_device(trace, device):
    x, runs = cloud(4, 2), []
    for place in ("cpu", device):
        options = {"trace": trace, "generator": torch.Generator().manual_seed(0)}
        runs.append(potential_flow(bumps, x.to(place), n_steps=4, **options))
    for here, there in zip(*runs, strict=True):
        assert there.device == device
        assert_close(there.cpu(), here, atol=1e-10, rtol=0)
