"""JKO steps against closed forms, the optimality of each step, and the flows that they discretise."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from scipy.optimize import brentq

from otbook import ConvergenceWarning, bures_wasserstein
from otbook.flows import jko_gaussian, jko_grid
from otbook.flows._jko_grid import _blur, _log_omega

from . import problems


def covariance(d=3, *, batch=(), seed=0):
    A = torch.randn(*batch, d, d + 1, generator=problems.generator(seed), dtype=torch.float64)
    return A @ A.mT / d + 0.1 * torch.eye(d, dtype=torch.float64)


def instance(d=3, *, batch=(), seed=0):
    """A Gaussian and a potential whose covariances do not commute."""
    generator = problems.generator(seed)
    m, c = (torch.randn(*batch, d, generator=generator, dtype=torch.float64) for _ in range(2))
    return m, covariance(d, batch=batch, seed=seed + 1), covariance(d, batch=batch, seed=seed + 2), c


def close(actual, expected, atol=1e-10):
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), rtol=0, atol=atol)


def lists(*values):
    return [torch.tensor(value, dtype=torch.float64) for value in values]


def energy(m, S, A, c):
    """Free energy of N(m, S), up to a constant."""
    x = m - c
    return (x @ A @ x + (A @ S).trace() - torch.logdet(S)) / 2


def exact(m, S, A, c, t):
    """The Ornstein–Uhlenbeck law at time t."""
    E, inverse = torch.linalg.matrix_exp(-A * t), A.inverse()
    return c + E @ (m - c), inverse + E @ (S - inverse) @ E


# Gaussians: closed forms


def test_a_point_mass_by_hand():
    means, covs = jko_gaussian(*lists([2.0], [[0.0]], [[1.0]]), tau=1.0, n_steps=1)
    close(means[1], [1.0])
    close(covs[1], [[0.5]])


def test_the_line():
    m, s, alpha, c, tau = 1.3, 0.7, 0.9, -0.4, 0.3
    means, covs = jko_gaussian(*lists([m], [[s**2]], [[alpha]], [c]), tau=tau, n_steps=1)
    mu = 1 + alpha * tau
    close(means[1], [c + (m - c) / mu])
    close(covs[1], [[((s + math.sqrt(s**2 + 4 * tau * mu)) / (2 * mu)) ** 2]])


def test_without_potential_each_step_is_implicit_heat_flow():
    """For A = 0 and S = sI the step solves s' + τ²/s' = s + 2τ."""
    S = 0.6 * torch.eye(2, dtype=torch.float64)
    means, covs = jko_gaussian([1.0, 2.0], S, torch.zeros(2, 2).double(), tau=0.2, n_steps=4)
    close(means[4], [1.0, 2.0])
    for before, after in zip(covs[:-1, 0, 0], covs[1:, 0, 0], strict=True):
        close(after + 0.04 / after, before + 0.4)


@pytest.mark.parametrize("d", [1, 2, 5])
def test_optimality_condition(d):
    m, S, A, c = instance(d, seed=d)
    tau = 0.4
    means, covs = jko_gaussian(m, S, A, c, tau=tau, n_steps=3)
    M = torch.eye(d, dtype=torch.float64) + tau * A
    for k in range(3):
        close(M @ (means[k + 1] - c), means[k] - c)
        close(M @ covs[k + 1] @ M + tau**2 * covs[k + 1].inverse(), covs[k] + 2 * tau * M, atol=1e-9)
        # The map back to ρ_k is the gradient of a convex function.
        assert torch.linalg.eigvalsh(M - tau * covs[k + 1].inverse()).min() > 0


def test_no_gaussian_nearby_is_better():
    m, S, A, c = instance(3)
    tau = 0.4
    means, covs = jko_gaussian(m, S, A, c, tau=tau, n_steps=1)

    def objective(mean, cov):
        return energy(mean, cov, A, c) + bures_wasserstein(mean, cov, m, S) ** 2 / (2 * tau)

    best = objective(means[1], covs[1])
    generator = problems.generator(5)
    for _ in range(20):
        shift = 0.05 * torch.randn(3, generator=generator, dtype=torch.float64)
        G = torch.eye(3) + 0.05 * torch.randn(3, 3, generator=generator, dtype=torch.float64)
        assert objective(means[1] + shift, G @ covs[1] @ G.mT) > best


@pytest.mark.parametrize("tau", [1e-3, 0.5, 50.0])
def test_the_target_is_a_fixed_point(tau):
    _, _, A, c = instance(3)
    means, covs = jko_gaussian(c, A.inverse(), A, c, tau=tau, n_steps=2)
    close(means[2], c)
    close(covs[2], A.inverse(), atol=1e-8)


def test_first_order_in_tau():
    m, S, A, c = instance(2)
    errors = []
    for n in (20, 40, 80):
        means, covs = jko_gaussian(m, S, A, c, tau=1 / n, n_steps=n)
        errors.append(bures_wasserstein(means[-1], covs[-1], *exact(m, S, A, c, 1.0)).item())
    slopes = np.diff(np.log(errors)) / math.log(0.5)
    np.testing.assert_allclose(slopes, 1, atol=0.1)


def test_entropy_decays_at_the_implicit_rate_and_translates_attain_it():
    m, S, A, c = instance(3)
    tau, alpha = 0.3, torch.linalg.eigvalsh(A)[0].item()
    factor = (1 + alpha * tau) ** -2

    def kl(means, covs):
        target = energy(c, A.inverse(), A, c)
        return torch.stack([energy(mean, cov, A, c) - target for mean, cov in zip(means, covs, strict=True)])

    values = kl(*jko_gaussian(m, S, A, c, tau=tau, n_steps=10))
    assert (values[1:] <= factor * values[:-1] + 1e-12).all()
    slowest = torch.linalg.eigh(A).eigenvectors[:, 0]
    values = kl(*jko_gaussian(c + 3 * slowest, A.inverse(), A, c, tau=tau, n_steps=10))
    close(values[1:] / values[:-1], [factor] * 10, atol=1e-9)


# Gaussians: invariances, gradients, types


def test_rotation_and_translation():
    m, S, A, c = instance(3)
    Q = torch.linalg.qr(torch.randn(3, 3, generator=problems.generator(9), dtype=torch.float64)).Q
    shift = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    means, covs = jko_gaussian(m, S, A, c, tau=0.2, n_steps=3)
    moved = jko_gaussian(Q @ m + shift, Q @ S @ Q.mT, Q @ A @ Q.mT, Q @ c + shift, tau=0.2, n_steps=3)
    close(moved[0], means @ Q.mT + shift)
    close(moved[1], Q @ covs @ Q.mT)


def test_singular_start():
    S = torch.diag(torch.tensor([1.0, 0.0], dtype=torch.float64))
    A = covariance(2)
    _, covs = jko_gaussian([0.0, 0.0], S, A, tau=0.1, n_steps=1)
    M = torch.eye(2, dtype=torch.float64) + 0.1 * A
    close(M @ covs[1] @ M + 0.01 * covs[1].inverse(), S + 0.2 * M)


def test_a_saddle_with_short_steps():
    A = torch.diag(torch.tensor([1.0, -0.5], dtype=torch.float64))
    means, _ = jko_gaussian([1.0, 1.0], torch.eye(2).double(), A, tau=1.0, n_steps=2)
    close(means[:, 0], [1.0, 0.5, 0.25])
    close(means[:, 1], [1.0, 2.0, 4.0])


def test_batch():
    m, S, A, c = instance(3, batch=(4,))
    means, covs = jko_gaussian(m, S, A[0], c, tau=0.2, n_steps=2)
    assert means.shape == (3, 4, 3)
    assert covs.shape == (3, 4, 3, 3)
    for k in range(4):
        one = jko_gaussian(m[k], S[k], A[0], c[k], tau=0.2, n_steps=2)
        close(means[:, k], one[0])
        close(covs[:, k], one[1])


def test_a_batch_of_potentials_for_one_start():
    m, S, A, _ = instance(2, batch=(3,))
    means, covs = jko_gaussian(m[0], S[0], A, tau=0.2, n_steps=2)
    assert means.shape == (3, 3, 2)
    close(covs[:, 1], jko_gaussian(m[0], S[0], A[1], tau=0.2, n_steps=2)[1])


def test_gradcheck():
    m, S, A, c = (t.requires_grad_() for t in instance(2))

    def last(m, G, H, c):
        means, covs = jko_gaussian(m, G @ G.mT, H @ H.mT, c, tau=0.3, n_steps=2)
        return means[-1], covs[-1]

    assert torch.autograd.gradcheck(last, (m, S, A, c))


def test_float32_numpy_and_lists():
    arguments = instance(3)
    means, covs = jko_gaussian(*arguments, tau=0.2, n_steps=5)
    low = jko_gaussian(*(t.float() for t in arguments), tau=0.2, n_steps=5)
    assert low[1].dtype == torch.float32
    close(low[1].double(), covs, atol=1e-4)
    array = jko_gaussian(*(t.numpy() for t in arguments), tau=0.2, n_steps=5)
    close(array[0], means)


def test_gaussian_on_another_device(device):
    arguments = instance(3)
    here = jko_gaussian(*arguments, tau=0.2, n_steps=5)
    there = jko_gaussian(*(t.to(device) for t in arguments), tau=0.2, n_steps=5)
    assert there[0].device == device
    close(there[1].cpu(), here[1])


GOOD = {"mean": [0.0, 0.0], "cov": torch.eye(2), "precision": torch.eye(2), "tau": 0.1, "n_steps": 1}
BAD_GAUSSIANS = {
    "tau": ({"tau": 0.0}, "tau must be a finite number above 0"),
    "n_steps": ({"n_steps": 0}, "n_steps must be a whole number"),
    "shape": ({"precision": torch.eye(3)}, r"precision must have shape \(…, 2, 2\)"),
    "negative": ({"cov": -torch.eye(2)}, "cov is no covariance: its smallest eigenvalue is -1"),
    "skew": ({"precision": torch.tensor([[1.0, 0.5], [0.0, 1.0]])}, "precision is not symmetric"),
    "NaN": ({"mean": [math.nan, 0.0]}, "mean has entries that are not finite"),
    "long step": (
        {"precision": -torch.eye(2), "tau": 1.5},
        r"tau = 1.5 is too long for a precision with the eigenvalue -1: .*take tau < 1",
    ),
    "dtype": (
        {"mean": torch.zeros(2).double()},
        "cov is float32 on cpu, but the other arguments are float64",
    ),
}


@pytest.mark.parametrize("case", BAD_GAUSSIANS)
def test_bad_gaussians(case):
    change, message = BAD_GAUSSIANS[case]
    with pytest.raises(ValueError, match=message):
        jko_gaussian(**{**GOOD, **change})


# Grid: closed forms

H = 0.1
X = H * torch.arange(-70, 71, dtype=torch.float64)


def bell(m, s, x=X):
    rho = torch.exp(-((x - m) ** 2) / (2 * s))
    return rho / rho.sum() / (x[1] - x[0])


def moments(rho, x=X):
    h = x[1] - x[0]
    mean = (rho * x).sum(-1) * h
    return mean, (rho * x**2).sum(-1) * h - mean**2


def entropic_variance(s, alpha, tau, eps, debias):
    """The variance after one entropic step from variance s, in the continuum."""
    mu = 1 + alpha * tau

    def condition(v):
        return (math.sqrt(eps**2 + 16 * s * v) - eps) / 4 + tau + (eps - debias) / 2 - mu * v

    return brentq(condition, 1e-6, 100, xtol=1e-14)


@pytest.mark.parametrize("debiased", [True, False])
@pytest.mark.parametrize("eps", [0.02, 0.1, 0.5])
def test_gaussian_step_in_closed_form(debiased, eps):
    alpha, tau = 0.8, 0.1
    options = {"eps": eps, "debiased": debiased, "tol": 1e-12}
    flow = jko_grid(bell(-1, 0.3), alpha * X**2 / 2, spacing=H, tau=tau, n_steps=1, **options)
    mean, var = moments(flow[1])
    close(mean, -1 / (1 + alpha * tau), atol=1e-8)
    close(var, entropic_variance(0.3, alpha, tau, eps, eps / 2 if debiased else 0), atol=1e-8)


@pytest.mark.parametrize(("debiased", "order"), [(True, 2), (False, 1)])
def test_order_of_the_blur(debiased, order):
    var = jko_gaussian([0.5], [[0.3]], [[1.0]], tau=0.1, n_steps=1)[1][1].item()
    gaps = []
    for eps in (0.02, 0.04, 0.08):
        options = {"eps": eps, "debiased": debiased, "tol": 1e-10}
        flow = jko_grid(bell(0.5, 0.3), X**2 / 2, spacing=H, tau=0.1, n_steps=1, **options)
        gaps.append(abs(moments(flow[1])[1].item() - var))
    np.testing.assert_allclose(np.diff(np.log2(gaps)), order, atol=0.1)


def test_first_order_against_fokker_planck():
    errors = []
    for n in (8, 16, 32):
        flow = jko_grid(bell(-1, 0.3), X**2 / 2, spacing=H, tau=1 / n, n_steps=n, eps=0.16 / n + 0.005)
        law = bell(-math.exp(-1), 1 - 0.7 * math.exp(-2))
        errors.append(((flow[-1] - law).abs().sum() * H).item())
    np.testing.assert_allclose(-np.diff(np.log2(errors)), 1, atol=0.2)


def test_heat_flow_is_exact_when_the_blur_is_the_diffusion():
    flow = jko_grid(bell(0.7, 0.2), spacing=H, tau=0.05, n_steps=10, eps=0.2, max_iter=2)
    close(flow[-1], bell(0.7, 1.2), atol=1e-8)


@pytest.mark.parametrize("power", [1.5, 2.0, 3.0])
def test_barenblatt_radius(power):
    """Implicit Euler for the radius, R' = R + τ k R'^{1−q} with q = m + 1 on the line."""
    x = 0.04 * torch.arange(-60, 61, dtype=torch.float64)
    m, k, tau, eps = power, 1.0, 0.05, 0.005

    def shape(b):  # B of the chapter for support [−√2b, √2b]
        return ((m - 1) / m * (b - k * x**2 / 2).clamp(min=0)) ** (1 / (m - 1))

    b = brentq(lambda b: shape(b).sum().item() * 0.04 - 1, 0.01, 3)

    def profile(R):
        inside = (b - k * (x / R) ** 2 / 2).clamp(min=0)
        return ((m - 1) / m * inside) ** (1 / (m - 1)) / R

    start = profile(1.0)
    start = start / start.sum() / 0.04
    flow = jko_grid(start, spacing=0.04, tau=tau, n_steps=3, eps=eps, power=m)
    R = 1.0
    for _ in range(3):
        R = brentq(lambda r, R=R: r - R - tau * k * r ** (-m), R, R + 1)
    # The edge is blurred over √(ε/2); for m > 2 the profile is steeper than Lipschitz there.
    assert ((flow[-1] - profile(R)).abs().sum() * 0.04).item() < (0.02 if m > 2 else 2 * eps)


def test_equilibrium_of_a_confined_porous_medium():
    """Without stepping: U'(ρ) + V is constant on the support, 2ρ = (λ − V)⁺ for m = 2."""
    x = 0.05 * torch.arange(-60, 61, dtype=torch.float64)
    rest = (brentq(lambda b: (b - x**2 / 2).clamp(min=0).sum().item() * 0.025 - 1, 0.1, 5) - x**2 / 2).clamp(
        min=0
    ) / 2
    flow = jko_grid(bell(0.5, 0.1, x), x**2 / 2, spacing=0.05, tau=0.2, n_steps=40, eps=0.02, power=2.0)
    assert ((flow[-1] - rest).abs().sum() * 0.05).item() < 0.01


