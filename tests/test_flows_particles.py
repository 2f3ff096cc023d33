"""Particle flows against closed forms, SciPy's energy distance, and sums written out in loops."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.stats import energy_distance as scipy_energy_distance

from otbook.costs import sqeuclidean
from otbook.flows import ParticleFlow, energy_distance, mmd2, particle_flow, svgd

from . import problems


def cloud(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=problems.generator(seed), dtype=torch.float64).to(dtype)


def quadratic(x):
    """½ mean |x − 1|²: every particle moves by −τ (x − 1), however many there are."""
    return (x - 1).square().sum(-1).mean(-1) / 2


def hermite(mean, std, n=60):
    """Nodes and weights that integrate smooth functions against N(mean, std²) to rounding."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(n)
    return torch.from_numpy(mean + std * nodes)[:, None], torch.from_numpy(weights / weights.sum())


# The two distances


def test_energy_distance_of_two_gaussians():
    """4/√π (e^{−1/4} − 1) + 2 erf(1/2) = 0.5418066; midpoint quantiles are off by less than 1/n."""
    n = 1000
    u = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    x = torch.special.ndtri(u)[:, None]
    exact = 4 / math.sqrt(math.pi) * (math.exp(-0.25) - 1) + 2 * math.erf(0.5)
    assert abs(exact - 0.5418066) < 1e-7
    assert abs(energy_distance(x, x + 1).item() - exact) < 1 / n


def test_energy_distance_is_scipys_squared_and_two_integrals_of_squares():
    x, y, a, b = problems.clouds(n=9, m=6, d=1)
    ours = energy_distance(x, y, a, b).item()
    theirs = scipy_energy_distance(x[:, 0], y[:, 0], a, b) ** 2
    assert abs(ours - theirs) < 1e-12
    z, order = torch.cat([x, y])[:, 0].sort()
    height = torch.cat([a, -b])[order].cumsum(0)[:-1]
    assert abs(ours - 2 * (height**2 * z.diff()).sum().item()) < 1e-12


@pytest.mark.parametrize(("m", "s", "t", "h"), [(1.0, 1.0, 1.0, 1.0), (0.5, 0.7, 1.2, 2.0)])
def test_mmd_of_two_gaussians(m, s, t, h):
    """E exp(−Z²/2h²) = h/√(h² + v) exp(−m²/2(h² + v)) for Z ~ N(m, v)."""

    def kernel(mean, variance):
        v = h**2 + variance
        return h / math.sqrt(v) * math.exp(-(mean**2) / (2 * v))

    (x, a), (y, b) = hermite(0.0, s), hermite(m, t)
    exact = kernel(0, 2 * s**2) - 2 * kernel(m, s**2 + t**2) + kernel(0, 2 * t**2)
    assert abs(mmd2(x, y, a, b, bandwidth=h).item() - exact) < 1e-6


def test_atoms():
    x, y = torch.zeros(1, 2), torch.tensor([[3.0, 4.0]])
    torch.testing.assert_close(energy_distance(x, y), torch.tensor(10.0))
    torch.testing.assert_close(mmd2(x, y, bandwidth=5.0), torch.tensor(2 - 2 * math.exp(-0.5)))
    laplacian = mmd2(x, y, kernel="laplacian", bandwidth=5.0)
    torch.testing.assert_close(laplacian, torch.tensor(2 - 2 * math.exp(-1)))


DISTANCES = {
    "gaussian": lambda *p: mmd2(*p, bandwidth=0.8),
    "laplacian": lambda *p: mmd2(*p, kernel="laplacian", bandwidth=0.8),
    "energy": energy_distance,
}
each_distance = pytest.mark.parametrize("distance", DISTANCES.values(), ids=DISTANCES)


@each_distance
def test_a_distance_of_measures(distance):
    x, y, a, b = problems.clouds()
    value = distance(x, y, a, b)
    assert value > 0
    assert distance(x, x, a, a).abs() < 1e-14
    close = {"rtol": 0, "atol": 1e-13}
    torch.testing.assert_close(distance(y, x, b, a), value, **close)
    p = torch.randperm(len(x), generator=problems.generator(3))
    torch.testing.assert_close(distance(x[p], y, a[p], b), value, **close)
    torch.testing.assert_close(distance(x + 2, y + 2, a, b), value, **close)
    torch.testing.assert_close(distance(torch.cat([x, x]), y, torch.cat([a, a]) / 2, b), value, **close)
    grown, padded = torch.cat([x, x[:1] + 9]), torch.cat([a, torch.zeros(1, dtype=a.dtype)])
    torch.testing.assert_close(distance(grown, y, padded, b), value, **close)


