"""Transport between two densities on the flat torus, through the Monge–Ampère equation."""

from ._fourier import grid
from ._solver import PeriodicMap, solve_periodic
from ._target import periodic_spline

__all__ = ["PeriodicMap", "grid", "periodic_spline", "solve_periodic"]
