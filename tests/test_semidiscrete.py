"""Stochastic semi-discrete transport: closed forms on the line, independent solvers, confidence, rate."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from otbook import ConvergenceWarning, costs, emd, onedim, semidiscrete, sinkhorn
from otbook.semidiscrete import _stochastic, stochastic_dual

from . import problems


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def uniform(d=1, *, low=0.0, high=1.0, dtype=torch.float64):
    """Sampler of the uniform density on a cube."""
    return lambda n, generator: low + (high - low) * torch.rand(n, d, generator=generator, dtype=dtype)


#: Marginal error of the solutions below.
TOL = 0.03

Y = torch.tensor([[0.1], [0.8], [0.35], [0.9]], dtype=torch.float64)
B = torch.tensor([0.3, 0.15, 0.35, 0.2], dtype=torch.float64)


def on_the_line():
    """Cells, potential and value of the uniform density on [0, 1] against (Y, B), by hand.

    From left to right the points take consecutive intervals as long as their weights, and at the end
    s of an interval both neighbours are worth the same: (s − y)² − g = (s − y')² − g'.
    """
    order = Y[:, 0].argsort()
    ends = B[order].cumsum(0)
    y = Y[order, 0]
    jumps = (ends[:-1] - y[1:]) ** 2 - (ends[:-1] - y[:-1]) ** 2
    g = torch.zeros_like(B)
    g[order] = torch.cat([jumps.new_zeros(1), jumps.cumsum(0)])
    starts = ends - B[order]
    value = (((ends - y) ** 3 - (starts - y) ** 3) / 3).sum()
    return order, ends, g - (B * g).sum(), value


@pytest.fixture(scope="module")
def solved():
    return stochastic_dual(Y, B, uniform(), tol=TOL, generator=rng())


def test_line_by_hand(solved):
    order, ends, g, value = on_the_line()
    assert solved.converged
    assert solved.marginal_error <= TOL
    # Cells wrong by TOL in all have walls wrong by half of it, and across a wall g jumps by twice the
    # distance of its two points times its place: together by at most 2 · TOL/2 · 0.8.
    torch.testing.assert_close(solved.g, g, rtol=0, atol=TOL)
    assert abs(solved.value - value) < 4 * solved.standard_error + TOL**2
    middles = torch.cat([ends[:1] / 2, (ends[:-1] + ends[1:]) / 2])[:, None]
    assert solved.assign(middles).tolist() == order.tolist()
    torch.testing.assert_close(solved(middles), Y[order], rtol=0, atol=0)
    torch.testing.assert_close(
        solved.coupling(middles), torch.nn.functional.one_hot(order, 4).double(), rtol=0, atol=0
    )


def test_marginal_error_bounds_the_true_one(solved):
    # The true cells, to the last digit, from their walls.
    order = Y[:, 0].argsort()
    y, g = Y[order, 0], solved.g[order]
    walls = ((y[1:] ** 2 - g[1:]) - (y[:-1] ** 2 - g[:-1])) / (2 * (y[1:] - y[:-1]))
    cells = torch.diff(walls, prepend=walls.new_zeros(1), append=walls.new_ones(1))
    assert (cells > 0).all()
    assert (cells - B[order]).abs().sum() <= solved.marginal_error


def test_the_dual_lies_below_and_closes_the_gap(solved):
    _, _, _, value = on_the_line()
    x = ((torch.arange(200_000) + 0.5) / 200_000).double()[:, None]
    dual = solved.potential(x).mean() + (B * solved.g).sum()
    assert dual <= value + 1e-10
    # By concavity, the gap is at most the error of the cells times the error of g.
    assert value - dual <= TOL * (solved.g - on_the_line()[2]).abs().max()
    assert abs(dual - solved.value) < 4 * solved.standard_error
    # The mass is normalised away.
    assert abs((B * solved.g).sum()) < 1e-12


@pytest.mark.parametrize("name", ["sqeuclidean", "euclidean", "cosine"])
def test_agrees_with_the_network_simplex_on_many_samples(name):
    y = torch.tensor([[0.2, 0.3], [0.8, 0.1], [0.5, 0.9], [0.1, 0.7], [0.6, 0.4]], dtype=torch.float64)
    b = problems.weights(5, seed=3)
    draw = uniform(2, low=0.05)
    dual = stochastic_dual(y, b, draw, cost=name, tol=0.05, generator=rng(1))
    values = []
    for seed in range(8):
        x = draw(500, rng(100 + seed))
        values.append(emd(costs.BY_NAME[name](x, y), None, b).value)
    values = torch.stack(values)
    # The bias of the sampled problem, of order 1/n, is far below its spread, of order 1/√n.
    spread = (values.var() / 8 + dual.standard_error**2).sqrt()
    assert abs(values.mean() - dual.value) < 4 * spread


@pytest.mark.parametrize("eps", [0.5, 0.02])
def test_agrees_with_sinkhorn_on_a_fine_grid(eps):
    x = ((torch.arange(1000) + 0.5) / 1000).double()[:, None]
    reference = sinkhorn(costs.sqeuclidean(x, Y), None, B, eps=eps, tol=1e-9)
    dual = stochastic_dual(Y, B, uniform(), eps=eps, tol=TOL, generator=rng(2))
    # By concavity, the dual value falls short by at most the error of the cells times that of g.
    assert abs(dual.value - reference.value) < 4 * dual.standard_error + TOL**2
    g = reference.g - (B * reference.g).sum()
    torch.testing.assert_close(dual.g, g, rtol=0, atol=TOL)
    # At the same g, f and the conditional laws are those of Sinkhorn to rounding.
    exact = semidiscrete.SemiDiscreteDual(**{**vars(dual), "g": g})
    shift = (B * reference.g).sum()
    torch.testing.assert_close(exact.potential(x), reference.f + shift, rtol=0, atol=1e-8)
    torch.testing.assert_close(exact.coupling(x), reference.plan * 1000, rtol=0, atol=1e-6)
    torch.testing.assert_close(exact(x), exact.coupling(x) @ Y, rtol=0, atol=1e-12)
    assert (exact.assign(x) == reference.plan.argmax(1)).float().mean() > 0.999


@pytest.mark.parametrize("eps", [0.0, 0.1])
def test_averaged_iterate_converges_like_one_over_root_of_iterations(eps):
    if eps == 0:
        target = on_the_line()[2]
    else:
        x = ((torch.arange(1000) + 0.5) / 1000).double()[:, None]
        target = sinkhorn(costs.sqeuclidean(x, Y), None, B, eps=eps, tol=1e-10).g
    counts = [2**k for k in range(6, 12)]
    squares = torch.zeros(len(counts), dtype=torch.float64)
    for seed in range(4):
        generator = rng(seed)
        batch = lambda generator=generator: costs.sqeuclidean(uniform()(8, generator), Y)  # noqa: E731
        ascent = _stochastic._averaged_ascent(batch, B, eps, 1.0)
        for k, g in itertools.islice(ascent, counts[-1]):
            if k in counts:
                error = (g - target) - (B * (g - target)).sum()
                squares[counts.index(k)] += error.square().sum()
    slope = np.polyfit(np.log(counts), np.log(squares.numpy()) / 2, 1)[0]
    assert -0.65 < slope < -0.35, slope


def test_average_weighs_the_iterates_in_proportion_to_their_number():
    # One point more than needed: the step of each iterate is known exactly.
    C = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    b = torch.tensor([0.25, 0.75], dtype=torch.float64)
    ascent = _stochastic._averaged_ascent(lambda: C, b, 0.0, 0.4)
    averages = [g for _, g in itertools.islice(ascent, 6)]
    g, iterates = torch.zeros(2).double(), []
    for k in range(1, 7):
        winner = torch.nn.functional.one_hot((C[0] - g).argmin(), 2)
        g = g + 0.4 * 0.5 / math.sqrt(k) * (b - winner)  # the spread of C is 1/2
        iterates.append(g)
    for k in range(1, 7):
        weights = torch.arange(1.0, k + 1).double()
        expected = (weights[:, None] * torch.stack(iterates[:k])).sum(0) / weights.sum()
        torch.testing.assert_close(averages[k - 1], expected, rtol=0, atol=1e-14)


@settings(max_examples=15, deadline=None)
@given(m=st.integers(1, 6), d=st.integers(1, 3), seed=st.integers(0, 1000), soft=st.booleans())
def test_any_problem(m, d, seed, soft):
    y = torch.randn(m, d, generator=rng(seed), dtype=torch.float64)
    b = torch.rand(m, generator=rng(seed + 1), dtype=torch.float64) + 0.2
    b[: m // 3] = 0
    b = b / b.sum()
    dual = stochastic_dual(
        y, b, uniform(d, low=-1), eps=0.5 if soft else 0.0, tol=0.4, max_iter=4000, generator=rng(seed)
    )
    assert torch.isfinite(dual.g).all()
    assert torch.isfinite(dual.value)
    x = uniform(d, low=-1)(500, rng(seed + 2))
    P = dual.coupling(x)
    torch.testing.assert_close(P.sum(1), torch.ones(500).double(), rtol=0, atol=1e-12)
    assert (P[:, b == 0] == 0).all()
    assert dual(x).shape == (500, d)
    # Fresh samples agree, within four standard errors of a share at most.
    assert (P.mean(0) - b).abs().sum() < 0.4 + 4 * math.sqrt(m / 500)


@pytest.mark.parametrize("eps", [0.0, 0.2])
def test_points_without_mass_get_the_transform(eps):
    y = torch.cat([Y, torch.tensor([[0.5], [3.0]], dtype=torch.float64)])
    b = torch.cat([B, torch.zeros(2, dtype=torch.float64)])
    dual = stochastic_dual(y, b, uniform(), eps=eps, tol=0.05, generator=rng())
    bare = stochastic_dual(Y, B, uniform(), eps=eps, tol=0.05, generator=rng())
    torch.testing.assert_close(dual.g[:4], bare.g, rtol=0, atol=1e-12)
    torch.testing.assert_close(dual.value, bare.value, rtol=0, atol=1e-12)
    x = ((torch.arange(4000) + 0.5) / 4000).double()[:, None]
    gap = costs.sqeuclidean(x, y[4:]) - dual.potential(x)[:, None]
    expected = gap.amin(0) if eps == 0 else -eps * (torch.logsumexp(-gap / eps, 0) - math.log(4000))
    torch.testing.assert_close(dual.g[4:], expected, rtol=0, atol=0.01)
    assert (dual.assign(x) < 4).all()


def test_one_point_takes_everything():
    dual = stochastic_dual([[0.5]], None, uniform(dtype=torch.float32), generator=rng())
    assert dual.converged
    assert dual.g.tolist() == [0.0]
    assert abs(dual.value - 1 / 12) < 4 * dual.standard_error
    # What is left is the interval of confidence, half of tol: √(2 log(18/1 %)) / √N for 18 checks at most.
    n_fresh = (2 * math.sqrt(2 * math.log(18 / 0.01)) / 0.05) ** 2
    assert abs(dual.marginal_error - 0.025) < 1e-5
    # f(x) = (x − ½)² has variance 1/80 − 1/144.
    assert abs(dual.standard_error * math.sqrt(180 * n_fresh) - 1) < 0.05


def test_invariances(solved):
    moved = stochastic_dual(
        5 * Y + 2, B, uniform(low=2.0, high=7.0), tol=TOL, generator=rng()
    )  # the same samples, moved
    torch.testing.assert_close(moved.g, 25 * solved.g, rtol=0, atol=1e-9)
    torch.testing.assert_close(moved.value, 25 * solved.value, rtol=0, atol=1e-9)
    assert moved.n_iter == solved.n_iter
    again = stochastic_dual(Y, B, uniform(), tol=TOL, generator=rng())
    torch.testing.assert_close(again.g, solved.g, rtol=0, atol=0)
    flipped = stochastic_dual(Y.flip(0), B.flip(0), uniform(), tol=TOL, generator=rng())
    torch.testing.assert_close(flipped.g.flip(0), solved.g, rtol=0, atol=1e-9)


def test_gaussian_source_agrees_with_quantiles():
    y = torch.tensor([[-1.0], [0.2], [2.0]], dtype=torch.float64)
    b = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
    draw = lambda n, generator: torch.randn(n, 1, generator=generator, dtype=torch.float64)  # noqa: E731
    dual = stochastic_dual(y, b, draw, tol=0.03, generator=rng())
    q = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    normal = math.sqrt(2) * torch.erfinv(2 * q - 1)
    expected = onedim.wasserstein_1d(normal, y[:, 0], None, b) ** 2
    assert abs(dual.value - expected) < 4 * dual.standard_error + 0.03**2
    walls = normal[(b.cumsum(0)[:-1] * 100_000).long()]
    for wall, left in zip(walls, range(2), strict=True):
        assert dual.assign((wall - 0.05)[None, None]).item() == left
        assert dual.assign((wall + 0.05)[None, None]).item() == left + 1


def test_float32_and_arrays():
    dual = stochastic_dual(
        Y.float().numpy(), B.float().numpy(), uniform(dtype=torch.float32), tol=0.05, generator=rng()
    )
    assert dual.g.dtype == dual.value.dtype == torch.float32
    torch.testing.assert_close(dual.g.double(), on_the_line()[2], rtol=0, atol=0.05)
    shown = repr(dual)
    assert "converged=True" in shown
    assert "±" in shown


def test_potential_has_the_gradient_of_the_value_in_the_points():
    # Moving a point changes the value by the mean of ∇c over its cell: 2 ∫ (y − x) dx.
    order, ends, g, _ = on_the_line()
    y = Y.clone().requires_grad_()
    dual = stochastic_dual(y, B, uniform(), tol=0.05, generator=rng())
    exact = semidiscrete.SemiDiscreteDual(**{**vars(dual), "g": g})
    assert not dual.value.requires_grad
    x = ((torch.arange(20_000) + 0.5) / 20_000).double()[:, None]
    (gradient,) = torch.autograd.grad(exact.potential(x).mean(), y)
    starts = ends - B[order]
    expected = torch.zeros_like(B)
    expected[order] = 2 * (Y[order, 0] * B[order] - (ends**2 - starts**2) / 2)
    torch.testing.assert_close(gradient[:, 0], expected, rtol=0, atol=1e-3)
    for eps in (0.0, 0.3):
        soft = semidiscrete.SemiDiscreteDual(**{**vars(dual), "eps": eps})
        inputs = torch.tensor([[0.05], [0.5]], dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(soft.potential, inputs)


def test_says_when_it_did_not_converge():
    with pytest.warns(
        ConvergenceWarning, match=r"after 3 iterations with marginal error up to .* tol = 0\.1"
    ):
        dual = stochastic_dual(Y, B, uniform(), tol=0.1, max_iter=3, generator=rng())
    assert not dual.converged
    assert dual.n_iter == 3
    assert dual.marginal_error > 0.1
    # A single value has no cells of prescribed mass.
    with pytest.warns(ConvergenceWarning):
        stuck = stochastic_dual(
            Y, B, lambda n, generator: torch.full((n, 1), 0.5).double(), tol=0.2, max_iter=50, generator=rng()
        )
    assert stuck.marginal_error > 1


def test_progress_is_shown_on_request(capfd):
    stochastic_dual(Y, B, uniform(), tol=0.2, generator=rng())
    assert capfd.readouterr().err == ""
    stochastic_dual(Y, B, uniform(), tol=0.2, generator=rng(), progress=True)
    assert "marginal error" in capfd.readouterr().err


BAD = {
    "no point": (([], None, uniform()), {}, ValueError, r"points must have shape"),
    "a batch": ((torch.zeros(2, 3, 1), None, uniform()), {}, ValueError, r"points must have shape \(m, d\)"),
    "NaN": ((Y * torch.nan, B, uniform()), {}, ValueError, "points holds nan"),
    "weights": ((Y, [0.5, 0.5], uniform()), {}, ValueError, r"weights must have shape \(…, 4\)"),
    "weights in a batch": ((Y, B.expand(2, 4), uniform()), {}, ValueError, r"weights must have shape \(4,\)"),
    "mass": ((Y, 2 * B, uniform()), {}, ValueError, "weights has mass 2"),
    "samples": ((Y, B, torch.zeros(9, 1)), {}, TypeError, "sample must be a function.*but a Tensor"),
    "dimension": ((Y, B, uniform(2)), {}, ValueError, r"must have shape \(256, 1\), but has \(256, 2\)"),
    "number": ((Y, B, lambda n, generator: torch.zeros(7, 1).double()), {}, ValueError, r"but has \(7, 1\)"),
    "dtype": ((Y, B, uniform(dtype=torch.float32)), {}, ValueError, "what sample draws is float32"),
    "NaN samples": (
        (Y, B, lambda n, generator: torch.full((n, 1), math.nan).double()),
        {},
        ValueError,
        "what sample draws holds nan",
    ),
    "a seed": (
        (Y, B, uniform()),
        {"generator": 0},
        TypeError,
        "generator must be a torch.Generator, but a int",
    ),
    "eps": (
        (Y, B, uniform()),
        {"eps": -1.0},
        ValueError,
        "eps must be a finite number above 0.*0 gives hard",
    ),
    "cost": ((Y, B, uniform()), {"cost": "l1"}, ValueError, "cost must be one of 'sqeuclidean'"),
    "tol": ((Y, B, uniform()), {"tol": 0.0}, ValueError, "tol must be"),
    "step": ((Y, B, uniform()), {"step": -1.0}, ValueError, "step must be"),
    "max_iter": ((Y, B, uniform()), {"max_iter": 0}, ValueError, "max_iter must be"),
    "batch_size": ((Y, B, uniform()), {"batch_size": 1.5}, ValueError, "batch_size must be"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    args, kwargs, error, message = BAD[case]
    with pytest.raises(error, match=message):
        stochastic_dual(*args, **{"generator": rng(), **kwargs})


def test_bad_queries(solved):
    with pytest.raises(ValueError, match="x has points in dimension 2|x is float32"):
        solved.assign(torch.zeros(3, 2))
    with pytest.raises(ValueError, match=r"x must have shape"):
        solved.assign(torch.zeros(3).double())


def test_on_another_device(device):
    draw = uniform()
    dual = stochastic_dual(
        Y.to(device),
        B.to(device),
        lambda n, generator: draw(n, generator).to(device),
        tol=0.05,
        generator=rng(),
    )
    assert dual.g.device == device
    torch.testing.assert_close(dual.g.cpu(), on_the_line()[2], rtol=0, atol=0.05)
