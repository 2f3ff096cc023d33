"""The shared checks and problems: each check accepts a right answer and rejects a perturbed one."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from otbook import OTResult

from . import checks, problems


def solved(P, value):
    return OTResult(value, value, None, None, 0, torch.zeros(()), True, P)


@pytest.fixture
def q():
    return problems.planted(empty=1)


def test_planted_problem_is_certified_by_its_own_potentials(q):
    checks.assert_coupling(q.plan, q.a, q.b)
    checks.assert_dual_certificate(q.C, q.a, q.b, q.f, q.g, q.value)
    torch.testing.assert_close((q.C * q.plan).sum(), q.value, rtol=0, atol=1e-12)
    assert (q.a == 0).sum() == 1
    assert (q.b == 0).sum() == 1


def test_planted_entropic_problem_satisfies_its_optimality_conditions():
    q = problems.planted_entropic(eps=0.5)
    checks.assert_coupling(q.plan, q.a, q.b)
    gibbs = q.a[:, None] * q.b * ((q.f[:, None] + q.g - q.C) / 0.5).exp()
    torch.testing.assert_close(gibbs, q.plan, rtol=1e-12, atol=0)
    kl = (q.plan * (q.plan / (q.a[:, None] * q.b)).log()).sum()
    torch.testing.assert_close((q.C * q.plan).sum() + 0.5 * kl, q.value, rtol=0, atol=1e-12)


def test_generators_depend_on_the_seed_only():
    torch.testing.assert_close(problems.random_problem(seed=3), problems.random_problem(seed=3))
    assert not torch.equal(problems.random_problem(seed=3)[0], problems.random_problem(seed=4)[0])


def test_assert_coupling_rejects(q):
    moved = q.plan.clone()
    moved[0, 0] += 1e-9
    with pytest.raises(AssertionError):
        checks.assert_coupling(moved, q.a, q.b)
    # Right marginals, but a negative entry.
    signed = q.plan + 1e-3 * torch.outer(torch.arange(7.0) - 3, torch.arange(5.0) - 2)
    with pytest.raises(AssertionError, match="negative"):
        checks.assert_coupling(signed, q.a, q.b)
    with pytest.raises(AssertionError, match="not finite"):
        checks.assert_coupling(q.plan * torch.nan, q.a, q.b)
    # Right rows, wrong columns.
    with pytest.raises(AssertionError):
        checks.assert_coupling(q.plan.roll(1, 1), q.a, q.b)


def test_assert_dual_certificate_rejects(q):
    arguments = (q.C, q.a, q.b)
    with pytest.raises(AssertionError, match="infeasible"):
        checks.assert_dual_certificate(*arguments, q.f + 1e-6, q.g - 1e-6 / 2, q.value)
    with pytest.raises(AssertionError):
        checks.assert_dual_certificate(*arguments, q.f - 1e-6, q.g, q.value)
    with pytest.raises(AssertionError, match="not finite"):
        checks.assert_dual_certificate(*arguments, q.f, torch.where(q.b == 0, -torch.inf, q.g), q.value)


@pytest.mark.parametrize(
    "check",
    [checks.assert_permutation_equivariant, checks.assert_transpose_symmetric, checks.assert_shift_invariant],
)
@pytest.mark.parametrize("part", ["plan", "value"])
def test_invariances_reject_a_solver_that_prefers_the_first_point(check, part):
    def independent(C, a, b):
        """A solver that has all three symmetries: the plan a⊗b at the cost of independence."""
        P = a[:, None] * b
        return solved(P, (C * P).sum())

    def favourite(C, a, b):
        result = independent(C, a, b)
        nudge = torch.zeros_like(C)
        nudge[0, 1] = 1e-3 * C[0, 1]
        if part == "plan":
            return dataclasses.replace(result, _plan=result.plan + nudge)
        return dataclasses.replace(result, value=result.value + nudge.sum())

    arguments = problems.random_problem()
    check(independent, *arguments)
    with pytest.raises(AssertionError):
        check(favourite, *arguments)


def test_close_rejects_a_perturbed_entry():
    x = problems.matrix(3, 2)
    checks.close(x, x.clone())
    checks.close(torch.ones(4, dtype=torch.float32), 1)
    for wrong in (x + 1e-9 * torch.eye(3, 2, dtype=x.dtype), torch.nan):
        with pytest.raises(AssertionError):
            checks.close(x, wrong)
