"""Two-layer networks: by hand, against autograd and finite differences, invariances, the tangent kernel."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from otbook import ConvergenceWarning
from otbook.meanfield import TwoLayer, mean_field_velocity, tangent_kernel, train

from . import problems

F64 = torch.float64
ACTIVATIONS = ["tanh", "relu", "erf", "identity", torch.sin]
SCALINGS = ["mean-field", "ntk", 0.75]


def close(measured: Tensor, expected: Tensor, atol: float = 1e-12) -> None:
    torch.testing.assert_close(measured, expected, rtol=0, atol=atol)


def network(n=7, d=3, *, seed=0, dtype=F64, **options) -> TwoLayer:
    return TwoLayer(n, d, generator=problems.generator(seed), dtype=dtype, **options)


def data(m=11, d=3, *, seed=1, dtype=F64) -> tuple[Tensor, Tensor]:
    rng = problems.generator(seed)
    x = torch.randn(m, d, generator=rng, dtype=F64)
    return x.to(dtype), torch.randn(m, generator=rng, dtype=F64).to(dtype)


def gradients(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    loss = (model(x) - y).square().mean() / 2
    return torch.autograd.grad(loss, (model.w, model.a))


class TestTwoLayer:
    def test_by_hand(self):
        z = torch.tensor([[1.0, -1.0, 2.0], [0.0, 3.0, -1.0]], dtype=F64)  # w = (1, −1), a = 2; …
        model = TwoLayer.from_measure(z, activation="relu")
        x = torch.tensor([[3.0, 1.0], [1.0, 3.0]], dtype=F64)
        # ⟨w, x⟩ = 2 and 3; −2 and 9
        close(model(x).detach(), torch.tensor([(2 * 2 - 3) / 2, -9 / 2], dtype=F64))

    @pytest.mark.parametrize("scaling", SCALINGS)
    def test_scaling(self, scaling):
        s = {"mean-field": 1.0, "ntk": 0.5}.get(scaling, scaling)
        model, (x, _) = network(scaling=scaling), data()
        bare = torch.tanh(x @ model.w.T) @ model.a
        close(model(x), bare / 7**s)
        assert model.time_scale == pytest.approx(7 ** (2 * s - 1))

    def test_it_is_an_integral_against_the_measure(self):
        model, (x, _) = network(), data()
        z = model.measure()
        assert z.shape == (7, 4)
        again = TwoLayer.from_measure(z[torch.randperm(7, generator=problems.generator(2))])
        close(again(x), model(x))
        close(TwoLayer.from_measure(z.repeat(3, 1))(x), model(x))
        z[0] = 100.0  # a copy
        assert model.w.max() < 10

    def test_initial_law_does_not_depend_on_the_width(self):
        z = network(40_000, 2, std_w=0.5, std_a=3.0).measure()
        error = 4 / math.sqrt(len(z))
        close(z.mean(0) / torch.tensor([0.5, 0.5, 3.0], dtype=F64), torch.zeros(3, dtype=F64), atol=error)
        close((z.T @ z / len(z)).diag(), torch.tensor([0.25, 0.25, 9.0], dtype=F64), atol=9 * 1.5 * error)

    def test_leading_axes(self):
        model, (x, _) = network(), data(12)
        close(model(x.reshape(3, 4, 3)), model(x).reshape(3, 4))

    def test_default_options(self):
        model = TwoLayer(3, 2)
        assert model.w.dtype == torch.get_default_dtype()
        assert model.exponent == 1
        assert [name for name, _ in model.named_parameters()] == ["w", "a"]


class TestVelocity:
    @pytest.mark.parametrize("activation", ACTIVATIONS)
    @pytest.mark.parametrize("scaling", SCALINGS)
    def test_is_minus_the_rescaled_gradient(self, activation, scaling):
        model, (x, y) = network(activation=activation, scaling=scaling), data()
        for v, g in zip(mean_field_velocity(model, x, y), gradients(model, x, y), strict=True):
            close(v, -model.time_scale * g)
            assert v.abs().max() > 1e-3
            assert not v.requires_grad

    def test_by_finite_differences(self):
        model, (x, y) = network(), data()
        v_w, v_a = mean_field_velocity(model, x, y)
        h, losses = 1e-5, []
        for sign in (1, -1):
            z = model.measure() + sign * h * torch.cat([v_w, v_a[:, None]], 1)
            losses.append((TwoLayer.from_measure(z)(x) - y).square().mean().item() / 2)
        # The loss falls at the mean squared speed of the particles.
        speed = (v_w.square().sum() + v_a.square().sum()).item() / 7
        assert (losses[0] - losses[1]) / (2 * h) == pytest.approx(-speed, rel=1e-7)

    def test_is_equivariant_and_blind_to_copies(self):
        model, (x, y) = network(), data()
        p = torch.randperm(7, generator=problems.generator(2))
        for v, u in zip(
            mean_field_velocity(model, x, y),
            mean_field_velocity(TwoLayer.from_measure(model.measure()[p]), x, y),
            strict=True,
        ):
            close(u, v[p])
        double = TwoLayer.from_measure(model.measure().repeat(2, 1))
        for v, u in zip(mean_field_velocity(model, x, y), mean_field_velocity(double, x, y), strict=True):
            close(u, torch.cat([v, v]))

    def test_float32(self):
        (x, y), z = data(), network().measure()
        single = mean_field_velocity(TwoLayer.from_measure(z.float()), x.float(), y.float())
        for v, u in zip(mean_field_velocity(TwoLayer.from_measure(z), x, y), single, strict=True):
            assert u.dtype == torch.float32
            close(u.double(), v, atol=1e-4)

    def test_accepts_numpy(self):
        model, (x, y) = network(), data()
        for v, u in zip(
            mean_field_velocity(model, x, y), mean_field_velocity(model, x.numpy(), y.numpy()), strict=True
        ):
            close(u, v, atol=0)


class TestTrain:
    def test_one_linear_neuron_follows_its_ode(self):
        """f = a w on the line, x = 1, y = 1, a = w: w' = (1 − w²) w, so that u = w² is logistic."""
        errors, steps = [], (0.02, 0.01, 0.005)
        one = torch.ones(1, 1, dtype=F64)
        exact = 1 / (1 + (1 / 0.25 - 1) * math.exp(-2))  # u(1) from u(0) = ¼
        for step in steps:
            model = TwoLayer.from_measure(torch.tensor([[0.5, 0.5]], dtype=F64), activation="identity")
            train(model, one, one[0], step=step, n_steps=round(1 / step))
            errors.append(abs(model(one).item() - exact))
        order = np.polyfit(np.log(steps), np.log(errors), 1)[0]
        assert order == pytest.approx(1, abs=0.05)

    @pytest.mark.parametrize("scaling", SCALINGS)
    def test_equals_gradient_descent_with_the_rescaled_step(self, scaling):
        model, other, (x, y) = network(scaling=scaling), network(scaling=scaling), data()
        losses = train(model, x, y, step=0.1, n_steps=20)
        optimiser = torch.optim.SGD(other.parameters(), lr=0.1 * other.time_scale)
        expected = []
        for _ in range(21):
            loss = (other(x) - y).square().mean() / 2
            expected.append(loss.detach())
            optimiser.zero_grad()
            loss.backward()
            if len(expected) < 21:
                optimiser.step()
        close(losses, torch.stack(expected))
        close(model.measure(), other.measure())
        assert (losses.diff() < 0).all()

    def test_callback_sees_every_state(self):
        model, (x, y), seen = network(), data(), []
        losses = train(model, x, y, step=0.1, n_steps=3, callback=lambda k, m: seen.append((k, m(x))))
        assert [k for k, _ in seen] == [0, 1, 2, 3]
        close(torch.stack([(f - y).square().mean() / 2 for _, f in seen]), losses)

    def test_a_step_that_is_too_long_is_reported(self):
        model, (x, y) = network(activation="identity"), data()
        with pytest.warns(ConvergenceWarning, match=r"after \d+ steps of length 50; use a shorter step"):
            losses = train(model, x, y, step=50.0, n_steps=100)
        assert 0 < len(losses) < 101
        assert torch.isfinite(losses).all()
        assert torch.isfinite(model.measure()).all()


