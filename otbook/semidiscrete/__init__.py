"""Transport from a density to weighted points: one price for each point, and the cells that it carves.

Cell j = {x : ‖x − y_j‖² + price_j ≤ ‖x − y_k‖² + price_k for all k}. In the plane the cells are
polygons, and Newton's method finds the prices to rounding; in any dimension samples find them slowly.
"""

from ._cells import LaguerreCells, laguerre_cells
from ._density import Density, pixel_density, uniform_density
from ._newton import SemiDiscretePlan, solve
from ._stochastic import SemiDiscreteDual, stochastic_dual

__all__ = [
    "Density",
    "LaguerreCells",
    "SemiDiscreteDual",
    "SemiDiscretePlan",
    "laguerre_cells",
    "pixel_density",
    "solve",
    "stochastic_dual",
    "uniform_density",
]
