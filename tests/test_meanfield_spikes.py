"""Sparse spikes: closed forms, certificates, an independent solver, the flow against autograd."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from scipy.optimize import nnls
from torch import Tensor

from otbook import ConvergenceWarning
from otbook.meanfield import fourier_features, sparse_spikes

from . import problems

F64 = torch.float64
SPIKES = torch.tensor([0.07, 0.22, 0.41, 0.63, 0.83], dtype=F64)
HEIGHTS = torch.tensor([1.0, 0.7, 1.3, 0.9, 1.1], dtype=F64)
SIGNS = torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0], dtype=F64)


def close(measured: Tensor, expected: Tensor, atol: float = 1e-12) -> None:
    torch.testing.assert_close(measured, expected, rtol=0, atol=atol)


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=F64)


def observe(x: Tensor, w: Tensor, n_f: int = 8) -> Tensor:
    return w @ fourier_features(x, n_f)


def solve(y: Tensor, *, seed: int = 0, **options):
    options = {"regularisation": 0.01, "n_particles": 60, "tol": 1e-8} | options
    return sparse_spikes(y, generator=problems.generator(seed), **options)


def short(y: Tensor, **options):
    """A few steps only, without the warning that they were few."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return sparse_spikes(y, **({"regularisation": 0.01, "tol": 1e-14} | options))


class TestFeatures:
    def test_they_have_norm_one_and_the_dirichlet_kernel(self):
        x = torch.rand(9, generator=problems.generator(0), dtype=F64)
        gram = fourier_features(x, 5) @ fourier_features(x, 5).T
        d = math.pi * (x[:, None] - x)
        kernel = torch.where(d == 0, 11.0, torch.sin(11 * d) / torch.sin(d)) / 11
        close(gram, kernel, atol=1e-10)

    def test_the_circle_has_length_one(self):
        x = numbers(0.1, 0.7)
        close(fourier_features(x + 3, 4), fourier_features(x, 4), atol=1e-10)


class TestClosedForm:
    @pytest.mark.parametrize("lam", [0.05, 0.25])
    def test_one_spike_keeps_its_place_and_loses_lambda(self, lam):
        x, w = solve(observe(numbers(0.3), numbers(1.0)), regularisation=lam, tol=1e-10).clusters()
        close(x, numbers(0.3), atol=1e-4)
        close(w, numbers(1 - lam), atol=1e-4)

    def test_one_negative_spike(self):
        x, w = solve(observe(numbers(0.3), numbers(-1.0)), signed=True, tol=1e-10).clusters()
        close(x, numbers(0.3), atol=1e-4)
        close(w, numbers(-0.99), atol=1e-4)

    def test_two_opposite_points_are_decoupled_for_odd_kernels_zeros(self):
        # D(1/3) = 0 for n_f = 1: the features of the two spikes are orthogonal, so each loses λ.
        x, w = numbers(0.1, 0.1 + 1 / 3), numbers(1.0, 2.0)
        result = solve(observe(x, w, 1), tol=1e-10, regularisation=0.1)
        value = 0.1 * 3 - 0.1**2  # ½ λ² · 2 + λ (3 − 2 λ)
        assert result.losses[-1].item() <= value + 1e-10

    def test_two_spikes_on_the_lattice_of_orthogonal_features(self):
        x, w = numbers(2 / 17, 9 / 17), numbers(1.0, 2.0)
        result = solve(observe(x, w), tol=1e-10)
        positions, weights = result.clusters()
        close(positions, x, atol=2e-3)
        close(weights, w - 0.01, atol=2e-3)

    def test_no_mass_survives_beyond_the_threshold(self):
        result = solve(observe(numbers(0.3), numbers(1.0)), regularisation=1.1)
        assert result.converged
        assert result.weights.sum().item() < 1e-4

    @pytest.mark.parametrize("signed", [False, True])
    def test_five_spikes(self, signed):
        w = HEIGHTS * SIGNS if signed else HEIGHTS
        x, found = solve(observe(SPIKES, w), n_particles=100, signed=signed).clusters()
        close(x, SPIKES, atol=1e-3)
        close(found, w, atol=0.03)

    def test_error_is_of_first_order_in_the_regularisation(self):
        errors = []
        for lam in (0.02, 0.01):
            x, _ = solve(observe(SPIKES, HEIGHTS), regularisation=lam, tol=1e-10).clusters()
            errors.append((x - SPIKES).abs().max().item())
        assert math.log2(errors[0] / errors[1]) == pytest.approx(1, abs=0.2)


