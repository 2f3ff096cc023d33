"""The reference of ``otbook``: every public object from its docstring, with the chapters that use it.

- ``{otbook-module} otbook.exact`` documents the public objects of one module, ``{otbook-contents}`` lists
  all modules. Both follow the package: a new name needs no line here, a new public module one page.
- Which chapter uses what is read off the code cells of the notebooks with :mod:`ast`. The reference says it
  of each object, and each chapter ends with a line *From otbook*.
- Docstrings are plain text with Unicode formulas. Before Sphinx reads them, subscripts become subscripts,
  formulas on lines of their own keep these lines, and no bar or asterisk of a formula is taken for markup.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import pkgutil
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

from docutils import nodes
from docutils.statemachine import StringList
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.environment import BuildEnvironment
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.docutils import SphinxDirective

import otbook

ROOT = Path(otbook.__file__).resolve().parents[1]
#: A module with more public objects than this is grouped by topic.
FEW = 20
#: An object used in more chapters than this folds their list.
MANY = 5
#: The order of the modules; others follow, and what only the book needs comes last.
ORDER = (
    "exact", "entropic", "gromov", "barycenter", "onedim", "semidiscrete", "monge_ampere", "gaussian",
    "flows", "meanfield", "learning", "costs",
)  # fmt: skip
LAST = ("datasets", "plotting", "claims")


# --- What is public ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """A public object: what it is called, the module whose page documents it, and its topic there."""

    name: str  # as users should write it, such as "otbook.emd"
    home: str
    topic: str  # first words of the docstring of the file that defines it
    value: Any

    @property
    def kind(self) -> str:
        """``class``, ``function`` or ``data``."""
        return "class" if inspect.isclass(self.value) else "function" if callable(self.value) else "data"

    @property
    def doc(self) -> str:
        """The docstring; for a constant the ``#:`` comment where it is defined."""
        return inspect.getdoc(self.value) or "" if self.kind != "data" else _comment(self.home, self.name)

    @property
    def has_members(self) -> bool:
        """Whether a class has methods of its own to show: an exception has none, nor a named tuple."""
        plain = self.kind == "class" and not hasattr(self.value, "_fields")
        return plain and not issubclass(self.value, BaseException)

    @property
    def needs_example(self) -> bool:
        """Functions, and classes that users construct; not the results that functions return."""
        return self.kind == "function" or (self.kind == "class" and "\nArgs:\n" in self.doc)


def modules() -> list[ModuleType]:
    """The package and its public modules."""
    names = [info.name for info in pkgutil.iter_modules(otbook.__path__) if not info.name.startswith("_")]
    places = {name: place for place, name in enumerate([*ORDER, None, *LAST])}
    names.sort(key=lambda name: (places.get(name, len(ORDER)), name))
    return [otbook, *(importlib.import_module(f"otbook.{name}") for name in names)]


def exported(module: ModuleType) -> dict[str, Any]:
    """The public names of a module, in the order in which it imports or defines them.

    They are those in ``__all__`` or else its own functions and classes; modules are left out.
    """
    every = getattr(module, "__all__", None)
    return {
        name: value
        for name, value in vars(module).items()
        if not inspect.ismodule(value)
        and (
            name in every
            if every is not None
            else not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
        )
    }


@cache
def reference() -> tuple[Entry, ...]:
    """Every public object once: under ``otbook`` if it is exported there, else under its module."""
    package, *others = modules()
    short = {id(value): name for name, value in exported(package).items()}
    entries, seen = [], set()
    for module in [*others, package]:
        for name, value in exported(module).items():
            if callable(value) and id(value) in seen:
                continue
            seen.add(id(value))
            known = callable(value) and id(value) in short
            full = f"otbook.{short[id(value)]}" if known else f"{module.__name__}.{name}"
            entries.append(Entry(full, module.__name__, _topic(value, module), value))
    return tuple(entries)


def _topic(value: Any, module: ModuleType) -> str:
    home = inspect.getmodule(value) if callable(value) else None
    return re.split(r"[:.?]", (home or module).__doc__ or "", maxsplit=1)[0].strip()


