"""The auction: planted answers, its certificate, two independent solvers, and its theorem on bids."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from otbook import ConvergenceWarning, emd
from otbook.exact import _assignment, _auction, assignment, auction

from . import checks, problems


def uniform(C):
    return torch.full(C.shape[:-1], 1 / C.shape[-1], dtype=C.dtype)


def certify(C, result, atol=1e-10):
    w = uniform(C)
    checks.assert_coupling(result.plan, w, w, atol=max(atol, 1e-12))
    # The gap is at most the last ε, 10⁻¹⁰ of the range of the costs.
    checks.assert_dual_certificate(C, w, w, result.f, result.g, result.value, atol=atol)
    finite = torch.where(result.plan > 0, C, 0.0)
    torch.testing.assert_close((finite * result.plan).sum((-2, -1)), result.value, rtol=0, atol=atol)


def planted(n, seed=0):
    """C = f⊕g + slack, with slack 0 on one permutation and at least 0.1 elsewhere."""
    rng = problems.generator(seed)
    sigma = torch.randperm(n, generator=rng)
    f, g = torch.randn(2, n, generator=rng, dtype=torch.float64)
    slack = torch.rand(n, n, generator=rng, dtype=torch.float64) + 0.1
    slack[torch.arange(n), sigma] = 0
    return f[:, None] + g + slack, sigma, (f + g).mean()


def whole_costs(n, high=100, seed=0):
    return torch.randint(high, (n, n), generator=problems.generator(seed)).double()


# Known answers


@pytest.mark.parametrize("n", [1, 2, 7, 40])
def test_planted_answer(n):
    C, sigma, value = planted(n)
    result = auction(C)
    assert (result.plan.argmax(-1) == sigma).all()
    torch.testing.assert_close(result.value, value, rtol=0, atol=1e-12)
    certify(C, result, atol=2e-9)
    assert result.converged
    assert result.cost is result.value
    assert result.marginal_error == 0
    assert result.n_iter >= 1


def test_three_by_three_by_hand():
    C = torch.tensor([[4.0, 1.0, 3.0], [2.0, 0.0, 5.0], [3.0, 2.0, 2.0]]).double()
    best = min(sum(C[i, s[i]].item() for i in range(3)) / 3 for s in itertools.permutations(range(3)))
    result = auction(C, eps=0.3)
    assert result.plan.argmax(-1).tolist() == [1, 0, 2]
    torch.testing.assert_close(result.value.item(), best, rtol=0, atol=1e-12)


@pytest.mark.parametrize("n", [2, 10, 60])
def test_products_are_sorted_against_each_other(n):
    i = torch.arange(1.0, n + 1, dtype=torch.float64)
    result = auction(torch.outer(i, i))
    assert result.plan.argmax(-1).tolist() == list(range(n))[::-1]
    torch.testing.assert_close(result.value, (i * i.flip(0)).mean(), rtol=1e-14, atol=0)


# Certificate


@pytest.mark.parametrize("seed", range(5))
def test_whole_costs_are_solved_by_any_epsilon_below_one_over_n(seed):
    C = whole_costs(30, seed=seed)
    rows, columns = linear_sum_assignment(C.numpy())
    result = auction(C, eps=0.99 / 30)
    assert (C * result.plan).sum() * 30 == pytest.approx(C[rows, columns].sum().item(), abs=1e-9)
    gap = result.value - result.f.mean() - result.g.mean()
    assert 0 <= gap <= 0.99 / 30


@pytest.mark.parametrize("eps", [10.0, 1.0, 0.1])
@pytest.mark.parametrize("scaling", [2, 5.0, math.inf])
def test_every_source_pays_at_most_epsilon_above_its_cheapest_choice(eps, scaling):
    C = whole_costs(25)
    result = auction(C, eps=eps, scaling=scaling)
    excess = (25 * result.plan * (C - result.f[:, None] - result.g)).sum(1)
    assert excess.mean() <= eps * (1 + 1e-12)
    # The auction stops once the mean allows it, at an ε of up to `scaling` times as much.
    limit = eps if scaling == math.inf else 5 * eps * scaling
    assert excess.max() <= limit * (1 + 1e-12)
    assert (result.f[:, None] + result.g - C).max() <= 1e-12
    assert result.value <= assignment(C)[1] + eps
    assert result.converged


def test_potentials_split_the_value_in_halves():
    C, *_ = problems.random_problem(6, 6)
    result = auction(C)
    torch.testing.assert_close(result.f.mean(), result.g.mean(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("scaling", [2.0, 5.0, math.inf])
@pytest.mark.parametrize("seed", range(4))
def test_a_phase_takes_no_more_bids_than_the_theorem_allows(monkeypatch, scaling, seed):
    bids, phase = [], _auction._phase

    def spy(C, prices, owner, eps):
        before = prices.copy()
        bids.append((phase(C, prices, owner, eps), eps))
        assert (prices >= before).all()
        assert sorted(owner) == list(range(len(C)))
        excess = C[owner, np.arange(len(C))] + prices - (C + prices).min(1)[owner]
        assert excess.max() <= eps * (1 + 1e-9)
        return bids[-1][0]

    monkeypatch.setattr(_auction, "_phase", spy)
    n = 12
    result = auction(whole_costs(n, high=5, seed=seed), eps=1e-2, scaling=scaling)
    assert len(bids) > (scaling < math.inf)
    assert result.n_iter == sum(count for count, _ in bids)
    before = 1.0  # at prices zero any permutation is within the range of the costs
    for count, eps in bids:
        assert count <= (1 + before / eps) * n**2 + n
        before = eps


# Independent solvers


@pytest.mark.parametrize("n", [1, 2, 30, 120])
def test_agrees_with_scipy_and_the_network_simplex(n):
    C, *_ = problems.random_problem(n, n)
    result = auction(C)
    rows, columns = linear_sum_assignment(C.numpy())
    assert (result.plan.argmax(-1).numpy() == columns).all()
    torch.testing.assert_close(result.value, C[rows, columns].mean(), rtol=0, atol=1e-12)
    torch.testing.assert_close(result.value, emd(C).value, rtol=0, atol=1e-10)
    certify(C, result, atol=1e-12 + 1e-10 * (C.max() - C.min()).item())


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 8),
    seed=st.integers(0, 10**6),
    whole=st.booleans(),
    share=st.sampled_from([0, 0.3, 0.7]),
    scaling=st.sampled_from([1.5, 5.0, 100.0]),
)
def test_any_problem_is_certified(n, seed, whole, share, scaling):
    rng = problems.generator(seed)
    C = torch.randn(n, n, generator=rng, dtype=torch.float64)
    if whole:  # many ties
        C = C.round()
    forbidden = torch.rand(n, n, generator=rng) < share
    forbidden[torch.arange(n), torch.randperm(n, generator=rng)] = False
    C[forbidden] = torch.inf
    result = auction(C, scaling=scaling)
    certify(C, result, atol=1e-8)
    torch.testing.assert_close(result.value, assignment(C)[1], rtol=0, atol=1e-8)
    assert result.converged


# Ties, forbidden pairs, units


def test_equal_costs():
    for constant in (0.0, -3.0, 1e8):
        C = torch.full((9, 9), constant, dtype=torch.float64)
        result = auction(C)
        certify(C, result, atol=1e-7 * max(abs(constant), 1e-3))
        torch.testing.assert_close(result.value.item(), constant, rtol=1e-14, atol=1e-14)


def test_three_bidders_for_two_bargains():
    C = torch.zeros(3, 3, dtype=torch.float64)
    C[:, 2] = 1
    result = auction(C)
    torch.testing.assert_close(result.value.item(), 1 / 3, rtol=0, atol=1e-12)
    # Without scaling the two prices climb to 1 in steps of 2ε, one after the other: 1/ε bids.
    slow = auction(C, eps=1e-3, scaling=math.inf)
    assert 998 <= slow.n_iter <= 1005
    assert auction(C, eps=1e-3).n_iter < 150


def test_forbidden_pairs_are_not_used():
    C, sigma, value = planted(12)
    banned = torch.full_like(C, torch.inf)
    banned[torch.arange(12), sigma] = C[torch.arange(12), sigma]  # one choice each
    result = auction(banned)
    assert (result.plan.argmax(-1) == sigma).all()
    torch.testing.assert_close(result.value, value, rtol=0, atol=1e-12)
    certify(banned, result, atol=1e-9)
    C[0, sigma[0]] = torch.inf
    result = auction(C)
    certify(C, result, atol=1e-9)
    assert result.value > value + 0.1 / 12


def test_a_chain_that_forces_everybody():
    """Source i may go to i and i + 1, and likes i + 1 much better; the last one has a single choice."""
    n = 30
    C = torch.full((n, n), torch.inf, dtype=torch.float64)
    k = torch.arange(n)
    C[k, k] = 1.0
    C[k[:-1], k[1:]] = 0.0
    result = auction(C)
    assert (result.plan.argmax(-1) == k).all()
    assert result.converged
    certify(C, result, atol=1e-9)


def test_no_permutation_left():
    with pytest.raises(ValueError, match="C forbids every permutation.*finite"):
        auction([[1.0, torch.inf, torch.inf], [1.0, torch.inf, torch.inf], [1.0, 1.0, 1.0]])


@pytest.mark.parametrize("unit", [1e-150, 1e-9, 1e9, 1e150])
def test_value_scales_with_the_unit_of_cost(unit):
    C, *_ = problems.random_problem(20, 20)
    result = auction(C * unit)
    torch.testing.assert_close(result.value / unit, auction(C).value, rtol=1e-12, atol=0)
    assert result.converged


def test_costs_that_are_equal_up_to_rounding():
    C, *_ = problems.random_problem(10, 10)
    certify(1e8 + 1e-8 * C, auction(1e8 + 1e-8 * C), atol=1e-6)


# Invariances


def test_renumbering_and_exchange_of_the_points():
    C, *_ = problems.random_problem(15, 15)
    rng = problems.generator(1)
    s, t = torch.randperm(15, generator=rng), torch.randperm(15, generator=rng)
    plan = auction(C).plan
    assert (auction(C[s][:, t]).plan == plan[s][:, t]).all()
    assert (auction(C.T).plan == plan.T).all()


def test_prices_added_to_the_cost_leave_the_plan():
    C, *_ = problems.random_problem(15, 15)
    u, v = torch.linspace(-1, 2, 15).double(), torch.linspace(1, -0.5, 15).double()
    before, after = auction(C), auction(C + u[:, None] + v)
    assert (after.plan == before.plan).all()
    torch.testing.assert_close(after.value, before.value + (u + v).mean(), rtol=0, atol=1e-12)


# Types and batches


def test_batch_equals_single_calls():
    C, *_ = problems.random_problem(6, 6, batch=(2, 3))
    result = auction(C)
    assert result.value.shape == result.marginal_error.shape == (2, 3)
    bids = []
    for k in itertools.product(range(2), range(3)):
        single = auction(C[k])
        bids.append(single.n_iter)
        for name in ("value", "plan", "f", "g"):
            torch.testing.assert_close(getattr(result, name)[k], getattr(single, name), rtol=0, atol=1e-14)
    assert result.n_iter == max(bids)


def test_float32():
    C = problems.random_problem(40, 40)[0].float()
    result = auction(C)
    assert result.plan.dtype == result.value.dtype == result.f.dtype == result.g.dtype == torch.float32
    torch.testing.assert_close(result.value, auction(C.double()).value.float(), rtol=0, atol=1e-5)
    certify(C, result, atol=1e-5)
    assert result.converged


def test_numpy_and_lists_in_tensor_out():
    C, *_ = problems.random_problem(5, 5)
    torch.testing.assert_close(auction(C.numpy()).plan, auction(C).plan, rtol=0, atol=0)
    assert auction([[0, 1], [1, 0]]).value == 0


def test_gradcheck_and_gradient():
    C, *_ = problems.random_problem(4, 4, batch=(2,))
    assert torch.autograd.gradcheck(lambda C: auction(C).value, C.requires_grad_())
    result = auction(C)
    (gradient,) = torch.autograd.grad(result.value.sum(), C)
    torch.testing.assert_close(gradient, result.plan, rtol=0, atol=0)
    for constant in (result.plan, result.f, result.g):
        assert not constant.requires_grad


# Honesty and bad input


def test_a_wrong_answer_is_reported(monkeypatch):
    def careless(C, eps, scaling):
        return np.arange(len(C)), np.zeros(len(C)), 1

    monkeypatch.setattr(_assignment, "sell", careless)
    with pytest.warns(ConvergenceWarning, match="duality gap.*may not be optimal"):
        result = auction(problems.random_problem(6, 6)[0])
    assert not result.converged
    with pytest.warns(ConvergenceWarning, match="> 0.001"):
        auction(torch.tensor([[2.0, 1.0], [1.0, 3.0]]).double(), eps=2e-3)


@pytest.mark.parametrize(
    ("bad", "options", "message"),
    [
        (torch.ones(2, 3), {}, r"C must be square.*\(2, 3\).*use emd"),
        (torch.ones(0, 0), {}, "empty measure"),
        (torch.full((2, 2), torch.nan), {}, "C holds NaN"),
        (torch.ones(4), {}, "C must have shape"),
        (torch.ones(2, 2).half(), {}, "C has dtype float16"),
        (torch.ones(2, 2), {"eps": 0.0}, "eps must be a finite number above 0"),
        (torch.ones(2, 2), {"eps": -1.0}, "eps must be a finite number above 0"),
        (torch.ones(2, 2), {"scaling": 1.0}, "scaling must be above 1, but is 1.*4 to 10"),
        (torch.ones(2, 2), {"scaling": math.nan}, "scaling must be above 1"),
    ],
)
def test_bad_input(bad, options, message):
    with pytest.raises(ValueError, match=message):
        auction(bad, **options)


def test_something_else_than_numbers():
    with pytest.raises(TypeError, match="C must be a tensor.*str"):
        auction("cost")


def test_results_come_back_on_the_device_of_the_cost(device):
    C = problems.random_problem(5, 5)[0].to(device)
    result = auction(C)
    for t in (result.value, result.plan, result.f, result.g, result.marginal_error):
        assert t.device == device
    torch.testing.assert_close(result.value.cpu(), auction(C.cpu()).value, rtol=0, atol=1e-12)
