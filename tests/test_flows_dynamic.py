"""Dynamic transport: closed forms on the line, certificates, an independent solver, invariances, order."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from scipy.optimize import minimize, minimize_scalar

from otbook import ConvergenceWarning, costs, emd, gaussian
from otbook.flows import benamou_brenier, displacement_interpolation

f64 = torch.float64


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def wavy(n):
    """Masses of two smooth positive densities on [0, 1], 1 + 0.8 cos πx and 1 − 0.8 cos 2πx."""
    x = torch.linspace(0, 1, n + 1, dtype=f64)
    F = x + 0.8 * torch.sin(math.pi * x) / math.pi
    G = x - 0.8 * torch.sin(2 * math.pi * x) / (2 * math.pi)
    return F.diff(), G.diff()


def wavy_squared_distance():
    """W₂² of these densities: ∫ (G⁻¹(F(x)) − x)² dF by Gauss's rule, G⁻¹ by bisection."""
    nodes, weights = np.polynomial.legendre.leggauss(100)
    x = (nodes + 1) / 2
    F = x + 0.8 * np.sin(np.pi * x) / np.pi
    low, high = np.zeros_like(x), np.ones_like(x)
    for _ in range(60):
        middle = (low + high) / 2
        below = middle - 0.8 * np.sin(2 * np.pi * middle) / (2 * np.pi) < F
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return float((weights / 2 * (1 + 0.8 * np.cos(np.pi * x)) * (low - x) ** 2).sum())


def bumps(*shape):
    """Two random positive measures on a grid."""
    masses = torch.rand(2, *shape, generator=rng(), dtype=f64) + 0.2
    return [m / m.sum() for m in masses]


def divergence(result, sides):
    """∂ₜρ + div m, from what a user sees."""
    T = len(result.momentum)
    total = result.density.diff(dim=0) * T
    for k, (flux, side) in enumerate(zip(result.flux, sides, strict=True), start=1):
        total = total + flux.diff(dim=k) * (result.density.shape[k] / side)
    return total


# --- Closed forms ------------------------------------------------------------------------------------


def test_the_value_is_the_squared_distance_to_second_order():
    sizes, exact = (8, 16, 32), wavy_squared_distance()
    results = [benamou_brenier(*wavy(n), n_steps=n, gamma=5, tol=1e-7) for n in sizes]
    errors = [abs(result.value.item() - exact) for result in results]
    order = -np.polyfit(np.log(sizes), np.log(errors), 1)[0]
    assert 1.8 <= order <= 2.2
    assert errors[-1] <= (1 / sizes[-1]) ** 2


def test_a_gaussian_stays_one_and_moves_at_constant_speed():
    x = (torch.arange(64, dtype=f64) + 0.5) / 64
    mu, nu = (torch.exp(-((x - m) ** 2) / (2 * s**2)) for m, s in ((0.3, 0.06), (0.65, 0.1)))
    result = benamou_brenier(mu / mu.sum(), nu / nu.sum())
    h = 1 / 64
    torch.testing.assert_close(result.value.item(), 0.35**2 + 0.04**2, atol=h**2, rtol=0)
    for t, density in zip(torch.linspace(0, 1, 17), result.density, strict=True):
        mass = density * h
        mean = mass @ x
        spread = (mass @ (x - mean) ** 2).sqrt()
        torch.testing.assert_close(mean.item(), 0.3 + 0.35 * t.item(), atol=h**2, rtol=0)
        torch.testing.assert_close(spread.item(), 0.06 + 0.04 * t.item(), atol=h / 4, rtol=0)
    power = (result.momentum[..., 0] * result.velocity[..., 0]).sum(1) * h
    torch.testing.assert_close(power, result.value.expand(16), atol=2 * h**2, rtol=0)


def test_gaussians_in_the_plane():
    axes = [(torch.arange(n, dtype=f64) + 0.5) * side / n for n, side in ((32, 2.0), (16, 1.0))]
    x = torch.cartesian_prod(*axes)
    m0, m1 = torch.tensor([[0.7, 0.4], [1.2, 0.55]], dtype=f64)
    S0, S1 = (
        torch.diag(torch.tensor([0.03, 0.012], dtype=f64)),
        torch.diag(torch.tensor([0.04, 0.01], dtype=f64)),
    )
    mu, nu = (
        torch.exp(-((x - m) @ torch.linalg.inv(S) * (x - m)).sum(1) / 2).reshape(32, 16)
        for m, S in ((m0, S0), (m1, S1))
    )
    result = benamou_brenier(mu / mu.sum(), nu / nu.sum(), n_steps=12, sides=(2.0, 1.0), tol=1e-4)
    exact = gaussian.bures_wasserstein(m0, S0, m1, S1) ** 2
    torch.testing.assert_close(result.value, exact, atol=(1 / 16) ** 2, rtol=0)
    assert result.converged


