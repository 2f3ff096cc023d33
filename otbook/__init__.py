"""otbook: optimal transport for deep learning, the package behind the executable book.

Samples → cost → solver → result → loss, map or flow → figure and claim.
"""

from . import barycenter, costs, exact, gaussian, onedim
from ._result import ConvergenceWarning, OTResult
from .entropic import sinkhorn, sinkhorn_divergence
from .exact import assignment, emd, linear_program
from .gaussian import bures_wasserstein
from .onedim import quantile_map, sliced_wasserstein, wasserstein_1d

__version__ = "0.1.0"

__all__ = [
    "ConvergenceWarning",
    "OTResult",
    "assignment",
    "barycenter",
    "bures_wasserstein",
    "costs",
    "emd",
    "exact",
    "gaussian",
    "linear_program",
    "onedim",
    "quantile_map",
    "sinkhorn",
    "sinkhorn_divergence",
    "sliced_wasserstein",
    "wasserstein_1d",
]
