"""The absorbed kernel: its products against the matrix, near the solution and far, kept in float64 or not."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from otbook import ConvergenceWarning, PointCloudCost, sinkhorn
from otbook.entropic import _base, _dual, _gradients, _kernel, _rows, _tiles
from otbook.entropic._divergence import KeptKernel
from otbook.entropic._kernel import ROUNDING, DenseKernel, PointCloudKernel

from . import checks, problems

EPS = 0.4


def kernels():
    """The kernels of the same clouds, absorbed exactly at the same g, and their matrix T in float64."""
    x, y, a, b = problems.clouds(9, 6)
    C, g = (x[:, None] - y).square().sum(-1), torch.linspace(-1, 1, 6, dtype=torch.float64)
    T = torch.softmax(g / EPS + b.log() - C / EPS, -1)
    clouds = PointCloudCost(x, y)
    for kernel in (DenseKernel(C, a, b), PointCloudKernel(clouds, a, b), KeptKernel(clouds, a, b)):
        f, c = kernel.absorb(g, EPS, exact=True)
        yield kernel, T, f, c


@pytest.fixture(params=[_base.NATURAL, _base.BINARY], ids=["exp", "exp2"])
def base(request, monkeypatch):
    """Either base of the powers, whichever this processor would have."""
    for module in (_rows, _tiles, _gradients):
        monkeypatch.setattr(module, "BASE", request.param)
    return request.param


@pytest.mark.parametrize(
    ("processor", "library", "expected"),
    [
        ("Intel Xeon", True, _base.NATURAL),
        ("Intel Xeon", False, _base.BINARY),
        ("AMD EPYC", True, _base.BINARY),
        ("", False, _base.BINARY),
    ],
)
def test_the_base_of_each_processor(processor, library, expected, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"cpu_name": processor}, raising=False)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: library)
    assert _base._fastest() is expected


def test_an_older_torch_does_not_name_the_processor(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert _base._fastest() is _base.BINARY


@pytest.mark.parametrize("cloud", [False, True])
@pytest.mark.parametrize("eps", [0.5, 1e-4])
def test_either_base_leads_to_the_same_solution_and_gradients(base, eps, cloud):
    """With a target that gets nothing, and a forbidden pair where the cost is stored."""
    x, y, a, b = problems.clouds(9, 6)
    b[2] = 0.0
    b = b / b.sum()
    x.requires_grad_()
    C = (x[:, None] - y).square().sum(-1)
    if not cloud:
        C = C.masked_fill(torch.eye(9, 6, dtype=torch.bool), math.inf)
    result = sinkhorn(PointCloudCost(x, y) if cloud else C, a, b, eps=eps, tol=1e-12)
    plan, f, g = result.plan.detach(), result.f.detach(), result.g.detach()
    expected = a[:, None] * b * ((f[:, None] + g - C.detach()) / eps).exp()
    torch.testing.assert_close(plan, expected, rtol=1e-9, atol=1e-300)
    assert (plan[:, 2] == 0).all()
    assert cloud or (plan.diagonal() == 0).all()
    torch.testing.assert_close(plan.sum(0), b, rtol=0, atol=1e-11)
    (dx,) = torch.autograd.grad(result.value, x, retain_graph=True)
    torch.testing.assert_close(dx, 2 * (plan.sum(1)[:, None] * x - plan @ y).detach(), rtol=0, atol=1e-11)
    (dx,) = torch.autograd.grad(result.cost, x, retain_graph=True)
    assert torch.isfinite(dx).all()
    if eps == 0.5:
        recorded = sinkhorn(C, a, b, eps=eps, tol=1e-12, max_iter=500, gradient="unrolled")
        torch.testing.assert_close(dx, torch.autograd.grad(recorded.cost, x)[0], rtol=0, atol=1e-9)


def test_an_exact_absorption(base):
    for kernel, T, f, c in kernels():
        C = kernel.C[..., :, :]
        g = torch.linspace(-1, 1, 6, dtype=torch.float64)
        expected = -EPS * torch.logsumexp(kernel.b.log() + (g - C) / EPS, -1)
        torch.testing.assert_close(f, expected, rtol=0, atol=1e-13)
        torch.testing.assert_close(c, kernel.a @ T, rtol=0, atol=1e-15)


@pytest.mark.parametrize("offset", [0.0, 50.0, 1e6])
@pytest.mark.parametrize("eps", [0.4, 0.02, 1e-4])
def test_a_rough_absorption_says_how_rough_it_is(eps, offset, base, monkeypatch):
    """Exponents are float32 where that is good enough; their rounding is part of the kernel's."""
    monkeypatch.setattr(_rows, "_BLOCK", 12)
    x, y, a, b = problems.clouds(9, 6)
    C, g = (x[:, None] - y).square().sum(-1) + offset, torch.linspace(-0.1, 0.1, 6, dtype=torch.float64)
    kernel = DenseKernel(C, a, b)
    f, c = kernel.absorb(g, eps, exact=False)
    T = torch.softmax(g / eps + b.log() - C / eps, -1)
    large = 1e-7 * (C.max() + 0.1) / eps > _kernel.COARSE
    assert kernel.rounding == ROUNDING[torch.float32] if large else kernel.rounding > ROUNDING[torch.float32]
    assert kernel.rounding <= 1.01 * _kernel.COARSE
    torch.testing.assert_close(kernel.T.double(), T, rtol=2 * kernel.rounding, atol=1e-12)
    torch.testing.assert_close(c, a @ T, rtol=2 * kernel.rounding, atol=1e-15)
    expected = -eps * torch.logsumexp(b.log() + (g - C) / eps, -1)
    torch.testing.assert_close(f, expected, rtol=1e-13, atol=2 * eps * kernel.rounding)


