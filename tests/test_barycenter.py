"""Barycentres against closed forms, their optimality conditions, descent inequalities and POT."""

from __future__ import annotations

import dataclasses
import math
import warnings
from functools import partial

import numpy as np
import ot
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from otbook import ConvergenceWarning, bures_wasserstein, costs, datasets, emd, gaussian, sinkhorn
from otbook.barycenter import _convolutional, _free_support, convolutional, free_support

from . import problems


def close(actual, expected, atol=1e-10, rtol=0.0):
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol)


def cloud(n, d=2, seed=0):
    return torch.randn(n, d, generator=problems.generator(seed), dtype=torch.float64)


def three_measures(seed=0):
    """Three clouds of different sizes, with non-uniform weights, and λ far from uniform."""
    sizes = (7, 5, 6)
    measures = [
        (cloud(n, seed=seed + 10 * k) + k, problems.weights(n, seed=seed + k)) for k, n in enumerate(sizes)
    ]
    return measures, torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)


def objective(x, a, measures, lam, eps=None):
    """Σ_k λ_k W₂², or its entropic analogue, from the solvers alone."""
    solve = emd if eps is None else partial(sinkhorn, eps=eps)
    values = [solve(costs.sqeuclidean(x, y), a, b).value for y, b in measures]
    return lam @ torch.stack(values)


# Clouds: closed forms


def test_quantiles_average_on_the_line():
    clouds = [cloud(9, 1, seed=k) * (k + 1) for k in range(3)]
    lam = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    expected = sum(s * x.sort(0).values for s, x in zip(lam, clouds, strict=True))
    measures = [(x, None) for x in clouds]
    close(free_support(measures, lam).points.sort(0).values, expected)
    # On the line there is one minimum, so every start of distinct points leads there.
    for start in ({"x0": cloud(9, 1, seed=9)}, {"generator": problems.generator(0)}, {"n_support": 9}):
        close(free_support(measures, lam, **start).points.sort(0).values, expected)


@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_two_measures_lie_on_mccanns_interpolation(t):
    x, y = cloud(12), cloud(12, seed=1) * 2 + 1
    plan = emd(costs.sqeuclidean(x, y)).plan
    result = free_support([(x, None), (y, None)], [1 - t, t])
    close(result.points, (1 - t) * x + t * y[plan.argmax(1)])
    # The interpolation is a geodesic: (1−t) t² W² + t (1−t)² W² = t (1−t) W².
    close(result.value, t * (1 - t) * emd(costs.sqeuclidean(x, y)).value)
    assert result.n_iter <= 1


def test_one_point_finds_the_mean_and_the_variance():
    measures, lam = three_measures()
    mean = sum(s * b @ y for s, (y, b) in zip(lam, measures, strict=True))
    spread = sum(s * b @ (y - mean).square().sum(1) for s, (y, b) in zip(lam, measures, strict=True))
    result = free_support(measures, lam, n_support=1)
    close(result.points, mean[None])
    close(result.value, spread)


def test_commuting_linear_images_of_a_cloud_have_the_gaussian_barycentre():
    # A_k z is the gradient of a convex function of A_1 z when all A_k are positive and commute, so the
    # optimal plans are known; and the mean of the maps gives the moments of the Gaussian barycentre.
    z = cloud(20, 3)
    z = z - z.mean(0)
    z = torch.linalg.solve_triangular(torch.linalg.cholesky(z.T @ z / 20), z.T, upper=False).T
    Q = torch.linalg.qr(cloud(3, 3, seed=1)).Q
    maps = [
        Q @ torch.diag(torch.rand(3, generator=problems.generator(k)).double() + 0.2) @ Q.T for k in range(3)
    ]
    shifts = cloud(3, 3, seed=5)
    lam = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
    clouds = [z @ A + m for A, m in zip(maps, shifts, strict=True)]
    result = free_support([(y, None) for y in clouds], lam)
    close(result.points, sum(s * y for s, y in zip(lam, clouds, strict=True)))
    mean, S = gaussian.barycenter(shifts, torch.stack([A @ A for A in maps]), lam)
    close(result.points.mean(0), mean, atol=1e-9)
    close(torch.cov(result.points.T, correction=0), S, atol=1e-8)