class TestCertificate:
    @pytest.mark.parametrize("signed", [False, True])
    def test_it_is_below_one_and_touches_on_the_support(self, signed):
        w = HEIGHTS * SIGNS if signed else HEIGHTS
        result = solve(observe(SPIKES, w), n_particles=100, signed=signed)
        eta = result.certificate(torch.arange(4001, dtype=F64) / 4001)
        assert (eta.abs() if signed else eta).max().item() <= 1 + 1e-3
        x, weights = result.clusters()
        close(result.certificate(x), weights.sign(), atol=1e-3)

    def test_the_gap_bounds_the_distance_to_the_minimum(self):
        y = observe(SPIKES, HEIGHTS)
        best = solve(y, n_particles=100, tol=1e-11).losses[-1]
        for n_steps in (1, 10, 100):
            result = short(y, n_steps=n_steps, generator=problems.generator(1))
            assert result.losses[-1] - best <= result.gap + 1e-10

    def test_the_gap_of_a_stuck_flow_does_not_close(self):
        with pytest.warns(ConvergenceWarning, match="duality gap"):
            result = solve(observe(SPIKES, HEIGHTS), n_particles=3, n_steps=500)
        assert not result.converged
        assert result.gap.item() > 0.01

    def test_the_loss_never_rises(self):
        result = solve(observe(SPIKES, HEIGHTS), step=5.0)
        assert (result.losses.diff() <= 1e-12).all()
        assert result.converged


def test_no_grid_is_better_and_fine_ones_agree():
    y, lam = observe(SPIKES, HEIGHTS), 0.01
    A = fourier_features(torch.arange(1600, dtype=F64) / 1600, 8)
    b = y.clone()
    b[0] -= lam * math.sqrt(17)  # the constant feature sees the total mass
    w = torch.from_numpy(nnls(A.T.numpy(), b.numpy())[0])
    grid = ((y - w @ A) ** 2).sum() / 2 + lam * w.sum()
    excess = (grid - solve(y, tol=1e-10).losses[-1]).item()
    assert -1e-9 <= excess <= 1e-4  # Λ δ² |μ| / 2 with δ = 1/3200 and Λ ≤ |φ''| |r| ≈ 100 times 0.05


@pytest.mark.parametrize("signed", [False, True])
def test_a_short_step_follows_the_gradient(signed):
    y, start, h = observe(SPIKES, HEIGHTS), torch.rand(8, generator=problems.generator(2), dtype=F64), 1e-6
    scale = (fourier_features(torch.arange(256, dtype=F64) / 256, 8) @ y).abs().max()
    result = short(y, start=start, signed=signed, step=h, n_steps=1)
    sign = torch.ones(8, dtype=F64)
    sign[1::2] = -1 if signed else 1
    x = start.clone().requires_grad_()
    w = torch.full((8,), 0.1 * scale.item() / 8, dtype=F64, requires_grad=True)
    loss = ((y - (sign * w) @ fourier_features(x, 8)) ** 2).sum() / 2 + 0.01 * w.sum()
    g_x, g_w = torch.autograd.grad(loss, [x, w])
    tau, squared = h / scale, 3 / (4 * math.pi**2 * 8 * 9)
    close((result.positions - start) / tau, -4 * squared * g_x / w.detach(), atol=1e-5)
    close((result.weights * sign / w.detach()).log() / tau, -4 * g_w, atol=1e-5)