# Grid: the structure of the flow


def plane(n=21):
    line = 0.2 * torch.arange(n, dtype=torch.float64) - 0.1 * (n - 1)
    x, y = torch.meshgrid(line, line, indexing="ij")
    rho = torch.exp(-3 * ((x - 0.4) ** 2 + 2 * (y + 0.2) ** 2 + x * y))
    return rho / rho.sum() / 0.04, (x**2 - 1) ** 2 / 2 + x * y / 2 + y**2, line


def test_product_measures_on_the_plane():
    """Steps of product measures with separable potentials are products of steps."""
    line = 0.15 * torch.arange(-25, 26, dtype=torch.float64)
    r, s, V, W = bell(0.3, 0.2, line), bell(-0.5, 0.4, line), line**2 / 2, line**2
    options = {"spacing": 0.15, "tau": 0.1, "n_steps": 2, "eps": 0.06, "tol": 1e-10}
    both = jko_grid(r[:, None] * s, V[:, None] + W, **options)
    first, second = jko_grid(r, V, **options), jko_grid(s, W, **options)
    close(both, first[:, :, None] * second[:, None, :], atol=1e-8)


def test_mass_sign_and_energy():
    rho, V, _ = plane()
    flow = jko_grid(rho, V, spacing=0.2, tau=0.1, n_steps=20, eps=0.05)
    close(flow.sum((1, 2)) * 0.04, torch.ones(21))
    assert (flow >= 0).all()
    F = ((torch.xlogy(flow, flow) + flow * V).sum((1, 2)) * 0.04).diff()
    assert (F < 0).all()


