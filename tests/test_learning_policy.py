"""Gibbs laws and soft values against identities, blobs against closed forms."""

import math

import pytest
import torch
from scipy.optimize import minimize

from otbook import ConvergenceWarning
from otbook.flows import minimizing_movement, particle_flow, svgd
from otbook.learning import blob_energy, gibbs, soft_bellman

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64).to(dtype)


def simplex(*shape, seed=0, dtype=torch.float64):
    return normal(*shape, seed=seed, dtype=dtype).softmax(-1)


def close(a, b, tol=1e-10):
    a, b = (torch.as_tensor(v, dtype=torch.float64) for v in (a, b))
    torch.testing.assert_close(a, b.expand_as(a), atol=tol, rtol=0)


def kl(q, p):
    return (q * (q / p).log()).sum(-1)


def decision_problem(n_states=5, n_actions=3, dtype=torch.float64):
    transition = simplex(n_states, n_actions, n_states, seed=1, dtype=dtype)
    return normal(n_states, n_actions, seed=2, dtype=dtype), transition


# Gibbs laws


def test_every_other_law_is_worse_by_alpha_times_the_divergence():
    J, p0, q, alpha = normal(4, 30), simplex(30, seed=1), simplex(4, 30, seed=2), 0.7
    law = gibbs(J, alpha=alpha, prior=p0)
    objective = (q * J).sum(-1) - alpha * kl(q, p0)
    close(law.value - objective, alpha * kl(q, law.weights), 1e-12)


def test_without_a_prior_the_entropy_takes_its_place():
    J, alpha = normal(3, 8), 0.4
    law, uniform = gibbs(J, alpha=alpha), gibbs(J, alpha=alpha, prior=torch.full((8,), 1 / 8).double())
    close(law.weights, uniform.weights)
    close(law.value, uniform.value + alpha * math.log(8))
    p = law.weights
    close(law.value, (p * J).sum(-1) - alpha * (p * p.log()).sum(-1))


def test_gibbs_survives_cold_temperatures_and_empty_priors():
    prior = torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64)
    law = gibbs(torch.tensor([0.0, 1.0, 5.0]).double(), alpha=1e-6, prior=prior)
    close(law.weights, [0.0, 1.0, 0.0])
    close(law.value, 1.0, 1e-5)


def test_the_scale_of_the_return_is_that_of_the_temperature():
    J, p0 = normal(9), simplex(9, seed=3)
    close(gibbs(100 * J + 7, alpha=100, prior=p0).weights, gibbs(J, alpha=1, prior=p0).weights, 1e-12)


def test_the_gradient_of_the_value_is_the_law():
    J = normal(6).requires_grad_()
    law = gibbs(J, alpha=0.3)
    close(torch.autograd.grad(law.value, J)[0], law.weights.detach())
    assert torch.autograd.gradcheck(lambda J: gibbs(J, alpha=0.3), J)


@DTYPES
def test_gibbs_keeps_the_dtype(dtype):
    law = gibbs(normal(2, 5, dtype=dtype), alpha=0.5, prior=simplex(5, dtype=dtype))
    assert law.weights.dtype == law.value.dtype == dtype


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"returns": torch.tensor([0.0, math.nan])}, "returns must be finite"),
        ({"returns": torch.zeros(0)}, "returns must be finite numbers of shape"),
        ({"alpha": 0}, "alpha must be a finite number above 0"),
        ({"prior": [0.5, 0.2, 0.3]}, "prior must have shape"),
        ({"prior": [0.5, 0.2]}, "prior has mass"),
    ],
)
def test_gibbs_refuses(change, message):
    arguments = {"returns": torch.zeros(2), "alpha": 1.0, "prior": None} | change
    with pytest.raises(ValueError, match=message):
        gibbs(arguments.pop("returns"), **arguments)


# The soft Bellman equation


