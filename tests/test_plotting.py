"""Figures: stored bytes that never change by themselves, and drawings that show the data they are given."""

import base64
import io
import re
from html.parser import HTMLParser

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image

from otbook import plotting


@pytest.fixture(autouse=True)
def style():
    with plt.rc_context():
        plotting.use_style()
        yield
    plt.close("all")


@pytest.fixture
def shown(monkeypatch):
    """What ``show`` hands to the notebook, one bundle a call."""
    bundles = []
    monkeypatch.setattr("IPython.display.display", lambda data, raw: bundles.append(data))
    return bundles


def draw():
    fig, ax = plt.subplots()
    ax.plot([0, 1, 2], [0, 1, 4])
    return fig


@pytest.mark.parametrize(
    ("format", "mime"), [("svg", "image/svg+xml"), ("png", "image/png"), ("jpeg", "image/jpeg")]
)
def test_show_gives_the_same_bytes_each_time_and_closes(shown, format, mime):
    for _ in range(2):
        plotting.show(draw(), format=format)
    assert shown[0] == shown[1]
    assert set(shown[0]) == {mime, "text/plain"}
    assert plt.get_fignums() == []
    if format != "svg":
        picture = Image.open(io.BytesIO(base64.b64decode(shown[0][mime])))
        assert picture.size == (921, 518)


def test_show_knows_three_formats(shown):
    with pytest.raises(ValueError, match="format must be 'svg', 'png' or 'jpeg', but is 'gif'"):
        plotting.show(draw(), format="gif")
    assert shown == []


def line(k, figsize=(3, 2)):
    fig, ax = plt.subplots(figsize=figsize)
    ax.plot([0, 1], [0, k])
    return fig


ALT = "A line of slope {label}."


class Elements(HTMLParser):
    """The elements of a slider, in their order, as (tag, attributes, text)."""

    def __init__(self, page):
        super().__init__()
        self.found = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append([tag, dict(attrs), ""])

    def handle_data(self, data):
        self.found[-1][2] += data.strip()

    def all(self, tag):
        return [(attributes, text) for name, attributes, text in self.found if name == tag]


@pytest.mark.parametrize(("format", "mime"), [("svg", "image/svg+xml"), ("png", "image/png")])
def test_a_frame_is_a_button_with_its_label_and_its_picture(shown, format, mime):
    plotting.frames(line, [0, "½", 1.0], alt=ALT, legend="slope <k>", format=format, start=1)
    bundle = shown[0]
    assert list(bundle) == ["text/html", mime, "text/plain"]
    assert bundle["text/plain"] == "<3 frames: slope <k> 0, ½, 1>"
    page = Elements(bundle["text/html"])
    kinds = [tag for tag, _, _ in page.found]
    assert kinds == ["div", "style", "fieldset", "legend", *["input", "label", "img"] * 3]
    assert page.all("legend")[0][1] == "slope <k>"
    buttons, labels, images = page.all("input"), page.all("label"), page.all("img")
    assert [("checked" in a, a["type"]) for a, _ in buttons] == [(k == 1, "radio") for k in range(3)]
    assert len({a["name"] for a, _ in buttons}) == 1
    assert [text for _, text in labels] == ["0", "½", "1"]
    assert [a["for"] for a, _ in labels] == [a["id"] for a, _ in buttons]
    assert [a["id"] for a, _ in images] == [a["aria-describedby"] for a, _ in buttons]
    assert [a["alt"] for a, _ in images] == [ALT.replace("{label}", name) for name in ("0", "½", "1")]
    pictures = [base64.b64decode(a["src"].removeprefix(f"data:{mime};base64,")) for a, _ in images]
    assert len(set(pictures)) == 3
    fallback = bundle[mime].encode() if format == "svg" else base64.b64decode(bundle[mime])
    assert pictures[1] == fallback
    assert plt.get_fignums() == []


