"""Pages for every reader, that arrive soon: what the themes' HTML lacks or has too much of.

- Icons come as a font (``otbook_icons``), not by a script of 1.5 MB as well.
- Controls are called what is written on them.
- An image says its size, so that nothing jumps when it arrives, and is fetched when it comes into view.
- A table that is stacked on a phone says that it is a table, which its cells laid out as blocks would hide.
- Formulas are no stops of the Tab key, except those that scroll (``accessibility.js``).
- ``print.css`` prints a chapter without what is for the screen.
"""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path
from typing import Any

import imagesize
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.jinja2glue import BuiltinTemplateLoader

ICON_SCRIPT = re.compile(r'\s*<script src="[^"]*fontawesome[^"]*\.js[^"]*"></script>')
ICON_PRELOAD = re.compile(r'\s*<link rel="preload" as="font"[^>]*/fa-[^>]*>')
#: Names and roles that say less than the words they stand for, or nothing, or are missing.
STALE = [
    (re.compile(r'<summary aria-label="Toggle hidden content">'), "<summary>"),
    (re.compile(r'<summary>(?=<span class="toctree-toggle")'), '<summary aria-label="Pages below this one">'),
    (re.compile(r'(<button class="[^"]*search-button-field[^>]*?) aria-label="Search"'), r"\1"),
    (re.compile(r'role="doc-biblioentry"'), 'role="listitem"'),
]
IMAGE = re.compile(r"<img\b[^>]*>")
STACKED = re.compile(r'<table class="[^"]*\b(?:api|cheat)\b.*?</table>', re.DOTALL)
PART = re.compile(r"<(table|thead|tbody|tr|th|td)(?=[ >])")
ROLES = {"thead": "rowgroup", "tbody": "rowgroup", "tr": "row", "th": "columnheader", "td": "cell"}
ARTICLE = re.compile(r"<article\b.*</article>", re.DOTALL)


def without_icon_script(page: str) -> str:
    """Leave out the script that draws icons and the early load of fonts that ``otbook_icons`` replaces."""
    return ICON_PRELOAD.sub("", ICON_SCRIPT.sub("", page))


def without_stale_names(page: str) -> str:
    """Let controls be called what is written on them, and entries of a list be its items."""
    for pattern, replacement in STALE:
        page = pattern.sub(replacement, page)
    return page


def with_table_roles(page: str) -> str:
    """Say of the parts of stacked tables what they are, whatever their layout."""

    def named(part: re.Match[str]) -> str:
        return f'{part.group()} role="{ROLES.get(part[1], part[1])}"'

    return STACKED.sub(lambda table: PART.sub(named, table.group()), page)


def with_sized_images(page: str, files: dict[str, Path]) -> str:
    """Give the images of the article their width and height, and leave all but the first for later.

    ``files`` says where the image of each name in ``_images`` is.
    """
    seen = 0

    def sized(match: re.Match[str]) -> str:
        nonlocal seen
        seen += 1
        tag = match.group()
        source = re.search(r'\bsrc="([^"]*)"', tag)
        width, height = _size(source.group(1), files) if source else (-1, -1)
        added = "" if seen == 1 or "loading=" in tag else ' loading="lazy"'
        if width > 0 and not re.search(r"\b(?:width|height)\s*[=:]", tag):
            added += f' width="{round(width)}" height="{round(height)}"'
        return f"<img{added}{tag[4:]}"

    return ARTICLE.sub(lambda article: IMAGE.sub(sized, article.group()), page)


def _size(source: str, files: dict[str, Path]) -> tuple[float, float]:
    if source.startswith("data:") and ";base64," in source:
        return imagesize.get(io.BytesIO(base64.b64decode(source.partition(",")[2])))
    path = files.get(source.rpartition("/")[2])
    return imagesize.get(path) if path else (-1, -1)


class Templates(BuiltinTemplateLoader):
    """Sphinx's templates; a page is repaired as it is rendered."""

    def init(self, builder: Any, theme: Any = None, dirs: list[str] | None = None) -> None:
        """Keep the builder, which knows where images come from."""
        super().init(builder, theme, dirs)
        self.builder = builder

    def render(self, template: str, context: dict[str, Any]) -> str:
        """Render and repair a page."""
        page = super().render(template, context)
        if not template.endswith(".html"):
            return page
        files = {name: Path(self.builder.srcdir, path) for path, name in self.builder.images.items()}
        page = with_table_roles(without_stale_names(without_icon_script(page)))
        return with_sized_images(page, files)


def configure(app: Sphinx, config: Config) -> None:
    """Render with the templates above; take formulas out of the order of the Tab key."""
    config.template_bridge = f"{__name__}.{Templates.__name__}"
    options = config.mathjax3_config.setdefault("options", {})
    options.setdefault("menuOptions", {}).setdefault("settings", {})["inTabOrder"] = False


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect the functions above to the build."""
    app.connect("config-inited", configure)
    app.add_js_file("accessibility.js", defer="defer")
    app.add_css_file("print.css", media="print")
    return {"parallel_read_safe": True, "parallel_write_safe": True}