@cache
def _comments(module: str) -> dict[str, str]:
    comments: dict[str, str] = {}
    package = importlib.import_module(module)
    names = [module]
    names += [f"{module}.{info.name}" for info in pkgutil.iter_modules(getattr(package, "__path__", []))]
    for name in names:
        found = ModuleAnalyzer.for_module(name).find_attr_docs()
        comments |= {attribute: " ".join(lines).strip() for (_, attribute), lines in found.items()}
    return comments


def _comment(module: str, name: str) -> str:
    return _comments(module).get(name.rpartition(".")[2], "")


# --- What the chapters use -----------------------------------------------------------------------


@cache
def _names() -> dict[int, str]:
    return {id(entry.value): entry.name for entry in reference() if callable(entry.value)}


def resolve(path: str) -> str | None:
    """The documented name of what a dotted path leads to, such as ``otbook.emd`` for ``otbook.exact.emd``."""
    value: Any = otbook
    for depth, part in enumerate(path.split(".")[1:], start=2):
        if not hasattr(value, part) and inspect.ismodule(value):
            try:
                importlib.import_module(".".join(path.split(".")[:depth]))
            except ImportError:
                return None
        if not hasattr(value, part):
            return None
        value = getattr(value, part)
        if id(value) in _names():
            return _names()[id(value)]
    return path if any(path == entry.name for entry in reference()) else None


class _Uses(ast.NodeVisitor):
    """Collects the documented names that a program imports or reaches through a module."""

    def __init__(self) -> None:
        self.alias: dict[str, str] = {}  # local name: dotted path
        self.found: set[str] = set()

    def _note(self, path: str) -> None:
        if name := resolve(path):
            self.found.add(name)

    def visit_Import(self, node: ast.Import) -> None:
        """``import otbook.flows as f`` names a module, ``import otbook.flows`` the package."""
        for item in node.names:
            if item.name.split(".")[0] == "otbook":
                self.alias[item.asname or "otbook"] = item.name if item.asname else "otbook"

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        """``from otbook import emd, flows``."""
        if node.level == 0 and (node.module or "").split(".")[0] == "otbook":
            for item in node.names:
                self.alias[item.asname or item.name] = path = f"{node.module}.{item.name}"
                self._note(path)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        """``flows.svgd``, ``otbook.exact.emd``."""
        parts, value = [node.attr], node.value
        while isinstance(value, ast.Attribute):
            parts.append(value.attr)
            value = value.value
        if isinstance(value, ast.Name) and value.id in self.alias:
            self._note(".".join([self.alias[value.id], *reversed(parts)]))
        self.generic_visit(node)


def used_by(source: str) -> set[str]:
    """The documented names that a notebook's code uses; lines with ``%`` or ``!`` are left out."""
    visitor = _Uses()
    visitor.visit(ast.parse(re.sub(r"^(\s*)[%!].*", r"\1pass", source, flags=re.MULTILINE)))
    return visitor.found


def code(notebook: Path) -> str:
    """The code cells of a notebook as one program."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


def find_uses(app: Sphinx, env: BuildEnvironment, docnames: list[str]) -> None:
    """Read, before any page, what each notebook of the build uses, in the book's order."""
    toc = getattr(app.config, "external_site_map", None)
    order = {name: place for place, name in enumerate(toc)} if toc else {}
    pages = sorted(env.found_docs, key=lambda name: (order.get(name, len(order)), name))
    uses: dict[str, list[str]] = {}
    for docname in pages:
        path = Path(env.doc2path(docname))
        if path.suffix == ".ipynb":
            for name in used_by(code(path)):
                uses.setdefault(name, []).append(docname)
    app.otbook_uses = uses  # type: ignore[attr-defined]


def chapters_using(app: Sphinx, name: str) -> list[str]:
    """The pages of the notebooks that use a documented name."""
    return app.otbook_uses.get(name, [])  # type: ignore[attr-defined]


def of_module(app: Sphinx, module: str) -> list[Entry]:
    """What a module's page documents: what most chapters use comes first."""
    entries = [entry for entry in reference() if entry.home == module]
    return sorted(entries, key=lambda entry: -len(chapters_using(app, entry.name)))