@pytest.mark.parametrize("distance", [3.0, 1e-2, 1e-5, 1e-9])
def test_rounding_enters_in_proportion_to_what_has_moved(distance):
    """T v = s1 + T(v − s1), and Tᵀw = sc + Tᵀ(w − sa): near the solution float32 hides nothing."""
    v = 1 + distance * torch.linspace(-0.2, 1, 6, dtype=torch.float64)
    for kernel, T, _, _ in kernels():
        a, bound = kernel.a, 4 * (kernel.rounding + ROUNDING[torch.float32]) * min(1.0, distance) + 1e-15
        r, product = kernel.sweep(v)
        scale = v.max().item()
        torch.testing.assert_close(r, T @ v, rtol=0, atol=bound * scale)
        torch.testing.assert_close(kernel.rows(v), T @ v, rtol=0, atol=bound * scale)
        torch.testing.assert_close(product, (a / (T @ v)) @ T, rtol=0, atol=2 * bound)


def test_products_for_linear_systems():
    v, w = torch.linspace(-2, 1, 6, dtype=torch.float64), torch.linspace(-1, 3, 9, dtype=torch.float64)
    for kernel, T, _, _ in kernels():
        atol = 20 * (kernel.rounding + ROUNDING[torch.float32])
        torch.testing.assert_close(kernel.columns(w), w @ T, rtol=0, atol=atol)
        torch.testing.assert_close(kernel.gram(w, v), (w * (T @ v)) @ T, rtol=0, atol=atol)


@pytest.mark.parametrize("kind", [PointCloudKernel, KeptKernel])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_products_keep_the_mass(dtype, kind):
    """Rows of T sum to 1 by division: a factor of each row, as rounding may leave one, is gone."""
    x, y, a, b = problems.clouds(9, 6)
    kernel = kind(PointCloudCost(x, y), a, b, dtype=dtype)
    kernel.absorb(torch.linspace(-0.1, 0.1, 6, dtype=torch.float64), EPS, exact=False)
    kernel.E.x[..., -1] += torch.linspace(-0.1, 0.2, 9, dtype=dtype)
    w = torch.linspace(-1, 3, 9, dtype=torch.float64)
    torch.testing.assert_close(kernel.columns(w).sum(), w.sum(), rtol=1e-6, atol=0)
    for v, near in (
        (torch.linspace(0.5, 3, 6, dtype=torch.float64), False),
        (torch.linspace(0.8, 1.3, 6).double(), True),
    ):
        r, product = kernel.sweep(v, near=near)
        kept = r.clone()
        torch.testing.assert_close(product.sum(), (a / r).sum(), rtol=5e-7, atol=0)
        torch.testing.assert_close(kernel.gram(w, v).sum(), (w * kernel.rows(v)).sum(), rtol=1e-6, atol=0)
        kernel.columns(w)
        torch.testing.assert_close(r, kept, rtol=0, atol=0)


