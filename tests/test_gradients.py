"""Derivatives of what `sinkhorn` returns, beyond the envelope theorem: implicit and unrolled."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from otbook import ConvergenceWarning, OTResult, sinkhorn
from otbook.costs import PointCloudCost
from otbook.entropic import _kernel, _laplacian

from . import problems

F64 = torch.float64
FIELDS = ("value", "cost", "plan", "f", "g")
#: The fast mode compares one random projection of the Jacobian: a wrong entry still shows.
PRECISE = {"atol": 1e-6, "rtol": 1e-5, "fast_mode": True}


def solve(C: Tensor | PointCloudCost, a: Tensor, b: Tensor, eps: float = 0.3, **options) -> OTResult:
    """Weights that move within the simplex, as their sum is divided out."""
    return sinkhorn(
        C, a / a.sum(-1, keepdim=True), b / b.sum(-1, keepdim=True), eps=eps, tol=1e-12, **options
    )


def instance(n: int = 4, m: int = 3, *, zeros: bool = False) -> list[Tensor]:
    C, a, b = problems.random_problem(n, m)
    if zeros:
        a[1], b[0] = 0, 0
    return [t.requires_grad_() for t in (C, a / a.sum(), b / b.sum())]


@pytest.mark.parametrize("field", FIELDS)
class TestImplicit:
    def test_gradcheck(self, field):
        assert gradcheck(lambda *t: getattr(solve(*t), field), instance(), **PRECISE)
        assert gradcheck(lambda *t: getattr(solve(*t), field), instance(3, 5), **PRECISE)

    def test_at_a_small_eps(self, field):
        C, a, b = instance(6, 5)
        eps = 0.02 * C.max().item()
        assert gradcheck(
            lambda *t: getattr(solve(*t, eps=eps), field), (C, a, b), atol=1e-4, rtol=1e-4, fast_mode=True
        )

    def test_zero_weights(self, field):
        C, a, b = instance(5, 4, zeros=True)
        a, b = a.detach(), b.detach()
        assert gradcheck(lambda C: getattr(solve(C, a, b), field), C, **PRECISE)

    def test_one_sided_at_a_zero_weight(self, field):
        # Mass moved to an empty atom: the derivative in its weight is the one from the right.
        C, a, b = instance(5, 4, zeros=True)
        C, a = C.detach(), a.detach()
        torch.manual_seed(1)
        result = getattr(sinkhorn(C, a, b, eps=0.3, tol=1e-13), field)
        probe = torch.rand_like(result)
        (gradient,) = torch.autograd.grad((probe * result).sum(), b)
        slopes = []
        for h in (1e-4, 2e-4):
            moved = b.detach().clone()
            moved[0], moved[1] = h, moved[1] - h
            slopes.append(
                ((getattr(sinkhorn(C, a, moved, eps=0.3, tol=1e-13), field) - result) * probe).sum() / h
            )
        torch.testing.assert_close(2 * slopes[0] - slopes[1], gradient[0] - gradient[1], rtol=1e-5, atol=1e-5)

    def test_batch(self, field):
        C, a, b = problems.random_problem(3, 4, batch=(2,))
        inputs = (C.requires_grad_(), a[0].requires_grad_(), b.requires_grad_())  # one source for both
        assert gradcheck(lambda *t: getattr(solve(*t), field), inputs, **PRECISE)

    @pytest.mark.parametrize("cost", ["sqeuclidean", "euclidean", "cosine"])
    def test_clouds(self, field, cost):
        generator = problems.generator(5)
        x = torch.rand(4, 2, generator=generator, dtype=F64, requires_grad=True)
        y = torch.rand(3, 2, generator=generator, dtype=F64, requires_grad=True)
        _, a, b = instance()
        assert gradcheck(
            lambda x, y, *w: getattr(solve(PointCloudCost(x, y, cost), *w, eps=0.1), field),
            (x, y, a, b),
            **PRECISE,
        )

    def test_float32(self, field):
        C, a, b = instance(20, 15)
        probe = torch.rand_like(getattr(solve(C, a, b), field))

        def gradients(*inputs):
            result = getattr(
                sinkhorn(*inputs, eps=0.3, tol=1e-5 if inputs[0].dtype == torch.float32 else 1e-12), field
            )
            return torch.autograd.grad((result * probe.to(result.dtype)).sum(), inputs)

        rough = gradients(*(t.detach().float().requires_grad_() for t in (C, a, b)))
        for one, other in zip(rough, gradients(C, a, b), strict=True):
            torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-4 * other.abs().max().item())

    def test_unrolled_agrees(self, field):
        inputs = instance()
        probe = torch.rand_like(getattr(solve(*inputs), field))
        one, other = (
            torch.autograd.grad((getattr(solve(*inputs, gradient=how), field) * probe).sum(), inputs)
            for how in ("implicit", "unrolled")
        )
        for left, right in zip(one, other, strict=True):
            # The unrolled run is exact for the point it stopped at, 1e-12 from the solution.
            torch.testing.assert_close(left - left.mean(), right - right.mean(), rtol=0, atol=1e-9)

    @pytest.mark.parametrize("how", ["implicit", "unrolled"])
    def test_on_another_device(self, field, how, device):
        here, probe = instance(5, 4, zeros=how == "implicit"), None
        there = [t.detach().to(device).requires_grad_() for t in here]
        gradients = []
        for inputs in (here, there):
            result = getattr(solve(*inputs, gradient=how), field)
            probe = torch.rand_like(result) if probe is None else probe.to(device)
            assert result.device == inputs[0].device
            gradients.append(torch.autograd.grad((probe * result).sum(), inputs))
        for expected, found in zip(*gradients, strict=True):
            assert found.device == device
            torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=1e-8)


class TestSecondDerivatives:
    def test_of_the_value(self):
        assert gradgradcheck(lambda *t: solve(*t).value, instance(), **PRECISE)

    def test_with_zero_weights_and_a_batch(self):
        C, a, b = instance(5, 4, zeros=True)
        a, b = a.detach(), b.detach()
        assert gradgradcheck(lambda C: solve(C, a, b).value, C, **PRECISE)
        C, a, b = problems.random_problem(3, 4, batch=(2,))
        assert gradgradcheck(lambda C: solve(C, a, b).value, C.requires_grad_(), **PRECISE)

    @pytest.mark.parametrize("cost", ["sqeuclidean", "euclidean", "cosine"])
    @pytest.mark.parametrize("moving", ["x", "y", "both"])
    def test_through_clouds(self, cost, moving):
        generator = problems.generator(6)
        x, y = (torch.rand(k, 2, generator=generator, dtype=F64) for k in (4, 3))
        _, a, b = (t.detach() for t in instance())
        inputs = [z.requires_grad_(name in moving or moving == "both") for z, name in ((x, "x"), (y, "y"))]
        assert gradgradcheck(
            lambda x, y: solve(PointCloudCost(x, y, cost), a, b, eps=0.1).value, inputs, **PRECISE
        )

    def test_on_another_device(self, device):
        (x, y, a, b), curvatures = problems.clouds(4, 3), []
        for place in ("cpu", device):
            z = x.detach().to(place).requires_grad_()
            value = solve(PointCloudCost(z, y.to(place)), a.to(place), b.to(place)).value
            (slope,) = torch.autograd.grad(value, z, create_graph=True)
            curvatures.append(*torch.autograd.grad(slope[0, 0], z))
        assert curvatures[1].device == device
        torch.testing.assert_close(curvatures[1].cpu(), curvatures[0], rtol=0, atol=1e-8)

    def test_the_hessian_in_the_cost_is_negative(self):
        # The value is a minimum of functions that are linear in C, so it is concave.
        C, a, b = (t.detach() for t in instance())
        H = torch.autograd.functional.hessian(lambda C: solve(C, a, b).value, C).reshape(12, 12)
        torch.testing.assert_close(H, H.T, rtol=0, atol=1e-9)
        assert torch.linalg.eigvalsh(H).max() <= 1e-9

    def test_third_derivatives_are_refused(self):
        C, a, b = instance()
        (gradient,) = torch.autograd.grad(solve(C, a, b).value, C, create_graph=True)
        (second,) = torch.autograd.grad(gradient.square().sum(), C, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            second.sum().backward()


class TestStructure:
    def test_the_plan_keeps_its_marginals(self):
        # Whatever moves, P1 = a: the gradients of row sums in C vanish, and those in a are the identity.
        C, a, b = instance()
        P = sinkhorn(C, a, b, eps=0.3, tol=1e-13).plan
        in_C, in_a = torch.autograd.grad(P.sum(1)[2], (C, a))
        torch.testing.assert_close(in_C, torch.zeros_like(C), rtol=0, atol=1e-11)
        expected = torch.zeros_like(a)
        expected[2] = 1
        torch.testing.assert_close(in_a - in_a.mean(), expected - expected.mean(), rtol=0, atol=1e-11)

    def test_a_shift_of_the_cost_moves_the_potentials_alone(self):
        C, a, b = instance()
        result = solve(C, a, b)
        for t, total in ((result.plan, 0.0), (result.cost, 1.0), (result.f, 0.5 * 4), (result.g, 0.5 * 3)):
            (gradient,) = torch.autograd.grad(t.sum(), C, retain_graph=True)
            assert abs(gradient.sum().item() - total) < 1e-10

    def test_forbidden_pairs(self):
        C, a, b = instance(5, 4)
        C = C.detach()
        C[0, 1] = C[3, 2] = torch.inf
        C.requires_grad_()
        result = solve(C, a, b)
        for field in FIELDS:
            (gradient,) = torch.autograd.grad(getattr(result, field).sum(), C, retain_graph=True)
            assert torch.isfinite(gradient).all()
            assert (gradient[torch.isinf(C)] == 0).all()

    @pytest.mark.parametrize("cost", ["sqeuclidean", "euclidean", "cosine"])
    def test_no_nan_where_points_coincide(self, cost):
        x = torch.rand(5, 2, generator=problems.generator(7), dtype=F64) + 0.1
        x[1] = x[0]
        x.requires_grad_()
        result = sinkhorn(PointCloudCost(x, x.detach()[:4], cost), eps=0.1)
        for field in FIELDS:
            (gradient,) = torch.autograd.grad(getattr(result, field).sum(), x, retain_graph=True)
            assert torch.isfinite(gradient).all()

    def test_large_problems_need_no_square_of_the_square(self):
        n = 1500
        x = torch.rand(n, 2, generator=problems.generator(8), dtype=F64)
        y = torch.rand(n, 2, generator=problems.generator(9), dtype=F64).requires_grad_()
        result = sinkhorn(PointCloudCost(x, y), eps=0.1, tol=1e-9)
        (gradient,) = torch.autograd.grad(result.cost, y)
        direction = torch.rand(n, 2, generator=problems.generator(10), dtype=F64) - 0.5
        ends = [
            sinkhorn(PointCloudCost(x, (y + h * direction).detach()), eps=0.1, tol=1e-9).cost
            for h in (-1e-4, 1e-4)
        ]
        torch.testing.assert_close(
            (gradient * direction).sum(), (ends[1] - ends[0]) / 2e-4, rtol=1e-4, atol=0
        )

    def test_a_system_that_is_not_solved_warns(self, monkeypatch):
        x, y = (torch.rand(30, 2, generator=problems.generator(k), dtype=F64) for k in (1, 2))
        result = sinkhorn(PointCloudCost(x.requires_grad_(), y), eps=1e-2)
        monkeypatch.setattr(_laplacian, "SOLVE_LIMIT", 1)
        monkeypatch.setattr(_kernel, "_FACTORISABLE", 0)
        with pytest.warns(ConvergenceWarning, match="implicit gradient"):
            result.cost.backward()


class TestUnrolled:
    def test_is_sinkhorn_step_by_step(self):
        C, a, b = (t.detach() for t in instance())
        f, g = torch.zeros_like(a), torch.zeros_like(b)
        for _ in range(4):
            f = -0.3 * torch.logsumexp((g - C) / 0.3 + b.log(), 1)
            g = -0.3 * torch.logsumexp((f[:, None] - C) / 0.3 + a.log()[:, None], 0)
        f = -0.3 * torch.logsumexp((g - C) / 0.3 + b.log(), 1)
        with pytest.warns(ConvergenceWarning, match="4 unrolled iterations"):
            result = sinkhorn(C, a, b, eps=0.3, tol=1e-12, max_iter=4, gradient="unrolled")
        assert (result.n_iter, result.converged) == (4, False)
        torch.testing.assert_close(result.plan, a[:, None] * b * ((f[:, None] + g - C) / 0.3).exp())

    def test_converges_and_takes_a_start(self):
        C, a, b = (t.detach() for t in instance())
        seen = []
        full = sinkhorn(C, a, b, eps=0.3, tol=1e-10)
        result = sinkhorn(
            C, a, b, eps=0.3, tol=1e-9, g0=full.g, gradient="unrolled", callback=lambda *c: seen.append(c)
        )
        assert result.converged
        assert result.n_iter <= 1
        assert len(seen) == result.n_iter + 1
        for field in FIELDS:
            torch.testing.assert_close(getattr(result, field), getattr(full, field), rtol=0, atol=1e-8)

    def test_other_names_are_refused(self):
        with pytest.raises(ValueError, match="gradient must be one of 'implicit', 'unrolled'"):
            sinkhorn(torch.zeros(2, 2), eps=1.0, gradient="autograd")