def list_uses(app: Sphinx, doctree: nodes.document) -> None:
    """End a chapter with the line that names what it uses from the package, linked to the reference."""
    docname = app.env.docname
    documented = [entry.name for entry in reference() if entry.kind != "data"]
    names = [name for name in documented if docname in chapters_using(app, name)]
    if not names or not doctree.children:
        return
    line = nodes.paragraph(classes=["from-otbook"])
    line += nodes.inline("", "From otbook: ", classes=["label"])
    for place, name in enumerate(names):
        if place:
            line += nodes.Text(", ")
        link = addnodes.pending_xref("", refdomain="py", reftype="obj", reftarget=name, refexplicit=True)
        link += nodes.literal("", name.removeprefix("otbook."))
        line += link
    section = next(doctree.findall(nodes.section), doctree)
    section += line


# --- Docstrings as reStructuredText --------------------------------------------------------------

SECTION = re.compile(
    r"(Args|Attributes|Returns|Yields|Raises|Warns|Note|Source|References|Example|Examples):"
)
FORMULA = "   | "
AS_IS = re.compile(r"``.+?``|:[\w:]+:`[^`]*`|`[^`]+`_{0,2}")
EMPHASIS = re.compile(r"(?<![\w*])(\*\*?)(?=[A-Za-z])([^*]+?)(?<=[\w.])\1(?![\w*])")
#: x_i, x̄_i, P_ij, W_p, Σ_{i≠j}, P^{t+1}, P^{t}_ij; not n_iter.
SCRIPT = re.compile(r"(?<=[\w)}∂∫Σ∏\u0300-\u036f])([_^])(?:\{([^{}]+)\}|([ijklmn]{2,4}|\w)(?![A-Za-z0-9_]))")
INNER = str.maketrans("ijklmn0123456789", "ᵢⱼₖₗₘₙ₀₁₂₃₄₅₆₇₈₉")


def _formula(text: str) -> str:
    """Plain text as reStructuredText: scripts as scripts, everything else literally."""
    out, end = [], 0
    for found in SCRIPT.finditer(text):
        role = "sub" if found.group(1) == "_" else "sup"
        script = found.group(2) or found.group(3)  # of which a script has to be a character
        script = re.sub(r"(?<=\w)_([ijklmn0-9])", lambda inner: inner.group(1).translate(INNER), script)
        out.append(_escape(text[end : found.start()]))
        out.append(rf"\ :{role}:`{_escape(script)}`\ ")
        end = found.end()
    return "".join([*out, _escape(text[end:])])


def _escape(text: str) -> str:
    return re.sub(r"(?<=\w)_(?!\w)", r"\\_", re.sub(r"([\\*|`])", r"\\\1", text))


def _between(pattern: re.Pattern[str], text: str, inside: Any, outside: Any) -> str:
    out, end = [], 0
    for found in pattern.finditer(text):
        out += [outside(text[end : found.start()]), inside(found)]
        end = found.end()
    return "".join([*out, outside(text[end:])])


def prose(text: str) -> str:
    """One line of a docstring as reStructuredText; literals, roles and emphasis stay."""
    initial = re.match(r"[A-Za-z][.)](?=\s|$)", text)  # a letter that no list begins with
    if initial:
        return "\\" + initial.group() + prose(text[initial.end() :])
    return _between(
        AS_IS,
        text,
        lambda found: found.group(),
        lambda rest: _between(
            EMPHASIS, rest, lambda e: e.group(1) + _formula(e.group(2)) + e.group(1), _formula
        ),
    )


