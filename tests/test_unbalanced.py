"""Unbalanced and partial transport: answers by hand, duality gaps, the balanced limit, POT and SciPy."""

from __future__ import annotations

import math

import numpy as np
import ot
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog, minimize

from otbook import ConvergenceWarning, emd, sinkhorn
from otbook.entropic import _relaxed, partial, sinkhorn_unbalanced
from otbook.entropic._relaxed import solve_grounded

from . import checks, problems

F64 = torch.float64
both = pytest.mark.parametrize("divergence", ["kl", "tv"])


def tensor(x):
    return torch.tensor(x, dtype=F64)


def solve(C, a, b, *, eps=0.5, rho=2.0, tol=1e-12, **options):
    return sinkhorn_unbalanced(C, a, b, eps=eps, rho=rho, tol=tol, **options)


def unequal(n=7, m=5, *, batch=(), seed=0):
    """A problem between masses 1.7 and 0.6."""
    C, a, b = problems.random_problem(n, m, batch=batch, seed=seed)
    return C, 1.7 * a, 0.6 * b


def kl(p, q):
    return (torch.xlogy(p, p / torch.where(q > 0, q, 1.0)) - p + q).sum((-2, -1))


def primal(C, a, b, P, *, eps, rho, divergence):
    """The objective, by its definition."""
    total = torch.where(torch.isfinite(C), C * P, 0.0).sum((-2, -1))
    total = total + eps * kl(P, a[..., :, None] * b[..., None, :])
    for p, w in ((P.sum(-1), a), (P.sum(-2), b)):
        distance = kl(p[..., None], w[..., None]) if divergence == "kl" else (p - w).abs().sum(-1)
        total = total + rho * distance
    return total


def dual(C, a, b, f, g, *, eps, rho, divergence):
    """A lower bound of the objective for any potentials (TV: not below −ρ), by its definition."""

    def F(w, f):
        if divergence == "kl":
            return (w * rho * (1 - (-f / rho).exp())).sum(-1)
        assert (f[w > 0] >= -rho * (1 + 1e-12)).all(), "a potential below −ρ"
        return (w * f.clamp(max=rho)).sum(-1)

    ab = a[..., :, None] * b[..., None, :]
    density = ((f[..., :, None] + g[..., None, :] - C) / eps).exp()
    return F(a, f) + F(b, g) - eps * (ab * (density - 1)).sum((-2, -1))


def assert_optimal(C, a, b, result, *, eps, rho, divergence, atol=1e-9):
    """Primal and dual objective agree with the value: nothing is left to gain."""
    assert torch.isfinite(result.plan).all()
    assert (result.plan >= 0).all()
    problem = {"eps": eps, "rho": rho, "divergence": divergence}
    torch.testing.assert_close(primal(C, a, b, result.plan, **problem), result.value, rtol=0, atol=atol)
    torch.testing.assert_close(dual(C, a, b, result.f, result.g, **problem), result.value, rtol=0, atol=atol)
    transport = torch.where(torch.isfinite(C), C * result.plan, 0.0).sum((-2, -1))
    torch.testing.assert_close(result.cost, transport, rtol=0, atol=1e-12)
    left = (result.plan.sum(-1) - a).abs().sum(-1) + (result.plan.sum(-2) - b).abs().sum(-1)
    # The plan is the exponential of (f + g − C)/ε, which is known to 16 digits.
    rounding = 1e-15 * result.f.abs().max().item() / eps
    torch.testing.assert_close(result.marginal_error, left, rtol=0, atol=1e-10 + rounding)


class TestByHand:
    @pytest.mark.parametrize("c", [-1.0, 0.0, 3.0])
    def test_two_points_kl(self, c):
        # c + ε log(p/ab) + ρ log(p/a) + ρ log(p/b) = 0.
        a, b, eps, rho = 2.0, 0.3, 0.4, 1.5
        p = math.exp(((eps + rho) * math.log(a * b) - c) / (eps + 2 * rho))
        result = solve(tensor([[c]]), [a], [b], eps=eps, rho=rho)
        torch.testing.assert_close(result.plan.item(), p, rtol=1e-12, atol=0)
        torch.testing.assert_close(result.f.item(), -rho * math.log(p / a), rtol=0, atol=1e-10)
        # By that equation all logarithms cancel from the objective.
        value = eps * a * b + rho * (a + b) - (eps + 2 * rho) * p
        torch.testing.assert_close(result.value.item(), value, rtol=0, atol=1e-12)

    @pytest.mark.parametrize(
        ("c", "slope"), [(-4.0, 2), (-1.0, 0), (0.5, 0), (4.0, -2)], ids=["more", "keep", "keep", "less"]
    )
    def test_two_points_tv(self, c, slope):
        # Below both masses, between them, or above: the penalty has slope −2ρ, 0, 2ρ in p.
        a, b, eps, rho = 1.5, 1.2, 0.4, 1.0
        p = a * b * math.exp(-(c + slope * rho) / eps)
        p = max(p, a) if slope > 0 else min(p, b) if slope < 0 else min(max(p, b), a)
        value = c * p + eps * (p * math.log(p / (a * b)) - p + a * b) + rho * (abs(p - a) + abs(p - b))
        result = solve(tensor([[c]]), [a], [b], eps=eps, rho=rho, divergence="tv")
        torch.testing.assert_close(result.plan.item(), p, rtol=1e-11, atol=0)
        torch.testing.assert_close(result.value.item(), value, rtol=0, atol=1e-10)

    def test_planted_kl(self):
        # A cost built backwards from potentials and a plan with the marginals they ask for.
        rng, eps, rho = problems.generator(3), 0.3, 1.2
        P = torch.rand(6, 4, generator=rng, dtype=F64) + 0.05
        f = torch.randn(6, generator=rng, dtype=F64)
        g = torch.randn(4, generator=rng, dtype=F64)
        a, b = P.sum(1) * (f / rho).exp(), P.sum(0) * (g / rho).exp()
        C = f[:, None] + g - eps * (P / (a[:, None] * b)).log()
        result = solve(C, a, b, eps=eps, rho=rho)
        torch.testing.assert_close(result.plan, P, rtol=0, atol=1e-10)
        torch.testing.assert_close(result.f, f, rtol=0, atol=1e-9)
        torch.testing.assert_close(result.g, g, rtol=0, atol=1e-9)

    def test_tv_moves_nothing_that_costs_more_than_its_price(self):
        C, a, b = unequal()
        eps, rho = 0.05, 0.4
        result = solve(C, a, b, eps=eps, rho=rho, divergence="tv")
        bound = a[:, None] * b * ((2 * rho - C) / eps).exp()
        assert (result.plan <= bound * (1 + 1e-9)).all()
        assert 0.1 < result.plan.sum() < 0.6


