"""Entropic transport: closed forms, the optimality certificate, independent solvers, invariances."""

from __future__ import annotations

import itertools
import math

import numpy as np
import ot
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import otbook
from otbook import ConvergenceWarning, OTResult, sinkhorn

from . import checks, problems

F64 = torch.float64


def tensor(rows: list) -> Tensor:
    return torch.tensor(rows, dtype=F64)


def solve(C: Tensor, a: Tensor | None = None, b: Tensor | None = None, *, eps: float = 0.3) -> OTResult:
    """A solution to near working precision, for the comparisons that should not see the stopping rule.

    The plan exp((f + g − C)/ε) cannot be had more accurately than C/ε is rounded.
    """
    size = C.detach()[torch.isfinite(C)].abs().max().item() / eps
    return sinkhorn(C, a, b, eps=eps, tol=max(1e-13, 1e-15 * size))


def assert_optimal(C: Tensor, a: Tensor, b: Tensor, eps: float, result: OTResult, *, tol: float) -> None:
    """The certificate: P has the Gibbs form of f, g and the right marginals; f, g attain the value."""
    P, f, g = result.plan, result.f, result.g
    for t in (P, f, g, result.value, result.cost):
        assert torch.isfinite(t).all()
    exponent = (f[..., :, None] + g[..., None, :] - C) / eps
    gibbs = a[..., :, None] * b[..., None, :] * exponent.clamp(max=700).exp()
    gap = (P - gibbs).abs().sum((-2, -1)).max().item()
    assert gap <= 1e-9, f"the plan is not of the Gibbs form of its potentials: off by {gap:.2g}"
    error = (P.sum(-1) - a).abs().sum(-1) + (P.sum(-2) - b).abs().sum(-1)
    assert (error <= tol).all(), f"marginal error {error.max().item():.2g} > {tol:g}"
    # Measured to the rounding of (f + g − C)/ε.
    rounding = 1e-15 * C[torch.isfinite(C)].abs().max().item() / eps
    torch.testing.assert_close(result.marginal_error, error, rtol=1e-6, atol=1e-13 + rounding)
    torch.testing.assert_close(result.value, (a * f).sum(-1) + (b * g).sum(-1), rtol=0, atol=1e-12)
    torch.testing.assert_close((a * f).sum(-1), (b * g).sum(-1), rtol=0, atol=1e-12)
    allowed = torch.where(P > 0, C, 0.0)
    torch.testing.assert_close(result.cost, (P * allowed).sum((-2, -1)), rtol=0, atol=1e-12 + rounding)


def two_by_two(C: Tensor, a: Tensor, b: Tensor, eps: float) -> Tensor:
    """The plan between two pairs of points, from a quadratic equation.

    P = [[p, a₀−p], [b₀−p, p + 1 − a₀ − b₀]], and P₀₀P₁₁ / (P₀₁P₁₀) = k with
    k = exp((C₀₁ + C₁₀ − C₀₀ − C₁₁)/ε), because the potentials cancel.
    """
    a0, b0 = a[0].item(), b[0].item()
    k = math.exp((C[0, 1] + C[1, 0] - C[0, 0] - C[1, 1]).item() / eps)
    # (1 − k) p² + q p − k a₀b₀ = 0, by whichever form of its positive root has no cancellation.
    q, constant = 1 + (k - 1) * (a0 + b0), k * a0 * b0
    root = math.sqrt(q**2 + 4 * (1 - k) * constant)
    p = 2 * constant / (root + q) if q > 0 else (root - q) / (2 * (1 - k))
    return tensor([[p, a0 - p], [b0 - p, p + 1 - a0 - b0]])