def as_rst(lines: list[str]) -> list[str]:
    """The lines of a Google-style docstring, made safe: formulas on lines of their own, no false markup."""
    out: list[str] = []
    section, literal = "", False
    for number, line in enumerate(lines):
        indent = len(line) - len(line.lstrip())
        before = lines[number - 1] if number else ""
        if found := SECTION.fullmatch(line):
            section, literal = found.group(1), False
            out.append(line)
            continue
        if line.strip() and indent == 0 and section:
            section = ""
        if literal and line.strip() and indent == 0:
            literal = False
        if section.startswith("Example") or literal:
            out.append(line)
            continue
        if line.endswith("::"):
            literal = True
        head = re.match(r"(\s+\**\w+): ", line) if section in ("Args", "Attributes") and indent == 4 else None
        if head:  # the name of an argument is no formula
            out.append(_escape(head.group()) + prose(line[head.end() :]))
        elif section in ("Returns", "Yields") and SECTION.fullmatch(before):
            out.append(f"    : {prose(line.strip())}")  # what stands before a colon is no type
        elif not section and indent and (not before.strip() or out[-1].startswith(FORMULA)):
            out += [] if out[-1].startswith(FORMULA) else [".. container:: formula", ""]
            out.append(FORMULA + re.sub(" {2,}", "\u2003", prose(line.strip())))
        else:
            out.append(line[:indent] + prose(line.strip()))
    return out