def test_a_slider_needs_no_script_and_no_other_host(shown):
    plotting.frames(line, [0, 1], alt=ALT, format="svg")
    page = shown[0]["text/html"]
    assert not re.search(r"<script|\son[a-z]+=|javascript:|https?://|url\(", page)


def test_sliders_differ_in_their_ids_alone(shown):
    for figures in (line, [line(0), line(1)]):
        plotting.frames(figures, [0, 1], alt=ALT)
    one, other = (bundle["text/html"] for bundle in shown)
    groups = [re.search(r"frames-\d+-\w+", page).group() for page in (one, other)]
    assert groups[0] != groups[1]
    assert one.replace(groups[0], groups[1]) == other


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"labels": [1]}, "at least two frames, but has 1"),
        ({"labels": [1, 1.0]}, "labels must differ, but are"),
        ({"alt": "A line."}, "alt must give 2 different texts"),
        ({"alt": ["A line."]}, "alt must give 2 different texts"),
        ({"alt": ["A line.", " "]}, "alt must give 2 different texts"),
        ({"figures": []}, "as many as the 2 labels, but are 0"),
        ({"start": 2}, "start must be one of the frames 0 to 1, but is 2"),
        (
            {"figures": lambda k: line(k, (3 + k, 2))},
            r"frame 1 is \(4.0, 2.0\) and frame 0 \(3.0, 2.0\) inches",
        ),
        ({"format": "gif"}, "format must be 'svg', 'png' or 'jpeg', but is 'gif'"),
    ],
)
def test_frames_that_make_no_slider_are_refused(shown, changed, message):
    with pytest.raises(ValueError, match=message):
        plotting.frames(**{"figures": line, "labels": [0, 1], "alt": ALT, **changed})
    assert shown == []


def test_frames_that_are_too_large_are_refused(shown, monkeypatch):
    monkeypatch.setattr(plotting._show, "_FRAMES_LIMIT", 10_000)
    with pytest.raises(ValueError, match=r"take 0\.0\d MB, more than 1 MB"):
        plotting.frames(line, [0, 1], alt=ALT)
    assert shown == []


def test_areas_are_proportional_to_weights():
    ax = plotting.points(plt.figure().gca(), torch.zeros(3, 2), torch.tensor([0.5, 0.3, 0.2]), size=10)
    np.testing.assert_allclose(ax.collections[0].get_sizes(), [15, 9, 6])


def test_segments_join_what_the_plan_joins():
    x, y = torch.tensor([[0.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    P = torch.tensor([[0.4, 0.0], [0.2, 0.4]])
    ax = plotting.plan_segments(plt.figure().gca(), x, y, P, width=2)
    segments = ax.collections[0].get_segments()
    np.testing.assert_allclose(segments, [[[0, 0], [1, 0]], [[0, 1], [1, 0]], [[0, 1], [1, 1]]])
    np.testing.assert_allclose(ax.collections[0].get_linewidths(), [2, 1, 2])


def test_the_matrix_of_a_plan_has_whole_ticks_and_its_entries():
    P = torch.rand(3, 9, generator=torch.Generator().manual_seed(0))
    ax = plotting.plan_matrix(plt.figure().gca(), P, title="plan")
    np.testing.assert_allclose(ax.images[0].get_array(), P)
    assert all(float(t).is_integer() for t in (*ax.get_xticks(), *ax.get_yticks()))


def test_a_picture_is_clipped_to_colours():
    ax = plotting.picture(plt.figure().gca(), torch.tensor([[[-0.5, 0.5, 1.5]]]))
    np.testing.assert_allclose(ax.images[0].get_array(), [[[0, 0.5, 1]]])


def test_a_band_holds_the_middle_of_the_samples():
    samples = torch.arange(11.0)[:, None].expand(11, 2)
    ax = plotting.band(plt.figure().gca(), torch.tensor([0.0, 1.0]), samples, label="ten")
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [5, 5])
    heights = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == (1, 9)
