"""Proximal points: the paper's loop and Sinkhorn as judges, the exact cost in the limit, gradients."""

from __future__ import annotations

import math
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from otbook import ConvergenceWarning, emd, sinkhorn
from otbook.entropic._proximal import ipot

from . import checks, problems

F64 = torch.float64


def tensor(rows: list) -> Tensor:
    return torch.tensor(rows, dtype=F64)


def algorithm_1(C: Tensor, a: Tensor, b: Tensor, beta: float, n_outer: int, n_inner: int) -> Tensor:
    """The loop of Xie et al. (2020) on the plan itself, in scalings, which a moderate β allows."""
    P, v = a[:, None] * b, torch.ones_like(b)
    for _ in range(n_outer):
        Q = (-C / beta).exp() * P
        for _ in range(n_inner):
            u = a / (Q @ v)
            v = b / (Q.mT @ u)
        P = u[:, None] * Q * v
    return P


class TestPlan:
    @pytest.mark.parametrize(("n_outer", "n_inner"), [(1, 1), (2, 1), (7, 1), (30, 1), (5, 3), (1, 10)])
    def test_algorithm_1(self, n_outer, n_inner):
        C, a, b = problems.random_problem(8, 5)
        result = ipot(C, a, b, beta=1.0, n_outer=n_outer, n_inner=n_inner)
        plan = algorithm_1(C, a, b, 1.0, n_outer, n_inner)
        torch.testing.assert_close(result.plan, plan, rtol=0, atol=1e-11)
        torch.testing.assert_close(result.value, (C * plan).sum(), rtol=0, atol=1e-10)
        assert result.n_iter == n_outer

    @pytest.mark.parametrize("beta", [5.0, 2.0])
    @pytest.mark.parametrize("t", [1, 2, 4])
    def test_exact_steps_are_sinkhorn_at_beta_over_t(self, beta, t):
        C, a, b = problems.random_problem(8, 5)
        result = ipot(C, a, b, beta=beta, n_outer=t, n_inner=250)
        other = sinkhorn(C, a, b, eps=beta / t, tol=1e-12)
        torch.testing.assert_close(result.plan, other.plan, rtol=0, atol=1e-8)
        torch.testing.assert_close(result.cost, other.cost, rtol=0, atol=1e-8)

    def test_one_point(self):
        C, a, b = problems.random_problem(1, 4)
        torch.testing.assert_close(ipot(C, a, b, beta=1, n_outer=1).plan, b[None], rtol=0, atol=1e-14)


class TestLimit:
    @pytest.mark.parametrize(("beta", "n_inner"), [(0.1, 10), (0.2, 3)])
    def test_planted(self, beta, n_inner):
        p = problems.planted(8, 6, empty=1)
        result = ipot(p.C, p.a, p.b, beta=beta, n_outer=3000, n_inner=n_inner, tol=1e-9)
        assert result.n_iter < 3000
        checks.assert_coupling(result.plan, p.a, p.b, atol=1e-9)
        torch.testing.assert_close(result.plan, p.plan, rtol=0, atol=1e-7)
        torch.testing.assert_close(result.value, p.value, rtol=0, atol=1e-8)
        checks.assert_dual_certificate(p.C, p.a, p.b, result.f, result.g, p.value, atol=1e-8)
        torch.testing.assert_close((p.a * result.f).sum(), (p.b * result.g).sum(), rtol=0, atol=1e-12)

    def test_more_steps_take_any_beta_to_the_limit(self):
        # Sinkhorn at ε = β would stay at its bias, the proximal steps leave it behind.
        p = problems.planted(5, 4)
        for beta in (0.3, 1.0):
            one, few, many = (
                ipot(p.C, p.a, p.b, beta=beta, n_outer=t, n_inner=3).value - p.value for t in (1, 40, 120)
            )
            assert 0 < few < one / 10
            assert abs(many) < few / 10

    @settings(max_examples=8, deadline=None)
    @given(
        n=st.integers(1, 9),
        m=st.integers(1, 9),
        log_beta=st.floats(-10, 3),
        n_outer=st.integers(1, 20),
        scale=st.sampled_from([1e-8, 1.0, 1e8]),
        seed=st.integers(0, 10**6),
    )
    def test_property(self, n, m, log_beta, n_outer, scale, seed):
        C, a, b = problems.random_problem(n, m, seed=seed)
        a[0] = 0 if n > 1 else 1
        a, C = a / a.sum(), scale * C
        result = ipot(C, a, b, beta=scale * math.exp(log_beta), n_outer=n_outer)
        P = result.plan
        torch.testing.assert_close(P.sum(-2), b, rtol=0, atol=1e-12)
        error = (P.sum(-1) - a).abs().sum() + (P.sum(-2) - b).abs().sum()
        torch.testing.assert_close(result.marginal_error, error, rtol=0, atol=1e-12)
        # The potentials bound the exact cost from below, converged or not.
        assert (result.f[:, None] + result.g - C).max() <= 1e-12 * C.max()
        bound = (a * result.f).sum() + (b * result.g).sum()
        assert bound <= emd(C, a, b).value + 1e-12 * C.max()


