"""Particle flows: closed forms of loss, discrepancy and step, symmetries, Stein's fixed point, bad input."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.spatial.distance import pdist

from otbook.flows import energy_distance, mmd2, particle_flow, svgd

F64 = torch.float64


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def cloud(*shape, seed=0):
    return torch.randn(*shape, generator=rng(seed), dtype=F64)


def half_square(x):
    """½ ∫ |x|² dμ, whose velocity is −x at every number of particles."""
    return x.square().sum(-1).mean(-1) / 2


class TestDiscrepancies:
    def test_energy_distance_on_the_line(self):
        """2 ∫ (F − G)², with the distribution functions integrated exactly between the atoms."""
        x, y = cloud(7, 1), cloud(5, 1, seed=1)
        z = torch.cat([x, y])[:, 0].sort().values
        F, G = ((t[:, 0] <= z[:-1, None]).double().mean(1) for t in (x, y))
        expected = 2 * ((F - G).square() * z.diff()).sum()
        torch.testing.assert_close(energy_distance(x, y), expected, rtol=0, atol=1e-13)

    def test_energy_distance_of_two_gaussians(self):
        """2 E|Z√2 + 1| − 4/√π for N(0, 1) and N(1, 1): 0.5418066, within 4 standard errors."""
        n, values = 400, []
        for seed in range(40):
            x, y = cloud(n, 1, seed=2 * seed), cloud(n, 1, seed=2 * seed + 1) + 1
            # The sums over i = j are zeros too many.
            own = sum(pdist(t.numpy()).mean() for t in (x, y)) / n
            values.append(energy_distance(x, y).item() - own)
        values = torch.tensor(values)
        error = values.std() / math.sqrt(len(values))
        assert abs(values.mean() - 0.5418066) < 4 * error

    def test_mmd_of_two_points_in_closed_form(self):
        x, y = torch.zeros(1, 2, dtype=F64), torch.tensor([[3.0, 4.0]], dtype=F64)
        for kernel, k in (("gaussian", math.exp(-25 / 8)), ("laplacian", math.exp(-5 / 2))):
            found = mmd2(x, y, kernel=kernel, bandwidth=2.0).item()
            assert found == pytest.approx(2 - 2 * k, abs=1e-14)

    @pytest.mark.parametrize("distance", [energy_distance, lambda *c: mmd2(*c, bandwidth=0.7)])
    def test_weights_are_repetitions_and_equal_measures_are_at_zero(self, distance):
        x, y = cloud(4, 3), cloud(3, 3, seed=1)
        weights = torch.tensor([0.5, 0.25, 0.25, 0.0], dtype=F64)
        repeated = x[[0, 0, 1, 2]]
        torch.testing.assert_close(distance(x, y, weights), distance(repeated, y), rtol=0, atol=1e-14)
        torch.testing.assert_close(distance(x, x.flip(0)), torch.tensor(0.0, dtype=F64), rtol=0, atol=1e-14)
        assert distance(x, y) > 0.01

    @pytest.mark.parametrize("kernel", ["gaussian", "laplacian"])
    def test_gradients(self, kernel):
        x, y = cloud(4, 2).requires_grad_(), cloud(3, 2, seed=1).requires_grad_()
        assert torch.autograd.gradcheck(lambda x, y: mmd2(x, y, kernel=kernel, bandwidth=0.9), (x, y))
        assert torch.autograd.gradcheck(energy_distance, (x, y))
        (g,) = torch.autograd.grad(energy_distance(x, x.detach()), x)
        assert torch.isfinite(g).all()

    def test_batch_is_the_loop(self):
        x, y = cloud(3, 5, 2), cloud(3, 4, 2, seed=1)
        loop = torch.stack([energy_distance(u, v) for u, v in zip(x, y, strict=True)])
        torch.testing.assert_close(energy_distance(x, y), loop, rtol=0, atol=1e-14)


class TestParticleFlow:
    def test_a_quadratic_in_closed_form(self):
        """x ← (1 − τ) x, whatever the number of particles; the square of the speed is −dF/dt."""
        for n in (1, 6):
            x = cloud(n, 2)
            flow = particle_flow(x, half_square, step=0.1, n_steps=20, every=8)
            torch.testing.assert_close(flow.x, 0.9**20 * x, rtol=0, atol=1e-14)
            assert flow.steps == [0, 8, 16, 20]
            torch.testing.assert_close(flow.path[2], 0.9**16 * x, rtol=0, atol=1e-14)
            torch.testing.assert_close(flow.speeds.square(), 2 * flow.losses, rtol=1e-12, atol=0)

    def test_order_one(self):
        x, errors = cloud(5, 2), []
        steps = [16, 32, 64, 128]
        for n in steps:
            end = particle_flow(x, half_square, step=1 / n, n_steps=n).x
            errors.append((end - x / math.e).abs().max().item())
        slope = torch.tensor(errors).log().diff() / torch.tensor(steps).log().diff()
        torch.testing.assert_close(slope, torch.full_like(slope, -1.0), rtol=0, atol=0.05)

    def test_copies_of_particles_change_nothing(self):
        x, y = cloud(5, 2), cloud(4, 2, seed=1)

        def loss(z):
            return energy_distance(z, y)

        once = particle_flow(x, loss, step=0.05, n_steps=10).x
        twice = particle_flow(x.repeat(2, 1), loss, step=0.05, n_steps=10).x
        torch.testing.assert_close(twice, once.repeat(2, 1), rtol=0, atol=1e-12)
        order = torch.randperm(5, generator=rng())
        renamed = particle_flow(x[order], loss, step=0.05, n_steps=10).x
        torch.testing.assert_close(renamed, once[order], rtol=0, atol=1e-12)

    def test_noise_is_in_the_generator(self):
        x = cloud(4, 2)
        options = {"step": 0.1, "n_steps": 5, "noise": lambda k: 0.3 / (k + 1)}
        one, two, other = (
            particle_flow(x, half_square, generator=rng(seed), **options).x for seed in (1, 1, 2)
        )
        torch.testing.assert_close(one, two, rtol=0, atol=0)
        assert (one - other).abs().max() > 1e-3

    def test_batch_and_float32(self):
        x = cloud(3, 4, 2)
        whole = particle_flow(x, half_square, step=0.1, n_steps=3)
        assert whole.losses.shape == (3, 3)
        torch.testing.assert_close(whole.x, 0.9**3 * x, rtol=0, atol=1e-14)
        single = particle_flow(x.float(), half_square, step=0.1, n_steps=3).x
        assert single.dtype == torch.float32
        torch.testing.assert_close(single, whole.x.float(), rtol=0, atol=1e-6)

    def test_a_step_that_is_too_long(self):
        with pytest.raises(ValueError, match="step"):
            particle_flow(torch.ones(2, 1), lambda x: x.pow(4).mean((-2, -1)), step=10.0, n_steps=50)


class TestStein:
    def test_one_step_by_hand(self):
        """The double sum of algorithm 1 of Liu and Wang, written as a loop."""
        x, h, tau = cloud(4, 2), 0.8, 0.1
        expected = x.clone()
        for i in range(4):
            for j in range(4):
                k = torch.exp(-(x[i] - x[j]).square().sum() / (2 * h**2))
                expected[i] += tau / 4 * (k * -x[j] + k * (x[i] - x[j]) / h**2)
        found = svgd(x, lambda z: -z, step=tau, n_steps=1, bandwidth=h).x
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)

    def test_towards_a_gaussian(self):
        """At a fixed point with a linear score, Stein's identity holds for the kernel; the mean is exact."""
        x = svgd(cloud(40, 1) + 3, lambda z: 1.0 - z, step=0.5, n_steps=800)
        assert x.losses is None
        assert x.speeds[-1] < 1e-3
        assert abs(x.x.mean() - 1) < 0.02
        assert 0.6 < x.x.std() < 1.1, "the median rule underestimates the spread of few particles"

    def test_permutation_and_batch(self):
        x = cloud(2, 5, 3)
        options = {"step": 0.1, "n_steps": 4}
        whole = svgd(x, lambda z: -z, **options).x
        order = torch.randperm(5, generator=rng())
        torch.testing.assert_close(
            svgd(x[:, order], lambda z: -z, **options).x, whole[:, order], rtol=0, atol=1e-13
        )
        torch.testing.assert_close(svgd(x[0], lambda z: -z, **options).x, whole[0], rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: particle_flow(x, half_square, step=0.0, n_steps=1), ValueError, "step must be"),
        (lambda x: particle_flow(x, half_square, step=0.1, n_steps=0), ValueError, "n_steps must be"),
        (lambda x: particle_flow(x, lambda z: z, step=0.1, n_steps=1), ValueError, "loss must map"),
        (lambda x: particle_flow(x, half_square, step=0.1, n_steps=1, noise=0.1), TypeError, "generator"),
        (
            lambda x: particle_flow(x, half_square, step=0.1, n_steps=1, noise=-1.0, generator=rng()),
            ValueError,
            "noise must be",
        ),
        (lambda x: svgd(x, lambda z: z[:1], step=0.1, n_steps=1), ValueError, "score must keep"),
        (lambda x: svgd(x, lambda z: z, step=0.1, n_steps=1, bandwidth=0.0), ValueError, "bandwidth"),
        (lambda x: mmd2(x, x, kernel="cubic", bandwidth=1.0), ValueError, "kernel"),
        (lambda x: mmd2(x, x, bandwidth=-1.0), ValueError, "bandwidth"),
        (lambda x: energy_distance(x, x[:, :1]), ValueError, "x and y|dimension"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call(cloud(3, 2))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda():
    x = cloud(4, 2).cuda()
    flow = particle_flow(x, half_square, step=0.1, n_steps=2)
    torch.testing.assert_close(flow.x.cpu(), 0.81 * x.cpu(), rtol=0, atol=1e-12)
