"""Gromov–Wasserstein: values by hand, certificates of stationarity, all permutations, POT, invariances."""

from __future__ import annotations

import itertools
import math
from functools import partial

import numpy as np
import ot
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from otbook import ConvergenceWarning, OTResult, emd, linear_program
from otbook.gromov import entropic_gromov_wasserstein, fused_gromov_wasserstein, gromov_wasserstein

from . import checks, problems

F64 = torch.float64


def distances(n: int, *, seed: int = 0) -> Tensor:
    """Euclidean distances of a random cloud in the plane."""
    x = torch.randn(n, 2, generator=problems.generator(seed), dtype=F64)
    return (x[:, None] - x).square().sum(-1).sqrt()


def asymmetric(n: int, *, seed: int = 0) -> Tensor:
    return torch.rand(n, n, generator=problems.generator(seed), dtype=F64)


def instance(n: int = 7, m: int = 5, *, make=asymmetric, seed: int = 0) -> tuple[Tensor, ...]:
    a, b = problems.weights(n, seed=seed + 3), problems.weights(m, seed=seed + 4)
    return make(n, seed=seed + 1), make(m, seed=seed + 2), a, b


def naive_value(Cx: Tensor, Cy: Tensor, P: Tensor) -> Tensor:
    """The sum over four indices, term by term."""
    difference = Cx[:, None, :, None] - Cy[None, :, None, :]
    return torch.einsum("ijkl,ij,kl->", difference.square(), P, P)


def naive_gradient(Cx: Tensor, Cy: Tensor, P: Tensor) -> Tensor:
    P = P.detach().clone().requires_grad_()
    return torch.autograd.grad(naive_value(Cx, Cy, P), P)[0]


def assert_stationary(Cx, Cy, a, b, result: OTResult, *, M=0.0, alpha=1.0, atol=1e-6) -> None:
    """No linear descent from the plan, by another LP solver; f and g prove it without one."""
    P = result.plan
    checks.assert_coupling(P, a, b)
    gradient = (1 - alpha) * M + alpha * naive_gradient(Cx, Cy, P)
    level = (gradient * P).sum()
    gain = (level - linear_program(gradient, a, b).value).item()
    assert gain <= atol, f"a linear problem gains {gain:.2g}"
    checks.assert_dual_certificate(gradient, a, b, result.f, result.g, level, atol=atol)


def bipartite() -> Tensor:
    """Distances in the complete bipartite graph K₄,₄: 1 across, 2 within a side."""
    side = torch.arange(8) // 4
    return (1 + (side[:, None] == side).double()).fill_diagonal_(0)


class TestByHand:
    def test_two_points(self):
        # Each point of one pair goes to one of the other; the pairs i ≠ k carry half of P⊗P.
        Cx = torch.tensor([[0, 1], [1, 0]])
        result = gromov_wasserstein(Cx, 2 * Cx)
        assert abs(result.value.item() - 0.5) < 1e-7
        assert torch.equal(result.plan, torch.eye(2) / 2) or torch.equal(
            result.plan, torch.eye(2).flip(0) / 2
        )
        assert result.value.dtype == torch.float32
        assert gromov_wasserstein([[0, 1], [1, 0]], [[0, 2], [2, 0]]).value == result.value

    def test_one_point(self):
        # All pairs go to the one pair: E is the mean square of Cx − c.
        Cx, _, a, _ = instance()
        result = gromov_wasserstein(Cx, [[0.3]], a)
        torch.testing.assert_close(result.value, a @ (Cx - 0.3).square() @ a, rtol=0, atol=1e-14)

    def test_restarts_find_the_isomorphism_of_graphs(self):
        C = bipartite()
        shuffle = torch.randperm(8, generator=problems.generator(3))
        first = gromov_wasserstein(C, C[shuffle][:, shuffle])
        assert abs(first.value.item() - 0.5) < 1e-12  # two points on the wrong side, and no way down
        assert_stationary(C, C[shuffle][:, shuffle], *2 * [torch.full((8,), 1 / 8, dtype=F64)], first)
        # From a random coupling about nine of ten starts succeed.
        for seed in range(3):
            result = gromov_wasserstein(
                C, C[shuffle][:, shuffle], n_restarts=12, generator=problems.generator(seed)
            )
            assert 0 <= result.value.item() < 1e-12
            assert result.n_iter > first.n_iter

    def test_isometric_clouds(self):
        C = distances(9)
        shuffle = torch.randperm(9, generator=problems.generator(1))
        a = problems.weights(9)
        result = gromov_wasserstein(C, C[shuffle][:, shuffle], a, a[shuffle])
        assert 0 <= result.value.item() < 1e-12
        torch.testing.assert_close(result.plan, torch.eye(9)[:, shuffle].double() * a[:, None])

    @pytest.mark.parametrize("eps", [1e3, 1e4])
    def test_entropic_at_large_eps_is_independent(self, eps):
        Cx, Cy, a, b = instance()
        result = entropic_gromov_wasserstein(Cx, Cy, a, b, eps=eps)
        torch.testing.assert_close(result.plan, a[:, None] * b, rtol=0, atol=1 / eps)
        torch.testing.assert_close(result.value, naive_value(Cx, Cy, a[:, None] * b), rtol=0, atol=1 / eps)

    def test_entropic_between_two_pairs(self):
        # P = [[p, ½−p], [½−p, p]] has E = 5/2 − 8 p² − 8 (½−p)², which at large ε is least at p = ¼
        # and at small ε near 0 or ½: there ε log(p/(½−p)) = 8 (2p − ½), the condition E′ + ε KL′ = 0.
        Cx, Cy = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).double(), torch.tensor([[0.0, 2], [2, 0]]).double()
        eps = 0.9
        result = entropic_gromov_wasserstein(
            Cx, Cy, eps=eps, n_restarts=4, generator=problems.generator(0), tol=1e-9
        )
        p = result.plan[0, 0].item()
        E = 2.5 - 8 * p**2 - 8 * (0.5 - p) ** 2
        assert abs(result.cost.item() - E) < 1e-8
        assert abs(eps * math.log(p / (0.5 - p)) - 8 * (2 * p - 0.5)) < 1e-6
        assert abs(p - 0.25) > 0.2


