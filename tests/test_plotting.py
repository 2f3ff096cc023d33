"""Figures: stored bytes that never change by themselves, and drawings that show the data they are given."""

import base64
import io

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
