"""otbook: optimal transport for deep learning, the package behind the executable book.

Samples → cost → solver → result → loss, map or flow → figure and claim.
"""

from . import (
    barycenter,
    costs,
    exact,
    flows,
    gaussian,
    gromov,
    learning,
    meanfield,
    monge_ampere,
    onedim,
    semidiscrete,
)
from ._result import ConvergenceWarning, OTResult
from .costs import PointCloudCost
from .entropic import (
    ipot,
    partial,
    sinkhorn,
    sinkhorn_divergence,
    sinkhorn_sharded,
    sinkhorn_unbalanced,
    smooth_ot,
)
from .exact import assignment, auction, emd, linear_program
from .gaussian import bures_wasserstein
from .gromov import (
    entropic_gromov_wasserstein,
    fused_gromov_wasserstein,
    gromov_wasserstein,
    unbalanced_gromov_wasserstein,
)
from .onedim import (
    max_sliced_direction,
    max_sliced_wasserstein,
    quantile_map,
    sliced_wasserstein,
    wasserstein_1d,
)

__version__ = "0.1.0"

__all__ = [
    "ConvergenceWarning",
    "OTResult",
    "PointCloudCost",
    "assignment",
    "auction",
    "barycenter",
    "bures_wasserstein",
    "costs",
    "emd",
    "entropic_gromov_wasserstein",
    "exact",
    "flows",
    "fused_gromov_wasserstein",
    "gaussian",
    "gromov",
    "gromov_wasserstein",
    "ipot",
    "learning",
    "linear_program",
    "max_sliced_direction",
    "max_sliced_wasserstein",
    "meanfield",
    "monge_ampere",
    "onedim",
    "partial",
    "quantile_map",
    "semidiscrete",
    "sinkhorn",
    "sinkhorn_divergence",
    "sinkhorn_sharded",
    "sinkhorn_unbalanced",
    "sliced_wasserstein",
    "smooth_ot",
    "unbalanced_gromov_wasserstein",
    "wasserstein_1d",
]
