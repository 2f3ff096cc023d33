"""The gradient penalty against slopes that are known, finite differences, and its remedies for bad input."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from otbook.learning import clip_weights_, gradient_penalty

SHAPES = [(6,), (6, 2), (6, 3, 5), (6, 1, 8, 8), (8, 1, 8, 8), (1, 2, 4, 4)]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def pair(shape, dtype=torch.float64, seed=0):
    return torch.randn(2, *shape, generator=seeded(seed), dtype=torch.float64).to(dtype)


def network(seed=0, sizes=(2, 7, 5, 1)):
    """A smooth critic in float64 with weights from its own generator."""
    layers, generator = [], seeded(seed)
    for a, b in pairwise(sizes):
        layers += [nn.Linear(a, b, dtype=torch.float64), nn.Tanh()]
    critic = nn.Sequential(*layers[:-1])
    with torch.no_grad():
        for p in critic.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64))
    return critic


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_a_linear_critic_has_its_slope_everywhere(shape, dtype):
    real, fake = pair(shape, dtype)
    w = torch.randn(shape[1:], generator=seeded(1), dtype=torch.float64).to(dtype)

    def critic(x):
        return (w * x).reshape(len(x), -1).sum(1)

    norm = w.square().sum().sqrt()
    for target in (0.0, 0.5, 1.0):
        penalty = gradient_penalty(critic, real, fake, target=target, generator=seeded())
        assert penalty.dtype == dtype
        assert penalty.shape == ()
        torch.testing.assert_close(penalty, (norm - target) ** 2)


def test_the_norm_runs_over_all_axes_of_an_image():
    """A slope of 1/8 in each of 64 pixels is a slope of 1; an axis left out would give (1/8 − 1)²."""
    real, fake = pair((8, 1, 8, 8))
    penalty = gradient_penalty(lambda x: x.flatten(1).sum(1) / 8, real, fake)
    torch.testing.assert_close(penalty, torch.tensor(0.0, dtype=torch.float64), atol=1e-15, rtol=0)


@pytest.mark.parametrize("shape", SHAPES[1:], ids=str)
def test_each_sample_has_one_weight(shape):
    """The critic is called at points on the segments; also where the batch is as large as an axis."""
    real, fake = pair(shape)
    seen = []
    gradient_penalty(lambda x: seen.append(x.detach()) or x.flatten(1).sum(1), real, fake, generator=seeded())
    t = (seen[0] - fake) / (real - fake)
    t = t.flatten(1)
    torch.testing.assert_close(t, t[:, :1].expand_as(t), atol=1e-9, rtol=0)
    expected = torch.rand(len(real), generator=seeded(), dtype=torch.float64)
    torch.testing.assert_close(t[:, 0], expected, atol=1e-9, rtol=0)


def test_a_quadratic_critic_has_the_integral_as_its_mean():
    """D = |x|²/2 between x = 2 and 0 has slope 2t: E(2t − 1)² = 1/3, one-sided 1/6, zero-centred 4/3."""
    n = 100_000
    real, fake = torch.full((n, 1), 2.0), torch.zeros(n, 1)
    for options, expected in (({}, 1 / 3), ({"one_sided": True}, 1 / 6), ({"target": 0}, 4 / 3)):
        value = gradient_penalty(lambda x: x.square() / 2, real, fake, generator=seeded(), **options)
        spread = {1 / 3: 0.3, 1 / 6: 0.28, 4 / 3: 1.2}[expected]  # standard deviations of the integrands
        assert abs(value.item() - expected) < 4 * spread / n**0.5


def test_at_the_data_it_is_the_zero_centred_penalty():
    real = pair((5, 2))[0]
    value = gradient_penalty(lambda x: x.square().sum(1) / 2, real, real, target=0)
    torch.testing.assert_close(value, real.square().sum(1).mean())


@pytest.mark.parametrize("options", [{}, {"one_sided": True, "target": 0.3}, {"target": 0.0}], ids=str)
def test_the_gradient_in_the_parameters_is_that_of_finite_differences(options):
    """First and second derivatives: the second are what a critic that unrolls its own steps needs."""
    critic, (real, fake) = network(), pair((4, 2))
    names = [name for name, _ in critic.named_parameters()]

    def penalty(*values):
        def call(x):
            return torch.func.functional_call(critic, dict(zip(names, values, strict=True)), (x,))

        return gradient_penalty(call, real, fake, generator=seeded(), **options)

    values = tuple(p.detach().clone().requires_grad_() for p in critic.parameters())
    assert torch.autograd.gradcheck(penalty, values)
    small = [v.detach()[..., :1].clone() for v in values]
    direction = [torch.randn(s.shape, generator=seeded(2), dtype=torch.float64) for s in small]

    def along(s):
        moved = [
            torch.cat([v[..., :1] + s * d, v[..., 1:]], -1) for v, d in zip(values, direction, strict=True)
        ]
        return penalty(*[m.detach() if not m.requires_grad else m for m in moved])

    assert torch.autograd.gradgradcheck(along, torch.tensor(0.1, dtype=torch.float64, requires_grad=True))


@pytest.mark.parametrize("target", [0.0, 1.0])
def test_a_flat_critic_gives_no_nan(target):
    critic = network()
    with torch.no_grad():
        critic[-1].weight.zero_()
    penalty = gradient_penalty(critic, *pair((4, 2)), target=target)
    assert penalty.item() == target**2
    grads = torch.autograd.grad(penalty, list(critic.parameters()), allow_unused=True, create_graph=True)
    assert all(torch.isfinite(g).all() for g in grads if g is not None)


def test_a_critic_that_ignores_its_input_has_slope_zero():
    real, fake = pair((3, 2))
    assert gradient_penalty(lambda x: torch.zeros(3), real, fake).item() == 1
    bias = torch.zeros(3, requires_grad=True)
    assert gradient_penalty(lambda x: bias, real, fake, target=2).item() == 4


def test_nothing_flows_to_the_generator_and_no_grad_gives_the_value():
    critic, (real, fake) = network(), pair((4, 2))
    fake = fake.requires_grad_()
    value = gradient_penalty(critic, real, fake, generator=seeded())
    value.backward()
    assert fake.grad is None
    with torch.no_grad():
        quiet = gradient_penalty(critic, real, fake, generator=seeded())
    assert not quiet.requires_grad
    torch.testing.assert_close(quiet, value.detach())


def test_swapping_data_and_samples_changes_nothing_for_mirrored_weights():
    """Interpolates of (x, y) at t are those of (y, x) at 1 − t; the mean over many draws agrees."""
    critic, (real, fake) = network(), pair((20_000, 2))
    one = gradient_penalty(critic, real, fake, generator=seeded())
    two = gradient_penalty(critic, fake, real, generator=seeded(1))
    torch.testing.assert_close(one, two, atol=0.1, rtol=0.02)


def test_the_generator_decides():
    critic, (real, fake) = network(), pair((4, 2))
    values = [gradient_penalty(critic, real, fake, generator=seeded(s)).item() for s in (0, 0, 1)]
    assert values[0] == values[1] != values[2]
    single = gradient_penalty(critic.float(), real.float(), fake.float(), generator=seeded())
    torch.testing.assert_close(single.double(), torch.tensor(values[0]).double(), atol=1e-4, rtol=1e-4)


def test_the_global_generator_is_used_only_without_one():
    critic, (real, fake) = network(), pair((4, 2))
    state = torch.random.get_rng_state()
    gradient_penalty(critic, real, fake, generator=seeded())
    assert torch.equal(state, torch.random.get_rng_state())
    with torch.random.fork_rng():
        gradient_penalty(critic, real, fake)
        assert not torch.equal(state, torch.random.get_rng_state())


def test_arrays_and_lists_are_taken():
    real, fake = pair((4, 2))
    a = gradient_penalty(lambda x: x.sum(1), real.numpy(), fake.numpy())
    b = gradient_penalty(lambda x: x.sum(1), real.tolist(), fake)
    torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("real", "fake", "options", "message"),
    [
        (torch.zeros(3, 2), torch.zeros(4, 2), {}, "must have one shape"),
        (torch.zeros(3, 2), torch.zeros(3, 1), {}, "must have one shape"),
        (torch.zeros(3, 1, 8, 8), torch.zeros(3, 64), {}, "must have one shape"),
        (torch.tensor(1.0), torch.tensor(1.0), {}, "must have one shape"),
        (torch.zeros(0, 2), torch.zeros(0, 2), {}, "at least one sample"),
        (torch.zeros(3, 2), torch.zeros(3, 2).double(), {}, "fake is float64"),
        (torch.zeros(3, 2).half(), torch.zeros(3, 2).half(), {}, "use float32 or float64"),
        (torch.zeros(3, 2), torch.zeros(3, 2), {"target": -1}, "target must be"),
        (torch.zeros(3, 2), torch.zeros(3, 2), {"target": torch.inf}, "target must be"),
    ],
)
def test_refuses_bad_input(real, fake, options, message):
    with pytest.raises(ValueError, match=message):
        gradient_penalty(lambda x: x.flatten(1).sum(1), real, fake, **options)


@pytest.mark.parametrize("critic", [lambda x: x, lambda x: x.sum(), lambda x: x.sum(1)[None]], ids="abc")
def test_refuses_a_critic_that_does_not_return_one_number_a_sample(critic):
    with pytest.raises(ValueError, match="one number a sample"):
        gradient_penalty(critic, *pair((3, 2)))


def test_refuses_a_seed_as_generator():
    with pytest.raises(TypeError, match=r"must be a torch\.Generator"):
        gradient_penalty(lambda x: x.sum(1), *pair((3, 2)), generator=0)


def test_the_same_number_on_another_device(device):
    critic, (real, fake) = network(), pair((4, 2))
    here = gradient_penalty(critic, real, fake, generator=seeded())
    there = gradient_penalty(critic.to(device), real.to(device), fake.to(device), generator=seeded())
    assert there.device == device
    torch.testing.assert_close(there.cpu(), here)


def test_clipping_moves_weights_into_the_box_and_keeps_the_others():
    critic = network()
    before = [p.detach().clone() for p in critic.parameters()]
    clip_weights_(critic, 0.5)
    for p, old in zip(critic.parameters(), before, strict=True):
        torch.testing.assert_close(p.detach(), old.clamp(-0.5, 0.5), atol=0, rtol=0)
        assert p.requires_grad
        assert p.grad is None
    assert any((old.abs() < 0.5).any() for old in before)
    assert any((old.abs() > 0.5).any() for old in before)


def test_clipping_takes_parameters_too():
    weights = [torch.tensor([3.0, -0.1], requires_grad=True), torch.tensor([-4.0])]
    clip_weights_(weights, 1)
    assert [w.tolist() for w in weights] == [[1.0, pytest.approx(-0.1)], [-1.0]]
    clip_weights_(weights[0], 0.05)
    assert weights[0].abs().max().item() == pytest.approx(0.05)


@pytest.mark.parametrize("bound", [0, -1, torch.nan])
def test_clipping_refuses_a_bad_bound(bound):
    with pytest.raises(ValueError, match="bound must be"):
        clip_weights_(network(), bound)


def test_clipping_refuses_what_holds_no_tensors():
    with pytest.raises(TypeError, match="must be a module or tensors"):
        clip_weights_(["weight"], 1.0)
