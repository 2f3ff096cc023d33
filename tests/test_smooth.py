"""Smoothed transport: closed forms, the duality gap, Sinkhorn and POT as judges, gradients, invariances."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import ot.smooth
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from otbook import ConvergenceWarning, OTResult, emd, sinkhorn
from otbook.entropic import _smooth_dual, smooth_ot

from . import checks, problems

F64 = torch.float64

every_form = pytest.mark.parametrize(
    ("regulariser", "semi"), [("l2", False), ("l2", True), ("entropy", False), ("entropy", True)]
)


def tensor(rows: list) -> Tensor:
    return torch.tensor(rows, dtype=F64)


def solve(C, a=None, b=None, *, gamma=0.5, tol=1e-12, **options) -> OTResult:
    return smooth_ot(C, a, b, gamma=gamma, tol=tol, **options)


def two_by_two(C: Tensor, a: Tensor, b: Tensor, gamma: float) -> Tensor:
    """The plan for the squared norm between two pairs of points.

    P = [[p, a₀−p], [b₀−p, p + 1 − a₀ − b₀]], and with κ = C₀₀ − C₀₁ − C₁₀ + C₁₁ the derivative of the
    objective in p is κ + γ(p − (a₀−p) − (b₀−p) + (p + 1 − a₀ − b₀)). A parabola has its minimum on
    an interval at its vertex, clipped.
    """
    a0, b0 = a[0].item(), b[0].item()
    kappa = (C[0, 0] - C[0, 1] - C[1, 0] + C[1, 1]).item()
    p = (2 * a0 + 2 * b0 - 1 - kappa / gamma) / 4
    p = min(max(p, 0.0, a0 + b0 - 1), a0, b0)
    return tensor([[p, a0 - p], [b0 - p, p + 1 - a0 - b0]])


def penalty(P: Tensor, a: Tensor, b: Tensor, regulariser: str) -> Tensor:
    if regulariser == "l2":
        return P.square().sum((-2, -1)) / 2
    ab = a[..., :, None] * b[..., None, :]
    return torch.where(P > 0, P * (P / ab).log(), 0.0).sum((-2, -1))


def dual_value(
    C: Tensor, a: Tensor, b: Tensor, f: Tensor, g: Tensor, gamma: float, regulariser: str
) -> Tensor:
    """The dual objective of any f and g, at most the value."""
    x = f[..., :, None] + g[..., None, :] - C
    if regulariser == "l2":
        psi = x.clamp(min=0).square() / (2 * gamma)
    else:
        psi = gamma * a[..., :, None] * b[..., None, :] * ((x / gamma).exp() - 1)
    return (a * f).sum(-1) + (b * g).sum(-1) - psi.sum((-2, -1))


class TestClosedForms:
    @pytest.mark.parametrize("semi", [False, True])
    @pytest.mark.parametrize("gamma", [30.0, 3.0, 0.3, 0.01])
    def test_two_by_two(self, gamma, semi):
        for seed in range(2):
            C, a, b = problems.random_problem(2, 2, seed=seed)
            plan = solve(C, a, b, gamma=gamma, semi=semi).plan
            torch.testing.assert_close(plan, two_by_two(C, a, b, gamma), rtol=0, atol=1e-10)

    def test_two_by_two_covers_vertex_and_both_ends(self):
        a, b = tensor([0.5, 0.5]), tensor([0.3, 0.7])
        expected = {-4.0: 0.3, -0.4: 0.25, 4.0: 0.0}
        for kappa, p in expected.items():
            C = tensor([[kappa, 0], [0, 0]])
            assert abs(two_by_two(C, a, b, 1.0)[0, 0].item() - p) < 1e-15
            assert abs(solve(C, a, b, gamma=1.0).plan[0, 0].item() - p) < 1e-12

    @pytest.mark.parametrize("semi", [False, True])
    def test_planted_squared_norm(self, semi):
        # C = f⊕g − γP on the support of P, anything above f⊕g elsewhere.
        rng = problems.generator(4)
        P = torch.rand(6, 9, generator=rng, dtype=F64) * (torch.rand(6, 9, generator=rng) < 0.5)
        P = (P + 0.3 * torch.eye(6, 9, dtype=F64) + 0.1 * torch.eye(6, 9, dtype=F64).flip(1)) / 10
        P = P / P.sum()
        a, b = P.sum(1), P.sum(0)
        f, g = torch.randn(6, generator=rng, dtype=F64), torch.randn(9, generator=rng, dtype=F64)
        slack = torch.rand(6, 9, generator=rng, dtype=F64) + 0.1
        C = f[:, None] + g - torch.where(P > 0, 2.0 * P, -slack)
        result = solve(C, a, b, gamma=2.0, semi=semi)
        torch.testing.assert_close(result.plan, P, rtol=0, atol=1e-11)
        torch.testing.assert_close(result.value, (C * P).sum() + P.square().sum(), rtol=0, atol=1e-10)
        assert torch.equal(result.plan > 0, P > 0), "the zeros of the plan are not exact"

    def test_large_gamma(self):
        # Only Ω counts: the projection of 0 on the couplings has the form u⊕v.
        C = problems.random_problem(5, 4)[0]
        a, b = tensor([0.3, 0.1, 0.2, 0.2, 0.2]), tensor([0.2, 0.25, 0.25, 0.3])
        plan = a[:, None] / 4 + b / 5 - 1 / 20
        assert plan.min() > 0
        result = solve(C, a, b, gamma=1e9)
        torch.testing.assert_close(result.plan, plan, rtol=0, atol=1e-8)


class TestCertificate:
    @every_form
    @pytest.mark.parametrize("gamma", [20.0, 1.0, 0.02])
    def test_duality_gap(self, regulariser, semi, gamma):
        C, a, b = problems.random_problem(12, 17)
        result = solve(C, a, b, gamma=gamma, regulariser=regulariser, semi=semi, tol=1e-11)
        P = result.plan
        checks.assert_coupling(P, a, b, atol=1e-11)
        torch.testing.assert_close(result.cost, (C * P).sum(), rtol=0, atol=1e-12)
        primal = (C * P).sum() + gamma * penalty(P, a, b, regulariser)
        torch.testing.assert_close(result.value, primal, rtol=0, atol=1e-10)
        dual = dual_value(C, a, b, result.f, result.g, gamma, regulariser)
        torch.testing.assert_close(dual, primal, rtol=0, atol=1e-9)
        torch.testing.assert_close((a * result.f).sum(), (b * result.g).sum(), rtol=0, atol=1e-12)

    @settings(max_examples=10, deadline=None)
    @given(
        n=st.integers(1, 9),
        m=st.integers(1, 9),
        log_gamma=st.floats(-8, 5),
        scale=st.sampled_from([1e-3, 1.0, 1e4]),
        semi=st.booleans(),
        seed=st.integers(0, 10**6),
    )
    def test_property(self, n, m, log_gamma, scale, semi, seed):
        C, a, b = problems.random_problem(n, m, seed=seed)
        a[0] = 0 if n > 1 else 1
        a = a / a.sum()
        gamma = scale * math.exp(log_gamma)
        result = smooth_ot(scale * C, a, b, gamma=gamma, semi=semi)
        assert result.converged
        checks.assert_coupling(result.plan, a, b, atol=1e-6)
        dual = dual_value(scale * C, a, b, result.f, result.g, gamma, "l2")
        size = max(result.f.abs().max().item(), result.g.abs().max().item(), 1e-300)
        assert abs((result.value - dual).item()) <= 2e-6 * size

    def test_the_squared_norm_is_sparse(self):
        C, a, b = problems.random_problem(30, 40)
        support = [
            int((solve(C, a, b, gamma=gamma, tol=1e-8).plan > 0).sum()) for gamma in (100.0, 1.0, 1e-3)
        ]
        # An extreme coupling has at most n + m − 1 entries.
        assert 1200 > support[0] > support[1] > support[2]
        assert support[2] <= 69
        assert (solve(C, a, b, gamma=1.0, regulariser="entropy").plan > 0).all()

    def test_semi_dual_has_exact_rows_at_any_time(self):
        C, a, b = problems.random_problem(12, 17)
        with pytest.warns(ConvergenceWarning):
            result = smooth_ot(C, a, b, gamma=0.1, semi=True, max_iter=3)
        # An entry of the plan is a positive part of (f + g − C)/γ, whose terms are rounded by u C/γ.
        rounding = torch.finfo(C.dtype).eps * C.max().item() / 0.1
        torch.testing.assert_close(result.plan.sum(-1), a, rtol=0, atol=4 * rounding)


class TestAgainstOtherSolvers:
    @pytest.mark.parametrize("semi", [False, True])
    @pytest.mark.parametrize("gamma", [2.0, 0.1, 0.005])
    def test_entropy_is_sinkhorn(self, gamma, semi):
        C, a, b = problems.random_problem(8, 11)
        result = solve(C, a, b, gamma=gamma, regulariser="entropy", semi=semi)
        other = sinkhorn(C, a, b, eps=gamma, tol=1e-12)
        for name in ("plan", "value", "cost", "f", "g"):
            torch.testing.assert_close(getattr(result, name), getattr(other, name), rtol=0, atol=1e-10)

    @pytest.mark.parametrize(("regulariser", "name"), [("l2", "l2"), ("entropy", "kl")])
    @pytest.mark.parametrize("solver", [ot.smooth.smooth_ot_dual, ot.smooth.smooth_ot_semi_dual])
    def test_pot(self, regulariser, name, solver):
        # POT's entropy is not relative to a⊗b: another objective, but the same plan.
        C, a, b = problems.random_problem(7, 5)
        plan = solver(a.numpy(), b.numpy(), C.numpy(), 1.0, reg_type=name, stopThr=1e-12, numItermax=5000)
        result = solve(C, a, b, gamma=1.0, regulariser=regulariser)
        # L-BFGS stops where its objective no longer changes, with a plan good to the root of that.
        np.testing.assert_allclose(result.plan, plan, rtol=0, atol=1e-6)
        if regulariser == "l2":
            np.testing.assert_allclose(result.cost, (C.numpy() * plan).sum(), rtol=0, atol=1e-5)

    @every_form
    def test_small_gamma_is_exact(self, regulariser, semi):
        p = problems.planted(8, 6, empty=1)
        form = {"regulariser": regulariser, "semi": semi}
        result = smooth_ot(p.C, p.a, p.b, gamma=1e-3, tol=1e-9, **form)
        torch.testing.assert_close(result.plan, p.plan, rtol=0, atol=1e-8)
        torch.testing.assert_close(result.cost, p.value, rtol=0, atol=1e-8)
        # The excess is γΩ of the exact plan.
        excess = 1e-3 * penalty(p.plan, p.a, p.b, regulariser)
        torch.testing.assert_close(result.value - p.value, excess, rtol=0, atol=1e-8)

    def test_two_hundred_points_at_tiny_gamma(self):
        C, a, b = problems.random_problem(60, 50)
        result = smooth_ot(C / C.max(), a, b, gamma=1e-5)
        assert result.converged
        exact = emd(C / C.max(), a, b).value
        assert -1e-6 <= (result.value - exact).item() <= 1e-5

    @pytest.mark.parametrize("unit", [1.0, 1e6, 1e-6])
    def test_a_target_far_from_where_it_gets_mass(self, unit):
        # Its potential rises by thousands of γ, along which the dual is linear: first it only draws on a
        # source that has none.
        C = unit * tensor([[0.5432, 0.8148, 0.1862], [0.6087, 0.8389, 0.8605]])
        a, b = tensor([0, 1]), tensor([0.157, 0.843 - 4.66e-7, 4.66e-7])
        result = smooth_ot(C, a, b, gamma=2.87e-6 * unit)
        assert result.converged
        assert result.n_iter < 100
        torch.testing.assert_close(result.plan, a[:, None] * b, rtol=0, atol=1e-6)


class TestInvariances:
    @every_form
    def test_permutation_transpose_and_shift(self, regulariser, semi):
        C, a, b = problems.random_problem()
        form = partial(solve, regulariser=regulariser, semi=semi)
        checks.assert_permutation_equivariant(form, C, a, b)
        checks.assert_transpose_symmetric(form, C, a, b)
        checks.assert_shift_invariant(form, C, a, b)

    @pytest.mark.parametrize("scale", [1e-8, 1e8])
    def test_scaling(self, scale):
        C, a, b = problems.random_problem()
        before, after = solve(C, a, b), solve(scale * C, a, b, gamma=0.5 * scale)
        torch.testing.assert_close(after.plan, before.plan, rtol=0, atol=1e-11)
        torch.testing.assert_close(after.value / scale, before.value, rtol=0, atol=1e-10)


class TestWeightsDtypesBatches:
    @every_form
    def test_zero_weights(self, regulariser, semi):
        C, a, b = problems.random_problem(6, 5)
        a[1], b[3] = 0, 0
        a, b = a / a.sum(), b / b.sum()
        result = solve(C, a, b, regulariser=regulariser, semi=semi)
        i, j = a > 0, b > 0
        small = solve(C[i][:, j], a[i], b[j], regulariser=regulariser, semi=semi)
        torch.testing.assert_close(result.plan[i][:, j], small.plan, rtol=0, atol=1e-11)
        torch.testing.assert_close(result.value, small.value, rtol=0, atol=1e-10)
        assert (result.plan[1] == 0).all()
        if regulariser == "l2":
            # The potential of an empty atom is its c-transform, the most that mass there may cost.
            torch.testing.assert_close(result.f[1], (C[1] - result.g)[j].min(), rtol=0, atol=1e-12)
        assert (result.plan[:, 3] == 0).all()

    @every_form
    def test_batch_is_the_loop(self, regulariser, semi):
        C, a, b = problems.random_problem(5, 4, batch=(2, 2))
        result = solve(C, a, b, regulariser=regulariser, semi=semi)
        assert result.value.shape == (2, 2)
        for k in np.ndindex(2, 2):
            one = solve(C[k], a[k], b[k], regulariser=regulariser, semi=semi)
            torch.testing.assert_close(result.plan[k], one.plan, rtol=0, atol=1e-10)
            torch.testing.assert_close(result.value[k], one.value, rtol=0, atol=1e-10)
            torch.testing.assert_close(result.f[k], one.f, rtol=0, atol=1e-9)

    @every_form
    def test_float32(self, regulariser, semi):
        C, a, b = problems.random_problem(20, 30)
        result = smooth_ot(C.float(), a.float(), b.float(), gamma=0.3, regulariser=regulariser, semi=semi)
        reference = solve(C, a, b, gamma=0.3, regulariser=regulariser)
        assert result.converged
        for name in ("plan", "value", "cost", "f", "g"):
            got = getattr(result, name)
            assert got.dtype == torch.float32
            torch.testing.assert_close(got.double(), getattr(reference, name), rtol=0, atol=1e-4)

    @every_form
    def test_forbidden_pairs(self, regulariser, semi):
        C = tensor([[1, math.inf, 0.5], [0, 1, 2]])
        result = solve(C, regulariser=regulariser, semi=semi)
        price = solve(C.clamp(max=1e3), regulariser=regulariser, semi=semi)
        assert result.plan[0, 1] == 0
        torch.testing.assert_close(result.plan, price.plan, rtol=0, atol=1e-10)
        torch.testing.assert_close(result.value, price.value, rtol=0, atol=1e-10)

    def test_numpy_and_default_weights(self):
        C = problems.random_problem()[0]
        uniform = solve(C, torch.full((7,), 1 / 7, dtype=F64), torch.full((5,), 0.2, dtype=F64))
        torch.testing.assert_close(solve(C.numpy()).value, uniform.value, rtol=0, atol=1e-12)

    def test_one_point(self):
        C, a, b = problems.random_problem(1, 4)
        torch.testing.assert_close(solve(C, a, b).plan, b[None], rtol=0, atol=1e-12)


class TestGradients:
    @every_form
    def test_gradcheck(self, regulariser, semi):
        C, a, b = problems.random_problem(2, 3)
        b[2] = 0
        b = b / b.sum()
        value = lambda C, s: solve(C, s.softmax(0), b, regulariser=regulariser, semi=semi).value  # noqa: E731
        s = a.log()
        assert torch.autograd.gradcheck(value, (C.requires_grad_(), s.requires_grad_()))
        other = lambda s: solve(C.detach().mT, b, s.softmax(0), regulariser=regulariser, semi=semi).value  # noqa: E731
        assert torch.autograd.gradcheck(other, s)

    def test_gradient_at_a_zero_weight(self):
        # One-sided: mass moved to an empty atom changes the value by its potential.
        C, a, b = problems.random_problem(4, 6)
        b[2] = 0
        b = (b / b.sum()).requires_grad_()
        result = solve(C, a, b)
        (gradient,) = torch.autograd.grad(result.value, b)
        h = 1e-6
        moved = b.detach().clone()
        moved[2], moved[0] = h, moved[0] - h
        change = (solve(C, a, moved).value - result.value.detach()) / h
        torch.testing.assert_close(change, gradient[2] - gradient[0], rtol=0, atol=1e-4)

    def test_batch(self):
        C, a, b = problems.random_problem(2, 3, batch=(2,))
        s = a[0].log().requires_grad_()
        assert torch.autograd.gradcheck(lambda s: solve(C, s.softmax(0), b).value, s)

    def test_the_rest_is_detached(self):
        C, a, b = problems.random_problem()
        result = solve(C.requires_grad_(), a, b)
        assert result.value.requires_grad
        for t in (result.cost, result.plan, result.f, result.g):
            assert not t.requires_grad

    def test_no_second_derivative_is_made_up(self):
        C, a, b = problems.random_problem()
        (gradient,) = torch.autograd.grad(solve(C.requires_grad_(), a, b).value, C, create_graph=True)
        # Added to a term that has one: its missing part would otherwise count as zero.
        with pytest.raises(NotImplementedError, match="differentiated once"):
            (gradient.square().sum() + C.square().sum()).backward()


class TestDiagnostics:
    @every_form
    def test_not_converged(self, regulariser, semi):
        C, a, b = problems.random_problem(20, 15)
        with pytest.warns(ConvergenceWarning, match=r"after 2 Newton steps .* raise max_iter"):
            result = smooth_ot(C, a, b, gamma=1e-3, regulariser=regulariser, semi=semi, max_iter=2)
        assert not result.converged
        assert result.n_iter == 2
        error = (result.plan.sum(-1) - a).abs().sum() + (result.plan.sum(-2) - b).abs().sum()
        torch.testing.assert_close(result.marginal_error, error, rtol=0, atol=1e-12)

    def test_tolerance_below_rounding(self):
        C, a, b = problems.random_problem()
        with pytest.warns(ConvergenceWarning, match="tol is below rounding"):
            smooth_ot(C, a, b, gamma=1e-6, tol=1e-15)

    def test_no_plan(self):
        C = tensor([[0, math.inf], [0, 1]])
        with pytest.warns(ConvergenceWarning, match="infinite costs may leave no plan"):
            result = smooth_ot(C, [0.9, 0.1], [0.5, 0.5], gamma=1.0, max_iter=30)
        assert not result.converged
        assert torch.isfinite(result.value)


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        ({"gamma": 0}, ValueError, "gamma must be a finite number above 0.*emd"),
        ({"gamma": "small"}, TypeError, "gamma must be a number"),
        ({"regulariser": "L2"}, ValueError, "regulariser must be one of 'l2', 'entropy', but is 'L2'"),
        ({"tol": -1}, ValueError, "tol must be a finite number above 0"),
        ({"max_iter": 0}, ValueError, "max_iter must be a whole number of at least 1"),
        ({"a": [0.5, 0.6]}, ValueError, "a has mass 1.1, not 1"),
        ({"b": [1.5, -0.5]}, ValueError, "b holds a negative weight"),
        ({"C": [[math.nan, 1.0], [0.0, 1.0]]}, ValueError, "C holds NaN"),
    ],
)
def test_bad_input(bad, error, message):
    with pytest.raises(error, match=message):
        smooth_ot(**({"C": [[0.0, 1.0], [1.0, 0.0]], "gamma": 1.0} | bad))


class TestNewton:
    def test_the_step_solves_the_system(self):
        rng = problems.generator(2)
        W = torch.rand(2, 6, 4, generator=rng, dtype=F64)
        r, s = torch.randn(2, 6, generator=rng, dtype=F64), torch.randn(2, 4, generator=rng, dtype=F64)
        s = s - (s.sum(-1, keepdim=True) - r.sum(-1, keepdim=True)) / 4  # no mass appears
        df, dg = _smooth_dual._newton(W, r, s, torch.zeros(2, dtype=F64), 1.0)
        rows = W.sum(-1) * df + (W @ dg[..., None])[..., 0]
        columns = W.sum(-2) * dg + (W.mT @ df[..., None])[..., 0]
        # Up to the shift that makes the matrix regular.
        torch.testing.assert_close(rows, r, rtol=0, atol=1e-7)
        torch.testing.assert_close(columns, s, rtol=0, atol=1e-7)

    @every_form
    def test_it_is_newtons_method(self, regulariser, semi):
        # Another six digits take a step or two.
        C, a, b = problems.random_problem(12, 17)
        form = {"gamma": 0.3, "regulariser": regulariser, "semi": semi}
        rough, fine = solve(C, a, b, tol=1e-5, **form), solve(C, a, b, tol=1e-11, **form)
        assert fine.n_iter <= rough.n_iter + 2
        assert fine.n_iter <= 30

    @pytest.mark.parametrize(("share", "t", "evaluations"), [(0.5, 1, 1), (1.3, 1, 3), (30.0, 16, 3)])
    def test_a_step_grows_where_the_dual_is_linear(self, share, t, evaluations, monkeypatch):
        """Two pairs that exchange nothing: γ = 1, and the Newton step for the first is exact.

        The second has no mass and gets none along the step, which earns ``share`` of what the first
        does. Twice the step would mirror the first pair at its optimum, and take it no nearer; but
        where the second earns most, the step grows until the first loses half of that.
        """
        C = tensor([[0, math.inf], [math.inf, 2000]])
        a = b = tensor([0.9, 0.1])
        dual = _smooth_dual.Dual(_smooth_dual.REGULARISERS["l2"], C, a, b, False)
        f, g = tensor([0.45, 0]), tensor([0, 0])  # of the first pair, half of what it needs
        earned = share * 0.45**2 / 0.1
        df, dg = tensor([0.45, earned]), tensor([0, 0])
        D, P, _ = dual.evaluate(f, g, 1.0)
        slope = ((a - P.sum(-1)) * df).sum(-1)
        calls, evaluate = [], _smooth_dual.Dual.evaluate
        monkeypatch.setattr(_smooth_dual.Dual, "evaluate", lambda *z: calls.append(1) or evaluate(*z))
        f_t, *_ = dual.search(f, g, df, dg, D, slope, 1.0)
        torch.testing.assert_close(f_t, f + t * df)
        assert len(calls) == evaluations
