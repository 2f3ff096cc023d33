"""Every kind of claim holds when it should, fails when it should, and prints what nbval expects."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from nbval.plugin import get_sanitize_patterns

from otbook import claims

PATTERNS = get_sanitize_patterns((Path(__file__).parent / "nbval_sanitize.cfg").read_text(encoding="utf-8"))

K = np.array([1.0, 2.0, 4.0, 8.0])

HOLDING = [
    (lambda: claims.close("s", 1.0, 1.0 + 1e-12, atol=1e-10), "✓ s: |Δ| = 1e-12 ≤ 1e-10"),
    (lambda: claims.close("s", torch.ones(3), np.ones(3), atol=1e-10), "✓ s: |Δ| = 0 ≤ 1e-10"),
    (lambda: claims.at_most("s", [0.1, 0.3], 0.5), "✓ s: value = 0.3 ≤ 0.5"),
    (lambda: claims.at_least("s", [0.1, 0.3], 0), "✓ s: value = 0.1 ≥ 0"),
    (lambda: claims.between("s", 0.5, 0.4, 0.6, symbol="share"), "✓ s: share = 0.5 ∈ [0.4, 0.6]"),
    (lambda: claims.slope("s", K, 3 * K**-0.5, -0.5, tol=0.01), "✓ s: slope = -0.5 ∈ [-0.51, -0.49]"),
    (lambda: claims.slope("s", K, K**2, 2, tol=0.1, symbol="order"), "✓ s: order = 2 ∈ [1.9, 2.1]"),
    (lambda: claims.rate("s", 0.25 ** np.arange(5), 0.25, tol=0.01), "✓ s: rate = 0.25 ∈ [0.24, 0.26]"),
    (lambda: claims.mean("s", [1.0, 2.0, 3.0], 2.0), "✓ s: |z| = 0 ≤ 4"),
    (lambda: claims.holds("s", True), "✓ s"),
    (lambda: claims.holds("s", torch.tensor([True, True])), "✓ s"),
    (lambda: claims.raises("s", ValueError, lambda: int("x")), "✓ s: raises ValueError"),
]

FAILING = [
    lambda: claims.close("s", 1.0, 1.1, atol=1e-3),
    lambda: claims.close("s", [1.0, 2.0], [1.0, 2.1], atol=1e-3),
    lambda: claims.close("s", math.nan, 1.0, atol=1e-3),
    lambda: claims.close("s", [math.nan, 1.0], [1.0, 1.0], atol=1e-3),
    lambda: claims.at_most("s", 0.6, 0.5),
    lambda: claims.at_most("s", [0.1, math.nan], 0.5),
    lambda: claims.at_least("s", -1e-9, 0),
    lambda: claims.at_least("s", [1.0, math.nan], 0),
    lambda: claims.between("s", 0.7, 0.4, 0.6),
    lambda: claims.between("s", math.nan, 0.4, 0.6),
    lambda: claims.slope("s", K, K**-0.4, -0.5, tol=0.05),
    lambda: claims.rate("s", 0.3 ** np.arange(5), 0.25, tol=0.01),
    lambda: claims.mean("s", [1.0, 1.1, 0.9, 1.0], 2.0),
    lambda: claims.mean("s", [1.0, 1.0, 1.0], 2.0),
    lambda: claims.holds("s", False),
    lambda: claims.holds("s", torch.tensor([True, False])),
    lambda: claims.holds("s", torch.tensor([])),
    lambda: claims.raises("s", ValueError, lambda: 1),
]


def sanitised(text):
    for regex, replacement in PATTERNS:
        text = re.sub(regex, replacement, text)
    return text


@pytest.mark.parametrize(("call", "line"), HOLDING)
def test_holds(call, line, capsys):
    call()
    assert capsys.readouterr().out == line + "\n"


@pytest.mark.parametrize("call", FAILING)
def test_fails(call, capsys):
    with pytest.raises(claims.ClaimError, match="✗ s"):
        call()
    assert capsys.readouterr().out == ""


def test_another_error_is_not_swallowed():
    with pytest.raises(ZeroDivisionError):
        claims.raises("s", ValueError, lambda: 1 / 0)


def test_a_statement_has_no_colon():
    with pytest.raises(ValueError, match="no colon"):
        claims.at_most("a: b", 0, 1)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("✓ P = Q: |Δ| = 3.1e-15 ≤ 1e-10", "✓ P = Q: |Δ| = 0 ≤ 1e-10"),
        ("✓ s: slope = -0.5 ∈ [-0.6, -0.4]", "✓ s: slope = -0.51 ∈ [-0.6, -0.4]"),
        ("✓ s: min = 2 ≥ 0", "✓ s: min = 3e+02 ≥ 0"),
        ("≈ wall time: 0.12 s", "≈ wall time: 3 s"),
    ],
)
def test_sanitiser_hides_the_measured_number(one, other):
    assert sanitised(one) == sanitised(other)
    assert sanitised(f"before\n{one}\nafter\n") == sanitised(f"before\n{other}\nafter\n")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("✓ P = Q: |Δ| = 3.1e-15 ≤ 1e-10", "✓ P = Q: |Δ| = 3.1e-15 ≤ 1e-9"),  # the bound
        ("✓ P = Q: |Δ| = 3.1e-15 ≤ 1e-10", "✓ P = R: |Δ| = 3.1e-15 ≤ 1e-10"),  # the statement
        ("✓ P = Q: |Δ| = 3.1e-15 ≤ 1e-10", "✗ P = Q: |Δ| = 3.1e-15 ≤ 1e-10"),  # the mark
        ("✓ n = 3: |Δ| = 0 ≤ 1", "✓ n = 4: |Δ| = 0 ≤ 1"),  # a number in the statement
        ("✓ s: slope = 1 ∈ [0, 2]", "✓ s: order = 1 ∈ [0, 2]"),  # the symbol
        ("✓ s: slope = 1 ∈ [0, 2]", "✓ s: slope = 1 ∈ [0, 3]"),
        ("✓ s", "✓ t"),
        ("✓ s: raises ValueError", "✓ s: raises TypeError"),
        ("≈ wall time: 0.12 s", "≈ wall time: 0.12 ms"),
        ("W₂ = 0.045590", "W₂ = 0.045591"),  # a plain line
        ("value = 0.3 ≤ 0.5", "value = 0.4 ≤ 0.5"),  # a line without the mark
    ],
)
def test_sanitiser_hides_nothing_else(one, other):
    assert sanitised(one) != sanitised(other)