def test_gaussian_samples_approach_the_gaussian_barycentre():
    # Gelbrich: W₂² is at least that of the Gaussians with the same moments. The gap closes with n.
    roots = torch.tensor([[[2.0, 0.0], [0.0, 0.5]], [[1.0, 0.8], [0.0, 1.0]]], dtype=torch.float64)
    gaps = []
    for n in (30, 300):
        clouds = [cloud(n, seed=k) @ R + 3 * k for k, R in enumerate(roots)]
        means, covs = (
            torch.stack([y.mean(0) for y in clouds]),
            torch.stack([torch.cov(y.T, correction=0) for y in clouds]),
        )
        mean, S = gaussian.barycenter(means, covs)
        bound = bures_wasserstein(mean.expand(2, 2), S.expand(2, 2, 2), means, covs).square().mean()
        result = free_support([(y, None) for y in clouds])
        close(result.points.mean(0), mean)
        gaps.append((result.value - bound).item())
        assert gaps[-1] > -1e-10
    assert gaps[1] < gaps[0] / 2


def test_a_large_eps_collapses_the_cloud_to_the_mean():
    measures, lam = three_measures()
    mean = sum(s * b @ y for s, (y, b) in zip(lam, measures, strict=True))
    points = free_support(measures, lam, eps=1e4).points
    close(points, mean.expand_as(points), atol=1e-3)  # off by the order of (radius²/ε)


# Clouds: certificates


@pytest.mark.parametrize("eps", [None, 0.1, 0.01])
def test_every_step_lowers_the_objective_by_at_least_the_square_of_its_length(eps):
    measures, lam = three_measures()
    a = problems.weights(8, seed=7)
    options = {"x0": 3 * cloud(8, seed=8), "support_weights": a, "eps": eps, "tol": 1e-9}
    final = free_support(measures, lam, **options)
    assert final.converged
    assert len(final.history) == final.n_iter + 1 >= 3
    assert (final.history.diff() <= 1e-9).all()
    close(final.value, objective(final.points, a, measures, lam, eps), atol=1e-8)
    for n in range(1, min(3, final.n_iter)):
        with pytest.warns(ConvergenceWarning, match="the points still move"):
            early = free_support(measures, lam, **options, max_iter=n)
        close(early.value, objective(early.points, a, measures, lam, eps), atol=1e-6)
        close(early.value.detach(), final.history[n], atol=1e-12)
        assert final.history[n] - final.history[n + 1] >= early.displacement**2 - 1e-9
        assert early.displacement > 1e-6


def test_entropic_points_are_the_projections_of_plans_solved_afresh():
    measures, lam = three_measures()
    result = free_support(measures, lam, eps=0.1, tol=1e-9)
    x, a = result.points, result.weights
    plans = [sinkhorn(costs.sqeuclidean(x, y), a, b, eps=0.1, tol=1e-10).plan for y, b in measures]
    mean = sum(s * P @ y / a[:, None] for s, P, (y, _) in zip(lam, plans, measures, strict=True))
    close(mean, x, atol=1e-7)


@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_pot(seed):
    measures, lam = three_measures(seed)
    x0, a = cloud(6, seed=seed + 40), problems.weights(6, seed=seed)
    locations, masses = zip(*[(y.numpy(), b.numpy()) for y, b in measures], strict=True)
    expected = ot.lp.free_support_barycenter(
        list(locations), list(masses), x0.numpy(), b=a.numpy(), weights=lam.numpy(), stopThr=0, numItermax=100
    )
    np.testing.assert_allclose(
        free_support(measures, lam, x0=x0, support_weights=a).points, expected, atol=1e-10
    )


def test_a_small_eps_approaches_the_exact_barycentre():
    measures, lam = three_measures()
    exact = free_support(measures, lam)
    entropic = free_support(measures, lam, x0=exact.points, support_weights=exact.weights, eps=1e-4)
    # ε KL is at most ε times the entropy of the support.
    assert -1e-8 <= entropic.value - exact.value <= 1e-4 * math.log(7)


# Clouds: derivatives, invariances, data types