class TestStable:
    @pytest.mark.parametrize("beta", [1e-2, 1e-4, 1e-6])
    def test_small_beta(self, beta):
        C, a, b = problems.random_problem(30, 20)
        result = ipot(C / C.max(), a, b, beta=beta, n_outer=20, n_inner=5)
        for t in (result.plan, result.f, result.g, result.value):
            assert torch.isfinite(t).all()
        torch.testing.assert_close(result.plan.sum(-2), b, rtol=0, atol=1e-12)

    def test_zero_weights(self):
        C, a, b = problems.random_problem(6, 5)
        a[1], b[3] = 0, 0
        a, b = a / a.sum(), b / b.sum()
        i, j = a > 0, b > 0
        result = ipot(C, a, b, beta=1.0, n_outer=8)
        small = ipot(C[i][:, j], a[i], b[j], beta=1.0, n_outer=8)
        torch.testing.assert_close(result.plan[i][:, j], small.plan, rtol=0, atol=1e-12)
        assert (result.plan[1] == 0).all()
        assert (result.plan[:, 3] == 0).all()
        assert (result.f[:, None] + result.g <= C + 1e-12).all()

    def test_forbidden_pairs(self):
        C = tensor([[1, math.inf, 0.5], [0, 1, 2]])
        result = ipot(C, beta=0.2, n_outer=500, tol=1e-9)
        assert result.plan[0, 1] == 0
        torch.testing.assert_close(result.value, emd(C).value, rtol=0, atol=1e-8)

    def test_empty_column_of_forbidden_pairs(self):
        # Column 1 is open only to row 0, which has no mass; nor has the column.
        C = tensor([[1, 2, 0], [0, math.inf, 1], [2, math.inf, 1]])
        a, b = tensor([0, 0.5, 0.5]), tensor([0.4, 0, 0.6])
        result = ipot(C, a, b, beta=0.2, n_outer=500, tol=1e-9)
        checks.assert_dual_certificate(C, a, b, result.f, result.g, emd(C, a, b).value, atol=1e-8)

    def test_constant_cost(self):
        C, a, b = problems.random_problem()
        result = ipot(torch.full_like(C, 3.0), a, b, beta=1.0, n_outer=1, tol=1e-10)
        torch.testing.assert_close(result.plan, a[:, None] * b, rtol=0, atol=1e-14)

    def test_float32(self):
        C, a, b = problems.random_problem(20, 30)
        result = ipot(C.float(), a.float(), b.float(), beta=1.0, n_outer=50)
        reference = ipot(C, a, b, beta=1.0, n_outer=50)
        for name in ("plan", "value", "cost", "f", "g"):
            assert getattr(result, name).dtype == torch.float32
            torch.testing.assert_close(
                getattr(result, name).double(), getattr(reference, name), rtol=0, atol=1e-4
            )

    def test_batch_is_the_loop(self):
        C, a, b = problems.random_problem(5, 4, batch=(2, 2))
        result = ipot(C, a, b, beta=1.0, n_outer=9, n_inner=2)
        assert result.value.shape == (2, 2)
        for k in np.ndindex(2, 2):
            one = ipot(C[k], a[k], b[k], beta=1.0, n_outer=9, n_inner=2)
            for name in ("plan", "value", "f", "g", "marginal_error"):
                torch.testing.assert_close(getattr(result, name)[k], getattr(one, name), rtol=0, atol=1e-11)

    def test_numpy_and_default_weights(self):
        C = problems.random_problem()[0]
        uniform = torch.full((7,), 1 / 7, dtype=F64), torch.full((5,), 0.2, dtype=F64)
        one, two = ipot(C.numpy(), beta=1, n_outer=3), ipot(C, *uniform, beta=1, n_outer=3)
        torch.testing.assert_close(one.value, two.value, rtol=0, atol=1e-12)


