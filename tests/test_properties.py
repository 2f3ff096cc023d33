"""What every solver must do, asked of all of them: one table of solvers, one test for each property.

A solver of a problem (C, a, b) is certified by convex duality: its plan is feasible, its potentials
are feasible, and primal(plan) = value = dual(potentials); then both are optimal, whoever found them.
A solver of two clouds is asked for the symmetries of its problem. Lengths come in units, so that all
options of a problem scale with its costs.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import ot
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import otbook
from otbook import (
    OTResult,
    costs,
    emd,
    ipot,
    linear_program,
    partial,
    sinkhorn,
    sinkhorn_unbalanced,
    smooth_ot,
)

from . import checks, problems

F32, F64 = torch.float32, torch.float64


def inner(C: Tensor, P: Tensor) -> Tensor:
    """⟨C, P⟩, where forbidden pairs carry nothing."""
    return torch.where(P > 0, C * P, 0.0).sum((-2, -1))


def kl(p: Tensor, q: Tensor) -> Tensor:
    """Σ p log(p/q) − p + q over all entries of the last axis."""
    return (torch.special.xlogy(p, p) - torch.special.xlogy(p, q) - p + q).sum(-1)


def pairing(a: Tensor, f: Tensor) -> Tensor:
    return torch.where(a > 0, a * f, 0.0).sum(-1)


def kl_to_product(P: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return kl(P.flatten(-2), (a[..., :, None] * b[..., None, :]).flatten(-2))


def exponential(C: Tensor, a: Tensor, b: Tensor, f: Tensor, g: Tensor, eps: float) -> Tensor:
    """ε Σ_ij a_i b_j (exp((f_i + g_j − C_ij)/ε) − 1), the penalty in the dual of an entropy."""
    E = (f[..., :, None] + g[..., None, :] - C) / eps
    return eps * (a[..., :, None] * b[..., None, :] * torch.expm1(E.clamp(max=600))).sum((-2, -1))


class Exact:
    """min ⟨C, P⟩ over couplings; max ⟨a, f⟩ + ⟨b, g⟩ subject to f⊕g ≤ C."""

    mass = 1

    def primal(self, C: Tensor, a: Tensor, b: Tensor, P: Tensor, unit: float) -> Tensor:
        return inner(C, P)

    def dual(self, C: Tensor, a: Tensor, b: Tensor, f: Tensor, g: Tensor, unit: float) -> Tensor:
        excess = (f[..., :, None] + g[..., None, :] - C).max().item()
        rounding = 1e-10 * unit + 4e-16 * max(f.abs().max().item(), g.abs().max().item())
        assert excess <= rounding, f"f⊕g exceeds C by {excess:.3g}"
        return pairing(a, f) + pairing(b, g)


@dataclass(frozen=True)
class Entropic:
    """min ⟨C, P⟩ + ε KL(P ‖ a⊗b) over couplings."""

    eps: float
    mass = 1

    def primal(self, C: Tensor, a: Tensor, b: Tensor, P: Tensor, unit: float) -> Tensor:
        return inner(C, P) + self.eps * unit * kl_to_product(P, a, b)

    def dual(self, C: Tensor, a: Tensor, b: Tensor, f: Tensor, g: Tensor, unit: float) -> Tensor:
        return pairing(a, f) + pairing(b, g) - exponential(C, a, b, f, g, self.eps * unit)


@dataclass(frozen=True)
class Squared:
    """min ⟨C, P⟩ + γ/2 Σ P² over couplings."""

    gamma: float
    mass = 1

    def primal(self, C: Tensor, a: Tensor, b: Tensor, P: Tensor, unit: float) -> Tensor:
        return inner(C, P) + self.gamma * unit / 2 * P.square().sum((-2, -1))

    def dual(self, C: Tensor, a: Tensor, b: Tensor, f: Tensor, g: Tensor, unit: float) -> Tensor:
        over = (f[..., :, None] + g[..., None, :] - C).clamp(min=0)
        over = torch.where((a[..., :, None] > 0) & (b[..., None, :] > 0), over, 0.0)
        return pairing(a, f) + pairing(b, g) - over.square().sum((-2, -1)) / (2 * self.gamma * unit)


@dataclass(frozen=True)
class Relaxed:
    """min ⟨C, P⟩ + ε KL(P ‖ a⊗b) + ρ D(P1 ‖ a) + ρ D(Pᵀ1 ‖ b) over P ≥ 0, for D = KL or TV."""

    eps: float
    rho: float
    divergence: str
    mass = None  # as much as pays

    def primal(self, C: Tensor, a: Tensor, b: Tensor, P: Tensor, unit: float) -> Tensor:
        D = kl if self.divergence == "kl" else lambda p, q: (p - q).abs().sum(-1)
        marginals = D(P.sum(-1), a.expand(P.sum(-1).shape)) + D(P.sum(-2), b.expand(P.sum(-2).shape))
        return inner(C, P) + self.eps * unit * kl_to_product(P, a, b) + self.rho * unit * marginals

    def dual(self, C: Tensor, a: Tensor, b: Tensor, f: Tensor, g: Tensor, unit: float) -> Tensor:
        rho = self.rho * unit
        if self.divergence == "kl":
            gains = [pairing(w, -rho * torch.expm1(-h / rho)) for w, h in ((a, f), (b, g))]
        else:
            for w, h in ((a, f), (b, g)):
                assert (h[w.expand(h.shape) > 0] >= -rho * (1 + 1e-12)).all()
            gains = [pairing(w, h.clamp(max=rho)) for w, h in ((a, f), (b, g))]
        return sum(gains) - exponential(C, a, b, f, g, self.eps * unit)


@dataclass(frozen=True)
class Part:
    """min ⟨C, P⟩ over P ≥ 0 with P1 ≤ a, Pᵀ1 ≤ b and Σ P = mass."""

    mass: float

    def primal(self, C: Tensor, a: Tensor, b: Tensor, P: Tensor, unit: float) -> Tensor:
        assert (P.sum(-1) <= a + 1e-12).all()
        assert (P.sum(-2) <= b + 1e-12).all()
        torch.testing.assert_close(P.sum((-2, -1)), torch.full_like(P.sum((-2, -1)), self.mass))
        return inner(C, P)

    def dual(self, C: Tensor, a: Tensor, b: Tensor, f: Tensor, g: Tensor, unit: float) -> Tensor:
        return Exact().dual(C, a, b, f, g, unit) - (1 - self.mass) * (f.amax(-1) + g.amax(-1))


@dataclass(frozen=True)
class Solver:
    """A solver of (C, a, b), the problem it solves, and how exactly it does so at its tightest tolerance.

    ``accuracy`` bounds the error of the plan in ‖·‖₁ and, in units of C, that of the value.
    """

    solve: Callable[[Tensor, Tensor | None, Tensor | None, float, float], OTResult]
    problem: Exact | Entropic | Squared | Relaxed | Part
    accuracy: float = 1e-9

    def __call__(self, C, a=None, b=None, unit=1.0, tol=1e-11) -> OTResult:
        return self.solve(C, a, b, unit, tol)


def entropic(eps: float, **options) -> Solver:
    return Solver(lambda C, a, b, u, tol: sinkhorn(C, a, b, eps=eps * u, tol=tol, **options), Entropic(eps))


def smooth(problem: Entropic | Squared, gamma: float, **options) -> Solver:
    return Solver(lambda C, a, b, u, tol: smooth_ot(C, a, b, gamma=gamma * u, tol=tol, **options), problem)


def unbalanced(divergence: str) -> Solver:
    def solve(C, a, b, u, tol):
        return sinkhorn_unbalanced(C, a, b, eps=0.2 * u, rho=2 * u, divergence=divergence, tol=tol)

    return Solver(solve, Relaxed(0.2, 2, divergence))


SOLVERS = {
    "emd": Solver(lambda C, a, b, u, tol: emd(C, a, b), Exact()),
    "linear_program": Solver(lambda C, a, b, u, tol: linear_program(C, a, b), Exact()),
    "ipot": Solver(
        lambda C, a, b, u, tol: ipot(C, a, b, beta=0.3 * u, n_outer=1000, n_inner=5, tol=max(tol, 1e-7)),
        Exact(),
        accuracy=1e-6,
    ),
    "sinkhorn": entropic(0.3),
    "sinkhorn, small eps": entropic(0.003),
    "sinkhorn, plain": entropic(0.3, accelerate=False),
    "smooth_ot, entropy": smooth(Entropic(0.3), 0.3, regulariser="entropy"),
    "smooth_ot, entropy, semi": smooth(Entropic(0.3), 0.3, regulariser="entropy", semi=True),
    "smooth_ot, l2": smooth(Squared(2), 2),
    "smooth_ot, l2, semi": smooth(Squared(2), 2, semi=True),
    "unbalanced, kl": unbalanced("kl"),
    "unbalanced, tv": unbalanced("tv"),
    "partial": Solver(lambda C, a, b, u, tol: partial(C, a, b, mass=0.6), Part(0.6)),
}

every_solver = pytest.mark.parametrize("solver", [pytest.param(s, id=name) for name, s in SOLVERS.items()])
of_fixed_mass = pytest.mark.parametrize(
    "solver", [pytest.param(s, id=name) for name, s in SOLVERS.items() if s.problem.mass is not None]
)
balanced = pytest.mark.parametrize(
    "solver", [pytest.param(s, id=name) for name, s in SOLVERS.items() if s.problem.mass == 1]
)


def certify(solver: Solver, C: Tensor, a: Tensor, b: Tensor, unit=1.0, tol=1e-11) -> OTResult:
    """Solve, and prove it: a feasible plan, feasible potentials, and no gap between their objectives."""
    result = solver(C, a, b, unit, tol)
    assert result.converged
    for part in (result.value, result.cost, result.f, result.g, result.plan, result.marginal_error):
        assert torch.isfinite(part).all()
    a, b = (w / w.sum(-1, keepdim=True) for w in (a, b))
    assert (result.plan >= 0).all()
    if solver.problem.mass == 1:
        checks.assert_coupling(result.plan, a, b, atol=solver.accuracy)
    # A marginal error of δ can move the objectives apart by δ times a potential.
    size = max(unit, result.f.abs().max().item(), result.g.abs().max().item())
    close = {"rtol": 1e-12, "atol": solver.accuracy * size}
    torch.testing.assert_close(inner(C, result.plan), result.cost, **close)
    torch.testing.assert_close(solver.problem.primal(C, a, b, result.plan, unit), result.value, **close)
    torch.testing.assert_close(solver.problem.dual(C, a, b, result.f, result.g, unit), result.value, **close)
    return result


def random_problem(n: int = 7, m: int = 5, *, seed: int = 3, batch: tuple[int, ...] = ()):
    """Costs without any structure, some negative, and weights far from uniform."""
    C = 4 * torch.rand(*batch, n, m, generator=problems.generator(seed), dtype=F64) - 0.5
    return C, problems.weights(*batch, n, seed=seed + 1), problems.weights(*batch, m, seed=seed + 2)


class TestMatrix:
    """Properties of the solvers of (C, a, b)."""

    @every_solver
    def test_optimal_by_duality(self, solver):
        for n, m in [(7, 5), (3, 8), (6, 6)]:
            certify(solver, *random_problem(n, m))

    @every_solver
    def test_transpose_and_permutation(self, solver):
        arguments = random_problem()
        # A plan is worth what it costs: at small ε it is determined less sharply than the value.
        atol = 100 * solver.accuracy
        checks.assert_transpose_symmetric(solver, *arguments, atol=atol)
        checks.assert_permutation_equivariant(solver, *arguments, atol=atol)

    @balanced
    def test_a_sum_of_potentials_added_to_the_cost(self, solver):
        checks.assert_shift_invariant(solver, *random_problem(), atol=100 * solver.accuracy)

    @of_fixed_mass
    @pytest.mark.parametrize("shift", [-300.0, 1.0, 1e4])
    def test_a_constant_added_to_the_cost(self, solver, shift):
        mass = solver.problem.mass
        C, a, b = random_problem()
        # C + shift is rounded, and what a plan sees is C/ε.
        tol = 1e-11 + 1e-15 * abs(shift) / getattr(solver.problem, "eps", 1)
        before, after = solver(C, a, b), solver(C + shift, a, b, tol=tol)
        close = {"rtol": 0, "atol": 100 * solver.accuracy}
        torch.testing.assert_close(after.value - shift * mass, before.value, **close)
        torch.testing.assert_close(after.plan, before.plan, **close)

    @every_solver
    @pytest.mark.parametrize("unit", [1e8, 1e-8])
    def test_the_unit_of_cost(self, solver, unit):
        C, a, b = random_problem()
        one = solver(C, a, b)
        other = certify(solver, unit * C, a, b, unit)
        torch.testing.assert_close(other.value / unit, one.value, rtol=0, atol=solver.accuracy)
        torch.testing.assert_close(other.plan, one.plan, rtol=0, atol=100 * solver.accuracy)
        # At the default tolerance, and in float32, the same.
        certify(dataclasses.replace(solver, accuracy=3e-6), unit * C, a, b, unit, tol=1e-6)
        single = solver((unit * C).float(), a.float(), b.float(), unit, 2e-6)
        torch.testing.assert_close(single.value.double() / unit, one.value, rtol=1e-4, atol=1e-4)

    @every_solver
    def test_batch_is_the_loop(self, solver):
        C, a, b = random_problem(batch=(2, 2), seed=7)
        # One of the problems is far harder than the others, and one has fewer points.
        C[0, 1] *= 5
        a[1, 0, :2] = 0
        a = a / a.sum(-1, keepdim=True)
        together = certify(solver, C, a, b)
        assert together.value.shape == together.cost.shape == together.marginal_error.shape == (2, 2)
        assert together.f.shape == (2, 2, 7)
        assert together.g.shape == (2, 2, 5)
        for i in np.ndindex(2, 2):
            alone = solver(C[i], a[i], b[i])
            close = {"rtol": 1e-9, "atol": 100 * solver.accuracy}
            torch.testing.assert_close(together.value[i], alone.value, **close)
            torch.testing.assert_close(together.plan[i], alone.plan, **close)
        shared = solver(C, a[0, 0], b[0, 0])
        torch.testing.assert_close(shared.value[1, 1], solver(C[1, 1], a[0, 0], b[0, 0]).value, **close)

    @every_solver
    def test_points_without_mass_do_not_matter(self, solver):
        C, a, b = random_problem(5, 4)
        full_C = torch.full((7, 6), -2.0, dtype=F64)  # cheaper than all others, if there were mass
        full_C[1:6, 2:] = C
        full_a, full_b = torch.zeros(7, dtype=F64), torch.zeros(6, dtype=F64)
        full_a[1:6], full_b[2:] = a, b
        few, many = solver(C, a, b), certify(solver, full_C, full_a, full_b)
        close = {"rtol": 0, "atol": 100 * solver.accuracy}
        torch.testing.assert_close(many.value, few.value, **close)
        torch.testing.assert_close(many.plan[1:6, 2:], few.plan, **close)
        assert many.plan.sum() - many.plan[1:6, 2:].sum() <= 1e-15

    @every_solver
    def test_none_is_uniform(self, solver):
        C, _, _ = random_problem()
        uniform = [torch.full((k,), 1 / k, dtype=F64) for k in C.shape]
        torch.testing.assert_close(solver(C).plan, solver(C, *uniform).plan, rtol=0, atol=1e-12)

    @every_solver
    def test_float32(self, solver):
        C, a, b = (t.to(F32) for t in random_problem())
        # At the tolerance that float32 can have.
        single = solver(C, a, b, tol=2e-6)
        double = solver(C.double(), a.double(), b.double())
        for name in ("value", "cost", "f", "g", "plan"):
            part = getattr(single, name)
            assert part.dtype == F32
            if name in ("value", "cost", "plan"):
                torch.testing.assert_close(part.double(), getattr(double, name), rtol=1e-4, atol=1e-4)

    @every_solver
    def test_integer_costs_with_ties(self, solver):
        for seed in range(3):
            rng = problems.generator(seed)
            C = torch.randint(0, 3, (6, 6), generator=rng).to(F64)
            uniform = torch.full((6,), 1 / 6, dtype=F64)
            certify(solver, C, uniform, uniform)
            ranks = torch.tensor([1.0, 1, 2, 2, 0, 6], dtype=F64) / 12
            certify(solver, C, ranks, uniform)

    @every_solver
    def test_constant_and_zero_costs(self, solver):
        _, a, b = random_problem()
        for constant in (0.0, 3.0):
            certify(solver, torch.full((7, 5), constant, dtype=F64), a, b)

    @every_solver
    @pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 5), (6, 1)])
    def test_one_point(self, solver, n, m):
        C, a, b = random_problem(n, m)
        result = certify(solver, C, a, b)
        if solver.problem.mass == 1:
            torch.testing.assert_close(result.plan, a[:, None] * b, rtol=0, atol=1e-12)

    def test_more_to_choose_from_costs_a_partial_plan_nothing(self):
        """So its gradients in the weights are at most 0, and 0 where mass stays behind."""
        C, a, b = random_problem()
        a, b = a.requires_grad_(), b.requires_grad_()
        result = SOLVERS["partial"](C, a, b)
        for w, sent in ((a, result.plan.sum(1)), (b, result.plan.sum(0))):
            (gradient,) = torch.autograd.grad(result.value, w, retain_graph=True)
            left = (w - sent).detach() > 1e-9
            assert left.any()
            assert gradient.max() <= 1e-12
            assert gradient[left].abs().max() <= 1e-12

    def test_one_point_that_may_stay_at_home(self):
        """For a = b = 1 the mass p is where c + ε log p + 2ρ log p = 0; for TV, all of it if that pays."""
        for c in (0.5, 3.0, 9.0):
            C = torch.full((1, 1), c, dtype=F64)
            moved = [SOLVERS[f"unbalanced, {name}"](C).plan.item() for name in ("kl", "tv")]
            assert abs(moved[0] - math.exp(-c / (0.2 + 2 * 2))) <= 1e-10
            assert abs(moved[1] - min(1.0, math.exp((2 * 2 - c) / 0.2))) <= 1e-10
            assert abs(SOLVERS["partial"](C).plan.item() - 0.6) <= 1e-12

    @every_solver
    def test_numpy_and_lists(self, solver):
        C, a, b = random_problem()
        plan = solver(C, a, b).plan
        assert torch.equal(solver(C.numpy(), a.numpy(), b.numpy()).plan, plan)
        assert torch.equal(solver(C.numpy(), a.tolist(), b.tolist()).plan, plan)

    @every_solver
    def test_inputs_are_untouched_and_answers_repeat(self, solver):
        C, a, b = random_problem()
        copies = [t.clone() for t in (C, a, b)]
        first, second = solver(C, a, b), solver(C, a, b)
        assert torch.equal(first.plan, second.plan)
        assert torch.equal(first.value, second.value)
        for t, copy in zip((C, a, b), copies, strict=True):
            assert torch.equal(t, copy)

    @every_solver
    def test_strides_do_not_matter(self, solver):
        C, a, b = random_problem()
        spread = torch.zeros(5, 14, dtype=F64).mT[::2]
        spread.copy_(C)
        assert not spread.is_contiguous()
        torch.testing.assert_close(solver(spread, a, b).plan, solver(C, a, b).plan, rtol=0, atol=1e-9)

    @every_solver
    def test_the_value_has_the_gradient_of_its_differences(self, solver):
        C, a, b = random_problem(4, 3)
        direction = random_problem(4, 3, seed=9)[0]
        C.requires_grad_()
        (grad,) = torch.autograd.grad(solver(C, a, b).value, C)
        with torch.no_grad():
            h = 1e-5
            rise = (solver(C + h * direction, a, b).value - solver(C - h * direction, a, b).value) / (2 * h)
        # Central differences: h² from their curvature, and the error of the values over h.
        torch.testing.assert_close((grad * direction).sum(), rise, rtol=0, atol=1e-6 + solver.accuracy / h)

    @every_solver
    def test_on_another_device(self, solver, device):
        here = [t.requires_grad_() for t in random_problem()]
        there = [t.detach().to(device).requires_grad_() for t in here]
        results = [solver(*problem) for problem in (here, there)]
        parts = [[getattr(r, key) for key in ("value", "cost", "plan", "f", "g")] for r in results]
        for r, found, problem in zip(results, parts, (here, there), strict=True):
            found += torch.autograd.grad(r.value, problem)
        for expected, found in zip(*parts, strict=True):
            assert found.device == device
            torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=100 * solver.accuracy)
        assert solver(there[0].detach()).plan.device == device  # None is uniform, there too


def weighted_clouds(n: int = 7, m: int = 5, *, batch: tuple[int, ...] = (), seed: int = 3):
    return problems.clouds(n, m, batch=batch, seed=seed)


@dataclass(frozen=True)
class CloudSolver:
    """A solver of two clouds (x, a), (y, b) for its value, which grows like length^degree."""

    value: Callable[[Tensor, Tensor, Tensor, Tensor, float], Tensor]
    degree: int = 2
    accuracy: float = 1e-8
    batched: bool = True
    stretch: float = 1  # how much more a value moves than the costs

    def __call__(self, x, y, a, b, length=1.0) -> Tensor:
        return self.value(x, y, a, b, length)


def by_matrix(name: str) -> CloudSolver:
    solver = SOLVERS[name]

    def value(x, y, a, b, length):
        tol = 1e-11 if x.dtype == F64 else 1e-6
        return solver(costs.sqeuclidean(x, y), a, b, length**2, tol).value

    return CloudSolver(value)


def cloud_sinkhorn(x, y, a, b, length):
    tol = 1e-11 if x.dtype == F64 else 1e-6
    return sinkhorn(costs.PointCloudCost(x, y), a, b, eps=0.3 * length**2, tol=tol).value


def divergence(x, y, a, b, length):
    return otbook.sinkhorn_divergence(x, y, a, b, eps=0.3 * length**2, tol=1e-11)


def on_the_line(x, y, a, b, length):
    return otbook.wasserstein_1d(x[..., 0], y[..., 0], a, b, p=2)


def sliced(x, y, a, b, length):
    return otbook.sliced_wasserstein(x, y, a, b, n_projections=20, generator=problems.generator(0))


def moments(x: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance of a weighted cloud, in float64: the Gaussian that stands for it."""
    x64, a64 = x.double(), a.double()[..., None]
    mean = (a64 * x64).sum(-2)
    centred = x64 - mean[..., None, :]
    return mean.to(x), (centred.mT @ (a64 * centred)).to(x)