#: Problems that need more than 1,500 iterations if a Newton step may not be longer than 50 ε.
FAR = {
    "tv": (
        [[2, 3], [3, 1], [0, 1], [0, 1], [3, 0], [3, 2], [4, 3], [2, 1]],
        [0.00052, 0.01564, 0.04398, 0.30755, 0.16469, 0.45971, 0.00006, 0.00785],
        [0.34901, 1.35099],
        {"eps": 4e-6, "rho": 8.6, "divergence": "tv"},
    ),
    "kl, dear mass": (
        [
            [2, 3, 4, 1, 2, 1, 1, 4, 4, 3],
            [1, 0, 3, 4, 3, 2, 2, 1, 2, 1],
            [1, 4, 0, 1, 4, 4, 0, 1, 1, 2],
            [1, 1, 2, 2, 3, 4, 1, 1, 2, 1],
        ],
        [0.022, 0, 0.972, 0.006],
        [0.066, 0.002, 0.204, 0.025, 0.074, 0.879, 0.027, 0.204, 0.038, 0.181],
        {"eps": 9.6e-6, "rho": 36.0, "divergence": "kl"},
    ),
    "kl, cheap mass": (
        [
            [0.3571, 0.0540, 0.1669, 0.1073, 0.8175],
            [0.7700, 0.0000, 0.7273, 0.0441, 0.8596],
            [0.5759, 0.8057, 0.2069, 0.7551, 0.5937],
            [0.5366, 0.6077, 0.1665, 0.4438, 0.8339],
        ],
        [0, 0.3568, 0.1926, 0.4506],
        [0.0636, 0.9057, 0, 0.0047, 0.7260],
        {"eps": 9.4e-7, "rho": 0.0263, "divergence": "kl"},
    ),
}


class TestCertificate:
    @both
    @pytest.mark.parametrize(("eps", "rho"), [(2.0, 0.3), (0.3, 1.0), (0.3, 50.0), (0.02, 0.1)])
    @pytest.mark.parametrize(("n", "m"), [(7, 5), (1, 4)])
    def test_gap(self, divergence, eps, rho, n, m):
        problem = {"eps": eps, "rho": rho, "divergence": divergence}
        C, a, b = unequal(n, m)
        assert_optimal(C, a, b, solve(C, a, b, **problem), **problem)

    @settings(max_examples=30, deadline=None)
    @given(
        n=st.integers(1, 6),
        m=st.integers(1, 6),
        seed=st.integers(0, 10**6),
        log_eps=st.floats(-1.5, 1),
        log_rho=st.floats(-1.5, 2),
        divergence=st.sampled_from(["kl", "tv"]),
    )
    def test_any_problem(self, n, m, seed, log_eps, log_rho, divergence):
        problem = {"eps": 10**log_eps, "rho": 10**log_rho, "divergence": divergence}
        rng = problems.generator(seed)
        C = torch.rand(n, m, generator=rng, dtype=F64)
        a = torch.randint(0, 3, (n,), generator=rng).double()
        b = torch.randint(0, 3, (m,), generator=rng).double() / 2
        a[0] += 1
        b[-1] += 1
        result = solve(C, a, b, tol=1e-9, max_iter=100_000, **problem)
        # For TV the gap is linear in the tolerance, and ρ is its factor.
        assert_optimal(C, a, b, result, **problem, atol=1e-7 * (1 + problem["rho"]))

    def test_small_eps_against_the_linear_program(self):
        # value is at least the exact optimum V, and at most what V's plan pays with ε KL on top.
        C, a, b = unequal(6, 5)
        eps, rho = 0.002, 0.4
        result = solve(C, a, b, eps=eps, rho=rho, divergence="tv", tol=1e-8)
        rows, columns = np.kron(np.eye(6), np.ones(5)), np.kron(np.ones(6), np.eye(5))
        marginals = np.vstack([rows, columns])
        answer = linprog(
            np.concatenate([C.ravel(), np.full(22, rho)]),
            A_eq=np.hstack([marginals, np.eye(11), -np.eye(11)]),
            b_eq=np.concatenate([a, b]),
        )
        plan = torch.from_numpy(answer.x[:30]).reshape(6, 5)
        assert 0.1 < plan.sum() < 0.59
        above = result.value.item() - answer.fun
        assert -1e-9 <= above <= eps * kl(plan, a[:, None] * b).item() + 1e-9

    @both
    @pytest.mark.parametrize("share", [1e-4, 1e-6])
    @pytest.mark.parametrize("rho", [0.3, 100.0])
    def test_tiny_eps(self, divergence, share, rho):
        C, a, b = unequal(12, 9)
        problem = {"eps": share * C.max().item(), "rho": rho, "divergence": divergence}
        result = solve(C, a, b, **problem, tol=1e-9)
        assert result.n_iter < 1000
        assert_optimal(C, a, b, result, **problem, atol=1e-8 * (1 + rho))

    @both
    def test_clusters_that_exchange_almost_nothing(self, divergence):
        # Block ascent alone changes their constants by exp(−30) an iteration.
        C, a, b = unequal(6, 6)
        C[:3, 3:] += 3
        C[3:, :3] += 3
        problem = {"eps": 0.1, "rho": 5.0, "divergence": divergence}
        result = solve(C, a, b, **problem)
        assert result.n_iter < 100
        assert_optimal(C, a, b, result, **problem)

    @pytest.mark.parametrize("case", FAR)
    def test_clusters_far_from_where_they_begin_to_exchange_mass(self, case):
        # Their constants move by thousands of ε, along which the dual is linear.
        C, a, b, options = FAR[case]
        C, a, b = (torch.tensor(t, dtype=F64) for t in (C, a, b))
        result = sinkhorn_unbalanced(C, a, b, **options)
        assert result.converged
        assert result.n_iter < 150
        assert_optimal(C, a, b, result, **options, atol=1e-5)


