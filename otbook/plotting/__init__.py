"""The book's figures: one palette, one style, and two ways to show: a figure, or a slider of frames.

Source measures are red, target measures blue, plans grey. The colours differ in lightness as well
as in hue and stay legible on the white card on which every figure is drawn, in light and dark mode.
Drawing functions take and return ``Axes``. Needs matplotlib (the ``notebooks`` extra).
"""

from ._draw import band, picture, plan_matrix, plan_segments, points
from ._show import frames, show
from ._style import ACCENT, EXTRA, PLAN, PLAN_CMAP, SOURCE, TARGET, use_style

__all__ = [
    "ACCENT",
    "EXTRA",
    "PLAN",
    "PLAN_CMAP",
    "SOURCE",
    "TARGET",
    "band",
    "frames",
    "picture",
    "plan_matrix",
    "plan_segments",
    "points",
    "show",
    "use_style",
]