class TestCertificate:
    @pytest.mark.parametrize("make", [asymmetric, distances])
    @pytest.mark.parametrize("seed", range(2))
    def test_value_and_stationarity(self, make, seed):
        Cx, Cy, a, b = instance(make=make, seed=seed)
        result = gromov_wasserstein(Cx, Cy, a, b)
        assert result.converged
        torch.testing.assert_close(result.value, naive_value(Cx, Cy, result.plan), rtol=0, atol=1e-13)
        assert result.cost == result.value
        assert_stationary(Cx, Cy, a, b, result)

    @pytest.mark.parametrize("seed", range(2))
    def test_fused(self, seed):
        Cx, Cy, a, b = instance(seed=seed)
        M, alpha = problems.random_problem(seed=seed)[0] / 10, 0.7
        result = fused_gromov_wasserstein(M, Cx, Cy, a, b, alpha=alpha)
        by_definition = 0.3 * (M * result.plan).sum() + 0.7 * naive_value(Cx, Cy, result.plan)
        torch.testing.assert_close(result.value, by_definition, rtol=0, atol=1e-13)
        assert_stationary(Cx, Cy, a, b, result, M=M, alpha=alpha)

    @pytest.mark.parametrize("make", [asymmetric, distances])
    @pytest.mark.parametrize("eps", [1.0, 0.1])
    def test_entropic(self, make, eps):
        Cx, Cy, a, b = instance(make=make)
        result = entropic_gromov_wasserstein(Cx, Cy, a, b, eps=eps, tol=1e-9)
        P = result.plan
        checks.assert_coupling(P, a, b, atol=1e-9)
        gradient = naive_gradient(Cx, Cy, P)
        gibbs = a[:, None] * b * ((result.f[:, None] + result.g - gradient) / eps).exp()
        torch.testing.assert_close(P, gibbs, rtol=0, atol=1e-7)
        kl = (P * (P / (a[:, None] * b)).log()).sum()
        torch.testing.assert_close(result.cost, naive_value(Cx, Cy, P), rtol=0, atol=1e-8)
        torch.testing.assert_close(result.value, result.cost + eps * kl, rtol=0, atol=1e-8)

    def test_a_bad_part_is_dropped_in_one_step(self):
        # E is convex, and the start a⊗b no part of the best plan. Steps away from it that stop at its
        # weight instead of taking it out would square that weight each time: 12 iterations instead of 6.
        rng = problems.generator(2)
        Cx, Cy = (torch.rand(k, k, generator=rng, dtype=F64) for k in (4, 3))
        a, b = problems.weights(4, seed=2), problems.weights(3, seed=3)
        Cx, Cy = Cx + Cx.T, -(Cy + Cy.T)
        result = gromov_wasserstein(Cx, Cy, a, b, tol=1e-12)
        assert_stationary(Cx, Cy, a, b, result)
        assert (result.plan == 0).sum() == 6
        assert result.n_iter <= 8

    def test_can_fail(self):
        Cx, Cy, a, b = instance()
        with pytest.warns(ConvergenceWarning, match="raise max_iter"):
            result = gromov_wasserstein(Cx, Cy, a, b, max_iter=1)
        assert not result.converged
        with pytest.raises(AssertionError, match="linear problem gains"):
            assert_stationary(Cx, Cy, a, b, result)

    @pytest.mark.parametrize("seed", range(3))
    def test_all_permutations(self, seed):
        # Squared distances make E concave on couplings, so that with equal weights a permutation is best.
        Cx, Cy = distances(5, seed=seed).square(), distances(5, seed=seed + 9).square()
        best = min(
            naive_value(Cx, Cy, torch.eye(5, dtype=F64)[list(s)] / 5).item()
            for s in itertools.permutations(range(5))
        )
        result = gromov_wasserstein(Cx, Cy, n_restarts=20, generator=problems.generator(seed))
        assert abs(result.value.item() - best) < 1e-10
        assert gromov_wasserstein(Cx, Cy).value.item() >= best - 1e-10

    def test_the_objective_never_rises(self):
        Cx, Cy, a, b = instance(12, 9)
        # Entropic plans satisfy their marginals to 1e-3 at first, which leaves ε · 1e-3 of their objective.
        entropic = partial(entropic_gromov_wasserstein, eps=0.05)
        for solve, slack in ((gromov_wasserstein, 1e-14), (entropic, 5e-5)):
            calls = []
            result = solve(Cx, Cy, a, b, callback=lambda *call, calls=calls: calls.append(call))
            steps, values, rests = zip(*calls, strict=True)
            assert len(values) > 2
            assert all(later <= earlier + slack for earlier, later in itertools.pairwise(values))
            assert values[-1] < values[0]
            assert abs(values[-1] - result.value.item()) < 1e-14
            assert steps[-1] == result.n_iter
            assert rests[-1] < 1e-5

    @pytest.mark.parametrize("tol", [1e-2, 1e-3])
    def test_the_value_is_right_to_second_order(self, tol):
        # Distance from rest and marginal error are both up to tol, and cost the value only their squares.
        Cx, Cy, a, b = instance(make=distances)
        exact, early = (entropic_gromov_wasserstein(Cx, Cy, a, b, eps=0.3, tol=t) for t in (1e-11, tol))
        assert abs(early.value - exact.value) < 0.3 * tol**2

    def test_extrapolation_ends_where_plain_steps_do(self, monkeypatch):
        Cx, Cy, a, b = instance(12, 9, make=distances, seed=1)
        solve = partial(entropic_gromov_wasserstein, Cx, Cy, a, b, eps=0.1, tol=1e-8)
        fast = solve()
        monkeypatch.setattr("otbook.gromov._mirror.NEAR", 0.0)
        plain = solve()
        torch.testing.assert_close(fast.plan, plain.plan, rtol=0, atol=1e-6)
        assert fast.n_iter < 0.7 * plain.n_iter, (fast.n_iter, plain.n_iter)

    def test_too_long_a_step_is_shortened(self):
        # Where E is far from concave the plain iteration jumps between two plans and never rests.
        Cx = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=F64)
        result = entropic_gromov_wasserstein(Cx, -Cx, [0.3, 0.7], [0.4, 0.6], eps=0.05, tol=1e-9)
        assert result.converged
        gradient = naive_gradient(Cx, -Cx, result.plan)
        exponent = (result.f[:, None] + result.g - gradient) / 0.05
        outer = torch.tensor([[0.12, 0.18], [0.28, 0.42]], dtype=F64)
        torch.testing.assert_close(result.plan, outer * exponent.exp(), rtol=0, atol=1e-8)


