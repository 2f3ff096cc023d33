"""The glossary: its entries, the links that lead to it, and the identifiers of the bibliography."""

from __future__ import annotations

import re
import sys

import nbformat
import pytest
from docutils import nodes
from pybtex.database import parse_file, parse_string
from sphinx import addnodes

import notebooks
from notebooks import ROOT

sys.path.insert(0, str(ROOT / "book/_ext"))
import otbook_glossary as glossary

PAGE = (ROOT / "book/appendix/glossary.md").read_text(encoding="utf-8")


# --- The page ------------------------------------------------------------------------------------


def entries(page):
    """The entries of a page as (names, definition), read from its text."""
    body = re.search(r"^````\{glossary\}\n(.*?)^````$", page, re.MULTILINE | re.DOTALL).group(1)
    found = []
    for block in re.split(r"\n\s*\n", body.strip("\n")):
        lines = block.split("\n")
        names = tuple(line for line in lines if not line.startswith(" "))
        found.append((names, " ".join(line.strip() for line in lines if line.startswith(" "))))
    return found


ENTRIES = entries(PAGE)


def prose():
    """The text of all chapters."""
    read = [nbformat.read(path, as_version=4) for path in notebooks.chapters()]
    return "\n\n".join(c.source for notebook in read for c in notebook.cells if c.cell_type == "markdown")


PROSE = prose()


def labels():
    """The targets that the chapters define."""
    found = re.findall(r"^\(([\w-]+)\)=|^:label: ([\w-]+)|\$\$ \(([\w-]+)\)", PROSE, re.MULTILINE)
    return {next(filter(None, groups)) for groups in found}


def without_place(entries, known):
    """Entries that name no place of the book, or one that does not exist."""
    found = []
    for names, definition in entries:
        place = definition.rpartition(" See ")[2]
        targets = re.findall(r"\{(?:prf:ref|eq|ref)\}`([\w-]+)`", place)
        documents = re.findall(r"\{doc\}`/([\w/]+)`", place)
        there = all((ROOT / f"{document}.ipynb").is_file() for document in documents)
        if not documents or not there or not set(targets) <= known:
            found.append(names[0])
    return found


def test_there_are_enough_entries():
    assert len(ENTRIES) >= 80


def test_entries_are_in_alphabetical_order():
    keys = [re.sub(r"\W", "", names[0].lower().replace("ε", "epsilon")) for names, _ in ENTRIES]
    assert keys == sorted(keys)


def test_every_name_stands_once():
    names = [name.lower() for entry, _ in ENTRIES for name in entry]
    assert len(names) == len(set(names))


def test_definitions_are_short():
    for names, definition in ENTRIES:
        text = re.sub(r"\$[^$]*\$|\{.*?\}`.*?`", "X", definition.rpartition(" See ")[0])
        assert len(text.split()) <= 50, names
        assert text.endswith((".", "X")), names


def test_every_entry_leads_to_its_place():
    assert without_place(ENTRIES, labels()) == []


def test_an_entry_without_a_place_is_found():
    page = "````{glossary}\na\nb\n  Text. See {prf:ref}`gone` in {doc}`/book/notation`.\n\nc\n  Text.\n````"
    assert entries(page)[0][0] == ("a", "b")
    assert without_place(entries(page), labels()) == ["a", "c"]


def test_every_entry_is_used_by_a_chapter():
    terms = [glossary.Term(names, str(number), "") for number, (names, _) in enumerate(ENTRIES)]
    text = PROSE.replace("$c$-", "c-").replace(r"$\varepsilon$-", "ε-")
    used = {term.names[0] for _, _, term in glossary.Matcher(terms).find(text)}
    assert {term.names[0] for term in terms} - used == set()


# --- The links -----------------------------------------------------------------------------------

TERMS = [
    glossary.Term(("coupling", "transport plan", "plan"), "term-coupling", "A joint law."),
    glossary.Term(("Sinkhorn divergence",), "term-sd", ""),
    glossary.Term(("divergence",), "term-d", ""),
    glossary.Term(("Brenier's theorem",), "term-brenier", ""),
    glossary.Term(("c-transform",), "term-c", ""),
    glossary.Term(("KL",), "term-kl", ""),
    glossary.Term(("conjugate",), "term-conjugate", ""),
    glossary.Term(("Gibbs matrix", "geometry"), "term-gibbs", ""),
]
MATCHER = glossary.Matcher(TERMS)

FOUND = {
    "Two Couplings, another plan": ["Couplings", "plan"],
    "the Sinkhorn\ndivergence is no divergence": ["Sinkhorn\ndivergence", "divergence"],
    "by Brenier’s theorem": ["Brenier’s theorem"],
    "KL, not kl or KLD": ["KL"],
    "conjugate gradients, and the conjugate": ["conjugate"],
    "Gibbs matrices and geometries": ["Gibbs matrices", "geometries"],
    "planning, uncoupling, plan-like, re-plan": [],
}


@pytest.mark.parametrize("text", FOUND)
def test_terms_are_found_in_case_and_plural(text):
    assert [text[start:end] for start, end, _ in MATCHER.find(text)] == FOUND[text]


