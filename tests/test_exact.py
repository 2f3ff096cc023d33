"""Exact solvers: planted answers, dual certificates, and three independent solvers that agree."""

from __future__ import annotations

import itertools
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from otbook import ConvergenceWarning, assignment, emd, linear_program
from otbook.exact import _transport as exact

from . import checks, problems

SOLVERS = [emd, linear_program]
both = pytest.mark.parametrize("solve", SOLVERS)


def certify(C, a, b, result, atol=1e-10):
    checks.assert_coupling(result.plan, a, b)
    checks.assert_dual_certificate(C, a, b, result.f, result.g, result.value, atol=atol)
    finite = torch.where(result.plan > 0, C, 0.0)
    torch.testing.assert_close((finite * result.plan).sum((-2, -1)), result.value, rtol=0, atol=atol)


# Known answers


@both
@pytest.mark.parametrize("empty", [0, 2])
@pytest.mark.parametrize(("n", "m"), [(7, 5), (4, 9), (1, 6)])
def test_planted_answer(solve, n, m, empty):
    q = problems.planted(n, m, seed=n, empty=empty if n > 2 else 0)
    result = solve(q.C, q.a, q.b)
    torch.testing.assert_close(result.value, q.value, rtol=0, atol=1e-10)
    torch.testing.assert_close(result.plan, q.plan, rtol=0, atol=1e-10)
    certify(q.C, q.a, q.b, result)
    assert result.converged
    assert result.n_iter == 0
    assert result.marginal_error < 1e-12
    assert result.cost is result.value


@both
def test_two_by_two_by_hand(solve):
    result = solve(torch.tensor([[0.0, 1.0], [1.0, 0.0]]).double(), [0.5, 0.5], [0.1, 0.9])
    expected = torch.tensor([[0.1, 0.4], [0.0, 0.5]], dtype=torch.float64)
    torch.testing.assert_close(result.plan, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(result.value.item(), 0.4, rtol=0, atol=1e-12)


@both
def test_potentials_split_the_value_in_halves(solve):
    C, a, b = problems.random_problem()
    result = solve(C, a, b)
    torch.testing.assert_close((a * result.f).sum(), result.value / 2, rtol=0, atol=1e-12)
    torch.testing.assert_close((b * result.g).sum(), result.value / 2, rtol=0, atol=1e-12)


# Independent solvers


@pytest.mark.parametrize(("n", "m"), [(30, 20), (25, 25)])
def test_linear_program_agrees_with_the_network_simplex(n, m):
    C, a, b = problems.random_problem(n, m)
    torch.testing.assert_close(emd(C, a, b).value, linear_program(C, a, b).value, rtol=0, atol=1e-9)


def test_assignment_agrees_with_emd_and_with_all_permutations():
    C, *_ = problems.random_problem(6, 6)
    C = C + torch.arange(36.0).reshape(6, 6) / 40  # not symmetric in any way
    permutation, cost = assignment(C)
    result = emd(C)
    torch.testing.assert_close(cost, result.value, rtol=0, atol=1e-10)
    torch.testing.assert_close(result.plan, torch.eye(6).double()[permutation] / 6, rtol=0, atol=1e-12)
    best = min(sum(C[i, s[i]].item() for i in range(6)) / 6 for s in itertools.permutations(range(6)))
    torch.testing.assert_close(cost.item(), best, rtol=0, atol=1e-12)
    assert permutation.dtype == torch.int64


# Invariances


@both
@pytest.mark.parametrize(
    "check",
    [checks.assert_permutation_equivariant, checks.assert_transpose_symmetric, checks.assert_shift_invariant],
)
def test_invariances(solve, check):
    check(solve, *problems.random_problem())


@both
@pytest.mark.parametrize("unit", [1e-150, 1e-9, 1e9, 1e150])
def test_value_scales_with_the_unit_of_cost(solve, unit):
    # The network simplex compares with an absolute tolerance: 1e-9 failed before costs were rescaled.
    C, a, b = problems.random_problem(20, 30)
    torch.testing.assert_close(solve(C * unit, a, b).value / unit, solve(C, a, b).value, rtol=1e-12, atol=0)


@both
def test_constant_cost(solve):
    C, a, b = problems.random_problem()
    for constant in (0.0, -3.0):
        result = solve(torch.full_like(C, constant), a, b)
        certify(torch.full_like(C, constant), a, b, result)
        assert abs(result.value.item() - constant) < 1e-12


@both
def test_costs_that_are_equal_up_to_rounding(solve):
    C, a, b = problems.random_problem()
    C = 1e8 + 1e-8 * C
    certify(C, a, b, solve(C, a, b), atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 6), m=st.integers(1, 6), seed=st.integers(0, 10**6), whole=st.booleans())
