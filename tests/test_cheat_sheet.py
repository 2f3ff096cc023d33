"""The cheat sheet prints the signatures that the functions have, and names nothing that does not exist."""

from __future__ import annotations

import ast
import inspect
import re
from functools import reduce

import pytest

import otbook
from notebooks import ROOT

PAGE = ROOT / "book/appendix/cheat_sheet.md"
REST = "…"  # further options, all with a default


def printed_calls(text):
    """The code spans of the table that look like calls, without annotations."""
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    return [span for row in rows for span in re.findall(r"`([^`]+\(.*?\))`", row.split(" | ")[0])]


def defect(call):
    """What is wrong with a printed signature, or an empty string."""
    name, _, inside = call.partition("(")
    try:
        function = reduce(getattr, name.split("."), otbook)
    except AttributeError:
        return f"otbook has no {name}"
    inside = inside.removesuffix(")")
    abridged = inside.endswith(REST)
    inside = inside.removesuffix(REST).rstrip(", ").removesuffix("*").rstrip(", ")
    printed = ast.parse(f"def f({inside}): ...").body[0].args
    actual = inspect.signature(function).parameters.values()

    required = len(printed.args) - len(printed.defaults)
    shown = [(arg.arg, k >= required) for k, arg in enumerate(printed.args)]
    taken = [
        (p.name, p.default is not p.empty)
        for p in actual
        if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    if shown != taken:
        return f"{name} takes {taken}, not {shown}"
    options = {p.name: p for p in actual if p.kind is p.KEYWORD_ONLY}
    named = [arg.arg for arg in printed.kwonlyargs]
    if named != [option for option in options if option in named]:
        return f"{name} has the options {list(options)}, in this order, not {named}"
    missing = [option for option in options if option not in named]
    if missing and not abridged:
        return f"{name} has further options {missing}: write …"
    if abridged and not missing:
        return f"{name} has no further options: leave … away"
    if needed := [option for option in missing if options[option].default is inspect.Parameter.empty]:
        return f"{name} needs {needed}"
    defaults = dict(zip((arg.arg for arg in printed.args[required:]), printed.defaults, strict=True))
    defaults |= dict(zip(named, printed.kw_defaults, strict=True))
    for option, node in defaults.items():
        default = inspect.signature(function).parameters[option].default
        if (inspect.Parameter.empty if node is None else ast.literal_eval(node)) != default:
            return f"{name}: the default of {option} is {default!r}"
    return ""


CALLS = printed_calls(PAGE.read_text(encoding="utf-8"))


@pytest.mark.parametrize("call", CALLS)
def test_prints_the_signature(call):
    assert not defect(call)


def test_every_call_is_read():
    assert len(CALLS) == len(set(CALLS)) >= 30
    tables = PAGE.read_text(encoding="utf-8").partition("```{table}")[2]
    assert tables.count("(x, y") >= 8
    names = {call.partition("(")[0] for call in CALLS}
    assert {"emd", "sinkhorn", "sinkhorn_divergence", "gromov_wasserstein", "costs.lp"} <= names


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        ("emb(C, a=None, b=None)", "no emb"),
        ("emd(a, b, C)", "takes"),
        ("emd(C, a, b)", "takes"),
        ("emd(C, a=None, b=None, …)", "no further options"),
        ("emd(C, a=0, b=None)", "default of a is None"),
        ("sinkhorn(C, a=None, b=None, *, eps)", "further options"),
        ("sinkhorn(C, a=None, b=None, *, eps, tol=1e-9, …)", "default of tol is 1e-06"),
        ("sinkhorn(C, a=None, b=None, *, eps=1, …)", "default of eps"),
        ("sinkhorn(C, a=None, b=None, *, tol=1e-6, …)", "needs ['eps']"),
        ("sinkhorn(C, a=None, b=None, *, tol=1e-6, eps, …)", "in this order"),
        ("sinkhorn(C, a=None, b=None, *, epsilon, …)", "has the options"),
    ],
)
def test_notices_a_wrong_signature(call, complaint):
    assert complaint in defect(call)
