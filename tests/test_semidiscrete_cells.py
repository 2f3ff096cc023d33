"""Laguerre cells and exact integrals over them: closed forms, samples, derivatives, invariances."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import Voronoi

from otbook import costs
from otbook.semidiscrete import Density, laguerre_cells, pixel_density, uniform_density


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def cloud(m, seed=0, *, low=0.0, high=1.0):
    return low + (high - low) * torch.rand(m, 2, generator=rng(seed), dtype=torch.float64)


def close(actual, expected, atol=1e-12):
    expected = torch.as_tensor(expected, dtype=actual.dtype).expand(actual.shape)
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


def polygon(n, radius=1.0):
    angle = 2 * math.pi / n * torch.arange(n, dtype=torch.float64)
    return radius * torch.stack([angle.cos(), angle.sin()], 1)


def area(corners):
    x, y = corners.T
    return ((x * y.roll(-1) - y * x.roll(-1)).sum()) / 2


#: A picture whose pixels are far from equal, with a hole, in a box that is not a square.
PICTURE = pixel_density(
    torch.tensor([[1.0, 5.0, 2.0], [0.0, 3.0, 7.0]]).double(),
    box=torch.tensor([[-1.0, 0.5], [2.0, 1.7]]).double(),
)


@pytest.mark.parametrize("n", [3, 4, 6, 50])
def test_regular_polygon_by_hand(n):
    # One point, so the cell is the domain. Second moment about the centre, over the squared area.
    tau = math.tan(math.pi / n)
    size = n / 2 * math.sin(2 * math.pi / n)
    centre = torch.tensor([[3.0, -2.0]]).double()
    cells = laguerre_cells(centre, None, uniform_density(polygon(n) + centre))
    close(cells.masses, 1.0)
    close(cells.barycentres, centre)
    close(cells.costs, size * (3 + tau**2) / (6 * n * tau))
    close(area(cells.polygons[0]), size)


def test_half_plane_by_hand():
    # The wall between (0, 0) and (1, 1) with price p: x + y = 1 + p/2.
    y = torch.tensor([[0.0, 0.0], [1.0, 1.0]]).double()
    cells = laguerre_cells(y, torch.tensor([0.0, 1.0]).double())
    close(cells.masses, [7 / 8, 1 / 8])
    close(cells.barycentres[1], [5 / 6, 5 / 6])
    corner = torch.tensor([[1.0, 0.5], [1.0, 1.0], [0.5, 1.0]]).double()
    assert {tuple(c) for c in cells.polygons[1].tolist()} == {tuple(c) for c in corner.tolist()}
    # ∫ |x − (1, 1)|² over the triangle with legs 1/2: 2 · (1/2)⁴/12.
    close(cells.costs[1], 2 * 0.5**4 / 12)
    assert cells.walls.tolist() == [[0, 1]]
    close(cells.flows, [0.5 * math.sqrt(2) / (2 * math.sqrt(2))])


def test_integrals_of_a_picture_by_hand():
    # Two strips of the unit square, 3/2 and 1/2, cut at s = 3/4 and in y at 1/2.
    tones = pixel_density([[3.0, 1.0]], box=[[0.0, 0.0], [1.0, 1.0]])
    tones = Density(*(t.double() for t in (tones.values, tones.box, tones.domain)))
    y = torch.tensor([[0.25, 0.5], [0.75, 0.5]]).double()
    cells = laguerre_cells(y, torch.tensor([0.0, 0.25]).double(), tones)
    close(cells.masses, [7 / 8, 1 / 8])
    # ∫ xρ over the first: 3/2 · 1/8 + 1/2 · (9/16 − 1/4)/2.
    close(cells.barycentres[0], [(3 / 16 + 5 / 64) / (7 / 8), 0.5])
    close(cells.barycentres[1], [7 / 8, 0.5])
    # ∫ ((x − ¾)² + (y − ½)²) ρ over the second.
    close(cells.costs[1], 0.5 * (1 / 4) ** 3 / 3 + 1 / 8 / 12)
    close(cells.flows, [0.5 / (2 * 0.5)])


def test_equal_prices_give_the_voronoi_cells_of_scipy():
    inner = cloud(40, 3, low=0.3, high=0.7)
    y = torch.cat([inner, polygon(12, 0.45) + 0.5])
    square = torch.tensor([[-9.0, -9.0], [9.0, -9.0], [9.0, 9.0], [-9.0, 9.0]]).double()
    cells = laguerre_cells(y, torch.full((52,), 2.0).double(), uniform_density(square))
    diagram = Voronoi(y.numpy())
    for j in range(40):
        region = diagram.regions[diagram.point_region[j]]
        corners = torch.from_numpy(diagram.vertices[region])
        close(area(cells.polygons[j]), area(corners).abs(), atol=1e-10)


@pytest.mark.parametrize("density", [None, PICTURE], ids=["uniform", "picture"])
def test_moments_agree_with_samples(density):
    y = cloud(20, 1, low=-0.5, high=1.5)
    prices = 0.1 * torch.randn(20, generator=rng(2), dtype=torch.float64)
    cells = laguerre_cells(y, prices, density)
    n = 200_000
    x = (density or uniform_density()).sample(n, rng(4)).double()
    j = (costs.sqeuclidean(x, y) + prices).argmin(1)
    assert (cells.assign(x[:1000]) == j[:1000]).all()
    share = torch.bincount(j, minlength=20).double() / n
    errors = (cells.masses * (1 - cells.masses) / n).sqrt()
    assert ((share - cells.masses).abs() <= 4.5 * errors + 1e-12).all()
    walk = (x - y[j]).square().sum(1)
    mean = torch.zeros(20).double().index_add_(0, j, walk) / n
    error = (torch.zeros(20).double().index_add_(0, j, walk**2) / n / n).sqrt()
    assert ((mean - cells.costs).abs() <= 4.5 * error + 1e-12).all()
    first = torch.zeros(20, 2).double().index_add_(0, j, x) / n
    error = (torch.zeros(20, 2).double().index_add_(0, j, x**2) / n / n).sqrt()
    assert ((first - cells.masses[:, None] * cells.barycentres).abs() <= 4.5 * error + 1e-12).all()
    close(cells.masses.sum(), 1.0)


def test_pixels_of_equal_value_are_the_uniform_density():
    y, prices = cloud(30), 0.02 * torch.randn(30, generator=rng(1), dtype=torch.float64)
    one = laguerre_cells(y, prices)
    many = laguerre_cells(y, prices, torch.ones(37, 37).double())
    for name in ("masses", "barycentres", "costs", "flows"):
        close(getattr(many, name), getattr(one, name))


@pytest.mark.parametrize("density", [None, PICTURE], ids=["uniform", "picture"])
def test_flows_are_the_derivative_of_the_masses(density):
    y, prices = cloud(15, 5), 0.02 * torch.randn(15, generator=rng(6), dtype=torch.float64)
    cells = laguerre_cells(y, prices, density)
    jacobian = torch.zeros(15, 15).double()
    jacobian[cells.walls[:, 0], cells.walls[:, 1]] = cells.flows
    jacobian = jacobian + jacobian.T
    jacobian -= torch.diag(jacobian.sum(1))
    h = 1e-6  # masses are quadratic in prices as long as no wall appears: central differences are exact
    for k in range(15):
        step = h * torch.eye(15)[k].double()
        plus, minus = (laguerre_cells(y, prices + s * step, density).masses for s in (1, -1))
        close((plus - minus) / (2 * h), jacobian[k], atol=1e-6)


KINDS = ["any", "line", "grid", "far"]


@settings(max_examples=40, deadline=None)
@given(m=st.integers(1, 12), seed=st.integers(0, 10_000), kind=st.sampled_from(KINDS))
def test_cells_tile_the_domain(m, seed, kind):
    y = cloud(m, seed, low=-1, high=2)
    if kind == "line":
        y[:, 1] = 0.3 * y[:, 0] + 0.1
    if kind == "grid":  # corners where four cells meet
        y = torch.cartesian_prod(torch.arange(3), torch.arange(4))[:m].double() / 3
    if kind == "far":
        y = 100 + y
    prices = torch.randn(m, generator=rng(seed), dtype=torch.float64) * (seed % 3)
    if kind == "grid":
        prices = prices * 0
    cells = laguerre_cells(y, prices)
    close(cells.masses.sum(), 1.0, atol=1e-10)
    for j, corners in enumerate(cells.polygons):
        assert abs((area(corners) if len(corners) else 0.0) - cells.masses[j]) < 1e-10
        if len(corners):  # at its corners, no other point is cheaper
            offers = costs.sqeuclidean(corners, y) + prices
            assert (offers[:, j] <= offers.amin(1) + 1e-8).all()


def test_translation_scaling_permutation_common_price():
    y, prices = cloud(25, 7), 0.02 * torch.randn(25, generator=rng(8), dtype=torch.float64)
    cells = laguerre_cells(y, prices)
    square = uniform_density().domain.double()
    moved = laguerre_cells(3 * y + 5, 9 * prices + 1, uniform_density(3 * square + 5))
    close(moved.masses, cells.masses, atol=1e-11)
    close(moved.barycentres, 3 * cells.barycentres + 5, atol=1e-10)
    close(moved.costs, 9 * cells.costs, atol=1e-11)
    flipped = laguerre_cells(y.flip(0), prices.flip(0))
    close(flipped.masses.flip(0), cells.masses)
    rotation = torch.tensor([[0.6, -0.8], [0.8, 0.6]], dtype=torch.float64)
    turned = laguerre_cells(y @ rotation.T, prices, uniform_density(square @ rotation.T))
    close(turned.masses, cells.masses)
    clockwise = laguerre_cells(y, prices, uniform_density(square.flip(0)))
    close(clockwise.masses, cells.masses)


def test_an_empty_cell():
    y = cloud(5)
    cells = laguerre_cells(y, torch.tensor([0.0, 9.0, 0.0, 0.0, 0.0]).double())
    assert cells.masses[1] == 0
    assert cells.polygons[1].shape == (0, 2)
    close(cells.barycentres[1], y[1])
    assert (cells.walls != 1).all()
    assert "5 cells, 1 without mass" in repr(cells)


def test_samples_of_a_density():
    x = PICTURE.sample(200_000, rng())
    # Pixels from left to right, row 0 on top: the share of each within 4.5 standard errors.
    column, row = (x[:, 0] + 1).floor().long(), ((1.7 - x[:, 1]) / 0.6).floor().long()
    share = torch.bincount(3 * row + column, minlength=6).double() / 200_000
    expected = torch.tensor([1.0, 5.0, 2.0, 0.0, 3.0, 7.0]).double() / 18
    assert ((share - expected).abs() <= 4.5 * (expected / 200_000).sqrt()).all()
    triangle = uniform_density(torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]).double())
    x = triangle.sample(20_000, rng())
    assert (x >= 0).all()
    assert (x.sum(1) <= 1).all()
    assert ((x.mean(0) - 1 / 3).abs() < 4.5 * math.sqrt(1 / 18 / 20_000)).all()
    assert "1×1 pixels, domain with 3 corners" in repr(triangle)


def test_float32_and_arrays():
    y = cloud(9)
    cells = laguerre_cells(y.float().numpy(), np.zeros(9, dtype=np.float32))
    assert cells.masses.dtype == cells.polygons[0].dtype == torch.float32
    close(cells.masses, laguerre_cells(y).masses.float(), atol=1e-6)


BAD = {
    "space": (([[0.0, 0.0, 0.0]],), r"points must have shape \(m, 2\).*stochastic_dual"),
    "twins": (([[0.0, 0.0], [0.0, 0.0]],), "two points coincide.*merge them"),
    "prices": ((cloud(3), [0.0, 1.0]), r"prices must have shape \(3,\), but has shape \(2,\)"),
    "infinite": ((cloud(2), [0.0, math.inf]), "prices must be finite"),
    "dtype": ((cloud(2), None, uniform_density([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])), "density is float32"),
    "negative": ((cloud(2), None, torch.tensor([[1.0, -1.0]]).double()), "non-negative.*clamp"),
    "dark": ((cloud(2), None, torch.zeros(2, 2).double()), "non-negative with a positive sum"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    args, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        laguerre_cells(*args)


@pytest.mark.parametrize(
    "corners",
    [
        [[0.0, 0.0], [1.0, 1.0], [1.0, 0.0], [0.0, 1.0]],
        [[0.0, 0.0], [1.0, 0.0], [0.1, 0.1], [0.0, 1.0]],
        [[0.0, 0.0], [1.0, 0.0], [2.0, 0.0]],
        polygon(5)[[0, 2, 4, 1, 3]].tolist(),
    ],
    ids=["bow", "dent", "flat", "star"],
)
def test_a_domain_that_is_not_convex(corners):
    with pytest.raises(ValueError, match="not a convex polygon"):
        uniform_density(corners)


def test_bad_densities():
    with pytest.raises(ValueError, match=r"at least 3 corners, but has shape \(2, 2\)"):
        uniform_density([[0.0, 0.0], [1.0, 0.0]])
    with pytest.raises(ValueError, match="lower left, upper right"):
        pixel_density([[1.0]], box=[[1.0, 0.0], [0.0, 1.0]])
    with pytest.raises(ValueError, match=r"values must have shape \(h, w\)"):
        pixel_density(torch.ones(2, 2, 2))
    with pytest.raises(TypeError, match="generator must be a torch.Generator"):
        PICTURE.sample(3, 0)
    with pytest.raises(ValueError, match=r"x must have shape \(k, 2\)|x has"):
        laguerre_cells(cloud(3)).assign(torch.zeros(4, 3).double())


def test_on_another_device(device):
    cells = laguerre_cells(cloud(9).to(device))
    assert cells.masses.device == device
    assert cells.polygons[0].device == device
    close(cells.masses.cpu(), laguerre_cells(cloud(9)).masses)