def test_any_problem_is_certified(n, m, seed, whole):
    rng = problems.generator(seed)
    C = torch.randn(n, m, generator=rng, dtype=torch.float64)
    if whole:  # many ties
        C = C.round()
    a = torch.randint(0, 3, (n,), generator=rng).double()
    b = torch.randint(0, 3, (m,), generator=rng).double()
    a[0] += 1
    b[-1] += 1
    a, b = a / a.sum(), b / b.sum()
    result = emd(C, a, b)
    certify(C, a, b, result)
    assert (result.plan > 0).sum() <= n + m - 1


# Forbidden entries


@both
def test_forbidden_entries_carry_no_mass(solve):
    q = problems.planted()
    C = torch.where(q.plan > 0, q.C, torch.inf)
    result = solve(C, q.a, q.b)
    torch.testing.assert_close(result.plan, q.plan, rtol=0, atol=1e-10)
    certify(C, q.a, q.b, result)


@both
def test_forbidding_the_best_entry_changes_the_plan(solve):
    C, a, b = problems.random_problem()
    before = solve(C, a, b)
    i, j = divmod(before.plan.argmax().item(), C.shape[1])
    C[i, j] = torch.inf
    result = solve(C, a, b)
    certify(C, a, b, result)
    assert result.plan[i, j] == 0
    assert result.value > before.value + 1e-3


@both
def test_two_blocks_whose_masses_agree_up_to_rounding(solve):
    C = torch.full((4, 4), torch.inf, dtype=torch.float64)
    C[:1, :3] = torch.tensor([1.0, 2.0, 4.0])
    C[1:, 3:] = torch.tensor([[3.0], [0.0], [1.0]])
    a = torch.tensor([0.3, 0.2, 0.4, 0.1], dtype=torch.float64)
    b = torch.tensor([0.1, 0.1, 0.1, 0.7], dtype=torch.float64)  # 0.1 + 0.1 + 0.1 ≠ 0.3
    certify(C, a, b, solve(C, a, b))


@both
def test_no_coupling_left(solve):
    C = torch.tensor([[torch.inf, torch.inf, 1.0], [0.5, 1.0, torch.inf]])
    with pytest.raises(ValueError, match=r"C forbids every coupling.*0\.25.*finite"):
        solve(C, [0.25, 0.75], [0.25, 0.25, 0.5])


def test_no_permutation_left():
    with pytest.raises(ValueError, match="C forbids every permutation.*finite"):
        assignment([[1.0, torch.inf, torch.inf], [1.0, torch.inf, torch.inf], [1.0, 1.0, 1.0]])
    permutation, cost = assignment([[1.0, torch.inf], [0.0, 5.0]])
    assert permutation.tolist() == [0, 1]
    assert cost.item() == 3.0


# Weights


@both
def test_potentials_are_feasible_at_atoms_without_mass(solve):
    C, a, b = problems.random_problem()
    C[0] -= 5  # a bargain that nobody can use
    C[:, -1] -= 5
    a[0] = b[-1] = 0
    a, b = a / a.sum(), b / b.sum()
    result = solve(C, a, b)
    certify(C, a, b, result)
    assert (result.plan[0] == 0).all()
    inside = solve(C[1:, :-1], a[1:], b[:-1])
    torch.testing.assert_close(result.value, inside.value, rtol=0, atol=1e-10)


