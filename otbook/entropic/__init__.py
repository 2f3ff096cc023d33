"""Entropic optimal transport: solvers for min ⟨C, P⟩ + ε KL(P ‖ a⊗b)."""

from ._divergence import sinkhorn_divergence
from ._sinkhorn import sinkhorn

__all__ = ["sinkhorn", "sinkhorn_divergence"]