def test_equilibrium_on_the_plane():
    rho, V, _ = plane()
    flow = jko_grid(rho, V, spacing=0.2, tau=0.5, n_steps=40, eps=0.05)
    target = torch.exp(-V) / torch.exp(-V).sum() / 0.04
    # The blur is removed to first order; what is left is of order ε²/(32 τ) = 2e-4 in a variance.
    close(flow[-1], target, atol=5e-3)


def test_transposition_and_reflection():
    rho, V, _ = plane()
    options = {"spacing": 0.2, "tau": 0.1, "n_steps": 3, "eps": 0.05, "tol": 1e-10}
    flow = jko_grid(rho, V, **options)
    close(jko_grid(rho.T, V.T, **options), flow.mT, atol=1e-9)
    close(jko_grid(rho.flip(0), V.flip(0), **options), flow.flip(1), atol=1e-9)


def test_units_and_constants():
    """Lengths λx, times λ²t, and a constant added to V, change nothing but units."""
    options = {"tau": 0.1, "n_steps": 3, "eps": 0.05, "tol": 1e-10}
    flow = jko_grid(bell(-1, 0.3), X**2 / 2, spacing=H, **options)
    scaled = {**options, "tau": 0.4, "eps": 0.2}
    close(2 * jko_grid(bell(-1, 0.3) / 2, X**2 / 2 + 7, spacing=2 * H, **scaled), flow, atol=1e-9)