@pytest.mark.parametrize("eps", [None, 0.1])
def test_gradcheck_of_the_value(eps):
    (y0, b0), (y1, b1) = three_measures()[0][:2]
    x0 = cloud(4, seed=5)

    parts = [y0, y1, b0.log(), torch.tensor([0.3, 0.0]).double(), problems.weights(4).log()]
    sizes = [t.numel() for t in parts]

    def value(z):
        y0, y1, b0, lam, a = z.split(sizes)
        measures = [(y0.reshape(-1, 2), b0.softmax(0)), (y1.reshape(-1, 2), b1)]
        options = {"x0": x0, "support_weights": a.softmax(0), "eps": eps, "tol": 1e-8}
        return free_support(measures, lam.softmax(0), **options).value

    z = torch.cat([t.flatten() for t in parts]).requires_grad_()
    # Along one random direction, which spares solving for every entry.
    assert torch.autograd.gradcheck(value, z, atol=1e-6, fast_mode=True)


def test_the_points_are_detached():
    x = cloud(4).requires_grad_()
    result = free_support([(x, None), (cloud(4, seed=1), None)])
    assert not result.points.requires_grad
    assert not result.history.requires_grad
    assert result.value.requires_grad
    with pytest.raises(NotImplementedError, match="free_support can be differentiated once"):
        torch.autograd.grad(result.value, x, create_graph=True)


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 10**6), eps=st.sampled_from([None, 0.1]))
def test_motions_move_the_barycentre_and_the_order_does_not_matter(seed, eps):
    measures, lam = three_measures(seed)
    a, x0 = problems.weights(4, seed=seed), cloud(4, seed=seed + 3)
    options = {"support_weights": a, "eps": eps, "tol": 1e-7}
    result = free_support(measures, lam, x0=x0, **options)
    assert (result.history.diff() <= 1e-9).all()
    Q = torch.linalg.qr(cloud(2, seed=seed + 4)).Q
    shift = torch.tensor([5.0, -2.0], dtype=torch.float64)
    moved = [(2 * y @ Q + shift, b) for y, b in measures]
    scaled = {**options, "eps": eps and 4 * eps}
    again = free_support(moved[::-1], lam.flip(0), x0=2 * x0 @ Q + shift, **scaled)
    close(again.points, 2 * result.points @ Q + shift, atol=1e-5)
    close(again.value, 4 * result.value, atol=1e-6)


def test_points_without_mass_and_measures_without_weight():
    measures, _ = three_measures()
    (y0, b0), (y1, b1) = measures[:2]
    zero = torch.zeros(1, dtype=torch.float64)
    padded = [(torch.cat([y0, y0[:1] + 50]), torch.cat([b0, zero])), (y1, b1), (cloud(30) + 99, None)]
    x0, a = cloud(4), problems.weights(4)
    for eps in (None, 0.2):
        plain = free_support([(y0, b0), (y1, b1)], [0.4, 0.6], x0=x0, support_weights=a, eps=eps)
        start = torch.cat([x0, x0[:1] + 7])
        result = free_support(
            padded, [0.4, 0.6, 0.0], x0=start, support_weights=torch.cat([a, zero]), eps=eps
        )
        close(result.points[:4], plain.points, atol=1e-6)
        close(result.value, plain.value, atol=1e-6)
        close(result.points[4], start[4])


def test_one_measure_and_equal_points():
    y, b = three_measures()[0][0]
    result = free_support([(y, b)])
    close(result.points, y)
    close(result.weights, b)
    assert result.n_iter == 0
    same = torch.ones(3, 2, dtype=torch.float64)
    close(free_support([(same, None), (same, None)]).points, same)


@pytest.mark.parametrize("eps", [None, 0.3])
def test_float32_far_from_the_origin(eps):
    # Coordinates of 1e4 have a rounding of 1e-3, which is also that of the data.
    x, y = cloud(6), cloud(8, seed=1)
    x0 = cloud(5, seed=2)
    exact = free_support([(x, None), (y, None)], x0=x0, eps=eps)
    single = free_support([(x.float() + 1e4, None), (y.float() + 1e4, None)], x0=x0.float() + 1e4, eps=eps)
    assert single.points.dtype == single.value.dtype == torch.float32
    close(single.points.double() - 1e4, exact.points, atol=5e-3)


def test_numpy_lists_and_repr():
    result = free_support([(np.array([[0.0], [1.0]]), None), ([[4.0], [9.0]], [0.5, 0.5])], [0.5, 0.5])
    close(result.points, torch.tensor([[2.0], [5.0]], dtype=torch.float64))
    assert repr(result).startswith("FreeSupport(points of shape (2, 1), value=10")