def test_nothing_to_do():
    mu, _ = bumps(6, 5)
    result = benamou_brenier(mu, mu, n_steps=4)
    torch.testing.assert_close(result.value.item(), 0.0, atol=1e-10, rtol=0)
    torch.testing.assert_close(result.density, (30 * mu).expand(5, 6, 5), atol=1e-6, rtol=0)


def test_two_cells_and_two_steps_by_hand():
    # All there is to choose is the mass c of the left cell at half-time. If it changes by Δ in half a
    # unit of time, 2Δ flows through the wall between the cells, and half of this in each of them.
    a, b = 0.3, 0.8

    def energy(c):
        total = 0
        for before, after in ((a, c), (c, b)):
            m, left = after - before, before + after  # the density of a cell is twice its mass
            total += (m**2 / left + m**2 / (2 - left)) / 4
        return total

    best = minimize_scalar(energy, bounds=(0.01, 0.99), options={"xatol": 1e-10}).fun
    mu, nu = torch.tensor([[a, 1 - a], [b, 1 - b]], dtype=f64)
    result = benamou_brenier(mu, nu, n_steps=2, tol=1e-9)
    torch.testing.assert_close(result.value.item(), best, atol=1e-8, rtol=0)


# --- Certificates and an independent solver ----------------------------------------------------------


@pytest.mark.parametrize("shape", [(12,), (6, 7), (3, 4, 3)], ids=str)
def test_the_lower_bound_meets_the_value(shape):
    result = benamou_brenier(*bumps(*shape), n_steps=6, tol=1e-8, max_iter=20_000)
    gap = (result.value - result.lower_bound).item()
    assert -1e-7 <= gap <= 1e-7  # ten times the tolerance
    early = [benamou_brenier_quiet(*bumps(*shape), n_steps=6, max_iter=k) for k in (5, 20, 80)]
    assert all(e.lower_bound <= result.value + 1e-9 for e in early)  # a bound at any time


