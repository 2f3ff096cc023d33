"""Every page of the built book in a real browser, and proof that each check can fail."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pages
import pytest
import yaml
from playwright.sync_api import BrowserContext

pytestmark = pytest.mark.browser

CHECKS: dict[str, Callable[[pages.Visit], list[str]]] = {
    "no error in the console": pages.silent,
    "nothing from another host": pages.self_contained,
    "formulas typeset": pages.typeset,
    "still": pages.still,
    "links resolve": pages.links_resolve,
    "images load": pages.images_load,
    "images described": pages.images_described,
    "fits a phone": pages.fits_phone,
    "legible in light mode": partial(pages.legible, theme="light"),
    "legible in dark mode": partial(pages.legible, theme="dark"),
    "structured": pages.structured,
    "skips by keyboard": pages.skips_by_keyboard,
    "installs nothing": pages.installs_nothing,
}


def report(visited: pages.Visit, defects: list[str]) -> str:
    return "\n  ".join([f"{visited.name}: {len(defects)} defects", *defects])


def repository() -> pages.Repository:
    config = yaml.safe_load((pages.ROOT / "_config.yml").read_text(encoding="utf-8"))
    home, launch = config["repository"], config["launch_buttons"]
    return pages.Repository(home["url"], home["branch"], launch["binderhub_url"], launch["colab_url"])


@pytest.mark.parametrize("check", CHECKS)
def test_page(visited: pages.Visit, check: str) -> None:
    defects = CHECKS[check](visited)
    assert not defects, report(visited, defects)


def test_launch_buttons(visited: pages.Visit) -> None:
    defects = pages.launches(visited, repository())
    assert not defects, report(visited, defects)


def test_the_root_leads_to_the_first_page(browser: BrowserContext, base: str, book: Path) -> None:
    toc = yaml.safe_load((pages.ROOT / "_toc.yml").read_text(encoding="utf-8"))
    with browser.new_page() as page:
        page.goto(base)
        page.wait_for_url(f"{base}{toc['root']}.html", timeout=5000)


def test_every_entry_of_the_table_of_contents_has_a_page(book: Path) -> None:
    toc = yaml.safe_load((pages.ROOT / "_toc.yml").read_text(encoding="utf-8"))
    chapters = [chapter for part in toc["parts"] for chapter in part["chapters"]]
    below = [section for chapter in chapters for section in chapter.get("sections", [])]
    entries = [toc["root"], *(entry["file"] for entry in [*chapters, *below])]
    missing = [entry for entry in entries if not (book / f"{entry}.html").is_file()]
    assert not missing, f"in _toc.yml but not in {book}: {missing}; build it with: make book"


@pytest.mark.parametrize(
    ("query", "page"),
    [
        ("Birkhoff", "book/foundations/monge_kantorovich.html"),
        ("Gelbrich", "book/foundations/line_and_gaussians.html"),
        ("Hilbert metric", "book/computation/sinkhorn.html"),
    ],
)
def test_search_finds_a_theorem_by_name(
    browser: BrowserContext, base: str, book: Path, query: str, page: str
) -> None:
    with pages.visit(browser, base, book, "search.html") as visited:
        found = pages.search(visited, query)
    assert page in found, f"the search for {query!r} finds {found or 'nothing'}, not {page}"


# --- Each check can fail -------------------------------------------------------------------------

GOOD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>A page</title><link rel="icon" href="data:,">
<meta name="viewport" content="width=device-width">
<style>:root { color-scheme: light dark } [data-theme=light] body { background: #fff; color: #222 }
[data-theme=dark] body { background: #121212; color: #ddd }</style></head>
<body><a href="#content">Skip to the content</a><main id="content"><article>
<h1>Title</h1><p>Text.</p><h2 id="part">Part</h2><a href="#part">link</a>
<img src="point.svg" alt="a point">
<div style="overflow-x: auto"><div style="width: 900px">wide, but in a box that scrolls</div></div>
<div class="math notranslate"><mjx-container>x</mjx-container></div>
<!-- defect --></article></main></body></html>"""
POINT = '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><circle cx="4" cy="4" r="4"/></svg>'


def broken_formula(why: str) -> str:
    error = f'<mjx-merror data-mjx-error="{why}"></mjx-merror>'
    return f'<div class="math notranslate"><mjx-container>{error}</mjx-container></div>'


def too_wide(name: str) -> str:
    return f'<pre id="{name}">{"x" * 200}</pre>'


