"""The Sinkhorn divergence against closed forms, its limits and its gradient."""

import contextlib
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import otbook
from otbook import ConvergenceWarning, costs, gaussian, sinkhorn, sinkhorn_divergence
from otbook.entropic import _divergence, _sinkhorn

from .test_check import BAD_CLOUDS


def clouds(n=9, m=7, d=2, seed=0, dtype=torch.float64, batch=()):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*batch, n, d, generator=generator, dtype=dtype)
    y = 0.7 * torch.randn(*batch, m, d, generator=generator, dtype=dtype) + 1
    a = torch.rand(n, generator=generator, dtype=dtype) + 0.1
    b = torch.rand(m, generator=generator, dtype=dtype) + 0.1
    return x, y, a / a.sum(), b / b.sum()


def test_gaussians_on_a_grid():
    t = torch.linspace(-9, 9, 181, dtype=torch.float64)
    laws = [(-((t - m) ** 2) / (2 * s**2)).softmax(0) for m, s in ((0.0, 1.0), (1.0, 0.6))]
    measured = sinkhorn_divergence(t[:, None], t[:, None], *laws, eps=0.8, tol=1e-9)
    parameters = [
        (torch.tensor([m]).double(), torch.tensor([[s**2]]).double()) for m, s in ((0, 1), (1, 0.6))
    ]

    def ot(i, j):
        return gaussian.entropic_cost(*parameters[i], *parameters[j], eps=0.8)

    torch.testing.assert_close(measured, ot(0, 1) - (ot(0, 0) + ot(1, 1)) / 2, rtol=0, atol=1e-8)


@pytest.mark.parametrize("eps", [1e-3, 0.1, 10.0])
def test_a_translation_costs_its_square(eps):
    x, _, a, _ = clouds()
    shift = torch.tensor([3.0, -4.0], dtype=torch.float64)
    torch.testing.assert_close(
        sinkhorn_divergence(x, x + shift, a, a, eps=eps, tol=1e-9),
        torch.tensor(25.0, dtype=torch.float64), rtol=0, atol=1e-6,
    )  # fmt: skip


def test_limits_in_eps():
    x, y, a, b = clouds()
    exact = otbook.emd(otbook.costs.sqeuclidean(x, y), a, b).value
    small = sinkhorn_divergence(x, y, a, b, eps=1e-3)
    assert abs(small - exact) <= 1e-3 * math.log(9)
    large = sinkhorn_divergence(x, y, a, b, eps=1e6)
    torch.testing.assert_close(large, (a @ x - b @ y).square().sum(), rtol=1e-4, atol=0)


@given(seed=st.integers(0, 10_000), n=st.integers(1, 12), m=st.integers(1, 12), log_eps=st.floats(-3, 2))
@settings(max_examples=25, deadline=None)
def test_symmetric_non_negative_and_zero_on_the_diagonal(seed, n, m, log_eps):
    x, y, a, b = clouds(n, m, seed=seed)
    eps = 10**log_eps
    there = sinkhorn_divergence(x, y, a, b, eps=eps, tol=1e-9)
    torch.testing.assert_close(sinkhorn_divergence(y, x, b, a, eps=eps, tol=1e-9), there, rtol=0, atol=1e-7)
    assert there > 0
    assert abs(sinkhorn_divergence(x, x, a, a, eps=eps)) <= 1e-12
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    shuffled = sinkhorn_divergence(x, x[order], a, a[order], eps=eps, tol=1e-9)
    assert abs(shuffled) <= 1e-7


def test_a_thousand_float32_pairs_are_non_negative():
    x, y, _, _ = clouds(8, 6, dtype=torch.float32, batch=(1000,))
    divergence = sinkhorn_divergence(x, x[:, :6] + 1e-3 * y, eps=0.5)
    assert divergence.shape == (1000,)
    assert divergence.dtype == torch.float32
    assert divergence.min() >= 0