def test_the_start_is_picked_from_the_measures():
    # A quarter of the mass lies at the first two points and the rest at the other two.
    x, y = torch.tensor([[0.0], [1.0]]).double(), torch.tensor([[10.0], [11.0]]).double()
    measures, lam = [x, y], torch.tensor([0.25, 0.75]).double()
    uniform = [torch.full((2,), 0.5).double()] * 2
    picked = _free_support._pick(measures, uniform, lam, 8, None)
    assert picked.flatten().tolist() == [0, 1, 10, 10, 10, 11, 11, 11]
    # At the levels 0.1, 0.3, …
    assert _free_support._pick(measures, uniform, lam, 5, None).flatten().tolist() == [0, 10, 10, 11, 11]
    drawn = _free_support._pick(measures, uniform, lam, 8, problems.generator(0))
    assert sorted(drawn.flatten().tolist()) == [0, 1, 10, 10, 10, 11, 11, 11]


def test_says_when_the_points_still_move():
    measures, lam = three_measures()
    with pytest.warns(
        ConvergenceWarning, match="free_support stopped after 1 iterations: the points still move"
    ):
        result = free_support(measures, lam, x0=3 * cloud(8), max_iter=1)
    assert not result.converged
    assert result.n_iter == 1


def test_says_when_the_plans_missed_the_tolerance(monkeypatch):
    def tired(*problem, **options):
        return dataclasses.replace(sinkhorn(*problem, **options), converged=False)

    monkeypatch.setattr(_free_support, "sinkhorn", tired)
    # By symmetry the point rests.
    y = torch.linspace(-1, 1, 3, dtype=torch.float64)[:, None]
    with pytest.warns(ConvergenceWarning, match="after 0 iterations: the transport plans missed tol"):
        result = free_support([(y, None)], x0=0 * y[:1], eps=0.1)
    assert not result.converged


X, Y = cloud(3), cloud(4, seed=1)
PAIR = [(X, None), (Y, None)]
BAD_CLOUDS = {
    "none": (ValueError, ([],), {}, "measures is empty; give at least one pair"),
    "a tensor": (TypeError, (X,), {}, "measures must be a list of pairs .* a Tensor"),
    "no pair": (TypeError, ([X, Y],), {}, r"measures\[0\] must be a pair .* \(points, None\)"),
    "on the line": (ValueError, ([(X[:, 0], None)],), {}, r"measures\[0\]\[0\] must have shape \(…, n, d\)"),
    "batch": (ValueError, ([(X[None], None)],), {}, r"measures\[0\]\[0\] must have shape \(n, d\)"),
    "dimension": (ValueError, ([(X, None), (X[:, :1], None)],), {}, r"measures\[1\]\[0\] in dimension 1"),
    "dtype": (ValueError, ([(X, None), (Y.float(), None)],), {}, r"measures\[1\]\[0\] is float32"),
    "NaN": (ValueError, ([(X * math.nan, None)],), {}, r"measures\[0\]\[0\] holds nan"),
    "mass": (ValueError, ([(X, [1.0, 1.0, 0.0])],), {}, r"measures\[0\]\[1\] has mass 2"),
    "λ": (ValueError, (PAIR, [0.5, 0.4]), {}, "weights has mass 0.9"),
    "λ batch": (ValueError, (PAIR, [[0.5, 0.5]]), {}, r"weights must have shape \(2,\)"),
    "x0": (ValueError, (PAIR,), {"x0": [[1.0]]}, "x0 in dimension 1"),
    "n_support and x0": (
        ValueError,
        (PAIR,),
        {"x0": X, "n_support": 4},
        "n_support is 4, but x0 has 3 points",
    ),
    "n_support": (ValueError, (PAIR,), {"n_support": 0}, "n_support must be a whole number"),
    "support": (ValueError, (PAIR,), {"support_weights": [1.0]}, r"support_weights must have shape \(…, 4\)"),
    "eps": (ValueError, (PAIR,), {"eps": 0.0}, "eps must be .* for exact plans leave it None"),
    "tol": (ValueError, (PAIR,), {"tol": 0.0}, "tol must be a finite number above 0"),
    "max_iter": (ValueError, (PAIR,), {"max_iter": 0}, "max_iter must be a whole number"),
}


