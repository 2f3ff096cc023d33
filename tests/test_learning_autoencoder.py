"""Penalties and scores of autoencoders against closed forms, quadrature and the other estimators of MMD."""

import math

import pytest
import torch
from scipy.integrate import quad
from torch.distributions import Independent, MixtureSameFamily, Normal, kl_divergence

from otbook.flows import mmd2
from otbook.learning import aggregate_log_density, gaussian_kl, mmd2_unbiased, uncovered_share


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def randn(*shape, generator):
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def gaussian_mean(shift2, variance, C, d):
    """E exp(−|W|² / C) for W with the law N(shift, variance·I)."""
    return (1 + 2 * variance / C) ** (-d / 2) * math.exp(-shift2 / (C + 2 * variance))


def imq_mean(shift2, variance, C, d):
    """E C / (C + |W|²): the multiquadric is a Laplace transform of Gaussians, ∫ exp(−t − t|w|²/C) dt."""
    return quad(lambda t: math.exp(-t) * gaussian_mean(shift2, variance, C / t, d), 0, math.inf)[0]


@pytest.mark.parametrize(("kernel", "expected"), [("gaussian", gaussian_mean), ("imq", imq_mean)])
def test_mean_over_samples_is_the_squared_mmd_of_two_gaussians(kernel, expected, generator):
    d, std, shift = 3, 0.7, torch.tensor([0.5, 0.0, -0.3], dtype=torch.float64)
    scales = [1.5, 6.0]
    x = shift + std * randn(20_000, 4, d, generator=generator)
    y = randn(20_000, 6, d, generator=generator)
    s2 = shift.square().sum().item()
    exact = sum(
        expected(0, 2 * std**2, C, d) + expected(0, 2, C, d) - 2 * expected(s2, 1 + std**2, C, d)
        for C in scales
    )
    values = mmd2_unbiased(x, y, kernel=kernel, scales=scales)
    assert exact / 2 > 0.02
    assert abs(values.mean().item() - exact / 2) <= 4 * values.std().item() / math.sqrt(len(values))


def test_differs_from_the_biased_statistic_by_the_diagonal(generator):
    x, y, h = randn(5, 2, generator=generator), 1 + randn(7, 2, generator=generator), 0.8
    biased = mmd2(x, y, bandwidth=h)
    xx = (torch.exp(-(torch.cdist(x, x) ** 2) / (2 * h**2)).sum() - 5) / 20
    yy = (torch.exp(-(torch.cdist(y, y) ** 2) / (2 * h**2)).sum() - 7) / 42
    unbiased = mmd2_unbiased(x, y, kernel="gaussian", scales=2 * h**2)
    torch.testing.assert_close(biased - unbiased, (1 - xx) / 5 + (1 - yy) / 7, atol=1e-12, rtol=0)


def test_the_default_is_the_mean_of_seven_multiquadrics(generator):
    x, y = randn(4, 3, generator=generator), randn(5, 3, generator=generator)

    def k(u, v):
        r = ((u - v) ** 2).sum().item()
        return sum(6 * c / (6 * c + r) for c in (0.1, 0.2, 0.5, 1, 2, 5, 10)) / 7

    xx = sum(k(x[i], x[j]) for i in range(4) for j in range(4) if i != j) / 12
    yy = sum(k(y[i], y[j]) for i in range(5) for j in range(5) if i != j) / 20
    xy = sum(k(u, v) for u in x for v in y) / 20
    assert abs(mmd2_unbiased(x, y).item() - (xx + yy - 2 * xy)) < 1e-12


