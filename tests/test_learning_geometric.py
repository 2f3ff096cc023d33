"""The semi-discrete map as a generator: masses, walls, bridges and gaps."""

import math

import pytest
import torch

from otbook import sinkhorn
from otbook.costs import sqeuclidean
from otbook.learning import fit_semidiscrete_map
from otbook.semidiscrete import laguerre_cells, solve

F64 = torch.float64


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def clusters(m=60, d=2, *, spread=0.1, gap=2.0, seed=0, dtype=F64):
    """Two clusters along the first axis, the first m/2 codes in the left one."""
    y = spread * torch.randn(m, d, generator=rng(seed), dtype=F64)
    y[m // 2 :, 0] += gap
    return y.to(dtype)


@pytest.fixture(scope="module")
def plane():
    return fit_semidiscrete_map(clusters(), generator=rng())


@pytest.fixture(scope="module")
def space():
    y = clusters(16, 3, spread=0.5)
    return fit_semidiscrete_map(y, source="gaussian", tol=0.1, generator=rng())


def test_in_the_plane_every_cell_has_the_mass_of_its_code():
    weights = torch.linspace(1, 3, 60, dtype=F64)
    weights = weights / weights.sum()
    fit = fit_semidiscrete_map(clusters(), weights, generator=rng())
    assert fit.mass_error <= 1e-10
    cells = laguerre_cells(fit.codes, 2 * fit.heights - fit.codes.square().sum(1))
    torch.testing.assert_close(cells.masses, weights, rtol=0, atol=1e-10)
    torch.testing.assert_close(fit.masses, weights, rtol=0, atol=1e-10)
    share = torch.bincount(fit.assign(fit.noise(40_000, rng(1))), minlength=60) / 40_000
    assert ((share - weights).abs() <= 4.5 * (weights / 40_000).sqrt()).all()


def test_two_codes_by_hand():
    fit = fit_semidiscrete_map([[0.0, 0.0], [2.0, 0.0]], [0.75, 0.25], generator=rng())
    torch.testing.assert_close(fit.heights, torch.tensor([-0.75, 0.75]))
    torch.testing.assert_close(fit.centres, torch.tensor([[0.375, 0.5], [0.875, 0.5]]))
    z = torch.tensor([[0.7, 0.5], [0.8, 0.1]])
    torch.testing.assert_close(fit(z), torch.tensor([[0.0, 0.0], [2.0, 0.0]]))
    # distances from (0.7, 0.5) to the centres: 0.325 and 0.175
    expected = torch.tensor([[2 * 0.325 / 0.5, 0.0]])
    torch.testing.assert_close(fit.extend(z[:1], k=2), expected)


@pytest.mark.parametrize("source", ["gaussian", "uniform"])
def test_on_the_line_walls_are_quantiles(source):
    y = torch.tensor([-1.0, -0.4, 0.1, 0.5, 1.3], dtype=F64)[:, None]
    b = torch.tensor([0.1, 0.3, 0.2, 0.25, 0.15], dtype=F64)
    fit = fit_semidiscrete_map(y, b, source=source, tol=0.05, generator=rng())
    walls = fit.heights.diff() / y[:, 0].diff()
    left = walls if source == "uniform" else torch.distributions.Normal(0.0, 1.0).cdf(walls)
    torch.testing.assert_close(left, b.cumsum(0)[:-1], rtol=0, atol=0.025)
    torch.testing.assert_close(fit.masses, b, rtol=0, atol=0.05)


def test_by_samples_the_masses_and_the_map_agree_with_a_discrete_solver(space):
    assert space.mass_error <= 0.1
    assert (space.masses - space.weights).abs().sum() <= 0.1
    z = space.noise(1500, rng(2))
    plan = sinkhorn(sqeuclidean(z, space.codes), eps=0.01, tol=1e-3).plan
    agree = (plan.argmax(1) == space.assign(z)).double().mean()
    assert agree >= 0.9  # 1500 samples know a share of 1/16 to a tenth of itself


def test_by_samples_in_the_plane_agrees_with_newton():
    y = clusters(12, spread=0.4)
    exact = fit_semidiscrete_map(y, generator=rng())
    # The same source, dressed as three-dimensional: a third coordinate in which all codes agree.
    flat = torch.cat([y, torch.zeros(12, 1, dtype=F64)], 1)
    sampled = fit_semidiscrete_map(flat, tol=0.05, generator=rng())
    z = sampled.noise(20_000, rng(3))
    assert (sampled.assign(z) == exact.assign(z[:, :2])).double().mean() >= 0.95
    torch.testing.assert_close(sampled.centres[:, :2], exact.centres, rtol=0, atol=0.05)


def test_the_map_is_the_gradient_of_the_convex_potential(plane):
    z = plane.noise(200, rng(4)).requires_grad_()
    (gradient,) = torch.autograd.grad(plane.potential(z).sum(), z)
    torch.testing.assert_close(gradient, plane(z))
    z = z.detach()
    chord = (plane.potential(z[:100]) + plane.potential(z[100:])) / 2
    assert (plane.potential((z[:100] + z[100:]) / 2) <= chord + 1e-12).all()


def test_neighbours_are_the_highest_planes_in_order(plane):
    z = plane.noise(50, rng(5))
    planes = z @ plane.codes.T - plane.heights
    near = plane.neighbours(z, 4)
    assert torch.equal(near, planes.argsort(1, descending=True)[:, :4])
    assert torch.equal(near[:, 0], plane.assign(z))


def test_a_centre_goes_to_its_code(plane):
    torch.testing.assert_close(plane.extend(plane.centres), plane.codes, rtol=0, atol=1e-9)


def test_the_extended_map_bridges_the_gap_and_both_rules_leave_it_open(plane):
    def between(x):
        return ((x[:, 0] > 0.5) & (x[:, 0] < 1.5)).double().mean().item()

    z = plane.noise(4000, rng(6))
    assert between(plane.extend(z)) > 0.005
    pruned = plane.extend(z, threshold=1.0)
    assert between(pruned) == 0
    assert torch.equal(pruned[:, 0] > 1, plane(z)[:, 0] > 1)  # modes keep their masses
    assert (pruned - plane(z)).norm(dim=1).max() <= 1.0
    rejected, accepted = plane.sample(4000, threshold=1.0, generator=rng(6))
    assert between(rejected) == 0
    assert 0.8 < accepted < 1
    assert rejected.shape == (4000, 2)
    assert plane.sample(100, generator=rng(6))[1] == 1


def test_a_threshold_of_zero_is_the_map_itself(plane):
    z = plane.noise(300, rng(7))
    torch.testing.assert_close(plane.extend(z, threshold=0.0), plane(z))
    assert (plane.extend(z) - plane(z)).norm(dim=1).max() > 0.1


def test_jumps_are_distances_or_dihedral_angles():
    codes = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 1.0]], dtype=F64)
    fit = fit_semidiscrete_map(codes, generator=rng())
    z = fit.centres[:1]
    order = fit.neighbours(z, 3)[0]
    assert order[0] == 0
    distance = dict(zip(order.tolist(), fit.jumps(z, k=3)[0].tolist(), strict=True))
    assert distance == {0: 0.0, 1: 2.0, 2: 1.0}
    angle = dict(zip(order.tolist(), fit.jumps(z, k=3, measure="angle")[0].tolist(), strict=True))
    assert angle[0] == 0
    assert angle[1] == pytest.approx(math.acos(1 / math.sqrt(5)), abs=1e-12)
    assert angle[2] == pytest.approx(math.pi / 4, abs=1e-12)