class TestInvariance:
    def test_translation_on_the_circle(self):
        start = torch.rand(40, generator=problems.generator(3), dtype=F64)
        one = short(observe(SPIKES, HEIGHTS), start=start, n_steps=50)
        two = short(observe(SPIKES + 0.375, HEIGHTS), start=start + 0.375, n_steps=50)
        # the scale is a maximum over a grid that 0.375 maps to itself
        off = (two.positions - one.positions - 0.375 + 0.5).remainder(1) - 0.5
        close(off, torch.zeros_like(off), atol=1e-9)
        close(two.weights, one.weights, atol=1e-9)

    def test_scaling_of_masses(self):
        y = observe(SPIKES, HEIGHTS)
        one = solve(y)
        two = solve(1024 * y, regularisation=0.01 * 1024)
        close(two.positions, one.positions, atol=1e-9)
        close(two.weights / 1024, one.weights, atol=1e-9)

    def test_sign(self):
        y, start = observe(SPIKES, HEIGHTS * SIGNS), torch.arange(60, dtype=F64) / 60
        one = short(y, start=start, signed=True, n_steps=30)
        two = short(-y, start=start.reshape(30, 2).flip(1).flatten(), signed=True, n_steps=30)
        close(two.weights.reshape(30, 2).flip(1).flatten(), -one.weights, atol=1e-10)

    def test_the_generator_decides(self):
        y = observe(SPIKES, HEIGHTS)
        assert torch.equal(solve(y).positions, solve(y).positions)
        assert not torch.equal(solve(y).positions, solve(y, seed=1).positions)

    def test_clusters_wrap_around(self):
        x, w = solve(observe(numbers(0.0, 0.5), numbers(1.0, 1.0))).clusters()
        assert len(x) == 2
        off = ((x + 0.25).remainder(1) - 0.25).sort().values
        close(off, numbers(0.0, 0.5), atol=1e-3)
        close(w, numbers(0.99, 0.99), atol=0.01)


def test_float32_and_numpy():
    y = observe(SPIKES, HEIGHTS)
    exact = solve(y, tol=1e-5).losses[-1]
    single = solve(y.float(), tol=1e-5)
    assert single.positions.dtype == torch.float32
    close(single.losses[-1].double(), exact, atol=1e-4)
    assert torch.equal(solve(y.numpy()).positions, solve(y).positions)


def test_on_another_device(device):
    y, start = observe(SPIKES, HEIGHTS), torch.arange(40, dtype=F64) / 40
    here = short(y, start=start, n_steps=50)
    there = short(y.to(device), start=start.to(device), n_steps=50)
    close(there.positions.cpu(), here.positions, atol=1e-9)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"y": torch.ones(4)}, ValueError, r"y must have shape \(2 n_f \+ 1,\)"),
        ({"y": torch.ones(3, 3)}, ValueError, r"y must have shape \(2 n_f \+ 1,\)"),
        ({"y": torch.tensor([1.0, math.nan, 0.0])}, ValueError, "y holds nan"),
        ({"y": torch.zeros(5)}, ValueError, "y is zero"),
        ({"regularisation": 0.0}, ValueError, "regularisation must be a finite number above 0"),
        ({"n_particles": 0}, ValueError, "n_particles must be a whole number"),
        ({"n_steps": 0.5}, ValueError, "n_steps must be a whole number"),
        ({"step": -1.0}, ValueError, "step must be a finite number above 0"),
        ({"signed": True, "n_particles": 1}, ValueError, "signed spikes need at least 2"),
        ({"start": torch.zeros(2, 2)}, ValueError, r"start must have shape \(m,\)"),
        ({"generator": None}, TypeError, "generator must be a torch.Generator"),
    ],
)
def test_bad_input(options, error, message):
    default = {"y": torch.ones(5), "regularisation": 0.1, "generator": problems.generator(0)}
    options = default | options
    with pytest.raises(error, match=message):
        sparse_spikes(options.pop("y"), **options)
