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
from otbook.gromov._entropic import _Sinkhorn
from otbook.gromov._mirror import Response
from otbook.gromov._quadratic import Quadratic, Split
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

    @pytest.mark.parametrize("solve", SOLVERS)
    def test_on_another_device(self, solve, device):
        Cx, Cy, *_, a, b = low_rank()
        here = solve(Cx, Cy, a, b)
        moved = (
            LowRankCost(Cx.A.to(device), Cx.B.to(device)),
            PointCloudCost(Cy.x.to(device), Cy.y.to(device)),
        )
        there = solve(*moved, a.to(device), b.to(device))
        assert there.plan.device == device
        torch.testing.assert_close(there.value.cpu(), here.value, rtol=0, atol=1e-8)
        torch.testing.assert_close(there.plan.cpu(), here.plan, rtol=0, atol=1e-6)

    def test_float32(self):
        Cx, _, C, _, a, b = low_rank()
        Cy = asymmetric(5)
        low = gromov_wasserstein(LowRankCost(Cx.A.float(), Cx.B.float()), Cy.float(), a.float(), b.float())
        assert low.value.dtype == torch.float32
        torch.testing.assert_close(
            low.value.double(), gromov_wasserstein(C, Cy, a, b).value, rtol=1e-5, atol=1e-6
        )


def cloud(n: int, d: int = 3, *, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=problems.generator(seed), dtype=F64)


def found(C: Tensor) -> list[torch.Size]:
    """The shapes of the factors that a matrix is taken apart into."""
    given = torch.finfo(C.dtype).eps
    return [t.shape for t in space(C.double(), "Cx", None).factorised(given).factors]


class TestRankOfAMatrix:
    @pytest.mark.parametrize("n", [128, 400])
    @pytest.mark.parametrize("dtype", [torch.float32, F64])
    def test_squared_distances_are_taken_apart(self, n, dtype):
        x = cloud(n) + 5
        C = costs.sqeuclidean(x, x).to(dtype)
        assert found(C) == [(n, 5), (5, n)]
        A, B = space(C.double(), "Cx", None).factorised(torch.finfo(dtype).eps).factors
        assert (A @ B - C).abs().max() <= 16 * torch.finfo(dtype).eps * C.max()

    def test_other_matrices_are_not(self):
        x = cloud(150)
        C = costs.sqeuclidean(x, x)
        for whole in (
            costs.euclidean(x, x),
            asymmetric(150),
            torch.zeros(150, 150, dtype=F64),
            C[:127, :127],  # small enough to be multiplied as it is
            costs.sqeuclidean(cloud(150, 31), cloud(150, 31)),  # of rank 33
        ):
            assert found(whole) == [whole.shape]

    def test_a_single_entry_counts(self):
        x = cloud(150)
        C = costs.sqeuclidean(x, x)
        for size in 10.0 ** torch.arange(-12, 1).double():
            changed = C.clone()
            changed[3, 7] += size
            factors = space(changed, "Cx", None).factorised(torch.finfo(F64).eps).factors
            product = factors[0] @ factors[1] if len(factors) == 2 else factors[0]
            assert (product - changed).abs().max() <= 16 * torch.finfo(F64).eps * C.max()

    def test_rounding_is_that_of_the_argument(self):
        x, a = cloud(150), problems.weights(150)
        noise = 1 + 1e-10 * torch.rand(150, 150, generator=problems.generator(1), dtype=F64)
        C = costs.sqeuclidean(x, x) * noise
        for dtype, count in ((F64, 1), (torch.float32, 2)):
            X = space(C.to(dtype), "Cx", None)
            assert len(Quadratic(X, X, a.to(dtype), a.to(dtype), None, 1.0).X.factors) == count

    def test_rank_one_and_asymmetric(self):
        one = torch.ones(150, 1, dtype=F64)
        assert found(one @ one.T) == [(150, 1), (1, 150)]
        assert found(factors(150, 6).dense()) == [(150, 6), (6, 150)]
        assert not space(factors(150, 6).dense(), "Cx", None).factorised(1e-16).symmetric

    @pytest.mark.parametrize("solve", SOLVERS[1:])
    def test_answer_and_gradient_are_those_of_the_points(self, solve):
        x, y = cloud(130, 2) / 2, cloud(140, 1, seed=1) / 2
        Cx, Cy = (costs.sqeuclidean(z, z).requires_grad_() for z in (x, y))
        result, points = solve(Cx, Cy), solve(PointCloudCost(x, x), PointCloudCost(y, y))
        torch.testing.assert_close(result.value, points.value, rtol=1e-9, atol=0)
        torch.testing.assert_close(result.plan, points.plan, rtol=0, atol=1e-9)
        (in_Cx,) = torch.autograd.grad(result.value, Cx)
        assert in_Cx.shape == Cx.shape


