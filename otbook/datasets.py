"""Small real data and classical toy measures; nothing here downloads anything.

Photographs and digits ship inside scikit-learn (the ``notebooks`` extra).
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import torch
from torch import Tensor

from . import _check

# Atom by atom as in the file: first the heavy atoms, then the hydrogens.
_TRYPTOPHAN = """N -2.074 -0.459 -1.528, CA -0.716 -0.631 -0.993, C -0.631 -1.766 0.044,
O 0.295 -2.579 -0.004, CB -0.221 0.703 -0.417, CG 1.148 0.652 0.194,
CD1 2.319 0.664 -0.482, CD2 1.508 0.564 1.606, NE1 3.371 0.560 0.411,
CE2 2.928 0.515 1.710, CE3 0.779 0.524 2.812, CZ2 3.599 0.445 2.938,
CZ3 1.439 0.433 4.053, CH2 2.842 0.407 4.120, H -2.624 0.343 -1.242,
HA -0.052 -0.908 -1.813, HB2 -0.206 1.425 -1.211, HB3 -0.921 1.044 0.344,
HD1 2.412 0.733 -1.558, HE1 4.360 0.536 0.156, HE3 -0.299 0.571 2.773,
HZ2 4.679 0.418 2.961, HZ3 0.862 0.400 4.966, HH2 3.334 0.360 5.081"""
_TRYPTOPHAN_BONDS = """N-CA CA-C C-O CA-CB CB-CG CG-CD1 CG-CD2 CD1-NE1 NE1-CE2 CD2-CE2
CD2-CE3 CE2-CZ2 CE3-CZ3 CZ2-CH2 CZ3-CH2"""


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


def gaussian_grid(n: int, *, generator: torch.Generator, side: int = 5, spacing: float = 2.0) -> Tensor:
    """A sample of side² narrow Gaussians on a square grid around the origin, 25 by default.

    Args:
        n: number of points.
        generator: source of randomness, on the CPU.
        side: Gaussians along each side.
        spacing: distance of neighbouring centres; the standard deviation of each Gaussian is a
            fortieth of it, 0.05 by default.

    Returns:
        Points, shape (n, 2), float64.

    Example:
        >>> gaussian_grid(5, generator=torch.Generator().manual_seed(0)).shape
        torch.Size([5, 2])
    """
    n, side = _check.positive_int(n, "n"), _check.positive_int(side, "side")
    cell = torch.randint(side, (n, 2), generator=generator).double()
    centre = spacing * (cell - (side - 1) / 2)
    return centre + spacing / 40 * torch.randn(n, 2, generator=generator, dtype=torch.float64)


def two_moons(n: int, *, generator: torch.Generator, noise: float = 0.05) -> tuple[Tensor, Tensor]:
    """Two half circles that reach into each other, and the half circle of each point.

    Args:
        n: number of points.
        generator: source of randomness, on the CPU.
        noise: standard deviation of the Gaussian noise on each coordinate.

    Returns:
        Points, shape (n, 2), float64, on the upper half of the unit circle (label 0) or on the lower
        half of the one around (1, ½) (label 1), and their labels, shape (n,), int64.

    Source:
        The shape of ``sklearn.datasets.make_moons``; here angles and labels are drawn at random.

    Example:
        >>> points, labels = two_moons(5, generator=torch.Generator().manual_seed(0))
        >>> points.shape, labels.shape
        (torch.Size([5, 2]), torch.Size([5]))
    """
    n = _check.positive_int(n, "n")
    labels = torch.randint(2, (n,), generator=generator)
    angle = math.pi * torch.rand(n, generator=generator, dtype=torch.float64)
    upper = torch.stack([angle.cos(), angle.sin()], dim=1)
    lower = torch.stack([1 - angle.cos(), 0.5 - angle.sin()], dim=1)
    points = torch.where(labels[:, None] == 0, upper, lower)
    return points + noise * torch.randn(n, 2, generator=generator, dtype=torch.float64), labels


def digit_features(images: Tensor) -> Tensor:
    """The nine numbers that tell handwritten digits apart best: a fixed feature space for 8×8 images.

    Fisher's linear discriminants of :func:`digits`, in which each of the ten classes has nearly the
    unit matrix as covariance. They are the solution of an eigenvalue problem, not of a training, and so
    the same on every machine (up to signs, which no distance sees).

    Args:
        images: shape (n, 8, 8) or (n, 64), grey values in the units of :func:`digits`.

    Returns:
        Features, shape (n, 9), with the dtype and device of ``images``; differentiable.

    Raises:
        ValueError: for images of another size.

    Source:
        Fisher, Annals of Eugenics 7 (1936) 179-188; the solver is
        ``sklearn.discriminant_analysis.LinearDiscriminantAnalysis``.

    Example:
        >>> images, labels = digits()
        >>> z = digit_features(images)
        >>> z.shape
        torch.Size([1797, 9])
    """
    if images.ndim < 2 or images[0].numel() != 64:
        raise ValueError(f"images must have shape (n, 8, 8) or (n, 64), got {tuple(images.shape)}")
    centre, directions = (t.to(images) for t in _discriminants())
    return (images.flatten(1) - centre) @ directions


@cache
def _discriminants() -> tuple[Tensor, Tensor]:
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    images, labels = digits()
    fit = LinearDiscriminantAnalysis(solver="svd").fit(images.flatten(1).numpy(), labels.numpy())
    return torch.from_numpy(fit.xbar_), torch.from_numpy(fit.scalings_[:, :9])


def tryptophan() -> tuple[list[str], Tensor, Tensor, Tensor]:
    """The atoms of a tryptophan as measured in space, and its structural formula in the plane.

    Returns:
        The names of the 24 atoms, 14 heavy ones and then 10 hydrogens, the element first; their
        positions in ångström, shape (24, 3), float64; the 15 bonds between heavy atoms, as pairs of
        their indices, shape (15, 2), int64; and where a drawing of the formula puts the heavy atoms, in
        bond lengths of its hexagon, shape (14, 2), float64.

    Source:
        Residue 6 of the protein Trp-cage, by nuclear magnetic resonance: Neidigh, Fesinmeyer and
        Andersen, Nature Structural Biology 9 (2002) 425-430; Protein Data Bank 1L2Y, first model. The
        layout of the drawing is ours.

    Example:
        >>> names, positions, bonds, drawing = tryptophan()
        >>> i, j = bonds[0]
        >>> print(f"{names[i]}-{names[j]}: {(positions[i] - positions[j]).norm():.2f} Å")
        N-CA: 1.47 Å
    """
    rows = [row.split() for row in _TRYPTOPHAN.split(",")]
    names = [row[0] for row in rows]
    positions = torch.tensor([[float(t) for t in row[1:]] for row in rows], dtype=torch.float64)
    pairs = [bond.split("-") for bond in _TRYPTOPHAN_BONDS.split()]
    bonds = torch.tensor([[names.index(end) for end in pair] for pair in pairs])
    chain = [[3.2, 3.0], [3.1, 2.0], [3.9, 1.3], [4.9, 1.5], [2.1, 1.8]]  # N, CA, C, O, CB
    # CG and CD1, CD2 of the hexagon, NE1, and the other corners of the hexagon, CE2 first.
    corner = [(math.cos(math.radians(t)), math.sin(math.radians(t))) for t in (30, -30, 90, -90, 150, -150)]
    drawing = [*chain, (1.82, 0.81), (2.41, 0.0), corner[0], (1.82, -0.81), *corner[1:]]
    return names, positions, bonds, torch.tensor(drawing, dtype=torch.float64)
