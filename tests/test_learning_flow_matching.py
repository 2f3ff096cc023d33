"""Pairs against exact solvers, paths against finite differences, energies against closed forms."""

import math
from itertools import pairwise

import pytest
import torch
from scipy.optimize import linear_sum_assignment

from otbook import emd, sinkhorn
from otbook.costs import sqeuclidean
from otbook.learning import (
    bridge_path,
    conditional_path,
    noisy_path,
    normalised_path_energy,
    ot_cfm_pairs,
    path_energy,
)

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def clouds(n, m, d=2, seed=0, dtype=torch.float64):
    g = seeded(seed)
    x0 = torch.randn(n, d, generator=g, dtype=torch.float64)
    return x0.to(dtype), (1 + torch.randn(m, d, generator=g, dtype=torch.float64)).to(dtype)


def rows(x):
    return sorted(map(tuple, x.tolist()))


# Pairs


@DTYPES
def test_equal_batches_give_the_best_permutation_of_scipy(dtype):
    x0, x1 = clouds(40, 40, dtype=dtype)
    y0, y1 = ot_cfm_pairs(x0, x1, seeded())
    _, best = linear_sum_assignment(sqeuclidean(x0, x1).numpy())
    assert torch.equal(y0, x0)
    assert torch.equal(y1, x1[best])
    assert y1.dtype == dtype


def test_every_point_is_used_exactly_once():
    x0, x1 = clouds(64, 64)
    y0, y1 = ot_cfm_pairs(x0, x1, seeded())
    assert rows(y0) == rows(x0)
    assert rows(y1) == rows(x1)


def test_the_pairs_are_invariant_to_the_order_and_the_place_of_the_points():
    x0, x1 = clouds(30, 30)
    shuffled = x1[torch.randperm(30, generator=seeded(3))]
    expected = ot_cfm_pairs(x0, x1, seeded())[1]
    assert torch.equal(ot_cfm_pairs(x0, shuffled, seeded())[1], expected)
    moved = ot_cfm_pairs(x0 + 5, 2 * x1, seeded())[1]  # translation and scaling change no optimal pair
    torch.testing.assert_close(moved, 2 * expected, atol=0, rtol=0)


def test_leading_axes_are_separate_problems():
    x0, x1 = (z.reshape(4, 5, 2) for z in clouds(20, 20))
    y0, y1 = ot_cfm_pairs(x0, x1, seeded())
    for k in range(4):
        one = ot_cfm_pairs(x0[k], x1[k], seeded())
        assert torch.equal(y0[k], one[0])
        assert torch.equal(y1[k], one[1])


@pytest.mark.parametrize("case", ["unequal", "weights", "entropic"])
def test_drawn_pairs_have_the_frequencies_of_the_plan(case):
    n, m, draws = 5, (7 if case == "unequal" else 5), 40_000
    x0, x1 = clouds(n, m)
    options = {}
    if case == "weights":
        options = {"a": torch.tensor([0.4, 0.3, 0.0, 0.2, 0.1], dtype=torch.float64)}
    if case == "entropic":
        options = {"eps": 1.5}
    C = sqeuclidean(x0, x1)
    plan = sinkhorn(C, eps=1.5).plan if case == "entropic" else emd(C, options.get("a")).plan
    y0, y1 = ot_cfm_pairs(x0, x1, seeded(1), n_pairs=draws, **options)
    i, j = torch.cdist(y0, x0).argmin(1), torch.cdist(y1, x1).argmin(1)
    assert rows(y0[:9]) == rows(x0[i[:9]])
    found = torch.bincount(i * m + j, minlength=n * m).reshape(n, m) / draws
    error = (plan * (1 - plan) / draws).sqrt()
    # 4.5 standard errors for the largest of 35, and what the tolerance of Sinkhorn leaves; no mass, no pair
    assert ((found - plan).abs() <= 4.5 * error + 1e-3 * plan).all()


