"""Two-layer networks as measures over neurons, and the particle flows that train them."""

from ._spikes import SpikesResult, fourier_features, sparse_spikes
from ._tangent import tangent_kernel
from ._two_layer import TwoLayer, mean_field_velocity, train

__all__ = [
    "SpikesResult",
    "TwoLayer",
    "fourier_features",
    "mean_field_velocity",
    "sparse_spikes",
    "tangent_kernel",
    "train",
]