def test_potentials_of_a_solver_that_ignores_atoms_without_mass_are_repaired(monkeypatch):
    solver = exact._network_simplex

    def careless(C, a, b):
        plan, f = solver(C, a, b)
        return plan, np.where(a > 0, f, 1e3)

    monkeypatch.setattr(exact, "_network_simplex", careless)
    q = problems.planted(empty=2)
    certify(q.C, q.a, q.b, emd(q.C, q.a, q.b))


def test_weights_over_thirty_orders_of_magnitude():
    C, _, b = problems.random_problem(30, 20)
    a = torch.logspace(-30, 0, 30, dtype=torch.float64)
    certify(C, a / a.sum(), b, emd(C, a / a.sum(), b))


@both
def test_float32_weights_that_sum_to_one_in_float32_only(solve):
    C, a, b = (t.float() for t in problems.random_problem(40, 30))
    result = solve(C, a, b)
    reference = emd(C.double(), a.double() / a.double().sum(), b.double() / b.double().sum())
    assert result.plan.dtype == result.value.dtype == result.f.dtype == torch.float32
    torch.testing.assert_close(result.value, reference.value.float(), rtol=0, atol=1e-6)
    checks.assert_coupling(result.plan, a, b, atol=1e-6)
    checks.assert_dual_certificate(C, a, b, result.f, result.g, result.value, atol=1e-5)


# Batches


@both
def test_batch_equals_single_calls(solve):
    C, a, b = problems.random_problem(batch=(2, 3))
    result = solve(C, a, b)
    assert result.value.shape == result.marginal_error.shape == (2, 3)
    for k in itertools.product(range(2), range(3)):
        single = solve(C[k], a[k], b[k])
        for name in ("value", "plan", "f", "g"):
            torch.testing.assert_close(getattr(result, name)[k], getattr(single, name), rtol=0, atol=1e-12)


def test_shared_weights_and_assignment_in_a_batch():
    C, a, _ = problems.random_problem(5, 5, batch=(3,))
    result = emd(C, a[0], None)
    for k in range(3):
        torch.testing.assert_close(result.value[k], emd(C[k], a[0]).value, rtol=0, atol=1e-12)
    permutation, cost = assignment(C)
    assert permutation.shape == (3, 5)
    torch.testing.assert_close(cost, emd(C).value, rtol=0, atol=1e-10)


def test_numpy_in_tensor_out():
    C, a, b = problems.random_problem()
    result = emd(C.numpy(), a.numpy(), b.numpy())
    torch.testing.assert_close(result.plan, emd(C, a, b).plan, rtol=0, atol=0)


# Derivatives


@both
def test_gradcheck_of_the_value(solve):
    q = problems.planted(5, 4, empty=1)
    inputs = (q.C.requires_grad_(), q.a[1:].log().requires_grad_(), torch.randn(4).double().requires_grad_())

    def value(C, log_a, log_b):
        a = torch.cat([torch.zeros(1).double(), log_a.softmax(0)])
        return solve(C, a, log_b.softmax(0)).value

    assert torch.autograd.gradcheck(value, inputs)


def test_gradients_are_the_plan_and_the_potentials():
    C, a, b = problems.random_problem(batch=(2,))
    result = emd(C.requires_grad_(), a.requires_grad_(), b.requires_grad_())
    factor = torch.tensor([1.0, -2.0]).double()
    gradients = torch.autograd.grad((factor * result.value).sum(), (C, a, b))
    expected = (factor[:, None, None] * result.plan, factor[:, None] * result.f, factor[:, None] * result.g)
    torch.testing.assert_close(gradients, expected, rtol=0, atol=1e-12)
    for constant in (result.plan, result.f, result.g):
        assert not constant.requires_grad