def test_the_number_of_drawn_pairs():
    x0, x1 = clouds(5, 8)
    assert ot_cfm_pairs(x0, x1, seeded())[0].shape == (8, 2)
    assert ot_cfm_pairs(x0, x1, seeded(), n_pairs=3)[1].shape == (3, 2)
    batch = x0.expand(2, 3, 5, 2), x1.expand(2, 3, 8, 2)
    y0, y1 = ot_cfm_pairs(*batch, seeded(), eps=1.0)
    assert y0.shape == y1.shape == (2, 3, 8, 2)
    assert not torch.equal(y0[0, 0], y0[1, 2])  # independent draws


def test_small_eps_pairs_as_the_exact_plan():
    x0, x1 = clouds(12, 12)
    y0, y1 = ot_cfm_pairs(x0, x1, seeded(), eps=1e-3, n_pairs=500)
    partner = ot_cfm_pairs(x0, x1, seeded())[1]
    assert set(rows(torch.cat([y0, y1], 1))) <= set(rows(torch.cat([x0, partner], 1)))


def test_one_generator_gives_one_result():
    x0, x1 = clouds(6, 9)
    first, second = (ot_cfm_pairs(x0, x1, seeded(4)) for _ in range(2))
    assert torch.equal(first[1], second[1])
    assert not torch.equal(first[1], ot_cfm_pairs(x0, x1, seeded(5))[1])


def test_arrays_and_lists_are_welcome_and_nothing_is_differentiated():
    x0, x1 = clouds(4, 4)
    _, y1 = ot_cfm_pairs(x0.numpy(), x1.tolist(), seeded())
    assert torch.equal(y1, ot_cfm_pairs(x0, x1, seeded())[1])
    assert not ot_cfm_pairs(x0.requires_grad_(), x1, seeded())[0].requires_grad


def test_pairs_refuse_what_makes_no_problem():
    x0, x1 = clouds(4, 4)
    with pytest.raises(ValueError, match="dimension"):
        ot_cfm_pairs(x0, x1[:, :1], seeded())
    with pytest.raises(ValueError, match="leading axes"):
        ot_cfm_pairs(x0.expand(2, 4, 2), x1, seeded())
    with pytest.raises(TypeError, match=r"generator must be a torch\.Generator"):
        ot_cfm_pairs(x0, x1, 0)
    with pytest.raises(ValueError, match="eps must be"):
        ot_cfm_pairs(x0, x1, seeded(), eps=0.0)
    with pytest.raises(ValueError, match="n_pairs must be"):
        ot_cfm_pairs(x0, x1, seeded(), n_pairs=0)
    with pytest.raises(ValueError, match="a has mass"):
        ot_cfm_pairs(x0, x1, seeded(), a=torch.full((4,), 0.3, dtype=torch.float64))
    with pytest.raises(ValueError, match="x1 has shape"):
        ot_cfm_pairs(x0, x1[:0], seeded())


# Paths

PATHS = {
    "straight": lambda x0, x1, t: conditional_path(x0, x1, t),
    "lipman, 0.1": lambda x0, x1, t: conditional_path(x0, x1, t, sigma_min=0.1),
    "lipman, 1": lambda x0, x1, t: conditional_path(x0, x1, t, sigma_min=1.0),
    "lipman, 1.7": lambda x0, x1, t: conditional_path(x0, x1, t, sigma_min=1.7),
    "tube": lambda x0, x1, t: noisy_path(x0, x1, t, seeded(), sigma=0.4),
    "bridge": lambda x0, x1, t: bridge_path(x0, x1, t, seeded(), sigma=0.4),
}
every_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())


@every_path
@pytest.mark.parametrize("shape", [(3,), (3, 2), (3, 1, 4, 4)], ids=str)
@pytest.mark.parametrize("t", [0.1, 0.5, 0.8])
def test_the_target_is_the_derivative_of_its_own_path(path, shape, t):
    x0, x1 = torch.randn(2, *shape, generator=seeded(2), dtype=torch.float64)
    h = 1e-5
    slope = (path(x0, x1, t + h).x - path(x0, x1, t - h).x) / (2 * h)
    torch.testing.assert_close(path(x0, x1, t).velocity, slope, atol=1e-8, rtol=0)