class TestInvariances:
    def test_permutation_and_shift(self):
        C, a, b = problems.random_problem()
        solve = partial(ipot, beta=1.0, n_outer=3, n_inner=100)
        checks.assert_permutation_equivariant(solve, C, a, b)
        checks.assert_transpose_symmetric(solve, C, a, b)
        checks.assert_shift_invariant(solve, C, a, b)

    @pytest.mark.parametrize("scale", [1e-8, 1e8])
    def test_scaling(self, scale):
        C, a, b = problems.random_problem()
        before = ipot(C, a, b, beta=1.0, n_outer=6)
        after = ipot(scale * C, a, b, beta=scale, n_outer=6)
        torch.testing.assert_close(after.plan, before.plan, rtol=0, atol=1e-11)


class TestGradients:
    def test_gradcheck(self):
        p = problems.planted(3, 2)
        s = p.a.log().requires_grad_()
        value = partial(ipot, beta=0.1, n_outer=2000, n_inner=3, tol=1e-11)
        assert torch.autograd.gradcheck(
            lambda C, s: value(C, s.softmax(0), p.b).value, (p.C.requires_grad_(), s)
        )

    def test_equals_the_exact_gradient(self):
        p = problems.planted(5, 4)
        C, a, b = (x.requires_grad_() for x in (p.C, p.a, p.b))
        solved = ipot(C, a, b, beta=0.1, n_outer=2000, n_inner=3, tol=1e-11)
        gradients = torch.autograd.grad(solved.value, (C, a, b))
        for got, want in zip(gradients, torch.autograd.grad(emd(C, a, b).value, (C, a, b)), strict=True):
            shift = 0 if got.ndim == 2 else (got - want)[0]  # potentials, up to a constant
            torch.testing.assert_close(got - shift, want, rtol=0, atol=1e-8)

    def test_no_gradient_before_convergence(self):
        C, a, b = problems.random_problem()
        result = ipot(C.requires_grad_(), a, b, beta=1.0, n_outer=3)
        assert not result.converged
        with pytest.raises(RuntimeError, match="ipot has not converged.*hold the plan fixed"):
            result.value.backward()

    def test_no_second_derivative_is_made_up(self):
        p = problems.planted(3, 2)
        result = ipot(p.C.requires_grad_(), p.a, p.b, beta=0.1, n_outer=500, n_inner=3)
        (gradient,) = torch.autograd.grad(result.value, p.C, create_graph=True)
        with pytest.raises(NotImplementedError, match="differentiated once"):
            (gradient.square().sum() + p.C.square().sum()).backward()

    def test_the_rest_is_detached(self):
        C, a, b = problems.random_problem()
        result = ipot(C.requires_grad_(), a, b, beta=1.0, n_outer=3)
        for t in (result.cost, result.plan, result.f, result.g):
            assert not t.requires_grad


class TestDiagnostics:
    def test_not_converged(self):
        C, a, b = problems.random_problem()
        with pytest.warns(ConvergenceWarning, match=r"after 3 steps .* raise n_outer"):
            result = ipot(C, a, b, beta=1.0, n_outer=3, tol=1e-8)
        assert not result.converged

    def test_a_fixed_number_of_steps_is_what_was_asked_for(self):
        C, a, b = problems.random_problem()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert not ipot(C, a, b, beta=1.0, n_outer=3).converged
            assert ipot(C, a, b, beta=1.0, n_outer=1000).converged

    def test_stalled_rows_are_not_converged(self):
        # The gap alone may look small while the rows are wrong.
        C, a, b = problems.random_problem()
        result = ipot(C, a, b, beta=0.1, n_outer=200)
        assert result.marginal_error > 1e-4
        assert not result.converged


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        ({"beta": 0}, ValueError, "beta must be a finite number above 0"),
        ({"n_outer": 0}, ValueError, "n_outer must be a whole number of at least 1"),
        ({"n_inner": 1.5}, ValueError, "n_inner must be a whole number of at least 1, but is 1.5"),
        ({"tol": 0}, ValueError, "tol must be a finite number above 0"),
        ({"a": [0.5, 0.6]}, ValueError, "a has mass 1.1, not 1"),
        ({"b": [0.5, 0.2, 0.3]}, ValueError, r"b must have shape \(…, 2\)"),
        ({"C": [[math.inf, math.inf], [0.0, 1.0]]}, ValueError, "infinite cost in all of row 0"),
    ],
)
def test_bad_input(bad, error, message):
    with pytest.raises(error, match=message):
        ipot(**({"C": [[0.0, 1.0], [1.0, 0.0]], "beta": 1.0, "n_outer": 5} | bad))
