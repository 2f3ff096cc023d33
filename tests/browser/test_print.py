"""A chapter on paper: no controls, folds open, nothing cut, a plausible number of sheets."""

from __future__ import annotations

import re
from pathlib import Path

import pages
import pytest
from playwright.sync_api import BrowserContext

pytestmark = pytest.mark.browser

CHAPTER = "book/computation/sinkhorn.html"
LOOK = Path(__file__).with_name("paper.js").read_text(encoding="utf-8").partition("\n")[2]
#: What lies between the margins of A4 in print.css, in CSS pixels (96 an inch).
PAPER = {"width": round((210 - 2 * 16) / 25.4 * 96), "height": round((297 - 18 - 20) / 25.4 * 96)}
#: What has no use on paper.
CONTROLS = (
    "button, input, a.headerlink, .skip-link, .bd-sidebar-primary, .bd-sidebar-secondary,"
    " .bd-header-article, .prev-next-footer, .dropdown-launch-buttons"
)


def on_paper(visited: pages.Visit) -> list[str]:
    """What is wrong with the page as it is printed."""
    page = visited.page
    page.set_viewport_size(PAPER)
    page.emulate_media(media="print")
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    try:
        return page.evaluate(LOOK, CONTROLS)
    finally:
        page.emulate_media(media="screen")
        page.set_viewport_size(pages.DESKTOP)


def sheets(pdf: bytes) -> int:
    """The number of pages of a PDF that Chromium wrote."""
    return len(re.findall(rb"/Type\s*/Page\b", pdf))


def test_page(visited: pages.Visit) -> None:
    defects = on_paper(visited)
    assert not defects, "\n  ".join([f"{visited.name}: {len(defects)} defects on paper", *defects])


def test_a_chapter_prints(browser: BrowserContext, base: str, book: Path) -> None:
    """Opened anew, so that its proofs and solutions are folded, and in dark mode."""
    with pages.visit(browser, base, book, CHAPTER) as visited:
        page = visited.page
        page.evaluate("() => { document.documentElement.dataset.theme = 'dark' }")
        assert page.locator(".toggle-hidden").count() >= 3
        assert not on_paper(visited)
        assert page.evaluate("() => document.documentElement.dataset.theme") == "dark"
        pdf = page.pdf(prefer_css_page_size=True)
    assert 8 <= sheets(pdf) <= 40


# --- Each check can fail ---------------------------------------------------------------------------

PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>A page</title>
<link rel="icon" href="data:,"></head><body><article id="content"><h1>Title</h1><p>Text.</p>
<!-- defect --></article></body></html>"""


@pytest.mark.parametrize(
    ("defect", "expected"),
    [
        ("", ""),
        ("<button>copy</button>", "a control is printed"),
        ("<details><p>proof</p></details>", "not printed"),
        ('<div class="admonition"><p style="visibility: hidden">proof</p></div>', "not printed"),
        (f'<pre style="overflow: auto">{"x" * 200}</pre>', "cut by"),
        ('<div style="width: 900px">wide</div>', "beyond the paper"),
        ('<style>a::after { content: " (" attr(href) ")" }</style><a href="https://a.org">a</a>', "address"),
    ],
)
def test_its_defects_are_found(browser: BrowserContext, tmp_path: Path, defect: str, expected: str) -> None:
    (tmp_path / "page.html").write_text(PAGE.replace("<!-- defect -->", defect), encoding="utf-8")
    with pages.serve(tmp_path) as base, pages.visit(browser, base, tmp_path, "page.html") as visited:
        found = on_paper(visited)
    assert expected in "\n".join(found)
    assert bool(found) == bool(expected)


def test_sheets_are_counted(browser: BrowserContext) -> None:
    with browser.new_page() as page:
        page.set_content('<p>one</p><p style="break-before: page">two</p>')
        assert sheets(page.pdf()) == 2