def benamou_brenier_quiet(*arguments, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return benamou_brenier(*arguments, **options)


def test_a_general_minimiser_does_no_better():
    """SciPy, over the fluxes alone: the density is what the continuity equation makes of them."""
    n, T = 5, 4
    mu, nu = bumps(n)

    def rho_and_m(inner):  # free fluxes in all steps but the last, whose flux is forced
        free = inner.reshape(T - 1, n - 1)
        last = np.cumsum((mu - nu).numpy() * n)[:-1] * T / n - free.sum(0)
        flux = np.pad(np.vstack([free, last]), ((0, 0), (1, 1)))
        rho = np.vstack([mu.numpy() * n, mu.numpy() * n - np.cumsum(np.diff(flux) * n / T, axis=0)])
        return (rho[1:] + rho[:-1]) / 2, (flux[:, 1:] + flux[:, :-1]) / 2

    def energy(inner):
        rho, m = rho_and_m(inner)
        return np.mean(m**2 / rho) if (rho > 0).all() else 1e3

    start = np.tile(np.cumsum((mu - nu).numpy())[:-1], T - 1)
    best = minimize(energy, start, method="BFGS", options={"gtol": 1e-10, "maxiter": 5000})
    result = benamou_brenier(mu, nu, n_steps=T, tol=1e-9, max_iter=20_000)
    torch.testing.assert_close(result.value.item(), float(best.fun), atol=1e-8, rtol=0)
    m = rho_and_m(best.x)[1]
    torch.testing.assert_close(result.momentum[..., 0], torch.from_numpy(m), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("shape", "sides"), [((9,), (2.0,)), ((5, 6), (1.0, 3.0))], ids=str)
def test_mass_is_conserved_in_every_cell(shape, sides):
    mu, nu = bumps(*shape)
    result = benamou_brenier_quiet(mu, nu, n_steps=5, sides=sides, max_iter=7)  # not only at the end
    volume = math.prod(sides)
    assert divergence(result, sides).abs().max() <= 1e-10
    assert result.continuity_error <= 1e-10
    cells = math.prod(shape)
    torch.testing.assert_close(result.density[0], mu * cells / volume)
    torch.testing.assert_close(result.density[-1], nu * cells / volume)
    for k, flux in enumerate(result.flux, start=1):
        middle = (flux.narrow(k, 1, flux.shape[k] - 1) + flux.narrow(k, 0, flux.shape[k] - 1)) / 2
        torch.testing.assert_close(result.momentum[..., k - 1], middle)
    spoilt = [flux + 1e-3 * torch.randn(flux.shape, generator=rng(), dtype=f64) for flux in result.flux]
    assert divergence(Spoilt(result, spoilt), sides).abs().max() > 1e-4


class Spoilt:
    def __init__(self, result, flux):
        self.density, self.momentum, self.flux = result.density, result.momentum, flux


# --- Invariance --------------------------------------------------------------------------------------

TIGHT = {"n_steps": 6, "tol": 1e-9, "max_iter": 20_000}


def test_time_runs_both_ways():
    mu, nu = bumps(5, 4)
    there, back = benamou_brenier(mu, nu, **TIGHT), benamou_brenier(nu, mu, **TIGHT)
    torch.testing.assert_close(there.value, back.value, atol=1e-9, rtol=0)
    torch.testing.assert_close(there.density, back.density.flip(0), atol=1e-5, rtol=0)
    torch.testing.assert_close(there.momentum, -back.momentum.flip(0), atol=1e-5, rtol=0)


def test_axes_may_be_exchanged_and_mirrored():
    mu, nu = bumps(5, 4)
    one = benamou_brenier(mu, nu, sides=(2.0, 1.0), **TIGHT)
    other = benamou_brenier(mu.T.flip(0), nu.T.flip(0), sides=(1.0, 2.0), **TIGHT)
    torch.testing.assert_close(one.value, other.value, atol=1e-9, rtol=0)
    torch.testing.assert_close(one.density, other.density.transpose(1, 2).flip(2), atol=1e-5, rtol=0)


def test_lengths_scale():
    mu, nu = bumps(8)
    one, three = benamou_brenier(mu, nu, **TIGHT), benamou_brenier(mu, nu, sides=3.0, **TIGHT)
    torch.testing.assert_close(three.value, 9 * one.value)
    torch.testing.assert_close(three.lower_bound, 9 * one.lower_bound)
    torch.testing.assert_close(three.density, one.density / 3)
    torch.testing.assert_close(three.velocity, 3 * one.velocity)


def test_gamma_changes_the_speed_only():
    mu, nu = bumps(8)
    values = [benamou_brenier(mu, nu, gamma=gamma, **TIGHT).value for gamma in (0.3, 1.0, 3.0)]
    torch.testing.assert_close(torch.stack(values), values[0].expand(3), atol=1e-8, rtol=0)


# --- Regions without mass, precision, input ----------------------------------------------------------


def test_cells_without_mass():
    mu, nu = torch.zeros(2, 16, dtype=f64)
    mu[:4], nu[-4:] = 0.25, 0.25
    result = benamou_brenier(mu, nu, n_steps=12, tol=1e-4)
    # The block moves by 12 cells; its corners are smeared over a cell or two.
    torch.testing.assert_close(result.value.item(), 0.75**2, atol=0.02, rtol=0)
    assert torch.isfinite(result.velocity).all()
    middle = (result.density[1:] + result.density[:-1]) / 2
    filled = middle > 2  # the block has the density 4
    torch.testing.assert_close(result.velocity[filled].mean().item(), 0.75, atol=0.02, rtol=0)


def test_a_short_run_warns_and_says_so():
    with pytest.warns(ConvergenceWarning, match="stopped after 3 iterations above tol=1e-05"):
        result = benamou_brenier(*bumps(8), max_iter=3)
    assert not result.converged
    assert result.n_iter == 3
    assert "converged=False" in repr(result)


def test_float32_and_numpy():
    mu, nu = wavy(16)
    exact = benamou_brenier(mu, nu, tol=1e-7).value
    single = benamou_brenier(mu.float(), nu.float(), tol=1e-4)
    assert single.value.dtype == single.density.dtype == single.flux[0].dtype == torch.float32
    torch.testing.assert_close(single.value.double(), exact, atol=1e-4, rtol=0)
    torch.testing.assert_close(benamou_brenier(mu.numpy(), nu.numpy(), tol=1e-7).value, exact)


def test_on_another_device(device):
    mu, nu = bumps(6, 5)
    here, there = benamou_brenier(mu, nu, **TIGHT), benamou_brenier(mu.to(device), nu.to(device), **TIGHT)
    assert there.density.device == device
    torch.testing.assert_close(there.value.cpu(), here.value, atol=1e-8, rtol=0)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"mu": [0.5, 0.6]}, "mu has mass 1.1, not 1"),
        ({"nu": [1.5, -0.5]}, "nu holds a negative weight, -0.5"),
        ({"nu": [0.5, 0.3, 0.2]}, r"mu has shape \(2,\) and nu \(3,\); use one grid for both"),
        ({"mu": [1.0], "nu": [1.0]}, "at least two cells each, but has shape"),
        ({"n_steps": 1}, "n_steps must be at least 2, but is 1"),
        ({"sides": (1.0, 2.0)}, "sides must be one number or 1, one an axis, but are 2"),
        ({"sides": 0.0}, "sides must be a finite number above 0"),
        ({"gamma": -1.0}, "gamma must be a finite number above 0"),
        ({"tol": 0.0}, "tol must be a finite number above 0"),
        ({"max_iter": 0}, "max_iter must be a whole number of at least 1"),
    ],
)
def test_bad_input(changed, message):
    arguments = {"mu": [0.5, 0.5], "nu": [0.25, 0.75], **changed}
    mu, nu = (torch.tensor(arguments.pop(name), dtype=f64) for name in ("mu", "nu"))
    with pytest.raises(ValueError, match=message):
        benamou_brenier(mu, nu, **arguments)


