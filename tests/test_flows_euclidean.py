"""Minimising movements against closed forms, the optimality of each step, and the flow they discretise."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from scipy.optimize import brentq, minimize

from otbook import ConvergenceWarning
from otbook.flows import minimizing_movement

from . import problems


def close(actual, expected, atol=1e-9):
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), rtol=0, atol=atol)


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


def quadratic(d, *, seed=0, low=0.1):
    A = torch.randn(d, d, generator=problems.generator(seed), dtype=torch.float64)
    A = A @ A.mT / d + low * torch.eye(d, dtype=torch.float64)
    return A, torch.randn(d, generator=problems.generator(seed + 1), dtype=torch.float64)


def wells(x):
    return ((x**2 - 1) ** 2).sum() / 4


def bumpy(x):
    return (x**2 + 3 * torch.sin(x) ** 2).sum()


# Closed forms


def test_a_parabola_by_hand():
    flow = minimizing_movement(lambda x: x**2 / 2, double(1.0)[0], tau=0.5, n_steps=2)
    close(flow.path, [1, 2 / 3, 4 / 9])
    close(flow.energies, [1 / 2, 2 / 9, 8 / 81])
    assert flow.converged


@pytest.mark.parametrize("tau", [1e-3, 0.5, 50.0])
@pytest.mark.parametrize("d", [1, 3, 40])
def test_quadratics(d, tau):
    A, x0 = quadratic(d)
    flow = minimizing_movement(lambda x: x @ A @ x / 2, x0, tau=tau, n_steps=5)
    M = torch.linalg.inv(torch.eye(d, dtype=torch.float64) + tau * A)
    expected = torch.stack([torch.linalg.matrix_power(M, k) @ x0 for k in range(6)])
    close(flow.path, expected, atol=5 * 1e-10 * (1 + x0.norm().item()))


def test_concave_quadratics_grow():
    """F = −½λ|x|² with τλ < 1: the factor is 1 / (1 − τλ)."""
    flow = minimizing_movement(lambda x: -(x**2).sum(), double(1.0, -2.0), tau=0.25, n_steps=3)
    close(flow.path[3], [8.0, -16.0], atol=1e-7)


def test_an_affine_function_moves_with_constant_speed():
    flow = minimizing_movement(lambda x: 3 * x.sum(), torch.zeros(2, 2).double(), tau=0.1, n_steps=4)
    close(flow.path[4], torch.full((2, 2), -1.2, dtype=torch.float64))
    assert flow.n_iter == 4


def test_absolute_value_is_soft_thresholding_away_from_the_kink():
    flow = minimizing_movement(lambda x: x.abs().sum(), double(5.0, -3.5), tau=0.25, n_steps=8)
    close(flow.path[8], [3.0, -1.5])


def test_absolute_value_at_the_kink_is_reported():
    with pytest.warns(ConvergenceWarning, match="1 of 3 steps, the first with index 2, did not reach"):
        flow = minimizing_movement(lambda x: x.abs(), double(2.5)[0], tau=1.0, n_steps=3)
    assert not flow.converged
    close(flow.path[:3], [2.5, 1.5, 0.5])
    assert flow.path[3].abs() < 0.5


def test_one_step_of_least_squares_is_ridge_regression():
    X = torch.randn(12, 30, generator=problems.generator(2), dtype=torch.float64)
    y = torch.randn(12, generator=problems.generator(3), dtype=torch.float64)
    zero = torch.zeros(30, dtype=torch.float64)
    w = minimizing_movement(lambda w: ((X @ w - y) ** 2).sum() / 2, zero, tau=7.0, n_steps=1).path[1]
    close(w, torch.linalg.solve(X.mT @ X + torch.eye(30, dtype=torch.float64) / 7, X.mT @ y), atol=1e-8)


def test_least_norm_solution_in_the_limit():
    X = torch.randn(5, 9, generator=problems.generator(4), dtype=torch.float64)
    y = torch.randn(5, generator=problems.generator(5), dtype=torch.float64)
    zero = torch.zeros(9, dtype=torch.float64)
    w = minimizing_movement(lambda w: ((X @ w - y) ** 2).sum() / 2, zero, tau=1e3, n_steps=10).path[-1]
    close(w, torch.linalg.pinv(X) @ y, atol=1e-8)


# Certificates


@pytest.mark.parametrize("tau", [0.05, 0.4, 3.0])
@pytest.mark.parametrize("F", [wells, bumpy], ids=["wells", "bumpy"])
def test_every_step_is_stationary_and_descends(F, tau):
    x0 = 3 * torch.randn(6, generator=problems.generator(7), dtype=torch.float64)
    flow = minimizing_movement(F, x0, tau=tau, n_steps=10)
    for k in range(10):
        a, b = flow.path[k], flow.path[k + 1].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(F(b), b)
        residual = (b - a + tau * gradient).norm().detach()
        close(residual, flow.residuals[k], atol=1e-12)
        assert residual <= 1e-10 * (1 + a.norm())
        assert flow.energies[k + 1] + (b - a).square().sum() / (2 * tau) <= flow.energies[k] + 1e-12
    close(flow.energies, torch.stack([F(x) for x in flow.path]), atol=1e-14)


def test_dissipation_with_the_right_constant():
    """F(x_{k+1}) + (1/τ + λ/2)|x_{k+1} − x_k|² ≤ F(x_k), an equality for ½λx²."""
    tau, lam = 0.3, 1.7
    flow = minimizing_movement(lambda x: lam * x**2 / 2, double(2.0)[0], tau=tau, n_steps=6)
    lost = -flow.energies.diff()
    close(lost, (1 / tau + lam / 2) * flow.path.diff() ** 2)


# Independent solvers


def test_a_step_is_scipys_minimiser():
    x0 = double(0.3, -1.2, 2.0)
    step = minimizing_movement(bumpy, x0, tau=0.1, n_steps=1).path[1]

    def J(x):
        return np.sum(x**2 + 3 * np.sin(x) ** 2) + np.sum((x - x0.numpy()) ** 2) / 0.2

    close(step, minimize(J, x0.numpy(), method="BFGS", options={"gtol": 1e-9}).x, atol=1e-6)


def test_a_long_step_ends_in_the_valley_of_its_start():
    """With τ = 5 the inner problem has several minima; the start decides, as documented."""
    step = minimizing_movement(wells, double(0.1, -0.1, 0.0), tau=5.0, n_steps=1).path[1]
    root = brentq(lambda x: x - 0.1 + 5 * (x**3 - x), 0.5, 1.5)
    close(step, [root, -root, 0.0])


def test_order_one():
    """Against a Runge–Kutta solver at high accuracy, at time 1."""
    x0 = double(1.8, -0.4)
    ends = solve_ivp(lambda t, x: x - x**3, (0, 1), x0.numpy(), rtol=1e-12, atol=1e-12).y[:, -1]
    errors = [
        (minimizing_movement(wells, x0, tau=1 / n, n_steps=n).path[-1] - torch.from_numpy(ends)).norm().item()
        for n in (40, 80, 160)
    ]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(1, abs=0.05)
    assert math.log2(errors[1] / errors[2]) == pytest.approx(1, abs=0.03)


def test_error_bound_without_the_lipschitz_constant():
    """For convex F the error is at most τ|∇F(x_0)| / √2, however stiff."""
    curvature = double(1.0, 100.0, 1e4)
    x0 = double(1.0, 1.0, 1.0) / curvature
    for tau in (1e-3, 1e-1, 10.0):
        flow = minimizing_movement(lambda x: (curvature * x**2).sum() / 2, x0, tau=tau, n_steps=10)
        t = tau * torch.arange(11, dtype=torch.float64)[:, None]
        error = (flow.path - torch.exp(-curvature * t) * x0).norm(dim=1).max()
        assert error <= tau * math.sqrt(3 / 2)


# Invariance


def test_rotations_and_shifts():
    A, x0 = quadratic(4)
    Q, _ = torch.linalg.qr(torch.randn(4, 4, generator=problems.generator(9), dtype=torch.float64))

    def F(x):
        return torch.logsumexp(A @ x, 0) + x.square().sum() / 2

    there = minimizing_movement(F, x0, tau=0.7, n_steps=5).path
    back = minimizing_movement(lambda z: F(Q @ (z - 1)) + 5, Q.mT @ x0 + 1, tau=0.7, n_steps=5).path
    close((back - 1) @ Q.mT, there, atol=1e-8)


def test_scaling_time():
    """F and τ are cF and τ/c."""
    x0 = double(0.3, 1.7)
    slow = minimizing_movement(wells, x0, tau=0.8, n_steps=5).path
    fast = minimizing_movement(lambda x: 4 * wells(x), x0, tau=0.2, n_steps=5).path
    close(fast, slow)


def test_independent_points_in_any_shape():
    x0 = torch.randn(2, 3, 2, generator=problems.generator(8), dtype=torch.float64)
    together = minimizing_movement(wells, x0, tau=0.3, n_steps=4).path
    assert together.shape == (5, 2, 3, 2)
    close(together[:, 1, 2], minimizing_movement(wells, x0[1, 2], tau=0.3, n_steps=4).path)


def test_a_stationary_point_is_not_left():
    """De Giorgi's argmin of −⁴⁄₃x^{3/2} + x²/2τ is 4τ², not 0; a descent cannot leave 0."""
    flow = minimizing_movement(lambda x: -4 / 3 * x.abs() ** 1.5, double(0.0)[0], tau=0.1, n_steps=3)
    close(flow.path, [0.0] * 4)
    assert flow.converged


