"""The fused kernels against float64: run by ``test_fused.py``, which sets the interpreter up."""

import os

import pytest
import torch

from otbook import sinkhorn
from otbook.costs import PointCloudCost
from otbook.entropic import _fused
from otbook.entropic._dual import maximise, schedule
from otbook.entropic._kernel import COARSE, PointCloudKernel

from . import problems
from .problems import generator

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET", "1") == "1" else "cuda"
#: Half the spacing of float32 numbers at 1.
U = 2.0**-24


def clouds(d, *, n=41, m=110, batch=(), shift=0.0):
    """Two clouds in float32 and two potentials in float64, one entry of each −∞."""
    rng = generator(d)
    x = torch.randn(*batch, n, d, generator=rng) + shift
    y = 0.7 * torch.randn(*batch, m, d, generator=rng) + 0.5 + shift
    f, g = (torch.randn(*batch, k, generator=rng, dtype=torch.float64) for k in (n, m))
    f[..., 3:4], g[..., 100:101] = -torch.inf, -torch.inf
    return (t.to(DEVICE) for t in (x, y, f, g))


def costs(x, y, cost):
    """The ground cost in float64, and the error that the module promises for it, in units of it."""
    d = x.shape[-1]
    x, y = x.double(), y.double()
    squares = (x[..., :, None, :] - y[..., None, :, :]).square().sum(-1)
    if d <= 16:
        error = U * (d + 3) * squares
    else:
        centre = y.mean(-2, keepdim=True)
        radius = (x - centre).norm(dim=-1)[..., :, None] + (y - centre).norm(dim=-1)[..., None, :]
        error = U * (d + 8) * radius.square()
    if cost == "sqeuclidean":
        return squares, error
    return squares.sqrt(), torch.minimum(error.sqrt(), error / squares.sqrt()) + U * squares.sqrt()


def relative_error(f, g, C, error, eps):
    """How far an entry exp((f + g − C)/ε) may be off: by its exponent, the exponential and the sum."""
    sums = (f[..., :, None] + g[..., None, :]).nan_to_num(neginf=0.0)
    exponent = (U * sums.abs() + error) / eps
    return torch.expm1(exponent + U * (2 * (sums - C).abs() / eps + 64))


@pytest.mark.parametrize(
    ("d", "cost", "share", "shift"),
    [
        (1, "sqeuclidean", 1.0, 0.0),
        (3, "sqeuclidean", 1e-3, 0.0),
        (3, "euclidean", 1e-2, 1e3),
        (16, "sqeuclidean", 1e-2, 1e3),
        (40, "sqeuclidean", 1e-3, 1e3),
        (40, "euclidean", 1e-2, 0.0),
    ],
)
def test_error_is_as_promised(d, cost, share, shift):
    x, y, f, g = clouds(d, shift=shift)
    C, error = costs(x, y, cost)
    eps = share * C.max().item()
    f, g = f * C.mean() / 3, g * C.mean() / 3

    exact = -eps * ((g - C) / eps).logsumexp(-1)
    plan = ((exact[:, None] + g - C) / eps).exp()
    bound = (plan * relative_error(exact, g, C, error, eps)).sum(-1)
    assert bound.max() < (1e-3 if share >= 1e-2 else 2e-2), "a bound that says nothing"
    found = _fused.softmin(x, y, g, eps, cost=cost)
    assert found.dtype == torch.float64
    assert ((found - exact).abs() / eps <= 1.1 * bound).all()

    v = torch.randn(y.shape[:-1], generator=generator(1), dtype=torch.float64).to(DEVICE)
    f = torch.where(f == -torch.inf, f, exact + eps * (f / C.mean()))
    weights = ((f[:, None] + g - C) / eps).exp() * v
    bound = (weights.abs() * relative_error(f, g, C, error, eps)).sum(-1)
    found = _fused.product(x, y, f / eps, g / eps, v, eps, cost=cost)
    assert ((found - weights.sum(-1)).abs() <= 1.1 * bound).all()
    assert found[3] == 0


def test_the_potentials_keep_the_digits_that_float32_has_not():
    # A plan around the diagonal, with potentials that are large against the costs there.
    x = torch.arange(100.0, device=DEVICE)[:, None]
    y, eps = x + 0.5, 0.02
    C, f, g = costs(x, y, "euclidean")[0], 0.9 * x.squeeze(-1).double(), -0.9 * y.squeeze(-1).double()
    rows = ((f[:, None] + g - C) / eps).exp().sum(-1)
    rounded = ((f.float().double()[:, None] + g.float() - C) / eps).exp().sum(-1)
    assert (rounded / rows - 1).abs().max() > 1e-4
    found = _fused.product(x, y, f / eps, g / eps, torch.ones_like(g), eps, cost="euclidean")
    torch.testing.assert_close(found, rows, rtol=1e-5, atol=0)
    exact = -eps * ((g - C) / eps).logsumexp(-1)
    found = _fused.softmin(x, y, g, eps, cost="euclidean")
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-5 * eps)


