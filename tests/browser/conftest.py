"""The browser and the built book that the tests of this folder share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pages
import pytest
from playwright.sync_api import BrowserContext

HTML = Path(os.environ.get("OTBOOK_HTML", pages.ROOT / "_build/html")).resolve()


@pytest.fixture(scope="session")
def browser() -> Iterator[BrowserContext]:
    if pages.browser_path() is None:
        (pytest.fail if os.environ.get("CI", "").lower() in ("1", "true") else pytest.skip)(pages.INSTALL)
    with pages.chromium() as started:
        yield started


@pytest.fixture(scope="session")
def book() -> Path:
    if not pages.built_pages(HTML):
        pytest.fail(f"no built book in {HTML}; build it with: make book")
    return HTML


@pytest.fixture(scope="session")
def base(book: Path) -> Iterator[str]:
    with pages.serve(book) as address:
        yield address


@pytest.fixture(scope="session", params=pages.built_pages(HTML) or ["book/index.html"])
def visited(
    request: pytest.FixtureRequest, browser: BrowserContext, base: str, book: Path
) -> Iterator[pages.Visit]:
    """One page of the book, opened once for the tests of all files."""
    with pages.visit(browser, base, book, request.param) as opened:
        yield opened