def test_iterations_contract_at_the_stated_rate():
    """Errors of log v shrink by κ: log(tol) / log κ iterations are enough, and a few for the start."""
    tau, eps = 0.1, 0.1
    kappa = (2 * tau - eps / 2) / (2 * tau + eps / 2)
    n = math.ceil(math.log(1e-9) / math.log(kappa)) + 10
    options = {"spacing": H, "tau": tau, "n_steps": 1, "eps": eps, "max_iter": n}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        jko_grid(bell(0.2, 0.5), X**2 / 8, tol=1e-6, **options)


def test_empty_cells_and_wide_grids():
    """A point mass, and a grid so wide that its kernel underflows: compare with a wide ε in log domain."""
    x = torch.arange(-40, 41, dtype=torch.float64)
    start = torch.zeros(81, dtype=torch.float64)
    start[50] = 1
    flow = jko_grid(start, x**2 / 20, spacing=1.0, tau=1.0, n_steps=2, eps=2.0)
    assert torch.isfinite(flow).all()
    mean, _ = moments(flow, x)
    close(mean, 10 * torch.tensor([1, 1.1**-1, 1.1**-2]), atol=1e-3)


def test_fast_and_slow_products_agree():
    like = torch.rand(7, 5, generator=problems.generator(0), dtype=torch.float64)
    L = 10 * torch.randn(7, 5, generator=problems.generator(1), dtype=torch.float64)
    i, j = (torch.arange(n, dtype=torch.float64) for n in (7, 5))
    E = [-((t[:, None] - t) ** 2) * 0.09 / 0.5 for t in (i, j)]
    direct = torch.logsumexp(L[:, :, None, None] + E[0][:, None, :, None] + E[1][None, :, None, :], (0, 1))
    close(_blur(like, 0.3, 0.5)(L), direct)
    # Far below: the same kernel in an ε that leaves the safe range.
    tiny = torch.logsumexp(
        L[:, :, None, None] + 1e4 * (E[0][:, None, :, None] + E[1][None, :, None, :]), (0, 1)
    )
    close(_blur(like, 0.3, 0.5e-4)(L), tiny)


