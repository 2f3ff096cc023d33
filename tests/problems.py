"""Transport problems whose solution is known by construction, for the tests of every solver.

The cost of a planted problem is built backwards from its optimal plan and potentials, so the
answer owes nothing to any solver. Costs are asymmetric, weights non-uniform, and n ≠ m by default.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Problem:
    """A discrete problem (C, a, b) with an optimal plan, optimal potentials and the value."""

    C: Tensor
    a: Tensor
    b: Tensor
    plan: Tensor
    f: Tensor
    g: Tensor
    value: Tensor


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def matrix(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Standard normal entries."""
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64).to(dtype)


def weights(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Random positive weights that sum to 1 along the last axis and are far from uniform."""
    w = torch.rand(shape, generator=generator(seed), dtype=torch.float64) + 0.1
    return (w / w.sum(-1, keepdim=True)).to(dtype)


def clouds(
    n: int = 7, m: int = 5, d: int = 2, *, batch: tuple[int, ...] = (), seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Two random weighted point clouds (x, y, a, b) in general position."""
    rng = generator(seed)
    x = torch.randn(*batch, n, d, generator=rng, dtype=torch.float64)
    y = 0.7 * torch.randn(*batch, m, d, generator=rng, dtype=torch.float64) + 0.5
    return x, y, weights(*batch, n, seed=seed + 1), weights(*batch, m, seed=seed + 2)


def random_problem(
    n: int = 7, m: int = 5, *, batch: tuple[int, ...] = (), seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """A problem (C, a, b) without known answer: squared distances of two random clouds."""
    x, y, a, b = clouds(n, m, batch=batch, seed=seed)
    return (x[..., :, None, :] - y[..., None, :, :]).square().sum(-1), a, b


def planted(n: int = 7, m: int = 5, *, seed: int = 0, empty: int = 0) -> Problem:
    """An exact problem built from its certificate: C = f⊕g + slack, slack 0 on the support of P.

    The plan is the north-west corner coupling of a and b in a random order; it is the only
    optimal one, because its support has no cycle and the slack is positive elsewhere.
    ``empty`` atoms on each side carry no mass.
    """
    rng = generator(seed)
    a, b = weights(n, seed=seed + 1), weights(m, seed=seed + 2)
    if empty:
        a[:empty], b[-empty:] = 0, 0
        a, b = a / a.sum(), b / b.sum()
    rows, columns = torch.randperm(n, generator=rng), torch.randperm(m, generator=rng)
    plan = torch.zeros(n, m, dtype=torch.float64)
    left_a, left_b = a.clone(), b.clone()
    i = j = 0
    while i < n and j < m:
        r, c = rows[i], columns[j]
        mass = torch.minimum(left_a[r], left_b[c])
        plan[r, c] += mass
        left_a[r] -= mass
        left_b[c] -= mass
        if left_a[r] <= left_b[c]:
            i += 1
        else:
            j += 1
    a, b = plan.sum(1), plan.sum(0)
    f = torch.randn(n, generator=rng, dtype=torch.float64)
    g = torch.randn(m, generator=rng, dtype=torch.float64)
    slack = torch.rand(n, m, generator=rng, dtype=torch.float64) + 0.1
    C = f[:, None] + g[None, :] + torch.where(plan > 0, 0.0, slack)
    return Problem(C, a, b, plan, f, g, (a * f).sum() + (b * g).sum())


def planted_entropic(n: int = 7, m: int = 5, *, eps: float = 0.5, seed: int = 0) -> Problem:
    """An entropic problem built from its solution: C = f⊕g − ε log(P / a⊗b) for a random P > 0.

    The value is min ⟨C, P⟩ + ε KL(P ‖ a⊗b) = ⟨a, f⟩ + ⟨b, g⟩.
    """
    rng = generator(seed)
    plan = torch.rand(n, m, generator=rng, dtype=torch.float64) + 0.01
    plan = plan / plan.sum()
    a, b = plan.sum(1), plan.sum(0)
    f = torch.randn(n, generator=rng, dtype=torch.float64)
    g = torch.randn(m, generator=rng, dtype=torch.float64)
    C = f[:, None] + g[None, :] - eps * (plan / (a[:, None] * b[None, :])).log()
    return Problem(C, a, b, plan, f, g, (a * f).sum() + (b * g).sum())