class TestClosedForms:
    def test_two_by_two_example(self):
        result = sinkhorn(tensor([[0, 1], [1, 0]]), [0.5, 0.5], [0.1, 0.9], eps=1, tol=1e-12)
        printed = tensor([[0.08628, 0.41372], [0.01372, 0.48628]])
        torch.testing.assert_close(result.plan, printed, rtol=0, atol=5e-6)

    @pytest.mark.parametrize("eps", [10.0, 1.0, 0.1, 0.02])
    @pytest.mark.parametrize("seed", range(3))
    def test_two_by_two_quadratic(self, eps, seed):
        C, a, b = problems.random_problem(2, 2, seed=seed)
        torch.testing.assert_close(solve(C, a, b, eps=eps).plan, two_by_two(C, a, b, eps), rtol=0, atol=1e-10)

    def test_gaussians_by_quadrature(self):
        # N(0, 1) to itself with ε = 1. The plan is Gaussian with correlation r, and the value is
        # 2(1 − r) − ½ log(1 − r²) at its minimum, r = (√17 − 1)/4. The trapezoidal rule on a
        # truncated Gaussian is exact to rounding.
        x = torch.linspace(-9, 9, 181, dtype=F64)
        w = (-(x**2) / 2).exp()
        w = w / w.sum()
        result = sinkhorn((x[:, None] - x) ** 2, w, w, eps=1, tol=1e-12)
        r = (math.sqrt(17) - 1) / 4
        closed = 2 * (1 - r) - math.log(1 - r**2) / 2
        assert abs(closed - 0.908754008245) < 1e-12
        assert abs(result.value.item() - closed) < 1e-10
        assert abs(result.cost.item() - 2 * (1 - r)) < 1e-10

    @pytest.mark.parametrize("eps", [2.0, 0.5, 0.05])
    def test_planted(self, eps):
        p = problems.planted_entropic(8, 5, eps=eps)
        result = solve(p.C, p.a, p.b, eps=eps)
        torch.testing.assert_close(result.plan, p.plan, rtol=0, atol=1e-11)
        torch.testing.assert_close(result.value, p.value, rtol=0, atol=1e-10)
        # The potentials are fixed up to a constant, which ⟨a, f⟩ = ⟨b, g⟩ removes.
        shift = ((p.a * p.f).sum() - (p.b * p.g).sum()) / 2
        torch.testing.assert_close(result.f, p.f - shift, rtol=0, atol=1e-10)
        torch.testing.assert_close(result.g, p.g + shift, rtol=0, atol=1e-10)

    def test_large_eps_is_independent(self):
        C, a, b = problems.random_problem(6, 9)
        result = solve(C, a, b, eps=1e6)
        torch.testing.assert_close(result.plan, a[:, None] * b, rtol=0, atol=1e-5)
        # To second order the value is ⟨C, a⊗b⟩ less a variance over 2ε.
        torch.testing.assert_close(result.value, (a[:, None] * b * C).sum(), rtol=0, atol=1e-4)

    def test_one_point(self):
        C, a, b = problems.random_problem(1, 4)
        result = solve(C, a, b)
        torch.testing.assert_close(result.plan, b[None], rtol=0, atol=1e-14)
        torch.testing.assert_close(result.value, (C[0] * b).sum(), rtol=0, atol=1e-13)


class TestBetweenExactAndIndependent:
    @pytest.mark.parametrize("eps", [1.0, 0.1, 0.01, 0.001])
    def test_sandwich(self, eps):
        p = problems.planted(12, 9)
        result = solve(p.C, p.a, p.b, eps=eps)
        entropy = min(-(w * w.log()).sum().item() for w in (p.a, p.b))
        assert p.value - 1e-10 <= result.cost <= result.value + 1e-10
        assert result.value - p.value <= eps * entropy + 1e-10

    def test_value_converges_linearly_in_eps(self):
        # As ε → 0 the plan tends to the exact one, unique here, so that
        # (value − exact)/ε tends to its KL(P ‖ a⊗b).
        p = problems.planted(6, 5)
        relative = (p.plan / (p.a[:, None] * p.b)).clamp(min=1e-300).log()
        limit = (p.plan * relative).sum()
        value = solve(p.C, p.a, p.b, eps=1e-3).value
        torch.testing.assert_close((value - p.value) / 1e-3, limit, rtol=0, atol=1e-8)