class TestLimits:
    @both
    def test_balanced(self, divergence):
        C, a, b = problems.random_problem()
        result, limit = solve(C, a, b, rho=1e7, divergence=divergence), sinkhorn(C, a, b, eps=0.5, tol=1e-13)
        # The marginals are off by f/ρ ≈ 1e-7.
        atol = 1e-6
        torch.testing.assert_close(result.plan, limit.plan, rtol=0, atol=atol)
        torch.testing.assert_close(result.value, limit.value, rtol=0, atol=atol)
        assert result.n_iter < 200
        errors = [solve(C, a, b, rho=rho).value - limit.value for rho in (1e3, 1e4)]
        torch.testing.assert_close(errors[0] / errors[1], tensor(10.0), rtol=0.02, atol=0)  # O(1/ρ)

    def test_nothing_is_moved_when_mass_is_free(self):
        C, a, b = unequal()
        result = solve(C + 10, a, b, eps=0.01, rho=0.01)
        assert result.plan.sum() < 1e-100
        price = 0.01 * (a.sum() + b.sum()) + 0.01 * a.sum() * b.sum()
        torch.testing.assert_close(result.value, price, rtol=0, atol=1e-12)


class TestIndependentSolver:
    @pytest.mark.parametrize(("eps", "rho"), [(0.5, 2.0), (1.0, 0.2), (0.3, 5.0)])
    def test_pot_kl(self, eps, rho):
        C, a, b = unequal(12, 9)
        plan, log = ot.unbalanced.sinkhorn_unbalanced(
            a.numpy(), b.numpy(), C.numpy(), eps, rho, stopThr=1e-15, numItermax=20_000, log=True
        )
        result = solve(C, a, b, eps=eps, rho=rho)
        np.testing.assert_allclose(result.plan.numpy(), plan, rtol=0, atol=1e-10)
        M = result.plan.sum()
        masses = eps * (a.sum() * b.sum() - M) + rho * (a.sum() + b.sum() - 2 * M)
        assert abs((result.value - masses).item() - log["total_cost"]) < 1e-8

    def test_scipy_tv(self):
        # With f, g ≤ ρ, which costs nothing, the dual is smooth in a box.
        C, a, b = unequal()
        problem = {"eps": 0.5, "rho": 0.8, "divergence": "tv"}

        def descent(z):
            z = torch.from_numpy(z).requires_grad_()
            value = -dual(C, a, b, z[:7], z[7:], **problem)
            return value.item(), torch.autograd.grad(value, z)[0].numpy()

        answer = minimize(
            descent,
            np.zeros(12),
            jac=True,
            bounds=[(-0.8, 0.8)] * 12,
            method="L-BFGS-B",
            options={"ftol": 1e-15, "gtol": 1e-12, "maxiter": 1000},
        )
        torch.testing.assert_close(solve(C, a, b, **problem).value.item(), -answer.fun, rtol=0, atol=1e-8)


class TestInvariance:
    @both
    def test_permutation_and_transpose(self, divergence):
        def unbalanced(C, a, b):
            return solve(C, a, b, divergence=divergence)

        checks.assert_permutation_equivariant(unbalanced, *unequal())
        checks.assert_transpose_symmetric(unbalanced, *unequal())

    @both
    @pytest.mark.parametrize("unit", [1e-8, 1e8])
    def test_unit_of_cost(self, divergence, unit):
        C, a, b = unequal()
        one = solve(C, a, b, divergence=divergence)
        other = solve(unit * C, a, b, eps=unit * 0.5, rho=unit * 2.0, divergence=divergence)
        torch.testing.assert_close(other.plan, one.plan, rtol=0, atol=1e-10)
        torch.testing.assert_close(other.value / unit, one.value, rtol=0, atol=1e-10)


