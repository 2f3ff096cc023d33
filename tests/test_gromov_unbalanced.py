"""Unbalanced Gromov–Wasserstein: the objective by its definition, stationarity, limits, POT, gradients."""

from __future__ import annotations

import itertools
import math
from functools import partial

import numpy as np
import ot
import pytest
import torch
from torch import Tensor

from otbook import ConvergenceWarning
from otbook.gromov import entropic_gromov_wasserstein, unbalanced_gromov_wasserstein

from . import problems
from .test_gromov import asymmetric, distances, instance, naive_gradient, naive_value

F64 = torch.float64


def unequal(make=distances, *, seed: int = 0) -> tuple[Tensor, ...]:
    """Spaces of masses 1.3 and 0.8."""
    Cx, Cy, a, b = instance(make=make, seed=seed)
    return Cx, Cy, 1.3 * a, 0.8 * b


def quadratic_kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p⊗p ‖ q⊗q), term by term."""
    p, q = p.flatten(), q.flatten()
    pp, qq = p[:, None] * p, q[:, None] * q
    return (torch.xlogy(pp, pp / torch.where(qq > 0, qq, 1.0)) - pp + qq).sum()


def objective(Cx, Cy, a, b, P, *, eps, rho) -> Tensor:
    marginals = quadratic_kl(P.sum(1), a) + quadratic_kl(P.sum(0), b)
    return naive_value(Cx, Cy, P) + rho * marginals + eps * quadratic_kl(P, a[:, None] * b)


solve = partial(unbalanced_gromov_wasserstein, eps=0.2, tol=1e-10)


class TestCertificate:
    @pytest.mark.parametrize("make", [distances, asymmetric])
    @pytest.mark.parametrize("rho", [0.5, 5.0])
    def test_value_and_stationarity(self, make, rho):
        Cx, Cy, a, b = unequal(make)
        result = solve(Cx, Cy, a, b, rho=rho)
        assert result.converged
        P = result.plan.clone().requires_grad_()
        F = objective(Cx, Cy, a, b, P, eps=0.2, rho=rho)
        torch.testing.assert_close(result.value, F.detach(), rtol=0, atol=1e-9)
        torch.testing.assert_close(result.cost, naive_value(Cx, Cy, result.plan), rtol=0, atol=1e-9)
        # P > 0, so that the derivative vanishes; in the logarithm of P, whose metric counts.
        (gradient,) = torch.autograd.grad(F, P)
        assert (gradient * result.plan).abs().sum() < 1e-8
        assert (gradient * result.plan.sqrt()).abs().max() < 1e-8

    def test_potentials(self):
        Cx, Cy, a, b = unequal()
        result = solve(Cx, Cy, a, b, rho=0.5)
        P, f, g = result.plan, result.f, result.g
        torch.testing.assert_close(P.sum(1), a * (-f / 0.5).exp(), rtol=0, atol=1e-9)
        torch.testing.assert_close(P.sum(0), b * (-g / 0.5).exp(), rtol=0, atol=1e-9)
        c = naive_gradient(Cx, Cy, P) / (2 * P.sum())
        factor = P / (a[:, None] * b * ((f[:, None] + g - c) / 0.2).exp())
        torch.testing.assert_close(factor, factor[0, 0].expand(7, 5), rtol=1e-6, atol=0)
        left = (P.sum(1) - a).abs().sum() + (P.sum(0) - b).abs().sum()
        torch.testing.assert_close(result.marginal_error, left, rtol=0, atol=1e-12)
        assert left > 0.1

    def test_no_nearby_plan_is_better(self):
        Cx, Cy, a, b = unequal()
        result = solve(Cx, Cy, a, b, rho=0.5)
        rng = problems.generator(0)
        for _ in range(20):
            change = 0.02 * torch.randn(7, 5, generator=rng, dtype=F64)
            other = objective(Cx, Cy, a, b, result.plan * change.exp(), eps=0.2, rho=0.5)
            assert other > result.value


class TestLimits:
    def test_one_point_each(self):
        # E = d² m², and with masses 1 all KL⊗ are s log s − s + 1 for s = m²: s = exp(−d²/(2ρ + ε)).
        eps, rho, d = 0.3, 0.7, 1.1
        result = unbalanced_gromov_wasserstein([[0.0]], [[d]], eps=eps, rho=rho, tol=1e-5)
        s = math.exp(-(d**2) / (2 * rho + eps))
        assert abs(result.plan.item() ** 2 - s) < 1e-6
        assert abs(result.value.item() - (2 * rho + eps) * (1 - s)) < 1e-6

    def test_balanced(self):
        Cx, Cy, a, b = instance(make=distances)
        balanced = entropic_gromov_wasserstein(Cx, Cy, a, b, eps=0.4, tol=1e-10)
        gaps = []
        for rho in (1e2, 1e3):
            result = solve(Cx, Cy, a, b, rho=rho)
            gaps.append((result.plan - balanced.plan).abs().sum().item())
            assert result.value <= balanced.value + 1e-9  # the balanced plan is one of the candidates
        orders = [math.log10(x / y) for x, y in itertools.pairwise(gaps)]
        assert all(0.9 < order < 1.1 for order in orders), orders

    def test_a_far_point_is_left_alone(self):
        x = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0], [9.0, 9.0]], dtype=F64)
        C = torch.cdist(x, x)
        b = torch.ones(4, dtype=F64)
        result = unbalanced_gromov_wasserstein(C[:3, :3], C, b[:3], b, eps=0.01, rho=1.0)
        assert (result.plan[:, 3] < 1e-6).all()
        torch.testing.assert_close(result.plan[:, :3], torch.eye(3, dtype=F64), rtol=0, atol=1e-2)

    def test_large_costs_leave_no_mass(self):
        result = unbalanced_gromov_wasserstein(distances(4) * 100, distances(3), eps=0.5, rho=0.5, tol=1e-4)
        assert torch.isfinite(result.value)
        assert 0 <= result.plan.sum() < 1
        assert abs(result.value.item() - (0.5 * 2 + 0.5 - 1.5 * result.plan.sum().item() ** 2)) < 1e-12


class TestIndependentSolver:
    @pytest.mark.parametrize("rho", [0.5, 5.0])
    def test_pot(self, rho):
        # On Euclidean distances POT's two plans become one.
        arrays = [t.numpy() for t in unequal()]
        first, second = ot.gromov.fused_unbalanced_gromov_wasserstein(
            *arrays,
            reg_marginals=rho,
            epsilon=0.2,
            unbalanced_solver="sinkhorn_log",
            max_iter=100,
            tol=1e-10,
            max_iter_ot=2000,
            tol_ot=1e-11,
        )
        np.testing.assert_allclose(first, second, rtol=0, atol=1e-9)
        np.testing.assert_allclose(solve(*arrays, rho=rho).plan.numpy(), first, rtol=0, atol=1e-8)


class TestInvariance:
    def test_permutation_and_exchange(self):
        Cx, Cy, a, b = unequal(asymmetric)
        before = solve(Cx, Cy, a, b, rho=1.0)
        s = torch.randperm(7, generator=problems.generator(1))
        after, back = solve(Cx[s][:, s], Cy, a[s], b, rho=1.0), solve(Cy, Cx, b, a, rho=1.0)
        torch.testing.assert_close(after.plan, before.plan[s], rtol=0, atol=1e-8)
        torch.testing.assert_close(back.plan, before.plan.T, rtol=0, atol=1e-8)

    def test_the_unit_of_mass_does_not_matter(self):
        Cx, Cy, a, b = unequal()
        before, after = solve(Cx, Cy, a, b, rho=1.0), solve(Cx, Cy, 9 * a, 4 * b, rho=1.0)
        shape = before.plan / before.plan.sum()
        torch.testing.assert_close(after.plan / after.plan.sum(), shape, rtol=0, atol=1e-9)

    @pytest.mark.parametrize("unit", [1e-4, 1e4])
    def test_the_unit_of_costs(self, unit):
        Cx, Cy, a, b = unequal()
        before = solve(Cx, Cy, a, b, rho=1.0)
        after = unbalanced_gromov_wasserstein(
            unit * Cx, unit * Cy, a, b, eps=0.2 * unit**2, rho=unit**2, tol=1e-10
        )
        torch.testing.assert_close(after.plan, before.plan, rtol=0, atol=1e-8)

    def test_zero_masses(self):
        Cx, Cy, a, b = unequal()
        a[2], b[0] = 0, 0
        rows, columns = a > 0, b > 0
        small = solve(Cx[rows][:, rows], Cy[columns][:, columns], a[rows], b[columns], rho=1.0)
        full = solve(Cx, Cy, a, b, rho=1.0)
        torch.testing.assert_close(full.plan[rows][:, columns], small.plan, rtol=0, atol=1e-8)
        assert full.plan.sum() == pytest.approx(small.plan.sum().item(), abs=1e-8)
        assert torch.isfinite(full.f).all()


class TestGradients:
    def test_gradcheck(self):
        Cx, Cy, a, b = unequal(asymmetric)
        inputs = [t.clone().requires_grad_() for t in (Cx[:4, :4], Cy[:3, :3], a[:4], b[:3])]

        def value(*inputs):
            return unbalanced_gromov_wasserstein(*inputs, eps=0.4, rho=0.7, tol=1e-9).value

        assert torch.autograd.gradcheck(value, inputs, atol=1e-6)

    def test_zero_masses(self):
        # The derivative at mass 0 is that of a little mass.
        Cx, Cy, a, b = unequal()
        a = torch.cat([a[:3], a.new_zeros(1)]).requires_grad_()
        value = partial(unbalanced_gromov_wasserstein, Cx[:4, :4], Cy[:3, :3], eps=0.4, rho=0.7, tol=1e-10)
        (gradient,) = torch.autograd.grad(value(a, b[:3]).value, a)
        more = a.detach().clone()
        more[3] = 1e-5
        slope = (value(more, b[:3]).value - value(a, b[:3]).value).item() / 1e-5
        assert abs(gradient[3].item() - slope) < 1e-3

    def test_once(self):
        Cx, Cy, a, b = unequal()
        Cx.requires_grad_()
        (gradient,) = torch.autograd.grad(solve(Cx, Cy, a, b, rho=1.0).value, Cx, create_graph=True)
        with pytest.raises(NotImplementedError, match="unbalanced_gromov_wasserstein can be diff"):
            gradient.sum().backward()


class TestInput:
    def test_float32(self):
        inputs = unequal()
        low = unbalanced_gromov_wasserstein(*(t.float() for t in inputs), eps=0.2, rho=1.0)
        assert {t.dtype for t in (low.value, low.cost, low.plan, low.f, low.g)} == {torch.float32}
        torch.testing.assert_close(low.plan.double(), solve(*inputs, rho=1.0).plan, rtol=0, atol=1e-5)

    def test_restarts_leave_the_saddle(self):
        # In a cycle all points look alike, so that a⊗b is stationary.
        C = torch.tensor([[0.0, 1, 2, 1], [1, 0, 1, 2], [2, 1, 0, 1], [1, 2, 1, 0]], dtype=F64)
        options = {"eps": 0.02, "rho": 1.0}
        first = unbalanced_gromov_wasserstein(C, C, **options)
        best = unbalanced_gromov_wasserstein(C, C, **options, n_restarts=4, generator=problems.generator(0))
        assert best.value < first.value - 0.1

    def test_stopped_early(self):
        with pytest.warns(ConvergenceWarning, match="raise max_iter"):
            assert not solve(*unequal(), rho=1.0, max_iter=2).converged

    @pytest.mark.parametrize(
        ("bad", "message"),
        [
            ({"eps": 0}, "eps must be"),
            ({"rho": -1}, "rho must be"),
            ({"a": [0.0, 0.0]}, "a has mass 0; give"),
            ({"a": [math.inf, 1.0]}, "a has mass inf; give"),
            ({"a": [-1.0, 3.0]}, "a holds a negative"),
            ({"b": [1.0, 1.0]}, r"b must have shape \(…, 3\)"),
        ],
    )
    def test_bad_input(self, bad, message):
        good = {"Cx": torch.eye(2), "Cy": torch.eye(3), "eps": 1.0, "rho": 1.0}
        with pytest.raises(ValueError, match=message):
            unbalanced_gromov_wasserstein(**{**good, **bad})