def test_a_kept_kernel_is_made_once_an_absorption(monkeypatch):
    """In the same memory, in the precision that the exponents ask for, and not before it is needed."""
    x, y, a, b = problems.clouds(9, 6)
    kernel, v, made = KeptKernel(PointCloudCost(x, y), a, b), torch.linspace(0.9, 1.1, 6).double(), []
    monkeypatch.setattr(
        _tiles.Exponents,
        "kernel",
        lambda E, tile, old=_tiles.Exponents.kernel: made.append(1) or old(E, tile),
    )
    for k, scale in enumerate((0.0, 1.0)):
        g = scale * torch.linspace(-1, 1, 6, dtype=torch.float64)
        kernel.absorb(g, EPS, exact=False)
        assert len(made) == k
        anew = PointCloudKernel(PointCloudCost(x, y), a, b)
        anew.absorb(g, EPS, exact=False)
        expected = anew.sweep(v)
        made[k:] = []
        for _ in range(2):
            torch.testing.assert_close(kernel.sweep(v), expected, rtol=0, atol=1e-6)
        assert len(made) == k + 1
        place = kernel.T.data_ptr()
    kernel.absorb(g / 2, EPS, exact=True)
    assert kernel.T.dtype == torch.float32
    assert kernel.T.data_ptr() == place
    kernel.absorb(g, 1e-5, exact=True)
    assert kernel.T.dtype == torch.float64


def test_steps_that_double_stop_before_the_top():
    """Along d the semi-dual still rises where they stop, and no longer at the next step, in every problem."""
    C = torch.tensor([[[0.97, 0.53], [0.69, 0.06]], [[0.97, 0.53], [0.69, 0.36]]], dtype=torch.float64)
    a = torch.tensor([0.0731, 0.9269], dtype=torch.float64).expand(2, 2)
    b = torch.tensor([0.0736, 0.9264], dtype=torch.float64).expand(2, 2)
    kernel, eps, d = DenseKernel(C, a, b), 1e-4, torch.tensor([[1e-3, -1e-3], [1e-3, -1e-3]]).double()

    def slope(g):
        return ((b - kernel.absorb(g, eps, exact=True)[1]) * d).sum(-1)

    start = torch.tensor([[-0.5, 0.5], [-0.1, 0.1]], dtype=torch.float64)
    g, n = _dual._further(kernel, start, d, eps, 100)
    gone = ((g - start) / d)[:, 0]
    assert gone[0] != gone[1], "one problem goes on when the other has stopped"
    assert (slope(g) > 0).all()
    assert (slope(g + (gone + 1)[:, None] * d) <= 0).all()
    assert n == math.log2(gone.max().item() + 1) + 1
    assert _dual._further(kernel, start, d, eps, 3)[1] == 3


def test_steps_that_double_are_counted(monkeypatch):
    calls = []
    monkeypatch.setattr(_dual, "_further", lambda kernel, g, d, eps, limit: (calls.append(limit) or g, 900))
    C = torch.tensor([[0.9727, 0.5316], [0.6925, 0.0624]], dtype=torch.float64)
    with pytest.warns(ConvergenceWarning):
        sinkhorn(C, [0.07314, 0.92686], [0.07356, 0.92644], eps=1e-6, max_iter=2000)
    assert 2 <= len(calls) <= 3, "each of them takes 900 of the 2,000 iterations"


def test_a_kept_kernel_is_sharp_and_becomes_the_plan():
    (kernel, T, f, _), (lazy, *_), _ = kernels()
    assert kernel.sharpen()
    assert not kernel.sharpen(), "it is sharp already"
    assert not lazy.sharpen(), "nothing is kept of clouds"
    v = torch.linspace(0.5, 3, 6, dtype=torch.float64)
    u = 1 / (T @ v)
    torch.testing.assert_close(kernel.rows(v), T @ v, rtol=0, atol=1e-14)
    g = torch.linspace(-1, 1, 6, dtype=torch.float64) + EPS * v.log()
    kernel.settle(g, EPS, f + EPS * u.log(), kernel.a * u, v)
    plan = (kernel.a * u)[:, None] * T * v
    torch.testing.assert_close(kernel.plan, plan, rtol=1e-13, atol=0)
    found, rows, columns, cost = kernel.measure(g, EPS)
    torch.testing.assert_close(found, f + EPS * u.log(), rtol=0, atol=1e-14)
    torch.testing.assert_close(rows, kernel.a, rtol=0, atol=1e-15)
    torch.testing.assert_close(columns, plan.sum(0), rtol=0, atol=1e-15)
    torch.testing.assert_close(cost, (plan * kernel.C).sum(), rtol=0, atol=1e-14)


