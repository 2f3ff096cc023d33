"""Sinkhorn without the matrix: the same solution as with it, in memory that grows with n + m."""

import subprocess
import sys

import pytest
import torch

import otbook
from otbook import costs
from otbook.costs import PointCloudCost
from otbook.entropic import _rows


def clouds(n=60, m=45, d=3, batch=(), dtype=torch.float64):
    generator = torch.Generator().manual_seed(n + m)
    x = torch.rand(*batch, n, d, generator=generator, dtype=dtype)
    y = torch.rand(*batch, m, d, generator=generator, dtype=dtype) + 0.2
    a, b = (torch.rand(k, generator=generator, dtype=dtype) + 0.1 for k in (n, m))
    return x, y, a / a.sum(), b / b.sum()


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Several blocks even for small problems, the last one shorter."""
    monkeypatch.setattr(_rows, "_BLOCK", 700)


def test_is_the_matrix_in_pieces():
    x, y, _, _ = clouds(batch=(2,))
    for name, cost in costs.BY_NAME.items():
        C = PointCloudCost(x, y, name)
        assert C.shape == (2, 60, 45)
        assert (C.ndim, C.numel(), C.dtype, C.device) == (3, 5400, x.dtype, x.device)
        torch.testing.assert_close(C.dense(), cost(x, y))
        torch.testing.assert_close(C[..., 7:20, :], cost(x, y)[..., 7:20, :])
        torch.testing.assert_close(C.mT.dense(), cost(x, y).mT)


@pytest.mark.parametrize("eps", [1.0, 1e-2, 1e-4])
@pytest.mark.parametrize("cost", list(costs.BY_NAME))
def test_same_solution_as_the_matrix(eps, cost):
    x, y, a, b = clouds()
    C = PointCloudCost(x, y, cost)
    lazy = otbook.sinkhorn(C, a, b, eps=eps, tol=1e-9)
    dense = otbook.sinkhorn(C.dense(), a, b, eps=eps, tol=1e-9)
    assert lazy.converged
    for one, other in ((lazy.value, dense.value), (lazy.cost, dense.cost), (lazy.plan, dense.plan)):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-7)


def test_batches_float32_and_zero_weights():
    x, y, a, b = clouds(batch=(3,))
    together = otbook.sinkhorn(PointCloudCost(x, y), a, b, eps=0.05, tol=1e-9)
    for k in range(3):
        alone = otbook.sinkhorn(PointCloudCost(x[k], y[k]), a, b, eps=0.05, tol=1e-9)
        torch.testing.assert_close(together.plan[k], alone.plan, rtol=0, atol=1e-8)
    single = otbook.sinkhorn(PointCloudCost(x.float(), y.float()), a.float(), b.float(), eps=0.05, tol=1e-4)
    assert single.plan.dtype == torch.float32
    torch.testing.assert_close(single.value.double(), together.value, rtol=1e-4, atol=1e-4)
    b = torch.cat([b[:-1] / b[:-1].sum(), b.new_zeros(1)])
    dense = otbook.sinkhorn(costs.sqeuclidean(x, y), a, b, eps=0.05, tol=1e-9)
    lazy = otbook.sinkhorn(PointCloudCost(x, y), a, b, eps=0.05, tol=1e-9)
    torch.testing.assert_close(lazy.plan, dense.plan, rtol=0, atol=1e-8)
    torch.testing.assert_close(lazy.g, dense.g, rtol=0, atol=1e-7)


@pytest.mark.parametrize("cost", list(costs.BY_NAME))
def test_gradients_are_those_through_the_matrix(cost):
    x, y, a, b = clouds(batch=(2,))
    inputs = [t.requires_grad_() for t in (x, y, a, b)]

    def gradients(C):
        value = otbook.sinkhorn(C, a, b, eps=0.05, tol=1e-10).value
        return torch.autograd.grad((value * torch.tensor([1.0, -2.0])).sum(), inputs)

    through = gradients(costs.BY_NAME[cost](x, y)), gradients(PointCloudCost(x, y, cost))
    for dense, lazy in zip(*through, strict=True):
        torch.testing.assert_close(lazy, dense, rtol=0, atol=1e-8)


def test_gradcheck():
    x, y, _, b = clouds(5, 4, 2)

    def value(x, y):
        return otbook.sinkhorn(PointCloudCost(x, y), None, b, eps=0.1, tol=1e-12).value

    assert torch.autograd.gradcheck(value, (x.requires_grad_(), y.requires_grad_()), atol=1e-6)


def test_exact_solvers_take_it_as_a_matrix():
    x, y, a, b = clouds()
    torch.testing.assert_close(
        otbook.emd(PointCloudCost(x, y), a, b).value, otbook.emd(costs.sqeuclidean(x, y), a, b).value
    )


def test_bad_clouds():
    x, y, a, _ = clouds()
    with pytest.raises(ValueError, match="points in dimension 3 and y in dimension 2"):
        PointCloudCost(x, y[:, :2])
    with pytest.raises(ValueError, match="cost must be one of 'sqeuclidean', 'euclidean', 'cosine'"):
        PointCloudCost(x, y, "manhattan")
    with pytest.raises(ValueError, match=r"batch shapes do not agree: x \(2,\), y \(\)"):
        PointCloudCost(x.expand(2, 60, 3), y)
    with pytest.raises(ValueError, match="a has mass 2"):
        otbook.sinkhorn(PointCloudCost(x, y), 2 * a, eps=1.0)


MEMORY = """
import resource, torch, otbook
from otbook.costs import PointCloudCost
x = torch.rand(6_000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
small = otbook.sinkhorn(PointCloudCost(x[:100], x[100:200]), eps=0.3)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
result = otbook.sinkhorn(PointCloudCost(x[:3_000], x[3_000:]), eps=0.3, tol=1e-4)
assert result.converged
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def test_never_makes_the_matrix():
    """The matrix would take 72 MB; the rise of the peak memory is that of a few blocks."""
    run = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    assert float(run.stdout) < 30


@pytest.mark.parametrize(("n", "eps"), [(100, 0.01), (7, 0.1)])
def test_a_cloud_to_itself(n, eps):
    # The plan is nearly diagonal, its Laplacian nearly zero: a case for the factorisation.
    x, _, a, _ = clouds(n)
    result = otbook.sinkhorn(PointCloudCost(x, x), a, a, eps=eps, tol=1e-11, max_iter=1000)
    assert result.converged
    stored = otbook.sinkhorn(costs.sqeuclidean(x, x), a, a, eps=eps, tol=1e-11)
    torch.testing.assert_close(result.value, stored.value, rtol=0, atol=1e-10)
