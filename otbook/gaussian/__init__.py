"""Transport between Gaussians, in closed form: everything is a matrix square root.

With roots R₀ = S₀^{1/2} and R₁ = S₁^{1/2} and the rotation U that brings R₁ closest to R₀, the
optimal coupling of N(0, S₀) and N(0, S₁) is (R₀z, R₁Uz) for one standard normal z.
"""

from ._bures import AffineMap, barycenter, bures_wasserstein, geodesic, optimal_map
from ._entropic import entropic_cost, entropic_coupling

__all__ = [
    "AffineMap",
    "barycenter",
    "bures_wasserstein",
    "entropic_cost",
    "entropic_coupling",
    "geodesic",
    "optimal_map",
]
