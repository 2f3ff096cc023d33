"""Lipschitz networks: polar factors by SVD, exact norms, permutations, gradients, refused input."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from otbook.learning import BjorckLinear, GroupSort, empirical_lipschitz, lipschitz_mlp, orthonormalise

from . import problems
from .checks import close
from .problems import matrix

F64 = torch.float64


def conditioned(n: int, sigma: Tensor) -> Tensor:
    U, V = (torch.linalg.qr(matrix(n, n, seed=s)).Q for s in (1, 2))
    return U @ torch.diag(sigma) @ V.T


def polar(W: Tensor) -> Tensor:
    U, _, Vt = torch.linalg.svd(W, full_matrices=False)
    return U @ Vt


def norm(W: Tensor) -> float:
    return torch.linalg.matrix_norm(W, 2).max().item()


def mlp(widths=(3, 8, 8, 1), *, seed=0, dtype=F64, **options):
    return lipschitz_mlp(widths, generator=problems.generator(seed), dtype=dtype, **options)


class TestOrthonormalise:
    @pytest.mark.parametrize("shape", [(5, 5), (7, 3), (3, 7), (1, 4), (4, 1), (1, 1), (2, 3, 6, 4)])
    @pytest.mark.parametrize("order", [1, 2, 4])
    def test_limit_is_the_polar_factor(self, shape, order):
        W = matrix(*shape)
        close(orthonormalise(W, n_iter=60, order=order), polar(W), 1e-10)

    def test_rows_or_columns_whichever_are_fewer(self):
        wide, tall = orthonormalise(matrix(3, 7), n_iter=40), orthonormalise(matrix(7, 3), n_iter=40)
        close(wide @ wide.T, torch.eye(3, dtype=F64))
        close(tall.T @ tall, torch.eye(3, dtype=F64))

    @pytest.mark.parametrize("scale", [1e-200, 1e-6, 1, 1e6, 1e200])
    @pytest.mark.parametrize("n_iter", [1, 2, 5, 30])
    def test_never_too_long_whatever_the_scale(self, scale, n_iter):
        W = matrix(9, 6)
        out = orthonormalise(scale * W, n_iter=n_iter)
        assert norm(out) <= 1 + 1e-12
        close(out, orthonormalise(W, n_iter=n_iter))

    @pytest.mark.parametrize(("dtype", "slack"), [(torch.float32, 1e-6), (F64, 1e-14)])
    def test_norm_after_convergence(self, dtype, slack):
        out = orthonormalise(matrix(40, 40, dtype=dtype), n_iter=40)
        assert out.dtype == dtype
        assert abs(norm(out.double()) - 1) <= 10 * slack

    @pytest.mark.parametrize("order", [1, 2, 3])
    def test_one_iteration_by_hand(self, order):
        sigma = torch.tensor([1.0, 0.5, 0.1], dtype=F64)
        out = torch.linalg.svdvals(orthonormalise(conditioned(3, sigma), n_iter=1, order=order))
        s = sigma / (sigma**4).sum() ** 0.25
        series = sum(math.comb(2 * j, j) / 4**j * (1 - s**2) ** j for j in range(order + 1))
        close(out, s * series)

    @pytest.mark.parametrize("order", [1, 2])
    def test_order_of_convergence(self, order):
        errors = []
        for n_iter in (3, 4, 5):
            sigma = torch.linalg.svdvals(
                orthonormalise(
                    conditioned(2, torch.tensor([1.0, 0.6], dtype=F64)), n_iter=n_iter, order=order
                )
            )
            errors.append((1 - sigma[-1]).item())
        first, second, _ = errors
        c = math.comb(2 * order + 2, order + 1) / 4 ** (order + 1) * 2 ** (order + 1)
        assert second == pytest.approx(c * first ** (order + 1), rel=0.2)

    def test_small_singular_values_grow_by_three_halves(self):
        W = conditioned(3, torch.tensor([1.0, 1.0, 1e-6], dtype=F64))
        small = [torch.linalg.svdvals(orthonormalise(W, n_iter=t))[-1] for t in (3, 4, 5)]
        close(torch.stack(small[1:]) / torch.stack(small[:-1]), 1.5, 1e-6)

    def test_invariances(self):
        W, U = matrix(6, 4), torch.linalg.qr(matrix(6, 6, seed=3)).Q
        out = orthonormalise(W, n_iter=4, order=2)
        close(orthonormalise(U @ W, n_iter=4, order=2), U @ out)
        close(orthonormalise(W.T, n_iter=4, order=2), out.T)
        perm = torch.tensor([2, 0, 3, 1])
        close(orthonormalise(W[:, perm], n_iter=4, order=2), out[:, perm])
        close(orthonormalise(-W, n_iter=4, order=2), -out)

    def test_a_batch_is_a_loop(self):
        W = matrix(2, 3, 4, 6)
        out = orthonormalise(W, n_iter=5)
        for i in range(2):
            for j in range(3):
                close(out[i, j], orthonormalise(W[i, j], n_iter=5))

    def test_zero_and_rank_deficient(self):
        assert orthonormalise(torch.zeros(3, 2, dtype=F64)).abs().max() == 0
        out = orthonormalise(matrix(5, 1) @ matrix(1, 4, seed=1), n_iter=20)
        close(torch.linalg.svdvals(out), torch.tensor([1.0, 0, 0, 0], dtype=F64), 1e-10)

    @pytest.mark.parametrize("shape", [(3, 3), (4, 2), (2, 4), (3, 1), (2, 3, 2)])
    @pytest.mark.parametrize("order", [1, 3])
    def test_gradients(self, shape, order):
        W = matrix(*shape).requires_grad_()
        assert torch.autograd.gradcheck(lambda W: orthonormalise(W, n_iter=3, order=order), W)
        assert torch.autograd.gradgradcheck(lambda W: orthonormalise(W, n_iter=2, order=order), W)

    def test_numpy_and_lists(self):
        W = matrix(3, 2)
        close(orthonormalise(W.numpy()), orthonormalise(W))
        assert orthonormalise([[3.0], [4.0]]).flatten().tolist() == pytest.approx([0.6, 0.8])

    @pytest.mark.parametrize(
        ("W", "options", "match"),
        [
            (torch.ones(3), {}, "W must have shape"),
            (torch.tensor([[math.nan, 1.0]]), {}, "W holds nan"),
            (torch.eye(2), {"n_iter": 0}, "n_iter must be a whole number"),
            (torch.eye(2), {"order": 1.5}, "order must be a whole number"),
        ],
    )
    def test_bad_input(self, W, options, match):
        with pytest.raises(ValueError, match=match):
            orthonormalise(W, **options)


class TestGroupSort:
    def test_by_hand(self):
        x = torch.tensor([3.0, 1.0, 2.0, 5.0, 0.0, -1.0], dtype=F64)
        close(GroupSort()(x), torch.tensor([1.0, 3, 2, 5, -1, 0], dtype=F64))
        close(GroupSort(3)(x), torch.tensor([1.0, 2, 3, -1, 0, 5], dtype=F64))
        close(GroupSort(6)(x), x.sort().values)
        close(GroupSort(1)(x), x)

    @pytest.mark.parametrize("size", [2, 3, 4])
    def test_jacobian_is_a_permutation(self, size):
        J = torch.autograd.functional.jacobian(GroupSort(size), matrix(12))
        close(J @ J.T, torch.eye(12, dtype=F64), 0)
        assert set(J.unique().tolist()) == {0.0, 1.0}

    def test_leading_axes(self):
        x = matrix(2, 3, 8)
        close(GroupSort(4)(x)[1, 2], GroupSort(4)(x[1, 2]))

    def test_is_a_contraction(self):
        x, y = matrix(2, 200, 8)
        before, after = (x - y).norm(dim=1), (GroupSort(4)(x) - GroupSort(4)(y)).norm(dim=1)
        assert (after <= before + 1e-12).all()
        assert (after < before - 1e-3).any()

    def test_bad_input(self):
        with pytest.raises(ValueError, match="7 features, no multiple of group_size = 2"):
            GroupSort(2)(torch.zeros(3, 7))
        with pytest.raises(ValueError, match="group_size must be a whole number"):
            GroupSort(0)


class TestBjorckLinear:
    def test_is_affine_with_the_orthonormal_weight(self):
        layer = BjorckLinear(3, 5, generator=problems.generator(0), dtype=F64)
        layer.weight.data = matrix(5, 3)
        x = matrix(4, 2, 3, seed=1)
        close(layer(x).detach(), (x @ orthonormalise(layer.weight).T + layer.bias).detach())

    def test_starts_orthonormal_and_deterministic(self):
        one, two = (BjorckLinear(6, 4, generator=problems.generator(3), dtype=F64) for _ in range(2))
        other = BjorckLinear(6, 4, generator=problems.generator(4), dtype=F64)
        close(one.weight @ one.weight.T, torch.eye(4, dtype=F64))
        close(one.weight.detach(), two.weight.detach(), 0)
        close(one.bias.detach(), two.bias.detach(), 0)
        assert (one.weight - other.weight).abs().max() > 0.1
        assert one.bias.abs().max() <= 1 / math.sqrt(6)

    def test_an_expanding_layer_is_an_isometry(self):
        layer = BjorckLinear(3, 8, bias=False, n_iter=40, generator=problems.generator(0), dtype=F64)
        layer.weight.data = matrix(8, 3)
        x = matrix(20, 3, seed=2)
        close(layer(x).norm(dim=1), x.norm(dim=1), 1e-10)
        assert layer.bias is None

    @pytest.mark.parametrize(("dtype", "slack"), [(torch.float32, 1e-4), (F64, 1e-6)])
    def test_norm_stays_bounded_during_training(self, dtype, slack):
        layer = BjorckLinear(10, 10, n_iter=6, generator=problems.generator(0), dtype=dtype)
        target, x = matrix(50, 10, dtype=dtype), matrix(50, 10, seed=1, dtype=dtype)
        optimiser = torch.optim.Adam(layer.parameters(), lr=0.1)
        losses = []
        for _ in range(40):
            loss = (layer(x) - target).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
            assert norm(layer.orthonormal_weight().detach().double()) <= 1 + slack
        assert losses[-1] < losses[0] - 0.1

    def test_copies_and_state(self):
        layer = BjorckLinear(4, 4, generator=problems.generator(0), dtype=F64)
        twin, x = copy.deepcopy(layer), matrix(3, 4)
        close(twin(x).detach(), layer(x).detach(), 0)
        twin.weight.data = matrix(4, 4, seed=5)
        assert (twin(x) - layer(x)).abs().max() > 1e-3
        layer.load_state_dict(twin.state_dict())
        close(twin(x).detach(), layer(x).detach(), 0)

    def test_bad_input(self):
        with pytest.raises(ValueError, match="in_features must be"):
            BjorckLinear(0, 3)
        with pytest.raises(ValueError, match="order must be"):
            BjorckLinear(2, 3, order=0)
        with pytest.raises(TypeError, match=r"must be a torch\.Generator"):
            BjorckLinear(2, 3, generator=0)
        with pytest.raises(ValueError, match="x has 3 features, but the layer takes 2"):
            BjorckLinear(2, 3)(torch.zeros(1, 3))

    def test_on_another_device(self, device):
        generator = torch.Generator(device).manual_seed(0) if device.type == "cuda" else None
        layer = BjorckLinear(4, 6, generator=generator, device=device, dtype=F64)
        x = matrix(5, 4).to(device)
        close(layer(x).detach().cpu(), copy.deepcopy(layer).cpu()(x.cpu()).detach(), 1e-10)


class TestMlp:
    def test_parts(self):
        f = mlp((3, 8, 4, 2), group_size=4, n_iter=5, order=2)
        names = [type(part).__name__ for part in f]
        assert names == ["BjorckLinear", "GroupSort", "BjorckLinear", "GroupSort", "BjorckLinear"]
        assert (f[0].n_iter, f[2].order, f[1].group_size) == (5, 2, 4)
        assert f(matrix(7, 3)).shape == (7, 2)
        assert isinstance(mlp(activation="relu")[1], torch.nn.ReLU)

    def test_one_lipschitz_for_any_weights(self):
        f = mlp((3, 16, 16, 1), n_iter=4)
        for k, p in enumerate(f.parameters()):
            p.data = 5 * matrix(*p.shape, seed=k)
        assert empirical_lipschitz(f, 3 * matrix(300, 3)) <= 1 + 1e-6

    def test_keeps_the_gradient_where_no_layer_shrinks(self):
        f = mlp((8, 8, 8, 1), n_iter=40)
        x = matrix(20, 8).requires_grad_()
        (g,) = torch.autograd.grad(f(x).sum(), x)
        close(g.norm(dim=1), 1.0, 1e-10)
        (g,) = torch.autograd.grad(mlp((8, 8, 8, 1), activation="relu")(x).sum(), x)
        assert g.norm(dim=1).max() < 0.99

    def test_learns_the_absolute_value(self):
        f, x = mlp((1, 8, 1)), torch.linspace(-1, 1, 41, dtype=F64)[:, None]
        optimiser = torch.optim.Adam(f.parameters(), lr=0.03)
        for _ in range(300):
            loss = (f(x) - x.abs()).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        assert loss < 1e-3

    def test_second_derivatives_reach_the_weights(self):
        f = mlp((2, 4, 1), n_iter=3)
        x = matrix(5, 2).requires_grad_()
        (g,) = torch.autograd.grad(f(x).sum(), x, create_graph=True)
        (h,) = torch.autograd.grad(g.square().sum(), f[0].weight)
        assert h.abs().max() > 1e-6

    def test_vmap_over_an_ensemble(self):
        models = [mlp((2, 4, 1), seed=s) for s in range(3)]
        params, buffers = torch.func.stack_module_state(models)
        x = matrix(5, 2)
        out = torch.func.vmap(
            lambda p, b: torch.func.functional_call(models[0], (p, b), x), randomness="error"
        )(params, buffers)
        for k, model in enumerate(models):
            close(out[k].detach(), model(x).detach())

    def test_bad_input(self):
        with pytest.raises(ValueError, match="input and output"):
            lipschitz_mlp([3])
        with pytest.raises(ValueError, match="multiples of group_size = 2"):
            lipschitz_mlp([3, 7, 1])
        with pytest.raises(ValueError, match="activation must be one of"):
            lipschitz_mlp([3, 8, 1], activation="tanh")


class TestEmpirical:
    def test_linear_and_kinked(self):
        w = torch.tensor([3.0, -4.0], dtype=F64)
        close(empirical_lipschitz(lambda x: x @ w + 1, matrix(30, 2)), 5.0)
        close(empirical_lipschitz(lambda x: (x @ w)[:, None], matrix(30, 2)), 5.0)

    def test_gradients_and_pairs_both_count(self):
        x = torch.tensor([[-1.0], [1.0]], dtype=F64)
        cube = empirical_lipschitz(lambda z: z**3, x)  # slope 3 at both points, quotient 1
        close(cube, 3.0)
        step = empirical_lipschitz(lambda z: torch.sign(z) + 0 * z, x)  # slope 0, quotient 1
        close(step, 1.0)

    def test_is_a_lower_bound_that_grows_with_the_points(self):
        x = matrix(100, 2)
        f = lambda z: z.norm(dim=1).sin()  # noqa: E731
        few, many = empirical_lipschitz(f, x[:10]), empirical_lipschitz(f, x)
        assert few <= many <= 1
        assert many > 0.99

    def test_twins_do_not_divide_by_zero(self):
        x = torch.ones(3, 2, dtype=F64)
        x[1, 0] += 7e-11
        assert np.isfinite(empirical_lipschitz(lambda z: z.sum(1).exp(), x).item())
        # values near 1e6 are rounded to multiples of 1.2e-10, so the quotient of the twins would be 1.7
        close(empirical_lipschitz(lambda z: z[:, 0] + 1e6, x), 1.0)

    def test_works_without_grad_and_leaves_none(self):
        x = matrix(5, 2).requires_grad_()
        with torch.no_grad():
            K = empirical_lipschitz(lambda z: 2 * z[:, 0], x)
        assert not K.requires_grad
        close(K, 2.0)

    def test_bad_input(self):
        with pytest.raises(ValueError, match="f must return shape"):
            empirical_lipschitz(lambda z: z, torch.zeros(3, 2))
        with pytest.raises(ValueError, match="single cloud"):
            empirical_lipschitz(lambda z: z, torch.zeros(3, 2, 2))