@each_distance
def test_batch_precision_and_numpy(distance):
    x, y, a, b = problems.clouds(batch=(2, 3))
    values = distance(x, y, a, b)
    assert values.shape == (2, 3)
    torch.testing.assert_close(values[1, 2], distance(x[1, 2], y[1, 2], a[1, 2], b[1, 2]))
    single = distance(*(t.float() for t in (x, y, a, b)))
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), values, rtol=0, atol=1e-5)
    torch.testing.assert_close(distance(*(t.numpy() for t in (x, y, a, b))), values)


@each_distance
def test_gradients(distance):
    x, y, a, b = problems.clouds(n=4, m=3)
    x.requires_grad_()
    y.requires_grad_()
    assert torch.autograd.gradcheck(lambda x, y: distance(x, y, a, b), (x, y))


def test_gradient_where_points_coincide_is_finite():
    x = torch.zeros(2, 2, dtype=torch.float64, requires_grad=True)
    (g,) = torch.autograd.grad(energy_distance(x, torch.zeros(1, 2, dtype=torch.float64)), x)
    assert (g == 0).all()


# The flow


@pytest.mark.parametrize("n", [1, 3, 10])
def test_quadratic_loss(n):
    """A factor 1 − τ a step, whatever the number of particles: the metric is averaged."""
    x0, tau = cloud(n, 2), 0.3
    run = particle_flow(x0, quadratic, step=tau, n_steps=7)
    torch.testing.assert_close(run.x, 1 + (1 - tau) ** 7 * (x0 - 1), rtol=0, atol=1e-13)
    torch.testing.assert_close(run.losses, quadratic(run.path[:-1]), rtol=0, atol=1e-14)
    torch.testing.assert_close(run.speeds, (2 * run.losses).sqrt(), rtol=0, atol=1e-14)


def test_energy_flow_to_the_uniform_law_finds_the_quantiles():
    """On the line, particle i contracts by 1 − 4τ a step to the quantile (i − ½)/n."""
    n, tau = 6, 0.05
    quantiles = ((torch.arange(n, dtype=torch.float64) + 0.5) / n)[:, None]

    def loss(x):
        z = x[..., 0]
        pairs = (z[..., None] - z[..., None, :]).abs().mean((-2, -1))
        return (z**2 + (1 - z) ** 2).mean(-1) - pairs

    x0 = torch.rand(n, 1, generator=problems.generator(0), dtype=torch.float64).sort(0).values
    run = particle_flow(x0, loss, step=tau, n_steps=10)
    expected = quantiles + (1 - 4 * tau) ** 10 * (x0 - quantiles)
    torch.testing.assert_close(run.x, expected, rtol=0, atol=1e-13)


def test_dissipation_is_of_first_order():
    x, y, _, b = problems.clouds()
    steps, defects = [0.04, 0.02, 0.01], []
    for h in steps:
        run = particle_flow(x, lambda x: mmd2(x, y, None, b, bandwidth=1.0), step=h, n_steps=2)
        defects.append(abs(run.losses.diff()[0] / h + run.speeds[0] ** 2).item())
    for one, other in itertools.pairwise(defects):
        assert 1.9 < one / other < 2.1


def test_permutations_copies_and_batches():
    x0, y = cloud(2, 8, 2), cloud(5, 2, seed=1)

    def loss(x):
        return energy_distance(x, y.expand(*x.shape[:-2], 5, 2))

    def flow(x0):
        return particle_flow(x0, loss, step=0.1, n_steps=5).x

    p = torch.randperm(8, generator=problems.generator(2))
    options = {"rtol": 0, "atol": 1e-12}
    torch.testing.assert_close(flow(x0[:, p]), flow(x0)[:, p], **options)
    torch.testing.assert_close(flow(x0), torch.stack([flow(x0[0]), flow(x0[1])]), **options)
    twice = particle_flow(x0[0].repeat(2, 1), quadratic, step=0.1, n_steps=5).x
    single = particle_flow(x0[0], quadratic, step=0.1, n_steps=5).x
    torch.testing.assert_close(twice, single.repeat(2, 1), **options)


