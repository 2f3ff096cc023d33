"""The repairs of the themes' HTML, and the icons that are left of two thousand."""

from __future__ import annotations

import base64
import sys

import pytest

from repository import ROOT

sys.path.insert(0, str(ROOT / "book/_ext"))
from otbook_accessibility import with_sized_images, with_table_roles, without_icon_script, without_stale_names
from otbook_icons import reduced

SVG = b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" width="72pt" height="36pt"></svg>'


@pytest.fixture
def files(tmp_path):
    (tmp_path / "a.svg").write_bytes(SVG)
    return {"a.svg": tmp_path / "a.svg"}


def test_an_image_says_its_size_and_all_but_the_first_wait(files):
    image = '<img alt="x" src="../_images/a.svg">'
    page = with_sized_images(f"{image}<article>{image}{image}</article>", files)
    assert page == (
        f'{image}<article><img width="96" height="48" alt="x" src="../_images/a.svg">'
        '<img loading="lazy" width="96" height="48" alt="x" src="../_images/a.svg"></article>'
    )


def test_an_image_within_the_page_says_its_size_too():
    data = base64.b64encode(SVG).decode()
    page = with_sized_images(f'<article><img src="data:image/svg+xml;base64,{data}"></article>', {})
    assert '<img width="96" height="48" src="data:' in page


@pytest.mark.parametrize("tag", ['<img src="gone.svg">', "<img>", '<img src="a.svg" width="5">'])
def test_what_is_unknown_or_said_already_stays(files, tag):
    assert with_sized_images(f"<article>{tag}</article>", files) == f"<article>{tag}</article>"


def test_the_script_of_the_icons_goes_and_other_scripts_stay():
    other = '<script src="_static/doctools.js"></script>'
    icons = '<script src="_static/vendor/fontawesome/6.5.2/js/all.min.js?digest=1"></script>'
    font = (
        '<link rel="preload" as="font" href="_static/vendor/fontawesome/6.5.2/webfonts/fa-solid-900.woff2" />'
    )
    assert without_icon_script(f"{other}\n  {icons}\n{font}") == other


@pytest.mark.parametrize(
    ("written", "repaired"),
    [
        ('<summary aria-label="Toggle hidden content">', "<summary>"),
        ('<summary aria-label="A proof">', '<summary aria-label="A proof">'),
        (
            '<button class="btn search-button-field" title="Search" aria-label="Search">',
            '<button class="btn search-button-field" title="Search">',
        ),
        ('<button class="btn" aria-label="Search">', '<button class="btn" aria-label="Search">'),
        ('<div role="doc-biblioentry">', '<div role="listitem">'),
    ],
)
def test_a_control_is_called_what_is_written_on_it(written, repaired):
    assert without_stale_names(written) == repaired


def test_only_icons_in_use_are_left():
    source = (
        'src:url(../webfonts/fa-solid-900.woff2) format("woff2"),url(../webfonts/x.ttf) format("truetype")'
    )
    face = r"@font-face{font-family:Font Awesome\ 6 Free;" + source + "}"
    old = r"@font-face{font-family:Font Awesome\ 5 Free;" + source + "}"
    rules = r'.fa-bars:before,.fa-navicon:before{content:"\f0c9"}.fa-xmark:before{content:"\f00d"}'
    sheet, codes = reduced(".fa-lg{font-size:1em}" + face + old + rules, {"bars", "lg"}, {0xF071})
    assert codes == {0xF0C9, 0xF071}
    assert sheet == (
        r".fa-lg{font-size:1em}@font-face{font-family:Font Awesome\ 6 Free;"
        r'src:url(../webfonts/fa-solid-900.woff) format("woff")}'
        r'.fa-bars:before,.fa-navicon:before{content:"\f0c9"}'
    )


def test_a_stacked_table_says_what_its_parts_are():
    other = '<table class="docutils"><tr><td>b</td></tr></table>'
    table = (
        '<table class="api docutils"><thead><tr class="row-odd"><th class="head">a</th></tr></thead>'
        "<tbody><tr><td>b<tt>c</tt></td></tr></tbody></table>"
    )
    assert with_table_roles(other + table + other) == (
        f'{other}<table role="table" class="api docutils"><thead role="rowgroup">'
        '<tr role="row" class="row-odd">'
        '<th role="columnheader" class="head">a</th></tr></thead><tbody role="rowgroup"><tr role="row">'
        f'<td role="cell">b<tt>c</tt></td></tr></tbody></table>{other}'
    )
