"""What a solver returns: one frozen object with the plan, the potentials and the diagnostics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor


class ConvergenceWarning(UserWarning):
    """A solver stopped before it reached its tolerance; its result says ``converged=False``."""


@dataclass(frozen=True, eq=False, repr=False)
class OTResult:
    """The solution of a transport problem between n and m points.

    Attributes:
        value: the minimised objective, regulariser included, shape (…).
        cost: transport cost ⟨C, P⟩ of the plan, in units of C, shape (…).
        f: first dual potential, shape (…, n), or None where there is no dual.
        g: second dual potential, shape (…, m), or None where there is no dual.
        n_iter: number of iterations, 0 for direct solvers.
        marginal_error: ‖P1 − a‖₁ + ‖Pᵀ1 − b‖₁, shape (…).
        converged: whether every problem of the batch reached the tolerance.
        plan: optimal coupling P, shape (…, n, m); computed on first use.

    Example:
        >>> import torch
        >>> from otbook import emd
        >>> result = emd(torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
        >>> result.plan
        tensor([[0.5000, 0.0000],
                [0.0000, 0.5000]])
    """

    value: Tensor
    cost: Tensor
    f: Tensor | None
    g: Tensor | None
    n_iter: int
    marginal_error: Tensor
    converged: bool
    _plan: Tensor | Callable[[], Tensor] = field()
    _recording: bool = field(default_factory=torch.is_grad_enabled)

    @property
    def plan(self) -> Tensor:
        if callable(self._plan):
            # With the gradients that it would have had at once, wherever it is read first.
            with torch.set_grad_enabled(self._recording):
                object.__setattr__(self, "_plan", self._plan())
        return self._plan

    def __repr__(self) -> str:
        def show(t: Tensor) -> str:
            return f"{t.item():.6g}" if t.ndim == 0 else f"tensor of shape {tuple(t.shape)}"

        return (
            f"OTResult(value={show(self.value.detach())}, cost={show(self.cost.detach())}, "
            f"n_iter={self.n_iter}, marginal_error={self.marginal_error.max().item():.2g}, "
            f"converged={self.converged})"
        )
