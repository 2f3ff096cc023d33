"""Transport on the line, in closed form: sorting is solving; and its use along directions of space.

Everything rests on the quantile function G⁻¹(q) = inf {t : G(t) ≥ q}.
"""

from ._distance import monotone_plan, wasserstein_1d
from ._quantile import cdf, quantile, quantile_map
from ._sliced import max_sliced_direction, max_sliced_wasserstein, sliced_wasserstein

__all__ = [
    "cdf",
    "max_sliced_direction",
    "max_sliced_wasserstein",
    "monotone_plan",
    "quantile",
    "quantile_map",
    "sliced_wasserstein",
    "wasserstein_1d",
]