def bures(x, y, a, b, length):
    return otbook.bures_wasserstein(*moments(x, a), *moments(y, b))


def entropic_gaussians(x, y, a, b, length):
    return otbook.gaussian.entropic_cost(*moments(x, a), *moments(y, b), eps=0.3 * length**2)


def gromov(x, y, a, b, length):
    return otbook.gromov_wasserstein(costs.euclidean(x, x), costs.euclidean(y, y), a, b).value


def fused(x, y, a, b, length):
    spaces = costs.euclidean(x, x), costs.euclidean(y, y)
    return otbook.fused_gromov_wasserstein(costs.sqeuclidean(x, y), *spaces, a, b, alpha=0.4).value


def entropic_gromov(x, y, a, b, length):
    tol = 1e-9 if x.dtype == F64 else 1e-6
    spaces = costs.euclidean(x, x), costs.euclidean(y, y)
    return otbook.entropic_gromov_wasserstein(*spaces, a, b, eps=0.5 * length**2, tol=tol).value


def barycentre(x, y, a, b, length):
    return otbook.barycenter.free_support([(x, a), (y, b)], [0.5, 0.5]).value


#: Another method for the same problem, which sees the same matrix.
TWINS = ("linear_program", "ipot", "sinkhorn, plain", "smooth_ot, entropy, semi", "smooth_ot, l2, semi")