class TestBoundary:
    @both
    def test_atoms_without_mass(self, divergence):
        C, a, b = unequal()
        a[0] = b[-1] = 0
        result = solve(C, a, b, divergence=divergence)
        inside = solve(C[1:, :-1], a[1:], b[:-1], divergence=divergence)
        torch.testing.assert_close(result.value, inside.value, rtol=0, atol=1e-10)
        torch.testing.assert_close(result.plan[1:, :-1], inside.plan, rtol=0, atol=1e-10)
        assert (result.plan[0] == 0).all()
        assert torch.isfinite(result.f).all()

    @both
    def test_point_that_may_only_go_where_no_mass_is(self, divergence):
        C = tensor([[0, math.inf], [1, 1]])
        result = solve(C, [0.5, 0.5], [0.0, 1.0], divergence=divergence)
        inside = solve(C[1:, 1:], [0.5], [1.0], divergence=divergence)
        torch.testing.assert_close(result.plan[1, 1], inside.plan[0, 0], rtol=0, atol=1e-10)
        # The stranded half is destroyed, at 2 each; its pairs are in ε a⊗b, too.
        torch.testing.assert_close(result.value, inside.value + 1.0 + 0.25, rtol=0, atol=1e-10)

    @both
    def test_forbidden_pair(self, divergence):
        C, a, b = unequal()
        C[0, 1] = math.inf
        result = solve(C, a, b, divergence=divergence)
        assert result.plan[0, 1] == 0
        assert_optimal(C, a, b, result, eps=0.5, rho=2.0, divergence=divergence)

    @both
    def test_batch_equals_single_calls(self, divergence):
        C, a, b = unequal(batch=(2, 2))
        result = solve(C, a, b[0, 0], divergence=divergence)
        assert result.value.shape == result.marginal_error.shape == (2, 2)
        for k in ((0, 0), (0, 1), (1, 0), (1, 1)):
            one = solve(C[k], a[k], b[0, 0], divergence=divergence)
            torch.testing.assert_close(result.plan[k], one.plan, rtol=0, atol=1e-10)
            torch.testing.assert_close(result.value[k], one.value, rtol=0, atol=1e-10)

    @both
    @pytest.mark.parametrize("eps", [0.5, 0.05])
    def test_float32(self, divergence, eps):
        C, a, b = unequal(12, 9)
        options = {"eps": eps, "rho": 0.5, "divergence": divergence, "tol": 1e-7}
        single, double = solve(C.float(), a.float(), b.float(), **options), solve(C, a, b, **options)
        assert single.plan.dtype == single.value.dtype == single.f.dtype == torch.float32
        torch.testing.assert_close(single.plan, double.plan.float(), rtol=0, atol=1e-5)
        torch.testing.assert_close(single.value, double.value.float(), rtol=0, atol=1e-5)

    def test_numpy_and_default_masses(self):
        C, _, _ = problems.random_problem()
        result = sinkhorn_unbalanced(C.numpy(), eps=0.5, rho=2.0, tol=1e-12)
        expected = solve(C, torch.full((7,), 1 / 7, dtype=F64), torch.full((5,), 0.2, dtype=F64))
        torch.testing.assert_close(result.plan, expected.plan, rtol=0, atol=1e-12)

    @both
    def test_not_converged(self, divergence):
        C, a, b = unequal(20, 20)
        problem = {"eps": 1e-4, "rho": 1.0, "divergence": divergence}
        with pytest.warns(ConvergenceWarning, match=r"after 5 iterations .* max_iter"):
            result = sinkhorn_unbalanced(C, a, b, **problem, max_iter=5)
        assert not result.converged
        assert result.n_iter == 5
        for t in (result.plan, result.f, result.g, result.value, result.cost, result.marginal_error):
            assert torch.isfinite(t).all()
        # A dual value all the same: below what any plan costs.
        assert result.value < primal(C, a, b, result.plan, **problem)
        bound = dual(C, a, b, result.f, result.g, **problem)
        torch.testing.assert_close(bound, result.value, rtol=0, atol=1e-9)

    @both
    def test_on_another_device(self, divergence, device):
        C, a, b = unequal()
        there = solve(C.to(device), a.to(device), b.to(device), divergence=divergence)
        here = solve(C, a, b, divergence=divergence)
        torch.testing.assert_close(there.plan.cpu(), here.plan, rtol=0, atol=1e-10)