# Options, types and devices


def test_float32_agrees_with_float64():
    A, x0 = quadratic(10)
    B = A.float()
    slow = minimizing_movement(lambda x: x @ A @ x / 2, x0, tau=0.5, n_steps=8)
    fast = minimizing_movement(lambda x: x @ B @ x / 2, x0.float(), tau=0.5, n_steps=8)
    assert fast.path.dtype == fast.energies.dtype == fast.residuals.dtype == torch.float32
    assert fast.converged
    close(fast.path.double(), slow.path, atol=1e-4)


def test_numpy_and_lists():
    assert minimizing_movement(wells, np.array([2.0]), tau=0.1, n_steps=1).path.dtype == torch.float64
    assert minimizing_movement(wells, [2.0], tau=0.1, n_steps=1).path.dtype == torch.get_default_dtype()


def test_leaves_its_argument_alone_and_detaches():
    x0 = double(2.0, 3.0).requires_grad_()
    before = x0.detach().clone()
    with torch.no_grad():
        flow = minimizing_movement(wells, x0, tau=0.1, n_steps=2)
    assert torch.equal(x0.detach(), before)
    assert not flow.path.requires_grad
    assert not flow.energies.requires_grad
    assert torch.equal(flow.path[0], before)


def test_parameters_in_the_function_get_no_gradient():
    scale = double(2.0).requires_grad_()
    minimizing_movement(lambda x: (scale * x**4).sum(), double(1.0), tau=0.1, n_steps=2)
    assert scale.grad is None