def test_invariances_and_batches(generator):
    x, y = randn(3, 6, 2, generator=generator), randn(3, 5, 2, generator=generator)
    value = mmd2_unbiased(x, y, scales=[1.0, 3.0])
    assert value.shape == (3,)
    rotation = torch.linalg.qr(randn(2, 2, generator=generator))[0]
    for u, v, scales in (
        (y, x, [1.0, 3.0]),
        (x[:, [3, 1, 0, 5, 4, 2]], y, [3.0, 1.0]),
        (x @ rotation + 7, y @ rotation + 7, [1.0, 3.0]),
        (2 * x, 2 * y, [4.0, 12.0]),
    ):
        torch.testing.assert_close(mmd2_unbiased(u, v, scales=scales), value, atol=1e-12, rtol=0)
    torch.testing.assert_close(mmd2_unbiased(x[1], y[1], scales=[1.0, 3.0]), value[1], atol=1e-12, rtol=0)
    torch.testing.assert_close(
        mmd2_unbiased(x, y[0], scales=[1.0, 3.0])[2],
        mmd2_unbiased(x[2], y[0], scales=[1.0, 3.0]),
        atol=1e-12,
        rtol=0,
    )


@pytest.mark.parametrize("kernel", ["imq", "gaussian"])
def test_gradients_of_the_mmd(kernel, generator):
    x = randn(4, 2, generator=generator).requires_grad_()
    y = randn(3, 2, generator=generator).requires_grad_()
    options = {"kernel": kernel, "scales": [2.0, 5.0]}
    assert torch.autograd.gradcheck(lambda x, y: mmd2_unbiased(x, y, **options), (x, y))
    assert torch.autograd.gradgradcheck(lambda x, y: mmd2_unbiased(x, y, **options), (x, y))


def test_kl_of_gaussians_is_that_of_torch(generator):
    mean, log_var = randn(4, 5, 3, generator=generator), randn(4, 5, 3, generator=generator)
    exact = kl_divergence(Normal(mean, (log_var / 2).exp()), Normal(torch.zeros(()), torch.ones(()))).sum(-1)
    torch.testing.assert_close(gaussian_kl(mean, log_var), exact, atol=1e-10, rtol=0)
    assert gaussian_kl([0.0, 0.0], [0.0, 0.0]).item() == 0


def test_kl_keeps_its_digits_near_zero():
    tiny = torch.tensor([1e-4], dtype=torch.float32)
    value = gaussian_kl(torch.zeros(1), tiny)
    assert abs(value.item() - 2.5e-9) < 2e-12  # ½ (expm1(u) − u) ≈ u²/4


def test_aggregate_density_is_that_of_the_mixture(generator):
    mean, log_var = randn(6, 3, generator=generator), randn(6, 3, generator=generator)
    z = randn(9, 3, generator=generator)
    uniform = torch.distributions.Categorical(logits=torch.zeros(6, dtype=torch.float64))
    mixture = MixtureSameFamily(uniform, Independent(Normal(mean, (log_var / 2).exp()), 1))
    value = aggregate_log_density(z, mean, log_var)
    torch.testing.assert_close(value, mixture.log_prob(z), atol=1e-10, rtol=0)
    stacked = aggregate_log_density(z.expand(2, 9, 3), mean.expand(2, 6, 3), log_var.expand(2, 6, 3))
    torch.testing.assert_close(stacked, value.expand(2, 9), atol=1e-12, rtol=0)


def test_mean_kl_is_information_plus_divergence_of_the_aggregate(generator):
    mean, log_var = 2 * randn(5, 1, generator=generator), randn(5, 1, generator=generator) - 1
    z = torch.linspace(-12, 12, 20_001, dtype=torch.float64)[:, None]
    log_q = aggregate_log_density(z, mean, log_var)
    single = aggregate_log_density(z.expand(5, -1, 1), mean[:, None], log_var[:, None])  # (5, m)
    log_p = Normal(0.0, 1.0).log_prob(z[:, 0])
    information = torch.trapezoid(single.exp() * (single - log_q), z[:, 0]).mean()
    divergence = torch.trapezoid(log_q.exp() * (log_q - log_p), z[:, 0])
    assert 0 < information < math.log(5)
    total = gaussian_kl(mean, log_var).mean()
    torch.testing.assert_close(information + divergence, total, atol=1e-8, rtol=0)


