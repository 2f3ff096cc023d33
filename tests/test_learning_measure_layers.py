"""Layers on measures: closed forms, order, copies and padding, the Lipschitz bound, marginals, gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from otbook import ConvergenceWarning, emd, sinkhorn
from otbook.costs import euclidean, sqeuclidean
from otbook.learning import (
    ElementaryBlock,
    MeasurePooling,
    lipschitz_mlp,
    sinkhorn_attention,
    softmax_attention,
)

from . import problems
from .checks import close
from .problems import matrix

F64 = torch.float64


def features(z: Tensor) -> Tensor:  # smooth, sees every coordinate
    k = torch.arange(1.0, 4.0, dtype=z.dtype, device=z.device)
    return torch.sin(k * z.sum(-1, keepdim=True)) + z[..., :1] * k


def pair_features(z: Tensor) -> Tensor:  # asymmetric in the two halves
    d = z.shape[-1] // 2
    return torch.sin(z[..., :d] - 2 * z[..., d:]) + z[..., :d] * z[..., d:] ** 2


def symmetric_scores(x: Tensor, eps: float = 1.5) -> Tensor:
    return -sqeuclidean(x, x) / eps


LAYERS = [MeasurePooling(features), ElementaryBlock(pair_features)]
every_layer = pytest.mark.parametrize("layer", LAYERS, ids=["pooling", "block"])
ATTENTIONS = {
    "softmax": lambda S, a: softmax_attention(S, a),
    "Sinkhorn": lambda S, a: sinkhorn_attention(S, a, a),
}
every_attention = pytest.mark.parametrize("attention", ATTENTIONS.values(), ids=ATTENTIONS)


class TestClosedForms:
    def test_pooling_is_the_weighted_sum(self):
        x, a = matrix(5, 2), problems.weights(5)
        close(MeasurePooling(features)(x, a), sum(a[i] * features(x[i]) for i in range(5)))

    def test_block_is_the_double_loop(self):
        x, a = matrix(5, 2), problems.weights(5)
        rows = [sum(a[j] * pair_features(torch.cat([x[i], x[j]])) for j in range(5)) for i in range(5)]
        close(ElementaryBlock(pair_features)(x, a), torch.stack(rows))

    def test_first_argument_alone_is_the_push_forward(self):
        x = matrix(6, 2)
        close(ElementaryBlock(lambda z: z[..., :2].exp())(x, problems.weights(6)), x.exp())

    def test_second_argument_alone_is_pooling(self):
        x, a = matrix(6, 2), problems.weights(6)
        pooled = MeasurePooling(features)(x, a)
        close(ElementaryBlock(lambda z: features(z[..., 2:]))(x, a), pooled.expand(6, 3))

    def test_no_weights_are_uniform_weights(self):
        x, a = matrix(4, 2), torch.full((4,), 0.25, dtype=F64)
        for layer in LAYERS:
            close(layer(x), layer(x, a))


class TestInvariance:
    @every_layer
    def test_order(self, layer):
        x, a, order = matrix(6, 2), problems.weights(6), torch.tensor([3, 1, 5, 0, 4, 2])
        out, moved = layer(x, a), layer(x[order], a[order])
        close(moved, out[order] if isinstance(layer, ElementaryBlock) else out)

    @every_layer
    def test_a_point_written_twice(self, layer):
        x, a = matrix(5, 2), problems.weights(5)
        twice = torch.cat([x, x[:1]]), torch.cat([a[:1] / 3, a[1:], a[:1] * 2 / 3])
        out, doubled = layer(x, a), layer(*twice)
        close(doubled, torch.cat([out, out[:1]]) if isinstance(layer, ElementaryBlock) else out)

    @every_layer
    def test_padding(self, layer):
        x, a = matrix(5, 2), problems.weights(5)
        padded = layer(torch.cat([x, torch.full((2, 2), 50.0, dtype=F64)]), torch.cat([a, a.new_zeros(2)]))
        out = layer(x, a)
        close(padded[:5] if isinstance(layer, ElementaryBlock) else padded, out)

    @every_attention
    def test_attention(self, attention):
        x, a, order = matrix(6, 2), problems.weights(6), torch.tensor([3, 1, 5, 0, 4, 2])
        S = symmetric_scores(x)
        A = attention(S, a)
        close(attention(S[order][:, order], a[order]), A[order][:, order], 1e-6)
        twice, split = torch.cat([x, x[:1]]), torch.cat([a[:1] / 3, a[1:], a[:1] * 2 / 3])
        close((attention(symmetric_scores(twice), split) @ twice)[:6], A @ x, 1e-5)
        padded, zero = torch.cat([x, x[:2] + 30]), torch.cat([a, a.new_zeros(2)])
        masked = attention(symmetric_scores(padded), zero)
        close(masked[:6, :6], A, 1e-5)
        close(masked[:, 6:], 0)


class TestLipschitz:
    def test_block_of_1_lipschitz_functions_has_constant_2(self):
        f = lipschitz_mlp([4, 16, 16, 2], generator=problems.generator(0), dtype=F64)
        x, y, a, b = problems.clouds(6, 5, batch=(10,))
        before = emd(euclidean(x, y), a, b).value
        block = ElementaryBlock(f)
        after = emd(euclidean(block(x, a).detach(), block(y, b).detach()), a, b).value
        assert (after <= 2 * before).all()

    def test_the_constant_is_attained(self):
        x, a, shift = matrix(6, 2), problems.weights(6), torch.tensor([3.0, 4.0], dtype=F64)
        block = ElementaryBlock(lambda z: z[..., :2] + z[..., 2:])
        close(emd(euclidean(block(x, a), block(x + shift, a)), a, a).value, 10.0)


class TestAttention:
    def test_two_by_two(self):
        S = torch.tensor([[0.0, 0.0], [0.0, 2 * math.log(3)]], dtype=F64)
        close(softmax_attention(S), torch.tensor([[0.5, 0.5], [0.1, 0.9]], dtype=F64))
        close(sinkhorn_attention(S, tol=1e-10), torch.tensor([[0.75, 0.25], [0.25, 0.75]], dtype=F64), 1e-8)

    def test_gaussian_with_weights(self):
        s, eps = 0.8, 0.5
        x = torch.linspace(-5, 5, 101, dtype=F64)[:, None]
        a = torch.softmax(-(x[:, 0] ** 2) / (2 * s**2), 0)
        c = (math.sqrt(4 * s**4 + eps**2 / 4) - eps / 2) / 2
        A = sinkhorn_attention(symmetric_scores(x, eps), a, a, tol=1e-10)
        close((A @ x)[30:71], c / s**2 * x[30:71], 1e-6)

    @pytest.mark.parametrize(("dtype", "tol"), [(torch.float32, 1e-4), (F64, 1e-6)])
    def test_doubly_stochastic(self, dtype, tol):
        A = sinkhorn_attention(3 * matrix(2, 12, 12, dtype=dtype))
        assert A.dtype == dtype
        close(A.sum(-1), 1.0, 1e-5 if dtype == torch.float32 else 1e-12)
        close(A.sum(-2), 1.0, tol)

    def test_weights_and_shapes(self):
        S, a, b = 2 * matrix(3, 5, 7), problems.weights(3, 5), problems.weights(7)
        A = sinkhorn_attention(S, a, b, tol=1e-9)
        assert A.shape == (3, 5, 7)
        close(A.sum(-1), 1.0)
        close((a[:, None] @ A)[:, 0], b.expand(3, 7), 1e-9)
        close(a[..., None] * A, sinkhorn(-S, a, b, eps=1.0, tol=1e-11).plan, 1e-8)

    def test_a_constant_for_every_key_changes_nothing(self):
        S, price = matrix(6, 6), matrix(6, seed=1)
        close(sinkhorn_attention(S + price, tol=1e-10), sinkhorn_attention(S, tol=1e-10), 1e-8)

    def test_forbidden_pairs(self):
        S = matrix(5, 5).masked_fill(torch.eye(5, dtype=torch.bool), -math.inf)
        for A in (softmax_attention(S), sinkhorn_attention(S, tol=1e-9)):
            close(A.diagonal(), 0)
            close(A.sum(1), 1.0)

    def test_large_scores(self):
        S = 1e4 * matrix(4, 4)
        close(softmax_attention(S), torch.softmax(S, -1))
        masked = torch.tensor([[0.0, 1e6]], dtype=F64)
        close(softmax_attention(masked, [1.0, 0.0]), torch.tensor([[1.0, 0.0]], dtype=F64))

    def test_sinkhorn_velocity_is_minus_a_quarter_of_the_gradient(self):
        x = matrix(8, 2).requires_grad_()
        (gradient,) = torch.autograd.grad(sinkhorn(sqeuclidean(x, x), eps=1.5, tol=1e-11).value, x)
        A = sinkhorn_attention(symmetric_scores(x.detach()), tol=1e-11)
        close(A @ x.detach() - x.detach(), -2 * gradient, 1e-8)

    def test_not_converged_warns(self):
        with pytest.warns(ConvergenceWarning):
            sinkhorn_attention(30 * matrix(20, 20), max_iter=1)


class TestGradients:
    @every_layer
    def test_layers(self, layer):
        x, z = matrix(4, 2).requires_grad_(), matrix(4, seed=1).requires_grad_()
        call = lambda x, z: layer(x, torch.softmax(z, 0))  # noqa: E731
        assert torch.autograd.gradcheck(call, (x, z))
        assert torch.autograd.gradgradcheck(call, (x, z))

    @every_attention
    def test_attention(self, attention):
        S, z = matrix(4, 4).requires_grad_(), matrix(4, seed=1).requires_grad_()
        if attention is ATTENTIONS["Sinkhorn"]:
            attention = lambda S, a: sinkhorn_attention(S, a, a, tol=1e-12)  # noqa: E731
        assert torch.autograd.gradcheck(lambda S, z: attention(S, torch.softmax(z, 0)), (S, z))

    def test_softmax_at_weight_zero(self):
        S, b = matrix(2, 3), torch.tensor([0.5, 0.5, 0.0], dtype=F64, requires_grad=True)
        (gradient,) = torch.autograd.grad(softmax_attention(S, b)[0, 0], b)
        E = S[0].exp()
        Z = (E[0] + E[1]) / 2
        close(gradient[2], -E[0] / 2 * E[2] / Z**2)

    def test_sinkhorn_refuses_second_derivatives(self):
        S = matrix(4, 4).requires_grad_()
        (g,) = torch.autograd.grad(sinkhorn_attention(S)[0, 0], S, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            g.square().sum().backward()

    def test_parameters_are_found(self):
        block = ElementaryBlock(nn.Linear(4, 3, dtype=F64))
        block(matrix(5, 2)).sum().backward()
        assert all(p.grad.abs().sum() > 0 for p in block.parameters())
        assert len(list(MeasurePooling(nn.Linear(2, 3)).parameters())) == 2


class TestShapes:
    @every_layer
    @pytest.mark.parametrize("dtype", [torch.float32, F64])
    def test_batch_is_one_by_one(self, layer, dtype):
        x, a = matrix(2, 3, 5, 2, dtype=dtype), problems.weights(3, 5, dtype=dtype)
        out = layer(x, a)
        assert out.dtype == dtype
        for i in range(2):
            for j in range(3):
                close(out[i, j], layer(x[i, j], a[j]), 1e-5 if dtype == torch.float32 else 1e-12)

    @every_layer
    def test_many_measures_on_the_same_points(self, layer):
        x, a = matrix(5, 2), problems.weights(7, 5)
        close(layer(x, a), layer(x.expand(7, 5, 2), a))


class TestBadInput:
    def test_layers(self):
        with pytest.raises(TypeError, match="phi must be a function"):
            MeasurePooling(3)
        with pytest.raises(TypeError, match="f must be a function"):
            ElementaryBlock(None)
        with pytest.raises(ValueError, match=r"x must have shape"):
            LAYERS[0](torch.zeros(3))
        with pytest.raises(ValueError, match="has mass"):
            LAYERS[1](matrix(3, 2), torch.ones(3, dtype=F64))
        with pytest.raises(ValueError, match="batch shapes"):
            LAYERS[1](matrix(2, 3, 2), problems.weights(4, 3))
        with pytest.raises(ValueError, match=r"f must map \(3, 3, 4\)"):
            ElementaryBlock(lambda z: z.sum())(matrix(3, 2))

    @pytest.mark.parametrize("attention", [softmax_attention, sinkhorn_attention])
    def test_attention(self, attention):
        with pytest.raises(ValueError, match="scores must have shape"):
            attention(torch.zeros(3))
        with pytest.raises(ValueError, match="scores holds NaN"):
            attention(torch.tensor([[math.nan, 0.0]]))
        with pytest.raises(ValueError, match=r"\+inf"):
            attention(torch.tensor([[math.inf, 0.0]]))
        with pytest.raises(ValueError, match="negative weight"):
            attention(torch.zeros(2, 2), b=[1.5, -0.5])

    def test_nothing_to_attend_to(self):
        with pytest.raises(ValueError, match="nothing to attend to"):
            softmax_attention(torch.tensor([[-math.inf, 0.0]]), [1.0, 0.0])

    def test_tolerance(self):
        with pytest.raises(ValueError, match="tol must be"):
            sinkhorn_attention(torch.zeros(2, 2), tol=0)


def test_on_another_device(device):
    x, a, S = matrix(5, 2), problems.weights(5), matrix(5, 5)
    for layer in LAYERS:
        close(layer(x.to(device), a.to(device)).cpu(), layer(x, a))
    close(softmax_attention(S.to(device), a.to(device)).cpu(), softmax_attention(S, a))
    close(sinkhorn_attention(S.to(device), a.to(device)).cpu(), sinkhorn_attention(S, a), 1e-5)
