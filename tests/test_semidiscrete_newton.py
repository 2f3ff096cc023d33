"""Damped Newton for semi-discrete transport: closed forms, certificates, emd, gradients, order, holes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from otbook import ConvergenceWarning, costs, emd, wasserstein_1d
from otbook.semidiscrete import laguerre_cells, pixel_density, solve, uniform_density

from . import problems
from .test_semidiscrete_cells import PICTURE, close, cloud, polygon, rng


def strips(m, seed=0):
    """Points on a horizontal line against the unit square: prices and value in closed form."""
    s = torch.rand(m, generator=rng(seed), dtype=torch.float64).sort().values
    b = problems.weights(m, seed=seed)
    ends = b.cumsum(0)
    starts = ends - b
    value = (((ends - s) ** 3 - (starts - s) ** 3) / 3).sum() + 1 / 12 + 0.2**2
    jumps = (ends[:-1] - s[:-1]) ** 2 - (ends[:-1] - s[1:]) ** 2
    return torch.stack([s, torch.full_like(s, 0.3)], 1), b, value, jumps


@pytest.mark.parametrize("m", [1, 2, 3, 50])
def test_strips_by_hand(m):
    y, b, value, jumps = strips(m)
    plan = solve(y, b)
    assert plan.converged
    close(plan.masses, b, atol=1e-10)
    close(plan.value, value, atol=1e-10)
    close(plan.cost, value, atol=1e-10)
    if m > 1:
        close(plan.prices.diff(), jumps, atol=1e-9)
    close(b @ plan.prices, 0.0)


def test_lattice_of_squares():
    middles = (torch.arange(5).double() + 0.5) / 5
    plan = solve(torch.cartesian_prod(middles, middles))
    close(plan.value, 1 / (6 * 25), atol=1e-12)
    close(plan.prices, 0.0, atol=1e-10)
    close(plan.barycentres, plan.cells.points, atol=1e-10)


def test_a_picture_of_columns_is_a_problem_on_the_line():
    # ρ depends on x alone and the points are on a line: strips again, with quantiles of the columns.
    columns = torch.tensor([1.0, 4.0, 0.5, 2.0], dtype=torch.float64)
    y, b, _, _ = strips(6, seed=2)
    density = pixel_density(columns.expand(3, 4), box=torch.tensor([[0.0, 0.0], [1.0, 1.0]]).double())
    plan = solve(y, b, density)
    x = (torch.arange(400_000).double() + 0.5) / 400_000
    rho = columns.repeat_interleave(100_000)
    line = wasserstein_1d(x, y[:, 0], rho / rho.sum(), b) ** 2
    # Midpoints of cells of width h shift the value by less than h² + atoms cut in two, of order h.
    close(plan.value, line + 1 / 12 + 0.2**2, atol=1e-5)


@pytest.mark.parametrize("density", [None, PICTURE], ids=["uniform", "picture"])
@pytest.mark.parametrize("equal", [True, False])
def test_certificate(density, equal):
    """Masses are right, so the cost of the map is an upper bound; the dual value is a lower one."""
    y, b = cloud(100, 3), None if equal else problems.weights(100, seed=4)
    plan = solve(y, b, density)
    target = torch.full((100,), 0.01, dtype=torch.float64) if equal else b
    assert (plan.masses - target).abs().sum() <= 1e-10
    close(plan.mass_error, (plan.masses - target).abs().sum(), atol=1e-12)
    close(plan.cost, plan.value, atol=1e-10)
    again = laguerre_cells(y, plan.prices, density)
    close(again.masses, plan.masses, atol=1e-12)
    dual = again.costs.sum() + plan.prices @ (again.masses - target)
    close(plan.value, dual, atol=1e-12)
    assert len(plan.history) == plan.n_iter + 1


def test_agrees_with_emd_on_a_grid_to_second_order():
    # Spreading an atom over its small square costs 1/(6n²): the value exceeds emd's by no more. It falls
    # short by no more than a multiple that depends on how the walls meet the grid.
    sizes, scaled = [8, 16, 32], []
    for seed in range(5):
        y, b = cloud(12, seed), problems.weights(12, seed=seed)
        value = solve(y, b).value
        for n in sizes:
            middles = (torch.arange(n).double() + 0.5) / n
            grid = torch.cartesian_prod(middles, middles)
            scaled.append(6 * n**2 * (value - emd(costs.sqeuclidean(grid, y), None, b).value))
    scaled = torch.stack(scaled).reshape(5, 3)
    assert (scaled <= 1 + 1e-9).all()
    assert (scaled >= -1).all()
    order = np.polyfit(np.log(sizes), scaled.abs().amax(0).log().numpy(), 1)[0] - 2
    assert -2.3 < order < -1.7, order


def test_agrees_with_emd_on_a_picture():
    y = PICTURE.sample(10, rng(1)).double()
    value = solve(y, None, PICTURE).value
    n = 20  # each pixel in n × n: middles of small rectangles
    u = -1 + 3 * (torch.arange(3 * n).double() + 0.5) / (3 * n)
    v = 1.7 - 1.2 * (torch.arange(2 * n).double() + 0.5) / (2 * n)
    weights = PICTURE.values.double().repeat_interleave(n, 0).repeat_interleave(n, 1).flatten()
    grid = torch.stack([u.expand(2 * n, -1), v[:, None].expand(-1, 3 * n)], -1).reshape(-1, 2)
    keep = weights > 0
    discrete = emd(costs.sqeuclidean(grid[keep], y), weights[keep] / weights.sum(), None).value
    # What is lost to the middles is the mean square in a small rectangle, up to a small multiple.
    lost = ((3 / (3 * n)) ** 2 + (1.2 / (2 * n)) ** 2) / 12
    assert 0 < value - discrete < 3 * lost


def test_order_of_convergence():
    before, after = [], []
    for seed in range(20):
        errors = solve(cloud(20, seed), tol=1e-12).history
        keep = (errors[:-1] < 1e-2) & (errors[1:] > 1e-12)
        before.append(errors[:-1][keep])
        after.append(errors[1:][keep])
    order = np.polyfit(torch.cat(before).log().numpy(), torch.cat(after).log().numpy(), 1)[0]
    assert 1.7 < order < 2.3, order


def test_a_thousand_cells():
    plan = solve(cloud(1000), problems.weights(1000, seed=1))
    assert plan.mass_error <= 1e-10
    assert plan.n_iter < 30


def test_points_anywhere():
    y, b = cloud(30, 6), problems.weights(30, seed=6)
    plan = solve(y, b)
    # T = y_j is optimal exactly if s·y_j + v is: the cells do not change.
    for scale, shift in ((0.01, 0.5), (50.0, -7.0), (1.0, 1e4)):
        moved = solve(scale * y + shift, b)
        assert moved.converged
        close(moved.barycentres, plan.barycentres, atol=1e-8)
        mean = b @ (scale * y + shift)
        spread = (b * (scale * y + shift - mean).square().sum(1)).sum()
        correlation = (b[:, None] * moved.barycentres * (scale * y + shift - mean)).sum()
        centre = ((mean - 0.5) ** 2).sum()
        expected = 1 / 6 + spread - 2 * correlation + centre
        torch.testing.assert_close(moved.value, expected, rtol=1e-9, atol=1e-9)
    corner = solve(1e-3 * torch.randn(40, 2, generator=rng(2)).double(), problems.weights(40, seed=2))
    assert corner.converged
    disc = uniform_density(polygon(64))
    outside = solve(cloud(30, 1) + torch.tensor([5.0, 0.0]).double(), None, disc)
    assert outside.converged


def test_holes():
    # No mass where most of the points are: the start has to be prepared.
    ring = torch.ones(5, 5).double()
    ring[1:4, 1:4] = 0
    y = cloud(30, 3, low=0.3, high=0.7)
    plan = solve(y, None, ring)
    assert plan.converged
    close(plan.masses, 1 / 30, atol=1e-10)
    # Two islands: nothing flows between them, until a cell must have mass on both.
    river = pixel_density(torch.tensor([[1.0, 0.0, 0.0, 0.0, 1.0]]).double())
    y = cloud(12, 4)
    y[6:, 0] += 4
    assert solve(y, None, river).converged
    uneven = torch.full((12,), 0.9 / 11, dtype=torch.float64)
    uneven[0] = 0.1
    assert solve(y, uneven, river).converged


@settings(max_examples=25, deadline=None)
@given(m=st.integers(1, 15), seed=st.integers(0, 1000), dark=st.booleans())
def test_any_problem(m, seed, dark):
    y = 2 * torch.randn(m, 2, generator=rng(seed), dtype=torch.float64)
    b = torch.rand(m, generator=rng(seed + 1), dtype=torch.float64) ** 3 + 1e-4
    b[: m // 3] = 0
    b = b / b.sum()
    density = torch.rand(4, 6, generator=rng(seed + 2), dtype=torch.float64) + 0.05 if dark else None
    plan = solve(y, b, density)
    assert plan.converged
    close(plan.masses, b, atol=1e-10)
    # Transport never costs less than the distance of the means squared, nor less than the cost at one price.
    assert plan.value >= laguerre_cells(y, None, density).costs.sum() - 1e-10
    spent = plan.cells.costs
    assert (spent >= 0).all()


def test_points_without_weight_are_at_the_edge_of_being_chosen():
    y, b = cloud(20, 8), problems.weights(20, seed=8)
    extra = torch.tensor([[0.5, 0.5], [3.0, 3.0]]).double()
    both, weights = torch.cat([y, extra]), torch.cat([b, torch.zeros(2).double()])
    plan, bare = solve(both, weights), solve(y, b)
    close(plan.value, bare.value, atol=1e-12)
    close(plan.prices[:20], bare.prices, atol=1e-10)
    close(plan.masses[20:], 0.0, atol=1e-12)
    for k in (20, 21):
        lower = plan.prices.clone()
        lower[k] -= 1e-3
        assert laguerre_cells(both, lower).masses[k] > 0


def test_map_potential_and_slackness():
    y, b = cloud(15, 9), problems.weights(15, seed=9)
    plan = solve(y, b)
    x = cloud(500, 10).requires_grad_()
    close(plan(x), y[plan.assign(x)])
    offers = costs.sqeuclidean(x, y) + plan.prices
    close(plan.potential(x).detach(), offers.detach().amin(1))
    (slope,) = torch.autograd.grad(plan.potential(x).sum(), x)
    close(plan(x), (x - slope / 2).detach())
    assert (plan.assign(plan.barycentres) == torch.arange(15)).all()
    close(plan.barycentres.mT @ plan.masses, [0.5, 0.5])
    assert len(plan.polygons) == 15


def test_gradients():
    y, b = cloud(6, 11).requires_grad_(), problems.weights(6, seed=11).requires_grad_()
    value = lambda y, b: solve(y, b, PICTURE, tol=1e-12).value  # noqa: E731
    along = torch.randn(6, generator=rng(1)).double()
    along = along - along.mean()  # weights keep their sum
    assert torch.autograd.gradcheck(lambda y: value(y, b.detach()), y, eps=1e-5)
    t = torch.zeros(1).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda t: value(y.detach(), b.detach() + 0.1 * t * along), t, eps=1e-5)
    plan = solve(y, b)
    (first,) = torch.autograd.grad(plan.value, y)
    close(first, 2 * b.detach()[:, None] * (y.detach() - plan.barycentres), atol=1e-9)
    assert not plan.prices.requires_grad


def test_warm_start():
    y, b = cloud(80, 12), problems.weights(80, seed=12)
    plan = solve(y, b)
    assert solve(y, b, prices=plan.prices).n_iter == 0
    near = solve(y + 1e-3 * torch.randn(80, 2, generator=rng(3)).double(), b, prices=plan.prices)
    assert near.converged
    assert near.n_iter < plan.n_iter
    useless = solve(y, b, prices=torch.linspace(0, 100, 80).double())  # most cells are empty there
    close(useless.prices, plan.prices, atol=1e-9)


def test_lloyd_never_loses():
    y, b = cloud(40, 13), problems.weights(40, seed=13)
    values = []
    for _ in range(6):
        plan = solve(y, b)
        values.append(plan.value - 0)
        promised = (b * (y - plan.barycentres).square().sum(1)).sum()
        y = plan.barycentres
        assert solve(y, b).value <= values[-1] - promised + 1e-12
    # Fejes Tóth: no N points in the square do better than hexagons.
    assert 40 * values[-1] > 5 / (18 * math.sqrt(3))


def test_invariances():
    y, b = cloud(25, 14), problems.weights(25, seed=14)
    plan = solve(y, b)
    order = torch.randperm(25, generator=rng())
    close(solve(y[order], b[order]).prices, plan.prices[order], atol=1e-9)
    square = uniform_density().domain.double()
    scaled = solve(3 * y, b, uniform_density(3 * square))
    close(scaled.value, 9 * plan.value, atol=1e-9)
    close(scaled.prices, 9 * plan.prices, atol=1e-9)


def test_float32_and_arrays():
    y, b = cloud(20, 15), problems.weights(20, seed=15)
    plan = solve(y.float().numpy(), b.float().numpy())
    assert plan.prices.dtype == plan.value.dtype == plan.masses.dtype == torch.float32
    assert plan.converged
    close(plan.masses, b.float(), atol=1e-6)
    close(plan.prices, solve(y, b).prices.float(), atol=1e-5)
    assert "converged=True" in repr(plan)


def test_says_when_it_did_not_converge():
    with pytest.warns(ConvergenceWarning, match="after 1 Newton steps with mass error .* above tol = 1e-10"):
        plan = solve(cloud(50), problems.weights(50, seed=1), max_iter=1)
    assert not plan.converged
    assert plan.mass_error > 1e-10
    # The dual value stays a lower bound.
    assert plan.value <= solve(cloud(50), problems.weights(50, seed=1)).value


BAD = {
    "weights": (([[0.0, 0.0], [1.0, 1.0]], [0.5, 0.6]), {}, "weights has mass 1.1"),
    "batch": (
        (cloud(2), torch.full((3, 2), 0.5).double()),
        {},
        r"weights must have shape \(2,\), but has shape \(3, 2\)",
    ),
    "twins": (([[0.0, 0.0], [0.0, 0.0]],), {}, "two points coincide"),
    "space": ((torch.zeros(2, 3),), {}, r"points must have shape \(m, 2\)"),
    "prices": ((cloud(2),), {"prices": [1.0]}, r"prices must have shape \(2,\)"),
    "tol": ((cloud(2),), {"tol": 0}, "tol must be"),
    "max_iter": ((cloud(2),), {"max_iter": 0}, "max_iter must be"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    args, options, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        solve(*args, **options)


def test_on_another_device(device):
    plan = solve(cloud(9).to(device))
    assert plan.prices.device == device
    close(plan.prices.cpu(), solve(cloud(9)).prices)