def test_log_omega():
    z = torch.tensor([-800.0, -5, 0, 0.5, 1, 1.5, 10, 800], dtype=torch.float64)
    t = _log_omega(z)
    close((t.exp() + t) / z.abs().clamp(min=1), z / z.abs().clamp(min=1), atol=1e-14)


def test_grid_types():
    start = bell(-1, 0.3)
    options = {"spacing": H, "tau": 0.1, "n_steps": 2, "eps": 0.05}
    flow = jko_grid(start, X**2 / 2, **options)
    low = jko_grid(start.float(), X.float() ** 2 / 2, **options)
    assert low.dtype == torch.float32
    close(low.double(), flow, atol=1e-4)
    close(jko_grid(start.numpy(), (X**2 / 2).numpy(), **options), flow)
    assert not jko_grid(start.requires_grad_(), X**2 / 2, **options).requires_grad


def test_grid_on_another_device(device):
    rho, V, _ = plane()
    options = {"spacing": 0.2, "tau": 0.1, "n_steps": 3, "eps": 0.05}
    there = jko_grid(rho.to(device), V.to(device), **options)
    assert there.device == device
    close(there.cpu(), jko_grid(rho, V, **options), atol=1e-9)


def test_says_when_a_step_did_not_converge():
    with pytest.warns(ConvergenceWarning, match="a step of jko_grid stopped after 2 iterations"):
        jko_grid(bell(0, 0.3), X**2, spacing=H, tau=0.1, n_steps=1, eps=0.02, max_iter=2)


