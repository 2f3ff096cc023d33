"""A page arrives soon: little to fetch, images when they come into view, room kept for them."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import pages
import pytest
from playwright.sync_api import Browser, BrowserContext

pytestmark = pytest.mark.browser

MOST = (
    1_500_000  # bytes of a page with everything it fetches, uncompressed; MathJax, kept by the browser, aside
)
SOONEST = 2.0  # seconds until a reader on the same machine sees text


def fetched(visited: pages.Visit) -> dict[str, int]:
    """Bytes of every file that the page fetches when it is read to its end, MathJax aside."""
    addresses = visited.page.evaluate(
        "() => [...performance.getEntriesByType('resource').map(entry => entry.name),"
        " ...[...document.images].map(image => image.currentSrc || image.src)]"
    )
    paths = {
        unquote(urlsplit(address).path).lstrip("/") for address in addresses if address.startswith("http")
    }
    files = {
        path: visited.folder / path
        for path in {visited.name, *paths}
        if not path.startswith("_static/mathjax/")
    }
    return {path: file.stat().st_size for path, file in files.items() if file.is_file()}


def light(visited: pages.Visit, most: int = MOST) -> list[str]:
    """The page and all it fetches are not too large."""
    sizes = fetched(visited)
    total = sum(sizes.values())
    if total <= most:
        return []
    largest = sorted(sizes, key=sizes.__getitem__, reverse=True)[:8]
    return [
        f"{total / 1e6:.2f} MB, more than {most / 1e6:.2f}; draw fewer points, or store as PNG",
        *(f"{sizes[path] / 1e6:.2f} MB {path}" for path in largest),
    ]


#: Asks the page as it was written: a test before this one may have made its images load.
IMAGES = """async () => {
  const written = new DOMParser().parseFromString(await (await fetch(location.href)).text(), "text/html");
  const images = [...document.querySelectorAll("article img")];
  return [...written.querySelectorAll("article img")].flatMap((image, k) => {
    const source = image.getAttribute("src") ?? "";
    const where = `${source.slice(0, 60)} “${image.alt.slice(0, 40)}”`;
    const [width, height] = [image.getAttribute("width"), image.getAttribute("height")];
    const { naturalWidth, naturalHeight } = images[k] ?? {};
    if (!(width > 0 && height > 0)) return [`no width and height, so that the page jumps: ${where}`];
    if (naturalWidth && Math.abs(width / height / (naturalWidth / naturalHeight) - 1) > 0.02)
      return [`said to be ${width} × ${height}, but is ${naturalWidth} × ${naturalHeight}: ${where}`];
    if (k > 0 && image.getAttribute("loading") !== "lazy" && !source.startsWith("data:"))
      return [`below the first image, but not loading="lazy": ${where}`];
    return [];
  });
}"""


def patient(visited: pages.Visit) -> list[str]:
    """Images have a size before they arrive, and only the first is fetched at once."""
    return visited.page.evaluate(IMAGES)


CHECKS = {"light": light, "patient": patient}


@pytest.mark.parametrize("check", CHECKS)
def test_page(visited: pages.Visit, check: str) -> None:
    defects = CHECKS[check](visited)
    assert not defects, "\n  ".join([visited.name, *defects])


def first_view(browser: Browser, address: str) -> float:
    """Seconds from the request of a page, with nothing kept from earlier visits, to its first text."""
    with browser.new_context(viewport=pages.DESKTOP) as fresh, fresh.new_page() as page:
        page.goto(address, wait_until="load")
        page.wait_for_function("() => performance.getEntriesByName('first-contentful-paint').length")
        return (
            page.evaluate("() => performance.getEntriesByName('first-contentful-paint')[0].startTime") / 1000
        )


def test_the_largest_page_is_seen_soon(browser: BrowserContext, base: str, book: Path) -> None:
    """The fastest of five: what else the machine does can only make it slower."""
    largest = max(pages.built_pages(book), key=lambda name: (book / name).stat().st_size)
    measured: list[float] = []
    while len(measured) < 5 and min(measured, default=SOONEST + 1) > SOONEST:
        measured.append(first_view(browser.browser, urljoin(base, largest)))
    assert min(measured) <= SOONEST, f"{largest} shows nothing for {min(measured):.1f} s"


# --- Each check can fail ---------------------------------------------------------------------------

PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>A page</title>
<link rel="icon" href="data:,"></head><body><article><h1>Title</h1>
<img src="point.svg" alt="a point" width="9" height="9">
<img src="point.svg" alt="a point" width="9" height="9" loading="lazy">
<!-- defect --></article></body></html>"""
POINT = '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><circle cx="4" cy="4" r="4"/></svg>'


@pytest.mark.parametrize(
    ("defect", "expected"),
    [
        ("", ""),
        ('<img src="point.svg" alt="b" loading="lazy">', "no width and height"),
        ('<img src="point.svg" alt="b" width="9" height="18" loading="lazy">', "said to be 9 × 18"),
        ('<img src="point.svg" alt="b" width="9" height="9">', 'not loading="lazy"'),
        ('<img src="large.svg" alt="b" width="9" height="9" loading="lazy">', "0.02 MB large.svg"),
    ],
)
def test_its_defects_are_found(browser: BrowserContext, tmp_path: Path, defect: str, expected: str) -> None:
    (tmp_path / "point.svg").write_text(POINT, encoding="utf-8")
    (tmp_path / "large.svg").write_text(POINT + " " * 20_000, encoding="utf-8")
    (tmp_path / "page.html").write_text(PAGE.replace("<!-- defect -->", defect), encoding="utf-8")
    with pages.serve(tmp_path) as base, pages.visit(browser, base, tmp_path, "page.html") as visited:
        found = [*light(visited, most=10_000), *patient(visited)]
    assert expected in "\n".join(found)
    assert bool(found) == bool(expected)
