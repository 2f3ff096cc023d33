"""Every page passes axe-core's rules for WCAG 2.1, levels A and AA, and the keyboard reaches everything."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from uuid import uuid4

import pages
import pytest
from playwright.sync_api import BrowserContext, ViewportSize

pytestmark = pytest.mark.browser

AXE = Path(__file__).with_name("vendor") / "axe/axe.min.js"
LEVELS = {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]}
#: The rules whose answer depends on the colours, and the one that depends on the width.
COLOURS = {"type": "rule", "values": ["color-contrast", "link-in-text-block"]}
SCROLLING = {"type": "rule", "values": ["scrollable-region-focusable"]}
#: While axe looks, formulas are empty boxes of their size, and one word of code stands for all of its colour:
#: MathJax's thousands of glyphs and the lexer's of spans would make it several times as slow.
SHORTEN = """() => {
  inspect.unfold();
  const formulas = [...document.querySelectorAll("mjx-container")].map((box) => [box, [...box.childNodes]]);
  const sizes = formulas.map(([box]) => (box.querySelector("mjx-math") ?? box).getBoundingClientRect());
  formulas.forEach(([box], k) => {
    const empty = document.createElement("span");
    empty.style.cssText = `display: inline-block; width: ${sizes[k].width}px; height: ${sizes[k].height}px`;
    box.replaceChildren(empty);
  });
  const listings = [...document.querySelectorAll("pre")].map((listing) => [listing, listing.cloneNode(true)]);
  const seen = new Set();
  for (const [listing, short] of listings) {
    const language = listing.parentElement.parentElement.className;
    for (const word of short.querySelectorAll("span[class]")) {
      const kind = `${language}/${word.className}`;
      if (seen.has(kind) && !word.childElementCount) word.replaceWith(word.textContent);
      seen.add(kind);
    }
    listing.replaceWith(short);
  }
  window.restore = () => {
    for (const [listing, short] of listings) short.replaceWith(listing);
    for (const [box, content] of formulas) box.replaceChildren(...content);
  };
}"""
ASK = """async (rules) => {
  const { violations } = await axe.run(document, { runOnly: rules, resultTypes: ["violations"] });
  const why = (node) => [...node.any, ...node.all, ...node.none].map((check) => check.message).join("; ");
  const tell = (node) => [node.target.flat().join(" "), node.html, why(node)];
  return violations.map(({ id, help, nodes }) => [id, help, nodes.map(tell)]);
}"""
FRAME = "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"

# --- axe-core ------------------------------------------------------------------------------------


def audit(visited: pages.Visit) -> list[str]:
    """What axe-core objects to: all rules in light mode, colours in dark, scrolling on a phone."""
    page = visited.page
    if not page.evaluate("() => Boolean(window.axe)"):
        page.evaluate(AXE.read_text(encoding="utf-8"))
    set_theme(visited, "light")
    page.evaluate(SHORTEN)
    try:
        found = violations(visited, LEVELS, "in light mode")
        set_theme(visited, "dark")
        found += violations(visited, COLOURS, "in dark mode")
        page.set_viewport_size(pages.PHONE)
        page.evaluate(FRAME)
        return found + violations(visited, SCROLLING, "on a phone")
    finally:
        set_theme(visited, "light")
        page.set_viewport_size(pages.DESKTOP)
        page.evaluate("() => restore()")


def violations(visited: pages.Visit, rules: dict[str, object], where: str) -> list[str]:
    """The broken rules, each with the element and the remedy."""
    found = []
    for rule, remedy, elements in visited.page.evaluate(ASK, rules):
        for target, html, message in elements[:5]:
            found.append(f"{rule} {where}: {target}: {html[:120]}\n    {remedy}. {message}")
        if len(elements) > 5:
            found.append(f"{rule} {where}: {len(elements) - 5} more elements")
    return found


def set_theme(visited: pages.Visit, theme: str) -> None:
    visited.page.emulate_media(color_scheme=theme)
    visited.page.evaluate("theme => { document.documentElement.dataset.theme = theme }", theme)


def test_page(visited: pages.Visit) -> None:
    defects = audit(visited)
    assert not defects, "\n  ".join([f"{visited.name}: {len(defects)} defects", *defects])


# --- The keyboard ------------------------------------------------------------------------------------

WHERE = (Path(__file__).with_name("keyboard.js")).read_text(encoding="utf-8").partition("\n")[2]
CHAPTER = "book/computation/sinkhorn.html"
ALWAYS = {"skip link", "search", "theme switch", "launch menu", "fold"}


def walk(visited: pages.Visit, most: int = 1000) -> tuple[list[str], list[str]]:
    """Press Tab until the page ends: the kinds of things reached, and what is wrong on the way."""
    reached, found = [], []
    for _ in range(most):
        visited.page.keyboard.press("Tab")
        stop = visited.page.evaluate(WHERE)
        if stop is None:
            return reached, found
        if stop["again"]:
            found.append(f"the Tab key does not leave {stop['name']}")
            return reached, found
        if not stop["seen"]:
            found.append(f"the focus is on something invisible: {stop['name']}")
        if not stop["outlined"]:
            found.append(f"no visible outline of the focus (`:focus-visible`): {stop['name']}")
        reached += stop["kinds"]
    return reached, [*found, f"the page does not end after {most} presses of Tab"]


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        pytest.param(pages.DESKTOP, ALWAYS | {"chapter list", "table of contents"}, id="desktop"),
        pytest.param(pages.PHONE, ALWAYS | {"code that scrolls", "formula that scrolls"}, id="phone"),
    ],
)
def test_the_keyboard_reaches_everything(
    browser: BrowserContext, base: str, book: Path, size: ViewportSize, expected: set[str]
) -> None:
    with pages.visit(browser, base, book, CHAPTER, size) as visited:
        folds = visited.page.locator(".toggle-button").count()
        reached, defects = walk(visited)
    assert not defects, "\n  ".join([CHAPTER, *dict.fromkeys(defects)])
    assert expected <= set(reached), f"{CHAPTER}: no press of Tab reaches {expected - set(reached)}"
    assert reached.count("fold") == folds >= 3


def test_a_fold_opens_and_closes_with_the_keyboard(browser: BrowserContext, base: str, book: Path) -> None:
    with pages.visit(browser, base, book, CHAPTER) as visited:
        button = visited.page.locator(".toggle-button").first
        content = visited.page.locator(".admonition.toggle").first.locator(".admonition-title ~ *").first
        button.focus()
        for key, expanded in (("Enter", "true"), ("Space", "false"), ("Space", "true")):
            visited.page.keyboard.press(key)
            assert button.get_attribute("aria-expanded") == expanded
            assert content.is_visible() == (expanded == "true")
        assert re.search(r"Proof|Solution", button.get_attribute("aria-label") or "")


@pytest.mark.parametrize(("side", "kind"), [("primary", "chapter list"), ("secondary", "table of contents")])
def test_a_list_opens_on_a_phone_and_gives_the_focus_back(
    browser: BrowserContext, base: str, book: Path, side: str, kind: str
) -> None:
    with pages.visit(browser, base, book, CHAPTER, pages.PHONE) as visited:
        page, button = visited.page, visited.page.locator(f".{side}-toggle:visible")
        link = page.locator(f".bd-sidebar-{side} nav a").first
        assert not link.is_visible()
        button.press("Enter")
        page.locator(f".bd-sidebar-{side} a:focus").first.wait_for()  # the theme's script moves the focus
        page.keyboard.press("Tab")
        stop = page.evaluate(WHERE)
        assert stop["kinds"] == [kind]
        assert stop["seen"]
        page.keyboard.press("Escape")
        page.locator(f".{side}-toggle:focus").wait_for()
        assert not link.is_visible()


# --- Each check can fail -----------------------------------------------------------------------------

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>A page</title><link rel="icon" href="data:,">
<meta name="viewport" content="width=device-width">
<style>[data-theme=light] body { background: #fff; color: #222 } .scrolls { overflow: auto }
[data-theme=dark] body { background: #121212; color: #ddd } a { color: inherit }</style></head>
<body><main><article><h1>Title</h1><p>Text.</p><a href="#">link</a>
<!-- defect --></article></main></body></html>"""