CLOUD_SOLVERS = {
    **{name: by_matrix(name) for name in SOLVERS if name not in TWINS},
    "sinkhorn of a PointCloudCost": CloudSolver(cloud_sinkhorn),
    "sinkhorn_divergence": CloudSolver(divergence),
    "wasserstein_1d": CloudSolver(on_the_line, degree=1),
    "sliced_wasserstein": CloudSolver(sliced, degree=1),
    "bures_wasserstein": CloudSolver(bures, degree=1),
    "entropic_cost of Gaussians": CloudSolver(entropic_gaussians),
    "gromov_wasserstein": CloudSolver(gromov, accuracy=1e-6, stretch=4),
    "fused_gromov_wasserstein": CloudSolver(fused, accuracy=1e-6, stretch=4),
    "entropic_gromov_wasserstein": CloudSolver(entropic_gromov, accuracy=1e-6, stretch=4),
    "free_support": CloudSolver(barycentre, accuracy=1e-6, batched=False),
}


def clouds_except(*names: str) -> pytest.MarkDecorator:
    chosen = [pytest.param(s, id=name) for name, s in CLOUD_SOLVERS.items() if name not in names]
    return pytest.mark.parametrize("solver", chosen)


#: The regularised problems that cost something from a cloud to itself.
BIASED = (
    *(
        "sinkhorn",
        "sinkhorn, small eps",
        "sinkhorn of a PointCloudCost",
        "smooth_ot, entropy",
        "smooth_ot, l2",
    ),
    *("unbalanced, kl", "unbalanced, tv", "entropic_cost of Gaussians", "entropic_gromov_wasserstein"),
)