def test_the_order_of_the_codes_does_not_matter(plane):
    order = torch.randperm(60, generator=rng(8))
    shuffled = fit_semidiscrete_map(plane.codes[order], generator=rng())
    z = plane.noise(500, rng(9))
    torch.testing.assert_close(shuffled.heights, plane.heights[order], rtol=0, atol=1e-9)
    torch.testing.assert_close(
        shuffled.extend(z, threshold=1.0), plane.extend(z, threshold=1.0), rtol=0, atol=1e-8
    )
    torch.testing.assert_close(shuffled.jumps(z, k=3), plane.jumps(z, k=3), rtol=0, atol=1e-12)


def test_by_samples_moving_and_scaling_the_codes_changes_no_cell(space):
    shift = torch.tensor([10.0, -20.0, 5.0], dtype=F64)
    moved = fit_semidiscrete_map(7 * space.codes + shift, source="gaussian", tol=0.1, generator=rng())
    z = space.noise(5000, rng(10))
    assert (moved.assign(z) == space.assign(z)).double().mean() >= 0.999  # up to rounding at the walls
    torch.testing.assert_close(moved.jumps(z[:50], k=2), 7 * space.jumps(z[:50], k=2))


def test_uniform_noise_by_samples_is_centred_rightly():
    y = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]], dtype=F64)
    fit = fit_semidiscrete_map(y, [0.25, 0.75], tol=0.05, generator=rng())
    assert fit.heights.diff().item() == pytest.approx(0.25, abs=0.02)  # the wall z₁ = ¼


