"""The page *Status*: what the notebooks hold and how they were executed, and totals for any page.

- ``{book-status}`` lists the notebooks of the build with their claims, exercises, figures and running times;
  ``{book-versions}`` the libraries that made the outputs.
- ``{total}`claims``` is a number; also ``chapters``, ``exercises``, ``figures``, ``time``.

Counts are taken from the stored outputs at each build. Times and versions come from ``status.json``, which
``notebooks.py execute`` keeps.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import ClassVar

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.docutils import SphinxDirective, SphinxRole

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "_tools"))
import notebooks
import summary


def of_the_build(env: BuildEnvironment) -> dict[str, Path]:
    """The notebooks of the build in the order of the book, by page."""
    order = {name: place for place, name in enumerate(getattr(env.config, "external_site_map", None) or [])}
    pages = sorted(env.found_docs, key=lambda name: (order.get(name, len(order)), name))
    paths = {name: Path(env.doc2path(name)) for name in pages}
    return {name: path for name, path in paths.items() if path.suffix == ".ipynb"}


def recorded(root: Path, path: Path) -> dict:
    """What ``status.json`` says of a notebook."""
    return notebooks.read_status(root / notebooks.STATUS).get(path.relative_to(root).as_posix(), {})


def totals(env: BuildEnvironment) -> dict[str, str]:
    """The numbers that the role ``total`` knows."""
    root, paths = Path(env.srcdir), of_the_build(env).values()
    counts = summary.total(paths)
    seconds = sum(recorded(root, path).get("seconds", 0) for path in paths)
    return {
        "chapters": str(len(paths)),
        "claims": str(counts.claims),
        "exercises": str(counts.exercises),
        "figures": str(counts.figures),
        "time": summary.duration(seconds) if seconds else "–",
    }


class Total(SphinxRole):
    """``{total}`claims```: a number of the whole book."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """Insert the number."""
        known = totals(self.env)
        if self.text not in known:
            message = self.inliner.reporter.error(f"total must be one of {', '.join(known)}, not {self.text}")
            return [], [message]
        return [nodes.Text(known[self.text])], []


class Status(SphinxDirective):
    """``{book-status}``: a row for each notebook, and their sum."""

    has_content = False
    option_spec: ClassVar = {}

    def run(self) -> list[nodes.Node]:
        """Build the table."""
        root, rows = Path(self.env.srcdir), []
        for page, path in of_the_build(self.env).items():
            self.env.note_dependency(str(path))
            counts, seconds = summary.count(path), recorded(root, path).get("seconds")
            time = "–" if seconds is None else summary.duration(seconds)
            rows.append([f"{{doc}}`/{page}`", counts.claims, counts.exercises, counts.figures, time])
        self.env.note_dependency(str(root / notebooks.STATUS))
        total = totals(self.env)
        rows.append(
            ["**together**", *(f"**{total[k]}**" for k in ("claims", "exercises", "figures", "time"))]
        )
        head = [["chapter", "claims", "exercises", "figures", "time"], ["---", "--:", "--:", "--:", "--:"]]
        return _parsed(self, [f"| {' | '.join(map(str, row))} |" for row in [*head, *rows]])


class Versions(SphinxDirective):
    """``{book-versions}``: the libraries that made the outputs, with every version that was used."""

    has_content = False
    option_spec: ClassVar = {}

    def run(self) -> list[nodes.Node]:
        """Build the table."""
        root, found = Path(self.env.srcdir), {}
        for path in of_the_build(self.env).values():
            for library, version in recorded(root, path).get("versions", {}).items():
                found.setdefault(library, {}).setdefault(version, []).append(path)
        if not found:
            return _parsed(self, ["No execution is recorded."])
        rows = ["| library | version |", "| --- | --- |"]
        for library, versions in found.items():
            counts = sorted(versions.items(), key=lambda item: -len(item[1]))
            several = len(counts) > 1
            text = ", ".join(f"{v} ({len(paths)} chapters)" if several else v for v, paths in counts)
            rows.append(f"| {library} | {text} |")
        return _parsed(self, rows)


def _parsed(directive: SphinxDirective, text: list[str]) -> list[nodes.Node]:
    holder = nodes.container()
    source = directive.get_source_info()[0]
    directive.state.nested_parse(StringList(text, source), directive.content_offset, holder)
    return holder.children


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directives and the role."""
    app.add_directive("book-status", Status)
    app.add_directive("book-versions", Versions)
    app.add_role("total", Total())
    return {"parallel_read_safe": True, "parallel_write_safe": True}
