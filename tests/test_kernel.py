"""The absorbed kernel: its products against the matrix, near the solution and far, kept in float64 or not."""

from __future__ import annotations

import itertools

import pytest
import torch

from otbook import PointCloudCost, sinkhorn
from otbook.entropic import _dual, _kernel
from otbook.entropic._kernel import ROUNDING, DenseKernel, PointCloudKernel

from . import checks, problems

EPS = 0.4


def kernels():
    """Both kernels of the same clouds, absorbed exactly at the same g, and their matrix T in float64."""
    x, y, a, b = problems.clouds(9, 6)
    C, g = (x[:, None] - y).square().sum(-1), torch.linspace(-1, 1, 6, dtype=torch.float64)
    T = torch.softmax(g / EPS + b.log() - C / EPS, -1)
    for kernel in (DenseKernel(C, a, b), PointCloudKernel(PointCloudCost(x, y), a, b)):
        f, c = kernel.absorb(g, EPS, exact=True)
        yield kernel, T, f, c


def test_an_exact_absorption():
    for kernel, T, f, c in kernels():
        C = kernel.C[..., :, :]
        g = torch.linspace(-1, 1, 6, dtype=torch.float64)
        expected = -EPS * torch.logsumexp(kernel.b.log() + (g - C) / EPS, -1)
        torch.testing.assert_close(f, expected, rtol=0, atol=1e-13)
        torch.testing.assert_close(c, kernel.a @ T, rtol=0, atol=1e-15)


@pytest.mark.parametrize("distance", [3.0, 1e-2, 1e-5, 1e-9])
def test_rounding_enters_in_proportion_to_what_has_moved(distance):
    """T v = s1 + T(v − s1), and Tᵀw = sc + Tᵀ(w − sa): near the solution float32 hides nothing."""
    v = 1 + distance * torch.linspace(-0.2, 1, 6, dtype=torch.float64)
    for kernel, T, _, _ in kernels():
        a, bound = kernel.a, 4 * (kernel.rounding + ROUNDING[torch.float32]) * min(1.0, distance) + 1e-15
        r, product = kernel.sweep(v, lambda r, i, a=a: a[i] / r)
        scale = v.max().item()
        torch.testing.assert_close(r, T @ v, rtol=0, atol=bound * scale)
        torch.testing.assert_close(kernel.rows(v), T @ v, rtol=0, atol=bound * scale)
        torch.testing.assert_close(product, (a / (T @ v)) @ T, rtol=0, atol=2 * bound)


def test_a_kept_kernel_is_sharp_and_becomes_the_plan():
    (kernel, T, f, _), (lazy, *_) = kernels()
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