class TestCertificate:
    @pytest.mark.parametrize(("n", "m"), [(7, 5), (5, 70), (60, 40)])
    @pytest.mark.parametrize("eps", [1.0, 0.1, 0.01, 1e-4])
    def test_optimal(self, n, m, eps):
        C, a, b = problems.random_problem(n, m)
        assert_optimal(C, a, b, eps, sinkhorn(C, a, b, eps=eps), tol=1e-6)

    def test_asymmetric_cost(self):
        rng = problems.generator(3)
        C = torch.randn(20, 31, generator=rng, dtype=F64).exp()
        a, b = problems.weights(20, seed=1), problems.weights(31, seed=2)
        assert_optimal(C, a, b, 0.01, sinkhorn(C, a, b, eps=0.01, tol=1e-10), tol=1e-10)

    def test_can_fail(self):
        C, a, b = problems.random_problem()
        with pytest.raises(AssertionError, match="Gibbs"):
            assert_optimal(C, a, b, 0.2, sinkhorn(C, a, b, eps=0.1), tol=1e-6)

    @settings(max_examples=25, deadline=None)
    @given(
        n=st.integers(1, 12),
        m=st.integers(1, 12),
        log_eps=st.floats(-8, 2),
        scale=st.sampled_from([1e-3, 1.0, 1e4]),
        seed=st.integers(0, 10**6),
    )
    def test_property(self, n, m, log_eps, scale, seed):
        C, a, b = problems.random_problem(n, m, seed=seed)
        eps = scale * math.exp(log_eps)
        result = sinkhorn(scale * C, a, b, eps=eps)
        assert result.converged
        checks.assert_coupling(result.plan, a, b, atol=1e-6)
        assert result.cost <= result.value + 1e-6 * scale * C.max()