class TestLimits:
    def test_fused_ends(self):
        Cx, Cy, a, b = instance()
        M = problems.random_problem()[0]
        features = fused_gromov_wasserstein(M, Cx, Cy, a, b, alpha=0)
        exact = emd(M, a, b)
        torch.testing.assert_close(features.value, exact.value, rtol=0, atol=1e-13)
        torch.testing.assert_close(features.plan, exact.plan, rtol=0, atol=1e-13)
        structure = fused_gromov_wasserstein(M, Cx, Cy, a, b, alpha=1)
        assert structure.value == gromov_wasserstein(Cx, Cy, a, b).value

    def test_entropic_tends_to_exact(self):
        # The same cloud twice, exact value 0.
        C, a = distances(5), problems.weights(5)
        s = torch.tensor([3, 0, 4, 1, 2])
        entropy = -(a * a.log()).sum()
        for eps in (0.1, 0.01, 0.001):
            result = entropic_gromov_wasserstein(C, C[s][:, s], a, a[s], eps=eps)
            assert 0 <= result.cost <= result.value <= eps * entropy + 1e-6


class TestIndependentSolver:
    """POT from the same start a⊗b. Distances lead to one extreme plan after another, as in POT."""

    @pytest.mark.parametrize("seed", range(3))
    def test_exact(self, seed):
        Cx, Cy, a, b = instance(12, 9, make=distances, seed=seed)
        arrays = [t.numpy() for t in (Cx, Cy, a, b)]
        other = ot.gromov.gromov_wasserstein2(*arrays, loss_fun="square_loss")
        assert abs(gromov_wasserstein(*arrays).value.item() - float(other)) < 1e-8

    @pytest.mark.parametrize("alpha", [0.1, 0.5, 0.9])
    def test_fused(self, alpha):
        Cx, Cy, a, b = instance(12, 9, make=distances)
        M = problems.random_problem(12, 9)[0]
        arrays = [t.numpy() for t in (M, Cx, Cy, a, b)]
        other = ot.gromov.fused_gromov_wasserstein2(*arrays, loss_fun="square_loss", alpha=alpha)
        assert abs(fused_gromov_wasserstein(*arrays, alpha=alpha).value.item() - float(other)) < 1e-8

    def test_entropic(self):
        Cx, Cy, a, b = instance(8, 6)
        plan = ot.gromov.entropic_gromov_wasserstein(
            *(t.numpy() for t in (Cx, Cy, a, b)), "square_loss", epsilon=0.3, tol=1e-12
        )
        result = entropic_gromov_wasserstein(Cx, Cy, a, b, eps=0.3, tol=1e-10)
        np.testing.assert_allclose(result.plan.numpy(), plan, rtol=0, atol=1e-8)