@pytest.mark.parametrize("case", BAD_CLOUDS)
def test_bad_clouds(case):
    error, args, kwargs, message = BAD_CLOUDS[case]
    with pytest.raises(error, match=message):
        free_support(*args, **kwargs)


# Images


def images(k=3, h=4, w=5, *, batch=(), seed=0, zeros=False):
    """Random images; with zeros, a third of their pixels is black."""
    A = torch.rand(*batch, k, h, w, generator=problems.generator(seed), dtype=torch.float64) + 0.1
    if zeros:
        A = A * (torch.rand(A.shape, generator=problems.generator(seed + 1)) > 1 / 3)
    return A / A.sum((-2, -1), keepdim=True)


def blob(i, j, n=24, width=1.5):
    t = torch.arange(n, dtype=torch.float64)
    G = torch.exp(-((t[:, None] - i) ** 2 + (t - j) ** 2) / (2 * width**2))
    return G / G.sum()


def grid_cost(h, w, spacing):
    """Squared distances between all pixels, by the rows of an h × w image."""
    x = torch.cartesian_prod(torch.arange(h), torch.arange(w)).double() * spacing
    return costs.sqeuclidean(x, x)


LAM = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)


@pytest.mark.parametrize("debiased", [False, True])
def test_optimality_by_the_potentials_of_sinkhorn(debiased):
    # At the minimum over images of mass 1 the derivative in p is the same at every pixel. That of the
    # value of sinkhorn is g; the entropy without marginals adds ε log p, the divergence takes off that
    # of the transport from p to itself.
    A, eps = images(), 0.03
    p = convolutional(A, LAM, eps=eps, debiased=debiased, tol=1e-10)
    C = grid_cost(4, 5, 1 / 5)
    assert p.min() > 1e-3  # inside the simplex, or the derivative would only be bounded
    flat = p.flatten()

    def potential(a):
        g = sinkhorn(C, a.flatten(), flat, eps=eps, tol=1e-10).g
        return g - g.mean()

    slope = sum(s * potential(a) for s, a in zip(LAM, A, strict=True))
    slope = slope - potential(p) if debiased else slope + eps * flat.log()
    close(slope, slope.mean().expand_as(slope), atol=1e-7)


@pytest.mark.parametrize("zeros", [False, True])
def test_agrees_with_pots_convolutions(zeros):
    # POT's pixels lie at linspace(0, 1, n).
    A = images(h=6, w=6, zeros=zeros)
    for eps in (0.2, 0.02):
        expected = ot.bregman.convolutional_barycenter2d(A.numpy(), eps, LAM.numpy(), stopThr=1e-10)
        np.testing.assert_allclose(
            convolutional(A, LAM, eps=eps, spacing=1 / 5, tol=1e-9), expected, atol=1e-7
        )
    expected = ot.bregman.convolutional_barycenter2d_debiased(A.numpy(), 0.02, LAM.numpy(), stopThr=1e-9)
    actual = convolutional(A, LAM, eps=0.02, spacing=1 / 5, debiased=True, tol=1e-8)
    np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_agrees_with_pots_matrices_on_a_rectangle():
    A, M = images(), grid_cost(4, 5, 1 / 5).numpy()
    flat = A.flatten(1).T.numpy()
    options = {"weights": LAM.numpy(), "method": "sinkhorn_log", "stopThr": 1e-11, "numItermax": 10_000}
    for debiased, solver in ((False, ot.bregman.barycenter), (True, ot.bregman.barycenter_debiased)):
        # Its plain "sinkhorn" starts from the unweighted mean, which moves the limit when λ is not uniform.
        expected = solver(flat, M, 0.03, **options)
        actual = convolutional(A, LAM, eps=0.03, debiased=debiased, tol=1e-9)
        np.testing.assert_allclose(actual.flatten(), expected, atol=1e-6)


