"""The built book in a real browser: a loopback server, Chromium, and the checks that a page must pass.

A checker takes a :class:`Visit` and returns a list of sentences, one a defect; none means it passed.
What needs the rendered page is in ``inspect.js``.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urljoin, urlsplit

from playwright.sync_api import (
    BrowserContext,
    ConsoleMessage,
    Page,
    Request,
    Response,
    ViewportSize,
    sync_playwright,
)

ROOT = Path(__file__).resolve().parents[2]
INSPECT = Path(__file__).with_name("inspect.js")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
INSTALL = f"none of {', '.join(BROWSERS)} is installed; install one with: apt-get install chromium"
DESKTOP = {"width": 1280, "height": 900}
PHONE = {"width": 390, "height": 844}
#: Pages that Sphinx generates and that hold no text of the book.
GENERATED = {"index.html", "genindex.html", "search.html", "prf-prf.html", "py-modindex.html"}
READABLE = 4.5  # contrast ratio of text, WCAG 2.2 criterion 1.4.3, level AA


# --- Server and browser --------------------------------------------------------------------------


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        """Keep the terminal for the tests' own report."""


@contextmanager
def serve(folder: Path) -> Iterator[str]:
    """Serve a folder on the loopback interface; yields its address, which ends with a slash."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder))) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()


def browser_path() -> str | None:
    """Where the system's Chromium is, or None."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


@contextmanager
def chromium() -> Iterator[BrowserContext]:
    """Start Chromium without motion and without any network but the loopback interface."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=browser_path(),
            args=[
                "--no-sandbox",
                "--disable-gpu",
                "--no-first-run",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
                "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
            ],
        )
        try:
            yield browser.new_context(viewport=DESKTOP, color_scheme="light", reduced_motion="reduce")
        finally:
            browser.close()


# --- Visits --------------------------------------------------------------------------------------


@dataclass
class Visit:
    """A page open in the browser, with what happened while it loaded."""

    name: str  # path below the book's folder, such as "book/index.html"
    folder: Path
    base: str
    page: Page
    errors: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def on_console(self, message: ConsoleMessage) -> None:
        """Note an error in the console."""
        if message.type == "error":
            self.errors.append(message.text)

    def on_request(self, request: Request) -> None:
        """Note a request to another host."""
        if _is_foreign(request.url, self.base):
            self.foreign.append(request.url)

    def on_response(self, response: Response) -> None:
        """Note a request that the server could not answer."""
        if response.status >= 400:
            self.failed.append(f"{response.url}: {response.status}")

    def inspect(self, question: str) -> list[str]:
        """Ask ``inspect.js``, with everything that folds on the page unfolded."""
        found = self.page.evaluate(f"() => {{ inspect.unfold(); return inspect.{question} }}")
        return list(dict.fromkeys(found))


@contextmanager
def visit(
    browser: BrowserContext, base: str, folder: Path, name: str, size: ViewportSize | None = None
) -> Iterator[Visit]:
    """Open a page of ``folder``, in a window of some size, and wait until its formulas are typeset."""
    with browser.new_page() as page:
        if size:
            page.set_viewport_size(size)
        visited = Visit(name, folder, base, page)
        page.on("console", visited.on_console)
        page.on("pageerror", lambda error: visited.errors.append(f"uncaught: {error}"))
        page.on("request", visited.on_request)
        page.on("requestfailed", lambda request: visited.failed.append(f"{request.url}: {request.failure}"))
        page.on("response", visited.on_response)
        page.add_init_script(path=INSPECT)
        page.goto(urljoin(base, name), wait_until="load")
        page.evaluate("async () => { await window.MathJax?.startup?.promise; await document.fonts.ready }")
        yield visited


def _is_foreign(address: str, base: str) -> bool:
    parts = urlsplit(address)
    return parts.scheme not in ("data", "blob", "about") and parts.netloc != urlsplit(base).netloc


def built_pages(folder: Path) -> list[str]:
    """Names of the book's own pages, in alphabetical order; the root only sends the reader on to one."""
    found = (path.relative_to(folder) for path in folder.rglob("*.html"))
    return sorted(str(path) for path in found if path.parts[0] != "_static" and str(path) not in GENERATED)


# --- Checkers ------------------------------------------------------------------------------------


def silent(visited: Visit) -> list[str]:
    """No error in the browser's console."""
    return [f"console: {error}" for error in visited.errors]


def self_contained(visited: Visit) -> list[str]:
    """No request to another host, and none that failed."""
    foreign = [f"request to another host: {address}" for address in visited.foreign]
    return foreign + [f"request failed: {request}" for request in visited.failed]


def typeset(visited: Visit) -> list[str]:
    """Every formula is typeset."""
    return visited.inspect("formulas()")


def still(visited: Visit) -> list[str]:
    """Nothing moves for a reader who asks for less motion, as this browser does."""
    return visited.inspect("motion()")


def images_load(visited: Visit) -> list[str]:
    """Every image loads."""
    return visited.inspect("images()")


def images_described(visited: Visit) -> list[str]:
    """Every image of the article has an alternative text that says something."""
    return visited.inspect("alternatives()")


