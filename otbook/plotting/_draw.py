"""Measures, plans, pictures and spreads, drawn into given axes."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from ._style import PLAN, PLAN_CMAP, SOURCE


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

    Example:
        >>> import torch
        >>> from matplotlib.figure import Figure
        >>> ax = points(Figure().subplots(), torch.zeros(3, 2), color=SOURCE, label="source")
        >>> len(ax.collections)
        1
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

    Example:
        >>> import torch
        >>> from matplotlib.figure import Figure
        >>> x, y = torch.zeros(2, 2), torch.ones(2, 2)
        >>> ax = plan_segments(Figure().subplots(), x, y, torch.eye(2) / 2)
        >>> len(ax.collections[0].get_segments())
        2
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

    Example:
        >>> import torch
        >>> from matplotlib.figure import Figure
        >>> plan_matrix(Figure().subplots(), torch.eye(2) / 2, title="plan").get_title()
        'plan'
    """
    ax.imshow(_array(P), vmin=0, vmax=vmax, cmap=PLAN_CMAP, interpolation="nearest", aspect="equal")
    ax.set(title=title, xlabel="target $j$", ylabel="source $i$")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    ax.grid(False)
    return ax


def picture(ax: Axes, image: Tensor, *, title: str = "") -> Axes:
    """Draw a photograph with colours in [0, 1], shape (height, width, 3), without axes.

    Example:
        >>> import torch
        >>> from matplotlib.figure import Figure
        >>> picture(Figure().subplots(), torch.rand(4, 6, 3)).axison
        False
    """
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

    Example:
        >>> import torch
        >>> from matplotlib.figure import Figure
        >>> ax = band(Figure().subplots(), torch.arange(3), torch.rand(10, 3), label="error")
        >>> len(ax.lines), len(ax.collections)
        (1, 1)
    """
    x, samples = _array(x), _array(samples)
    low, median, high = np.quantile(samples, [0.1, 0.5, 0.9], axis=0)
    ax.plot(x, median, color=color, label=label, **line)
    ax.fill_between(x, low, high, color=color, alpha=0.18, linewidth=0)
    return ax


def _array(t: Tensor | np.ndarray) -> np.ndarray:
    return t.detach().cpu().numpy() if isinstance(t, Tensor) else np.asarray(t)
