"""Networks side by side against the same networks alone."""

import math

import pytest
import torch
from torch import nn

from otbook.learning import StackedMLP


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def stacked(runs=3, widths=(2, 7, 5, 1), **options):
    return StackedMLP(runs, widths, generator=seeded(), **{"dtype": torch.float64, "bias": 0.3} | options)


def alone(net, run, activation):
    """One run, by PyTorch's own layers."""
    layers = []
    for W, b in zip(net.weights, net.biases, strict=True):
        layer = nn.Linear(*W.shape[1:], dtype=W.dtype)
        with torch.no_grad():
            layer.weight.copy_(W[run].T)
            layer.bias.copy_(b[run, 0])
        layers += [layer, activation]
    return nn.Sequential(*layers[:-1])


@pytest.mark.parametrize(("activation", "layer"), [(torch.relu, nn.ReLU()), (torch.tanh, nn.Tanh())])
def test_every_run_is_a_network_of_its_own(activation, layer):
    net = stacked(activation=activation)
    x = torch.randn(3, 11, 2, generator=seeded(1), dtype=torch.float64)
    for run in range(3):
        torch.testing.assert_close(net(x)[run], alone(net, run, layer)(x[run]), rtol=0, atol=1e-14)
    torch.testing.assert_close(net(x[0])[2], net(x[:1].expand(3, -1, -1))[2], rtol=0, atol=0)


def test_training_together_is_training_alone():
    net = stacked(activation=torch.tanh)
    x, y = torch.randn(2, 3, 20, 2, generator=seeded(2), dtype=torch.float64)
    y = y[..., :1]
    single = [alone(net, run, nn.Tanh()) for run in range(3)]
    for model, points, values in ((net, x, y), *zip(single, x, y, strict=True)):
        adam = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(30):
            adam.zero_grad()
            (model(points) - values).square().mean((-2, -1)).sum().backward()
            adam.step()
    for run in range(3):
        torch.testing.assert_close(net(x)[run], single[run](x[run]), rtol=0, atol=1e-10)


def test_the_start_has_the_spread_that_it_names():
    net = stacked(50, (100, 200, 3), gain=math.sqrt(2), bias=0.5)
    for W in net.weights:
        assert W.std().item() == pytest.approx(math.sqrt(2 / W.shape[1]), rel=0.02)
    assert net.biases[0].std().item() == pytest.approx(0.5, rel=0.02)
    assert (net.biases[1] == 0).all()
    assert (stacked(bias=0.0).biases[0] == 0).all()


def test_the_generator_decides():
    states = [StackedMLP(2, [3, 4, 1], generator=seeded(7)).state_dict() for _ in range(2)]
    torch.testing.assert_close(*states, rtol=0, atol=0)


def test_some_runs_and_repeated_runs_train_apart():
    net = stacked()
    x = torch.randn(4, 2, generator=seeded(3), dtype=torch.float64)
    some, twice = net[1:], net.repeat(2)
    assert (len(net), len(some), len(twice)) == (3, 2, 6)
    torch.testing.assert_close(some(x), net(x)[1:], rtol=0, atol=0)
    torch.testing.assert_close(twice(x), torch.cat([net(x)] * 2), rtol=0, atol=0)
    before = net(x).detach()
    with torch.no_grad():
        for p in (*some.parameters(), *twice.parameters()):
            p.zero_()
    torch.testing.assert_close(net(x), before, rtol=0, atol=0)
    frozen = net.requires_grad_(False)[:1]
    assert not any(p.requires_grad for p in frozen.parameters())


def test_parameters_follow_dtype_and_device():
    net = StackedMLP(2, [3, 4, 1], dtype=torch.float32, device="cpu").to(torch.float64)
    assert {p.dtype for p in net.parameters()} == {torch.float64}
    assert len(list(net.parameters())) == 4


@pytest.mark.parametrize(
    ("arguments", "options", "name"),
    [
        ((0, [2, 1]), {}, "runs"),
        ((2, [2]), {}, "widths"),
        ((2, [2, 0]), {}, "widths"),
        ((2, [2, 1]), {"gain": 0}, "gain"),
    ],
)
def test_bad_shapes_are_named(arguments, options, name):
    with pytest.raises(ValueError, match=name):
        StackedMLP(*arguments, **options)


@pytest.mark.parametrize("shape", [(5, 3), (2, 5, 2), (2,), (3, 1, 5, 2)])
def test_points_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"x must have shape \(n, 2\) or \(3, n, 2\)"):
        stacked()(torch.zeros(shape, dtype=torch.float64))


def test_no_repetition_is_refused():
    with pytest.raises(ValueError, match="times"):
        stacked().repeat(0)