SOLVERS = [gromov_wasserstein, partial(entropic_gromov_wasserstein, eps=0.3, tol=1e-10)]


class TestInvariance:
    @pytest.mark.parametrize("solve", SOLVERS)
    @pytest.mark.parametrize("make", [asymmetric, distances])
    def test_permutation_and_exchange(self, solve, make):
        Cx, Cy, a, b = instance(8, 6, make=make)
        before = solve(Cx, Cy, a, b)
        s = torch.randperm(8, generator=problems.generator(1))
        after = solve(Cx[s][:, s], Cy, a[s], b)
        torch.testing.assert_close(after.value, before.value, rtol=0, atol=1e-8)
        torch.testing.assert_close(after.plan, before.plan[s], rtol=0, atol=1e-8)
        back = solve(Cy, Cx, b, a)
        torch.testing.assert_close(back.value, before.value, rtol=0, atol=1e-8)
        torch.testing.assert_close(back.plan, before.plan.T, rtol=0, atol=1e-8)

    def test_isometry(self):
        x, y, a, b = problems.clouds()
        turn = torch.linalg.qr(torch.randn(2, 2, generator=problems.generator(5), dtype=F64))[0]
        values = [
            gromov_wasserstein(torch.cdist(z, z), torch.cdist(y, y), a, b).value for z in (x, x @ turn + 3)
        ]
        torch.testing.assert_close(*values, rtol=0, atol=1e-8)

    @pytest.mark.parametrize("unit", [1e-8, 1e8])
    def test_units(self, unit):
        Cx, Cy, a, b = instance(make=distances)
        before, after = gromov_wasserstein(Cx, Cy, a, b), gromov_wasserstein(unit * Cx, unit * Cy, a, b)
        torch.testing.assert_close(after.value / unit**2, before.value, rtol=1e-12, atol=0)
        torch.testing.assert_close(after.plan, before.plan, rtol=0, atol=1e-12)

    def test_common_constant(self):
        # Squares of 1e6 would leave four digits of the value.
        Cx, Cy, a, b = instance()
        before, after = gromov_wasserstein(Cx, Cy, a, b), gromov_wasserstein(Cx + 1e6, Cy + 1e6, a, b)
        torch.testing.assert_close(after.value, before.value, rtol=0, atol=1e-8)

    @settings(max_examples=12, deadline=None)
    @given(n=st.integers(1, 6), m=st.integers(1, 6), seed=st.integers(0, 10**6), whole=st.booleans())
    def test_any_problem(self, n, m, seed, whole):
        Cx, Cy, a, b = instance(n, m, make=distances, seed=seed)
        if whole:  # many ties
            Cx, Cy = Cx.round(), Cy.round()
        result = gromov_wasserstein(Cx, Cy, a, b)
        assert result.value >= 0
        assert result.value <= naive_value(Cx, Cy, a[:, None] * b) + 1e-12
        assert_stationary(Cx, Cy, a, b, result)