# --- Displacement interpolation of discrete plans ----------------------------------------------------


@pytest.fixture
def clouds():
    x, y = (torch.randn(n, 2, generator=rng(n), dtype=f64) for n in (7, 5))
    a, b = (torch.rand(n, generator=rng(n), dtype=f64) + 0.1 for n in (7, 5))
    return x, y, a / a.sum(), b / b.sum()


def test_the_interpolation_is_a_geodesic(clouds):
    x, y, a, b = clouds
    result = emd(costs.sqeuclidean(x, y), a, b)
    times = (0.0, 0.25, 0.6, 1.0)
    path = [displacement_interpolation(x, y, result.plan, t) for t in times]
    for s, (p, c) in zip(times, path, strict=True):
        for t, (q, d) in zip(times, path, strict=True):
            squared = emd(costs.sqeuclidean(p, q), c, d).value
            torch.testing.assert_close(squared, (t - s) ** 2 * result.value, atol=1e-10, rtol=0)


def test_the_independent_plan_is_none(clouds):
    x, y, a, b = clouds
    plan = torch.outer(a, b)
    p, c = displacement_interpolation(x, y, plan, 0.5)
    assert emd(costs.sqeuclidean(x, p), a, c).value < (plan * costs.sqeuclidean(x, y)).sum() / 4 - 0.01


def test_ends_and_threshold(clouds):
    x, y, a, b = clouds
    plan = torch.outer(a, b)
    start, weights = displacement_interpolation(x, y, plan, 0)
    torch.testing.assert_close(start, x.repeat_interleave(5, 0))
    torch.testing.assert_close(weights, plan.flatten())
    middle = plan.median()
    points, weights = displacement_interpolation(x, y, plan, 1, threshold=middle.item())
    assert len(points) == len(weights) == (plan > middle).sum()
    torch.testing.assert_close(weights, plan[plan > middle])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"plan": [[1.0]]}, r"plan must have shape \(1, 2\), but has shape \(1, 1\)"),
        ({"plan": [[1.5, -0.5]]}, r"plan holds a negative mass, -0.5; use plan.clamp\(min=0\)"),
        ({"t": 1.5}, r"t must lie in \[0, 1\], but is 1.5"),
    ],
)
def test_bad_interpolation(changed, message):
    arguments = {"x": [[0.0]], "y": [[1.0], [2.0]], "plan": [[0.5, 0.5]], "t": 0.5, **changed}
    with pytest.raises(ValueError, match=message):
        displacement_interpolation(**arguments)