class TestHardCases:
    """The case that users report most: ε far below the cost, where the plain kernel loses the mass."""

    @pytest.mark.parametrize("eps", [1e-2, 1e-3, 1e-4, 1e-5, 1e-6])
    @pytest.mark.parametrize("uniform", [True, False])
    def test_small_eps(self, eps, uniform):
        C, a, b = problems.random_problem(200, 200)
        C = C / C.max()
        if uniform:
            a = b = torch.full((200,), 1 / 200, dtype=F64)
        result = sinkhorn(C, a, b, eps=eps)
        assert result.converged
        assert abs(result.plan.sum().item() - 1) < 1e-12
        assert_optimal(C, a, b, eps, result, tol=1e-6)
        exact = ot.emd2(a.numpy(), b.numpy(), C.numpy())
        assert -1e-6 <= result.cost.item() - exact <= eps * math.log(200)

    def test_pot_loses_the_mass(self):
        C, a, b = problems.random_problem(200, 200)
        C = C / C.max()
        with pytest.warns((UserWarning, RuntimeWarning)):
            plan = ot.sinkhorn(a.numpy(), b.numpy(), C.numpy(), reg=1e-4)
        assert not abs(plan.sum() - 1) < 1e-3

    @pytest.mark.parametrize("eps", [1e-1, 1e-2])
    def test_float32_is_not_limited_by_its_products(self, eps):
        # A float32 kernel rounds the marginals to a few 1e-7; the last steps use exact sums.
        C, a, b = problems.random_problem(200, 150)
        C = C / C.max()
        assert sinkhorn(C.float(), a.float(), b.float(), eps=eps, tol=2e-7).converged

    @pytest.mark.parametrize("shift", [1e5, -1e5])
    def test_large_constant(self, shift):
        # exp(−C/ε) would be 0 or ∞ throughout.
        C, a, b = problems.random_problem(20, 30)
        result = sinkhorn(C + shift, a, b, eps=0.1)
        torch.testing.assert_close(result.plan, sinkhorn(C, a, b, eps=0.1).plan, rtol=0, atol=1e-6)

    def test_constant_cost(self):
        a, b = problems.weights(4, seed=1), problems.weights(6, seed=2)
        result = sinkhorn(torch.full((4, 6), 3.0, dtype=F64), a, b, eps=1e-3)
        # 3/ε is rounded to 5e-13, and so is the exponent.
        torch.testing.assert_close(result.plan, a[:, None] * b, rtol=1e-12, atol=0)
        torch.testing.assert_close(result.value, tensor(3.0), rtol=0, atol=1e-14)

    @pytest.mark.parametrize("eps", [1e-1, 1e-2, 1e-3, 1e-4])
    def test_float32(self, eps):
        C, a, b = problems.random_problem(200, 150)
        C = C / C.max()
        result = sinkhorn(C.float(), a.float(), b.float(), eps=eps)
        assert result.converged
        assert {t.dtype for t in (result.plan, result.f, result.g, result.value, result.cost)} == {
            torch.float32
        }
        checks.assert_coupling(result.plan.double(), a, b, atol=1e-6)
        reference = sinkhorn(C, a, b, eps=eps)
        torch.testing.assert_close(result.value.double(), reference.value, rtol=0, atol=1e-6)
        torch.testing.assert_close(result.cost.double(), reference.cost, rtol=0, atol=1e-6)

    @pytest.mark.parametrize("seed", [0, 3, 4])
    def test_light_atoms_keep_up(self, seed):
        # An atom of weight 2e-5 hardly shows in the marginal error, but its potential has as far to
        # go as the others; left behind by ε-scaling, this takes hundreds to thousands of iterations.
        C = (2 * torch.randn(22, 2, generator=problems.generator(seed), dtype=F64)).exp()
        a, b = problems.weights(22, seed=seed), tensor([1 - 2e-5, 2e-5])
        result = sinkhorn(C, a, b, eps=1e-6 * C.max().item())
        assert result.converged
        assert result.n_iter < 100

    def test_acceleration_changes_the_path_not_the_plan(self):
        C, a, b = problems.random_problem(30, 20)
        eps = 0.05
        plain = sinkhorn(C, a, b, eps=eps, tol=1e-12, accelerate=False)
        fast = sinkhorn(C, a, b, eps=eps, tol=1e-12)
        torch.testing.assert_close(fast.plan, plain.plan, rtol=0, atol=1e-11)
        assert fast.n_iter < plain.n_iter

    def test_groups_that_exchange_nothing_yet(self):
        """The stages leave 0.6 % of a light source with the wrong target, 3 · 10⁴ ε away in the potential."""
        C = torch.tensor([[0.9727, 0.5316], [0.6925, 0.0624]], dtype=F64)
        a, b = torch.tensor([0.07314, 0.92686], dtype=F64), torch.tensor([0.07356, 0.92644], dtype=F64)
        result = sinkhorn(C, a, b, eps=1e-6, max_iter=500)
        assert_optimal(C, a, b, 1e-6, result, tol=1e-6)
        far = C[0, 0] - C[1, 0] - C[0, 1] + C[1, 1]
        assert far.abs() > 1e4 * 1e-6, "a step that the scalings can hold is a small part of the way"

    def test_a_target_without_mass_holds_nobody_up(self):
        """Its potential is free: it must not count where a Newton step is cut to what scalings can hold."""
        rows = [81, 50, 78, 25], [15, 18, 70, 63], [7, 62, 11, 69], [58, 29, 63, 17], [37, 78, 93, 47]
        C = 0.01 * tensor([*rows, [36, 17, 47, 47]])
        a, b = tensor([0.0053, 0.0394, 0.2937, 0.0018, 0.4995, 0.1603]), tensor([0.0016, 0, 0.4938, 0.5046])
        keep = b > 0
        for eps in (0.03, 0.015, 0.001):
            without = sinkhorn(C[:, keep], a, b[keep], eps=eps)
            assert without.n_iter > 20, "the instance must need Newton steps"
            assert sinkhorn(C, a, b, eps=eps).n_iter <= 1.2 * without.n_iter

    def test_random_weights_and_a_tiny_eps(self):
        """Two hundred problems, half of them with a target without mass."""
        for seed in range(10):
            rng = problems.generator(seed)
            C = torch.rand(20, 5 + seed % 3, 6, generator=rng, dtype=F64)
            a, b = (torch.rand(20, k, generator=rng, dtype=F64) ** 3 + 1e-6 for k in C.shape[1:])
            b[:, 1] *= seed % 2
            a, b = a / a.sum(-1, keepdim=True), b / b.sum(-1, keepdim=True)
            assert sinkhorn(C, a, b, eps=1e-6, max_iter=2000).converged