@pytest.mark.parametrize("eps", [1.0, 0.1, 0.01])
@pytest.mark.parametrize("tol", [1e-6, 1e-12])
def test_what_is_not_kept_is_as_accurate(eps, tol, monkeypatch):
    C, a, b = problems.random_problem(30, 20)
    kept = sinkhorn(C, a, b, eps=eps, tol=tol)
    monkeypatch.setattr(_kernel, "_KEPT", 0)
    made = sinkhorn(C, a, b, eps=eps, tol=tol)
    for result in (kept, made):
        assert result.converged
        # The plan is that of the potentials, and its marginals are as wrong as it says.
        formula = a[:, None] * b * ((result.f[:, None] + result.g - C) / eps).exp()
        torch.testing.assert_close(result.plan, formula, rtol=1e-10, atol=1e-300)
        checks.assert_coupling(result.plan, a, b, atol=tol)
        error = (result.plan.sum(1) - a).abs().sum() + (result.plan.sum(0) - b).abs().sum()
        rounding = 1e-15 * C.max().item() / eps
        torch.testing.assert_close(result.marginal_error, error, rtol=1e-3, atol=1e-14 + rounding)
    torch.testing.assert_close(kept.value, made.value, rtol=0, atol=2 * tol * max(1.0, eps))
    slack = abs(kept.n_iter - made.n_iter)
    assert slack <= 0.5 * made.n_iter + 3, "the path is the same but for its rounding"


def test_not_kept_near_the_solution_takes_no_longer(monkeypatch):
    """The centred products, without which every iteration near the solution needs a new absorption."""
    monkeypatch.setattr(_kernel, "_KEPT", 0)
    C, a, b = problems.random_problem(30, 20)
    absorbed = []
    absorb = DenseKernel.absorb

    def counting(self, g, eps, *, exact):
        absorbed.append(exact)
        return absorb(self, g, eps, exact=exact)

    monkeypatch.setattr(DenseKernel, "absorb", counting)
    assert sinkhorn(C, a, b, eps=1.0, tol=1e-13, accelerate=False).converged
    assert sum(absorbed) <= 4


def test_the_laplacian_is_the_matrix_of_newtons_method():
    for kernel, T, _, _ in kernels():
        u, v = torch.linspace(0.5, 2, 9, dtype=torch.float64), torch.linspace(2, 0.5, 6, dtype=torch.float64)
        u = 1 / (T @ v)
        P = (kernel.a * u)[:, None] * T * v
        S = P.sum(0).diag() - P.mT @ (P / kernel.a[:, None])
        torch.testing.assert_close(kernel.laplacian(u, v), S, rtol=0, atol=1e-6)


def test_a_stage_starts_on_the_line_through_the_last_two(monkeypatch):
    """The maximiser is smooth in ε: the line leads towards the next one, not away from it."""
    C, a, b = problems.random_problem(40, 30)
    starts = []
    stage = _dual._stage

    def recording(kernel, g, eps, *rest):
        found = stage(kernel, g, eps, *rest)
        starts.append((eps, g.clone(), found[0].clone()))
        return found

    monkeypatch.setattr(_dual, "_stage", recording)
    assert sinkhorn(C, a, b, eps=1e-3 * C.max().item(), tol=1e-9).converged
    assert len(starts) > 2, "the problem needs ε-scaling"

    def distance(g, h):
        return ((g - h) - b @ (g - h)).abs().max().item()

    for (_, _, before), (_, start, end) in itertools.pairwise(starts[1:]):
        assert distance(start, end) < 0.8 * distance(2 * before - start, end)


def test_newton_steps_by_conjugate_gradients_and_by_cholesky_agree():
    for kernel, T, _, _ in kernels():
        v = torch.tensor([30.0, 1.0, 0.1, 5.0, 0.3, 2.0], dtype=torch.float64)
        u = 1 / (T @ v)
        c = v * ((kernel.a * u) @ T)
        newton = _dual.Newton(kernel)
        x, _, solved = newton._conjugate_gradients(u, v, c, 100)
        assert solved
        exact = newton._factorised(u, v, c)
        r, S = kernel.b - c, kernel.laplacian(u, v)
        left = ((S @ x - r).square() / c).sum().sqrt() / (r.square() / c).sum().sqrt()
        # Solved to a tenth, in the norm of the preconditioner.
        assert left <= 0.1
        torch.testing.assert_close(S @ exact, r, rtol=0, atol=1e-6)


