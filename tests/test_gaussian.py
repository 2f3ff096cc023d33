"""Gaussian transport against closed forms of commuting covariances, quadrature and optimality conditions."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from otbook import ConvergenceWarning, bures_wasserstein, gaussian, wasserstein_1d

from . import problems


def covariance(d=3, *, batch=(), seed=0, rank=None):
    A = torch.randn(*batch, d, rank or d + 1, generator=problems.generator(seed), dtype=torch.float64)
    return A @ A.mT


def pair(d=3, *, batch=(), seed=0):
    """Two Gaussians whose covariances do not commute."""
    generator = problems.generator(seed)
    m0, m1 = (torch.randn(*batch, d, generator=generator, dtype=torch.float64) for _ in range(2))
    return m0, covariance(d, batch=batch, seed=seed + 1), m1, covariance(d, batch=batch, seed=seed + 2)


def commuting(d=3, *, seed=0):
    """Two covariances with common eigenvectors, and the roots of their eigenvalues."""
    generator = problems.generator(seed)
    Q = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64)).Q
    s0, s1 = (torch.rand(d, generator=generator, dtype=torch.float64) + 0.2 for _ in range(2))
    return Q @ torch.diag(s0**2) @ Q.T, Q @ torch.diag(s1**2) @ Q.T, s0, s1


def entropic_1d(s0, s1, eps):
    """The cost between N(0, s0²) and N(0, s1²) minimised over the correlation r of the coupling.

    s0² + s1² − 2 r s0 s1 − ε/2 log(1 − r²) is least where 2 s0 s1 (1 − r²) = ε r.
    """
    product = s0 * s1
    r = (-eps + math.sqrt(eps**2 + 16 * product**2)) / (4 * product)
    return s0**2 + s1**2 - 2 * r * product - eps / 2 * math.log(1 - r**2)


def close(actual, expected, atol=1e-10):
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


I2 = torch.eye(2, dtype=torch.float64)
O2 = torch.zeros(2, dtype=torch.float64)


# Distance


def test_commuting_covariances():
    S0, S1, s0, s1 = commuting()
    m0, m1 = torch.zeros(3).double(), torch.tensor([1.0, -2.0, 0.5]).double()
    expected = ((s0 - s1).square().sum() + m1.square().sum()).sqrt()
    close(bures_wasserstein(m0, S0, m1, S1), expected)


def test_general_covariances_by_the_textbook_formula():
    # tr (S0^{1/2} S1 S0^{1/2})^{1/2} = Σ √λ(S0 S1), by NumPy's nonsymmetric eigenvalues.
    m0, S0, m1, S1 = pair(4)
    fidelity = np.sqrt(np.linalg.eigvals((S0 @ S1).numpy()).real).sum()
    squared = ((m0 - m1) ** 2).sum().item() + torch.trace(S0 + S1).item() - 2 * fidelity
    assert abs(bures_wasserstein(m0, S0, m1, S1).item() ** 2 - squared) < 1e-10


def test_line_agrees_with_quantiles():
    q = (torch.arange(20000, dtype=torch.float64) + 0.5) / 20000
    z = math.sqrt(2) * torch.erfinv(2 * q - 1)
    gaussians = bures_wasserstein([1.0], torch.tensor([[4.0]]).double(), [-1.0], [[0.25]])
    close(wasserstein_1d(1 + 2 * z, -1 + 0.5 * z), gaussians, atol=1e-3)


def test_equal_gaussians_are_at_distance_zero_to_rounding_itself():
    # Not to its square root, as the difference of traces would be.
    m, S, *_ = pair(5)
    assert bures_wasserstein(m, S, m, S) < 1e-13
    close(bures_wasserstein(m, S, m + 1e-12, S), torch.tensor(1e-12 * 5**0.5).double(), atol=1e-14)


def test_singular_covariances():
    # Diracs, and segments at an angle: W₂² = 1 + 1 − 2|cos|.
    close(bures_wasserstein(O2, 0 * I2, O2 + 3, 0 * I2), torch.tensor(18.0).double().sqrt())
    close(bures_wasserstein(O2, 0 * I2, O2, I2), torch.tensor(2.0).double().sqrt())
    angle = torch.tensor(0.7).double()
    u, v = I2[0], torch.stack([angle.cos(), angle.sin()])
    expected = (2 - 2 * angle.cos()).sqrt()
    close(bures_wasserstein(O2, torch.outer(u, u), O2, torch.outer(v, v)), expected)


@pytest.mark.parametrize("seed", range(5))
def test_covariances_of_fewer_points_than_dimensions(seed):
    # With S0 = AAᵀ and S1 = BBᵀ, the trace of (S0^{1/2} S1 S0^{1/2})^{1/2} is the nuclear norm of AᵀB.
    generator = problems.generator(seed)
    A, B = (torch.randn(6, rank, generator=generator, dtype=torch.float64) for rank in (2, 3))
    squared = A.square().sum() + B.square().sum() - 2 * torch.linalg.matrix_norm(A.T @ B, "nuc")
    zero = torch.zeros(6, dtype=torch.float64)
    close(bures_wasserstein(zero, A @ A.T, zero, B @ B.T), squared.sqrt())


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), d=st.integers(1, 4))
def test_metric_axioms_and_gelbrich_invariances(seed, d):
    m0, S0, m1, S1 = pair(d, seed=seed)
    m2, S2, *_ = pair(d, seed=seed + 10)
    distance = bures_wasserstein(m0, S0, m1, S1)
    close(bures_wasserstein(m1, S1, m0, S0), distance)
    assert distance <= bures_wasserstein(m0, S0, m2, S2) + bures_wasserstein(m2, S2, m1, S1) + 1e-10
    Q = torch.linalg.qr(S2).Q
    rotated = bures_wasserstein(Q @ m0, Q @ S0 @ Q.T, Q @ m1, Q @ S1 @ Q.T)
    close(rotated, distance)
    close(bures_wasserstein(3 * m0, 9 * S0, 3 * m1, 9 * S1), 3 * distance)


def test_gradient_of_the_square_is_identity_minus_map():
    m0, S0, m1, S1 = pair()
    inputs = [t.requires_grad_() for t in (m0, S0, m1, S1)]
    g0, G0, g1, G1 = torch.autograd.grad(bures_wasserstein(*inputs) ** 2, inputs)
    eye = torch.eye(3, dtype=torch.float64)
    close(G0, eye - gaussian.optimal_map(m0, S0, m1, S1).matrix.detach())
    close(G1, eye - gaussian.optimal_map(m1, S1, m0, S0).matrix.detach())
    close(g0, 2 * (m0 - m1).detach())
    close(g1, 2 * (m1 - m0).detach())


def symmetric(S):
    return (S + S.mT) / 2


CASES = {
    "generic": pair(),
    "batch": pair(2, batch=(2,)),
    "commuting": (pair()[0], commuting()[0], pair()[2], commuting()[1]),
    "repeated eigenvalues": (O2, I2, O2 + 1, 4 * I2),
}


@pytest.mark.parametrize("case", CASES)
def test_gradchecks(case):
    inputs = [t.clone().requires_grad_() for t in CASES[case]]

    def check(function):
        assert torch.autograd.gradcheck(
            lambda m0, S0, m1, S1: function(m0, symmetric(S0), m1, symmetric(S1)), inputs
        )

    check(bures_wasserstein)
    check(lambda *g: gaussian.optimal_map(*g).matrix)
    check(lambda *g: gaussian.geodesic(*g, 0.3))
    check(lambda *g: gaussian.entropic_cost(*g, eps=0.7))
    check(lambda *g: gaussian.entropic_coupling(*g, eps=0.7))


def test_gradcheck_of_the_square_at_equal_gaussians():
    inputs = [t.clone().requires_grad_() for t in (O2, I2, O2, I2)]
    assert torch.autograd.gradcheck(
        lambda m0, S0, m1, S1: bures_wasserstein(m0, symmetric(S0), m1, symmetric(S1)) ** 2, inputs
    )


def test_gradient_at_singular_covariances_is_finite():
    u = torch.tensor([1.0, 0.0], dtype=torch.float64)
    S0 = torch.outer(u, u).requires_grad_()
    (G,) = torch.autograd.grad(bures_wasserstein(O2, S0, O2, 4 * I2) ** 2, S0)
    assert torch.isfinite(G).all()
    # Along the range: d(1 + 4 + 4 − 2·2s)/ds² at s = 1 is 1 − 2.
    close(G[0, 0], torch.tensor(-1.0).double())


# Map and geodesic


def test_map_pushes_forward_and_is_the_gradient_of_a_convex_function():
    m0, S0, m1, S1 = pair(4)
    T = gaussian.optimal_map(m0, S0, m1, S1)
    A = T.matrix
    close(A @ S0 @ A, S1)
    close(A, A.mT, atol=0)
    assert torch.linalg.eigvalsh(A).min() > 0
    close(T(m0), m1)
    x = torch.randn(5, 2, 4, generator=problems.generator(0), dtype=torch.float64)
    close(T(x)[3, 1], m1 + A @ (x[3, 1] - m0))
    # Its cost is the distance: E‖x − T(x)‖² = ‖m0 − m1‖² + tr (I − A) S0 (I − A).
    B = torch.eye(4).double() - A
    close(((m0 - m1) ** 2).sum() + torch.trace(B @ S0 @ B), bures_wasserstein(m0, S0, m1, S1) ** 2)


def test_map_of_a_batch_and_onto_a_singular_target():
    m0, S0, m1, S1 = pair(3, batch=(2,))
    T = gaussian.optimal_map(m0, S0, m1, S1)
    x = torch.randn(2, 7, 3, generator=problems.generator(0), dtype=torch.float64)
    for k in range(2):
        close(T(x)[k], gaussian.optimal_map(m0[k], S0[k], m1[k], S1[k])(x[k]))
    flat = covariance(3, rank=1)
    A = gaussian.optimal_map(m0[0], S0[0], m1[0], flat).matrix
    close(A @ S0[0] @ A, flat)


def test_geodesic_has_constant_speed():
    m0, S0, m1, S1 = pair()
    length = bures_wasserstein(m0, S0, m1, S1)
    times = torch.linspace(0, 1, 5).double()
    means, covs = gaussian.geodesic(m0, S0, m1, S1, times)
    assert covs.shape == (5, 3, 3)
    close(covs[0], S0)
    close(covs[-1], S1)
    for k in range(4):
        close(bures_wasserstein(means[k], covs[k], means[k + 1], covs[k + 1]), length / 4)
    single = gaussian.geodesic(m0, S0, m1, S1, 0.25)
    close(single[0], means[1])
    close(single[1], covs[1])
    A = torch.lerp(torch.eye(3).double(), gaussian.optimal_map(m0, S0, m1, S1).matrix, 0.25)
    close(covs[1], A @ S0 @ A)


def test_geodesic_from_a_dirac():
    _, S = gaussian.geodesic(O2, 0 * I2, O2, covariance(2), 0.5)
    close(S, covariance(2) / 4)


# Entropic transport


def test_standard_normals():
    one, zero = torch.ones(1, 1).double(), torch.zeros(1).double()
    value = gaussian.entropic_cost(zero, one, zero, one, eps=1.0)
    # Found by quadrature elsewhere; and in closed form.
    assert abs(value.item() - 0.908754008245) < 1e-12
    r = math.sqrt(17)
    assert abs(value.item() - (2 - (r - 1) / 2 + math.log((1 + r) / 2) / 2)) < 1e-12


@pytest.mark.parametrize("eps", [1e-3, 0.5, 20.0])
def test_commuting_covariances_are_a_sum_over_axes(eps):
    S0, S1, s0, s1 = commuting()
    m0, m1 = torch.zeros(3).double(), torch.tensor([1.0, -2.0, 0.5]).double()
    expected = 5.25 + sum(entropic_1d(p, q, eps) for p, q in zip(s0.tolist(), s1.tolist(), strict=True))
    assert abs(gaussian.entropic_cost(m0, S0, m1, S1, eps=eps).item() - expected) < 1e-10


@pytest.mark.parametrize("eps", [0.05, 1.0, 30.0])
def test_coupling_has_the_cost_and_solves_the_optimality_condition(eps):
    m0, S0, m1, S1 = pair()
    mean, joint = gaussian.entropic_coupling(m0, S0, m1, S1, eps=eps)
    close(mean, torch.cat([m0, m1]), atol=0)
    close(joint[:3, :3], S0, atol=1e-14)
    close(joint[3:, 3:], S1, atol=1e-14)
    K = joint[:3, 3:]
    close(joint[3:, :3], K.mT, atol=0)
    # exp((f(x) + g(y) + 2⟨x, y⟩)/ε): the mixed block of the joint precision is −2/ε I.
    close(torch.linalg.inv(joint)[:3, 3:], -2 / eps * torch.eye(3).double(), atol=1e-8)
    # Transport cost plus ε times the divergence of the joint from the product of the marginals.
    kl = (torch.logdet(S0) + torch.logdet(S1) - torch.logdet(joint)) / 2
    transport = ((m0 - m1) ** 2).sum() + torch.trace(S0 + S1 - 2 * K)
    value = gaussian.entropic_cost(m0, S0, m1, S1, eps=eps)
    close(transport + eps * kl, value)
    assert bures_wasserstein(m0, S0, m1, S1) ** 2 <= transport <= value


def test_limits_of_the_entropic_cost():
    m0, S0, m1, S1 = pair()
    exact = bures_wasserstein(m0, S0, m1, S1) ** 2
    independent = ((m0 - m1) ** 2).sum() + torch.trace(S0 + S1)
    values = [gaussian.entropic_cost(m0, S0, m1, S1, eps=10.0**k) for k in range(-12, 13)]
    close(values[0], exact)
    close(values[-1], independent)
    for lower, upper in itertools.pairwise(values):
        assert lower < upper + 1e-12
    _, joint = gaussian.entropic_coupling(m0, S0, m1, S1, eps=1e12)
    assert joint[:3, 3:].abs().max() < 1e-10


def test_entropic_cost_is_differentiable_at_singular_covariances():
    u = torch.tensor([1.0, 0.0], dtype=torch.float64)
    S0, S1 = torch.outer(u, u).requires_grad_(), (0 * I2).requires_grad_()
    value = gaussian.entropic_cost(O2, S0, O2, S1, eps=0.5)
    close(value, torch.tensor(1.0).double())
    for S, gradient in zip((S0, S1), torch.autograd.grad(value, (S0, S1)), strict=True):
        for direction in (torch.outer(u, u), I2 - torch.outer(u, u)):
            # One-sided, because a covariance has no negative eigenvalue.
            h = 1e-6
            moved = [T.detach() + h * direction * (T is S) for T in (S0, S1)]
            slope = (gaussian.entropic_cost(O2, moved[0], O2, moved[1], eps=0.5) - value) / h
            close((gradient * direction).sum(), slope.detach(), atol=1e-4)


# Barycentre


def test_barycentre_of_commuting_covariances():
    S0, S1, s0, s1 = commuting()
    means = torch.tensor([[0.0, 1.0, 2.0], [4.0, 1.0, 0.0]]).double()
    # One step of S ← Ā S Ā solves a commuting problem, the second sees it.
    mean, S = gaussian.barycenter(means, torch.stack([S0, S1]), [0.25, 0.75], max_iter=2)
    close(mean, torch.tensor([3.0, 1.0, 0.5]).double())
    close(torch.linalg.eigvalsh(S), (0.25 * s0 + 0.75 * s1).square().sort().values)


def test_barycentre_of_two_lies_on_their_geodesic():
    m0, S0, m1, S1 = pair()
    mean, S = gaussian.barycenter(torch.stack([m0, m1]), torch.stack([S0, S1]), [0.7, 0.3])
    expected = gaussian.geodesic(m0, S0, m1, S1, 0.3)
    close(mean, expected[0])
    close(S, expected[1], atol=1e-9)


@pytest.mark.parametrize("d", [1, 3])
def test_barycentre_solves_its_equation_and_minimises(d):
    covs = covariance(d, batch=(5,))
    means = torch.zeros(5, d).double()
    w = problems.weights(5)
    mean, S = gaussian.barycenter(means, covs, w)
    maps = gaussian.optimal_map(mean.expand(5, d), S.expand(5, d, d), means, covs).matrix
    close((w[:, None, None] * maps).sum(0), torch.eye(d).double(), atol=1e-8)

    def objective(S):
        return (w * bures_wasserstein(means, covs, mean.expand(5, d), S.expand(5, d, d)) ** 2).sum()

    for seed in range(5):
        assert objective(S) < objective(S + 1e-2 * covariance(d, seed=100 + seed))


def test_barycentre_of_ill_conditioned_covariances_in_a_batch():
    scale = torch.tensor([1.0, 1e-6]).double()
    covs = covariance(2, batch=(3, 4)) * scale[:, None] * scale
    means = torch.zeros(3, 4, 2).double()
    mean, S = gaussian.barycenter(means, covs)
    assert mean.shape == (3, 2)
    for k in range(3):
        close(S[k], gaussian.barycenter(means[k], covs[k])[1], atol=1e-9)


def test_barycentre_is_differentiable():
    covs = covariance(2, batch=(3,)).requires_grad_()
    means = torch.zeros(3, 2).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda m, S: gaussian.barycenter(m, symmetric(S)), (means, covs))


def test_barycentre_says_when_it_did_not_converge():
    m0, S0, m1, S1 = pair()
    with pytest.warns(ConvergenceWarning, match="barycentre still moves by .* after 1 iterations.*max_iter"):
        gaussian.barycenter(torch.stack([m0, m1]), torch.stack([S0, S1]), max_iter=1)


# Precision, batches, devices


def every_function(m0, S0, m1, S1):
    yield bures_wasserstein(m0, S0, m1, S1)
    yield gaussian.optimal_map(m0, S0, m1, S1).matrix
    yield from gaussian.geodesic(m0, S0, m1, S1, 0.3)
    yield gaussian.entropic_cost(m0, S0, m1, S1, eps=0.7)
    yield from gaussian.entropic_coupling(m0, S0, m1, S1, eps=0.7)
    yield from gaussian.barycenter(torch.stack([m0, m1], -2), torch.stack([S0, S1], -3))


def test_float32():
    arguments = pair()
    for low, high in zip(
        every_function(*(t.float() for t in arguments)), every_function(*arguments), strict=True
    ):
        assert low.dtype == torch.float32
        torch.testing.assert_close(low, high.float(), rtol=1e-4, atol=1e-4)


def test_batches_broadcast():
    m0, S0, *_ = pair(batch=(2, 1))
    _, _, m1, S1 = pair(batch=(4,), seed=5)
    for j, values in enumerate(
        every_function(
            *(t.expand(2, 4, *t.shape[2:]) for t in (m0, S0)), *(t.expand(2, *t.shape) for t in (m1, S1))
        )
    ):
        for k in itertools.product(range(2), range(4)):
            single = list(every_function(m0[k[0], 0], S0[k[0], 0], m1[k[1]], S1[k[1]]))[j]
            close(values[k], single, atol=1e-9)
    assert bures_wasserstein(m0, S0, m1, S1).shape == (2, 4)


def test_numpy_and_lists_take_the_dtype_of_the_array():
    value = bures_wasserstein([0.0, 0.0], np.eye(2), [3.0, 4.0], [[1.0, 0.0], [0.0, 1.0]])
    assert value.dtype == torch.float64
    assert value.item() == 5.0


def test_on_another_device(device):
    arguments = pair(batch=(2,))
    for there, here in zip(
        every_function(*(t.to(device) for t in arguments)), every_function(*arguments), strict=True
    ):
        assert there.device == device
        close(there.cpu(), here, atol=1e-9)


# Bad input

SKEW = torch.tensor([[1.0, 0.5], [0.0, 1.0]], dtype=torch.float64)
BAD = {
    "not symmetric": (
        (O2, SKEW, O2, I2),
        r"S0 is not symmetric.*by 0\.5; symmetrise it, \(S0 \+ S0\.mT\) / 2",
    ),
    "negative eigenvalue": (
        (O2, I2, O2, I2 - 1.5 * I2[:1].T @ I2[:1]),
        r"S1 is no covariance.*eigenvalue is -0\.5",
    ),
    "NaN covariance": ((O2, I2, O2, I2 * torch.nan), "S1 has entries that are not finite"),
    "infinite mean": ((O2 + torch.inf, I2, O2, I2), "m0 has entries that are not finite"),
    "a number": ((torch.tensor(0.0).double(), I2, O2, I2), r"m0 must have shape \(…, d\)"),
    "empty": ((O2[:0], I2[:0, :0], O2, I2), r"m0 must have shape .* d ≥ 1"),
    "vector of variances": ((O2, torch.ones(2).double(), O2, I2), r"S0 must have shape \(…, 2, 2\)"),
    "dimensions of one": ((O2, torch.eye(3).double(), O2, I2), r"S0 must have shape \(…, 2, 2\).*\(3, 3\)"),
    "dimensions of both": (
        (O2, I2, torch.zeros(3).double(), torch.eye(3).double()),
        "m0 has points in dimension 2",
    ),
    "dtypes": ((O2, I2, O2, I2.float()), r"S1 is float32 on cpu.*S1\.to\("),
    "half": ((O2.half(), I2.half(), O2, I2), "m0 has dtype float16"),
    "batches": ((O2.expand(2, 2), I2, O2.expand(3, 2), I2), r"batch shapes do not agree: \(m0, S0\) \(2,\)"),
}
FUNCTIONS = {
    "bures_wasserstein": bures_wasserstein,
    "optimal_map": gaussian.optimal_map,
    "geodesic": lambda *g: gaussian.geodesic(*g, 0.5),
    "entropic_cost": lambda *g: gaussian.entropic_cost(*g, eps=1.0),
    "entropic_coupling": lambda *g: gaussian.entropic_coupling(*g, eps=1.0),
}


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("case", BAD)
def test_bad_input(function, case):
    args, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        FUNCTIONS[function](*args)


@pytest.mark.parametrize("eps", [0.0, -1.0, math.inf, math.nan])
@pytest.mark.parametrize("function", [gaussian.entropic_cost, gaussian.entropic_coupling])
def test_bad_eps(function, eps):
    with pytest.raises(ValueError, match="eps must be a finite number above 0.*for ε = 0 use"):
        function(O2, I2, O2, I2, eps=eps)


def test_map_from_a_singular_covariance():
    with pytest.raises(
        ValueError, match=r"S0 must be positive definite.*smallest eigenvalue is 0; add a small"
    ):
        gaussian.optimal_map(O2, 0 * I2, O2, I2)


def test_points_of_another_shape():
    T = gaussian.optimal_map(O2, I2, O2, I2)
    with pytest.raises(ValueError, match=r"x must have shape \('…', 2\), but has shape \(4, 3\)"):
        T(torch.zeros(4, 3).double())
    T = gaussian.optimal_map(*pair(2, batch=(3,)))
    with pytest.raises(ValueError, match=r"x must have shape \(3, 'k', 2\)"):
        T(torch.zeros(3, 2).double())


@pytest.mark.parametrize("t", [-0.1, 1.5, math.nan])
def test_times_outside_the_unit_interval(t):
    with pytest.raises(ValueError, match=r"t must lie in \[0, 1\], but holds"):
        gaussian.geodesic(O2, I2, O2, I2, t)


MEANS, COVS = torch.zeros(3, 2), torch.eye(2).expand(3, 2, 2)
BAD_BARYCENTRES = {
    "one Gaussian": ((O2, I2), {}, r"means must have shape \(…, k, d\)"),
    "singular": ((MEANS, 0 * COVS), {}, "covs must be positive definite"),
    "negative": ((MEANS, -COVS), {}, "covs is no covariance"),
    "weights": ((MEANS, COVS, [0.5, 0.5, 0.5]), {}, "weights has mass 1.5"),
    "number of weights": ((MEANS, COVS, [0.5, 0.5]), {}, r"weights must have shape \(…, 3\)"),
    "tolerance": ((MEANS, COVS), {"tol": 0.0}, "tol must be a finite number above 0"),
    "iterations": ((MEANS, COVS), {"max_iter": 0}, "max_iter must be a whole number"),
}


@pytest.mark.parametrize("case", BAD_BARYCENTRES)
def test_bad_input_of_the_barycentre(case):
    args, kwargs, message = BAD_BARYCENTRES[case]
    with pytest.raises(ValueError, match=message):
        gaussian.barycenter(*args, **kwargs)
