"""The palette and the style of every figure of the book."""

from __future__ import annotations

import matplotlib.pyplot as plt

#: Red, for source measures and what moves.
SOURCE = "#c8323c"
#: Blue, for target measures.
TARGET = "#1f6fb2"
#: Grey, for plans.
PLAN = "#6e6e6e"
#: Ochre, for a third thing that matters.
ACCENT = "#b07800"
#: Green, for a fourth.
EXTRA = "#0b7a5c"

#: Colour map for plans and other non-negative matrices: white where there is no mass.
PLAN_CMAP = "Greys"

_STYLE = {
    "figure.figsize": (6.4, 3.6),
    "figure.constrained_layout.use": True,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlesize": "medium",
    "axes.prop_cycle": plt.cycler(
        color=[SOURCE, TARGET, ACCENT, EXTRA, PLAN], linestyle=["-", "--", "-.", ":", "-"]
    ),
    "grid.color": "#e3e3e3",
    "font.size": 11,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "image.cmap": PLAN_CMAP,
    "svg.hashsalt": "otbook",
}


def use_style() -> None:
    """Apply the book's figure style to all figures of this process.

    Example:
        >>> use_style()
        >>> plt.rcParams["image.cmap"]
        'Greys'
    """
    plt.rcParams.update(_STYLE)