def test_batches_share_what_they_do_not_have_and_keep_dtypes():
    x, y, f, g = clouds(2, n=5, m=70, batch=(2, 3))
    v = torch.rand(70, generator=generator(0)).to(DEVICE)
    found = _fused.product(x, y, f[0, 0], g, v, 0.5)
    assert found.shape == (2, 3, 5)
    assert found.dtype == torch.float32
    one = _fused.product(x[1, 2], y[1, 2], f[0, 0], g[1, 2], v, 0.5)
    torch.testing.assert_close(found[1, 2], one, rtol=1e-6, atol=0)
    soft = _fused.softmin(x, y, g[0, 0].float(), 0.5)
    assert soft.shape == (2, 3, 5)
    assert soft.dtype == torch.float32
    torch.testing.assert_close(
        soft[1, 0], _fused.softmin(x[1, 0], y[1, 0], g[0, 0].float(), 0.5), rtol=1e-6, atol=0
    )


def test_the_running_maximum_meets_any_order_and_size():
    x, y, _, _ = clouds(2, n=3, m=200)
    # Exponents from −10⁴ to 10⁴, growing from tile to tile: a fixed reference would overflow.
    h = torch.linspace(-1e4, 1e4, 200, dtype=torch.float64, device=DEVICE)
    C, _ = costs(x, y, "sqeuclidean")
    for order in (h, h.flip(0)):
        exact = -(order - C).logsumexp(-1)
        torch.testing.assert_close(_fused.softmin(x, y, order, 1.0), exact, rtol=0, atol=1e-5)


def test_a_constant_may_go_from_one_potential_to_the_other():
    x, y, f, g = clouds(3)
    v = torch.ones_like(g)
    here, there = (_fused.product(x, y, f + c, g - c, v, 1.0) for c in (0.0, 2.0**30))
    torch.testing.assert_close(there, here, rtol=1e-5, atol=0)


def test_nothing_and_one_point():
    x, y, _, _ = clouds(2, n=2, m=1)
    torch.testing.assert_close(
        _fused.softmin(x, y, torch.zeros(1, dtype=torch.float64, device=DEVICE), 1e-3),
        costs(x, y, "sqeuclidean")[0].squeeze(-1),
        rtol=1e-6,
        atol=0,
    )
    # Coincident points in many dimensions, where rounding could make a square negative.
    z = torch.randn(40, 50, generator=generator(0)).to(DEVICE)
    zero = torch.zeros(40, dtype=torch.float64, device=DEVICE)
    found = _fused.softmin(z, z, zero, 0.5, cost="euclidean")
    torch.testing.assert_close(found, zero, rtol=0, atol=0.02)
    nothing = torch.full((1,), -torch.inf, dtype=torch.float64, device=DEVICE)
    assert (_fused.softmin(x, y, nothing, 1.0) == torch.inf).all()
    assert (_fused.product(x, y, torch.zeros_like(x[:, 0]), nothing, nothing.exp() + 1, 1.0) == 0).all()


def test_sums_do_not_lose_digits_with_their_length():
    x, y = torch.zeros(1, 1, device=DEVICE), torch.zeros(64 * 100, 1, device=DEVICE)
    v = torch.full((64 * 100,), 0.3, device=DEVICE)
    zero = torch.zeros(1, dtype=torch.float64, device=DEVICE)
    found = _fused.product(x, y, zero, zero, v.double(), 1.0)
    torch.testing.assert_close(found, v.double().sum()[None], rtol=3 * U, atol=0)