@every_path
@pytest.mark.parametrize("shape", [(3, 2), (3, 1, 3, 3)], ids=str)
def test_every_sample_has_its_own_time(path, shape):
    """Also where the batch is as large as an axis of the image, and time must not meet that axis."""
    x0, x1 = torch.randn(2, *shape, generator=seeded(2), dtype=torch.float64)
    t = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    together = path(x0, x1, t)
    for k, time in enumerate(t.tolist()):
        alone = path(x0, x1, time)
        torch.testing.assert_close(together.x[k], alone.x[k], atol=1e-14, rtol=0)
        torch.testing.assert_close(together.velocity[k], alone.velocity[k], atol=1e-13, rtol=0)
    tall = path(x0, x1, t.reshape(3, *[1] * (len(shape) - 1)))
    assert torch.equal(tall.x, together.x)


def test_the_ends_of_the_paths():
    x0, x1 = clouds(4, 4)
    assert torch.equal(conditional_path(x0, x1, 0.0).x, x0)
    assert torch.equal(conditional_path(x0, x1, 1.0).x, x1)
    torch.testing.assert_close(conditional_path(x0, x1, 1.0, sigma_min=0.2).x, x1 + 0.2 * x0)


def test_tube_and_bridge_have_their_means_and_variances():
    n, t, sigma = 200_000, 0.2, 0.7
    x0, x1 = torch.full((n,), 1.0, dtype=torch.float64), torch.full((n,), 3.0, dtype=torch.float64)
    for path, variance in ((noisy_path, sigma**2), (bridge_path, sigma**2 * t * (1 - t))):
        x, _ = path(x0, x1, t, seeded(), sigma=sigma)
        assert abs(x.mean().item() - 1.4) <= 4 * math.sqrt(variance / n)
        assert abs(x.var().item() / variance - 1) <= 4 * math.sqrt(2 / n)


def test_the_target_of_a_bridge_follows_the_formula_of_its_source():
    x0, x1 = clouds(5, 5)
    for t in (0.1, 0.5, 0.7):
        x, u = bridge_path(x0, x1, t, seeded(), sigma=1.3)
        mean = (1 - t) * x0 + t * x1
        torch.testing.assert_close(u, (1 - 2 * t) / (2 * t * (1 - t)) * (x - mean) + x1 - x0)


def test_the_marginal_velocity_of_a_schroedinger_bridge():
    """From N(0, 1) to itself with σ = 1 it is V'/(2V) x, with the golden ratio as correlation."""
    n, t, rho = 400_000, 0.15, (math.sqrt(5) - 1) / 2
    z = torch.randn(2, n, generator=seeded(), dtype=torch.float64)
    x, u = bridge_path(z[0], rho * z[0] + math.sqrt(1 - rho**2) * z[1], t, seeded(1), sigma=1.0)
    V, half = 1 + t * (1 - t) * (math.sqrt(5) - 2), (1 - 2 * t) * (math.sqrt(5) - 2) / 2
    for sample in (x**2 - V, (u - half / V * x) * x):
        assert abs(sample.mean()) <= 4 * sample.std() / math.sqrt(n)


@DTYPES
def test_paths_keep_the_dtype_and_one_generator_serves_both(dtype):
    x0, x1 = clouds(4, 4, dtype=dtype)
    x, u = bridge_path(x0, x1, 0.3, seeded(), sigma=0.5)
    assert x.dtype == u.dtype == dtype
    exact = bridge_path(x0.double(), x1.double(), 0.3, seeded(), sigma=0.5)
    torch.testing.assert_close(x.double(), exact.x, atol=1e-5, rtol=0)


@every_path
def test_paths_are_differentiable(path):
    x0, x1 = (z.requires_grad_() for z in clouds(3, 3))
    t = torch.tensor([0.2, 0.5, 0.7], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *a: tuple(path(*a)), (x0, x1, t))