def links_resolve(visited: Visit) -> list[str]:
    """Every link within the book leads to a file, and to an element of it where it names one."""
    found = []
    address = urljoin(visited.base, visited.name)
    links = visited.page.eval_on_selector_all(
        "a[href]", "links => links.map(a => [a.getAttribute('href'), a.textContent.trim().slice(0, 40)])"
    )
    for href, text in dict.fromkeys(map(tuple, links)):
        parts = urlsplit(urljoin(address, href))
        if parts.scheme not in ("http", "https") or _is_foreign(parts.geturl(), visited.base):
            continue
        target = visited.folder / unquote(parts.path).lstrip("/")
        if target.is_dir():
            target /= "index.html"
        if not target.is_file():
            found.append(f"link to a missing page: {href} “{text}”")
        elif parts.fragment and unquote(parts.fragment) not in _anchors(target):
            found.append(f"link to a missing anchor: {href} “{text}”")
    return found


@cache
def _anchors(path: Path) -> frozenset[str]:
    anchors: set[str] = set()

    class Collector(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            anchors.update(value for key, value in attrs if value and key in ("id", "name"))

    Collector().feed(path.read_text(encoding="utf-8"))
    return frozenset(anchors)


def fits_phone(visited: Visit) -> list[str]:
    """Nothing is wider than a phone's screen, except what scrolls inside itself."""
    visited.page.set_viewport_size(PHONE)
    # The page's own script answers a change of width in the next frame.
    frame = "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
    visited.page.evaluate(frame)
    try:
        return visited.inspect("tooWide()")
    finally:
        visited.page.set_viewport_size(DESKTOP)


def legible(visited: Visit, theme: str) -> list[str]:
    """All text has enough contrast in the ``"light"`` or ``"dark"`` mode."""
    visited.page.emulate_media(color_scheme=theme)
    visited.page.evaluate("theme => { document.documentElement.dataset.theme = theme }", theme)
    return visited.inspect(f"contrast({READABLE})")


def structured(visited: Visit) -> list[str]:
    """Language, title, landmarks, skip link, headings in order, unique ids, named controls."""
    return visited.inspect("structure()")


def skips_by_keyboard(visited: Visit) -> list[str]:
    """The first stop of the Tab key is the visible link that skips to the content."""
    visited.page.evaluate("() => { document.activeElement.blur(); scrollTo(0, 0) }")
    visited.page.keyboard.press("Tab")
    focused = visited.page.evaluate(
        "() => { const e = document.activeElement; const b = e.getBoundingClientRect();"
        " return [e.textContent.trim(), b.width > 1 && b.height > 1 && b.top >= 0 && b.left >= 0] }"
    )
    if not re.search("skip", focused[0], re.IGNORECASE):
        return [f"the first Tab stops at “{focused[0][:40]}” instead of the skip link"]
    return [] if focused[1] else ["the skip link is not visible when it has the focus"]


def installs_nothing(visited: Visit) -> list[str]:
    """The cell that installs otbook on Colab is not shown."""
    cells = visited.page.locator("article .cell").filter(has_text="pip install")
    return [f"an installation cell is shown: {text[:60]}" for text in cells.all_inner_texts()]


@dataclass(frozen=True)
class Repository:
    """Where ``_config.yml`` says that the book lives."""

    url: str
    branch: str
    binder: str
    colab: str

    def launch_addresses(self, notebook: str) -> dict[str, str]:
        """The addresses at which Binder and Colab open a notebook, given its path."""
        project = urlsplit(self.url).path.strip("/")
        return {
            "Binder": f"{self.binder}/v2/gh/{project}/{self.branch}?urlpath=lab/tree/{notebook}",
            "Colab": f"{self.colab}/github/{project}/blob/{self.branch}/{notebook}",
        }


def launches(visited: Visit, repository: Repository) -> list[str]:
    """On a notebook's page, Binder's and Colab's buttons open this notebook; other pages have none."""
    notebook = str(Path(visited.name).with_suffix(".ipynb"))
    expected = repository.launch_addresses(notebook) if is_notebook(visited) else {}
    found = []
    for service in ("Binder", "Colab"):
        links = visited.page.locator(".dropdown-launch-buttons a", has_text=service).all()
        addresses = [unquote(link.get_attribute("href") or "") for link in links]
        wanted = [expected[service]] if expected else []
        if addresses != wanted:
            found.append(f"{service}: the page has the buttons {addresses}, but should have {wanted}")
    return found


def is_notebook(visited: Visit) -> bool:
    """Whether the page was built from a notebook."""
    return (visited.folder / "_sources" / visited.name).with_suffix(".ipynb").is_file()


def search(visited: Visit, query: str) -> list[str]:
    """The pages that the book's search finds; ``visited`` is any page of the book."""
    page = visited.page
    page.goto(urljoin(visited.base, f"search.html?q={query}"), wait_until="load")
    page.locator("#search-results h2", has_text="Search Results").wait_for(state="attached")
    links = page.eval_on_selector_all("#search-results li a", "links => links.map(link => link.href)")
    return [urlsplit(link).path.lstrip("/") for link in links]