class TestZeroWeights:
    @pytest.mark.parametrize("eps", [1.0, 0.01])
    def test_potentials_stay_c_transforms(self, eps):
        C, a, b = problems.random_problem(8, 6)
        a[2], a[5], b[0], b[3] = 0, 0, 0, 0
        a, b = a / a.sum(), b / b.sum()
        result = sinkhorn(C, a, b, eps=eps, tol=1e-12)
        assert_optimal(C, a, b, eps, result, tol=1e-12)
        assert (result.plan[2] == 0).all()
        assert (result.plan[:, 0] == 0).all()
        f = -eps * torch.logsumexp((result.g - C) / eps + b.log(), 1)
        g = -eps * torch.logsumexp((result.f[:, None] - C) / eps + a.log()[:, None], 0)
        torch.testing.assert_close(result.f, f, rtol=0, atol=1e-10)
        torch.testing.assert_close(result.g, g, rtol=0, atol=1e-10)

    def test_same_plan_without_them(self):
        C, a, b = problems.random_problem(8, 6)
        a[2], b[3] = 0, 0
        a, b = a / a.sum(), b / b.sum()
        rows, columns = a > 0, b > 0
        small = solve(C[rows][:, columns], a[rows], b[columns])
        full = solve(C, a, b)
        torch.testing.assert_close(full.plan[rows][:, columns], small.plan, rtol=0, atol=1e-12)
        torch.testing.assert_close(full.value, small.value, rtol=0, atol=1e-12)

    def test_single_atom_left(self):
        result = sinkhorn(tensor([[0, 4], [1, 2]]), [1.0, 0.0], [0.0, 1.0], eps=0.1)
        torch.testing.assert_close(result.plan, tensor([[0, 1], [0, 0]]), rtol=0, atol=1e-15)


class TestForbiddenPairs:
    def test_block_structure(self):
        # Two problems that cannot mix: each block is solved on its own.
        C1, a1, b1 = problems.random_problem(4, 3, seed=1)
        C2, a2, b2 = problems.random_problem(5, 6, seed=2)
        C = torch.full((9, 9), math.inf, dtype=F64)
        C[:4, :3], C[4:, 3:] = C1, C2
        a, b = torch.cat([0.3 * a1, 0.7 * a2]), torch.cat([0.3 * b1, 0.7 * b2])
        result = solve(C, a, b)
        torch.testing.assert_close(result.plan[:4, :3], 0.3 * solve(C1, a1, b1).plan, rtol=0, atol=1e-12)
        torch.testing.assert_close(result.plan[4:, 3:], 0.7 * solve(C2, a2, b2).plan, rtol=0, atol=1e-12)
        assert (result.plan[torch.isinf(C)] == 0).all()
        assert torch.isfinite(result.cost)

    @pytest.mark.parametrize("eps", [1.0, 0.01])
    def test_plan_with_an_entry_forced_to_zero(self, eps):
        # Only the diagonal plan is feasible, though one entry off it is allowed: the potentials
        # run to infinity, and the plan must come close all the same.
        C = tensor([[0, 0], [math.inf, 0]])
        result = sinkhorn(C, eps=eps)
        assert result.converged
        torch.testing.assert_close(result.plan, 0.5 * torch.eye(2, dtype=F64), rtol=0, atol=1e-6)

    @pytest.mark.parametrize("eps", [1.0, 0.01])
    def test_infeasible(self, eps):
        C = tensor([[0, math.inf], [math.inf, 1]])
        with pytest.warns(ConvergenceWarning, match="forbidden"):
            result = sinkhorn(C, [0.5, 0.5], [0.3, 0.7], eps=eps)
        assert not result.converged
        assert result.n_iter < 2000
        for t in (result.plan, result.f, result.g, result.value, result.cost, result.marginal_error):
            assert torch.isfinite(t).all()

    def test_a_target_that_only_a_source_without_mass_may_reach(self):
        C = tensor([[0, math.inf], [1, 1]])
        result = sinkhorn(C, [1.0, 0.0], [1.0, 0.0], eps=0.5)
        assert result.converged
        torch.testing.assert_close(result.plan, tensor([[1, 0], [0, 0]]), rtol=0, atol=1e-12)
        for t in (result.f, result.g, result.value):
            assert torch.isfinite(t).all()

    def test_only_targets_without_mass(self):
        C = tensor([[0, math.inf], [1, 1]])
        with pytest.warns(ConvergenceWarning, match="forbidden"):
            result = sinkhorn(C, [0.5, 0.5], [0.0, 1.0], eps=0.5)
        assert not result.converged
        for t in (result.plan, result.f, result.g, result.value):
            assert torch.isfinite(t).all()