DEFECTS = {  # check: {what replaces the comment: a part of the report}
    "no error in the console": {
        "<script>throw Error('broken script')</script>": "broken script",
        "<script>console.error('complaint')</script>": "complaint",
    },
    "nothing from another host": {
        '<img src="https://cdn.example.org/x.png" alt="a picture">': "cdn.example.org",
        '<script src="gone.js"></script>': "gone.js: 404",
    },
    "formulas typeset": {
        r'<span class="math notranslate">\(x^2\)</span>': "not typeset",
        broken_formula("Undefined control sequence"): "Undefined control sequence",
        "<p>so $$x = 1$$ follows</p>": "left as text",
        "<p>so $x = 1$ follows</p>": "left as text",
    },
    "still": {
        '<p id="fades" style="transition: opacity 0s, color 0.2s">text</p>': "<p#fades>",
        "<style>@keyframes dim { to { opacity: 0 } } h2::after { animation: dim 1s }</style>": "<h2#part>",
        "<style>html { scroll-behavior: smooth }</style>": "<html>",
    },
    "links resolve": {
        '<a href="gone.html">click</a>': "missing page: gone.html",
        '<a href="#gone">click</a>': "missing anchor: #gone",
        '<a href="good.html#gone">click</a>': "missing anchor: good.html#gone",
    },
    "images load": {'<img src="gone.png" alt="nothing">': "gone.png"},
    "images described": {
        '<img src="point.svg">': "without alt",
        '<img src="point.svg" alt="_images/ab12.svg">': "file name",
    },
    "fits a phone": {
        '<div id="wide" style="width: 700px">wide</div>': "<div#wide>",
        too_wide("text"): "<pre#text>",
        f'<div style="overflow: hidden">{too_wide("cut-off")}</div>': "<pre#cut-off>",
        f"<details><summary>more</summary>{too_wide('folded')}</details>": "<pre#folded>",
    },
    "legible in light mode": {
        '<p style="color: #999">pale</p>': "contrast 2.85 < 4.5: <p> in #content “pale”",
        '<p style="opacity: 0.3">thin</p>': "“thin”",
    },
    "legible in dark mode": {
        '<p style="color: #444">dark on dark</p>': "“dark on dark”",
        '<p style="background: #fff">white box</p>': "“white box”",
    },
    "structured": {
        "<h1>Another</h1>": "2 visible <h1>",
        "<h4>Deep</h4>": "skips a level",
        '<p id="part">again</p>': "id used twice",
        "<button></button>": "without a name",
    },
    "skips by keyboard": {'<button tabindex="1">me first</button>': "me first"},
    "installs nothing": {'<div class="cell">%pip install otbook</div>': "pip install"},
}


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    folder = tmp_path_factory.mktemp("samples")
    (folder / "point.svg").write_text(POINT, encoding="utf-8")
    (folder / "good.html").write_text(GOOD, encoding="utf-8")
    with pages.serve(folder) as address:
        yield address, folder


def test_a_good_page_passes(browser: BrowserContext, samples: tuple[str, Path]) -> None:
    with pages.visit(browser, *samples, "good.html") as visited:
        defects = {check: found for check, run in CHECKS.items() if (found := run(visited))}
    assert not defects


@pytest.mark.parametrize("check", CHECKS)
def test_its_defects_are_found(browser: BrowserContext, samples: tuple[str, Path], check: str) -> None:
    for number, (defect, expected) in enumerate(DEFECTS[check].items()):
        name = f"{check} {number}.html"  # a new name each time: the browser remembers pages
        (samples[1] / name).write_text(GOOD.replace("<!-- defect -->", defect), encoding="utf-8")
        with pages.visit(browser, *samples, name) as visited:
            defects = CHECKS[check](visited)
        assert any(expected in found for found in defects), f"{defect} gives {defects}"


def test_a_wrong_launch_button_is_found(browser: BrowserContext, tmp_path: Path) -> None:
    home = pages.Repository("https://github.com/someone/book", "main", "https://binder", "https://colab")
    right = home.launch_addresses("page.ipynb")
    links = "".join(f'<a href="{address}">{service}</a>' for service, address in right.items())
    menu = f'<div class="dropdown-launch-buttons">{links}</div>'
    (tmp_path / "_sources").mkdir()
    (tmp_path / "_sources/page.ipynb").write_text("{}", encoding="utf-8")
    (tmp_path / "page.html").write_text(GOOD.replace("<!-- defect -->", menu), encoding="utf-8")
    with pages.serve(tmp_path) as address, pages.visit(browser, address, tmp_path, "page.html") as visited:
        assert pages.launches(visited, home) == []
        elsewhere = replace(home, branch="other")
        assert len(pages.launches(visited, elsewhere)) == 2
        (tmp_path / "_sources/page.ipynb").unlink()
        assert len(pages.launches(visited, home)) == 2  # a page that is no notebook has no such button
