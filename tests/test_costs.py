"""Ground costs against SciPy, and their gradients where points coincide."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from otbook import costs

from .test_check import BAD_CLOUDS

PAIRS = [(costs.sqeuclidean, "sqeuclidean"), (costs.euclidean, "euclidean"), (costs.cosine, "cosine")]


def clouds(n=7, m=5, d=3, batch=(), dtype=torch.float64):
    generator = torch.Generator().manual_seed(n + m + d)
    x = torch.randn(*batch, n, d, generator=generator, dtype=dtype) + 3
    return x, torch.randn(*batch, m, d, generator=generator, dtype=dtype) + 3


@pytest.mark.parametrize("d", [1, 3, 40])
@pytest.mark.parametrize(("cost", "metric"), PAIRS)
def test_agrees_with_scipy(cost, metric, d):
    x, y = clouds(d=d)
    np.testing.assert_allclose(cost(x, y), cdist(x, y, metric), rtol=0, atol=1e-10)
    np.testing.assert_allclose(cost(x.numpy(), y.numpy()), cdist(x, y, metric), rtol=0, atol=1e-10)
    assert cost(x.float(), y.float()).dtype == torch.float32
    np.testing.assert_allclose(cost(x.float(), y.float()), cdist(x, y, metric), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("p", [1, 1.5, 3])
def test_lp_agrees_with_scipy(p):
    x, y = clouds()
    np.testing.assert_allclose(costs.lp(x, y, p=p), cdist(x, y, "minkowski", p=p) ** p, rtol=1e-12)


@pytest.mark.parametrize("cost", [costs.sqeuclidean, costs.euclidean, costs.cosine])
def test_batch_is_the_loop(cost):
    x, y = clouds(batch=(2, 3))
    for i, j in np.ndindex(2, 3):
        torch.testing.assert_close(cost(x, y)[i, j], cost(x[i, j], y[i, j]))


@pytest.mark.parametrize("cost", [costs.sqeuclidean, costs.euclidean, lambda x, y: costs.lp(x, y, p=3)])
def test_coincident_points_cost_nothing_and_have_finite_gradients(cost):
    x = clouds(d=20)[0].requires_grad_()
    C = cost(x, x.detach())
    torch.testing.assert_close(C.diagonal(), torch.zeros(7, dtype=x.dtype), rtol=0, atol=2e-6)
    (gradient,) = torch.autograd.grad(C.sum(), x)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("d", [3, 20])
@pytest.mark.parametrize("cost", [costs.sqeuclidean, costs.euclidean, costs.cosine])
def test_gradcheck(cost, d):
    x, y = (t.requires_grad_() for t in clouds(n=3, m=2, d=d))
    assert torch.autograd.gradcheck(cost, (x, y))
    assert torch.autograd.gradgradcheck(cost, (x, y))


@pytest.mark.parametrize("cost", [costs.sqeuclidean, costs.euclidean, costs.cosine])
@pytest.mark.parametrize(("cloud", "error", "message"), BAD_CLOUDS)
def test_bad_clouds(cost, cloud, error, message):
    with pytest.raises(error, match=message):
        cost(cloud, torch.ones(2, 3, dtype=torch.float64))


def test_dimensions_must_agree():
    with pytest.raises(ValueError, match="dimension 3 and y in dimension 2"):
        costs.sqeuclidean(torch.ones(4, 3), torch.ones(4, 2))


def test_distances_in_high_dimension_are_those_of_float64():
    x = torch.randn(50, 64, generator=torch.Generator().manual_seed(0))
    C = costs.euclidean(x, x)
    assert C.dtype == torch.float32
    torch.testing.assert_close(C, torch.cdist(x.double(), x.double()).float(), rtol=1e-6, atol=1e-6)


def test_cosine_needs_a_direction():
    with pytest.raises(ValueError, match="zero vector"):
        costs.cosine(torch.zeros(2, 3), torch.ones(2, 3))


def test_lp_is_convex_only_from_one():
    with pytest.raises(ValueError, match="at least 1"):
        costs.lp(torch.ones(2, 3), torch.ones(2, 3), p=0.5)