class TestTangentKernel:
    def test_linear_model(self):
        x, x2 = data(5)[0], data(4, seed=2)[0]
        close(tangent_kernel(nn.Linear(3, 1, dtype=F64), x, x2), x @ x2.T + 1)

    def test_several_outputs(self):
        x = data(5)[0]
        K = tangent_kernel(nn.Linear(3, 2, dtype=F64), x)
        close(K, (x @ x.T + 1)[:, :, None, None] * torch.eye(2, dtype=F64))

    @pytest.mark.parametrize("scaling", SCALINGS)
    def test_two_layers_in_closed_form(self, scaling):
        """(1/n) Σ [φφ + a² φ'φ' ⟨x, x'⟩], whatever the scaling."""
        model, x, x2 = network(scaling=scaling), data(5)[0], data(4, seed=2)[0]
        phi, phi2 = torch.tanh(x @ model.w.T), torch.tanh(x2 @ model.w.T)
        slope, slope2 = 1 - phi**2, 1 - phi2**2
        expected = (phi @ phi2.T + (slope * model.a**2) @ slope2.T * (x @ x2.T)) / 7
        close(tangent_kernel(model, x, x2), expected.detach())
        close(tangent_kernel(model, x, x2, scale=1.0) * model.time_scale, expected.detach())

    def test_by_autograd_row_by_row(self):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)
        ).double()
        x = data(5)[0]
        J = torch.stack(
            [
                torch.cat([g.flatten() for g in torch.autograd.grad(model(row)[k], model.parameters())])
                for row in x
                for k in range(2)
            ]
        )
        expected = (J @ J.T).reshape(5, 2, 5, 2).transpose(1, 2)
        close(tangent_kernel(model, x), expected)

    def test_moves_the_outputs(self):
        """f' = −(1/m) K (f − y) under the flow: first order in the step."""
        x2, (x, y), errors, steps = data(4, seed=2)[0], data(), [], (1e-2, 5e-3, 2.5e-3)
        predicted = -tangent_kernel(network(), x2, x) @ (network()(x) - y).detach() / 11
        for step in steps:
            model = network()
            before = model(x2).detach()
            train(model, x, y, step=step, n_steps=1)
            errors.append(((model(x2).detach() - before) / step - predicted).norm().item())
        assert np.polyfit(np.log(steps), np.log(errors), 1)[0] == pytest.approx(1, abs=0.05)

    def test_is_symmetric_and_positive(self):
        K = tangent_kernel(network(50), data(6)[0])
        close(K, K.mT)
        assert torch.linalg.eigvalsh(K).min() > 0

    def test_frozen_parameters_do_not_count(self):
        model, x = network(), data(5)[0]
        model.w.requires_grad_(False)
        phi = torch.tanh(x @ model.w.T)
        close(tangent_kernel(model, x), phi @ phi.T / 7)

    def test_float32_and_no_gradient(self):
        x, z = data(5)[0], network().measure()
        K = tangent_kernel(TwoLayer.from_measure(z.float()), x.float())
        assert K.dtype == torch.float32
        assert not K.requires_grad
        close(K.double(), tangent_kernel(TwoLayer.from_measure(z), x), atol=1e-4)


