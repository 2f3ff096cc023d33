"""Two-layer networks as measures over neurons, and the particle flows that train them."""

from ._tangent import tangent_kernel
from ._two_layer import TwoLayer, mean_field_velocity, train

__all__ = ["TwoLayer", "mean_field_velocity", "tangent_kernel", "train"]
