"""The book's colours stay apart for every kind of colour vision, and stand out from what they lie on."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest

from otbook.plotting import ACCENT, EXTRA, PLAN, SOURCE, TARGET
from repository import ROOT

PALETTE = {"SOURCE": SOURCE, "TARGET": TARGET, "PLAN": PLAN, "ACCENT": ACCENT, "EXTRA": EXTRA}
#: Colours that carry a meaning alone; the others come with a line style or a label of their own.
ALONE = ("SOURCE", "TARGET", "PLAN")
#: What a dichromat sees, as a map of linear RGB: Machado, Oliveira and Fernandes, A physiologically-based
#: model for simulation of color vision deficiency, IEEE TVCG 15 (2009), table 1, severity 1.
VISION = {
    "normal": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "tritanopia": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}
#: How much of a figure's light is left in dark mode, where its white card is dimmed (custom.css).
LIGHT = {"light": 1.0, "dark": 0.93}


def linear(colour: str) -> np.ndarray:
    """The linear RGB of ``#rrggbb`` (IEC 61966-2-1)."""
    return expand(np.array([int(colour[k : k + 2], 16) for k in (1, 3, 5)]) / 255)


def expand(srgb: np.ndarray) -> np.ndarray:
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def compress(rgb: np.ndarray) -> np.ndarray:
    return np.where(rgb <= 0.0031308, 12.92 * rgb, 1.055 * rgb ** (1 / 2.4) - 0.055)