class TestInvariance:
    def test_permutation(self):
        checks.assert_permutation_equivariant(solve, *problems.random_problem(9, 6))

    def test_transpose(self):
        checks.assert_transpose_symmetric(solve, *problems.random_problem(9, 6))

    def test_shift_by_potentials(self):
        checks.assert_shift_invariant(solve, *problems.random_problem(9, 6))

    @pytest.mark.parametrize("scale", [1e-8, 1e8])
    def test_scaling(self, scale):
        C, a, b = problems.random_problem(9, 6)
        small, large = solve(C, a, b, eps=0.1), solve(scale * C, a, b, eps=scale * 0.1)
        torch.testing.assert_close(large.plan, small.plan, rtol=0, atol=1e-12)
        torch.testing.assert_close(large.value / scale, small.value, rtol=0, atol=1e-12)

    def test_translation_is_shared_by_the_potentials(self):
        C, a, b = problems.random_problem(9, 6)
        before, after = solve(C, a, b), solve(C + 2, a, b)
        torch.testing.assert_close(after.f, before.f + 1, rtol=0, atol=1e-10)
        torch.testing.assert_close(after.g, before.g + 1, rtol=0, atol=1e-10)

    def test_layout_of_the_cost(self):
        C, a, b = problems.random_problem(9, 6)
        strided = torch.zeros(18, 12, dtype=F64)[::2, ::2].copy_(C)
        torch.testing.assert_close(solve(strided, a, b).plan, solve(C, a, b).plan, rtol=0, atol=1e-12)


class TestIndependentSolver:
    @pytest.mark.parametrize("method", ["sinkhorn", "sinkhorn_log"])
    def test_pot(self, method):
        C, a, b = problems.random_problem(30, 20)
        eps = 0.2 * C.mean().item()
        plan = ot.sinkhorn(
            a.numpy(), b.numpy(), C.numpy(), eps, method=method, stopThr=1e-14, numItermax=20_000
        )
        result = solve(C, a, b, eps=eps)
        np.testing.assert_allclose(result.plan.numpy(), plan, rtol=0, atol=1e-9)

    def test_pot_value_after_conversion(self):
        C, a, b = problems.random_problem(12, 9)
        eps = 0.5
        result = solve(C, a, b, eps=eps)
        args = (C.numpy(), a.numpy(), b.numpy())
        kl = ot.solve(*args, reg=eps, reg_type="KL", tol=1e-13, max_iter=20_000)
        assert abs(kl.value - result.value.item()) < 1e-9
        entropy = ot.solve(*args, reg=eps, reg_type="entropy", tol=1e-13, max_iter=20_000)
        P = result.plan
        by_definition = result.cost + eps * (P * P.log()).sum()
        converted = result.value + eps * ((a * a.log()).sum() + (b * b.log()).sum())
        torch.testing.assert_close(converted, by_definition, rtol=0, atol=1e-10)
        assert abs(entropy.value - converted.item()) < 1e-9


class TestBatch:
    @pytest.mark.parametrize("eps", [0.5, 0.02])
    def test_equals_the_loop(self, eps):
        C, a, b = problems.random_problem(7, 5, batch=(2, 3))
        C = C * torch.linspace(0.1, 3, 6, dtype=F64).reshape(2, 3, 1, 1)
        result = sinkhorn(C, a, b, eps=eps, tol=1e-12)
        assert result.plan.shape == (2, 3, 7, 5)
        assert result.value.shape == result.marginal_error.shape == (2, 3)
        for i in range(2):
            for j in range(3):
                one = sinkhorn(C[i, j], a[i, j], b[i, j], eps=eps, tol=1e-12)
                torch.testing.assert_close(result.plan[i, j], one.plan, rtol=0, atol=1e-10)
                torch.testing.assert_close(result.value[i, j], one.value, rtol=0, atol=1e-10)

    def test_shared_weights_and_zeros(self):
        C, _, _ = problems.random_problem(4, 6, batch=(3,))
        a = tensor([0.2, 0.0, 0.5, 0.3])
        b = problems.weights(3, 6)
        b[1, 2] = 0
        b = b / b.sum(-1, keepdim=True)
        result = solve(C, a, b, eps=0.05)
        assert_optimal(C, a.expand(3, 4), b, 0.05, result, tol=1e-12)

    def test_a_thousand_small_problems(self):
        C, a, b = problems.random_problem(32, 32, batch=(1000,))
        result = sinkhorn(C, a, b, eps=0.5)
        assert result.converged
        assert result.marginal_error.shape == (1000,)