@pytest.mark.parametrize("eps", [0.4, 0.004])
@pytest.mark.parametrize("cost", ["sqeuclidean", "euclidean", "cosine"])
def test_tiles_make_the_kernel_in_one_precision_or_the_other(cost, eps, base, monkeypatch):
    """Also where most entries underflow: they are held at a number that is normal and does not count."""
    monkeypatch.setattr(_rows, "_BLOCK", 600)
    x, y, a, b = problems.clouds(50, 40)
    C, g = PointCloudCost(x, y, cost), torch.linspace(-0.1, 0.1, 40, dtype=torch.float64)
    E = b.log() + (g - C.dense()) / eps
    T, f = torch.softmax(E, -1), -eps * torch.logsumexp(E, -1)
    for dtype, bound in ((torch.float32, None), (torch.float64, 1e-12)):
        tiles = _tiles.Exponents(C, g / eps + b.log(), eps, dtype)
        bound = bound or 4 * tiles.rounding
        assert 1 < len(tiles.tiles) < 50
        found, columns, paid = tiles.half_step(a, paid=True)
        torch.testing.assert_close(found, f, rtol=0, atol=eps * bound)
        torch.testing.assert_close(columns, a @ T, rtol=0, atol=bound)
        torch.testing.assert_close(paid, (T * C.dense()).sum(-1), rtol=0, atol=3 * bound)
        torch.testing.assert_close(tiles.half_step(a, paid=False), (found, columns, None), rtol=0, atol=0)
        tiles.absorb(f)
        for tile in tiles.tiles:
            K = tiles.kernel(tile)
            torch.testing.assert_close(K.double(), T[tile.rows], rtol=0, atol=bound)
            # Above the largest denormal number, by far.
            assert K.min() >= 0.9 * math.exp(-_tiles.CUT) or base.ln * tiles.deep <= _tiles.CUT
    assert eps > 0.1 or cost == "cosine" or base.ln * tiles.deep > _tiles.CUT, "the instance must underflow"


@pytest.mark.parametrize("eps", [1.0, 0.01])
def test_a_target_without_mass_gets_nothing(eps, base):
    """Not even the number at which entries are held that do not count."""
    x, y, a, b = problems.clouds(9, 6)
    b[2] = 0.0
    kernel = PointCloudKernel(PointCloudCost(x, y), a, b / b.sum())
    _, c = kernel.absorb(torch.zeros(6, dtype=torch.float64), eps, exact=True)
    assert c[2] == 0
    v = torch.linspace(0.5, 3, 6, dtype=torch.float64)
    assert kernel.sweep(v)[1][2] == 0
    S = kernel.laplacian(torch.ones_like(a), v)
    assert (S[2] == 0).all()
    assert (S[:, 2] == 0).all()


@pytest.mark.parametrize("recent", [1, 7, 1000])
def test_column_sums_over_many_blocks(recent, monkeypatch):
    monkeypatch.setattr(_tiles, "_RECENT", recent)
    K = torch.rand(60, 5, generator=torch.Generator().manual_seed(0))
    w = torch.linspace(-1, 3, 60, dtype=torch.float64)
    sums = _tiles.ColumnSums(torch.ones(5, dtype=torch.float64), torch.float32)
    for i in range(0, 60, 4):
        sums.add(K[i : i + 4].mT, w[i : i + 4])
    found = sums.total()
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, w @ K.double(), rtol=1e-6, atol=0)
    torch.testing.assert_close(sums.total(), found, rtol=0, atol=0)
    batch = _tiles.ColumnSums(torch.ones(3, 5, dtype=torch.float64), torch.float32)
    for i in range(0, 20, 4):
        batch.add(K.view(3, 20, 5)[:, i : i + 4].mT, w.view(3, 20)[:, i : i + 4])
    torch.testing.assert_close(batch.total().sum(0), found, rtol=1e-6, atol=0)


def test_many_terms_are_summed_in_float64(monkeypatch):
    """A million terms, of which float32 alone would lose three digits more."""
    ones, share, errors = torch.ones(20, 1), torch.full((20,), 0.1, dtype=torch.float64), []
    for recent in (_tiles._RECENT, 10**9):
        monkeypatch.setattr(_tiles, "_RECENT", recent)
        sums = _tiles.ColumnSums(torch.ones(1, dtype=torch.float64), torch.float32)
        for _ in range(50_000):
            sums.add(ones.mT, share)
        errors.append(abs(sums.total().item() / 1e5 - 1))
    assert errors[0] < 1e-6 < 1e-4 < errors[1]