@pytest.mark.parametrize(
    ("d", "cost", "share", "exact", "fused"),
    [
        (3, "sqeuclidean", 0.05, False, True),
        (3, "sqeuclidean", 0.05, True, True),
        (20, "sqeuclidean", 0.05, False, True),
        (3, "euclidean", 0.05, False, True),
        (3, "sqeuclidean", 1e-4, False, False),
        (20, "euclidean", 0.05, False, False),
    ],
)
def test_kernel_agrees_with_the_blocked_one(d, cost, share, exact, fused):
    (x, y, a, b), rng = problems.clouds(9, 70, d, seed=1), generator(2)
    a[4], b[60:] = 0, 0
    C = PointCloudCost(x.float().to(DEVICE), y.float().to(DEVICE), cost)
    a, b = (w.to(DEVICE) / w.sum() for w in (a, b))
    eps, v = share * C.bound(), torch.randn(70, generator=rng, dtype=torch.float64).exp().to(DEVICE)
    g = eps * torch.randn(70, generator=rng, dtype=torch.float64).to(DEVICE)

    blocked, kernel = PointCloudKernel(C, a, b, dtype=torch.float64), _fused.FusedKernel(C, a, b)
    f, c = blocked.absorb(g, eps, exact=True)
    found_f, found_c = kernel.absorb(g, eps, exact=exact)
    assert kernel.fused == fused
    one = torch.ones_like
    torch.testing.assert_close(
        kernel.laplacian(one(a), one(b)), blocked.laplacian(one(a), one(b)), rtol=0, atol=1e-4
    )
    # What it says of its rounding is what the core loop relies on; the goal asks for more at times.
    bound = 1e-12 if exact else kernel.rounding
    assert kernel.rounding <= COARSE
    assert ((found_f - f).abs() / eps).max() <= bound
    assert ((found_c - c).abs() <= 2 * bound * c + 1e-15).all()
    for scalings in (v, 1 + 1e-3 * v):
        # Where the scalings are near 1, rounding enters in proportion to their distance from 1.
        size = scalings if scalings is v else scalings - 1
        r, product = blocked.sweep(scalings)
        found_r, found = kernel.sweep(scalings)
        atol = 2 * (kernel.rounding * size.max() + bound).item()
        torch.testing.assert_close(found_r, r, rtol=0, atol=atol)
        torch.testing.assert_close(kernel.rows(scalings), found_r, rtol=0, atol=0)
        torch.testing.assert_close(found, product, rtol=0, atol=atol * (a / r).sum().item())
        found, product = (k.gram(a, scalings) for k in (kernel, blocked))
        torch.testing.assert_close(found, product, rtol=0, atol=2 * kernel.rounding * product.max().item())
    torch.testing.assert_close(kernel.columns(a), c, rtol=0, atol=kernel.rounding + bound)


def test_core_loop_with_it():
    x, y, a, b = problems.clouds(20, 30)
    C = PointCloudCost(x.float().to(DEVICE), y.float().to(DEVICE))
    eps, a, b = 0.05 * C.bound(), a.to(DEVICE), b.to(DEVICE)
    start, stages = torch.zeros_like(b), schedule(eps, C.bound())
    g, n_iter = maximise(_fused.FusedKernel(C, a, b), start, stages, tol=1e-6, max_iter=100)
    assert n_iter < 100
    f, _, columns, _ = PointCloudKernel(C, a, b).measure(g, eps)
    assert (columns - b).abs().sum() <= 1.01e-6
    value = sinkhorn(PointCloudCost(C.x.double(), C.y.double()), a, b, eps=eps, tol=1e-9).value
    torch.testing.assert_close((a * f).sum() + (b * g).sum(), value, rtol=0, atol=1e-10)


@pytest.mark.parametrize("cost", ["sqeuclidean", "euclidean"])
def test_sinkhorn_takes_it_by_itself(cost, monkeypatch):
    used, absorb = [], _fused.FusedKernel.absorb
    monkeypatch.setattr(
        _fused.FusedKernel, "absorb", lambda self, *g, **how: used.append(self) or absorb(self, *g, **how)
    )
    x, y, a, b = (t.to(DEVICE) for t in problems.clouds(20, 30))
    a[3], b[:2] = 0, 0
    a, b = a / a.sum(), b / b.sum()
    found, slopes = [], []
    for dtype in (torch.float64, torch.float32):
        z = x.to(dtype).requires_grad_()
        tol = 1e-10 if dtype == torch.float64 else 2e-6
        result = sinkhorn(PointCloudCost(z, y.to(dtype), cost), a.to(dtype), b.to(dtype), eps=0.3, tol=tol)
        assert result.converged
        assert bool(used) == (dtype == torch.float32)
        found.append([t.double() for t in (result.value, result.cost, result.plan)])
        slopes.append(torch.autograd.grad(result.value, z)[0].double())
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(slopes[1], slopes[0], rtol=0, atol=1e-5)


def test_a_gradient_is_refused():
    x, y, _, g = clouds(2)
    with pytest.raises(RuntimeError, match="have no gradient: detach"):
        _fused.softmin(x.requires_grad_(), y, g, 1.0)
    with torch.no_grad():
        _fused.softmin(x, y, g, 1.0)
