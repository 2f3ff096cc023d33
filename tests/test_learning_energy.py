"""The minibatch energy distance against closed forms, its six terms, and its gradients."""

import math
from itertools import product

import pytest
import torch

import otbook
from otbook import costs
from otbook.learning import minibatch_energy_distance

SQUARE = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]], dtype=torch.float64)


def clouds(n=7, m=7, d=3, *, batch=(), dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    sizes = n, n, m, m
    x, x2, y, y2 = (torch.randn(*batch, k, d, generator=generator, dtype=torch.float64) for k in sizes)
    return [t.to(dtype) for t in (x, x2, 0.5 * y + 1, 0.7 * y2 + 1)]


def six_terms(x, x2, y, y2, cost, eps):
    """One problem at a time, in the order of the paper."""

    def w(u, v):
        return otbook.sinkhorn(cost(u, v), eps=eps, tol=1e-11).value

    return w(x, y) + w(x, y2) + w(x2, y) + w(x2, y2) - 2 * w(x, x2) - 2 * w(y, y2)


@pytest.mark.parametrize("name", ["sqeuclidean", "euclidean", "cosine"])
@pytest.mark.parametrize("m", [7, 5])
def test_is_the_sum_of_six_values(name, m):
    batches = clouds(m=m)
    value = minibatch_energy_distance(*batches, eps=0.3, cost=name, tol=1e-11)
    expected = six_terms(*batches, costs.BY_NAME[name], 0.3)
    torch.testing.assert_close(value, expected, atol=1e-9, rtol=0)
    assert value.abs() > 1e-3


def test_batches_of_one_point_do_not_see_eps():
    x, x2, y, y2 = clouds(1, 1)
    for eps in (0.01, 10.0):
        value = minibatch_energy_distance(x, x2, y, y2, eps=eps)
        assert value.shape == ()
        # |x+x2−y−y2|² − |x−x2|² − |y−y2|², after multiplying out.
        expected = (x + x2 - y - y2).square().sum() - (x - x2).square().sum() - (y - y2).square().sum()
        torch.testing.assert_close(value, expected, atol=1e-10, rtol=0)


def test_the_same_batches_twice_give_four_divergences():
    x, _, y, _ = clouds(9, 6)
    value = minibatch_energy_distance(x, x, y, y, eps=0.5, tol=1e-11)
    expected = 4 * otbook.sinkhorn_divergence(x, y, eps=0.5, tol=1e-11)
    torch.testing.assert_close(value, expected, atol=1e-8, rtol=0)


def test_is_negative_for_the_turned_square():
    """The mean over all batches of two is 2 D² = −(√2 − 1)³/4 for exact transport."""
    turn = torch.tensor([[1.0, 1.0], [-1.0, 1.0]], dtype=torch.float64) / math.sqrt(2)
    pairs = torch.tensor(list(product(range(4), repeat=2)))
    i, j = torch.cartesian_prod(torch.arange(16), torch.arange(16)).T
    x, y = SQUARE[pairs], (SQUARE @ turn)[pairs]
    # The mean of the six terms needs each pair of batches only: x2 and y2 run over all, too.
    quadruples = [(x[i], x[j], y[(i + k) % 16], y[(j + 5 * k) % 16]) for k in range(16)]
    values = torch.stack([minibatch_energy_distance(*q, eps=0.02, tol=1e-9) for q in quadruples])
    expected = -((math.sqrt(2) - 1) ** 3) / 4
    assert values.mean().item() == pytest.approx(expected, abs=2e-3)


def test_equal_laws_have_mean_zero():
    generator = torch.Generator().manual_seed(3)
    batches = torch.randn(4, 400, 8, 2, generator=generator, dtype=torch.float64)
    values = minibatch_energy_distance(*batches, eps=1.0)
    assert abs(values.mean()) <= 4 * values.std() / 20
    plain = otbook.sinkhorn(costs.sqeuclidean(batches[0], batches[2]), eps=1.0).value
    assert plain.mean() > 20 * plain.std() / 20


def test_symmetries():
    x, x2, y, y2 = clouds()
    options = {"eps": 0.4, "tol": 1e-11}
    value = minibatch_energy_distance(x, x2, y, y2, **options)
    flip = torch.arange(6, -1, -1)
    shift = torch.tensor([3.0, -1.0, 2.0], dtype=torch.float64)
    others = [
        minibatch_energy_distance(y, y2, x, x2, **options),
        minibatch_energy_distance(x2, x, y, y2, **options),
        minibatch_energy_distance(x[flip], x2, y, y2[flip], **options),
        minibatch_energy_distance(*(t + shift for t in (x, x2, y, y2)), **options),
        minibatch_energy_distance(*(3 * t for t in (x, x2, y, y2)), eps=3.6, tol=1e-11) / 9,
    ]
    for other in others:
        torch.testing.assert_close(other, value, atol=1e-8, rtol=0)


@pytest.mark.parametrize("cost", ["sqeuclidean", "cosine"])
def test_gradients(cost):
    batches = [t.requires_grad_() for t in clouds(4, 4, 2)]

    def loss(*z):
        return minibatch_energy_distance(*z, eps=0.8, cost=cost, tol=1e-12)

    assert torch.autograd.gradcheck(loss, batches, atol=1e-6)
    assert torch.autograd.gradgradcheck(loss, batches, atol=1e-5)


def test_gradients_in_the_parameters_of_a_cost():
    batches = clouds(5, 5, 2)
    M = torch.eye(2, dtype=torch.float64, requires_grad=True)

    def loss(M):
        return minibatch_energy_distance(
            *batches, eps=0.8, cost=lambda u, v: costs.sqeuclidean(u @ M, v @ M), tol=1e-12
        )

    torch.testing.assert_close(
        loss(M), minibatch_energy_distance(*batches, eps=0.8, tol=1e-12), atol=1e-9, rtol=0
    )
    assert torch.autograd.gradcheck(loss, M, atol=1e-6)


@pytest.mark.parametrize("m", [6, 4])
def test_leading_axes_are_independent_problems(m):
    batches = clouds(6, m, batch=(2, 3))
    values = minibatch_energy_distance(*batches, eps=0.5, tol=1e-10)
    assert values.shape == (2, 3)
    single = minibatch_energy_distance(*(t[1, 2] for t in batches), eps=0.5, tol=1e-10)
    torch.testing.assert_close(values[1, 2], single, atol=1e-8, rtol=0)


def test_float32_keeps_its_dtype_and_is_solved_in_float64():
    x, x2, y, y2 = clouds(d=20)  # above 16 dimensions costs are expanded, and cancel
    batches = [t.float() for t in (10 * x, 10 * x + 0.03 * x2, 10 * x + 0.03 * y, 10 * x + 0.03 * y2)]
    value = minibatch_energy_distance(*batches, eps=1.0)  # costs of some 100, and a value of some 0.01
    assert value.dtype == torch.float32
    exact = minibatch_energy_distance(*(t.double() for t in batches), eps=1.0)
    torch.testing.assert_close(value.double(), exact, atol=0, rtol=1e-6)
    seen = []

    def cost(u, v):
        seen.append(u.dtype)
        return costs.sqeuclidean(u, v)

    minibatch_energy_distance(*batches, eps=0.1, cost=cost)
    assert set(seen) == {torch.float32}


def test_lists_and_arrays():
    values = [[[0.0], [2.0]], [[0.5], [2.5]], [[1.0], [3.0]], [[1.5], [3.0]]]
    arrays = [torch.tensor(v, dtype=torch.float64).numpy() for v in values]
    from_lists = minibatch_energy_distance(*values, eps=1.0)
    from_arrays = minibatch_energy_distance(*arrays, eps=1.0)
    torch.testing.assert_close(from_lists.double(), from_arrays, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("change", "options", "error", "message"),
    [
        (
            {1: torch.zeros(7, 2).double()},
            {},
            ValueError,
            "x has points in dimension 3 and x2 in dimension 2",
        ),
        ({2: torch.zeros(2, 7, 3).double()}, {}, ValueError, "the batch shapes do not agree: x"),
        ({1: torch.zeros(6, 3).double()}, {}, ValueError, "x has 7 points and x2 6"),
        ({3: torch.zeros(6, 3).double()}, {}, ValueError, "y has 7 points and y2 6"),
        ({2: torch.full((7, 3), torch.nan).double()}, {}, ValueError, "y holds nan"),
        ({3: torch.zeros(7, 3)}, {}, ValueError, "y2 is float32"),
        ({0: torch.zeros(7).double()}, {}, ValueError, "x must have shape"),
        ({}, {"eps": 0.0}, ValueError, "eps must be a finite number above 0"),
        ({}, {"cost": "manhattan"}, ValueError, "cost must be one of"),
        ({}, {"cost": 3}, TypeError, "cost must be one of .* or a function"),
        ({}, {"cost": lambda u, v: costs.sqeuclidean(u, v)[..., 0]}, ValueError, "cost must return costs"),
        ({}, {"cost": lambda u, v: 1.0}, TypeError, "cost must return a tensor"),
        ({}, {"tol": -1.0}, ValueError, "tol must be"),
    ],
)
def test_refuses_bad_input(change, options, error, message):
    batches = clouds()
    for k, value in change.items():
        batches[k] = value
    with pytest.raises(error, match=message):
        minibatch_energy_distance(*batches, **{"eps": 0.5, **options})


def test_says_when_it_does_not_converge():
    batches = [4 * t for t in clouds(20, 20)]
    with pytest.warns(otbook.ConvergenceWarning, match="stopped after"):
        minibatch_energy_distance(*batches, eps=0.01, tol=1e-10, max_iter=2)


def test_on_another_device(device):
    batches = clouds()
    value = minibatch_energy_distance(*(t.to(device) for t in batches), eps=0.5, tol=1e-10)
    assert value.device == device
    torch.testing.assert_close(
        value.cpu(), minibatch_energy_distance(*batches, eps=0.5, tol=1e-10), atol=1e-8, rtol=0
    )