#: How far x may be from the origin, in float32, so that neighbours still differ.
FAR = 1e4


#: What it costs to move a cloud on the line by 3, where the map x ↦ x + 3 is optimal.
TRANSLATED = {
    **dict.fromkeys(["emd", "sinkhorn_divergence"], 9.0),
    **dict.fromkeys(["wasserstein_1d", "sliced_wasserstein", "bures_wasserstein"], 3.0),
    "gromov_wasserstein": 0.0,
    "fused_gromov_wasserstein": 0.6 * 9,
    "free_support": 1.5**2,
}


class TestClouds:
    """Properties of the solvers of two clouds."""

    @pytest.mark.parametrize("name", TRANSLATED)
    def test_a_translation(self, name):
        x, _, a, _ = problems.clouds(d=1, seed=3)
        value = CLOUD_SOLVERS[name](x, x + 3, a, a).item()
        assert abs(value - TRANSLATED[name]) <= CLOUD_SOLVERS[name].accuracy

    @clouds_except()
    def test_exchange_and_permutation(self, solver):
        x, y, a, b = weighted_clouds()
        value = solver(x, y, a, b)
        close = {"rtol": 0, "atol": solver.accuracy}
        torch.testing.assert_close(solver(y, x, b, a), value, **close)
        s, t = torch.tensor([3, 1, 6, 0, 2, 5, 4]), torch.tensor([4, 2, 0, 1, 3])
        torch.testing.assert_close(solver(x[s], y[t], a[s], b[t]), value, **close)

    @clouds_except()
    @pytest.mark.parametrize("length", [1e4, 1e-4])
    def test_the_unit_of_length(self, solver, length):
        x, y, a, b = weighted_clouds()
        scaled = solver(length * x, length * y, a, b, length) / length**solver.degree
        torch.testing.assert_close(scaled, solver(x, y, a, b), rtol=0, atol=solver.accuracy)

    @clouds_except()
    def test_translation(self, solver):
        x, y, a, b = weighted_clouds()
        # Multiples of 2⁻²⁰ are moved by 1024 without rounding.
        x, y = (torch.round(t * 2**20) / 2**20 for t in (x, y))
        moved = solver(x + 1024, y + 1024, a, b)
        torch.testing.assert_close(moved, solver(x, y, a, b), rtol=0, atol=solver.accuracy)

    # The mean of a Gaussian is data: it would be rounded, not the points.
    @clouds_except("bures_wasserstein", "entropic_cost of Gaussians")
    @pytest.mark.parametrize("d", [2, 20])
    def test_float32_far_from_the_origin(self, solver, d):
        """The data are rounded when they are moved; the solver may add roundings of distances only.

        Numbers around 10⁴ that differ by less than a factor 2 have exact differences in float32. So a
        squared distance c is off by (d + 2) u c, u = 2⁻²⁴, or, if it is expanded around a centre, by
        (2d + 6) u R² with R² ≤ 4 max c. Costs off by δ move a value by δ, and a Gromov value, a mean
        of squared differences of distances, by 4δ; weights, and the value itself, are rounded too.
        That an iteration stops at a marginal error of 10⁻⁶ shows in the value to second order only.
        """
        x, y, a, b = problems.clouds(d=d, seed=3)
        x, y, a, b = (x + FAR).float(), (y + FAR).float(), a.float(), b.float()
        single, double = solver(x, y, a, b), solver(*(t.double() for t in (x, y, a, b)))
        assert single.dtype == F32
        both = torch.cat([x, y]).double()
        largest = costs.sqeuclidean(both, both).max().item()
        rounding = d + 2 if d <= 16 else 4 * (2 * d + 6)
        bound = (solver.stretch * rounding + 4) * 2.0**-24 * largest
        if solver.degree == 1:
            bound = bound / double.item()  # of a root: |√s − √t| ≤ |s − t| / √t
        assert abs(single.double() - double).item() <= bound

    @clouds_except()
    def test_on_another_device(self, solver, device):
        here = [t.requires_grad_() for t in weighted_clouds()]
        there = [t.detach().to(device).requires_grad_() for t in here]
        values = solver(*here), solver(*there)
        assert values[1].device == device
        torch.testing.assert_close(values[1].cpu(), values[0], rtol=0, atol=solver.accuracy)
        gradients = [torch.autograd.grad(v, t) for v, t in zip(values, (here, there), strict=True)]
        for expected, found in zip(*gradients, strict=True):
            assert found.device == device
            torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=100 * solver.accuracy)

    @clouds_except()
    def test_points_without_mass_do_not_matter(self, solver):
        x, y, a, b = weighted_clouds()
        more_x = torch.cat([x[:3], torch.full((2, 2), 30.0, dtype=F64), x[3:]])
        more_y = torch.cat([y, torch.full((1, 2), -9.0, dtype=F64)])
        more_a = torch.cat([a[:3], torch.zeros(2, dtype=F64), a[3:]])
        more_b = torch.cat([b, torch.zeros(1, dtype=F64)])
        close = {"rtol": 0, "atol": solver.accuracy}
        torch.testing.assert_close(solver(more_x, more_y, more_a, more_b), solver(x, y, a, b), **close)

    # The squared norm of a plan is not relative to a⊗b: it does see how mass is divided.
    @clouds_except("smooth_ot, l2")
    def test_a_point_may_be_split_in_two(self, solver):
        x, y, a, b = weighted_clouds()
        twice_x, twice_y = torch.cat([x, x[1:3]]), torch.cat([y[:1], y])
        twice_a = torch.cat([a[:1], 0.25 * a[1:3], a[3:], 0.75 * a[1:3]])
        twice_b = torch.cat([0.5 * b[:1], 0.5 * b[:1], b[1:]])
        close = {"rtol": 0, "atol": solver.accuracy}
        torch.testing.assert_close(solver(twice_x, twice_y, twice_a, twice_b), solver(x, y, a, b), **close)

    @clouds_except()
    def test_float32(self, solver):
        arguments = [t.float() for t in weighted_clouds()]
        single, double = solver(*arguments), solver(*(t.double() for t in arguments))
        assert single.dtype == F32
        torch.testing.assert_close(single.double(), double, rtol=1e-5, atol=1e-5)

    @clouds_except(*(name for name, s in CLOUD_SOLVERS.items() if not s.batched))
    def test_batch_is_the_loop(self, solver):
        x, y, a, b = weighted_clouds(batch=(2, 2))
        a[0, 1, 2] = 0
        a = a / a.sum(-1, keepdim=True)
        together = solver(x, y, a, b)
        assert together.shape == (2, 2)
        for i in np.ndindex(2, 2):
            alone = solver(x[i], y[i], a[i], b[i])
            torch.testing.assert_close(together[i], alone, rtol=0, atol=solver.accuracy)

    @clouds_except()
    def test_one_point(self, solver):
        x, y, a, b = weighted_clouds()
        one, whole = x[:1], torch.ones(1, dtype=F64)
        for value in (solver(one, y, whole, b), solver(x, y[:1], a, whole), solver(one, y[:1], whole, whole)):
            assert torch.isfinite(value)
            assert value >= -solver.accuracy
        torch.testing.assert_close(
            solver(one, y, whole, b), solver(y, one, b, whole), rtol=0, atol=solver.accuracy
        )

    @clouds_except()
    def test_gradients_are_finite_where_points_coincide(self, solver):
        x, y, a, b = weighted_clouds()
        for arguments in [
            (x, x, a, a),  # identical clouds
            (x[:1].expand(4, 2), x[:1].expand(3, 2), problems.weights(4), problems.weights(3)),  # one place
            (torch.cat([x[:2], x[:2], x]), torch.cat([x[:3], y]), problems.weights(11), problems.weights(8)),
        ]:
            x, y, a, b = (t.clone().requires_grad_() for t in arguments)
            value = solver(x, y, a / a.sum(), b / b.sum())
            assert torch.isfinite(value)
            for gradient in torch.autograd.grad(value, (x, y, a, b), allow_unused=True):
                assert gradient is None or torch.isfinite(gradient).all()

    @clouds_except()
    def test_float32_gradients_are_finite_where_points_coincide(self, solver):
        x, _, a, _ = (t.float() for t in weighted_clouds())
        left, right = x.clone().requires_grad_(), x.clone().requires_grad_()
        gradients = torch.autograd.grad(solver(left, right, a, a), (left, right), allow_unused=True)
        for gradient in gradients:
            assert gradient is None or torch.isfinite(gradient).all()

    @clouds_except(*BIASED)
    def test_nothing_lies_between_identical_clouds(self, solver):
        """Of the regularised problems only the divergence takes its bias out."""
        x, _, a, _ = weighted_clouds()
        value = solver(x, x, a, a)
        # A root turns a rounding of u into √u.
        assert abs(value).item() <= (solver.accuracy if solver.degree == 2 else 1e-7)
        assert abs(solver(x.float(), x.float(), a.float(), a.float())).item() <= 1e-3