def test_batch_is_the_loop_and_float32_is_close():
    x, y, a, b = clouds(batch=(3,))
    together = sinkhorn_divergence(x, y, a, b, eps=0.2, tol=1e-9)
    for k in range(3):
        alone = sinkhorn_divergence(x[k], y[k], a, b, eps=0.2, tol=1e-9)
        torch.testing.assert_close(together[k], alone, rtol=0, atol=1e-8)
    single = sinkhorn_divergence(x.float(), y.float(), a.float(), b.float(), eps=0.2)
    torch.testing.assert_close(single.double(), together, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("cost", ["sqeuclidean", "euclidean", "cosine"])
def test_gradcheck(cost):
    x, y, a, b = clouds(4, 3)
    logits = a.log().requires_grad_()

    def loss(x, y, logits):
        return sinkhorn_divergence(x, y, logits.softmax(0), b, eps=0.3, cost=cost, tol=1e-12)

    assert torch.autograd.gradcheck(loss, (x.requires_grad_(), y.requires_grad_(), logits), atol=1e-6)


#: The limit that is set to zero so that this is done.
WAYS = {"cost stored": None, "kernel kept": "PRODUCT", "made anew": "DENSE"}


@pytest.mark.parametrize("way", WAYS)
def test_second_derivatives(way, monkeypatch):
    x, y, a, b = clouds(4, 3)
    if WAYS[way]:
        monkeypatch.setattr(_divergence, WAYS[way], 0)

    def loss(x, y):
        return sinkhorn_divergence(x, y, a, b, eps=0.3, tol=1e-12)

    assert torch.autograd.gradgradcheck(
        loss, (x.requires_grad_(), y.requires_grad_()), atol=1e-5, fast_mode=True
    )


@pytest.mark.parametrize("way", ["kernel kept", "made anew"])
@pytest.mark.parametrize("batch", [(), (3,)])
@pytest.mark.parametrize("eps", [0.3, 0.003])
def test_costs_need_not_be_stored(way, batch, eps, monkeypatch):
    x, y, a, b = clouds(batch=batch)
    used, products = [], _divergence.KeptKernel.T.fget
    monkeypatch.setattr(_divergence.KeptKernel, "T", property(lambda K: used.append(1) or products(K)))
    inputs = x.requires_grad_(), y.requires_grad_(), a, b
    stored = sinkhorn_divergence(*inputs, eps=eps, tol=1e-9).sum()
    monkeypatch.setattr(_divergence, WAYS[way], 0)
    assert not used
    other = sinkhorn_divergence(*inputs, eps=eps, tol=1e-9).sum()
    assert bool(used) == (way == "kernel kept")
    torch.testing.assert_close(other, stored, rtol=0, atol=1e-8)
    for one, two in zip(*(torch.autograd.grad(s, (x, y)) for s in (other, stored)), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-7)


@pytest.mark.parametrize("way", ["kernel kept", "made anew"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_on_another_device(way, dtype, device, monkeypatch):
    monkeypatch.setattr(_divergence, WAYS[way], 0)
    here = [t.requires_grad_() for t in clouds(dtype=dtype)]
    there = [t.detach().to(device).requires_grad_() for t in here]
    values = [sinkhorn_divergence(*t, eps=0.3) for t in (here, there)]
    assert values[1].device == device
    torch.testing.assert_close(values[1].cpu(), values[0], rtol=0, atol=1e-5)
    slopes = [torch.autograd.grad(v, t[:2]) for v, t in zip(values, (here, there), strict=True)]
    for expected, found in zip(*slopes, strict=True):
        torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("eps", [1.0, 1e-2, 1e-4])
@pytest.mark.parametrize("cost", ["sqeuclidean", "euclidean", "cosine"])
def test_one_potential_solves_a_symmetric_problem(cost, eps):
    x, _, a, _ = clouds(40)
    C = costs.BY_NAME[cost](x, x)
    errors = []
    for max_iter in (8, 16):
        with contextlib.suppress(ConvergenceWarning):
            kernel = _sinkhorn.absorbed_kernel(C, a, a)
            _, _, error, _ = _divergence._fixed_point(kernel, eps, 1e-14, max_iter)
        errors.append(error.item())
    # A rate of at most ⅓, whatever ε.
    assert errors[1] <= (1 / 3) ** 8 * 1.5 * errors[0] + 1e-13
    value = _divergence._to_itself(C, a, a, eps, 1e-9, 1000)
    torch.testing.assert_close(value, sinkhorn(C, a, a, eps=eps, tol=1e-9).value, rtol=0, atol=1e-8)


def test_not_converged():
    x, y, a, b = clouds()
    with pytest.warns(ConvergenceWarning, match="sinkhorn_divergence stopped after 2 iterations"):
        sinkhorn_divergence(x, x, a, a, eps=0.3, max_iter=2)
    with pytest.warns(ConvergenceWarning, match="stopped after 9 iterations"):
        sinkhorn_divergence(x, y, a, b, eps=1e-3, max_iter=9, tol=1e-5)


def test_warnings_name_the_line_that_called():
    x, y, a, b = clouds()
    C = costs.sqeuclidean(x, y)
    calls = (
        lambda: sinkhorn_divergence(x, x, a, a, eps=0.3, max_iter=2),
        lambda: sinkhorn_divergence(x, y, a, b, eps=1e-3, max_iter=9, tol=1e-5),
        lambda: sinkhorn(C, a, b, eps=1e-3, max_iter=2),
        lambda: sinkhorn(C, a, b, eps=1e-3, max_iter=2, gradient="unrolled"),
    )
    for call in calls:
        with pytest.warns(ConvergenceWarning) as record:
            call()
        places = {(warning.filename, warning.lineno) for warning in record}
        assert places == {(__file__, call.__code__.co_firstlineno)}


def test_zero_weights_and_one_point():
    x, y, a, b = clouds()
    padded = torch.cat([x, torch.full((1, 2), 50.0, dtype=torch.float64)])
    torch.testing.assert_close(
        sinkhorn_divergence(padded, y, torch.cat([a, a.new_zeros(1)]), b, eps=0.3, tol=1e-9),
        sinkhorn_divergence(x, y, a, b, eps=0.3, tol=1e-9), rtol=0, atol=1e-7,
    )  # fmt: skip
    one = sinkhorn_divergence(x[:1], y[:1], eps=0.3)
    torch.testing.assert_close(one, (x[0] - y[0]).square().sum(), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("cloud", "error", "message"), BAD_CLOUDS)
def test_bad_clouds(cloud, error, message):
    with pytest.raises(error, match=message):
        sinkhorn_divergence(cloud, torch.ones(2, 3, dtype=torch.float64), eps=1.0)


def test_bad_options():
    x, y, a, _ = clouds()
    with pytest.raises(ValueError, match="cost must be one of 'sqeuclidean', 'euclidean', 'cosine'"):
        sinkhorn_divergence(x, y, eps=1.0, cost="manhattan")
    with pytest.raises(ValueError, match="eps must be a finite number above 0"):
        sinkhorn_divergence(x, y, eps=0.0)
    with pytest.raises(ValueError, match="a has mass 2"):
        sinkhorn_divergence(x, y, 2 * a, eps=1.0)
    with pytest.raises(ValueError, match=r"batch shapes do not agree: x \(3,\), y \(2,\)"):
        sinkhorn_divergence(x.expand(3, 9, 2), y.expand(2, 7, 2), eps=1.0)
