"""Take a picture of a page of the built book.

python tests/browser/screenshot.py book/computation/sinkhorn.html page.png [--phone] [--dark] [--full]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pages


def main() -> None:
    parser = argparse.ArgumentParser(description="Take a picture of a page of the built book.")
    parser.add_argument("page", help="path below the book's folder; #anchor scrolls to an element")
    parser.add_argument("picture", type=Path, help="PNG file to write")
    parser.add_argument("--html", type=Path, default=pages.ROOT / "_build/html", help="the built book")
    parser.add_argument("--phone", action="store_true", help="as wide as a phone")
    parser.add_argument("--dark", action="store_true", help="in dark mode")
    parser.add_argument("--full", action="store_true", help="the whole page, with everything unfolded")
    options = parser.parse_args()
    if pages.browser_path() is None:
        parser.error(pages.INSTALL)
    if not (options.html / options.page.partition("#")[0]).is_file():
        parser.error(f"{options.page} is not in {options.html}; build the book with: make book")
    size = pages.PHONE if options.phone else pages.DESKTOP
    with (
        pages.serve(options.html) as base,
        pages.chromium() as browser,
        pages.visit(browser, base, options.html, options.page, size) as visited,
    ):
        if options.dark:
            visited.page.evaluate("() => { document.documentElement.dataset.theme = 'dark' }")
        if options.full:
            visited.inspect("images()")
        visited.page.screenshot(path=options.picture, full_page=options.full, animations="disabled")


if __name__ == "__main__":
    main()
