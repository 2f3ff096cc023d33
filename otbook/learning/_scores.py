"""How good is a generator on a mixture of known modes? The two scores of the GAN literature."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .. import _check
from .._check import ArrayLike


class ModeScores(NamedTuple):
    """Scores of a sample against known modes.

    Attributes:
        covered: number of modes that at least one high-quality sample belongs to.
        quality: share of high-quality samples, between 0 and 1.
        counts: high-quality samples of each mode, shape (k,), int64.
    """

    covered: int
    quality: float
    counts: Tensor


def mode_scores(samples: ArrayLike, centres: ArrayLike, *, radius: float) -> ModeScores:
    """Modes covered and share of high-quality samples, for a mixture with known centres.

    A sample is of high quality if it lies within ``radius`` of the nearest centre, and belongs to that
    centre's mode. Both numbers are needed: a collapsed generator has quality 1, a blurred one covers
    all modes.

    Args:
        samples: shape (n, d).
        centres: of the modes, shape (k, d).
        radius: in units of the samples; three or four standard deviations of a mode are customary.

    Returns:
        Covered modes, quality, and the count of each mode.

    Raises:
        ValueError: for clouds that are empty, not finite or of different dimension, or radius ≤ 0.

    Source:
        Srivastava, Valkov, Russell, Gutmann, Sutton (2017), VEEGAN, section 5.1.

    Example:
        >>> centres = [[0.0, 0.0], [1.0, 0.0]]
        >>> scores = mode_scores([[0.1, 0.0], [0.0, 0.1], [0.5, 0.0]], centres, radius=0.2)
        >>> scores.covered, round(scores.quality, 3), scores.counts.tolist()
        (1, 0.667, [2, 0])
    """
    samples = _check.points(samples, "samples")
    centres = _check.points(centres, "centres", like=samples)
    _check.same_dimension(samples, centres, ("samples", "centres"))
    radius = _check.positive(radius, "radius")
    if samples.ndim != 2 or centres.ndim != 2:
        shapes = f"{tuple(samples.shape)} and {tuple(centres.shape)}"
        raise ValueError(f"samples and centres must be single clouds, (n, d) and (k, d), but are {shapes}")
    distance, nearest = torch.cdist(samples, centres).min(dim=1)
    counts = torch.bincount(nearest[distance <= radius], minlength=len(centres))
    return ModeScores(int((counts > 0).sum()), counts.sum().item() / len(samples), counts)