class TestSplit:
    """S(P) as rows, columns and the rest, of which couplings see only the rest."""

    def spaces(self, kind: str) -> tuple[Quadratic, Tensor]:
        x, y = cloud(7, 2) + 1, cloud(5, 1, seed=1)
        lazy = [PointCloudCost(z, z) for z in (x, y)]
        dense = [costs.sqeuclidean(z, z) for z in (x, y)]
        Cx, Cy = {
            "both": lazy,
            "left": [lazy[0], dense[1]],
            "right": [dense[0], lazy[1]],
            "none": dense,
            "asymmetric": [asymmetric(7), lazy[1]],
        }[kind]
        a, b = problems.weights(7, seed=1), problems.weights(5, seed=2)
        a[2] = 0
        q = Quadratic(space(Cx, "Cx", None), space(Cy, "Cy", None), a, b, None, 1.0)
        return q, torch.rand(7, 5, generator=problems.generator(4), dtype=F64)

    @pytest.mark.parametrize("kind", ["both", "left", "right", "none", "asymmetric"])
    def test_against_the_definition(self, kind):
        q, P = self.spaces(kind)
        split, S = Split(q), q.product(P)
        K, rows, columns = split(P)
        R = split.expand(K)
        close = partial(torch.testing.assert_close, rtol=1e-12, atol=1e-12)
        close(rows[:, None] + columns + R, S)
        close(R @ q.b, torch.zeros_like(q.a))
        close(q.a @ R, torch.zeros_like(q.b))
        Q = torch.rand(7, 5, generator=problems.generator(5), dtype=F64)
        close(split.times(K, Q), (R * Q).sum())
        other = split(Q)[0]
        pairing = torch.stack([(split.metric(K) * k).sum() for k in (K, other)])
        weighted = torch.stack([(q.outer * R * split.expand(k)).sum() for k in (K, other)])
        close(pairing * split.factor**2, weighted)

    def test_size_of_the_core(self):
        sizes = {
            kind: tuple(Split(q)(P)[0].shape)
            for kind in ("both", "left", "right", "none")
            for q, P in [self.spaces(kind)]
        }
        # d + 2 and one more for the mean, which is taken off.
        assert sizes == {"both": (5, 4), "left": (5, 5), "right": (7, 4), "none": (7, 5)}


class TestResponse:
    """One step of mirror descent, against the matrices that it does without."""

    def made(self, accuracy: float, *, at_rest: bool = False) -> tuple[Quadratic, Tensor, Response]:
        Cx, Cy, *_, a, b = low_rank()
        q = Quadratic(space(Cx, "Cx", None), space(Cy, "Cy", None), a, b, None, 1.0)
        respond = _Sinkhorn(q, 0.3)
        P = torch.rand(7, 5, generator=problems.generator(4), dtype=F64)
        K = respond.split(P / P.sum())[0]
        if at_rest:
            for _ in range(60):
                K = K + respond(K, 1e-13).residual
            respond.g = None
        return q, -2 * respond.split.expand(K), respond(K, accuracy)

    def test_rest(self):
        q, C, response = self.made(1e-12)
        R = q.gradient(q.product(response.P)) - C
        R = R - (R @ q.b)[:, None]
        R = R - q.a @ R
        rest = (response.P * R.square()).sum().sqrt() / 0.3
        torch.testing.assert_close(response.rest, rest, rtol=1e-10, atol=0)

    def test_value_at_rest_is_right_to_first_order_in_the_marginals(self):
        q, _, exact = self.made(1e-13, at_rest=True)
        assert exact.rest < 1e-10
        _, _, rough = self.made(0.5, at_rest=True)
        wrong = (rough.P.sum(1) - q.a).abs().sum() + (rough.P.sum(0) - q.b).abs().sum()
        assert wrong > 1e-2
        assert abs(rough.value - exact.value) < 0.3 * wrong**2

    def test_the_path_does_not_depend_on_the_factors(self):
        x, y = cloud(30, 2), cloud(25, 3, seed=1)
        a, b = problems.weights(30, seed=1) ** 3, problems.weights(25, seed=2) ** 3
        a, b = a / a.sum(), b / b.sum()
        paths = []
        for kind in (lambda z: PointCloudCost(z, z), lambda z: costs.sqeuclidean(z, z)):
            path = []
            record = lambda *step, path=path: path.append(step)  # noqa: E731
            entropic_gromov_wasserstein(kind(x), kind(y), a, b, eps=3.0, tol=1e-6, callback=record)
            paths.append(torch.tensor(path, dtype=F64))
        assert len(paths[0]) > 11  # of which many are extrapolated
        torch.testing.assert_close(*paths, rtol=1e-3, atol=1e-9)

    @pytest.mark.parametrize("seed", range(1, 6))
    def test_inner_errors_do_not_spoil_the_extrapolation(self, seed):
        # With marginals right to tol/10 these took up to 200 iterations, more than for a smaller tol.
        x, y = cloud(30, 2, seed=seed), cloud(25, 3, seed=10 + seed)
        a, b = problems.weights(30, seed=seed) ** 3, problems.weights(25, seed=20 + seed) ** 3
        spaces = PointCloudCost(x, x), PointCloudCost(y, y)
        result = entropic_gromov_wasserstein(*spaces, a / a.sum(), b / b.sum(), eps=0.3, tol=1e-5)
        assert result.converged
        assert result.n_iter <= 25


def test_rough_marginals_far_from_rest_do_not_look_like_a_better_plan():
    # One step comes to rest, but the plan before it, whose marginals were right to 10⁻⁸ and its
    # cost far from the gradient, seemed to be worth 10⁻⁹ less.
    Cx = torch.tensor([[0.0, 1.3414, 1.4363], [1.3414, 0.0, 2.7374], [1.4363, 2.7374, 0.0]], dtype=F64)
    Cy = torch.tensor([[0.0, 2.9678], [2.9678, 0.0]], dtype=F64)
    result = entropic_gromov_wasserstein(Cx, Cy, [0.8561, 0.1439, 0.0], [0.092, 0.908], eps=0.0178)
    assert result.converged
    assert result.n_iter < 20


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
