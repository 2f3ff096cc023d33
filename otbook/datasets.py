"""Small real data and classical toy measures; nothing here downloads anything.

Photographs and digits ship inside scikit-learn (the ``notebooks`` extra).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from . import _check


def photograph(name: str, *, height: int = 160) -> Tensor:
    """One of scikit-learn's two photographs, resized.

    Args:
        name: ``"china"`` (a temple by a lake) or ``"flower"`` (a dahlia).
        height: rows of the result; the width keeps the aspect ratio.

    Returns:
        Colours in [0, 1], shape (height, width, 3), float64.

    Raises:
        ValueError: for another name or a height below 1.

    Source:
        ``sklearn.datasets.load_sample_image``; both photographs are under CC BY 2.0.

    Example:
        >>> photograph("flower", height=32).shape
        torch.Size([32, 48, 3])
    """
    from PIL import Image
    from sklearn.datasets import load_sample_image

    _check.choice(name, "name", ("china", "flower"))
    height = _check.positive_int(height, "height")
    picture = Image.fromarray(load_sample_image(f"{name}.jpg"))
    width = round(height * picture.width / picture.height)
    resized = picture.resize((width, height), Image.Resampling.BOX)
    return torch.from_numpy(np.asarray(resized) / 255.0)


def digits() -> tuple[Tensor, Tensor]:
    """The 1,797 handwritten digits of scikit-learn, 8×8 pixels.

    Returns:
        Images in [0, 1], shape (1797, 8, 8), float64, and their labels, shape (1797,), int64.

    Source:
        ``sklearn.datasets.load_digits``, a part of the UCI optical recognition data.

    Example:
        >>> images, labels = digits()
        >>> images.shape, labels.shape
        (torch.Size([1797, 8, 8]), torch.Size([1797]))
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return torch.from_numpy(bunch.images / 16.0), torch.from_numpy(bunch.target)


def eight_gaussians(n: int, *, generator: torch.Generator, radius: float = 2.0) -> Tensor:
    """A sample of eight narrow Gaussians on a circle.

    Args:
        n: number of points.
        generator: source of randomness, on the CPU.
        radius: of the circle; the standard deviation of each Gaussian is a twentieth of it.

    Returns:
        Points, shape (n, 2), float64.

    Example:
        >>> eight_gaussians(5, generator=torch.Generator().manual_seed(0)).shape
        torch.Size([5, 2])
    """
    n = _check.positive_int(n, "n")
    angle = torch.randint(8, (n,), generator=generator) * (math.pi / 4)
    centre = radius * torch.stack([angle.cos(), angle.sin()], dim=1).double()
    return centre + radius / 20 * torch.randn(n, 2, generator=generator, dtype=torch.float64)