class TestGradients:
    @both
    def test_gradcheck(self, divergence):
        inputs = tuple(t.requires_grad_() for t in unequal(3, 2))

        def value(C, a, b):
            return solve(C, a, b, eps=1.0, divergence=divergence).value

        assert torch.autograd.gradcheck(value, inputs)

    @both
    def test_gradcheck_at_equal_masses_and_in_a_batch(self, divergence):
        C, a, b = problems.random_problem(2, 3, batch=(2,))
        s = a[0].log().requires_grad_()
        C.requires_grad_()
        b[:, 0] = 0  # a zero weight on the side that stays fixed
        b = b / b.sum(-1, keepdim=True)

        def value(C, s):
            return solve(C, s.softmax(0), b, eps=1.0, divergence=divergence).value

        assert torch.autograd.gradcheck(value, (C, s))

    @both
    def test_one_sided_derivative_at_a_zero_mass(self, divergence):
        C, a, b = unequal(4, 3)
        a[1] = 0
        a.requires_grad_()
        result = solve(C, a, b, divergence=divergence)
        (gradient,) = torch.autograd.grad(result.value, a)
        moved = a.detach() + tensor([0, 1e-6, 0, 0])
        change = (solve(C, moved, b, divergence=divergence).value - result.value.detach()) / 1e-6
        torch.testing.assert_close(change, gradient[1], rtol=0, atol=1e-4)

    def test_the_gradient_in_the_cost_is_the_plan(self):
        C, a, b = unequal()
        result = solve(C.requires_grad_(), a, b)
        (gradient,) = torch.autograd.grad(result.value, C)
        torch.testing.assert_close(gradient, result.plan, rtol=0, atol=1e-14)
        assert not result.marginal_error.requires_grad

    def test_by_hand(self):
        # p = (ab)^((ε+ρ)/(ε+2ρ)) exp(−c/(ε+2ρ)), as in test_two_points_kl.
        eps, rho = 0.4, 1.5
        c, a, b = (tensor(x).requires_grad_() for x in ([[0.7]], [2.0], [0.3]))
        result = solve(c, a, b, eps=eps, rho=rho)
        p, share = result.plan.item(), (eps + rho) / (eps + 2 * rho)
        gradients = torch.autograd.grad(result.plan.sum(), (c, a, b), retain_graph=True)
        expected = tensor([[-p / (eps + 2 * rho)]]), tensor([share * p / 2.0]), tensor([share * p / 0.3])
        torch.testing.assert_close(gradients, expected, rtol=1e-10, atol=0)
        gradients = torch.autograd.grad(result.cost, (c, a, b), retain_graph=True)
        expected = expected[0] * 0.7 + p, expected[1] * 0.7, expected[2] * 0.7
        torch.testing.assert_close(gradients, expected, rtol=1e-10, atol=0)
        # f = −ρ log(p/a)
        gradients = torch.autograd.grad(result.f.sum(), (c, a, b))
        expected = (
            tensor([[rho / (eps + 2 * rho)]]),
            tensor([rho * (1 - share) / 2]),
            tensor([-rho * share / 0.3]),
        )
        torch.testing.assert_close(gradients, expected, rtol=1e-10, atol=0)

    @pytest.mark.parametrize("name", ["plan", "cost", "f", "g"])
    @pytest.mark.parametrize(("n", "m"), [(4, 2), (2, 3)])
    def test_gradcheck_of_the_solution(self, name, n, m):
        inputs = tuple(t.requires_grad_() for t in unequal(n, m))
        assert torch.autograd.gradcheck(lambda *x: getattr(solve(*x, eps=0.4), name), inputs)

    @pytest.mark.parametrize("name", ["value", "plan", "f"])
    def test_gradcheck_of_derivatives(self, name):
        inputs = tuple(t.requires_grad_() for t in unequal(3, 2))
        assert torch.autograd.gradgradcheck(lambda *x: getattr(solve(*x, eps=0.8), name), inputs)

    def test_hessian_of_the_value_is_the_derivative_of_the_plan(self):
        C, a, b = unequal(3, 2)
        hessian = torch.autograd.functional.hessian(lambda C: solve(C, a, b).value, C)
        jacobian = torch.autograd.functional.jacobian(lambda C: solve(C, a, b).plan, C)
        torch.testing.assert_close(hessian, jacobian, rtol=0, atol=1e-12)
        # The value is concave in the cost.
        assert torch.linalg.eigvalsh(hessian.reshape(6, 6)).max() < 0

    @pytest.mark.parametrize("name", ["value", "plan", "cost", "f", "g"])
    def test_zero_masses_and_a_forbidden_pair(self, name):
        C, a, b = unequal(5, 4)
        C[4, 0] = math.inf
        a[1], b[2] = 0, 0
        weigh = torch.randn(1, generator=problems.generator(9), dtype=F64)

        def total(C, a, b):
            t = getattr(solve(C, a, b), name)
            return (t * torch.arange(1.0, t.numel() + 1, dtype=F64).reshape(t.shape).sin() * weigh).sum()

        inputs = tuple(t.clone().requires_grad_() for t in (C, a, b))
        gradients = torch.autograd.grad(total(*inputs), inputs)
        assert gradients[0][4, 0] == 0
        h = 1e-6
        # Masses only grow, so the differences are one-sided.
        steps = [
            (0, (1, 2)),
            (0, (1, 0)),
            (0, (0, 2)),
            (0, (3, 1)),
            (1, (1,)),
            (1, (0,)),
            (2, (2,)),
            (2, (3,)),
        ]
        for k, at in steps:
            moved = [t.clone() for t in (C, a, b)]
            moved[k][at] += h
            change = (total(*moved) - total(C, a, b)) / h
            torch.testing.assert_close(change, gradients[k][at], rtol=0, atol=2e-5)

    def test_small_eps(self):
        C, a, b = unequal(20, 15)
        C = (C / C.max()).requires_grad_()
        options = {"eps": 2e-3, "rho": 0.5}
        direction = torch.randn(20, 15, generator=problems.generator(5), dtype=F64)
        M = torch.randn(20, 15, generator=problems.generator(6), dtype=F64)
        (gradient,) = torch.autograd.grad((solve(C, a, b, **options).plan * M).sum(), C)
        h = 1e-6
        with torch.no_grad():
            plus, minus = (solve(C + s * direction, a, b, **options).plan for s in (h, -h))
        change = ((plus - minus) * M).sum() / (2 * h)
        torch.testing.assert_close((gradient * direction).sum(), change, rtol=1e-4, atol=0)

    def test_free_mass_at_no_price_is_balanced_transport(self):
        C, a, b = problems.random_problem()
        C = C.requires_grad_()
        direction = torch.randn(7, 5, generator=problems.generator(5), dtype=F64)
        M = torch.randn(7, 5, generator=problems.generator(6), dtype=F64)
        (gradient,) = torch.autograd.grad((solve(C, a, b, rho=1e9, tol=1e-10).plan * M).sum(), C)
        h = 1e-4
        with torch.no_grad():
            plus, minus = (sinkhorn(C + s * direction, a, b, eps=0.5, tol=1e-13).plan for s in (h, -h))
        change = ((plus - minus) * M).sum() / (2 * h)
        torch.testing.assert_close((gradient * direction).sum(), change, rtol=1e-6, atol=0)

    def test_batch_and_float32(self):
        C, a, b = unequal(6, 8, batch=(2,))

        def gradients(C, a, b, **options):
            inputs = tuple(t.clone().requires_grad_() for t in (C, a, b))
            result = solve(*inputs, **options)
            total = result.plan.square().sum() + result.cost.sum() + result.f.sin().sum()
            return torch.autograd.grad(total, inputs)

        both_ = gradients(C, a, b)
        for k in range(2):
            expected = gradients(C[k], a[k], b[k])
            for got, one in zip(both_, expected, strict=True):
                torch.testing.assert_close(got[k], one, rtol=0, atol=1e-9)
        single = gradients(C.float(), a.float(), b.float(), tol=1e-7)
        for got, one in zip(single, both_, strict=True):
            assert got.dtype == torch.float32
            torch.testing.assert_close(got.double(), one, rtol=1e-4, atol=1e-4)

    def test_a_plan_first_looked_at_without_gradients_still_has_one(self):
        C, a, b = unequal()
        result = solve(C.requires_grad_(), a, b)
        with torch.no_grad():
            result.plan.sum()
        assert result.plan.requires_grad

    @pytest.mark.parametrize("name", ["plan", "cost", "f", "g"])
    def test_tv_has_no_derivative_of_the_solution(self, name):
        C, a, b = unequal()
        result = solve(C.requires_grad_(), a, b, divergence="tv")
        with pytest.raises(RuntimeError, match="'tv' have kinks.*detach them"):
            getattr(result, name).sum().backward()

    def test_no_second_derivative_is_made_up(self):
        C, a, b = unequal()
        value = solve(C.requires_grad_(), a, b, divergence="tv").value
        (gradient,) = torch.autograd.grad(value, C, create_graph=True)
        with pytest.raises(
            NotImplementedError, match="unbalanced with divergence='tv' can be differentiated once"
        ):
            (gradient.square().sum() + C.square().sum()).backward()