@pytest.fixture
def spoiled(browser: BrowserContext, tmp_path: Path) -> Iterator[Callable[[str], pages.Visit]]:
    """Opens a good page with a given defect."""
    with ExitStack() as stack:
        base = stack.enter_context(pages.serve(tmp_path))

        def open_page(defect: str) -> pages.Visit:
            name = f"{uuid4()}.html"  # a new one each time: the browser remembers pages
            (tmp_path / name).write_text(PAGE.replace("<!-- defect -->", defect), encoding="utf-8")
            return stack.enter_context(pages.visit(browser, base, tmp_path, name))

        yield open_page


@pytest.mark.parametrize(
    ("defect", "expected"),
    [
        ('<img src="data:,">', "image-alt"),
        ("<button></button>", "button-name"),
        ('<p style="color: #999">pale</p>', "color-contrast in light mode"),
        ('<p id="a" aria-labelledby="b">x</p><ul><p>no item</p></ul>', "list"),
        ("<script>document.documentElement.lang = ''</script>", "html-has-lang"),
        ('<p style="color: #555">dark</p>', "color-contrast in dark mode"),
        (
            f'<pre class="scrolls">{"code " * 60}</pre>',
            "scrollable-region-focusable on a phone",
        ),
    ],
)
def test_axe_finds_a_defect(spoiled: Callable[[str], pages.Visit], defect: str, expected: str) -> None:
    assert audit(spoiled("")) == []
    found = audit(spoiled(defect))
    assert any(sentence.startswith(expected) for sentence in found), found


@pytest.mark.parametrize(
    ("defect", "expected"),
    [
        ('<button style="outline: none">bare</button>', "no visible outline"),
        ('<button style="opacity: 0">ghost</button>', "something invisible"),
        ('<button style="position: fixed; left: 2000px">outside</button>', "something invisible"),
        ('<button onkeydown="event.preventDefault()">trap</button>', "does not leave"),
    ],
)
def test_the_walk_finds_a_defect(spoiled: Callable[[str], pages.Visit], defect: str, expected: str) -> None:
    assert walk(spoiled("")) == ([], [])
    assert any(expected in sentence for sentence in walk(spoiled(defect))[1])
