"""Wasserstein barycentres: of point clouds by a fixed point, of images by Gaussian convolutions.

A barycentre minimises Σ_k λ_k W₂²(μ, ν_k), the mean squared distance to given measures, as the
mean of numbers does. With Gaussians it has its own closed form: ``otbook.gaussian.barycenter``.
"""

from ._convolutional import convolutional
from ._free_support import FreeSupport, free_support

__all__ = ["FreeSupport", "convolutional", "free_support"]