def test_path_and_steps():
    run = particle_flow(cloud(4, 2), quadratic, step=0.1, n_steps=7, every=3)
    assert run.steps == [0, 3, 6, 7]
    assert run.path.shape == (4, 4, 2)
    assert run.losses.shape == run.speeds.shape == (7,)
    assert torch.equal(run.path[-1], run.x)
    assert not run.x.requires_grad
    assert "ParticleFlow(path of shape (4, 4, 2)" in repr(run)


def test_works_without_gradients_and_leaves_its_input_alone():
    x0 = cloud(3, 2).requires_grad_()
    kept = x0.detach().clone()
    with torch.no_grad():
        run = particle_flow(x0, quadratic, step=0.5, n_steps=2)
    assert isinstance(run, ParticleFlow)
    assert torch.equal(x0.detach(), kept)
    assert not run.path.requires_grad


def test_noise_descends_the_smoothed_loss():
    """E sin(x + σξ) = e^{−σ²/2} sin x: the mean velocity, within four standard errors."""
    n, sigma = 40_000, 1.5
    x0 = torch.full((n, 1), 0.4, dtype=torch.float64)
    run = particle_flow(
        x0, lambda x: x.sin().mean((-2, -1)), step=1, n_steps=1, noise=sigma, generator=problems.generator(0)
    )
    move = (run.x - x0)[:, 0]
    error = move.std().item() / math.sqrt(n)
    assert abs(move.mean().item() + math.exp(-(sigma**2) / 2) * math.cos(0.4)) < 4 * error


def test_noise_comes_from_the_generator_and_follows_its_schedule():
    def run(noise, seed=0):
        options = {"noise": noise, "generator": problems.generator(seed)}
        return particle_flow(cloud(5, 2), quadratic, step=0.1, n_steps=4, **options).x

    assert torch.equal(run(0.3), run(0.3))
    assert not torch.equal(run(0.3), run(0.3, seed=1))
    assert torch.equal(run(lambda k: 0.3), run(0.3))
    plain = particle_flow(cloud(5, 2), quadratic, step=0.1, n_steps=4).x
    assert torch.equal(run(lambda k: 0.0), plain)


# Stein variational gradient descent


def test_one_particle_climbs_to_the_mode():
    run = svgd(cloud(1, 3), lambda x: 2 - x, step=0.1, n_steps=10)
    torch.testing.assert_close(run.x, 2 + 0.9**10 * (cloud(1, 3) - 2), rtol=0, atol=1e-13)
    assert run.losses is None


@pytest.mark.parametrize("bandwidth", [0.7, None])
def test_one_step_is_the_formula(bandwidth):
    x, n = cloud(6, 2), 6
    med = sqeuclidean(x, x)[torch.triu_indices(n, n, 1).unbind()].median()
    h2 = bandwidth**2 if bandwidth else med / (2 * math.log(n + 1))
    v = torch.zeros_like(x)
    for i, j in itertools.product(range(n), repeat=2):
        z = x[j].clone().requires_grad_()
        k = torch.exp(-(z - x[i]).square().sum() / (2 * h2))
        v[i] += (k.detach() * -x[j].sin() + torch.autograd.grad(k, z)[0]) / n
    run = svgd(x, lambda x: -x.sin(), step=1, n_steps=1, bandwidth=bandwidth)
    torch.testing.assert_close(run.x - x, v, rtol=0, atol=1e-12)
    torch.testing.assert_close(run.speeds[0], v.square().sum(1).mean().sqrt())


def test_a_huge_bandwidth_moves_the_cloud_as_a_rigid_body():
    x0 = cloud(9, 2)
    run = svgd(x0, lambda x: 3 - x, step=0.2, n_steps=5, bandwidth=1e6)
    shift = (1 - 0.8**5) * (3 - x0.mean(0))
    torch.testing.assert_close(run.x, x0 + shift, rtol=0, atol=1e-9)


@pytest.mark.parametrize("h", [0.5, 1.0, 3.0])
def test_two_particles_rest_where_repulsion_meets_attraction(h):
    """For N(m, 1) at m ± z with z² = ½h² log(1 + 2/h²), from −z + e^{−2z²/h²} (z + 2z/h²) = 0."""
    x0 = torch.tensor([[0.0], [1.5]], dtype=torch.float64)
    run = svgd(x0, lambda x: 1 - x, step=0.1, n_steps=2000, bandwidth=h)
    z = math.sqrt(h**2 / 2 * math.log1p(2 / h**2))
    expected = torch.tensor([[1 - z], [1 + z]], dtype=torch.float64)
    torch.testing.assert_close(run.x, expected, rtol=0, atol=1e-8)
    assert run.speeds[-1] < 1e-9


