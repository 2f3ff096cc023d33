"""Gromov–Wasserstein transport: couplings between spaces that share no ground cost.

Each space is a square matrix of distances, similarities or edge weights between its own points. The
objective is quadratic in the plan and in general not convex, so that the solvers find stationary plans.
"""

from ._entropic import entropic_gromov_wasserstein
from ._exact import fused_gromov_wasserstein, gromov_wasserstein
from ._space import LowRankCost
from ._unbalanced import unbalanced_gromov_wasserstein

__all__ = [
    "LowRankCost",
    "entropic_gromov_wasserstein",
    "fused_gromov_wasserstein",
    "gromov_wasserstein",
    "unbalanced_gromov_wasserstein",
]