class TestSteps:
    """The steps of the core loop do what they are for, which the solution alone would not show."""

    @pytest.mark.parametrize("relaxed", [_relaxed.KL(0.7), _relaxed.TV(0.7)])
    def test_shift_maximises_along_the_constant(self, relaxed):
        _, a, b = unequal()
        rng = problems.generator(1)
        f, g = 0.5 * torch.rand(7, generator=rng, dtype=F64), 0.5 * torch.rand(5, generator=rng, dtype=F64)

        def total(c):
            return (a * relaxed.dual(f + c)).sum() + (b * relaxed.dual(g - c)).sum()

        c = relaxed.shift(f, g, a, b)
        assert c.abs() > 0.01
        assert total(c) > max(total(c + 1e-3), total(c - 1e-3), total(0 * c))

    @both
    def test_newton_converges_quadratically(self, divergence, monkeypatch):
        C, a, b = unequal()
        eps, rho = 0.3, 0.6
        best = solve(C, a, b, eps=eps, rho=rho, divergence=divergence, tol=1e-14)
        relaxed = {"kl": _relaxed.KL, "tv": _relaxed.TV}[divergence](rho)
        noise = 1e-4 * torch.randn(12, generator=problems.generator(1), dtype=F64)
        # For TV on the optimal active set: where |potential| = ρ it stays.
        inside = [t.abs() < rho - 0.01 if divergence == "tv" else t == t for t in (best.f, best.g)]
        f, g = best.f + noise[:7] * inside[0], best.g + noise[7:] * inside[1]
        off = (g - best.g).abs().max().item()
        plans, plan_rows = [], _relaxed.plan_rows
        monkeypatch.setattr(_relaxed, "plan_rows", lambda *t: plans.append(1) or plan_rows(*t))
        g = _relaxed._newton(relaxed, C, a, b, f, g, eps)
        assert off > 1e-5
        assert (g - best.g).abs().max().item() < 1e-2 * off
        assert len(plans) == 2, "the full step is good, and no other is tried"


