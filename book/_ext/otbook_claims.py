"""Claims as places that can be linked to, and the appendix that links to them.

A claim is a line ``✓ statement`` or ``✓ statement: number relation bound`` that a code cell printed
(``otbook.claims``). Each such line of a page has an anchor, and

    {claim}`foundations/duality: the gap to the LP closes`

links to it from anywhere in the book: the page, a colon, and the statement or a beginning of it that no
other statement of that page shares. A page that prints one statement several times means the first. A
link to a claim that does not exist fails the build under ``-W``.

The directives ``{sources-summary}`` and ``{sources-examined} S0`` print the rows of a data file, one for
each formula or assertion of a text, as cards with an anchor each.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import yaml
from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.builders import Builder
from sphinx.domains import Domain
from sphinx.environment import BuildEnvironment
from sphinx.errors import NoUri
from sphinx.roles import XRefRole
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective
from sphinx.util.nodes import make_refnode

logger = logging.getLogger(__name__)

ROWS = "appendix/sources_examined.yml"
VERDICTS = ["holds", "holds with a condition", "wrong", "opinion"]
#: How to link to a label, by the label's beginning.
LINKS = {
    "ch": "{{ref}}`{}`",
    "eq": "equation {{eq}}`{}`",
    "fig": "{{numref}}`{}`",
    **dict.fromkeys(["def", "thm", "prp", "lem", "cor"], "{{prf:ref}}`{}`"),
}


# --- Claims ---------------------------------------------------------------------------------------


def statements(output: str) -> list[str]:
    """Return the statements of the claims in a printed output, in their order."""
    return [line.partition(": ")[0] for line in re.findall(r"^✓ (.*)$", output, re.MULTILINE)]


def the_one(wanted: str, known: Iterable[str]) -> str:
    """Return the statement that is ``wanted`` or the only one that begins so; else raise ``LookupError``."""
    known = list(dict.fromkeys(known))
    found = [wanted] if wanted in known else [each for each in known if each.startswith(wanted)]
    if len(found) != 1:
        raise LookupError(f"{len(found)} claims begin so" if found else "no claim begins so")
    return found[0]


class claim_block(nodes.literal_block):
    """A printed output with claims; ``block["claims"]`` holds the ids of its lines with ✓."""


def mark_claims(app: Sphinx, doctree: nodes.document) -> None:
    """Give each printed claim an id, and tell the domain about it."""
    known: dict[str, str] = {}
    taken: set[str] = set()
    for block in list(doctree.findall(nodes.literal_block)):
        printed = statements(block.astext()) if "stream" in block["classes"] else []
        if printed:
            ids = []
            for statement in printed:
                ids.append(_unique(nodes.make_id(f"claim-{statement}"), taken))
                known.setdefault(statement, ids[-1])
            marked = claim_block(block.rawsource, block.astext(), **block.attributes, claims=ids)
            marked["classes"] = [*block["classes"], "claim"]
            marked.source, marked.line = block.source, block.line
            block.replace_self(marked)
    if known:
        app.env.get_domain("claim").pages[app.env.docname] = known


def _unique(name: str, taken: set[str]) -> str:
    candidate, number = name, 1
    while candidate in taken:
        number += 1
        candidate = f"{name}-{number}"
    taken.add(candidate)
    return candidate


def visit_claim_block(translator: Any, block: claim_block) -> None:
    """Write the output as usual, then wrap each line with ✓ in an element that carries its id."""
    ids = iter(block["claims"])

    def wrap(line: re.Match[str]) -> str:
        return f'<span class="claim" id="{next(ids)}">{line[0]}</span>'

    try:
        translator.visit_literal_block(block)
    except nodes.SkipNode:
        lines = re.compile(r"(?:^|(?<=<pre>)|(?<=</span>))✓ .*$", re.MULTILINE)
        translator.body[-1] = lines.sub(wrap, translator.body[-1])
        raise


class ClaimDomain(Domain):
    """Knows the claims of every page: ``pages[docname][statement] = id``."""

    name = label = "claim"
    initial_data: ClassVar = {"pages": {}}

    @property
    def pages(self) -> dict[str, dict[str, str]]:
        return self.data.setdefault("pages", {})

    def clear_doc(self, docname: str) -> None:
        """Forget the claims of a page that is read anew."""
        self.pages.pop(docname, None)

    def merge_domaindata(self, docnames: list[str], otherdata: dict) -> None:
        """Take over what another process has read."""
        self.pages.update({name: otherdata["pages"][name] for name in docnames if name in otherdata["pages"]})

    def resolve_xref(
        self, env: BuildEnvironment, fromdocname: str, builder: Builder, typ: str, target: str,
        node: nodes.Element, contnode: nodes.Element,
    ) -> nodes.reference:  # fmt: skip
        """Link to the claim ``page: statement``, or warn."""
        page, _, wanted = target.partition(": ")
        docname = f"{Path(env.config.root_doc).parent.as_posix()}/{page}".removeprefix("./")
        known = self.pages.get(docname, {})
        try:
            statement = the_one(wanted, known)
        except LookupError as why:
            logger.warning("claim %r of %s: %s", wanted, page, why, location=node)
            raise NoUri from why
        title = f"{env.titles[docname].astext()}: {statement}"
        text = contnode if node["refexplicit"] else nodes.inline("", f"✓\u00a0{statement}")
        return make_refnode(builder, fromdocname, docname, known[statement], text, title)


class ClaimRole(XRefRole):
    """``{claim}`page: statement```."""

    def process_link(
        self, env: BuildEnvironment, refnode: nodes.Element, has_explicit_title: bool, title: str, target: str
    ) -> tuple[str, str]:
        """Send the link to the domain, which resolves it when all pages are read."""
        refnode["refdomain"] = "claim"
        return title, target


# --- The texts, examined --------------------------------------------------------------------------


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of the data file."""
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def links(labels: Iterable[str]) -> list[str]:
    """Return the MyST that links to the given labels."""
    return [LINKS[label.split("-")[0]].format(label) for label in labels]