class TestZeroWeights:
    @pytest.mark.parametrize("solve", SOLVERS)
    def test_same_plan_without_them(self, solve):
        Cx, Cy, a, b = instance(make=distances)
        a[2], b[0] = 0, 0
        a, b = a / a.sum(), b / b.sum()
        rows, columns = a > 0, b > 0
        small = solve(Cx[rows][:, rows], Cy[columns][:, columns], a[rows], b[columns])
        full = solve(Cx, Cy, a, b)
        torch.testing.assert_close(full.value, small.value, rtol=0, atol=1e-9)
        torch.testing.assert_close(full.plan[rows][:, columns], small.plan, rtol=0, atol=1e-8)
        assert (full.plan[2] == 0).all()
        assert (full.plan[:, 0] == 0).all()


class TestGradients:
    """At an isolated plan the value has the derivatives of the objective; f and g in the weights."""

    def test_gradcheck(self):
        Cx, Cy, a, b = instance(4, 3, make=distances)
        M = problems.random_problem(4, 3)[0] / 10

        def value(M, Cx, Cy, a, b):  # weights stay normalised
            a, b = a / a.sum(), b / b.sum()
            return fused_gromov_wasserstein(M, Cx, Cy, a, b, alpha=0.6, tol=1e-12).value

        assert torch.autograd.gradcheck(value, [t.requires_grad_() for t in (M, Cx, Cy, a, b)], atol=1e-6)

    def test_gradcheck_where_the_plan_is_not_extreme(self):
        # Cx against −Cx makes E convex: from a⊗b to the minimum, and neither end is extreme.
        Cx = torch.tensor([[0.1, 1.0], [0.7, 0.3]], dtype=F64)
        Cy = torch.tensor([[0.2, -0.9], [-1.0, 0.1]], dtype=F64)
        a, b = torch.tensor([0.3, 0.7], dtype=F64), torch.tensor([0.4, 0.6], dtype=F64)
        result = gromov_wasserstein(Cx, Cy, a, b, tol=1e-13)
        assert (result.plan > 1e-2).sum() == 4

        def value(Cx, Cy, a, b):
            return gromov_wasserstein(Cx, Cy, a / a.sum(), b / b.sum(), tol=1e-13).value

        assert torch.autograd.gradcheck(value, [t.requires_grad_() for t in (Cx, Cy, a, b)], atol=1e-6)

    def test_gradcheck_entropic(self):
        Cx, Cy, a, b = instance(3, 2)

        def value(Cx, Cy, a, b):
            a, b = a / a.sum(), b / b.sum()
            return entropic_gromov_wasserstein(Cx, Cy, a, b, eps=0.5, tol=1e-10).value

        assert torch.autograd.gradcheck(value, [t.requires_grad_() for t in (Cx, Cy, a, b)], atol=1e-6)

    def test_once(self):
        Cx, Cy, a, b = instance()
        Cx.requires_grad_()
        result = gromov_wasserstein(Cx, Cy, a, b)
        assert not any(t.requires_grad for t in (result.cost, result.plan, result.f, result.g))
        (gradient,) = torch.autograd.grad(result.value, Cx, create_graph=True)
        with pytest.raises(NotImplementedError, match="differentiated once"):
            (gradient.square().sum() + Cx.sum()).backward()