def prepare_docstring(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Make a docstring reStructuredText, before napoleon finds its sections."""
    lines[:] = as_rst(lines)


def add_uses(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Say at the end of a documented object which chapters use it."""
    if any(name == entry.name for entry in reference()):
        lines += ["", *used_in(app, name)]


def used_in(app: Sphinx, name: str) -> list[str]:
    """The chapters that use a name, as reStructuredText: a line, or a fold if there are many."""
    pages = chapters_using(app, name)
    links = ", ".join(f":doc:`/{page}`" for page in pages)
    if not pages:
        return []
    if len(pages) <= MANY:
        return [".. container:: used-in", "", f"   Used in: {links}."]
    return [
        f".. dropdown:: Used in {len(pages)} chapters",
        "   :class-container: used-in",
        "",
        f"   {links}.",
    ]


def show_signature(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str | None, annotation: str | None
) -> tuple[str | None, str | None] | None:
    """Leave out the signature of a class that users do not construct: a result."""
    if what == "class" and "\nArgs:\n" not in (inspect.getdoc(obj) or ""):
        return "", None
    return None


# --- Directives ----------------------------------------------------------------------------------


class ModuleReference(SphinxDirective):
    """``{otbook-module} otbook.exact``: what the module is for, and its public objects."""

    required_arguments = 1
    has_content = False
    option_spec: ClassVar = {}

    def run(self) -> list[nodes.Node]:
        """Document the module's objects, by topic if they are many."""
        name = self.arguments[0]
        module = importlib.import_module(name)
        entries = of_module(self.env.app, name)
        self.env.note_dependency(inspect.getsourcefile(module))
        rst = [f".. py:module:: {name}", "", f".. py:currentmodule:: {name}", ""]
        if module is not otbook:
            rst += [*as_rst(inspect.cleandoc(module.__doc__ or "").splitlines()), ""]
        text = _rst(rst)
        topics = dict.fromkeys(entry.topic for entry in entries)
        for topic in topics if len(entries) > FEW else [""]:
            text += [f"## {topic}", ""] if topic else []
            for entry in entries:
                if not topic or entry.topic == topic:
                    text += _rst(self.directive(entry))
        return _parsed(self, text)

    def directive(self, entry: Entry) -> list[str]:
        """The lines that document an object."""
        if entry.kind == "class":
            members = ["   :members:", "   :special-members: __call__"]
            return [f".. autoclass:: {entry.name}", *(members if entry.has_members else [])]
        if entry.kind == "function":
            return [f".. autofunction:: {entry.name}"]
        body = [prose(entry.doc), "", *used_in(self.env.app, entry.name)]
        module, _, name = entry.name.rpartition(".")
        value = [f".. py:data:: {name}", f"   :module: {module}", f"   :value: {entry.value!r}", ""]
        return value + [f"   {line}" if line else "" for line in body]


class Contents(SphinxDirective):
    """``{otbook-contents}``: all modules with their objects and the first line of each docstring."""

    has_content = False

    def run(self) -> list[nodes.Node]:
        """List the modules that have objects."""
        text = []
        for module in modules()[1:]:
            entries = of_module(self.env.app, module.__name__)
            if not entries:
                continue
            short = module.__name__.removeprefix("otbook.")
            text += [f"## {{py:mod}}`{short} <{module.__name__}>`", ""]
            text += _rst(as_rst((inspect.getdoc(module) or "").split("\n\n")[0].splitlines()))
            rows = [".. list-table::", "   :class: api", "   :widths: 38 62", ""]
            for entry in entries:
                short = entry.name.removeprefix("otbook.")
                summary = prose(entry.doc.split("\n\n")[0].split("\n")[0])
                rows += [f"   * - :py:obj:`{short} <{entry.name}>`", f"     - {summary}"]
            text += _rst(rows)
        return _parsed(self, text)


def _parsed(directive: SphinxDirective, text: list[str]) -> list[nodes.Node]:
    holder = nodes.section()
    renderer = directive.state._renderer
    levels = renderer._level_to_section
    renderer._level_to_section = {**levels, 1: holder}  # where MyST puts headings of the second level
    lines = StringList(text, directive.get_source_info()[0])
    directive.state.nested_parse(lines, directive.content_offset, holder, match_titles=True)
    renderer._level_to_section = levels
    return holder.children


def _rst(lines: list[str]) -> list[str]:
    return ["````{eval-rst}", *lines, "````", ""]


# --- Links ---------------------------------------------------------------------------------------


def resolve_link(
    app: Sphinx, env: BuildEnvironment, node: addnodes.pending_xref, text: nodes.Element
) -> nodes.Element | None:
    """Link a name that Sphinx does not find as written: the shorter or longer way to a documented one."""
    if node.get("refdomain") != "py":
        return None
    target = node["reftarget"]
    path = target if target.startswith("otbook") else f"{node.get('py:module') or 'otbook'}.{target}"
    name = resolve(path) or resolve(f"otbook.{target}")
    objects = env.get_domain("py").objects
    if name is None or name not in objects:
        return None
    page = objects[name].docname
    link = nodes.reference("", "", internal=True, reftitle=name)
    link["refuri"] = f"{app.builder.get_relative_uri(node.get('refdoc', page), page)}#{objects[name].node_id}"
    link += text
    return link


def source_address(app: Sphinx, info: dict[str, str]) -> str | None:
    """Where the repository keeps the source of an object."""
    value: Any = importlib.import_module(info["module"])
    for part in info["fullname"].split("."):
        value = getattr(value, part, None)
    try:
        lines, first = inspect.getsourcelines(inspect.unwrap(value))
        path = Path(inspect.getsourcefile(value) or "").resolve().relative_to(ROOT)
    except (TypeError, ValueError, OSError):
        return None
    home = app.config.html_theme_options
    return (
        f"{home['repository_url']}/blob/{home['repository_branch']}/{path}#L{first}-L{first + len(lines) - 1}"
    )


def configure(app: Sphinx, config: Config) -> None:
    """Set what the reference needs of Sphinx's own extensions."""
    config.autodoc_typehints = "none"  # the docstrings say more: shapes and units
    config.autodoc_preserve_defaults = True
    config.autodoc_member_order = "bysource"
    config.napoleon_numpy_docstring = False
    config.napoleon_use_ivar = True
    config.napoleon_attr_annotations = False
    config.napoleon_use_rtype = False
    config.napoleon_custom_sections = ["Source"]
    config.add_module_names = True
    config.toc_object_entries_show_parents = "hide"
    config.linkcode_resolve = lambda domain, info: source_address(app, info) if domain == "py" else None


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect the functions above to the build."""
    app.add_directive("otbook-module", ModuleReference)
    app.add_directive("otbook-contents", Contents)
    app.connect("config-inited", configure, priority=10)
    app.setup_extension("sphinx.ext.autodoc")
    app.setup_extension("sphinx.ext.napoleon")
    app.setup_extension("sphinx.ext.linkcode")
    app.connect("env-before-read-docs", find_uses)
    app.connect("autodoc-process-docstring", prepare_docstring, priority=100)
    app.connect("autodoc-process-docstring", add_uses, priority=900)
    app.connect("autodoc-process-signature", show_signature)
    app.connect("doctree-read", list_uses)
    app.connect("missing-reference", resolve_link)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