def test_the_biased_barycentre_of_equal_images_is_blurred_by_half_eps_on_each_axis():
    # All scalings v are 1, so p is a convolved with the kernel, a Gaussian of variance ε/2.
    n, eps = 24, 6.0
    t = torch.arange(n, dtype=torch.float64)
    A = blob(11, 12)

    def variances(p):
        rows, columns = p.sum(1), p.sum(0)
        return torch.stack([q @ t**2 - (q @ t) ** 2 for q in (rows, columns)])

    p = convolutional(torch.stack([A, A]), eps=eps, spacing=1)
    close(variances(p) - variances(A), torch.full((2,), eps / 2).double(), atol=1e-3)  # cut off at the border
    # In units of the image the same ε is ε/n².
    close(convolutional(torch.stack([A, A]), eps=eps / n**2), p)


@pytest.mark.parametrize("eps", [0.01, 0.002])
def test_two_shifted_blobs_meet_at_the_mid_point(eps):
    A = torch.stack([blob(7, 8), blob(15, 14)])
    biased = convolutional(A, eps=eps)
    debiased = convolutional(A, eps=eps, debiased=True)
    middle = blob(11, 11)
    close(debiased, middle, atol=1e-5)
    assert (biased - middle).abs().sum() > 100 * (debiased - middle).abs().sum()
    assert biased.max() < 0.95 * middle.max()
    # λ = (¾, ¼) moves it along the line between the two.
    close(convolutional(A, [0.75, 0.25], eps=eps, debiased=True), blob(9, 9.5), atol=1e-5)


def test_debiased_barycentres_of_equal_images_and_of_one_weight_are_the_image():
    A = images(h=6, w=6)
    same = A[:1].expand(3, 6, 6)
    close(convolutional(same, LAM, eps=0.02, debiased=True), A[0], atol=1e-5)
    assert (convolutional(same, LAM, eps=0.02) - A[0]).abs().sum() > 0.1
    close(convolutional(A, [0.0, 1.0, 0.0], eps=0.02, debiased=True), A[1], atol=1e-5)


def test_digits():
    pictures, _ = datasets.digits()
    A = pictures[:2] / pictures[:2].sum((-2, -1), keepdim=True)
    assert (A == 0).any(0).any()
    biased, debiased = (convolutional(A, eps=0.01, debiased=d) for d in (False, True))
    for p in (biased, debiased):
        assert (p >= 0).all()
        close(p.sum(), torch.tensor(1.0).double())
    # The blur spreads the mass over more pixels.
    biased_entropy, debiased_entropy = (-torch.xlogy(p, p).sum() for p in (biased, debiased))
    assert biased_entropy > debiased_entropy + 0.1
    alone = convolutional(A, [1.0, 0.0], eps=0.01, debiased=True)
    close(alone, A[0], atol=2e-4)  # black pixels fade slowly


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    k=st.integers(1, 3),
    h=st.integers(1, 5),
    w=st.integers(1, 5),
    exponent=st.floats(-5, 1),
    debiased=st.booleans(),
    zeros=st.booleans(),
)
def test_mass_one_and_the_symmetries_at_every_eps(seed, k, h, w, exponent, debiased, zeros):
    A, lam = images(k, h, w, seed=seed), problems.weights(k, seed=seed)
    if zeros and h * w > 1:
        A[:, 0, 0] = 0
        A = A / A.sum((-2, -1), keepdim=True)

    def solve(A, lam):
        with warnings.catch_warnings():
            # The symmetries hold for every iterate, so there is no need to wait for the last one.
            warnings.simplefilter("ignore", ConvergenceWarning)
            return convolutional(A, lam, eps=10**exponent, debiased=debiased, max_iter=20)

    p = solve(A, lam)
    assert torch.isfinite(p).all()
    assert (p >= 0).all()
    close(p.sum(), torch.tensor(1.0).double())
    close(solve(A.flip(0), lam.flip(0)), p)
    close(solve(A.flip(-1), lam), p.flip(-1))
    close(solve(A.mT, lam), p.mT)


def test_logarithms_and_products_agree(monkeypatch):
    A = images(zeros=True)
    products = [convolutional(A, LAM, eps=0.02, debiased=d, tol=1e-4) for d in (False, True)]
    monkeypatch.setitem(_convolutional._SAFE_EXPONENT, torch.float64, 0.0)
    for p, d in zip(products, (False, True), strict=True):
        close(convolutional(A, LAM, eps=0.02, debiased=d, tol=1e-4), p)


