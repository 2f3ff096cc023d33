"""Checks shared by the tests of every solver; ``test_checks.py`` shows that each of them can fail."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from otbook import OTResult

Solver = Callable[[Tensor, Tensor, Tensor], OTResult]


def assert_coupling(P: Tensor, a: Tensor, b: Tensor, *, atol: float = 1e-12) -> None:
    """P is finite, non-negative and has the marginals a and b, entry by entry."""
    assert torch.isfinite(P).all(), "the plan has entries that are not finite"
    assert (P >= 0).all(), f"the plan has a negative entry, {P.min().item():.3g}"
    torch.testing.assert_close(P.sum(-1), a.expand(P.shape[:-1]), rtol=0, atol=atol)
    torch.testing.assert_close(P.sum(-2), b.expand(P.sum(-2).shape), rtol=0, atol=atol)


def assert_dual_certificate(
    C: Tensor, a: Tensor, b: Tensor, f: Tensor, g: Tensor, value: Tensor, *, atol: float = 1e-10
) -> None:
    """f⊕g ≤ C everywhere and ⟨a, f⟩ + ⟨b, g⟩ = value: by weak duality nothing is cheaper than value."""
    assert torch.isfinite(f).all(), "the potential f has entries that are not finite"
    assert torch.isfinite(g).all(), "the potential g has entries that are not finite"
    excess = (f[..., :, None] + g[..., None, :] - C).max().item()
    assert excess <= atol, f"the potentials are infeasible: f⊕g exceeds C by {excess:.3g}"
    torch.testing.assert_close((a * f).sum(-1) + (b * g).sum(-1), value, rtol=0, atol=atol)


def assert_permutation_equivariant(
    solve: Solver, C: Tensor, a: Tensor, b: Tensor, *, atol: float = 1e-10
) -> None:
    """Renumbering the points renumbers the plan. For problems whose optimal plan is unique."""
    rng = torch.Generator().manual_seed(1)
    s = torch.randperm(C.shape[-2], generator=rng)
    t = torch.randperm(C.shape[-1], generator=rng)
    before, after = solve(C, a, b), solve(C[..., s, :][..., t], a[..., s], b[..., t])
    torch.testing.assert_close(after.value, before.value, rtol=0, atol=atol)
    torch.testing.assert_close(after.plan, before.plan[..., s, :][..., t], rtol=0, atol=atol)


def assert_transpose_symmetric(
    solve: Solver, C: Tensor, a: Tensor, b: Tensor, *, atol: float = 1e-10
) -> None:
    """Exchanging source and target transposes the plan. For problems whose optimal plan is unique."""
    forth, back = solve(C, a, b), solve(C.mT, b, a)
    torch.testing.assert_close(back.value, forth.value, rtol=0, atol=atol)
    torch.testing.assert_close(back.plan, forth.plan.mT, rtol=0, atol=atol)


def assert_shift_invariant(solve: Solver, C: Tensor, a: Tensor, b: Tensor, *, atol: float = 1e-10) -> None:
    """Adding u⊕v to the cost adds ⟨a, u⟩ + ⟨b, v⟩ to the value and leaves the plan as it is."""
    u = torch.linspace(-1, 2, C.shape[-2], dtype=C.dtype, device=C.device)
    v = torch.linspace(1, -0.5, C.shape[-1], dtype=C.dtype, device=C.device)
    before, after = solve(C, a, b), solve(C + u[:, None] + v, a, b)
    shift = (a * u).sum(-1) + (b * v).sum(-1)
    torch.testing.assert_close(after.value, before.value + shift, rtol=0, atol=atol)
    torch.testing.assert_close(after.plan, before.plan, rtol=0, atol=atol)


def close(measured: Tensor, expected: Tensor | float, atol: float = 1e-12) -> None:
    """Two tensors agree entry by entry; ``expected`` may be a number, and has the dtype of ``measured``."""
    expected = torch.as_tensor(expected, dtype=measured.dtype, device=measured.device)
    torch.testing.assert_close(measured, expected.expand_as(measured), rtol=0, atol=atol)