def test_svgd_permutations_batches_and_coinciding_particles():
    x0, p = cloud(2, 7, 2), torch.randperm(7, generator=problems.generator(2))

    def flow(x0):
        return svgd(x0, lambda x: -x, step=0.2, n_steps=5).x

    options = {"rtol": 0, "atol": 1e-12}
    torch.testing.assert_close(flow(x0[:, p]), flow(x0)[:, p], **options)
    torch.testing.assert_close(flow(x0), torch.stack([flow(x0[0]), flow(x0[1])]), **options)
    same = flow(torch.ones(4, 2, dtype=torch.float64))
    torch.testing.assert_close(same, torch.full_like(same, 0.8**5), **options)


# Precision, devices, bad input


def test_float32():
    x = cloud(6, 2, dtype=torch.float32)
    y = cloud(5, 2, seed=1, dtype=torch.float32)
    for flow, args in (
        (particle_flow, lambda y: lambda x: mmd2(x, y, bandwidth=1.0)),
        (svgd, lambda y: lambda x: -x),
    ):
        single = flow(x, args(y), step=0.1, n_steps=10).x
        double = flow(x.double(), args(y.double()), step=0.1, n_steps=10).x
        assert single.dtype == torch.float32
        torch.testing.assert_close(single.double(), double, rtol=0, atol=1e-4)


def test_on_another_device(device):
    x, y = cloud(6, 2), cloud(5, 2, seed=1)
    here = particle_flow(x, lambda x: energy_distance(x, y), step=0.1, n_steps=5).x
    there = y.to(device)
    run = particle_flow(x.to(device), lambda x: energy_distance(x, there), step=0.1, n_steps=5)
    torch.testing.assert_close(run.x.cpu(), here, rtol=0, atol=1e-10)
    torch.testing.assert_close(
        svgd(x.to(device), lambda x: -x, step=0.1, n_steps=5).x.cpu(),
        svgd(x, lambda x: -x, step=0.1, n_steps=5).x,
        rtol=0,
        atol=1e-10,
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step": 0.0}, "step must be a finite number above 0"),
        ({"n_steps": 0}, "n_steps must be a whole number"),
        ({"every": 0}, "every must be a whole number"),
        ({"x0": torch.zeros(3)}, r"x0 must have shape \(…, n, d\)"),
        ({"x0": torch.tensor([[math.nan]])}, "x0 holds nan"),
        ({"loss": lambda x: x.sum(-1)}, "loss must map shape"),
        ({"loss": lambda x: 0.0}, "returned float"),
        ({"noise": -0.1, "generator": problems.generator(0)}, "noise must be finite and at least 0"),
        ({"step": 1e200, "n_steps": 9}, "step = 1e\\+200 is too long"),
    ],
)
def test_bad_flows(change, message):
    options = {"x0": torch.ones(3, 2) * 2, "loss": quadratic, "step": 0.1, "n_steps": 2} | change
    with pytest.raises(ValueError, match=message):
        particle_flow(options.pop("x0"), options.pop("loss"), **options)


def test_noise_needs_a_generator():
    with pytest.raises(TypeError, match="generator must be a torch.Generator"):
        particle_flow(torch.ones(3, 2), quadratic, step=0.1, n_steps=2, noise=0.1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bandwidth": -1.0}, "bandwidth must be a finite number above 0"),
        ({"score": lambda x: x[:1]}, "score must keep the shape"),
        ({"score": lambda x: x, "step": 1e30, "n_steps": 5}, "is too long"),
    ],
)
def test_bad_svgd(change, message):
    options = {"score": torch.neg, "step": 0.1, "n_steps": 2} | change
    with pytest.raises(ValueError, match=message):
        svgd(torch.ones(3, 2), options.pop("score"), **options)


def test_bad_distances():
    x = torch.zeros(2, 2)
    with pytest.raises(ValueError, match="kernel must be one of 'gaussian', 'laplacian'"):
        mmd2(x, x, kernel="cubic", bandwidth=1.0)
    with pytest.raises(ValueError, match="bandwidth must be a finite number above 0"):
        mmd2(x, x, bandwidth=0.0)
    with pytest.raises(ValueError, match="points in dimension 2 and y in dimension 3"):
        energy_distance(x, torch.zeros(2, 3))
    with pytest.raises(ValueError, match="a has mass 2"):
        energy_distance(x, x, [1.0, 1.0])