@pytest.mark.parametrize("with_prior", [False, True], ids=["entropy", "prior"])
def test_the_solution_is_the_value_of_its_own_policy(with_prior):
    reward, transition = decision_problem()
    gamma, alpha, prior = 0.9, 0.5, simplex(5, 3, seed=7) if with_prior else None
    best = soft_bellman(reward, transition, gamma=gamma, alpha=alpha, prior=prior)
    assert best.converged
    pi, reference = best.policy, 1.0 if prior is None else prior
    income = (pi * (reward - alpha * (pi / reference).log())).sum(-1)
    moves = torch.einsum("sa,sat->st", pi, transition)
    close(best.value, torch.linalg.solve(torch.eye(5).double() - gamma * moves, income), 1e-9)
    close(best.q, reward + gamma * transition @ best.value, 1e-9)


def test_the_solution_is_what_an_optimiser_over_policies_finds():
    reward, transition = decision_problem()
    gamma, alpha = 0.8, 0.3

    def loss(logits):
        z = torch.tensor(logits, requires_grad=True)
        pi = z.view(5, 3).softmax(-1)
        income = (pi * (reward - alpha * pi.log())).sum(-1)
        moves = torch.einsum("sa,sat->st", pi, transition)
        total = torch.linalg.solve(torch.eye(5).double() - gamma * moves, income).sum()
        return -total.item(), -torch.autograd.grad(total, z)[0].numpy()

    found = minimize(loss, torch.zeros(15).double().numpy(), jac=True, options={"gtol": 1e-9})
    best = soft_bellman(reward, transition, gamma=gamma, alpha=alpha)
    close(-found.fun, best.value.sum(), 1e-8)
    close(torch.tensor(found.x).view(5, 3).softmax(-1), best.policy, 1e-5)


def test_the_error_bound_holds_when_the_iteration_is_cut():
    reward, transition = decision_problem()
    best = soft_bellman(reward, transition, gamma=0.9, alpha=0.5)
    for max_iter in (3, 10, 30):
        with pytest.warns(ConvergenceWarning, match=f"after {max_iter} iterations the error is at most"):
            cut = soft_bellman(reward, transition, gamma=0.9, alpha=0.5, max_iter=max_iter)
        assert not cut.converged
        assert cut.n_iter == max_iter
        assert (cut.value - best.value).abs().max() <= cut.error
        assert cut.error <= 0.9 ** (max_iter - 1) * 200


def test_the_soft_value_lies_above_the_hard_one_by_at_most_the_entropy():
    reward, transition = decision_problem()
    hard = torch.zeros(5).double()
    for _ in range(600):
        hard = (reward + 0.9 * transition @ hard).max(-1).values
    for alpha in (1.0, 0.1, 0.01):
        gap = soft_bellman(reward, transition, gamma=0.9, alpha=alpha).value - hard
        assert (gap >= -1e-9).all()
        assert (gap <= alpha * math.log(3) / 0.1 + 1e-9).all()


def test_leading_axes_are_separate_problems():
    reward, transition = decision_problem()
    both = soft_bellman(torch.stack([reward, 2 * reward]), transition, gamma=0.7, alpha=0.5)
    close(both.value[0], soft_bellman(reward, transition, gamma=0.7, alpha=0.5).value)
    close(both.value[1], 2 * soft_bellman(reward, transition, gamma=0.7, alpha=0.25).value)


def test_without_discount_it_is_one_bandit_a_state():
    reward, transition = decision_problem()
    close(soft_bellman(reward, transition, gamma=0, alpha=0.5).value, gibbs(reward, alpha=0.5).value)


def test_the_soft_value_has_the_right_gradient():
    reward, transition = decision_problem(3, 2)
    f = lambda r: soft_bellman(r, transition, gamma=0.5, alpha=0.5).value  # noqa: E731
    assert torch.autograd.gradcheck(f, reward.clone().requires_grad_())


@DTYPES
def test_soft_bellman_keeps_the_dtype(dtype):
    best = soft_bellman(*decision_problem(dtype=dtype), gamma=0.9, alpha=0.5)
    assert best.converged
    assert best.value.dtype == best.q.dtype == best.policy.dtype == dtype


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"transition": torch.ones(2, 2, 3) / 3}, "must have shapes"),
        ({"transition": torch.ones(2, 2, 2)}, "transition must hold probabilities"),
        ({"transition": torch.full((2, 2, 2), math.nan)}, "transition must hold probabilities"),
        ({"reward": torch.tensor([[0.0, -math.inf], [0, 0]])}, "reward must be finite"),
        ({"gamma": 1.0}, r"gamma must lie in \[0, 1\), but is 1"),
        ({"alpha": -1.0}, "alpha must be a finite number above 0"),
        ({"max_iter": 0}, "max_iter must be a whole number"),
        ({"tol": 0.0}, "tol must be a finite number above 0"),
    ],
)
def test_soft_bellman_refuses(change, message):
    halves = torch.ones(2, 2, 2) / 2
    arguments = {"reward": torch.zeros(2, 2), "transition": halves, "gamma": 0.5, "alpha": 1.0} | change
    with pytest.raises(ValueError, match=message):
        soft_bellman(arguments.pop("reward"), arguments.pop("transition"), **arguments)