def test_tolerance_and_the_limit_of_iterations():
    rough = minimizing_movement(bumpy, double(9.0), tau=1.0, n_steps=5, tol=1e-3)
    fine = minimizing_movement(bumpy, double(9.0), tau=1.0, n_steps=5)
    assert rough.n_iter < fine.n_iter
    with pytest.warns(ConvergenceWarning, match=r"Raise max_iter = 1 or tol"):
        flow = minimizing_movement(bumpy, double(9.0), tau=1.0, n_steps=5, max_iter=1)
    assert not flow.converged
    assert torch.isfinite(flow.path).all()


def test_a_barrier_is_respected():
    """−log x is infinite at 0: the line search backs off, and x_{k+1} = (x_k + √(x_k² + 4τ)) / 2."""
    flow = minimizing_movement(lambda x: (-x.log()).sum() + 40 * x.sum(), double(3.0), tau=1.0, n_steps=1)
    close(flow.path[1], [(-37 + math.sqrt(37**2 + 4)) / 2])


def test_the_result_is_frozen_and_says_what_it_is():
    flow = minimizing_movement(wells, double(2.0), tau=0.1, n_steps=2)
    with pytest.raises(dataclasses.FrozenInstanceError):
        flow.path = None
    assert repr(flow).startswith("MinimizingMovement(path of shape (3, 1), energy 2.25 → ")
    assert flow.path.shape == (3, 1)
    assert flow.energies.shape == (3,)
    assert flow.residuals.shape == (2,)


def test_on_another_device(device):
    flow = minimizing_movement(wells, double(1.8, -0.4).to(device), tau=0.1, n_steps=5)
    assert flow.path.device == device
    close(flow.path.cpu(), minimizing_movement(wells, double(1.8, -0.4), tau=0.1, n_steps=5).path)


GOOD = {"F": wells, "x0": torch.ones(3), "tau": 0.1, "n_steps": 1}
BAD = {
    "NaN": ({"x0": torch.tensor([math.nan])}, "x0 must hold finite numbers, at least one, but is nan"),
    "empty": ({"x0": torch.zeros(0)}, "x0 must hold finite numbers, at least one, but is empty"),
    "half": ({"x0": torch.ones(2, dtype=torch.float16)}, "x0 has dtype float16"),
    "tau": ({"tau": 0.0}, "tau must be a finite number above 0"),
    "n_steps": ({"n_steps": 0}, "n_steps must be a whole number"),
    "tol": ({"tol": -1.0}, "tol must be a finite number above 0"),
    "max_iter": ({"max_iter": 0}, "max_iter must be a whole number"),
    "vector": ({"F": lambda x: x**2}, r"F must return a scalar tensor, but returned shape \(3,\)"),
    "number": ({"F": lambda x: 1.0}, "F must return a scalar tensor, but returned a float"),
    "dtype": ({"F": lambda x: x.double().sum()}, "F must keep the dtype of x0"),
    "constant": ({"F": lambda x: torch.tensor(1.0)}, "F must depend on x differentiably"),
    "other": ({"F": lambda x: torch.ones((), requires_grad=True) * 1}, "F must depend on x differentiably"),
    "infinite": ({"F": lambda x: (x - 1).log().sum()}, r"F\(x0\) must be finite, but is -inf"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    change, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        minimizing_movement(**{**GOOD, **change})


def test_a_value_is_no_function():
    with pytest.raises(TypeError, match="F must be a function of a tensor, but a Tensor was given"):
        minimizing_movement(torch.ones(()), torch.ones(3), tau=0.1, n_steps=1)
