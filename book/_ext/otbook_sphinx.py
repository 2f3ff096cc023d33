"""What the book needs from Sphinx beyond its themes, above all pages that load nothing from other hosts.

- MathJax is served from ``book/_vendor``.
- Thebe's scripts (code cells run on a remote server) are left out: the book does not use them.
- Proofs have a title line, so that they fold; ids are unique in a page.
- A page that would load anything from another host fails the build, by name.
- Claims have anchors, and a role links to them (``otbook_claims``).
"""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import ClassVar
from urllib.parse import urlsplit

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

#: The other extensions of the book, one for each thing.
PARTS = ["accessibility", "icons", "links", "claims", "playgrounds", "reference", "glossary", "status"]

logger = logging.getLogger(__name__)

VENDOR = Path(__file__).resolve().parents[1] / "_vendor"
MATHJAX = "mathjax/es5/tex-chtml-full.js"  # with all TeX packages: `tex-chtml.js` fetches some on demand

#: Attributes that make a browser load an address, by element; the links of an ``<a>`` are only for clicking.
LOADING = {
    "audio": ["src"], "embed": ["src"], "iframe": ["src"], "img": ["src", "srcset"], "input": ["src"],
    "link": ["href"], "object": ["data"], "script": ["src"], "source": ["src", "srcset"], "track": ["src"],
    "video": ["src", "poster"], "image": ["href", "xlink:href"], "use": ["href", "xlink:href"],
}  # fmt: skip
#: Relations of a ``<link>`` that a browser does not load.
NAMED_ONLY = {"canonical", "license", "author", "prev", "next", "search", "index", "alternate"}


def serve_mathjax(app: Sphinx, config: Config) -> None:
    """Put the bundled MathJax among the static files and point the pages at it."""
    config.html_static_path.append(str(VENDOR))
    config.mathjax_path = MATHJAX


def disconnect_thebe(app: Sphinx, config: Config) -> None:
    """Keep Thebe, an extension that Jupyter Book always loads, from adding its files to the pages.

    They would run cells on a remote server, which the book does not do, and one of them, put in
    twice, is an error in the browser.
    """
    for listeners in app.events.listeners.values():
        for listener in [each for each in listeners if each.handler.__module__ == "sphinx_thebe"]:
            app.disconnect(listener.id)
    styles = app.registry.css_files
    styles[:] = [style for style in styles if style[0] != "sphinx-thebe.css"]


class Proof(SphinxDirective):
    """``{prf:proof}``: a proof with a title line, which ``:class: dropdown`` needs to have its button on.

    The optional argument follows the word: ``{prf:proof} of {prf:ref}`thm-birkhoff```.
    """

    optional_arguments = 1
    final_argument_whitespace = True
    has_content = True
    option_spec: ClassVar = {"class": directives.class_option}

    def run(self) -> list[nodes.Node]:
        """Build the admonition."""
        self.assert_has_content()
        text, messages = self.state.inline_text(" ".join(["Proof", *self.arguments]), self.lineno)
        proof = nodes.admonition(classes=["proof", *self.options.get("class", [])])
        proof += nodes.title("", "", *text)
        self.state.nested_parse(self.content, self.content_offset, proof)
        self.set_source_info(proof)
        return [proof, *messages]


def give_unique_ids(app: Sphinx, doctree: nodes.document) -> None:
    """Name the body of each theorem and exercise after it: the extensions give all of them one id."""
    for section in doctree.findall(nodes.section):
        if section["ids"] in (["proof-content"], ["exercise-content"], ["solution-content"]):
            owner = section.parent["ids"] or [f"box-{doctree.settings.env.new_serialno('box')}"]
            section["ids"] = [f"{owner[0]}-content"]


class _Loads(HTMLParser):
    """Collects the addresses that a page makes a browser load."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._in_style = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect the loading attributes of one element."""
        attributes = dict(attrs)
        self._in_style = tag == "style"
        self.found += _css_addresses(attributes.get("style") or "")
        if tag == "link" and NAMED_ONLY & set((attributes.get("rel") or "").lower().split()):
            return
        for name in LOADING.get(tag, []):
            value = attributes.get(name) or ""
            self.found += re.findall(r"[^\s,]\S*[^\s,]", value) if name == "srcset" else [value]

    def handle_endtag(self, tag: str) -> None:
        """Leave a style element."""
        self._in_style = False

    def handle_data(self, data: str) -> None:
        """Collect the addresses in an embedded style sheet."""
        if self._in_style:
            self.found += _css_addresses(data)


def _css_addresses(css: str) -> list[str]:
    css = re.sub(r"/\*.*?\*/", "", css, flags=re.DOTALL)
    return re.findall(r"""(?:url\(\s*|@import\s+(?!url))["']?([^"')\s;]+)""", css)


def external_loads(path: Path) -> list[str]:
    """Return the addresses on other hosts that the HTML or CSS file ``path`` loads."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".css":
        addresses = _css_addresses(text)
    else:
        parser = _Loads()
        parser.feed(text)
        addresses = parser.found
    return [address for address in addresses if urlsplit(address).netloc]


def refuse_external_loads(app: Sphinx, error: Exception | None) -> None:
    """Warn, which fails the build under ``-W``, about every file that loads from another host."""
    if error is not None or app.builder.format != "html":
        return
    out = Path(app.outdir)
    for path in sorted([*out.rglob("*.html"), *out.rglob("*.css")]):
        for address in external_loads(path):
            page = path.relative_to(out)
            logger.warning("%s loads %s from another host; bundle it or link to it", page, address[:120])


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect the functions above to the build."""
    app.setup_extension("sphinx_proof")
    for part in PARTS:
        app.setup_extension(f"otbook_{part}")
    app.add_directive_to_domain("prf", "proof", Proof, override=True)
    app.connect("config-inited", serve_mathjax)
    app.connect("config-inited", disconnect_thebe)
    app.connect("doctree-read", give_unique_ids)
    app.connect("build-finished", refuse_external_loads)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