@st.composite
def instances(draw: st.DrawFn, largest: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    """Problems of all sizes: costs with or without ties, weights with or without zeros, batches or none."""
    n, m = draw(st.integers(1, largest)), draw(st.integers(1, largest))
    batch = draw(st.sampled_from([(), (1,), (3,), (2, 2)]))
    rng = problems.generator(draw(st.integers(0, 2**32 - 1)))
    C = torch.rand(*batch, n, m, generator=rng, dtype=F64)
    if draw(st.booleans()):
        C = (4 * C).round()
    sides = []
    for k in (n, m):
        w = torch.rand(*batch, k, generator=rng, dtype=F64) ** 3 + 1e-6
        if k > 1 and draw(st.booleans()):
            w[..., draw(st.integers(0, k - 1))] = 0
        sides.append(w / w.sum(-1, keepdim=True))
    return C + draw(st.sampled_from([0.0, -0.5])), *sides


decades = st.floats(-6, 0).map(lambda e: 10**e)


def test_matrix_free_from_a_cloud_to_itself():
    """Far points hardly exchange mass, so that the plan is almost block diagonal, and still it is found."""
    x, _, a, _ = weighted_clouds()
    for eps in (1.0, 0.3, 0.1, 0.01):
        matrix = sinkhorn(costs.sqeuclidean(x, x), a, a, eps=eps, tol=1e-9)
        free = sinkhorn(costs.PointCloudCost(x, x), a, a, eps=eps, tol=1e-9, max_iter=300)
        torch.testing.assert_close(free.value, matrix.value, rtol=0, atol=1e-8)
        torch.testing.assert_close(free.plan, matrix.plan, rtol=0, atol=1e-7)


def spread(C: Tensor) -> float:
    """The range of the costs; 1 if they are all the same."""
    return (C.max() - C.min()).item() or 1.0


class TestDecades:
    """Any size, weights, batch, dtype, and ε from 10⁻⁶ to 1 times the range of the costs."""

    @given(instances(), decades)
    @settings(max_examples=60, deadline=None)
    def test_sinkhorn(self, instance, share):
        C, a, b = instance
        eps = share * spread(C)
        result = sinkhorn(C, a, b, eps=eps)
        assert result.converged
        assert (result.marginal_error <= 1e-6).all()
        assert (result.plan >= 0).all()
        assert (abs(result.plan.sum((-2, -1)) - 1) <= 1e-6).all()
        for part in (result.value, result.f, result.g):
            assert torch.isfinite(part).all()
        # exact ≤ ⟨C, P⟩ ≤ value ≤ exact + ε · entropy, where a marginal error moves mass at up to max|f|.
        slack = 2e-6 * max(1, result.f.abs().max().item(), result.g.abs().max().item())
        exact = emd(C, a, b).value
        entropy = torch.minimum(-torch.special.xlogy(a, a).sum(-1), -torch.special.xlogy(b, b).sum(-1))
        assert (exact <= result.cost + slack).all()
        assert (result.cost <= result.value + slack).all()
        assert (result.value <= exact + eps * entropy + slack).all()

    @given(instances(), decades)
    @settings(max_examples=40, deadline=None)
    def test_sinkhorn_in_float32(self, instance, share):
        C, a, b = (t.float() for t in instance)
        a, b = (w / w.sum(-1, keepdim=True) for w in (a, b))
        eps = share * spread(C)
        single = sinkhorn(C, a, b, eps=eps, tol=1e-5)
        double = sinkhorn(C.double(), a.double(), b.double(), eps=eps)
        assert single.converged
        for part in (single.value, single.f, single.g, single.plan):
            assert part.dtype == F32
            assert torch.isfinite(part).all()
        size = max(1, double.f.abs().max().item(), double.g.abs().max().item())
        torch.testing.assert_close(single.value.double(), double.value, rtol=1e-6, atol=2e-5 * size)

    @given(instances(), decades, st.sampled_from(["l2", "entropy"]), st.booleans())
    @settings(max_examples=40, deadline=None)
    def test_smooth(self, instance, share, regulariser, semi):
        C, a, b = instance
        gamma = share * spread(C)
        problem = Squared(gamma) if regulariser == "l2" else Entropic(gamma)
        solver = smooth(problem, gamma, regulariser=regulariser, semi=semi)
        certify(dataclasses.replace(solver, accuracy=2e-6), C, a, b, tol=1e-6)

    @given(instances(), decades, st.floats(-2, 3), st.sampled_from(["kl", "tv"]))
    @settings(max_examples=40, deadline=None)
    def test_unbalanced(self, instance, share, log_rho, divergence):
        C, a, b = instance
        C = C - C.min()
        eps, rho = share * spread(C), 10**log_rho * spread(C)
        b = 1.7 * b
        result = sinkhorn_unbalanced(C, a, b, eps=eps, rho=rho, divergence=divergence)
        assert result.converged
        problem = Relaxed(eps, rho, divergence)
        for part in (result.value, result.f, result.g, result.plan):
            assert torch.isfinite(part).all()
        assert (result.plan >= 0).all()
        # ``tol`` of the mass may be missing, at the price of a potential.
        slack = 1e-5 * max(1, rho, result.f.abs().max().item(), result.g.abs().max().item())
        primal = problem.primal(C, a, b, result.plan, 1.0)
        dual = problem.dual(C, a, b, result.f, result.g, 1.0)
        torch.testing.assert_close(primal, result.value, rtol=0, atol=slack)
        torch.testing.assert_close(dual, result.value, rtol=0, atol=slack)

    @given(instances(), st.floats(0.01, 1))
    @settings(max_examples=40, deadline=None)
    def test_partial(self, instance, mass):
        C, a, b = instance
        certify(Solver(lambda C, a, b, u, tol: partial(C, a, b, mass=mass), Part(mass)), C, a, b)

    @given(instances(), decades)
    @settings(max_examples=25, deadline=None)
    def test_ipot_is_bounded_by_its_certificate(self, instance, share):
        C, a, b = instance
        result = ipot(C, a, b, beta=share * spread(C), n_outer=20)
        exact = emd(C, a, b).value
        assert (result.plan >= 0).all()
        torch.testing.assert_close(result.plan.sum(-2), b, rtol=0, atol=1e-12)
        bound = pairing(a, result.f) + pairing(b, result.g)
        assert (bound <= exact + 1e-9).all()
        # Rows that are wrong in total by δ can save δ × spread.
        assert (result.cost >= exact - result.marginal_error * spread(C) - 1e-9).all()

    @given(instances(), decades)
    @settings(max_examples=25, deadline=None)
    def test_an_exact_plan_is_below_all_others(self, instance, share):
        C, a, b = instance
        result = certify(SOLVERS["emd"], C, a, b)
        assert (result.value <= inner(C, a[..., :, None] * b[..., None, :]) + 1e-12).all()
        flat = C.reshape(-1, *C.shape[-2:])[0], a.reshape(-1, a.shape[-1])[0], b.reshape(-1, b.shape[-1])[0]
        other = linear_program(*flat)
        torch.testing.assert_close(other.value, result.value.reshape(-1)[0], rtol=0, atol=1e-10)


@given(
    n=st.integers(1, 6), m=st.integers(1, 6), seed=st.integers(0, 2**32 - 1), log_eps=st.floats(-3, 1.5),
    cost=st.sampled_from(["sqeuclidean", "euclidean"]),
)  # fmt: skip
@settings(max_examples=10, deadline=None)
def test_a_hundred_float32_divergences_are_non_negative(n, m, seed, log_eps, cost):
    """In all a thousand pairs, of which many nearly coincide: there the three values cancel."""
    rng = problems.generator(seed)
    x = torch.randn(100, n, 2, generator=rng)
    distance = 10 ** torch.empty(100, 1, 1).uniform_(-4, 1, generator=rng)
    y = x[:, torch.arange(m) % n] + distance * torch.randn(100, m, 2, generator=rng)
    S = otbook.sinkhorn_divergence(x, y, eps=10**log_eps, cost=cost, tol=1e-8)
    assert S.dtype == F32
    assert torch.isfinite(S).all()
    assert S.min() >= 0


def pot(name: str, C: np.ndarray, a: np.ndarray, b: np.ndarray) -> float:
    """The value of the same problem by POT, in this book's conventions."""
    match name:
        case "emd":
            return ot.emd2(a, b, C)
        case "sinkhorn":
            # Its regulariser is Σ P log P: that of a⊗b is Σ a log a + Σ b log b.
            P = ot.sinkhorn(a, b, C, 0.3, method="sinkhorn_log", stopThr=1e-13, numItermax=100_000)
            entropy = (P * np.log(P)).sum() - (a * np.log(a)).sum() - (b * np.log(b)).sum()
            return (P * C).sum() + 0.3 * entropy
        case "smooth_ot, l2":
            P = ot.smooth.smooth_ot_dual(a, b, C, 2, reg_type="l2", stopThr=1e-15, numItermax=100_000)
            return (P * C).sum() + (P**2).sum()
        case "unbalanced, kl":
            P = ot.unbalanced.sinkhorn_unbalanced(a, b, C, 0.2, 2, stopThr=1e-14, numItermax=100_000)
        case "partial":
            return (ot.partial.partial_wasserstein(a, b, C, m=0.6) * C).sum()
    P = torch.from_numpy(P)
    return SOLVERS[name].problem.primal(*(torch.from_numpy(t) for t in (C, a, b)), P, 1.0).item()


@pytest.mark.parametrize("name", ["emd", "sinkhorn", "smooth_ot, l2", "unbalanced, kl", "partial"])
@pytest.mark.filterwarnings("ignore:scipy.optimize:DeprecationWarning")  # inside POT
def test_agrees_with_pot(name):
    C, a, b = random_problem()
    C = C + 0.5  # no negative costs, which POT's solver of partial problems does not expect
    ours = SOLVERS[name](C, a, b).value.item()
    assert abs(pot(name, C.numpy(), a.numpy(), b.numpy()) - ours) <= 1e-6


def test_clouds_agree_with_pot():
    x, y, a, b = weighted_clouds()
    arrays = [t.numpy() for t in (x, y, a, b)]
    line = ot.wasserstein_1d(arrays[0][:, 0], arrays[1][:, 0], arrays[2], arrays[3], p=2) ** 0.5
    assert abs(CLOUD_SOLVERS["wasserstein_1d"](x, y, a, b).item() - line) <= 1e-12
    (m0, S0), (m1, S1) = moments(x, a), moments(y, b)
    gaussian = ot.gaussian.bures_wasserstein_distance(*(t.numpy() for t in (m0, m1, S0, S1)))
    assert abs(CLOUD_SOLVERS["bures_wasserstein"](x, y, a, b).item() - gaussian) <= 1e-10
    # Both end in stationary plans; on this instance ours is not the worse one.
    spaces = [costs.euclidean(t, t).numpy() for t in (x, y)]
    stationary = ot.gromov.gromov_wasserstein2(*spaces, *arrays[2:], loss_fun="square_loss", tol_rel=1e-12)
    assert CLOUD_SOLVERS["gromov_wasserstein"](x, y, a, b).item() <= stationary + 1e-6


BAD_PROBLEMS = {
    "NaN cost": ({"C": torch.full((3, 2), math.nan)}, "C holds NaN at C.0, 0."),
    "cost −∞": ({"C": torch.full((3, 2), -math.inf)}, "C holds −inf"),
    "no way out": ({"C": torch.tensor([[1.0, 2.0], [math.inf, math.inf], [1.0, 1.0]])}, "all of row 1"),
    "no way in": ({"C": torch.tensor([[1.0, math.inf]] * 3)}, "all of column 1"),
    "no points": ({"C": torch.ones(3, 0)}, "an empty measure"),
    "a vector": ({"C": torch.ones(3)}, "C must have shape"),
    "half precision": ({"C": torch.ones(3, 2, dtype=torch.float16)}, r"float16; use float32 or float64"),
    "complex": ({"C": torch.ones(3, 2, dtype=torch.complex64)}, "complex64; use float32 or float64"),
    "negative weight": ({"a": [0.5, 0.6, -0.1]}, "a holds a negative"),
    "NaN weight": ({"b": [math.nan, 1.0]}, "b holds nan"),
    "infinite weight": ({"b": [math.inf, 1.0]}, "b holds inf"),
    "too many weights": ({"a": [0.25] * 4}, r"a must have shape \(…, 3\)"),
    "one weight": ({"b": 1.0}, r"b must have shape \(…, 2\)"),
    "other dtype": ({"b": torch.tensor([0.5, 0.5], dtype=F64)}, r"b is float64 .* b\.to\("),
    "other batch": ({"a": torch.full((4, 3), 1 / 3)}, r"a has batch shape \(4,\), but C has \(\)"),
    "no mass": ({"a": [0.0, 0.0, 0.0]}, "a has (mass 0|no mass)"),
}


@every_solver
@pytest.mark.parametrize(("bad", "message"), BAD_PROBLEMS.values(), ids=BAD_PROBLEMS)
def test_bad_problem(solver, bad, message):
    good = {"C": torch.ones(3, 2), "a": torch.tensor([0.2, 0.3, 0.5]), "b": torch.tensor([0.4, 0.6])}
    with pytest.raises(ValueError, match=message):
        solver(**{**good, **bad})


@balanced
def test_masses_must_be_one(solver):
    with pytest.raises(ValueError, match="a has mass 2, not 1.*divide by the sum"):
        solver(torch.ones(3, 2), [1.0, 0.5, 0.5], [0.5, 0.5])


@every_solver
@pytest.mark.parametrize(("bad", "what"), [({"C": "cost"}, "C"), ({"a": {"weight": 1}}, "a")])
def test_something_else_than_numbers(solver, bad, what):
    with pytest.raises(TypeError, match=f"{what} must be a tensor, an array or a list of numbers"):
        solver(**{"C": torch.ones(3, 2), **bad})


OPTIONS = {
    "eps": lambda value: sinkhorn(torch.ones(3, 2), eps=value),
    "gamma": lambda value: smooth_ot(torch.ones(3, 2), gamma=value),
    "beta": lambda value: ipot(torch.ones(3, 2), beta=value, n_outer=1),
    "rho": lambda value: sinkhorn_unbalanced(torch.ones(3, 2), eps=1.0, rho=value),
    "mass": lambda value: partial(torch.ones(3, 2), mass=value),
    "tol": lambda value: sinkhorn(torch.ones(3, 2), eps=1.0, tol=value),
}


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_bad_options(option, value):
    with pytest.raises(ValueError, match=f"{option} must be a finite number above 0"):
        OPTIONS[option](value)


@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_that_is_no_number(option):
    with pytest.raises(TypeError, match=f"{option} must be a number, but a str was given"):
        OPTIONS[option]("much")


@clouds_except(*SOLVERS, "bures_wasserstein", "entropic_cost of Gaussians", "wasserstein_1d")
@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.full((3, 2), math.nan, dtype=F64), "holds nan"),
        (torch.full((3, 2), math.inf, dtype=F64), "holds inf"),
        (torch.ones(0, 2, dtype=F64), "empty"),
        (torch.ones(3, 2), "float32|float64"),
    ],
    ids=["NaN", "∞", "empty", "other dtype"],
)
def test_bad_cloud(solver, bad, message):
    _, y, _, b = weighted_clouds()
    with pytest.raises(ValueError, match=message):
        solver(bad, y, None, b)
