"""Do two pictures show the same figure? A comparison that fonts and anti-aliasing do not disturb."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator

import numpy as np
import resvg_py
from PIL import Image
from scipy.ndimage import binary_opening, maximum_filter, minimum_filter

IMAGE_TYPES = ("image/svg+xml", "image/png", "image/jpeg")
#: A picture inside an HTML output, such as a frame of a slider.
EMBEDDED = re.compile(r"data:(image/[a-z+]+);base64,([A-Za-z0-9+/=]+)")

#: Pictures are compared at this width, close to what a reader sees on a small screen.
WIDTH = 480
#: A stroke may lie this many pixels off (another font engine, another rounding of a coordinate) …
SHIFT = 2
#: … and a colour be this far off, on a scale from 0 to 1 (anti-aliasing, palettes, JPEG) …
COLOUR = 0.16
#: … and specks too thin to hold a square of 2×2 pixels do not count (the rims of letters), nor do
#: patches of up to this many pixels in all: less than one marker of a scatter plot.
PIXELS = 12


def pictures(data: dict) -> Iterator[tuple[str, str]]:
    """Type and data of every picture of one output, those inside its HTML included."""
    for mime in IMAGE_TYPES:
        if mime in data:
            yield mime, "".join(data[mime])
    for mime, code in EMBEDDED.findall("".join(data.get("text/html", ""))):
        yield mime, base64.b64decode(code).decode() if mime == "image/svg+xml" else code


def without_pictures(text: object) -> object:
    """A text with the type alone of each embedded picture: what the comparison of texts should see."""
    return EMBEDDED.sub(r"data:\1", text) if isinstance(text, str) else text


def render(mime: str, data: str) -> np.ndarray:
    """The stored data of a picture as colours in [0, 1], shape (height, WIDTH, 3)."""
    if mime == "image/svg+xml":
        raw = bytes(
            resvg_py.svg_to_bytes(svg_string="".join(data), background="#ffffff", dpi=96, width=2 * WIDTH)
        )
    else:
        raw = base64.b64decode("".join(data))
    picture = Image.open(io.BytesIO(raw)).convert("RGB")
    height = round(picture.height * WIDTH / picture.width)
    return np.asarray(picture.resize((WIDTH, height), Image.Resampling.BOX)) / 255


def difference(stored: np.ndarray, executed: np.ndarray) -> str:
    """What differs between two rendered pictures, in words; empty when they show the same.

    Every pixel of each picture must find its colour among the near neighbours in the other one.
    """
    if abs(len(stored) - len(executed)) > SHIFT:
        return f"the heights differ: {len(stored)} and {len(executed)} pixels at width {WIDTH}"
    height = min(len(stored), len(executed))
    stored, executed = stored[:height], executed[:height]
    window = (2 * SHIFT + 1, 2 * SHIFT + 1, 1)
    wrong = np.zeros(stored.shape[:2], dtype=bool)
    for one, other in ((stored, executed), (executed, stored)):
        low, high = minimum_filter(other, window), maximum_filter(other, window)
        wrong |= ((one < low - COLOUR) | (one > high + COLOUR)).any(-1)
    wrong = binary_opening(wrong, np.ones((2, 2)))
    if wrong.sum() <= PIXELS:
        return ""
    rows, columns = np.nonzero(wrong)
    return (
        f"{wrong.sum()} pixels differ, within columns {columns.min()}–{columns.max()} "
        f"and rows {rows.min()}–{rows.max()} of {WIDTH}×{height}"
    )