def test_gradients_of_kl_and_density(generator):
    mean, log_var = (randn(4, 2, generator=generator).requires_grad_() for _ in range(2))
    z = randn(3, 2, generator=generator).requires_grad_()
    assert torch.autograd.gradcheck(gaussian_kl, (mean, log_var))
    assert torch.autograd.gradcheck(aggregate_log_density, (z, mean, log_var))
    assert torch.autograd.gradgradcheck(aggregate_log_density, (z, mean, log_var))


def test_uncovered_share(generator):
    points, codes = randn(2, 50, 3, generator=generator), randn(2, 20, 3, generator=generator)
    nearest = (points[:, :, None] - codes[:, None]).norm(dim=-1).amin(-1)
    share = uncovered_share(points, codes, radius=1.0)
    torch.testing.assert_close(share, (nearest > 1).double().mean(-1), atol=1e-12, rtol=0)
    assert 0.05 < share.min().item() <= share.max().item() < 0.95
    assert uncovered_share(points, points, radius=1e-3).max().item() == 0
    assert uncovered_share(points, codes + 100, radius=1.0).min().item() == 1


def test_dtype_and_determinism(generator):
    x, y = randn(5, 2, generator=generator), randn(6, 2, generator=generator)
    for function in (
        mmd2_unbiased,
        aggregate_log_density_of := lambda x, y: aggregate_log_density(x, y, y),
        lambda x, y: gaussian_kl(x, x),
        lambda x, y: uncovered_share(x, y, radius=0.5),
    ):
        single = function(x.float(), y.float())
        assert single.dtype == torch.float32
        torch.testing.assert_close(single.double(), function(x, y), atol=1e-4, rtol=1e-4)
        assert torch.equal(function(x, y), function(x, y))
    assert aggregate_log_density_of(x, y).dtype == torch.float64


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mmd2_unbiased([[0.0]], [[0.0], [1.0]]), "x has 1 point"),
        (lambda: mmd2_unbiased([[0.0], [1.0]], [[0.0]]), "y has 1 point"),
        (lambda: mmd2_unbiased([[0.0], [1.0]], [[0.0, 1.0], [1.0, 2.0]]), "dimension"),
        (lambda: mmd2_unbiased([[0.0], [1.0]], [[0.0], [1.0]], kernel="rbf"), "kernel must be one of"),
        (lambda: mmd2_unbiased([[0.0], [1.0]], [[0.0], [1.0]], scales=0.0), "scales must be"),
        (lambda: mmd2_unbiased([[0.0], [1.0]], [[0.0], [1.0]], scales=[]), "scales is empty"),
        (lambda: gaussian_kl([0.0, 1.0], [0.0]), "log_var has"),
        (lambda: gaussian_kl([math.nan], [0.0]), "mean holds nan"),
        (lambda: aggregate_log_density([[0.0]], [[0.0, 1.0]], [[0.0, 1.0]]), "z has points in dimension 1"),
        (lambda: aggregate_log_density([[0.0]], [[0.0]], [[0.0], [1.0]]), "log_var has"),
        (lambda: uncovered_share([[0.0]], [[0.0, 1.0]], radius=1.0), "points has points in dimension 1"),
        (lambda: uncovered_share([[0.0]], [[0.0]], radius=-1.0), "radius must be"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_on_another_device(generator, device):
    x, y = randn(5, 2, generator=generator), randn(6, 2, generator=generator)
    for function in (
        mmd2_unbiased,
        lambda x, y: aggregate_log_density(x, y, y),
        lambda x, y: gaussian_kl(x, x),
        lambda x, y: uncovered_share(x, y, radius=0.5),
    ):
        there = function(x.to(device), y.to(device))
        assert there.device == device
        torch.testing.assert_close(there.cpu(), function(x, y), atol=1e-10, rtol=0)