class TestGroundedSystem:
    """The linear system behind Newton's steps and the derivatives."""

    @pytest.mark.parametrize(("n", "m"), [(5, 3), (3, 5), (1, 1)])
    def test_against_the_full_matrix(self, n, m):
        rng = problems.generator(n)
        P = torch.rand(2, n, m, generator=rng, dtype=F64)
        alpha, beta = torch.rand(2, n, generator=rng, dtype=F64), torch.rand(2, m, generator=rng, dtype=F64)
        r, s = torch.randn(2, n, generator=rng, dtype=F64), torch.randn(2, m, generator=rng, dtype=F64)
        diagonal = torch.cat([P.sum(-1) + alpha, P.sum(-2) + beta], -1)
        H = torch.diag_embed(diagonal)
        H[:, :n, n:], H[:, n:, :n] = P, P.mT
        expected = torch.linalg.solve(H, torch.cat([r, s], -1))
        x, y = solve_grounded(P, alpha, beta, r, s)
        torch.testing.assert_close(torch.cat([x, y], -1), expected, rtol=0, atol=1e-12)

    def test_a_weak_ground_loses_no_digits(self):
        # By symmetry x = −y = t with α t = 1, or t = 10¹⁴: the difference of d and P²/d has no digit of α.
        P, ground = tensor([[1.0]]), tensor([1e-14])
        x, y = solve_grounded(P, ground, ground, tensor([1.0]), tensor([-1.0]))
        torch.testing.assert_close(x, tensor([1e14]), rtol=1e-10, atol=0)
        torch.testing.assert_close(y, tensor([-1e14]), rtol=1e-10, atol=0)

    def test_points_without_edges_stay(self):
        P = tensor([[0.0, 0.0], [0.0, 2.0], [0.0, 1.0]])
        zero = torch.zeros(3, dtype=F64)
        x, y = solve_grounded(P, tensor([0.0, 1.0, 1.0]), zero[:2], tensor([0.0, 1.0, 0.0]), zero[:2])
        assert x[0] == y[0] == 0
        assert torch.isfinite(x).all()
        torch.testing.assert_close(P.sum(0) * y + P.T @ x, zero[:2], rtol=0, atol=1e-12)


GOOD = {"C": torch.ones(2, 3, dtype=F64), "eps": 1.0, "rho": 1.0}


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        ({"eps": 0.0}, ValueError, "eps must be .* above 0"),
        ({"rho": -1.0}, ValueError, "rho must be .* above 0"),
        ({"rho": math.inf}, ValueError, "rho must be a finite"),
        ({"divergence": "l2"}, ValueError, "divergence must be one of 'kl', 'tv'"),
        ({"tol": 0}, ValueError, "tol must be"),
        ({"max_iter": 0}, ValueError, "max_iter must be"),
        ({"a": [-0.5, 1.5]}, ValueError, r"a holds a negative mass, -0\.5"),
        ({"a": [math.nan, 1]}, ValueError, "a holds nan; masses are finite"),
        ({"b": [0.0, 0.0, 0.0]}, ValueError, "b has no mass"),
        ({"b": [0.5, 0.5]}, ValueError, r"b must have shape \(…, 3\), one mass a point"),
        ({"b": torch.ones(3)}, ValueError, r"b is float32 .* b\.to\("),
        ({"a": torch.ones(4, 2, dtype=F64)}, ValueError, r"a has batch shape \(4,\), but C has \(\)"),
        ({"C": torch.full((2, 3), math.nan)}, ValueError, "C holds NaN"),
        ({"C": torch.full((2, 3), -1e4)}, ValueError, "overflows; raise rho"),
    ],
)
def test_bad_input(bad, error, message):
    with pytest.raises(error, match=message):
        sinkhorn_unbalanced(**{**GOOD, **bad})


# Partial transport


def partial_dual(a, b, f, g, mass):
    """A lower bound of the cost for any f⊕g ≤ C."""
    pay = (a * f).sum(-1) + (b * g).sum(-1)
    return pay - (1 - mass) * (f.amax(-1) + g.amax(-1))


def certify_partial(C, a, b, result, mass, atol=1e-10):
    P = result.plan
    assert (P >= 0).all()
    assert (P.sum(-1) <= a + 1e-12).all()
    assert (P.sum(-2) <= b + 1e-12).all()
    torch.testing.assert_close(P.sum((-2, -1)), torch.full_like(result.value, mass), rtol=0, atol=1e-12)
    assert (result.f[..., :, None] + result.g[..., None, :] - C).max() <= atol
    torch.testing.assert_close(partial_dual(a, b, result.f, result.g, mass), result.value, rtol=0, atol=atol)
    torch.testing.assert_close(torch.where(P > 0, C * P, 0.0).sum((-2, -1)), result.value, rtol=0, atol=atol)
    torch.testing.assert_close(result.marginal_error, 2 * (1 - P.sum((-2, -1))), rtol=0, atol=1e-12)
    half = (a * result.f).sum(-1) - (1 - mass) * result.f.amax(-1)
    torch.testing.assert_close(half, result.value / 2, rtol=0, atol=atol)