def test_on_another_device(device):
    z, (x, y) = network().measure(), data()
    here, there = TwoLayer.from_measure(z), TwoLayer.from_measure(z.to(device))
    close(tangent_kernel(there, x.to(device)).cpu(), tangent_kernel(here, x), atol=1e-9)
    close(
        train(there, x.to(device), y.to(device), step=0.1, n_steps=5).cpu(),
        train(here, x, y, step=0.1, n_steps=5),
        atol=1e-9,
    )
    generator = torch.Generator(device).manual_seed(0) if device.type == "cuda" else None
    assert TwoLayer(3, 2, generator=generator, device=device).w.device == device


# Bad input


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: TwoLayer(0, 2), ValueError, "n must be a whole number of at least 1, but is 0"),
        (lambda: TwoLayer(2, 1.5), ValueError, "d must be a whole number"),
        (lambda: TwoLayer(2, 2, activation="gelu"), ValueError, "activation must be one of 'tanh'"),
        (lambda: TwoLayer(2, 2, activation=3), TypeError, "activation must be a name or a function"),
        (lambda: TwoLayer(2, 2, scaling="lazy"), ValueError, "scaling must be one of 'mean-field', 'ntk'"),
        (lambda: TwoLayer(2, 2, scaling=math.nan), ValueError, "scaling must be a finite exponent"),
        (lambda: TwoLayer(2, 2, std_a=0), ValueError, "std_a must be a finite number above 0"),
        (lambda: TwoLayer(2, 2, generator=0), TypeError, "generator must be a torch.Generator"),
        (lambda: TwoLayer.from_measure(torch.ones(3, 1)), ValueError, r"z must have shape \(n, d \+ 1\)"),
        (
            lambda: TwoLayer.from_measure(torch.full((2, 2), math.nan)),
            ValueError,
            r"z holds nan at z\[0, 0\]",
        ),
        (lambda: mean_field_velocity(network(), *data(d=2)), ValueError, r"x must have shape \(m, 3\)"),
        (
            lambda: mean_field_velocity(network(), data()[0], data(4)[1]),
            ValueError,
            r"y must have shape \(11,\)",
        ),
        (lambda: mean_field_velocity(network(), *data(dtype=torch.float32)), ValueError, "x is float32"),
        (lambda: train(network(), *data(), step=-1, n_steps=2), ValueError, "step must be a finite number"),
        (lambda: train(network(), *data(), step=1, n_steps=0), ValueError, "n_steps must be a whole number"),
        (lambda: tangent_kernel(torch.tanh, data()[0]), TypeError, "model must be a torch.nn.Module"),
        (lambda: tangent_kernel(nn.Tanh(), data()[0]), ValueError, "no parameter with requires_grad=True"),
        (lambda: tangent_kernel(network(), data()[1]), ValueError, r"x must have shape \(m, …\)"),
        (
            lambda: tangent_kernel(network(), data()[0], data(d=2)[0]),
            ValueError,
            r"x2 has rows of shape \(2,\), but x has rows of shape \(3,\)",
        ),
        (lambda: tangent_kernel(network(), data()[0], scale=0), ValueError, "scale must be a finite number"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
