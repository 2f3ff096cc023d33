"""Entropic optimal transport: solvers for min ⟨C, P⟩ + ε KL(P ‖ a⊗b)."""

from ._sinkhorn import sinkhorn

__all__ = ["sinkhorn"]
