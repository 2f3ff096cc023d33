"""Links from the chapters to the glossary: the first use of each term, found by itself.

A term is any name in the book's ``{glossary}``; names that share a definition count as one. Its first use in
the running prose of a notebook, in any case and in the plural, becomes a link of the class ``term``, which
the style sheet underlines with dots. Titles, links, code, formulas, tables and outputs are left alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.transforms.post_transforms import SphinxPostTransform

#: Other meanings of a term's words.
OTHER = (
    "admissible map", "attention of", "attention to", "barycentre of cell", "barycentre of the noise",
    "compact support", "conjugate gradient", "eigenvalue of the generator", "generator of a diffusion",
    "is the generator with", "marginal field", "marginal one", "random generator", "roots are conjugate",
    "supports no", "these assignments",
)  # fmt: skip
#: No running prose; nor is what stands inside one of these classes.
SKIPPED = (nodes.title, nodes.caption, nodes.table, nodes.footnote, nodes.citation, addnodes.glossary)
SKIPPED_CLASSES = {"cell", "cell_output", "from-otbook", "used-in"}
#: Inside a paragraph, what is no plain text.
NO_TEXT = (nodes.reference, nodes.literal, nodes.math, nodes.strong, nodes.raw, addnodes.pending_xref)
#: A letter before a hyphen is often a formula: $c$-transform.
LETTERS = {r"\varepsilon": "ε", r"\lambda": "λ"}


@dataclass(frozen=True)
class Term:
    """An entry of the glossary: its names, the anchor of the first, and what a pointer shows."""

    names: tuple[str, ...]
    anchor: str
    summary: str


def entries(glossary: nodes.document) -> list[Term]:
    """The entries of a page with a glossary."""
    found = []
    for item in glossary.findall(nodes.definition_list_item):
        terms = [child for child in item.children if isinstance(child, nodes.term) and child["ids"]]
        if terms and isinstance(item.parent.parent, addnodes.glossary):
            names = tuple(term.astext().replace("’", "'") for term in terms)
            found.append(Term(names, terms[0]["ids"][0], _summary(item)))
    return found


def _summary(item: nodes.definition_list_item) -> str:
    definition = next(item.findall(nodes.definition))
    if any(definition.findall(nodes.math)):
        return ""
    return definition.astext().rpartition(" See ")[0]


def plural(name: str) -> str:
    """The plural of a name, by the rules that the glossary needs."""
    if name.endswith("rix"):
        return name[:-2] + "ices"
    if re.search(r"[^aeiou]y$", name):
        return name[:-1] + "ies"
    return name + ("es" if re.search(r"(s|x|ch|sh)$", name) else "s")


def _pattern(name: str) -> str:
    forms = sorted({name, plural(name)}, key=len, reverse=True)
    text = "|".join(re.escape(form) for form in forms)
    text = text.replace(r"\ ", r"\s+").replace("'", "['’]")
    acronym = re.search(r"[A-Z]{2}", name)
    return f"(?:{text})" if acronym else f"(?i:{text})"


class Matcher:
    """Finds the terms of a glossary in a text, the longest name first."""

    def __init__(self, terms: list[Term]) -> None:
        self.terms = terms
        names = [(name, number) for number, term in enumerate(terms) for name in term.names]
        names += [(name, -1) for name in OTHER]
        names.sort(key=lambda pair: -len(pair[0]))
        self._numbers = [number for _, number in names]
        every = "|".join(f"({_pattern(name)})" for name, _ in names)
        self._regex = re.compile(rf"(?<![\w\-])(?:{every})(?![\w\-])")

    def find(self, text: str) -> Iterator[tuple[int, int, Term]]:
        """The places of terms in a text, with the terms."""
        for found in self._regex.finditer(text):
            number = self._numbers[found.lastindex - 1]
            if number >= 0:
                yield found.start(), found.end(), self.terms[number]


def is_prose(paragraph: nodes.paragraph) -> bool:
    """Whether a paragraph belongs to the running text of a chapter."""
    node: nodes.Node | None = paragraph.parent
    while node is not None:
        if isinstance(node, SKIPPED) or SKIPPED_CLASSES & set(node.get("classes", [])):
            return False
        node = node.parent
    return not SKIPPED_CLASSES & set(paragraph["classes"])


def _texts(element: nodes.Element) -> Iterator[tuple[nodes.Element, nodes.Text]]:
    for child in list(element.children):
        if isinstance(child, nodes.Text):
            yield element, child
        elif not isinstance(child, NO_TEXT):
            yield from _texts(child)


def link_terms(doctree: nodes.document, matcher: Matcher, address: str) -> list[Term]:
    """Link the first use of each term in a document to the glossary at ``address``; return the terms."""
    linked: list[Term] = []
    for paragraph in list(doctree.findall(nodes.paragraph)):
        if is_prose(paragraph):
            for parent, text in list(_texts(paragraph)):
                _link(parent, text, matcher, address, linked)
    return linked


def _link(
    parent: nodes.Element, text: nodes.Text, matcher: Matcher, address: str, linked: list[Term]
) -> None:
    place = next(k for k, child in enumerate(parent.children) if child is text)
    letter = _letter(parent[place - 1]) if place and text.startswith("-") else ""
    whole = letter + text
    new: list[nodes.Node] = []
    end = len(letter)
    for start, stop, term in matcher.find(whole):
        if term in linked or (start < end and not (start == 0 and letter)):
            continue
        link = nodes.reference("", "", internal=True, classes=["term"], refuri=f"{address}#{term.anchor}")
        if term.summary:
            link["reftitle"] = term.summary
        if start < end:  # the letter is a formula: $c$-transform
            link += [parent[place - 1].deepcopy(), nodes.Text(whole[end:stop])]
        else:
            new.append(nodes.Text(whole[end:start]))
            link += nodes.Text(whole[start:stop])
        new.append(link)
        linked.append(term)
        end = stop
    if new:
        first = place - 1 if letter and new[0].children else place
        parent[first : place + 1] = [*new, nodes.Text(whole[end:])]


def _letter(node: nodes.Node) -> str:
    source = node.astext() if isinstance(node, nodes.math) else ""
    return source if re.fullmatch(r"\w", source) else LETTERS.get(source, "")


def glossary_page(env: BuildEnvironment) -> str | None:
    """The page that holds the book's glossary, if there is one."""
    pages = {page for _, _, kind, page, _, _ in env.get_domain("std").get_objects() if kind == "term"}
    return min(pages, default=None)


class LinkTerms(SphinxPostTransform):
    """Links the terms of each notebook when its links are resolved."""

    default_priority = 700  # after Sphinx has resolved its own
    formats = ("html",)

    def run(self, **kwargs: object) -> None:
        """Link the terms of one page."""
        page = glossary_page(self.env)
        if page is None or Path(self.env.doc2path(self.env.docname)).suffix != ".ipynb":
            return
        if not hasattr(self.app, "otbook_terms"):
            self.app.otbook_terms = Matcher(entries(self.env.get_doctree(page)))
        address = self.app.builder.get_relative_uri(self.env.docname, page)
        link_terms(self.document, self.app.otbook_terms, address)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the transform."""
    app.add_post_transform(LinkTerms)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