def kind(verdict: str) -> str:
    """Return the CSS class of the cards with a verdict."""
    return verdict.replace(" ", "-")


def choose(verdicts: Iterable[str]) -> str:
    """Return the buttons that choose which cards to show; the first one is chosen."""
    buttons = [
        f'<label><input type="radio" name="verdict" id="show-{kind(each)}"{"" if number else " checked"}>'
        f" {each}</label>"
        for number, each in enumerate(verdicts)
    ]
    return '<fieldset class="verdicts"><legend>Cards to show</legend>' + "\n".join(buttons) + "</fieldset>"


class _Rows(SphinxDirective):
    """What both directives share: the rows of the data file."""

    def rows(self) -> list[dict[str, Any]]:
        path = Path(self.env.srcdir, Path(self.env.config.root_doc).parent, ROWS)
        self.env.note_dependency(str(path))
        return read_rows(path)

    def parsed(self, text: str, into: nodes.Element) -> nodes.Element:
        """Parse MyST into a node."""
        lines = StringList(text.splitlines(), self.get_source_info()[0])
        self.state.nested_parse(lines, self.content_offset, into)
        return into


class SourcesSummary(_Rows):
    """``{sources-summary}``: how many rows of each text have which verdict, and a choice among them.

    The choice needs no script: ``claims.css`` hides the cards of the other verdicts.
    """

    def run(self) -> list[nodes.Node]:
        """Build the table and the choice."""
        rows = self.rows()
        texts = sorted({row["text"] for row in rows})
        counts = Counter((row["verdict"], row["text"]) for row in rows)
        lines = ["| verdict | " + " | ".join(texts) + " | all |", "| --- |" + " ---: |" * (len(texts) + 1)]
        for verdict in VERDICTS:
            numbers = [counts[verdict, text] for text in texts]
            lines.append(f"| {verdict} | " + " | ".join(map(str, [*numbers, sum(numbers)])) + " |")
        totals = [sum(row["text"] == text for row in rows) for text in texts]
        lines.append("| all | " + " | ".join(map(str, [*totals, len(rows)])) + " |")
        choice = nodes.raw("", choose(["all", *VERDICTS]), format="html")
        return [*self.parsed("\n".join(lines), nodes.container()).children, choice]


class SourcesExamined(_Rows):
    """``{sources-examined} S0``: one card for each row of a text."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Build the list of cards."""
        rows = [row for row in self.rows() if row["text"] == self.arguments[0]]
        if not rows:
            raise self.error(f"no rows for the text {self.arguments[0]}")
        return [nodes.definition_list("", *map(self.card, rows), classes=["simple", "sources"])]

    def card(self, row: dict[str, Any]) -> nodes.definition_list_item:
        """Build one card: place and verdict, what is said, the comment, where the book shows it."""
        place, messages = self.state.inline_text(row["section"], self.lineno)
        verdict = nodes.inline("", row["verdict"], classes=["verdict"])
        itself = nodes.reference("", "#", refid=row["id"], classes=["headerlink"], title="Link to this row")
        term = nodes.term("", "", *place, nodes.Text(" "), verdict, itself, ids=[row["id"]])
        body = self.parsed(row["says"], nodes.definition("", *messages))
        if "correction" in row:
            body += self.parsed(row["correction"], nodes.container(classes=["correction"]))
        shown = links(row["book"]) + [f"{{claim}}`{claim}`" for claim in row.get("claims", [])]
        body += self.parsed(" · ".join(shown), nodes.container(classes=["shown"]))
        for part in term, body:
            part["classes"].append(kind(row["verdict"]))
        return nodes.definition_list_item("", term, body)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the domain, the role, the node and the directives."""
    app.add_domain(ClaimDomain)
    app.add_role("claim", ClaimRole())
    app.add_node(claim_block, html=(visit_claim_block, None))
    app.add_directive("sources-summary", SourcesSummary)
    app.add_directive("sources-examined", SourcesExamined)
    app.connect("doctree-read", mark_claims)
    app.add_css_file("claims.css")
    return {"parallel_read_safe": True, "parallel_write_safe": True}