class TestGradients:
    """The envelope theorem: dV/dC = P, and f, g in a, b up to a constant. More in test_gradients."""

    def test_gradcheck_in_the_cost(self):
        C, a, b = problems.random_problem(4, 6)
        b[2] = 0
        b = b / b.sum()
        C.requires_grad_()
        assert torch.autograd.gradcheck(lambda C: solve(C, a, b, eps=0.7).value, C)
        result = solve(C, a, b, eps=0.7)
        (gradient,) = torch.autograd.grad(result.value, C)
        torch.testing.assert_close(gradient, result.plan, rtol=0, atol=1e-14)

    def test_gradcheck_in_the_weights(self):
        C, a, b = problems.random_problem(4, 6)
        b[2] = 0  # a zero weight on the side that stays fixed
        b = b / b.sum()
        s = a.log().requires_grad_()
        assert torch.autograd.gradcheck(lambda s: solve(C, s.softmax(0), b, eps=0.7).value, s)
        assert torch.autograd.gradcheck(lambda s: solve(C.mT, b, s.softmax(0), eps=0.7).value, s)

    def test_gradcheck_at_a_zero_weight(self):
        # One-sided: mass moved to an empty atom changes the value by its potential.
        C, a, b = problems.random_problem(4, 6)
        b[2] = 0
        b = (b / b.sum()).requires_grad_()
        result = solve(C, a, b, eps=0.7)
        (gradient,) = torch.autograd.grad(result.value, b)
        h = 1e-6
        moved = b.detach().clone()
        moved[2], moved[0] = h, moved[0] - h
        change = (solve(C, a, moved, eps=0.7).value - result.value.detach()) / h
        torch.testing.assert_close(change, gradient[2] - gradient[0], rtol=0, atol=1e-4)

    def test_gradcheck_of_a_batch(self):
        C, a, b = problems.random_problem(3, 4, batch=(2,))
        s = a[0].log().requires_grad_()  # one source for both problems
        C.requires_grad_()
        assert torch.autograd.gradcheck(lambda C, s: solve(C, s.softmax(0), b, eps=0.7).value, (C, s))

    def test_forbidden_pair_has_gradient_zero(self):
        C = tensor([[1, math.inf, 0.5], [0, 1, 2]]).requires_grad_()
        result = solve(C, eps=0.5)
        (gradient,) = torch.autograd.grad(result.value, C)
        assert gradient[0, 1] == 0
        torch.testing.assert_close(gradient, result.plan, rtol=0, atol=1e-14)


