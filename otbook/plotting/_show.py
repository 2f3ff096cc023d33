"""Show a figure, or several as frames of a slider, with the same stored bytes at every execution."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import itertools
from collections.abc import Callable, Sequence

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

# Each frame is a radio button, its label and its picture, in this order. The rules hide the pictures
# whose button is not chosen, and move the others below all labels; without them, what is left is a
# strip of labelled pictures. Nothing depends on the number of frames or on the page around.
_FRAMES_CSS = """
.otbook-frames fieldset { display: flex; flex-wrap: wrap; justify-content: center; gap: 0.3rem;
  min-width: 0; margin: 0; padding: 0; border: 0 }
.otbook-frames legend { float: none; width: 100%; margin: 0 0 0.3rem; font-size: 1rem; text-align: center }
.otbook-frames input { position: absolute; width: 1px; height: 1px; margin: 0; opacity: 0 }
.otbook-frames label { box-sizing: border-box; min-width: 1.9rem; margin: 0; padding: 0.15rem 0.35rem;
  border: 1px solid; border-radius: 0.35rem; line-height: 1.5rem; text-align: center; cursor: pointer }
.otbook-frames input:checked + label { border-color: #1f6fb2; background: #1f6fb2; color: #fff }
.otbook-frames input:focus-visible + label { outline: 3px solid #b07800; outline-offset: 1px }
.otbook-frames img { order: 1; max-width: 100%; height: auto; background: #fff }
.otbook-frames input:not(:checked) + label + img { display: none }
.otbook-frames { position: relative }
@media print { .otbook-frames input:not(:checked) + label { display: none } }
"""
_FRAMES_LIMIT = 1_000_000  # bytes of base64 and HTML; a whole notebook stays under 1 MB
_frames_shown = itertools.count(1)


def show(fig: Figure, *, format: str = "svg") -> None:
    """Display a figure and close it: the last line of every cell that draws.

    The stored bytes are the same at every execution: no date, fixed identifiers.

    Args:
        fig: the figure.
        format: ``"svg"`` for lines (dense artists inside it drawn with ``rasterized=True``),
            ``"png"`` for dense pictures (palette of 256 colours), ``"jpeg"`` for photographs.

    Raises:
        ValueError: for another format.

    Example:
        >>> show(Figure(figsize=(3, 2)))  # doctest: +ELLIPSIS
        {'image/svg+xml': '<?xml...'text/plain': '<Figure size ...>'}
    """
    from IPython.display import display

    mime, data = _encode(fig, format)
    display({mime: data, "text/plain": repr(fig)}, raw=True)
    plt.close(fig)


def frames(
    figures: Sequence[Figure] | Callable[[int], Figure],
    labels: Sequence[str | float],
    *,
    alt: str | Sequence[str],
    legend: str = "frame",
    format: str = "png",
    start: int = 0,
) -> None:
    """Display figures as frames that a reader chooses from, and close them: a slider without JavaScript.

    A group of radio buttons and a style sheet: it works in Jupyter, Colab, the built page and offline,
    with the mouse, a finger, the arrow keys or a screen reader. Where styles are stripped, all frames
    are visible one below the other; where HTML is not shown at all, frame ``start`` is. The caption and
    name of the figure come from the cell's metadata, as for :func:`show`. The stored bytes are the
    same at every execution of a notebook from top to bottom.

    Args:
        figures: one figure a frame, all of the same size, or a function that draws frame k = 0, 1, ….
        labels: what the buttons say, short; numbers are shown like ``0.25``.
        alt: alternative text, one a frame, or one for all that holds ``{label}`` where they differ.
        legend: what the buttons choose, for example ``"time t"``.
        format: of each frame, as for :func:`show`.
        start: the frame that is shown first.

    Raises:
        ValueError: for fewer than two frames, numbers of figures, labels and texts that differ, repeated
            labels, alternative texts that are empty or all alike, figures of different sizes, a
            ``start`` that is no frame, another format, or frames of more than 1 MB altogether.

    Example:
        >>> def draw(k):
        ...     fig, ax = plt.subplots(figsize=(3, 2))
        ...     _ = ax.plot([0, 1], [0, k])
        ...     return fig
        >>> frames(draw, [0, 1, 2], alt="A line of slope {label}.", legend="slope")  # doctest: +ELLIPSIS
        {'text/html': '<div class="otbook-frames">...'text/plain': '<3 frames: slope 0, 1, 2>'}
    """
    from IPython.display import display

    names = [label if isinstance(label, str) else f"{float(label):g}" for label in labels]
    n = len(names)
    texts = [alt.replace("{label}", name) for name in names] if isinstance(alt, str) else list(alt)
    if n < 2:
        raise ValueError(f"labels must name at least two frames, but has {n}; use show for one figure")
    if len(set(names)) < n:
        raise ValueError(f"labels must differ, but are {names}")
    if len(texts) != n or len(set(texts)) < n or not all(text.strip() for text in texts):
        raise ValueError(
            f"alt must give {n} different texts, but gives {texts}; write one text a frame, or one for all "
            "with {label} in it"
        )
    if not (callable(figures) or len(figures) == n):
        raise ValueError(f"figures must be as many as the {n} labels, but are {len(figures)}")
    if not 0 <= start < n:
        raise ValueError(f"start must be one of the frames 0 to {n - 1}, but is {start}")

    # Two sliders of a page, or of two notebooks open in one window, must not share a group of buttons;
    # a digest of the pictures would do, but they differ from machine to machine by their fonts.
    digest = hashlib.sha1("\n".join([legend, *names, *texts]).encode()).hexdigest()[:6]
    group = f"frames-{next(_frames_shown)}-{digest}"
    size, pictures, parts = None, [], []
    for k, (name, text) in enumerate(zip(names, texts, strict=True)):
        fig = figures(k) if callable(figures) else figures[k]
        this = tuple(fig.get_size_inches().tolist())
        size = size or this
        if this != size:
            raise ValueError(f"figures must have one size, but frame {k} is {this} and frame 0 {size} inches")
        mime, data = _encode(fig, format)
        plt.close(fig)
        pictures.append({mime: data})
        code = base64.b64encode(data.encode()).decode() if format == "svg" else data
        own, checked = f"{group}-{k}", " checked" if k == start else ""
        parts.append(
            f'<input type="radio" name="{group}" id="{own}" aria-describedby="{own}-img" '
            f'autocomplete="off"{checked}>'
            f'<label for="{own}">{html.escape(name)}</label>\n'
            f'<img id="{own}-img" alt="{html.escape(text)}" src="data:{mime};base64,{code}">'
        )
    page = (
        f'<div class="otbook-frames"><style>{_FRAMES_CSS}</style>\n'
        f"<fieldset><legend>{html.escape(legend)}</legend>\n" + "\n".join(parts) + "\n</fieldset></div>"
    )
    if len(page) > _FRAMES_LIMIT:
        raise ValueError(
            f"the frames take {len(page) / 1e6:.2f} MB, more than 1 MB; use fewer or smaller ones, "
            "or the other format"
        )
    summary = f"<{n} frames: {legend} {', '.join(names)}>"
    display({"text/html": page, **pictures[start], "text/plain": summary}, raw=True)


def _encode(fig: Figure, format: str) -> tuple[str, str]:
    """The type and the data of a picture as notebooks store them, the same bytes every time."""
    if format not in ("svg", "png", "jpeg"):
        raise ValueError(f"format must be 'svg', 'png' or 'jpeg', but is {format!r}")
    buffer = io.BytesIO()
    if format == "svg":
        fig.savefig(buffer, format="svg", metadata={"Date": None})
        return "image/svg+xml", buffer.getvalue().decode()
    from PIL import Image

    fig.savefig(buffer, format="png", dpi=144)
    picture = Image.open(buffer).convert("RGB")
    buffer = io.BytesIO()
    if format == "png":
        picture.quantize(256, dither=Image.Dither.NONE).save(buffer, "png", optimize=True)
    else:
        picture.save(buffer, "jpeg", quality=85)
    return f"image/{format}", base64.b64encode(buffer.getvalue()).decode()