def test_the_generator_decides_everything(plane):
    y = clusters(10, 3, spread=0.5)
    first, second, third = (
        fit_semidiscrete_map(y, source="gaussian", generator=rng(seed)) for seed in (0, 0, 1)
    )
    assert torch.equal(first.heights, second.heights)
    assert torch.equal(first.centres, second.centres)
    assert not torch.equal(first.heights, third.heights)
    a, b, c = (plane.sample(50, threshold=1.0, generator=rng(seed))[0] for seed in (0, 0, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_keeps_the_dtype(dtype):
    for d in (2, 3):
        fit = fit_semidiscrete_map(clusters(10, d, spread=0.5, dtype=dtype), generator=rng())
        x, _ = fit.sample(20, threshold=2.0, generator=rng())
        assert {x.dtype, fit.heights.dtype, fit.centres.dtype, fit.masses.dtype} == {dtype}
        assert torch.isfinite(x).all()


def test_a_cell_without_noise_is_no_neighbour():
    y = clusters(40, 3, spread=0.3)
    fit = fit_semidiscrete_map(y, source="gaussian", n_centres=50, generator=rng())
    empty = fit.masses == 0
    assert empty.any()
    assert torch.isnan(fit.centres[empty]).all()
    z = fit.noise(3000, rng(11))
    x = fit.extend(z)
    assert torch.isfinite(x).all()
    mine = empty[fit.assign(z)]
    assert mine.any()
    torch.testing.assert_close(x[mine], fit(z)[mine])


def test_on_another_device(device):
    for d in (2, 3):
        fit = fit_semidiscrete_map(clusters(10, d, spread=0.5).to(device), generator=rng())
        x, _ = fit.sample(20, threshold=2.0, generator=rng())
        assert x.device == device


@pytest.mark.parametrize(
    ("codes", "options", "error", "message"),
    [
        (torch.zeros(3), {}, ValueError, "codes must have shape"),
        (torch.zeros(2, 3, 2), {}, ValueError, "codes must have shape"),
        (torch.zeros(3, 2), {}, ValueError, "coincide"),
        (torch.full((3, 2), torch.nan), {}, ValueError, "codes holds nan"),
        (torch.eye(2), {"weights": [1.0, 0.0]}, ValueError, "positive"),
        (torch.eye(2), {"weights": [0.5, 0.4]}, ValueError, "mass 0.9"),
        (torch.eye(2), {"source": "cauchy"}, ValueError, "source must be one of"),
        (torch.eye(2), {"generator": 0}, TypeError, "generator must be"),
        (torch.eye(2), {"n_centres": 0}, ValueError, "n_centres must be"),
    ],
)
def test_refuses_bad_input(codes, options, error, message):
    with pytest.raises(error, match=message):
        fit_semidiscrete_map(codes, **{"generator": rng(), **options})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda fit: fit(torch.zeros(4, 3, dtype=F64)), r"z must have shape \(n, 2\)"),
        (lambda fit: fit.neighbours(torch.zeros(4, 2, dtype=F64), 61), "k must be at most"),
        (lambda fit: fit.extend(torch.zeros(4, 2, dtype=F64), threshold=-1), "threshold must be"),
        (lambda fit: fit.jumps(torch.zeros(4, 2, dtype=F64), k=2, measure="size"), "measure must be"),
        (lambda fit: fit.sample(0, generator=rng()), "n must be"),
        (lambda fit: fit.sample(5, k=60, threshold=1.0, generator=rng()), "raise it"),
    ],
)
def test_the_map_refuses_bad_input(plane, call, message):
    with pytest.raises(ValueError, match=message):
        call(plane)


def test_agrees_with_the_solver_it_stands_on(plane):
    plan = solve(plane.codes)
    z = plane.noise(1000, rng(12))
    assert torch.equal(plan.assign(z), plane.assign(z))