class TestDiagnostics:
    def test_not_converged(self):
        C, a, b = problems.random_problem(30, 30)
        with pytest.warns(ConvergenceWarning, match=r"after 1 iterations .* max_iter .* eps"):
            result = sinkhorn(C, a, b, eps=0.001, max_iter=1)
        assert not result.converged
        assert result.n_iter == 1
        assert result.marginal_error > 1e-6
        error = (result.plan.sum(0) - b).abs().sum() + (result.plan.sum(1) - a).abs().sum()
        torch.testing.assert_close(result.marginal_error, error, rtol=0, atol=1e-12)
        # However early it stops, one marginal is exact, to the rounding of C/ε ≈ 1e4.
        torch.testing.assert_close(result.plan.sum(1), a, rtol=1e-11, atol=0)

    def test_tolerance_below_rounding(self):
        C, a, b = problems.random_problem(30, 30)
        with pytest.warns(ConvergenceWarning, match=r"tol is below rounding; .* float64"):
            result = sinkhorn(C.float(), a.float(), b.float(), eps=0.1, tol=1e-12)
        assert not result.converged
        assert result.marginal_error < 1e-6

    def test_max_iter_is_respected(self):
        C, a, b = problems.random_problem(60, 60)
        for max_iter in (5, 20, 60):
            with pytest.warns(ConvergenceWarning):
                result = sinkhorn(C, a, b, eps=1e-5, max_iter=max_iter)
            assert result.n_iter <= max_iter + 11  # a Newton step is not left half-way

    def test_callback(self):
        C, a, b = problems.random_problem(20, 20)
        calls = []
        result = sinkhorn(C, a, b, eps=2.0, callback=lambda *call: calls.append(call), accelerate=False)
        steps, errors, duals = zip(*calls, strict=True)
        assert steps == tuple(range(result.n_iter + 1))
        assert errors[-1] <= 1e-6
        assert errors[-1] < errors[-2] < errors[0]
        # Each Sinkhorn iteration maximises the dual in one potential: it can only rise, to the float32
        # rounding of the products.
        assert all(later >= earlier - 1e-7 for earlier, later in itertools.pairwise(duals))
        assert abs(duals[-1] - result.value.item()) < 1e-12

    def test_progress_bar(self, capsys):
        sinkhorn(*problems.random_problem(), eps=0.1, progress=True)
        assert "marginal error" in capsys.readouterr().err

    def test_warm_start(self):
        C, a, b = problems.random_problem(40, 30)
        first = sinkhorn(C, a, b, eps=0.05, tol=1e-9)
        again = sinkhorn(C, a, b, eps=0.05, g0=first.g)
        assert again.n_iter == 0
        nearby = sinkhorn(1.001 * C, a, b, eps=0.05, g0=first.g)
        assert 0 < nearby.n_iter < first.n_iter
        assert nearby.converged

    def test_inputs_are_untouched(self):
        C, a, b = problems.random_problem()
        copies = [t.clone() for t in (C, a, b)]
        sinkhorn(C, a, b, eps=0.1)
        for t, copy in zip((C, a, b), copies, strict=True):
            assert torch.equal(t, copy)

    def test_numpy_and_default_weights(self):
        C, _, _ = problems.random_problem(7, 5)
        result = sinkhorn(C.numpy(), eps=0.3, tol=1e-12)
        uniform = [torch.full((k,), 1 / k, dtype=F64) for k in (7, 5)]
        torch.testing.assert_close(result.plan, solve(C, *uniform).plan, rtol=0, atol=1e-10)

    def test_public_names(self):
        assert otbook.sinkhorn is otbook.entropic.sinkhorn

    @pytest.mark.parametrize("dtype", [torch.float32, F64])
    @pytest.mark.parametrize("eps", [0.1, 1e-3])
    def test_on_another_device(self, dtype, eps, device):
        C, a, b = (t.to(dtype) for t in problems.random_problem(60, 50))
        there = sinkhorn(C.to(device), a.to(device), b.to(device), eps=eps)
        assert there.plan.device == device
        assert there.converged
        here = sinkhorn(C, a, b, eps=eps)
        torch.testing.assert_close(there.value.cpu(), here.value, rtol=0, atol=1e-5)
        checks.assert_coupling(there.plan.double(), a.double().to(device), b.double().to(device), atol=1e-6)


GOOD = {"C": torch.ones(2, 3, dtype=F64), "eps": 1.0}


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        ({"eps": 0.0}, ValueError, r"eps must be .* above 0, but is 0; .* use emd"),
        ({"eps": -1.0}, ValueError, r"eps must be .* use emd"),
        ({"eps": math.nan}, ValueError, r"eps must be"),
        ({"eps": "small"}, TypeError, r"eps must be a number"),
        ({"tol": 0}, ValueError, r"tol must be"),
        ({"max_iter": 0}, ValueError, r"max_iter must be"),
        ({"a": [-0.5, 1.5]}, ValueError, r"a holds a negative weight"),
        ({"a": [math.nan, 1]}, ValueError, r"a holds nan"),
        ({"a": [0.5, 0.4]}, ValueError, r"a has mass 0\.9"),
        ({"b": [0.5, 0.5]}, ValueError, r"b must have shape \(…, 3\)"),
        ({"b": torch.ones(3) / 3}, ValueError, r"b is float32 .* b\.to\("),
        ({"C": torch.ones(3)}, ValueError, r"C must have shape"),
        ({"C": torch.ones(0, 3)}, ValueError, r"empty measure"),
        ({"C": torch.full((2, 3), math.nan)}, ValueError, r"C holds NaN"),
        ({"C": torch.full((2, 3), math.inf)}, ValueError, r"infinite cost in all of row 0"),
        ({"g0": [0.0, 1.0]}, ValueError, r"g0 must .* shape \(…, 3\)"),
        ({"g0": [0.0, 1.0, math.nan]}, ValueError, r"g0 must be a finite potential"),
    ],
)
def test_bad_input(bad, error, message):
    with pytest.raises(error, match=message):
        sinkhorn(**{**GOOD, **bad})
