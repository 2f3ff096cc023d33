"""The build refuses pages that load from other hosts; what it takes for a load."""

from __future__ import annotations

import sys
from pathlib import Path

import pages
import pytest

sys.path.insert(0, str(pages.ROOT / "book/_ext"))
from otbook_sphinx import MATHJAX, VENDOR, external_loads


@pytest.mark.parametrize(
    "loading",
    [
        '<script src="https://cdn.example.org/a"></script>',
        '<script src="//cdn.example.org/a"></script>',
        '<link rel="stylesheet" href="https://cdn.example.org/a">',
        '<link rel="preload" as="font" href="https://cdn.example.org/a">',
        '<img src="https://cdn.example.org/a">',
        '<img srcset="local.png 1x, https://cdn.example.org/a 2x">',
        '<iframe src="https://cdn.example.org/a"></iframe>',
        '<svg><image xlink:href="https://cdn.example.org/a"/></svg>',
        "<style>@import url(https://cdn.example.org/a);</style>",
        "<p style=\"background: url('https://cdn.example.org/a')\">",
    ],
)
def test_a_load_from_another_host_is_found(tmp_path: Path, loading: str) -> None:
    page = tmp_path / "page.html"
    page.write_text(loading, encoding="utf-8")
    (address,) = external_loads(page)
    assert address.removeprefix("https:") == "//cdn.example.org/a"


@pytest.mark.parametrize(
    "harmless",
    [
        '<a href="https://example.org">link</a>',
        '<link rel="canonical" href="https://example.org">',
        '<img src="data:image/png;base64,AAAA">',
        '<script src="../_static/a.js"></script>',
        "<p>url(https://example.org)</p>",
        "<style>/* url(https://example.org) */ p { background: url(a.png) }</style>",
    ],
)
def test_what_is_not_loaded_from_another_host_passes(tmp_path: Path, harmless: str) -> None:
    page = tmp_path / "page.html"
    page.write_text(harmless, encoding="utf-8")
    assert external_loads(page) == []


def test_a_style_sheet_is_read_too(tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.css"
    sheet.write_text('@import "https://cdn.example.org/a"; p { color: red }', encoding="utf-8")
    assert external_loads(sheet) == ["https://cdn.example.org/a"]


def test_the_bundled_mathjax_is_complete() -> None:
    assert (VENDOR / MATHJAX).is_file()
    assert len(list((VENDOR / MATHJAX).parent.glob("output/chtml/fonts/woff-v2/*.woff"))) == 23
    assert "Apache License" in (VENDOR / "mathjax/LICENSE").read_text(encoding="utf-8")