def seen(colour: str, vision: str = "normal", mode: str = "light") -> np.ndarray:
    """The linear RGB that an eye of the given vision gets from a colour of a figure."""
    dimmed = expand(LIGHT[mode] * compress(linear(colour)))
    return np.clip(VISION[vision] @ dimmed, 0, 1)


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIELAB of a linear RGB, white point D65."""
    to_xyz = [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
    t = np.array(to_xyz) @ rgb / [0.95047, 1, 1.08883]
    f = np.where(t > (6 / 29) ** 3, np.cbrt(t), t * (29 / 6) ** 2 / 3 + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def difference(p: np.ndarray, q: np.ndarray) -> float:
    """CIEDE2000 between two CIELAB colours; equations of Sharma, Wu and Dalal (2005)."""
    (L1, a1, b1), (L2, a2, b2) = p, q
    C = (np.hypot(a1, b1) + np.hypot(a2, b2)) / 2
    G = 1.5 - np.sqrt(C**7 / (C**7 + 25**7)) / 2
    C1, C2 = np.hypot(G * a1, b1), np.hypot(G * a2, b2)
    h1, h2 = np.degrees(np.arctan2([b1, b2], [G * a1, G * a2])) % 360
    turn = (h2 - h1 + 180) % 360 - 180 if C1 * C2 else 0.0
    h = h1 + turn / 2 if C1 * C2 else h1 + h2
    L, C = (L1 + L2) / 2, (C1 + C2) / 2
    T = 1 - 0.17 * cos(h - 30) + 0.24 * cos(2 * h) + 0.32 * cos(3 * h + 6) - 0.2 * cos(4 * h - 63)
    lightness = (L2 - L1) / (1 + 0.015 * (L - 50) ** 2 / np.sqrt(20 + (L - 50) ** 2))
    chroma = (C2 - C1) / (1 + 0.045 * C)
    hue = 2 * np.sqrt(C1 * C2) * np.sin(np.radians(turn / 2)) / (1 + 0.015 * C * T)
    tilt = np.sin(np.radians(60 * np.exp(-((((h - 275 + 180) % 360 - 180) / 25) ** 2))))
    cross = -2 * np.sqrt(C**7 / (C**7 + 25**7)) * tilt
    return float(np.sqrt(lightness**2 + chroma**2 + hue**2 + cross * chroma * hue))


def cos(degrees: float) -> float:
    return np.cos(np.radians(degrees))


def contrast(p: np.ndarray, q: np.ndarray) -> float:
    """Contrast ratio of WCAG 2.2 between two linear RGB colours."""
    low, high = sorted(float(np.dot([0.2126, 0.7152, 0.0722], rgb)) for rgb in (p, q))
    return (high + 0.05) / (low + 0.05)


def confusions(palette: dict[str, str], vision: str, mode: str) -> list[str]:
    """Pairs that an eye of this vision may mix up.

    A difference of 1 is just noticeable side by side, one of 10 seen at a glance: asked of what has no
    other mark. Half of that is enough where a line style says the same.
    """
    found = []
    for (one, p), (other, q) in itertools.combinations(palette.items(), 2):
        value = difference(lab(seen(p, vision, mode)), lab(seen(q, vision, mode)))
        least = 10 if {one, other} <= set(ALONE) else 5
        if value < least:
            found.append(f"{one} {p} and {other} {q}: ΔE = {value:.1f} < {least} in {vision}, {mode} mode")
    return found


each_vision = pytest.mark.parametrize("vision", VISION)
each_mode = pytest.mark.parametrize("mode", LIGHT)


@each_mode
@each_vision
def test_the_palette_is_told_apart(vision, mode):
    assert not confusions(PALETTE, vision, mode)


def test_a_palette_of_red_and_green_is_found():
    red_green = {"SOURCE": "#b05a3c", "TARGET": "#6e7d32"}
    assert not confusions(red_green, "normal", "light")
    assert confusions(red_green, "deuteranopia", "light")


@each_mode
@pytest.mark.parametrize("name", PALETTE)
def test_a_colour_stands_out_from_the_card(name, mode):
    """3 : 1 for what is drawn (WCAG 1.4.11), 4.5 : 1 for the colours in which figures also write (1.4.3)."""
    least = 4.5 if name in ALONE else 3
    assert contrast(seen(PALETTE[name], mode=mode), seen("#ffffff", mode=mode)) >= least


STYLE = (ROOT / "book/_static/custom.css").read_text(encoding="utf-8")
BACKGROUND = {"light": "#ffffff", "dark": "#121212"}


def variables(mode: str) -> dict[str, str]:
    """The colours that custom.css names, as they are in one mode."""
    blocks = re.findall(
        rf'^(?::root|html\[data-theme="{mode}"\]) \{{(.*?)\}}', STYLE, re.DOTALL | re.MULTILINE
    )
    return dict(re.findall(r"(--[\w-]+): (#[0-9a-f]{6});", "".join(blocks)))


@each_mode
def test_links_and_boxes_stand_out_from_the_page(mode):
    colours, page = variables(mode), linear(BACKGROUND[mode])
    assert {"--pst-color-link", "--book-statement", "--book-claim"} <= colours.keys()
    for name, colour in colours.items():
        least = 4.5 if "link" in name else 3
        assert contrast(linear(colour), page) >= least, f"{name} is {colour}"


@pytest.mark.parametrize(
    ("p", "q", "expected"),
    [
        ((50, 2.6772, -79.7751), (50, 0, -82.7485), 2.0425),
        ((50, 2.5, 0), (50, 0, -2.5), 4.3065),
        ((50, 2.5, 0), (73, 25, -18), 27.1492),
        ((60.2574, -34.0099, 36.2677), (60.4626, -34.1751, 39.4387), 1.2644),
        ((2.0776, 0.0795, -1.1350), (0.9033, -0.0636, -0.5514), 0.9082),
        ((50, 0, 0), (50, -1, 2), 2.3669),
    ],
)
def test_the_difference_agrees_with_the_published_values(p, q, expected):
    """Pairs of table 1 of Sharma, Wu and Dalal, The CIEDE2000 color-difference formula (2005)."""
    np.testing.assert_allclose(difference(p, q), expected, atol=5e-5)
    np.testing.assert_allclose(difference(q, p), expected, atol=5e-5)


def test_the_contrast_agrees_with_known_values():
    np.testing.assert_allclose(contrast(linear("#000000"), linear("#ffffff")), 21)
    np.testing.assert_allclose(contrast(linear("#777777"), linear("#ffffff")), 4.478, atol=1e-3)


@each_vision
def test_grey_is_grey_to_every_eye(vision):
    np.testing.assert_allclose(seen("#808080", vision), linear("#808080"), atol=1e-5)