class TestInput:
    @pytest.mark.parametrize("solve", [gromov_wasserstein, partial(entropic_gromov_wasserstein, eps=0.3)])
    def test_float32(self, solve):
        Cx, Cy, a, b = instance(make=distances)
        low = solve(*(t.float() for t in (Cx, Cy, a, b)))
        assert {t.dtype for t in (low.value, low.cost, low.plan, low.f, low.g)} == {torch.float32}
        assert low.converged
        high = solve(Cx, Cy, a, b)
        torch.testing.assert_close(low.value.double(), high.value, rtol=0, atol=1e-5)
        torch.testing.assert_close(low.plan.double(), high.plan, rtol=0, atol=1e-4)

    def test_integers_take_the_dtype_of_the_rest(self):
        hops = torch.tensor([[0, 1, 2], [1, 0, 1], [2, 1, 0]])
        assert gromov_wasserstein(hops, hops.double() * 1.5).value.dtype == F64
        assert gromov_wasserstein(hops.numpy(), hops * 2, problems.weights(3)).value.dtype == F64

    def test_same_generator_same_plan(self):
        Cx, Cy, a, b = instance()
        first, again = (
            gromov_wasserstein(Cx, Cy, a, b, n_restarts=3, generator=problems.generator(7)) for _ in range(2)
        )
        assert torch.equal(first.plan, again.plan)
        assert first.value <= gromov_wasserstein(Cx, Cy, a, b).value

    def test_inputs_are_untouched(self):
        inputs = instance()
        copies = [t.clone() for t in inputs]
        gromov_wasserstein(*inputs)
        assert all(torch.equal(t, copy) for t, copy in zip(inputs, copies, strict=True))

    def test_entropic_stopped_early(self):
        with pytest.warns(ConvergenceWarning, match="after 2 iterations"):
            result = entropic_gromov_wasserstein(*instance(), eps=0.05, max_iter=2)
        assert not result.converged

    @pytest.mark.parametrize("solve", SOLVERS)
    def test_on_another_device(self, solve, device):
        inputs = instance(make=distances)
        there = solve(*(t.to(device) for t in inputs), n_restarts=2, generator=problems.generator(0))
        assert there.plan.device == device
        here = solve(*inputs, n_restarts=2, generator=problems.generator(0))
        torch.testing.assert_close(there.value.cpu(), here.value, rtol=0, atol=1e-8)


GOOD = {"Cx": torch.ones(2, 2, dtype=F64), "Cy": torch.ones(3, 3, dtype=F64)}


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        ({"Cx": torch.ones(2, 3)}, ValueError, r"Cx must be a square .* \(2, 3\)"),
        ({"Cx": torch.ones(4, dtype=F64)}, ValueError, r"Cx must be a square .* \(4,\)"),
        (
            {"Cx": torch.ones(5, 2, 2, dtype=F64), "Cy": torch.ones(4, 3, 3, dtype=F64)},
            ValueError,
            r"batch shapes do not agree: Cx \(5,\), Cy \(4,\)",
        ),
        ({"Cy": torch.ones(0, 0, dtype=F64)}, ValueError, r"Cy must .* at least one point"),
        ({"Cx": torch.full((2, 2), math.nan)}, ValueError, r"Cx holds nan at Cx\[0, 0\]; replace"),
        ({"Cy": torch.full((3, 3), math.inf, dtype=F64)}, ValueError, r"Cy holds inf"),
        ({"Cx": torch.ones(2, 2)}, ValueError, r"Cy is float64 .* Cy\.to\("),
        ({"a": [0.5, 0.4]}, ValueError, r"a has mass 0\.9"),
        ({"b": [0.5, 0.5]}, ValueError, r"b must have shape \(…, 3\)"),
        ({"n_restarts": 0}, ValueError, r"n_restarts must be .* at least 1"),
        ({"n_restarts": 3}, ValueError, r"n_restarts = 3 .* generator=torch\.Generator\(\)"),
        ({"n_restarts": 3, "generator": 0}, TypeError, r"generator must be a torch\.Generator"),
        ({"tol": 0}, ValueError, r"tol must be"),
        ({"max_iter": 0}, ValueError, r"max_iter must be"),
    ],
)
def test_bad_input(bad, error, message):
    with pytest.raises(error, match=message):
        gromov_wasserstein(**{**GOOD, **bad})


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"M": torch.ones(3, 2, dtype=F64)}, r"M must have shape \(…, 2, 3\)"),
        ({"M": torch.full((2, 3), math.inf, dtype=F64)}, r"M holds inf"),
        ({"alpha": 1.5}, r"alpha must lie between 0 .* 1\.5; .* rescale M"),
        ({"alpha": math.nan}, r"alpha must lie"),
    ],
)
def test_bad_input_fused(bad, message):
    with pytest.raises(ValueError, match=message):
        fused_gromov_wasserstein(**{"M": torch.ones(2, 3, dtype=F64), **GOOD, "alpha": 0.5, **bad})


def test_bad_input_entropic():
    with pytest.raises(ValueError, match=r"eps must be .* use gromov_wasserstein"):
        entropic_gromov_wasserstein(**GOOD, eps=0)
