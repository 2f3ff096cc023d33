"""Take the pictures of the playgrounds that stand for them without JavaScript and in print.

    make book && python book/_tools/playgrounds.py

Each is a playground of the built book after a few steps, as a small PNG in ``book/_playgrounds/pictures``.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/browser"))

import pages

PICTURES = ROOT / "book/_playgrounds/pictures"
PAGE = "book/appendix/playgrounds.html"
#: What happens to a playground before its picture is taken.
ACTS = {
    "matching": "p => p.frame()",
    "sinkhorn": "p => { p.state.eps = 2e-4; p.frame(); p.finish() }",
    "interpolation": "p => p.frame()",
    "power_diagram": "p => { for (let k = 0; k < 15; k++) p.gradient(); p.newton() }",
    "flow": "p => { for (let k = 0; k < 40; k++) p.frame() }",
    "neurons": "p => { for (let k = 0; k < 100; k++) p.frame() }",
}


def main() -> None:
    """Open the page with the six playgrounds and take their pictures."""
    html = ROOT / "_build/html"
    with pages.serve(html) as base, pages.chromium() as browser:
        page = browser.browser.new_page(viewport=pages.DESKTOP, device_scale_factor=1.5)
        page.goto(f"{base}{PAGE}")
        for name, act in ACTS.items():
            place = page.locator(f"[data-playground={name}]")
            place.locator("xpath=..").scroll_into_view_if_needed()
            page.wait_for_function(f"() => document.querySelector('[data-playground={name}]').playground")
            place.evaluate(f"place => ({act})(place.playground)")
            page.wait_for_timeout(300)
            shot = Image.open(io.BytesIO(place.locator(".panels").screenshot()))
            few = shot.convert("RGB").quantize(128, dither=Image.Dither.NONE)
            few.save(PICTURES / f"{name}.png", optimize=True)
            print(f"{name}: {(PICTURES / f'{name}.png').stat().st_size / 1000:.0f} KB")


if __name__ == "__main__":
    main()
