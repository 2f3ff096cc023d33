"""The comparison of figures sees changed data and overlooks fonts and anti-aliasing."""

import base64
import io

import matplotlib.pyplot as plt
import numpy as np
import pytest

from otbook import plotting

from . import figures

plotting.use_style()


def draw(mime, *, options=None, factor=1.0, color=plotting.SOURCE, moved=0.0):
    """A small figure with a curve, text and a cloud; the keywords change one thing in it."""
    with plt.rc_context(options or {}):
        fig, (left, right) = plt.subplots(1, 2, figsize=(6.4, 3.2))
        t = np.linspace(0, 1, 50)
        left.plot(t, factor * np.exp(-3 * t), color=color, label="a curve")
        left.set(title="A title", xlabel="iterations", ylabel="error", ylim=(0, 1.1))
        left.legend()
        cloud = np.random.default_rng(0).normal(size=(40, 2))
        cloud[3] += moved
        plotting.points(right, cloud)
        buffer = io.BytesIO()
        fig.savefig(buffer, format=mime.split("/")[1].split("+")[0], dpi=144)
        plt.close(fig)
    data = buffer.getvalue()
    return figures.render(mime, data.decode() if "svg" in mime else base64.b64encode(data).decode())


@pytest.fixture(scope="module", params=["image/svg+xml", "image/png"])
def reference(request):
    return request.param, draw(request.param)


@pytest.mark.parametrize(
    "options",
    [{}, {"text.hinting": "none"}, {"text.antialiased": False, "lines.antialiased": False}],
    ids=["same", "hinting", "no anti-aliasing"],
)
def test_overlooks_rendering(reference, options):
    mime, picture = reference
    assert figures.difference(picture, draw(mime, options=options)) == ""


@pytest.mark.parametrize(
    "change",
    [{"factor": 1.08}, {"color": plotting.TARGET}, {"moved": 0.4}],
    ids=["data", "colour", "one point"],
)
def test_sees_a_change(reference, change):
    mime, picture = reference
    assert "pixels differ" in figures.difference(picture, draw(mime, **change))


def test_sees_another_shape():
    assert "heights differ" in figures.difference(np.ones((200, 480, 3)), np.ones((240, 480, 3)))


def test_finds_the_pictures_inside_html():
    svg, png = "<svg>é</svg>", base64.b64encode(b"picture").decode()
    code = base64.b64encode(svg.encode()).decode()
    page = f'<b>text</b><img src="data:image/svg+xml;base64,{code}"><img src="data:image/png;base64,{png}">'
    found = list(figures.pictures({"text/html": page, "image/png": png, "text/plain": "x"}))
    assert found == [("image/png", png), ("image/svg+xml", svg), ("image/png", png)]
    bare = figures.without_pictures(page)
    assert bare == '<b>text</b><img src="data:image/svg+xml"><img src="data:image/png">'
    assert figures.without_pictures(["not a text"]) == ["not a text"]