def test_a_small_eps_does_not_underflow():
    # exp(−C/ε) is 0 off the diagonal, so no plan moves mass between pixels, except out of need:
    # a single pixel each meets in the middle, 10,000 ε away.
    A = torch.zeros(2, 3, 21, dtype=torch.float64)
    A[0, 1, 5] = A[1, 1, 15] = 1
    for debiased in (False, True):
        p = convolutional(A, eps=1e-4, spacing=0.2, debiased=debiased)
        close(p[1, 10], torch.tensor(1.0).double(), atol=1e-6)


def test_batches_and_their_weights():
    A = images(batch=(2,))
    lam = problems.weights(2, 3)
    options = {"eps": 0.03, "debiased": True, "tol": 1e-8}
    p = convolutional(A, lam, **options)
    assert p.shape == (2, 4, 5)
    for k in range(2):
        close(p[k], convolutional(A[k], lam[k], **options), atol=1e-7)
    close(convolutional(A[0], lam, **options)[0], p[0], atol=1e-7)
    close(convolutional(A[1], **options), convolutional(A, **options)[1], atol=1e-7)


@pytest.mark.parametrize("debiased", [False, True])
def test_float32_numpy_and_detached(debiased):
    A = images()
    exact = convolutional(A, LAM, eps=0.03, debiased=debiased)
    single = convolutional(A.float().requires_grad_(), LAM.float(), eps=0.03, debiased=debiased)
    assert single.dtype == torch.float32
    assert not single.requires_grad
    close(single.double(), exact, atol=1e-4)
    close(convolutional(A.numpy(), LAM.numpy(), eps=0.03, debiased=debiased), exact, atol=0)


@pytest.mark.parametrize("debiased", [False, True])
def test_says_when_the_images_did_not_converge(debiased):
    with pytest.warns(
        ConvergenceWarning, match="convolutional stopped after 3 iterations with marginal error"
    ):
        convolutional(images(), LAM, eps=0.01, debiased=debiased, max_iter=3)


A = images()
BAD_IMAGES = {
    "one image": ((A[0],), {}, r"images must have shape \(…, K, h, w\)"),
    "empty": ((A[:0],), {}, "at least one image"),
    "negative": ((torch.cat([-A[:1], A]),), {}, r"a pixel that is negative, .* at images\[0, 0, 0\]; pixels"),
    "NaN": ((A * math.nan,), {}, r"not finite, nan at images\[0, 0, 0\].*nan_to_num"),
    "mass": ((2 * A,), {}, r"mass 2, not 1; divide by the sum: images / images.sum\(\(-2, -1\)"),
    "weights": ((A, [0.5, 0.5]), {}, r"weights must have shape \(…, 3\)"),
    "batch": ((images(batch=(2,)), problems.weights(4, 3)), {}, "the batch shapes do not agree"),
    "dtype": ((A.half(),), {}, "images has dtype float16"),
    "eps": ((A,), {"eps": 0.0}, "eps must be a finite number above 0"),
    "spacing": ((A,), {"spacing": -1.0}, "spacing must be a finite number above 0"),
    "tol": ((A,), {"tol": 0.0}, "tol must be a finite number above 0"),
    "max_iter": ((A,), {"max_iter": 0}, "max_iter must be a whole number"),
}


@pytest.mark.parametrize("case", BAD_IMAGES)
def test_bad_images(case):
    args, kwargs, message = BAD_IMAGES[case]
    with pytest.raises(ValueError, match=message):
        convolutional(*args, **{"eps": 0.1, **kwargs})


@pytest.mark.parametrize("debiased", [False, True])
def test_convolutional_on_another_device(debiased, device):
    images = torch.rand(2, 6, 6, generator=problems.generator(0), dtype=torch.float64)
    images = images / images.sum((-2, -1), keepdim=True)
    here, there = (convolutional(A, eps=0.05, debiased=debiased) for A in (images, images.to(device)))
    assert there.device == device
    close(there.cpu(), here)


def test_free_support_on_another_device(device):
    measures, lam = three_measures()
    moved = [(x.to(device), a.to(device)) for x, a in measures]
    here, there = (
        free_support(m, lam.to(m[0][0].device), n_support=4, generator=problems.generator(0))
        for m in (measures, moved)
    )
    assert there.points.device == device
    close(there.points.cpu(), here.points, atol=1e-8)
