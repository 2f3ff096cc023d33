"""Langevin particles against the exact law of the scheme and, with Metropolis' test, of the target."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from otbook.flows import langevin

from . import problems


def assert_mean(samples, expected, *, errors=4):
    """Independent samples have this mean, within four standard errors."""
    error = samples.std().item() / math.sqrt(samples.numel())
    assert abs(samples.mean().item() - expected) <= errors * error


def linear(alpha):
    return lambda x: alpha * x


def start(n, d=1, *, seed=0):
    return torch.randn(n, d, generator=problems.generator(seed), dtype=torch.float64)


# The scheme


def test_one_step_is_the_formula():
    x = start(5, 2)
    noise = torch.randn(5, 2, generator=problems.generator(3), dtype=torch.float64)
    y = langevin(x, torch.sin, step=0.3, n_steps=1, generator=problems.generator(3), temperature=0.5)
    torch.testing.assert_close(y, x - 0.3 * x.sin() + math.sqrt(0.3) * noise, rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("alpha", "step", "temperature"), [(1.0, 0.5, 1.0), (2.0, 0.3, 0.5), (1.0, 1.5, 2.0)]
)
def test_stationary_variance_of_the_euler_scheme(alpha, step, temperature):
    options = {"step": step, "temperature": temperature, "generator": problems.generator(1)}
    x = langevin(start(40_000), linear(alpha), n_steps=60, **options)[:, 0]
    assert_mean(x, 0)
    assert_mean(x**2, temperature / (alpha * (1 - alpha * step / 2)))


def test_law_after_a_few_steps():
    """Mean and variance are those of the recursion, from a start far from equilibrium."""
    tau, n, alpha = 0.1, 7, 1.5
    x = langevin(
        start(40_000) * 0.1 + 3, linear(alpha), step=tau, n_steps=n, generator=problems.generator(2)
    )[:, 0]
    q, limit = (1 - alpha * tau) ** n, 1 / (alpha * (1 - alpha * tau / 2))
    assert_mean(x, 3 * q)
    assert_mean((x - 3 * q) ** 2, limit + q**2 * (0.01 - limit))


def test_bias_is_of_first_order():
    """The difference between Euler's variance and the target's, in units of its standard error."""
    for step in (0.2, 0.4):
        x = langevin(start(100_000), linear(1.0), step=step, n_steps=60, generator=problems.generator(4))
        excess = (x**2 - 1).mean().item() / (step / (2 - step))
        assert abs(excess - 1) < 4 * math.sqrt(2 / 100_000) * 2 / step


def test_temperature_is_a_change_of_potential():
    """T, V and τ are V/T and Tτ: the same particles for the same noise."""
    hot = langevin(
        start(9), torch.sin, step=0.2, n_steps=20, generator=problems.generator(5), temperature=2.0
    )
    scaled = langevin(start(9), lambda x: x.sin() / 2, step=0.4, n_steps=20, generator=problems.generator(5))
    torch.testing.assert_close(hot, scaled, rtol=0, atol=1e-12)


# Metropolis


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_metropolis_removes_the_bias(temperature):
    options = {"metropolis": lambda x: x.square().sum(-1) / 2, "temperature": temperature}
    x = langevin(
        start(20_000, 2), linear(1.0), step=0.8, n_steps=60, generator=problems.generator(6), **options
    )
    assert_mean(x, 0)
    assert_mean(x**2, temperature)
    assert_mean(x[:, 0] * x[:, 1], 0)


def test_metropolis_on_a_quartic_where_euler_explodes():
    def V(x):
        return x[..., 0] ** 4 / 4

    far = torch.full((20_000, 1), 4.0, dtype=torch.float64)
    x = langevin(far, lambda x: x**3, step=0.05, n_steps=400, generator=problems.generator(7), metropolis=V)
    # E x⁴ = 1 for the density proportional to exp(−x⁴/4): integrate x·(x³ e^{−V}) by parts.
    assert_mean(x**4, 1.0)
    with pytest.raises(ValueError, match=r"step = 0.5 is too long: particles ran off to infinity"):
        langevin(far, lambda x: x**3, step=0.5, n_steps=50, generator=problems.generator(7))


def test_detailed_balance_of_two_groups():
    """In equilibrium, flows from left to right and back agree: the test of the acceptance rule itself."""

    def V(x):
        return x[..., 0] ** 2 / 2 + 0.8 * torch.cos(3 * x[..., 0])

    def grad(x):
        return x - 2.4 * torch.sin(3 * x)

    options = {"step": 0.4, "generator": problems.generator(8), "metropolis": V}
    before = langevin(start(40_000), grad, n_steps=80, **options)
    after = langevin(before, grad, n_steps=1, **options)
    # f(x)g(y) − g(x)f(y) has mean zero for a reversible chain.
    f, g = torch.sin(before) * after**2, before**2 * torch.sin(after)
    assert_mean(f - g, 0)
    z = torch.linspace(-8, 8, 4001, dtype=torch.float64)[:, None]
    density = torch.softmax(-V(z), 0)
    assert_mean(after**2, (density * z[:, 0] ** 2).sum().item())


def test_short_steps_are_nearly_all_accepted():
    seen = [start(2000)]
    langevin(
        seen[0],
        linear(1.0),
        step=0.01,
        n_steps=5,
        generator=problems.generator(9),
        metropolis=lambda x: x[..., 0] ** 2 / 2,
        callback=lambda k, x: seen.append(x),
    )
    moved = torch.cat([a != b for a, b in itertools.pairwise(seen)]).double().mean()
    assert 0.99 < moved <= 1


# Options, types and devices


def test_callback_sees_every_step():
    seen = []
    end = langevin(
        start(3),
        torch.sin,
        step=0.1,
        n_steps=4,
        generator=problems.generator(0),
        callback=lambda *s: seen.append(s),
    )
    assert [k for k, _ in seen] == [1, 2, 3, 4]
    assert torch.equal(seen[-1][1], end)


def test_the_generator_decides():
    def run(seed):
        return langevin(start(50, 3), torch.sin, step=0.1, n_steps=10, generator=problems.generator(seed))

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))
    state = torch.random.get_rng_state()
    run(1)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_leaves_its_argument_alone_and_detaches():
    x = start(4, 2).requires_grad_()
    before = x.detach().clone()

    def grad(x):  # an autograd gradient, as users write it
        with torch.enable_grad():
            x = x.requires_grad_()
            return torch.autograd.grad((x**4).sum(), x)[0]

    y = langevin(x, grad, step=0.01, n_steps=3, generator=problems.generator(0))
    assert torch.equal(x.detach(), before)
    assert x.requires_grad
    assert not y.requires_grad


def test_batches_of_clouds():
    y = langevin(torch.zeros(2, 3, 4), torch.sin, step=0.1, n_steps=2, generator=problems.generator(0))
    assert y.shape == (2, 3, 4)
    assert y.dtype == torch.float32


def test_numpy_and_float32_agree_with_float64_in_law():
    x = langevin(
        start(20_000).numpy().astype("float32"),
        linear(1.0),
        step=0.5,
        n_steps=40,
        generator=problems.generator(3),
    )
    assert x.dtype == torch.float32
    assert_mean(x.double() ** 2, 1 / 0.75)


def test_on_another_device(device):
    if device.type != "cuda":
        pytest.skip("random numbers need a GPU")
    generator = torch.Generator(device).manual_seed(0)
    x = langevin(start(40_000).to(device), linear(1.0), step=0.5, n_steps=40, generator=generator)
    assert x.device == device
    assert_mean(x**2, 1 / 0.75)
    with pytest.raises(ValueError, match=r"generator is on cpu, but x0 is on cuda"):
        langevin(x, linear(1.0), step=0.5, n_steps=1, generator=problems.generator(0))


GOOD = {"x0": torch.zeros(3, 2), "grad_potential": torch.sin, "step": 0.1, "n_steps": 1}
BAD = {
    "no axis": ({"x0": torch.tensor(1.0)}, r"x0 must have shape \(…, d\)"),
    "empty": ({"x0": torch.zeros(0, 2)}, "at least one particle"),
    "NaN": ({"x0": torch.tensor([[math.nan]])}, "x0 has coordinates that are not finite"),
    "step": ({"step": 0.0}, "step must be a finite number above 0"),
    "n_steps": ({"n_steps": 0}, "n_steps must be a whole number"),
    "temperature": ({"temperature": -1.0}, "temperature must be a finite number above 0"),
    "gradient": (
        {"grad_potential": lambda x: x.sum(-1)},
        r"grad_potential must map shape \(3, 2\) to \(3, 2\), but returned \(3,\)",
    ),
    "potential": (
        {"metropolis": lambda x: x},
        r"metropolis must map shape \(3, 2\) to \(3,\), but returned \(3, 2\)",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    change, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        langevin(**{**GOOD, **change}, generator=problems.generator(0))


def test_a_seed_is_no_generator():
    with pytest.raises(TypeError, match=r"generator must be a torch.Generator, but a int was given"):
        langevin(**GOOD, generator=0)
