"""Monge–Ampère on the torus: closed forms, manufactured solutions, certificates, networks, orders."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from otbook import ConvergenceWarning, emd
from otbook.monge_ampere import grid, periodic_spline, solve_periodic

TURN = 2 * math.pi
F64 = torch.empty(0, dtype=torch.float64)


def u_exact(x):
    """A potential that no finite Fourier series represents; its φ is convex with Hessian above 0.35."""
    return 0.002 * torch.exp(torch.cos(TURN * x[0]) + 0.5 * torch.sin(TURN * (x[0] + x[1])))


def hills(y):
    """A density without symmetry, up to its mass."""
    return torch.exp(0.8 * torch.sin(TURN * y[:, 1]) + 0.5 * torch.cos(TURN * (y[:, 0] - y[:, 1])))


HILLS_MASS = hills(grid(64, 64, like=F64).reshape(-1, 2)).mean().item()


def density(y):
    return hills(y) / HILLS_MASS


def on_grid(g, n1, n2=None):
    n2 = n2 or n1
    return g(grid(n1, n2, like=F64).reshape(-1, 2)).reshape(n1, n2)


def manufactured(n1, n2):
    """u, f = det(Id + D²u) g(x + ∇u), by automatic differentiation, and the map."""
    x = grid(n1, n2, like=F64).reshape(-1, 2)
    vmap, grad, hessian = torch.func.vmap, torch.func.grad, torch.func.hessian
    image = x + vmap(grad(u_exact))(x)
    f = (torch.eye(2, dtype=x.dtype) + vmap(hessian(u_exact))(x)).det() * density(image)
    u = vmap(u_exact)(x).reshape(n1, n2)
    return u - u.mean(), f.reshape(n1, n2), image.reshape(n1, n2, 2)


def circle(a):
    """Density 1 + a cos 2πy of the first coordinate."""
    return lambda y: 1 + a * torch.cos(TURN * y[:, 0])


def quantile(a, x):
    """The map from the uniform density to it, by bisection."""
    low, high = x - a, x + a
    for _ in range(60):
        middle = (low + high) / 2
        early = middle + a / TURN * torch.sin(TURN * middle) < x
        low, high = torch.where(early, middle, low), torch.where(early, high, middle)
    return low


# --- closed forms -----------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [0, 1])
def test_one_coordinate_is_the_monotone_map_of_the_circle(axis):
    a, n = 0.5, 96
    shape = (n, 6) if axis == 0 else (6, n)
    result = solve_periodic(torch.ones(shape, dtype=torch.float64), lambda y: circle(a)(y.roll(-axis, 1)))
    x = grid(*shape, like=F64)
    torch.testing.assert_close(result.map[..., axis], quantile(a, x[..., axis]), rtol=0, atol=1e-11)
    torch.testing.assert_close(result.map[..., 1 - axis], x[..., 1 - axis], rtol=0, atol=1e-12)
    assert abs(result.cost - a**2 / (8 * math.pi**2)) < 1e-12
    assert result.converged


def test_the_other_direction_is_explicit():
    a, n = 0.9, 32
    f = on_grid(circle(a), n)
    result = solve_periodic(f, lambda y: 1 + 0 * y[:, 0])
    x = grid(n, n, like=F64)[..., 0]
    expected = x + a / TURN * torch.sin(TURN * x)
    torch.testing.assert_close(result.map[..., 0], expected, rtol=0, atol=1e-11)
    torch.testing.assert_close(result.jacobian, f, rtol=0, atol=1e-9)
    assert abs(result.cost - a**2 / (8 * math.pi**2)) < 1e-12


@pytest.mark.parametrize("shape", [(48, 48), (64, 40)])
def test_manufactured_solution_is_recovered(shape):
    u, f, image = manufactured(*shape)
    result = solve_periodic(f, density)
    torch.testing.assert_close(result.u, u, rtol=0, atol=1e-12)
    torch.testing.assert_close(result.map, image, rtol=0, atol=1e-11)
    assert result.residual <= 1e-10
    assert abs(result.mass_defect) < 1e-12


def test_large_grid():
    u, f, _ = manufactured(256, 256)
    result = solve_periodic(f, density)
    torch.testing.assert_close(result.u, u, rtol=0, atol=1e-8)
    assert result.n_iter <= 10


def test_equal_densities_do_not_move():
    f = on_grid(density, 32)
    for g in (density, f):
        result = solve_periodic(f, g)
        torch.testing.assert_close(result.map, grid(32, 32, like=f), rtol=0, atol=1e-9)
        assert result.cost < 1e-18


# --- certificates and independent solvers ----------------------------------------------------------


def torus_cost(x, y):
    d = x[:, None] - y
    return (d - d.round()).square().sum(-1)


def test_dual_certificate():
    """½d(x, y)² ≥ −u(x) − w(y), with equality at y = T(x), proves that no plan is cheaper."""
    result = solve_periodic(on_grid(circle(0.6), 32), density)
    x, y, u = grid(32, 32, like=F64).reshape(-1, 2), result.map.reshape(-1, 2), result.u.flatten()
    w = -u - (y - x).square().sum(1) / 2
    slack = torus_cost(x, y) / 2 + u[:, None] + w
    assert slack.min() > -1e-12
    assert slack.diagonal().abs().max() < 1e-14
    assert (torus_cost(x, y).diagonal() - (y - x).square().sum(1)).abs().max() < 1e-14
    wrong = torus_cost(x, y.roll(1, 0)) / 2 + u[:, None] + w.roll(1)
    assert wrong.diagonal().max() > 1e-3  # the check can fail


def test_network_simplex_tends_to_the_cost_from_above_at_second_order():
    reference = solve_periodic(on_grid(circle(0.6), 48), density).cost
    sizes, gaps = torch.tensor([8.0, 12.0, 16.0, 24.0]), []
    for n in sizes.int().tolist():
        x = grid(n, n, like=F64).reshape(-1, 2)
        a, b = circle(0.6)(x), density(x)
        gaps.append((emd(torus_cost(x, x), a / a.sum(), b / b.sum()).cost - reference).item())
    assert min(gaps) > 0
    order = -np.polyfit(sizes.log(), np.log(gaps), 1)[0]
    assert 1.7 < order < 2.3


def test_density_is_transported_between_the_grid_points():
    result = solve_periodic(on_grid(circle(0.6), 128), density)
    x = torch.rand(200, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x.requires_grad_()
    y = result(x)
    rows = [torch.autograd.grad(y[:, i].sum(), x, retain_graph=True)[0] for i in (0, 1)]
    transported = torch.stack(rows, 1).det() * density(y)
    torch.testing.assert_close(transported, circle(0.6)(x), rtol=1e-6, atol=0)


def test_masses_are_conserved_as_integrals_of_functions():
    f = on_grid(circle(0.6), 128)
    result = solve_periodic(f, density)
    y, z = result.map.reshape(-1, 2), grid(64, 64, like=F64).reshape(-1, 2)
    for k in ([1.0, 0.0], [2.0, -1.0], [0.0, 3.0]):
        wave = torch.tensor(k, dtype=torch.float64)
        test = lambda p, wave=wave: torch.cos(TURN * (p @ wave) + 0.4)  # noqa: E731
        assert abs((test(y) * f.flatten()).mean() - (test(z) * density(z)).mean()) < 1e-9


# --- orders -----------------------------------------------------------------------------------------


def test_error_falls_geometrically_with_a_smooth_function():
    """As the first Fourier coefficient that the grid cannot hold, J_k(ka)/(πk) at k = n/2."""
    from scipy.special import jv

    a, ratios = 0.8, []
    for n in range(48, 113, 16):
        result = solve_periodic(torch.ones(n, 4, dtype=torch.float64), circle(a))
        x = torch.arange(n, dtype=torch.float64) / n
        error = (result.map[:, 0, 0] - quantile(a, x)).abs().max().item()
        ratios.append(error / (jv(n // 2, n * a / 2) / (math.pi * n / 2)))
    assert max(ratios) / min(ratios) < 1.5


def test_order_six_in_the_spacing_of_the_values_of_g():
    u, f, _ = manufactured(48, 48)
    sizes = np.array([16, 24, 32, 48])
    errors = [(solve_periodic(f, on_grid(density, m)).u - u).abs().max().item() for m in sizes]
    order = -np.polyfit(np.log(sizes), np.log(errors), 1)[0]
    assert 5.5 < order < 7


def test_krylov_iterations_do_not_grow_with_the_grid():
    work = [solve_periodic(manufactured(n, n)[1], density).n_krylov for n in (32, 64, 128)]
    assert max(work) - min(work) <= 3


def test_spline_interpolates_and_has_order_six():
    values = torch.rand(6, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    nodes = grid(6, 8, like=values).reshape(-1, 2)
    torch.testing.assert_close(periodic_spline(values)(nodes + 3), values.flatten(), rtol=0, atol=1e-12)
    y = torch.rand(400, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    sizes = np.array([32, 64, 128])
    errors = [(periodic_spline(on_grid(density, m))(y) - density(y)).abs().max().item() for m in sizes]
    assert abs(-np.polyfit(np.log(sizes), np.log(errors), 1)[0] - 6) < 0.4


def test_spline_is_differentiable():
    values = torch.rand(6, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = torch.rand(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    assert torch.autograd.gradcheck(periodic_spline(values), (y,))


# --- invariances ------------------------------------------------------------------------------------


def test_translation_of_both_densities():
    f = on_grid(circle(0.6), 32)
    plain = solve_periodic(f, density)
    shift = torch.tensor([5 / 32, 3 / 32], dtype=torch.float64)
    moved = solve_periodic(f.roll((5, 3), (0, 1)), lambda y: density(y - shift))
    torch.testing.assert_close(moved.u, plain.u.roll((5, 3), (0, 1)), rtol=0, atol=1e-11)


def test_transposition():
    f = on_grid(circle(0.6), 32, 48)
    plain, swapped = solve_periodic(f, density), solve_periodic(f.T, lambda y: density(y.flip(1)))
    torch.testing.assert_close(swapped.u, plain.u.T, rtol=0, atol=1e-11)
    torch.testing.assert_close(swapped.map, plain.map.transpose(0, 1).flip(2), rtol=0, atol=1e-11)


def test_scaling_of_both_masses():
    f = on_grid(circle(0.6), 32)
    plain, heavy = solve_periodic(f, density), solve_periodic(3 * f, lambda y: 3 * density(y))
    torch.testing.assert_close(heavy.u, plain.u, rtol=0, atol=1e-11)
    torch.testing.assert_close(heavy.cost, 3 * plain.cost, rtol=1e-9, atol=0)


def test_exchange_of_source_and_target_inverts_the_map():
    there = solve_periodic(on_grid(circle(0.5), 128), density)
    back = solve_periodic(on_grid(density, 128), circle(0.5))
    x = grid(128, 128, like=F64).reshape(-1, 2)
    torch.testing.assert_close(back(there.map.reshape(-1, 2)), x, rtol=0, atol=1e-8)
    torch.testing.assert_close(back.cost, there.cost, rtol=0, atol=1e-10)


def test_given_gradient_and_start_change_nothing():
    f = on_grid(density, 32)
    plain = solve_periodic(f, circle(0.6))

    def gradient(y):
        return torch.stack([-0.6 * TURN * torch.sin(TURN * y[:, 0]), 0 * y[:, 0]], 1)

    given = solve_periodic(f, circle(0.6), grad_g=gradient)
    torch.testing.assert_close(given.u, plain.u, rtol=0, atol=1e-12)
    again = solve_periodic(f, circle(0.6), u0=plain.u)
    assert again.n_iter == 0


def test_the_map_at_grid_points_and_beyond_one_period():
    result = solve_periodic(on_grid(circle(0.6), 24, 32), density)
    x = grid(24, 32, like=F64).reshape(-1, 2)
    torch.testing.assert_close(result(x), result.map.reshape(-1, 2), rtol=0, atol=1e-12)
    torch.testing.assert_close(result(x + 2), result(x) + 2, rtol=0, atol=1e-11)


# --- precision, devices, limits ----------------------------------------------------------------------


@pytest.mark.parametrize("n", [32, 256])
def test_float32(n):
    u, f, _ = manufactured(n, n)
    result = solve_periodic(f.float(), density)
    assert result.u.dtype == torch.float32
    assert result.converged
    torch.testing.assert_close(result.u.double(), u, rtol=0, atol=1e-5)


def test_numpy():
    _, f, _ = manufactured(32, 32)
    values = on_grid(density, 32)
    a, b = solve_periodic(f.numpy(), values.numpy()), solve_periodic(f, values)
    # Not to the bit: how an array lies in memory decides the order of some sums.
    torch.testing.assert_close(a.u, b.u, rtol=0, atol=1e-14)


def test_on_another_device(device):
    u, f, _ = manufactured(48, 48)
    for g in (density, on_grid(density, 48).to(device)):
        result = solve_periodic(f.to(device), g)
        assert result.u.device == device
        torch.testing.assert_close(result.u.cpu(), u, rtol=0, atol=1e-6)


def test_too_coarse_a_grid_is_noticed_though_newton_converges():
    uniform = torch.ones(64, 4, dtype=torch.float64)
    with pytest.warns(ConvergenceWarning, match="the grid does not resolve the map"):
        result = solve_periodic(uniform, circle(0.99))
    assert not result.converged
    assert result.residual <= 1e-10
    assert abs(result.mass_defect) > 0.1


def test_max_iter():
    with pytest.warns(ConvergenceWarning, match="max_iter is reached"):
        result = solve_periodic(on_grid(circle(0.6), 32), density, max_iter=1)
    assert not result.converged
    assert result.n_iter == 1


def test_a_jump_stalls():
    def block(y):
        inside = (4 * (y[:, 0] % 1) - 2).abs() < 1
        return torch.where(inside, 1.5, 0.5) + 0 * y[:, 0]

    with pytest.warns(ConvergenceWarning, match="no shorter step helps"):
        result = solve_periodic(torch.ones(64, 4, dtype=torch.float64), block, mass_tol=0.5)
    assert torch.isfinite(result.u).all()


def test_repr():
    assert "converged=True" in repr(solve_periodic(on_grid(circle(0.5), 16), circle(0.5)))


ONE = torch.ones(8, 8, dtype=torch.float64)


@pytest.mark.parametrize(
    ("f", "g", "options", "error", "message"),
    [
        (ONE - 1, ONE, {}, ValueError, "f has the value 0; densities must be positive"),
        (ONE, -ONE, {}, ValueError, "g has the value -1; densities must be positive"),
        (ONE, 2 * ONE, {}, ValueError, "f has mass 1 and g has mass 2"),
        (ONE[0], ONE, {}, ValueError, "f must have shape"),
        (ONE[:7], ONE, {}, ValueError, "even sizes"),
        (ONE * math.nan, ONE, {}, ValueError, "f holds nan"),
        (ONE, ONE.float(), {}, ValueError, "g is float32"),
        (ONE, lambda y: 1 - 2 * torch.cos(TURN * y[:, 0]), {}, ValueError, "g is -1 at the point"),
        (ONE, lambda y: torch.ones_like(y[:, 0]), {}, TypeError, "grad_g"),
        (ONE, lambda y: y, {}, ValueError, "g\\(y\\) must be a tensor of shape"),
        (ONE, lambda y: 1 + 0 * y[:, 0], {"grad_g": lambda y: y[:, 0]}, ValueError, "grad_g\\(y\\) must"),
        (ONE, ONE, {"grad_g": lambda y: y}, ValueError, "leave grad_g out"),
        (ONE, ONE, {"u0": ONE[:4]}, ValueError, "u0 has shape"),
        (ONE, ONE, {"u0": torch.eye(8, dtype=torch.float64)}, ValueError, "non-convex"),
        (ONE, ONE, {"tol": 0}, ValueError, "tol must be"),
        (ONE, ONE, {"mass_tol": -1}, ValueError, "mass_tol must be"),
        (ONE, ONE, {"max_iter": 0}, ValueError, "max_iter must be"),
        (ONE, "density", {}, TypeError, "g must be a tensor"),
    ],
)
def test_bad_input(f, g, options, error, message):
    with pytest.raises(error, match=message):
        solve_periodic(f, g, **options)


def test_bad_points():
    result = solve_periodic(ONE, ONE)
    with pytest.raises(ValueError, match="x must have shape"):
        result(torch.ones(3, 3, dtype=torch.float64))
