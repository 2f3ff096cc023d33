"""The examined texts: a reader chooses which cards to see, with the keyboard too, and without a script."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pages
import pytest
import yaml
from playwright.sync_api import BrowserContext

pytestmark = pytest.mark.browser

PAGE = "book/appendix/sources_examined.html"
ROWS = pages.ROOT / "book/appendix/sources_examined.yml"


def shown(visited: pages.Visit) -> int:
    """How many cards are visible, each with its heading and its text."""
    heads, texts = (visited.page.locator(f"dl.sources > {part}:visible").count() for part in ("dt", "dd"))
    assert heads == texts
    return heads


def test_the_cards_of_one_verdict(browser: BrowserContext, base: str, book: Path) -> None:
    rows = yaml.safe_load(ROWS.read_text(encoding="utf-8"))
    counts = Counter(row["verdict"] for row in rows)
    with pages.visit(browser, base, book, PAGE) as visited:
        assert shown(visited) == len(rows)
        for verdict, count in counts.items():
            visited.page.get_by_label(verdict, exact=True).check()
            assert shown(visited) == count, verdict
        visited.page.get_by_label("wrong", exact=True).check()
        visited.page.keyboard.press("ArrowRight")
        assert visited.page.get_by_label("opinion", exact=True).is_checked()
        assert shown(visited) == counts["opinion"]
        visited.page.get_by_label("all", exact=True).check()
        assert shown(visited) == len(rows)


def test_a_link_leads_to_a_card_that_is_hidden(browser: BrowserContext, base: str, book: Path) -> None:
    rows = yaml.safe_load(ROWS.read_text(encoding="utf-8"))
    right = next(row["id"] for row in rows if row["verdict"] == "holds")
    wrong = sum(row["verdict"] == "wrong" for row in rows)
    with pages.visit(browser, base, book, f"{PAGE}#{right}") as visited:
        visited.page.get_by_label("wrong", exact=True).check()
        assert shown(visited) == wrong + 1
        assert visited.page.locator(f"#{right}").is_visible()
