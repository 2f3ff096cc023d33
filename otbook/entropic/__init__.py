"""Entropic optimal transport: solvers for min ⟨C, P⟩ + ε KL(P ‖ a⊗b)."""

from ._distributed import sinkhorn_sharded
from ._divergence import sinkhorn_divergence
from ._partial import partial
from ._proximal import ipot
from ._sinkhorn import sinkhorn
from ._smooth import smooth_ot
from ._unbalanced import sinkhorn_unbalanced

__all__ = [
    "ipot",
    "partial",
    "sinkhorn",
    "sinkhorn_divergence",
    "sinkhorn_sharded",
    "sinkhorn_unbalanced",
    "smooth_ot",
]
