"""Gradient flows: of functions on Euclidean space, and of functionals on the space of measures."""

from ._discrepancies import energy_distance, mmd2
from ._dynamic import DynamicPlan, benamou_brenier, displacement_interpolation
from ._euclidean import MinimizingMovement, minimizing_movement
from ._jko import jko_gaussian
from ._jko_grid import jko_grid
from ._langevin import langevin
from ._particles import ParticleFlow, particle_flow, svgd

__all__ = [
    "DynamicPlan",
    "MinimizingMovement",
    "ParticleFlow",
    "benamou_brenier",
    "displacement_interpolation",
    "energy_distance",
    "jko_gaussian",
    "jko_grid",
    "langevin",
    "minimizing_movement",
    "mmd2",
    "particle_flow",
    "svgd",
]