def test_gradient_is_zero_at_forbidden_entries():
    q = problems.planted()
    C = torch.where(q.plan > 0, q.C, torch.inf).requires_grad_()
    (gradient,) = torch.autograd.grad(emd(C, q.a, q.b).value, C)
    torch.testing.assert_close(gradient, q.plan, rtol=0, atol=1e-10)


def test_gradcheck_of_the_assignment():
    C, *_ = problems.random_problem(4, 4, batch=(2,))
    assert torch.autograd.gradcheck(lambda C: assignment(C)[1], C.requires_grad_())


# Honesty


def test_emd_emits_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        emd(*problems.random_problem(60, 50))


def test_unfinished_solve_is_reported(monkeypatch):
    monkeypatch.setattr(exact, "_MAX_PIVOTS", 3)
    with pytest.warns(ConvergenceWarning, match="duality gap"):
        result = emd(*problems.random_problem(60, 50))
    assert not result.converged


def test_a_wrong_plan_is_reported(monkeypatch):
    def independent(C, a, b):
        return np.outer(a, b), np.zeros_like(a)

    monkeypatch.setattr(exact, "_network_simplex", independent)
    with pytest.warns(ConvergenceWarning, match="may not be optimal"):
        assert not emd(*problems.random_problem()).converged


# Bad input

C = torch.ones(2, 3, dtype=torch.float64)
BAD = {
    "one axis": ((torch.ones(3),), {}, r"C must have shape \(…, n, m\)"),
    "empty": ((torch.ones(0, 3),), {}, "C has shape .*empty measure.*at least one point"),
    "NaN cost": ((C * torch.nan,), {}, r"C holds NaN at C\[0, 0\]; remove"),
    "cost below everything": ((-C / 0,), {}, "C holds −inf"),
    "closed row": ((torch.tensor([[1.0, 1.0], [torch.inf, torch.inf]]),), {}, "all of row 1.*finite entry"),
    "closed column": ((torch.tensor([[1.0, torch.inf], [1.0, torch.inf]]),), {}, "all of column 1"),
    "half precision": ((C.half(),), {}, r"C has dtype float16; use float32 or float64"),
    "complex": ((C.cfloat(),), {}, "C has dtype complex64"),
    "wrong length": ((C, [0.5, 0.25, 0.25]), {}, r"a must have shape \(…, 2\)"),
    "negative weight": ((C, [-0.5, 1.5]), {}, r"a holds a negative weight, -0\.5.*clamp"),
    "NaN weight": ((C, None, [torch.nan, 0.5, 0.5]), {}, "b holds nan"),
    "masses differ": ((C, None, [0.5, 0.5, 0.5]), {}, "b has mass 1.5, not 1.*divide by the sum"),
    "dtypes differ": ((C, torch.ones(2) / 2), {}, r"a is float32 on cpu.*a\.to\("),
    "batch shapes differ": ((torch.stack([C, C]), torch.ones(3, 2).double() / 2), {}, "a has batch shape"),
}


@both
@pytest.mark.parametrize("case", BAD)
def test_bad_input(solve, case):
    args, kwargs, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        solve(*args, **kwargs)


@both
def test_something_else_than_numbers(solve):
    with pytest.raises(TypeError, match="C must be a tensor.*str"):
        solve("cost")


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (C, r"C must be square.*\(2, 3\).*use emd"),
        (torch.ones(0, 0), "empty measure"),
        (torch.full((2, 2), torch.nan), "C holds NaN"),
        (torch.ones(4), "C must have shape"),
    ],
)
def test_bad_input_of_assignment(bad, message):
    with pytest.raises(ValueError, match=message):
        assignment(bad)


# Another device


def test_results_come_back_on_the_device_of_the_cost(device):
    C, a, b = (t.to(device) for t in problems.random_problem(5, 5))
    result = emd(C, a, b)
    permutation, cost = assignment(C)
    for t in (result.value, result.plan, result.f, result.marginal_error, permutation, cost):
        assert t.device == device
    torch.testing.assert_close(result.value.cpu(), emd(C.cpu(), a.cpu(), b.cpu()).value, rtol=0, atol=1e-12)