def test_paths_refuse_bad_input():
    x0, x1 = clouds(4, 4)
    with pytest.raises(ValueError, match="one shape"):
        conditional_path(x0, x1[:3], 0.5)
    with pytest.raises(ValueError, match="t must be one number or have the first axes"):
        conditional_path(x0, x1, torch.full((2,), 0.5, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"t must lie in \[0, 1\]"):
        conditional_path(x0, x1, 1.1)
    with pytest.raises(ValueError, match=r"t must lie in \[0, 1\]"):
        conditional_path(x0, x1, math.nan)
    with pytest.raises(ValueError, match="sigma_min must be"):
        conditional_path(x0, x1, 0.5, sigma_min=-0.1)
    with pytest.raises(ValueError, match="strictly between 0 and 1"):
        bridge_path(x0, x1, 0.0, seeded(), sigma=1.0)
    with pytest.raises(ValueError, match="sigma must be"):
        noisy_path(x0, x1, 0.5, seeded(), sigma=0.0)
    with pytest.raises(TypeError, match="generator"):
        bridge_path(x0, x1, 0.5, None, sigma=1.0)


# Energies


def test_the_energy_of_independent_normal_laws_on_the_line():
    def walk(t, x):
        return (2 * t - 1) / ((1 - t) ** 2 + t**2) * x

    pair = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    errors = [abs(path_energy(walk, pair, n_steps=n).item() - (2 - math.pi / 2)) for n in (10, 20, 40)]
    assert errors[-1] < 1e-6
    orders = [math.log2(a / b) for a, b in pairwise(errors)]
    assert min(orders) > 3.5  # the method has order 4


def test_constant_fields_and_batches():
    v = torch.tensor([3.0, 4.0], dtype=torch.float64)
    energy = path_energy(lambda t, x: v.expand(x.shape), torch.zeros(2, 3, 5, 2, dtype=torch.float64))
    torch.testing.assert_close(energy, torch.full((2, 3), 25.0, dtype=torch.float64))


def test_the_energy_can_be_differentiated():
    s = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    x0 = torch.ones(1, 1, dtype=torch.float64)
    # x' = s x has the energy s (e^{2s} − 1)/2
    (slope,) = torch.autograd.grad(path_energy(lambda t, x: s * x, x0), s)
    expected = (torch.exp(2 * s) - 1) / 2 + s * torch.exp(2 * s)
    torch.testing.assert_close(slope, expected.detach(), atol=1e-8, rtol=0)


def test_energies_refuse_bad_input():
    with pytest.raises(ValueError, match="velocity must return shape"):
        path_energy(lambda t, x: x[:, 0], torch.ones(3, 2))
    with pytest.raises(ValueError, match="n_steps"):
        path_energy(lambda t, x: x, torch.ones(3, 2), n_steps=0)


def test_the_normalised_energy():
    npe = normalised_path_energy(torch.tensor([3.0, 1.0]), torch.tensor(2.0))
    torch.testing.assert_close(npe, torch.tensor([0.5, 0.5]))
    with pytest.raises(ValueError, match="w2_squared must be above 0"):
        normalised_path_energy(1.0, 0.0)


def test_another_device_gives_the_same(device):
    x0, x1 = clouds(6, 6)
    there = ot_cfm_pairs(x0.to(device), x1.to(device), seeded())
    assert there[1].device == device
    torch.testing.assert_close(there[1].cpu(), ot_cfm_pairs(x0, x1, seeded())[1])
    drawn = ot_cfm_pairs(x0.to(device), x1[:4].to(device), seeded())
    torch.testing.assert_close(drawn[1].cpu(), ot_cfm_pairs(x0, x1[:4], seeded())[1])
    path = bridge_path(x0.to(device), x1.to(device), 0.3, seeded(), sigma=1.0)
    torch.testing.assert_close(path.x.cpu(), bridge_path(x0, x1, 0.3, seeded(), sigma=1.0).x)
