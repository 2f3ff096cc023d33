"""The directive ``{playground}``: an interactive figure that computes in the reader's browser.

    ```{playground} matching
    :name: fig-exact-solvers-matching
    :alt: Red and blue points in a square, joined in pairs.

    The caption.
    ```

It is a figure like any other, numbered and referred to by its name, with a picture of the playground. Only
the pages that hold one load the scripts of ``book/_playgrounds``, and these put the playground where the
picture is. Without JavaScript and in print the picture stays.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.fileutil import copy_asset

PLAYGROUNDS = Path(__file__).resolve().parents[1] / "_playgrounds"
#: Where the pages find the scripts, below the static files.
PLACE = "playgrounds"


def names() -> list[str]:
    """The playgrounds there are: those with a picture."""
    return sorted(path.stem for path in (PLAYGROUNDS / "pictures").glob("*.png"))


class Playground(SphinxDirective):
    """``{playground} name``: the figure, with its picture, its caption and the place for the script."""

    required_arguments = 1
    has_content = True
    option_spec: ClassVar = {"name": directives.unchanged_required, "alt": directives.unchanged_required}

    def run(self) -> list[nodes.Node]:
        """Build the figure."""
        self.assert_has_content()
        (name,) = self.arguments
        if name not in names():
            raise self.error(f"there is no playground {name!r}; there are {', '.join(names())}")
        if len(self.options.get("alt", "")) < 20:
            raise self.error(f"the playground {name!r} needs an option :alt: that says what is drawn")
        picture = (PLAYGROUNDS / "pictures" / f"{name}.png").relative_to(self.env.srcdir)
        figure = nodes.figure(classes=["align-center"])
        figure += nodes.raw("", f'<div class="playground" data-playground="{name}"></div>', format="html")
        figure += nodes.image(uri=f"/{picture.as_posix()}", alt=self.options["alt"])
        text, messages = self.state.inline_text(" ".join(self.content), self.lineno)
        figure += nodes.caption("", "", *text)
        self.set_source_info(figure)
        self.add_name(figure)
        return [figure, *messages]


def has_playground(doctree: nodes.document | None) -> bool:
    """Whether a page holds a playground."""
    return doctree is not None and any(
        "data-playground" in raw.astext() for raw in doctree.findall(nodes.raw)
    )


def load_scripts(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Let a page that holds a playground load the script that starts it, and the style."""
    if has_playground(doctree):
        app.add_js_file(f"{PLACE}/playgrounds.js", type="module")
        app.add_css_file(f"{PLACE}/playgrounds.css")


def copy_scripts(app: Sphinx) -> None:
    """Put the scripts among the static files; in ``_static`` Jupyter Book may load them on every page."""
    if app.builder.format == "html":
        copy_asset(str(PLAYGROUNDS), str(Path(app.outdir) / "_static" / PLACE), excluded=_is_picture)


def _is_picture(path: str) -> bool:
    return path.endswith(".png") or Path(path).name == "pictures"


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive and its files."""
    app.add_directive("playground", Playground)
    app.connect("builder-inited", copy_scripts)
    app.connect("html-page-context", load_scripts)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