# Blobs


def test_one_and_two_blobs_by_hand():
    h = 0.7
    close(blob_energy(torch.zeros(1, 3).double(), bandwidth=h), -1.5 * math.log(2 * math.pi * h**2))
    pair = torch.tensor([[0.0], [1.0]]).double()
    expected = math.log((1 + math.exp(-1 / (2 * h**2))) / 2) - math.log(2 * math.pi * h**2) / 2
    close(blob_energy(pair, bandwidth=h), expected)


def test_the_energy_of_many_blobs_is_that_of_the_blurred_gaussian():
    """∫ log N(0, s + h²) dN(0, s), on a grid of quantiles."""
    h, n = 0.5, 2000
    u = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    x = math.sqrt(2) * torch.special.erfinv(2 * u - 1)
    s = x.var(correction=0).item()
    expected = -0.5 * math.log(2 * math.pi * (1 + h**2)) - 0.5 * s / (1 + h**2)
    close(blob_energy(x[:, None], bandwidth=h), expected, 1e-3)


def test_the_blob_energy_is_invariant_and_scales():
    x, turn = normal(20, 2), torch.linalg.qr(normal(2, 2, seed=1)).Q
    e = blob_energy(x, bandwidth=0.6)
    close(blob_energy(x[torch.randperm(20, generator=seeded())] @ turn + 3, bandwidth=0.6), e)
    close(blob_energy(5 * x, bandwidth=3.0), e - 2 * math.log(5))


def test_blobs_in_a_batch_take_the_median_rule_of_svgd():
    """The bandwidth that reproduces a step of svgd is the one that reproduces the energy."""
    x = normal(3, 12, 2)
    options = {"score": lambda x: -x, "step": 0.3, "n_steps": 1}
    for cloud, energy in zip(x, blob_energy(x), strict=True):
        med2 = torch.nn.functional.pdist(cloud).sort().values[(66 - 1) // 2] ** 2
        h = (med2 / (2 * math.log(13))).sqrt().item()
        close(energy, blob_energy(cloud, bandwidth=h))
        close(svgd(cloud, **options).x, svgd(cloud, **options, bandwidth=h).x, 1e-12)
    close(blob_energy(torch.zeros(1, 2).double()), -math.log(2 * math.pi))
    close(blob_energy(torch.zeros(4, 2).double()), -math.log(2 * math.pi))


def test_blob_energy_has_the_right_gradient():
    assert torch.autograd.gradcheck(lambda x: blob_energy(x, bandwidth=0.8), normal(5, 2).requires_grad_())


def test_explicit_and_implicit_steps_rest_at_the_same_cloud():
    def energy(x):
        return blob_energy(x, bandwidth=0.6) + x.square().sum(-1).mean(-1) / 2

    start = normal(8, 2)
    explicit = particle_flow(start, energy, step=0.2, n_steps=600).x
    implicit = minimizing_movement(lambda x: 8 * energy(x), start, tau=20.0, n_steps=40)
    close(energy(explicit), energy(implicit.path[-1]), 1e-6)


@DTYPES
def test_blobs_keep_the_dtype(dtype):
    x = normal(6, 2, dtype=dtype)
    assert blob_energy(x).dtype == blob_energy(x, bandwidth=0.5).dtype == dtype


def test_blob_energy_refuses():
    with pytest.raises(ValueError, match="bandwidth must be a finite number above 0"):
        blob_energy(normal(4, 2), bandwidth=0.0)
    with pytest.raises(ValueError, match="x must have shape"):
        blob_energy(normal(4))