FLAT = torch.full((5,), 0.2, dtype=torch.float64)
GRID = {"density": FLAT, "spacing": 1.0, "tau": 0.1, "n_steps": 1, "eps": 1.0}
BAD_GRIDS = {
    "axes": ({"density": FLAT[None, None]}, r"density must have shape \(n,\) or \(h, w\)"),
    "mass": ({"spacing": 0.5}, r"density has mass 0.5, not 1: density.sum\(\) \* spacing \*\* 1"),
    "negative": ({"density": torch.tensor([1.5, -0.5])}, "a value that is negative, -0.5"),
    "NaN": ({"density": FLAT * math.nan}, "a value that is not finite, nan"),
    "potential shape": ({"potential": FLAT[:3]}, r"potential must have the shape \(5,\) of density"),
    "potential wall": ({"potential": FLAT * math.inf}, "potential has values that are not finite"),
    "power": ({"power": 0.5}, "power must be at least 1, but is 0.5"),
    "tau": ({"tau": -1}, "tau must be a finite number above 0"),
    "eps": ({"eps": 0}, "eps must be a finite number above 0"),
    "tol": ({"tol": 0}, "tol must be a finite number above 0"),
    "spacing": ({"spacing": 0}, "spacing must be a finite number above 0"),
    "n_steps": ({"n_steps": 1.5}, "n_steps must be a whole number"),
    "max_iter": ({"max_iter": 0}, "max_iter must be a whole number"),
    "dtype": ({"potential": FLAT.float()}, "potential is float32 on cpu"),
}


@pytest.mark.parametrize("case", BAD_GRIDS)
def test_bad_grids(case):
    change, message = BAD_GRIDS[case]
    with pytest.raises(ValueError, match=message):
        jko_grid(**{**GRID, **change})