def paragraph(*parts):
    made = nodes.paragraph()
    for part in parts:
        made += nodes.Text(part) if isinstance(part, str) else part
    return made


def page(*blocks):
    from docutils.utils import new_document

    document = new_document("chapter")
    section = nodes.section()
    section += nodes.title("", "The plan")
    section += list(blocks)
    document += section
    return document


def links(document):
    return [link.astext() for link in document.findall(nodes.reference) if "term" in link["classes"]]


def test_only_the_first_use_is_linked():
    document = page(
        paragraph("One plan. A plan, a coupling."), paragraph("Its transport plan and divergence.")
    )
    before = document.astext()
    linked = glossary.link_terms(document, MATCHER, "glossary.html")
    assert links(document) == ["plan", "divergence"]
    assert linked == [TERMS[0], TERMS[2]]
    assert document.astext() == before
    first = next(document.findall(nodes.reference))
    assert (first["refuri"], first["reftitle"]) == ("glossary.html#term-coupling", "A joint law.")


def test_titles_links_code_formulas_tables_and_outputs_are_left_alone():
    output = nodes.container("", paragraph("a plan"), classes=["cell_output"])
    table = nodes.table(
        "", nodes.tgroup("", nodes.tbody("", nodes.row("", nodes.entry("", paragraph("plan")))))
    )
    unlinked = paragraph(
        nodes.reference("", "plan"),
        nodes.literal("", "plan"),
        nodes.math("", "plan"),
        nodes.strong("", "plan"),
        addnodes.pending_xref("", nodes.inline("", "plan")),
    )
    figure = nodes.figure("", nodes.caption("", "plan"))
    used = paragraph("plan")
    used["classes"] = ["from-otbook"]
    document = page(output, table, unlinked, figure, used)
    assert glossary.link_terms(document, MATCHER, "") == []
    document = page(unlinked, paragraph(nodes.emphasis("", "the plan")))
    assert glossary.link_terms(document, MATCHER, "") == [TERMS[0]]


def test_a_formula_may_begin_a_term():
    document = page(
        paragraph("Its ", nodes.math("", "c"), "-transform is ", nodes.math("", "d"), "-transform.")
    )
    glossary.link_terms(document, MATCHER, "")
    assert links(document) == ["c-transform"]
    assert document.astext().endswith("Its c-transform is d-transform.")
    assert len(list(document.findall(nodes.math))) == 2


def test_a_text_that_stands_twice_is_linked_where_it_stands_first():
    document = page(paragraph("plan", nodes.literal("", "x"), "plan"))
    glossary.link_terms(document, MATCHER, "")
    assert isinstance(next(document.findall(nodes.paragraph)).children[1], nodes.reference)
    assert links(document) == ["plan"]


def test_entries_are_read_from_a_glossary():
    definition = nodes.definition(
        "", paragraph("A joint law. See ", nodes.reference("", "Definition 1"), ".")
    )
    terms = [nodes.term("", "coupling", ids=["term-coupling"]), nodes.term("", "plan", ids=["term-plan"])]
    item = nodes.definition_list_item("", *terms, definition)
    document = page(addnodes.glossary("", nodes.definition_list("", item)))
    assert glossary.entries(document) == [
        glossary.Term(("coupling", "plan"), "term-coupling", "A joint law.")
    ]


# --- The bibliography ----------------------------------------------------------------------------

ARXIV = re.compile(r"\d{4}\.\d{4,5}|[a-z-]+(?:\.[A-Z]{2})?/\d{7}")
DOI = re.compile(r"10\.\d{4,9}/\S+")


def unidentified(bibliography):
    """Entries without DOI and arXiv number whose ``annote`` does not say why."""
    found = []
    for key, entry in bibliography.entries.items():
        fields = entry.fields
        noted = re.search(
            rf"arXiv:\s?(?:{ARXIV.pattern})", fields.get("note", "") + fields.get("journal", "")
        )
        known = (
            DOI.fullmatch(fields.get("doi", ""))
            or ARXIV.fullmatch(fields.get("eprint", ""))
            or noted
            or fields.get("annote", "").startswith("No DOI or arXiv number: ")
        )
        if not known:
            found.append(key)
    return found


def test_every_source_has_an_identifier_or_a_reason():
    assert unidentified(parse_file(ROOT / "references.bib")) == []


@pytest.mark.parametrize(
    ("field", "known"),
    [
        ("doi = {10.1137/16M1106018}", True),
        ("doi = {https://doi.org/10.1137/1}", False),
        ("eprint = {1306.0895}, archiveprefix = {arXiv}", True),
        ("eprint = {math/0312228}", True),
        ("eprint = {arXiv:13}", False),
        ("note = {arXiv:2201.12324}", True),
        ("annote = {No DOI or arXiv number: a thesis.}", True),
        ("annote = {none}", False),
        ("url = {https://example.org}", False),
    ],
)
def test_a_source_without_an_identifier_is_found(field, known):
    bibliography = parse_string(f"@article{{key, title = {{A}}, {field}}}", "bibtex")
    assert unidentified(bibliography) == ([] if known else ["key"])