class TestPartial:
    def test_by_hand(self):
        # The cheapest pair first: ½ at 0, then ¼ at 1, which no other pair undercuts.
        C = tensor([[0, 4], [1, 9]])
        result = partial(C, [0.5, 0.5], [0.75, 0.25], mass=0.75)
        torch.testing.assert_close(result.plan, tensor([[0.5, 0], [0.25, 0]]), rtol=0, atol=1e-12)
        torch.testing.assert_close(result.value.item(), 0.25, rtol=0, atol=1e-12)
        certify_partial(C, tensor([0.5, 0.5]), tensor([0.75, 0.25]), result, 0.75)

    @settings(max_examples=25, deadline=None)
    @given(
        n=st.integers(1, 6),
        m=st.integers(1, 6),
        seed=st.integers(0, 10**6),
        mass=st.floats(0.01, 1.0),
        whole=st.booleans(),
    )
    def test_any_problem_is_certified(self, n, m, seed, mass, whole):
        rng = problems.generator(seed)
        C = 3 * torch.randn(n, m, generator=rng, dtype=F64)
        C = C.round() if whole else C
        a = torch.randint(0, 3, (n,), generator=rng).double()
        b = torch.randint(0, 3, (m,), generator=rng).double()
        a[0] += 1
        b[-1] += 1
        a, b = a / a.sum(), b / b.sum()
        certify_partial(C, a, b, partial(C, a, b, mass=mass), mass)

    @pytest.mark.parametrize("mass", [0.2, 0.7, 1.0])
    def test_pot(self, mass):
        C, a, b = problems.random_problem(12, 9)
        plan = ot.partial.partial_wasserstein(a.numpy(), b.numpy(), C.numpy(), m=min(mass, 1 - 1e-12))
        np.testing.assert_allclose(partial(C, a, b, mass=mass).plan.numpy(), plan, rtol=0, atol=1e-10)

    def test_linear_program(self):
        C, a, b = problems.random_problem(5, 4)
        rows, columns = np.kron(np.eye(5), np.ones(4)), np.kron(np.ones(5), np.eye(4))
        answer = linprog(
            C.ravel().numpy(),
            A_ub=np.vstack([rows, columns]),
            b_ub=np.concatenate([a, b]),
            A_eq=np.ones((1, 20)),
            b_eq=[0.6],
        )
        torch.testing.assert_close(partial(C, a, b, mass=0.6).value.item(), answer.fun, rtol=0, atol=1e-10)

    def test_full_mass_is_emd(self):
        C, a, b = problems.random_problem()
        result, full = partial(C, a, b, mass=1), emd(C, a, b)
        for name in ("plan", "value", "f", "g"):
            torch.testing.assert_close(getattr(result, name), getattr(full, name), rtol=0, atol=1e-12)
        assert result.value is result.cost
        assert result.converged

    def test_invariances(self):
        def some(C, a, b):
            return partial(C, a, b, mass=0.6)

        checks.assert_permutation_equivariant(some, *problems.random_problem())
        checks.assert_transpose_symmetric(some, *problems.random_problem())

    @pytest.mark.parametrize(("unit", "constant"), [(1e-8, 0.0), (1e8, 0.0), (1.0, -50.0)])
    def test_unit_and_constant(self, unit, constant):
        C, a, b = problems.random_problem()
        result = partial(unit * C + constant, a, b, mass=0.6)
        expected = unit * partial(C, a, b, mass=0.6).value + 0.6 * constant
        torch.testing.assert_close(result.value, expected, rtol=1e-12, atol=0)

    def test_value_is_convex_in_the_mass_with_the_price_as_its_slope(self):
        C, a, b = problems.random_problem()
        value = [partial(C, a, b, mass=mass).value for mass in (0.6, 0.6001)]
        result = partial(C, a, b, mass=0.6)
        price = result.f.max() + result.g.max()
        torch.testing.assert_close((value[1] - value[0]) / 1e-4, price, rtol=1e-6, atol=0)

    def test_forbidden_pairs(self):
        C, a, b = problems.random_problem()
        C[0] = math.inf
        C[0, 0] = 9.0
        result = partial(C, a, b, mass=0.8)
        certify_partial(C, a, b, result, 0.8)
        with pytest.raises(ValueError, match=r"C forbids every plan of mass 0\.8: .*lower mass"):
            partial(
                [[1.0, math.inf], [1.0, math.inf], [math.inf, 1.0]], [0.5, 0.4, 0.1], [0.1, 0.9], mass=0.8
            )

    def test_batch_float32_and_numpy(self):
        C, a, b = problems.random_problem(batch=(3,))
        result = partial(C, a, b[0], mass=0.6)
        for k in range(3):
            one = partial(C[k].numpy(), a[k].numpy(), b[0].numpy(), mass=0.6)
            torch.testing.assert_close(result.plan[k], one.plan, rtol=0, atol=1e-12)
            torch.testing.assert_close(result.f[k], one.f, rtol=0, atol=1e-12)
        single = partial(C.float(), a.float(), b[0].float(), mass=0.6)
        assert single.plan.dtype == single.f.dtype == torch.float32
        torch.testing.assert_close(single.value, result.value.float(), rtol=0, atol=1e-5)

    def test_gradcheck(self):
        C, a, b = problems.random_problem(4, 3)
        inputs = C.requires_grad_(), a.log().requires_grad_(), b.log().requires_grad_()

        def value(C, s, t):
            return partial(C, s.softmax(0), t.softmax(0), mass=0.6).value

        assert torch.autograd.gradcheck(value, inputs)
        result = partial(C, a, b, mass=0.6)
        (gradient,) = torch.autograd.grad(result.value, C)
        torch.testing.assert_close(gradient, result.plan, rtol=0, atol=1e-14)
        a, b = a.clone().requires_grad_(), b.clone().requires_grad_()
        prices = torch.autograd.grad(partial(C, a, b, mass=0.6).value, (a, b))
        expected = result.f - result.f.max(), result.g - result.g.max()
        torch.testing.assert_close(prices, expected, rtol=0, atol=1e-12)
        assert not any(t.requires_grad for t in (result.plan, result.f, result.g, result.marginal_error))

    @pytest.mark.parametrize(
        ("bad", "message"),
        [
            ({"mass": 0}, "mass must be a finite number above 0"),
            ({"mass": 1.2}, r"mass must be at most 1, .* is 1\.2"),
            ({"mass": 0.5, "a": [0.5, 0.6]}, "a has mass"),
            ({"mass": 0.5, "b": [1.0]}, r"b must have shape \(…, 3\)"),
        ],
    )
    def test_bad_input(self, bad, message):
        with pytest.raises(ValueError, match=message):
            partial(torch.ones(2, 3, dtype=F64), **bad)
