"""The book's figures: one palette, one style, and one way to show a figure.

Source measures are red, target measures blue, plans grey. The colours differ in lightness as well
as in hue and stay legible on the white card on which every figure is drawn, in light and dark mode.
Drawing functions take and return ``Axes``. Needs matplotlib (the ``notebooks`` extra).
"""

from __future__ import annotations

import base64
import io

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

SOURCE = "#c8323c"
TARGET = "#1f6fb2"
PLAN = "#6e6e6e"
ACCENT = "#b07800"
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
    """Apply the book's figure style to all figures of this process."""
    plt.rcParams.update(_STYLE)


def show(fig: Figure, *, format: str = "svg") -> None:
    """Display a figure and close it: the last line of every cell that draws.

    The stored bytes are the same at every execution: no date, fixed identifiers.

    Args:
        fig: the figure.
        format: ``"svg"`` for lines (dense artists inside it drawn with ``rasterized=True``),
            ``"png"`` for dense pictures (palette of 256 colours), ``"jpeg"`` for photographs.

    Raises:
        ValueError: for another format.
    """
    from IPython.display import display

    if format not in ("svg", "png", "jpeg"):
        raise ValueError(f"format must be 'svg', 'png' or 'jpeg', but is {format!r}")
    buffer = io.BytesIO()
    if format == "svg":
        fig.savefig(buffer, format="svg", metadata={"Date": None})
        mime, data = "image/svg+xml", buffer.getvalue().decode()
    else:
        from PIL import Image

        fig.savefig(buffer, format="png", dpi=144)
        picture = Image.open(buffer).convert("RGB")
        buffer = io.BytesIO()
        if format == "png":
            picture.quantize(256, dither=Image.Dither.NONE).save(buffer, "png", optimize=True)
        else:
            picture.save(buffer, "jpeg", quality=85)
        mime, data = f"image/{format}", base64.b64encode(buffer.getvalue()).decode()
    display({mime: data, "text/plain": repr(fig)}, raw=True)
    plt.close(fig)


def points(
    ax: Axes,
    x: Tensor,
    a: Tensor | None = None,
    *,
    color: str = SOURCE,
    label: str | None = None,
    size: float = 40.0,
    marker: str = "o",
) -> Axes:
    """Draw a discrete measure in the plane: areas proportional to the weights.

    Args:
        ax: where to draw.
        x: points, shape (n, 2).
        a: weights, shape (n,), or None for equal ones.
        color: ``SOURCE`` or ``TARGET``.
        label: legend entry.
        size: area of a point of average weight, in square points.
        marker: matplotlib's marker; use different ones for source and target.

    Returns:
        ``ax``.
    """
    x = _array(x)
    area = size if a is None else size * len(x) * _array(a)
    ax.scatter(
        x[:, 0],
        x[:, 1],
        s=area,
        c=color,
        marker=marker,
        edgecolors="white",
        linewidths=0.7,
        label=label,
        zorder=3,
    )
    ax.set_aspect("equal", adjustable="datalim")
    return ax


def plan_segments(
    ax: Axes, x: Tensor, y: Tensor, P: Tensor, *, threshold: float = 1e-3, width: float = 2.5
) -> Axes:
    """Draw a plan as segments x_i — y_j whose width and opacity grow with P_ij.

    Args:
        ax: where to draw.
        x: source points, shape (n, 2).
        y: target points, shape (m, 2).
        P: plan, shape (n, m).
        threshold: entries below this share of the largest are left out.
        width: line width of the largest entry, in points.

    Returns:
        ``ax``.
    """
    x, y, P = _array(x), _array(y), _array(P)
    rows, columns = np.nonzero(threshold * P.max() < P)
    share = P[rows, columns] / P.max()
    segments = np.stack([x[rows], y[columns]], axis=1)
    ax.add_collection(
        LineCollection(segments, linewidths=width * share, colors=PLAN, alpha=0.25 + 0.6 * share, zorder=2)
    )
    ax.autoscale_view()
    return ax


def plan_matrix(ax: Axes, P: Tensor, *, vmax: float | None = None, title: str = "") -> Axes:
    """Draw a plan as a matrix: row i, column j, dark where much mass moves from x_i to y_j.

    Args:
        ax: where to draw.
        P: plan, shape (n, m).
        vmax: mass drawn black; the largest entry by default.
        title: of the axes.

    Returns:
        ``ax``.
    """
    ax.imshow(_array(P), vmin=0, vmax=vmax, cmap=PLAN_CMAP, interpolation="nearest", aspect="equal")
    ax.set(title=title, xlabel="target $j$", ylabel="source $i$")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    ax.grid(False)
    return ax


def picture(ax: Axes, image: Tensor, *, title: str = "") -> Axes:
    """Draw a photograph with colours in [0, 1], shape (height, width, 3), without axes."""
    ax.imshow(np.clip(_array(image), 0, 1), interpolation="nearest")
    ax.set_title(title)
    ax.set_axis_off()
    return ax


def band(
    ax: Axes, x: Tensor, samples: Tensor, *, color: str = SOURCE, label: str | None = None, **line: object
) -> Axes:
    """Draw the median over repetitions with the range from the 10th to the 90th percentile.

    Args:
        ax: where to draw.
        x: abscissae, shape (k,).
        samples: one row a repetition, shape (r, k).
        color: of the line and the band.
        label: legend entry.
        line: further options of ``Axes.plot``.

    Returns:
        ``ax``.
    """
    x, samples = _array(x), _array(samples)
    low, median, high = np.quantile(samples, [0.1, 0.5, 0.9], axis=0)
    ax.plot(x, median, color=color, label=label, **line)
    ax.fill_between(x, low, high, color=color, alpha=0.18, linewidth=0)
    return ax


def _array(t: Tensor | np.ndarray) -> np.ndarray:
    return t.detach().cpu().numpy() if isinstance(t, Tensor) else np.asarray(t)
