"""Gromov–Wasserstein between spaces given by factors, and between batches of spaces."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from otbook import costs
from otbook.costs import PointCloudCost
from otbook.gromov import (
    LowRankCost,
    entropic_gromov_wasserstein,
    fused_gromov_wasserstein,
    gromov_wasserstein,
    unbalanced_gromov_wasserstein,
)
from otbook.gromov._quadratic import Quadratic
from otbook.gromov._space import space

from . import problems
from .test_gromov import asymmetric, instance

F64 = torch.float64

SOLVERS = [
    gromov_wasserstein,
    partial(entropic_gromov_wasserstein, eps=0.5, tol=1e-9),
    partial(unbalanced_gromov_wasserstein, eps=0.25, rho=2.0, tol=1e-9),
]


def factors(n: int, rank: int, *, seed: int = 0) -> LowRankCost:
    """Random costs that are neither symmetric nor those of points."""
    rng = problems.generator(seed)
    return LowRankCost(*(torch.rand(n, rank, generator=rng, dtype=F64) for _ in range(2)))


def low_rank() -> tuple[LowRankCost, PointCloudCost, Tensor, Tensor, Tensor, Tensor]:
    x = torch.randn(5, 2, generator=problems.generator(7), dtype=F64) / 2 + 3
    a, b = problems.weights(7, seed=1), problems.weights(5, seed=2)
    Cx, Cy = factors(7, 3), PointCloudCost(x, x)
    return Cx, Cy, Cx.dense(), costs.sqeuclidean(x, x), a, b


class TestLowRank:
    def test_every_product_is_that_of_the_matrix(self):
        Cx, Cy, *dense, a, b = low_rank()
        factored, plain = (
            Quadratic(space(X, "Cx", None), space(Y, "Cy", None), a, b, None, 1.0)
            for X, Y in ((Cx, Cy), dense)
        )
        assert [t.shape for t in factored.X.factors] == [(7, 4), (4, 7)]  # rank 3, and the mean
        assert [t.shape for t in factored.Y.factors] == [(5, 5), (5, 5)]  # d + 2, and the mean
        P = torch.rand(7, 5, generator=problems.generator(4), dtype=F64)
        for one, other in (
            (factored.product(P), plain.product(P)),
            (factored.u, plain.u),
            (factored.v, plain.v),
            (factored.gradient(factored.product(P)), plain.gradient(plain.product(P))),
        ):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)

    def test_symmetric_clouds_take_one_product(self):
        x, y = (torch.randn(6, 3, generator=problems.generator(s), dtype=F64) for s in (1, 2))
        assert space(PointCloudCost(x, x.clone()), "Cx", None).symmetric
        assert not space(PointCloudCost(x, y), "Cx", None).symmetric
        # One cloud against another is as good a matrix as any.
        a, b = problems.weights(6), problems.weights(5)
        Cy = asymmetric(5)
        result = gromov_wasserstein(PointCloudCost(x, y), Cy, a, b)
        other = gromov_wasserstein(costs.sqeuclidean(x, y), Cy, a, b)
        torch.testing.assert_close(result.value, other.value, rtol=1e-10, atol=0)

    @pytest.mark.parametrize("solve", SOLVERS)
    def test_same_answer_as_the_matrix(self, solve):
        Cx, Cy, *dense, a, b = low_rank()
        result, other = solve(Cx, Cy, a, b), solve(*dense, a, b)
        torch.testing.assert_close(result.value, other.value, rtol=1e-8, atol=0)
        torch.testing.assert_close(result.plan, other.plan, rtol=0, atol=1e-7)

    def test_other_costs_of_clouds_are_formed(self):
        x = torch.randn(6, 2, generator=problems.generator(1), dtype=F64)
        Cy = asymmetric(4)
        lazy = gromov_wasserstein(PointCloudCost(x, x, "euclidean"), Cy)
        assert lazy.value == gromov_wasserstein(costs.euclidean(x, x), Cy).value

    @pytest.mark.parametrize("solve", SOLVERS)
    def test_gradients_in_factors_and_points(self, solve):
        Cx, Cy, _, _, a, b = low_rank()
        leaves = [t.detach().clone().requires_grad_() for t in (Cx.A, Cx.B, Cy.x)]
        A, B, x = leaves
        value = solve(LowRankCost(A, B), PointCloudCost(x, x), a, b).value
        gradients = torch.autograd.grad(value, leaves)
        dense = solve(A @ B.T, costs.sqeuclidean(x, x), a, b).value
        for one, other in zip(gradients, torch.autograd.grad(dense, leaves), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-6)

    def test_far_from_the_origin(self):
        x = torch.randn(6, 2, generator=problems.generator(1), dtype=F64)
        Cy, b = asymmetric(4), problems.weights(4)
        near, far = (gromov_wasserstein(PointCloudCost(z, z), Cy, None, b).value for z in (x, x + 1e5))
        # The points themselves are rounded to 1e5 · 1e-16.
        torch.testing.assert_close(near, far, rtol=1e-9, atol=0)

    def test_float32(self):
        Cx, _, C, _, a, b = low_rank()
        Cy = asymmetric(5)
        low = gromov_wasserstein(LowRankCost(Cx.A.float(), Cx.B.float()), Cy.float(), a.float(), b.float())
        assert low.value.dtype == torch.float32
        torch.testing.assert_close(
            low.value.double(), gromov_wasserstein(C, Cy, a, b).value, rtol=1e-5, atol=1e-6
        )


class TestBatch:
    @pytest.mark.parametrize("solve", SOLVERS)
    def test_as_one_by_one(self, solve):
        Cx = torch.stack([asymmetric(5, seed=s) for s in range(6)]).reshape(2, 3, 5, 5)
        Cy, a = torch.stack([asymmetric(4, seed=s) for s in (9, 8, 7)]), problems.weights(2, 1, 5)
        b = problems.weights(4)
        result = solve(Cx, Cy, a, b)  # leading axes (2, 3), (3,), (2, 1) and ()
        assert result.plan.shape == (2, 3, 5, 4)
        assert result.f.shape == (2, 3, 5)
        assert result.converged
        n_iter = 0
        for i in range(2):
            for j in range(3):
                one = solve(Cx[i, j], Cy[j], a[i, 0], b)
                n_iter += one.n_iter
                for name in ("value", "cost", "f", "g", "marginal_error", "plan"):
                    assert torch.equal(getattr(result, name)[i, j], getattr(one, name)), name
        assert result.n_iter == n_iter

    def test_fused_and_factored(self):
        Cx, Cy, *_, a, b = low_rank()
        M = torch.stack([problems.random_problem(seed=s)[0] for s in range(2)])
        x = torch.stack([Cy.x, 2 * Cy.x])
        result = fused_gromov_wasserstein(M, Cx, PointCloudCost(x, x), a, b, alpha=0.5)
        for k in range(2):
            one = fused_gromov_wasserstein(M[k], Cx, PointCloudCost(x[k], x[k]), a, b, alpha=0.5)
            torch.testing.assert_close(result.value[k], one.value, rtol=1e-12, atol=0)

    def test_gradients(self):
        Cx, Cy, a, b = instance(4, 3)
        batch = torch.stack([Cx, Cx.T + 0.1 * Cx])
        leaves = [t.requires_grad_() for t in (batch, Cy, a, b)]
        weight = torch.tensor([2.0, -3.0], dtype=F64)
        gradients = torch.autograd.grad((weight * gromov_wasserstein(*leaves).value).sum(), leaves)
        singly = [torch.autograd.grad(gromov_wasserstein(C, *leaves[1:]).value, leaves[1:]) for C in batch]
        for k, gradient in enumerate(gradients[1:]):
            torch.testing.assert_close(gradient, 2 * singly[0][k] - 3 * singly[1][k])
        assert gradients[0].shape == batch.shape

    def test_one_warning_for_all(self):
        from otbook import ConvergenceWarning

        C = torch.stack([asymmetric(6, seed=s) for s in range(3)])
        with pytest.warns(ConvergenceWarning, match="after 1 iterations") as record:
            result = gromov_wasserstein(C, asymmetric(5, seed=5), problems.weights(6), max_iter=1)
        assert len(record) == 1
        assert not result.converged


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LowRankCost(torch.ones(3, 2), torch.ones(3, 1)), r"A has rank 2 and B has rank 1"),
        (lambda: LowRankCost(torch.ones(4, 3, 2), torch.ones(3, 2)), r"batch shapes .* A \(4,\), B \(\)"),
        (lambda: LowRankCost(torch.ones(3, 0), torch.ones(3, 0)), r"A has shape \(3, 0\)"),
        (lambda: LowRankCost(torch.ones(3, 2), torch.full((3, 2), torch.nan)), r"B holds nan"),
        (
            lambda: gromov_wasserstein(LowRankCost(torch.ones(3, 2), torch.ones(4, 2)), torch.ones(2, 2)),
            r"Cx must be square, but has shape \(3, 4\)",
        ),
        (
            lambda: gromov_wasserstein(torch.ones(2, 2), PointCloudCost(torch.ones(3, 1), torch.ones(4, 1))),
            r"Cy must be square, but has shape \(3, 4\)",
        ),
        (
            lambda: gromov_wasserstein(torch.ones(2, 2), LowRankCost(*2 * [torch.ones(3, 2, dtype=F64)])),
            r"Cy is float64 .* are float32",
        ),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()
