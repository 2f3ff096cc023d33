"""Transport on the line against closed forms, the network simplex and SciPy."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import wasserstein_distance

from otbook import ConvergenceWarning, costs, emd, onedim, quantile_map, sliced_wasserstein, wasserstein_1d
from otbook.onedim import _measure, _sliced, max_sliced_direction, max_sliced_wasserstein

from . import checks, problems

orders = pytest.mark.parametrize("p", [1, 1.5, 2, 3, 7.25])


def line(n=7, m=5, *, batch=(), seed=0, scale=1.0):
    """Two weighted measures on the line, unsorted."""
    x, y, a, b = problems.clouds(n, m, 1, batch=batch, seed=seed)
    return scale * x[..., 0], scale * y[..., 0], a, b


def cost(x, y, p):
    return costs.lp(x[..., None], y[..., None], p=p)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


# Distances


@orders
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize(("n", "m"), [(7, 5), (6, 6), (1, 4)])
def test_distance_agrees_with_the_network_simplex(p, weighted, n, m):
    x, y, a, b = line(n, m)
    if not weighted:
        a = b = None
    expected = emd(cost(x, y, p), a, b).value ** (1 / p)
    torch.testing.assert_close(wasserstein_1d(x, y, a, b, p=p), expected, rtol=0, atol=1e-10)


def test_first_distance_agrees_with_scipy():
    x, y, a, b = line(40, 30)
    expected = wasserstein_distance(x, y, a, b)
    assert abs(wasserstein_1d(x, y, a, b, p=1).item() - expected) < 1e-12


def test_normal_against_uniform_of_equal_variance():
    # W₂² = ∫ (Φ⁻¹(q) − √3 (2q − 1))² dq = 1 + 1 − 2√(3/π); both measures cut into n quantiles.
    exact = 2 - 2 * math.sqrt(3 / math.pi)
    errors = []
    for n in (1000, 4000, 16000):
        q = (torch.arange(n, dtype=torch.float64) + 0.5) / n
        normal = math.sqrt(2) * torch.erfinv(2 * q - 1)
        squared = wasserstein_1d(normal, math.sqrt(3) * (2 * q - 1)).item() ** 2
        errors.append(abs(squared - exact))
    assert errors[0] < 1e-3
    for coarse, fine in itertools.pairwise(errors):
        assert fine < coarse / 3  # nearly first order: the tails of the normal are cut off


def test_largest_displacement():
    x, y, a, b = line()
    moved = (x[:, None] - y).abs()[onedim.monotone_plan(x, y, a, b) > 0].max()
    torch.testing.assert_close(wasserstein_1d(x, y, a, b, p=math.inf), moved, rtol=0, atol=1e-12)
    # W_p increases to W_∞.
    assert wasserstein_1d(x, y, a, b, p=50) < moved
    torch.testing.assert_close(wasserstein_1d(x, y, a, b, p=2000), moved, rtol=5e-3, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_levels_that_differ_by_rounding_carry_no_displacement(dtype):
    # 0.1 + 0.2 ≠ 0.3 must not send a mass of 1e-17 from one cluster to the other.
    x = torch.tensor([0.0, 0.0, 100.0], dtype=dtype)
    y = torch.tensor([0.0, 100.0], dtype=dtype)
    a, b = torch.tensor([0.1, 0.2, 0.7], dtype=dtype), torch.tensor([0.3, 0.7], dtype=dtype)
    assert wasserstein_1d(x, y, a, b, p=math.inf) == 0
    assert (onedim.monotone_plan(x, y, a, b) > 0).sum() == 3
    thirds, sixths = torch.arange(3.0).to(dtype), torch.arange(3.0).repeat_interleave(2).to(dtype)
    assert wasserstein_1d(thirds, sixths, p=math.inf) == 0
    torch.testing.assert_close(quantile_map(thirds, sixths)(thirds), thirds, rtol=0, atol=0)
    torch.testing.assert_close(quantile_map(sixths, thirds)(thirds), thirds, rtol=0, atol=0)


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 8), m=st.integers(1, 8), seed=st.integers(0, 10**6), p=st.floats(1, 6))
def test_any_measures_with_ties_and_empty_atoms(n, m, seed, p):
    generator = rng(seed)
    x, y = (torch.randint(-3, 4, (k,), generator=generator).double() for k in (n, m))
    a, b = (torch.randint(0, 3, (k,), generator=generator).double() for k in (n, m))
    a[-1] += 1
    b[0] += 1
    a, b = a / a.sum(), b / b.sum()
    expected = emd(cost(x, y, p), a, b).value
    torch.testing.assert_close(wasserstein_1d(x, y, a, b, p=p) ** p, expected, rtol=1e-9, atol=1e-10)
    plan = onedim.monotone_plan(x, y, a, b)
    checks.assert_coupling(plan, a, b)
    torch.testing.assert_close((plan * cost(x, y, p)).sum(), expected, rtol=1e-9, atol=1e-10)


def test_metric_axioms_and_invariances():
    x, y, a, b = line()
    z, _, c, _ = line(6, seed=9)
    for p in (1, 2, 3.5, math.inf):
        d = wasserstein_1d(x, y, a, b, p=p)
        torch.testing.assert_close(wasserstein_1d(y, x, b, a, p=p), d, rtol=0, atol=1e-12)
        assert d <= wasserstein_1d(x, z, a, c, p=p) + wasserstein_1d(z, y, c, b, p=p) + 1e-12
        assert wasserstein_1d(x, x.flip(0), a, a.flip(0), p=p) == 0
        shuffled = torch.randperm(7, generator=rng())
        torch.testing.assert_close(wasserstein_1d(x[shuffled], y, a[shuffled], b, p=p), d, rtol=0, atol=1e-12)
        moved = wasserstein_1d(3 * x - 1, 3 * y - 1, a, b, p=p)
        torch.testing.assert_close(moved, 3 * d, rtol=0, atol=1e-12)


def test_large_orders_and_units_neither_overflow_nor_underflow():
    x, y, a, b = line(scale=1e-200)
    torch.testing.assert_close(
        wasserstein_1d(x, y, a, b, p=9) * 1e200, wasserstein_1d(*line(), p=9), rtol=1e-12, atol=0
    )
    x, y, a, b = (t.float() for t in line(scale=1e30))
    torch.testing.assert_close(
        wasserstein_1d(x, y, a, b, p=9) / 1e30, wasserstein_1d(*line(), p=9).float(), rtol=1e-5, atol=0
    )


def test_atoms_without_mass_do_not_matter():
    x, y, a, b = line()
    far = torch.tensor([1e300, -1e300], dtype=torch.float64)
    none = torch.zeros(2, dtype=torch.float64)
    for p in (1, 2, 3.5, math.inf):
        padded = wasserstein_1d(torch.cat([x, far]), y, torch.cat([a, none]), b, p=p)
        torch.testing.assert_close(padded, wasserstein_1d(x, y, a, b, p=p), rtol=0, atol=1e-12)
    assert onedim.quantile(torch.cat([x, far]), [0.0, 1.0], torch.cat([a, none])).abs().max() < 1e3


def test_float32():
    x, y, a, b = line(50, 40)
    low = wasserstein_1d(x.float(), y.float(), a.float(), b.float())
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, wasserstein_1d(x, y, a, b).float(), rtol=0, atol=1e-5)


def test_batches_broadcast():
    x, y, a, b = line(batch=(2, 3))
    d = wasserstein_1d(x, y, a, b, p=1.5)
    plan = onedim.monotone_plan(x, y, a, b)
    assert d.shape == (2, 3)
    for k in itertools.product(range(2), range(3)):
        torch.testing.assert_close(d[k], wasserstein_1d(x[k], y[k], a[k], b[k], p=1.5), rtol=0, atol=1e-12)
        torch.testing.assert_close(plan[k], onedim.monotone_plan(x[k], y[k], a[k], b[k]), rtol=0, atol=1e-12)
    shared = wasserstein_1d(x, y[0, 0], a[0, 0], b)
    expected = wasserstein_1d(x, y[0, 0].expand(2, 3, 5), a[0, 0].expand(2, 3, 7), b)
    torch.testing.assert_close(shared, expected, rtol=0, atol=1e-12)


# Derivatives


@orders
@pytest.mark.parametrize(("n", "m"), [(5, 4), (4, 4)])
def test_gradcheck_in_points_and_weights(p, n, m):
    x, y, a, b = line(n, m, batch=(2,))
    inputs = [t.requires_grad_() for t in (x, y, a.log(), b.log())]
    assert torch.autograd.gradcheck(
        lambda x, y, log_a, log_b: wasserstein_1d(x, y, log_a.softmax(-1), log_b.softmax(-1), p=p), inputs
    )
    assert torch.autograd.gradcheck(lambda x, y: wasserstein_1d(x, y, p=p), inputs[:2])


def test_gradcheck_of_the_largest_displacement():
    x, y, a, b = line(5, 4)
    inputs = (x.requires_grad_(), y.requires_grad_())
    assert torch.autograd.gradcheck(lambda x, y: wasserstein_1d(x, y, a, b, p=math.inf), inputs)


def test_gradient_in_the_weights_is_a_dual_solution_also_at_ties():
    # Equal weights: every level of a is one of b, and the dual solution is not unique.
    x, y, *_ = line(5, 5)
    a, b = (torch.full((5,), 0.2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    squared = wasserstein_1d(x, y, a, b) ** 2
    f, g = torch.autograd.grad(squared, (a, b))
    shift = squared.detach() - (a * f).sum().detach() - (b * g).sum().detach()
    checks.assert_dual_certificate(cost(x, y, 2), a.detach(), b.detach(), f + shift, g, squared.detach())


@pytest.mark.parametrize("p", [1, 1.5, 2, 3, math.inf])
def test_gradient_is_zero_where_the_measures_coincide(p):
    for weights in ((None, None), (problems.weights(4),) * 2):
        x = torch.tensor([0.0, 3.0, 1.0, 1.0], dtype=torch.float64, requires_grad=True)
        (gradient,) = torch.autograd.grad(wasserstein_1d(x, x.detach(), *weights, p=p), x)
        assert (gradient == 0).all()


# Distribution and quantile functions, map and plan


def test_quantiles_by_hand():
    x, a = [3.0, 1.0, 2.0], [0.5, 0.25, 0.25]
    t = [0.0, 1.0, 1.5, 2.0, 3.0, 9.0]
    assert onedim.cdf(x, t, a).tolist() == [0.0, 0.25, 0.25, 0.5, 1.0, 1.0]
    q = [0.0, 0.1, 0.25, 0.26, 0.5, 0.51, 1.0]
    assert onedim.quantile(x, q, a).tolist() == [1.0, 1.0, 1.0, 2.0, 2.0, 3.0, 3.0]
    # An atom without mass is no quantile, not even the lowest.
    assert onedim.quantile([-5.0, 1.0], [0.0], [0.0, 1.0]).tolist() == [1.0]


def test_quantile_inverts_the_distribution_function():
    x, _, a, _ = line(batch=(3,))
    torch.testing.assert_close(onedim.quantile(x, onedim.cdf(x, x, a), a), x, rtol=0, atol=0)
    q = torch.linspace(0, 1, 11).double()
    assert (onedim.cdf(x, onedim.quantile(x, q, a), a) >= q - 1e-12).all()


def test_map_between_samples_of_equal_size_matches_the_order():
    x, y, *_ = line(6, 6)
    T = quantile_map(x, y)
    torch.testing.assert_close(T(x.sort().values), y.sort().values, rtol=0, atol=0)
    # Between atoms T keeps the value of the atom to the left; outside it is constant.
    middle = (x.sort().values[:-1] + x.sort().values[1:]) / 2
    torch.testing.assert_close(T(middle), y.sort().values[:-1], rtol=0, atol=0)
    assert T(torch.tensor([-99.0, 99.0]).double()).tolist() == [y.min().item(), y.max().item()]
    assert T(x.reshape(2, 3)).shape == (2, 3)


def test_map_at_an_atom_points_to_the_right_limit():
    # A Dirac onto two halves: T sends it to G⁻¹(1), and cannot push it onto both.
    assert quantile_map([0.0], [1.0, 2.0])([0.0]).tolist() == [2.0]
    assert quantile_map([0.0, 1.0], [5.0, 6.0, 7.0], b=[0.25, 0.25, 0.5])([0.0, 1.0]).tolist() == [6.0, 7.0]


def test_map_in_a_batch_and_its_gradient():
    x, y, a, b = line(batch=(2,))
    T = quantile_map(x, y, a, b)
    for k in range(2):
        torch.testing.assert_close(T(x)[k], quantile_map(x[k], y[k], a[k], b[k])(x[k]), rtol=0, atol=0)
    assert torch.autograd.gradcheck(lambda y: quantile_map(x, y, a, b)(x), y.requires_grad_())


def test_monotone_plan_is_the_optimal_one():
    x, y, a, b = line(9, 12)
    plan = onedim.monotone_plan(x, y, a, b)
    checks.assert_coupling(plan, a, b)
    torch.testing.assert_close(plan, emd(cost(x, y, 2), a, b).plan, rtol=0, atol=1e-12)
    ordered = plan[x.argsort()][:, y.argsort()]
    i, j = ordered.nonzero().T
    assert (j.diff() >= 0).all()  # support of a monotone coupling: a staircase
    assert len(i) == 9 + 12 - 1


# Sliced


def test_sliced_distance_of_a_translation_within_four_standard_errors():
    # W₂ of each projection is |⟨θ, v⟩|, so SW₂² estimates E⟨θ, v⟩² = ‖v‖²/d.
    d, n_projections = 5, 4000
    v = torch.arange(1.0, d + 1).double()
    x = torch.randn(20, d, generator=rng(1), dtype=torch.float64)
    squared = sliced_wasserstein(x, x + v, n_projections=n_projections, generator=rng()).item() ** 2
    mean = v.square().sum().item() / d
    variance = v.square().sum().item() ** 2 * (3 / (d * (d + 2)) - 1 / d**2)
    assert abs(squared - mean) < 4 * math.sqrt(variance / n_projections)


@orders
def test_sliced_distance_in_one_dimension_is_the_distance(p):
    x, y, a, b = line()
    sliced = sliced_wasserstein(x[:, None], y[:, None], a, b, p=p, n_projections=3, generator=rng())
    torch.testing.assert_close(sliced, wasserstein_1d(x, y, a, b, p=p), rtol=0, atol=1e-12)


@pytest.mark.parametrize("weighted", [True, False])
def test_sliced_distance_direction_by_direction(weighted, monkeypatch):
    x, y, a, b = problems.clouds(7, 5, 3, batch=(2,))
    if not weighted:
        a = b = None
    value = sliced_wasserstein(x, y, a, b, p=3, n_projections=6, generator=rng(5))
    theta = torch.randn(6, 3, generator=rng(5), dtype=torch.float64)
    theta = theta / theta.norm(dim=1, keepdim=True)
    each = torch.stack([wasserstein_1d(x @ t, y @ t, a, b, p=3) ** 3 for t in theta])
    torch.testing.assert_close(value, each.mean(0) ** (1 / 3), rtol=0, atol=1e-12)
    # In pieces, to bound memory.
    monkeypatch.setattr(_sliced, "_CHUNK", 1)
    pieces = sliced_wasserstein(x, y, a, b, p=3, n_projections=6, generator=rng(5))
    torch.testing.assert_close(pieces, value, rtol=0, atol=1e-12)


def test_sliced_distance_is_a_smaller_one_and_differentiable():
    x, y, a, b = problems.clouds(5, 4, 2)
    sliced = sliced_wasserstein(x, y, a, b, n_projections=50, generator=rng())
    assert sliced < emd(costs.sqeuclidean(x, y), a, b).value.sqrt()
    inputs = (x.requires_grad_(), y.requires_grad_())
    assert torch.autograd.gradcheck(
        lambda x, y: sliced_wasserstein(x, y, a, b, n_projections=4, generator=rng()), inputs
    )
    x32 = x.detach().float().requires_grad_()
    sliced_wasserstein(x32, x32.detach(), n_projections=4, generator=rng()).backward()
    assert (x32.grad == 0).all()


def test_public_names_stay_where_they_were():
    assert onedim.sliced_wasserstein is sliced_wasserstein
    assert onedim.wasserstein_1d is wasserstein_1d


# Sorting by NumPy, in threads


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("threads", [1, 3])
def test_sort_is_that_of_torch(dtype, threads, monkeypatch):
    monkeypatch.setattr(_measure, "_ONE_THREAD", 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    for shape in ((5, 400), (2, 3, 50), (17,), (4, 1)):
        x = torch.randn(shape, generator=rng(), dtype=dtype)
        x[..., ::3] = x[..., :1].clone()  # ties
        kept = x.clone()
        expected = x.sort(-1).values
        values, ranks = _measure.sort(x)
        for result in (_measure.sort_values(x), values, x.gather(-1, ranks)):
            torch.testing.assert_close(result, expected, rtol=0, atol=0)
        assert (ranks.sort(-1).values == torch.arange(shape[-1])).all()
        torch.testing.assert_close(x, kept, rtol=0, atol=0)


def test_every_kind_of_derivative_sees_through_the_sort():
    x, y, *_ = line(6, 6)
    tracked = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(wasserstein_1d(tracked, y), tracked)
    torch.testing.assert_close(
        torch.func.grad(lambda x: wasserstein_1d(x, y))(x), expected, rtol=0, atol=1e-14
    )
    direction = torch.randn(6, generator=rng(), dtype=torch.float64)
    with torch.autograd.forward_ad.dual_level():
        moved = wasserstein_1d(torch.autograd.forward_ad.make_dual(x, direction), y)
        tangent = torch.autograd.forward_ad.unpack_dual(moved).tangent
    torch.testing.assert_close(tangent, (expected * direction).sum(), rtol=0, atol=1e-14)
    with torch.no_grad():
        torch.testing.assert_close(wasserstein_1d(tracked, y), wasserstein_1d(x, y), rtol=0, atol=0)


# Max-sliced


def by_angles(x, y, a=None, b=None, *, p, n=20_000):
    """The largest distance over a fine grid of directions of the plane."""
    angle = torch.linspace(0, math.pi, n + 1, dtype=torch.float64)[:-1]
    theta = torch.stack([angle.cos(), angle.sin()], -1)
    return max(wasserstein_1d(t @ x.T, t @ y.T, a, b, p=p).max() for t in theta.split(5000))


@pytest.mark.parametrize("p", [1, 2, 4, math.inf])
@pytest.mark.parametrize("weighted", [True, False])
def test_max_sliced_distance_in_the_plane_by_a_fine_grid_of_angles(p, weighted):
    x, y, a, b = problems.clouds(9, 6, 2, seed=3)
    if not weighted:
        a = b = None
    best = by_angles(x, y, a, b, p=p)
    found = max_sliced_wasserstein(x, y, a, b, p=p, n_starts=8, tol=1e-6, generator=rng())
    # W is Lipschitz in the angle, by the largest distance of any two points.
    spacing = math.pi / 20_000 * torch.cdist(x, y).max()
    assert best - 1e-5 * best < found <= best + spacing


def test_max_sliced_distance_of_a_translation_is_its_length():
    x, *_ = problems.clouds(8, 1, 5, batch=(2,))
    v = torch.arange(1.0, 6.0).double()
    theta = max_sliced_direction(x, x + v, tol=1e-9, generator=rng())
    torch.testing.assert_close((theta @ v).abs() / v.norm(), torch.ones(2).double(), rtol=0, atol=1e-10)
    torch.testing.assert_close(theta.norm(dim=-1), torch.ones(2).double(), rtol=0, atol=1e-14)
    for p in (1, 2, 3.5, math.inf):
        found = max_sliced_wasserstein(x, x + v, p=p, n_starts=4, generator=rng())
        torch.testing.assert_close(found, v.norm().expand(2), rtol=1e-6, atol=0)


@settings(max_examples=20, deadline=None)
@given(n=st.integers(1, 7), m=st.integers(1, 7), d=st.integers(1, 4), seed=st.integers(0, 10**6))
def test_max_sliced_distance_lies_between_sliced_and_full(n, m, d, seed):
    x, y, a, b = problems.clouds(n, m, d, seed=seed)
    a[: n // 2] = 0
    a = a / a.sum()
    largest = max_sliced_wasserstein(x, y, a, b, n_starts=6, tol=1e-2, generator=rng(seed))
    sliced = sliced_wasserstein(x, y, a, b, n_projections=30, generator=rng(seed))
    assert largest >= sliced * (1 - 1e-6)
    assert largest <= emd(costs.sqeuclidean(x, y), a, b).value.sqrt() + 1e-10
    back = max_sliced_wasserstein(y, x, b, a, n_starts=6, tol=1e-2, generator=rng(seed))
    torch.testing.assert_close(back, largest, rtol=1e-8, atol=1e-10)


def test_max_sliced_distance_in_a_rotated_and_scaled_frame():
    x, y, a, b = problems.clouds(9, 6, 3, seed=3)
    Q = torch.linalg.qr(torch.randn(3, 3, generator=rng(), dtype=torch.float64)).Q
    options = {"n_starts": 40, "tol": 1e-6}
    plain = max_sliced_wasserstein(x, y, a, b, **options, generator=rng())
    moved = max_sliced_wasserstein(5 * x @ Q + 7, 5 * y @ Q + 7, a, b, **options, generator=rng(1))
    # Two independent searches from 40 starts find the same maximum.
    torch.testing.assert_close(moved, 5 * plain, rtol=1e-4, atol=0)


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("p", [1, 2, math.inf])
def test_gradient_of_the_max_sliced_distance(p, weighted):
    x, y, a, b = problems.clouds(5, 5, 2, batch=(2,))
    inputs = (x.requires_grad_(), y.requires_grad_(), *((a.log(), b.log()) if weighted else ()))
    theta = max_sliced_direction(x, y, a, b, p=p, tol=1e-9, generator=rng())
    assert not theta.requires_grad

    def distance(x, y, log_a=None, log_b=None):
        weights = (log_a.softmax(-1), log_b.softmax(-1)) if weighted else ()
        return max_sliced_wasserstein(x, y, *weights, p=p, tol=1e-9, generator=rng())

    (gradient,) = torch.autograd.grad(distance(*inputs).sum(), x)
    if not weighted:
        theta = max_sliced_direction(x, y, p=p, tol=1e-9, generator=rng())
    frozen = wasserstein_1d(
        (x @ theta[..., None])[..., 0], (y @ theta[..., None])[..., 0], *((a, b) if weighted else ()), p=p
    )
    (expected,) = torch.autograd.grad(frozen.sum(), x)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-9)


def test_gradient_of_the_max_sliced_distance_by_differences():
    # The best direction moves too, but the envelope theorem says that this does not matter.
    angle = torch.arange(5, dtype=torch.float64) / 5 * 2 * math.pi
    x = torch.stack([angle.cos(), angle.sin()], -1)
    y = x * torch.tensor([3.0, 1.5], dtype=torch.float64) + torch.tensor([0.3, 0.1], dtype=torch.float64)
    v, w = torch.randn(2, 5, 2, generator=rng(), dtype=torch.float64)

    def distance(t):
        return max_sliced_wasserstein(x + t * v, y + t * w, n_starts=3, tol=1e-7, generator=rng())

    t = torch.zeros((), dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(distance(t), t)
    h = 1e-4
    torch.testing.assert_close(slope, (distance(h) - distance(-h)) / (2 * h), rtol=0, atol=1e-6)
    turned = [max_sliced_direction(x + h * v, y + h * w, tol=1e-7, generator=rng()) for h in (-0.1, 0.1)]
    assert (turned[0] @ turned[1]).abs() < 1 - 1e-5


def test_max_sliced_distance_of_equal_clouds_is_zero_and_flat():
    x, *_ = problems.clouds(6, 1, 3)
    x = x.float().requires_grad_()
    distance = max_sliced_wasserstein(x, x.detach().flip(0), generator=rng())
    distance.backward()
    assert distance == 0
    assert distance.dtype == torch.float32
    assert (x.grad == 0).all()


def test_max_sliced_distance_in_batches():
    x, y, a, b = problems.clouds(6, 4, 3, batch=(2, 2))
    found = max_sliced_wasserstein(x, y, a, b, n_starts=5, generator=rng())
    theta = max_sliced_direction(x, y[0, 0], a, b[0, 0], n_starts=5, generator=rng())
    assert theta.shape == (2, 2, 3)
    for k in itertools.product(range(2), range(2)):
        single = max_sliced_wasserstein(x[k], y[k], a[k], b[k], n_starts=5, generator=rng())
        # A batch goes on until all of it has converged.
        torch.testing.assert_close(found[k], single, rtol=1e-3, atol=0)


def test_max_sliced_search_says_when_it_did_not_converge():
    x, y, a, b = problems.clouds(6, 4, 3)
    for function in (max_sliced_wasserstein, max_sliced_direction):
        with pytest.warns(
            ConvergenceWarning, match="still moves by .* after 2 steps; raise max_iter"
        ) as seen:
            function(x, y, a, b, max_iter=2, tol=1e-9, generator=rng())
        assert seen[0].filename == __file__


# Bad input

X = torch.zeros(3)
BAD = {
    "a number": ((torch.tensor(1.0), X), {}, r"x must have shape \(…, n\)"),
    "empty": ((X, X[:0]), {}, "y has shape .*empty measure.*at least one point"),
    "NaN": ((X, X * torch.nan), {}, r"y holds nan at y\[0\]; remove"),
    "infinite": ((X / 0 + torch.inf, X), {}, "x holds"),
    "integer dtype of the other kind": ((X.half(), X), {}, "x has dtype float16"),
    "dtypes differ": ((X, X.double()), {}, r"y is float64 on cpu.*y\.to\("),
    "wrong length": ((X, X, [0.5, 0.5]), {}, r"a must have shape \(…, 3\)"),
    "negative weight": ((X, X, [0.5, 1.0, -0.5]), {}, "a holds a negative weight"),
    "masses differ": ((X, X, None, [0.5, 0.5, 0.5]), {}, "b has mass 1.5, not 1"),
    "batches differ": (
        (torch.zeros(2, 3), torch.zeros(4, 3)),
        {},
        r"batch shapes do not agree: x \(2,\), y \(4,\)",
    ),
}


@pytest.mark.parametrize("function", [wasserstein_1d, quantile_map, onedim.monotone_plan])
@pytest.mark.parametrize("case", BAD)
def test_bad_input(function, case):
    args, kwargs, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        function(*args, **kwargs)


@pytest.mark.parametrize("p", [0.5, 0, -1, math.nan])
def test_orders_below_one(p):
    with pytest.raises(ValueError, match="p must be at least 1"):
        wasserstein_1d(X, X, p=p)


@pytest.mark.parametrize("p", ["2", None, torch.ones(2), True])
def test_orders_that_are_no_numbers(p):
    with pytest.raises(TypeError, match="p must be a number"):
        wasserstein_1d(X, X, p=p)


def test_bad_queries():
    with pytest.raises(ValueError, match=r"q must lie in \[0, 1\], but holds 1\.5"):
        onedim.quantile(X, [0.5, 1.5])
    with pytest.raises(ValueError, match="t holds NaN"):
        onedim.cdf(X, [math.nan])
    with pytest.raises(ValueError, match=r"t must have shape \(2, 'k'\) or \('k',\)"):
        quantile_map(torch.zeros(2, 3), X)(torch.zeros(4, 3))
    with pytest.raises(ValueError, match="t is float64"):
        quantile_map(X, X)(X.double())


CLOUD = torch.zeros(3, 2)
BAD_SLICED = {
    "one axis": ((X, CLOUD), {}, ValueError, r"x must have shape \(…, n, d\)"),
    "dimensions": ((CLOUD, torch.zeros(3, 4)), {}, ValueError, "x has points in dimension 2"),
    "NaN": ((CLOUD, CLOUD * torch.nan), {}, ValueError, "y holds nan"),
    "weights": ((CLOUD, CLOUD, [0.5, 0.5, 0.5]), {}, ValueError, "a has mass 1.5"),
    "batches": ((torch.zeros(2, 3, 2), torch.zeros(4, 3, 2)), {}, ValueError, "batch shapes do not agree"),
    "order": ((CLOUD, CLOUD), {"p": 0.5}, ValueError, "p must be at least 1"),
    "infinite order": ((CLOUD, CLOUD), {"p": math.inf}, ValueError, "p must be finite"),
    "no projection": (
        (CLOUD, CLOUD),
        {"n_projections": 0},
        ValueError,
        "n_projections must be a whole number",
    ),
    "a seed": ((CLOUD, CLOUD), {"generator": 0}, TypeError, "generator must be a torch.Generator, but a int"),
}


BAD_MAX_SLICED = {
    "starts": ({"n_starts": 0}, ValueError, "n_starts must be a whole number"),
    "tolerance": ({"tol": 0.0}, ValueError, "tol must be a finite number above 0"),
    "iterations": ({"max_iter": 0.5}, ValueError, "max_iter must be a whole number"),
    "order": ({"p": 0.5}, ValueError, "p must be at least 1"),
    "a seed": ({"generator": 0}, TypeError, "generator must be a torch.Generator, but a int"),
}


@pytest.mark.parametrize("function", [max_sliced_wasserstein, max_sliced_direction])
@pytest.mark.parametrize("case", BAD_MAX_SLICED)
def test_bad_input_of_the_max_sliced_distance(function, case):
    kwargs, error, message = BAD_MAX_SLICED[case]
    with pytest.raises(error, match=message):
        function(CLOUD, CLOUD + 1, **{"generator": rng(), **kwargs})
    with pytest.raises(ValueError, match="x has points in dimension 2"):
        function(CLOUD, torch.zeros(3, 4), generator=rng())


@pytest.mark.parametrize("case", BAD_SLICED)
def test_bad_input_of_the_sliced_distance(case):
    args, kwargs, error, message = BAD_SLICED[case]
    with pytest.raises(error, match=message):
        sliced_wasserstein(*args, **{"n_projections": 3, "generator": rng(), **kwargs})


def test_on_another_device(device):
    x, y, a, b = (t.to(device) for t in line(batch=(2,)))
    expected = wasserstein_1d(x.cpu(), y.cpu(), a.cpu(), b.cpu(), p=1.5)
    torch.testing.assert_close(wasserstein_1d(x, y, a, b, p=1.5).cpu(), expected, rtol=0, atol=1e-10)
    cloud = torch.randn(4, 3, generator=rng()).to(device)
    for measure in (
        lambda x: sliced_wasserstein(x, x + 1, n_projections=9, generator=rng()),
        lambda x: max_sliced_wasserstein(x, x.square(), generator=rng()),
        lambda x: onedim.monotone_plan(x[:, 0], x[:, 1]),
        lambda x: onedim.cdf(x[:, 0], x[:, 1]),
        lambda x: onedim.quantile(x[:, 0], x[:, 1].sigmoid()),
        lambda x: quantile_map(x[:, 0], x[:, 1])(x[:, 2]),
    ):
        there, here = measure(cloud), measure(cloud.cpu())
        assert there.device == device
        torch.testing.assert_close(there.cpu(), here, rtol=0, atol=1e-4)
