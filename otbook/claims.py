"""Claims: statements of the book that running code confirms, or the page does not build.

A claim compares a measured number with an expected value, bound, slope or order. It raises
:class:`ClaimError` when it fails and prints one line of a fixed form when it holds::

    ✓ sinkhorn = log-domain: |Δ| = 3.1e-15 ≤ 1e-10

The statement, the bound and the ✓ are the same on every machine; the measured number, the only
thing between ``=`` and the relation, may differ. The verification of the stored outputs hides that
number and nothing else (``tests/nbval_sanitize.cfg``). Lines that start with ``≈`` show a number
that no claim depends on, such as a wall time, and hide it likewise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor

Numbers = float | Sequence[float] | np.ndarray | Tensor


class ClaimError(AssertionError):
    """A statement of the book that the code contradicts."""


def close(statement: str, measured: Numbers, expected: Numbers, *, atol: float) -> None:
    """Claim that two numbers or arrays agree: max |measured − expected| ≤ atol.

    Args:
        statement: what is claimed, in words; no colon.
        measured: what the code computed, any shape.
        expected: the value it should have, the same shape or broadcastable to it.
        atol: largest absolute difference, in units of the numbers.

    Raises:
        ClaimError: when the difference exceeds ``atol`` or is NaN.

    Example:
        >>> close("a third", 1 / 3, 0.3333, atol=1e-3)
        ✓ a third: |Δ| = 3.3e-05 ≤ 0.001
    """
    difference = np.abs(_array(measured) - _array(expected))
    _decide(statement, "|Δ|", float(np.max(difference)), "≤", high=atol)


def at_most(statement: str, measured: Numbers, bound: float, *, symbol: str = "value") -> None:
    """Claim that a number, or the largest of an array, is at most ``bound``.

    Example:
        >>> at_most("the gap closes", 2e-9, 1e-6, symbol="gap")
        ✓ the gap closes: gap = 2e-09 ≤ 1e-06
    """
    _decide(statement, symbol, float(np.max(_array(measured))), "≤", high=bound)


def at_least(statement: str, measured: Numbers, bound: float, *, symbol: str = "value") -> None:
    """Claim that a number, or the smallest of an array, is at least ``bound``.

    Example:
        >>> at_least("the divergence is positive", [0.3, 0.2], 0, symbol="min")
        ✓ the divergence is positive: min = 0.2 ≥ 0
    """
    _decide(statement, symbol, float(np.min(_array(measured))), "≥", low=bound)


def between(statement: str, measured: float, low: float, high: float, *, symbol: str = "value") -> None:
    """Claim that a number lies in the closed interval [low, high].

    Example:
        >>> between("half of the points move", 0.52, 0.4, 0.6, symbol="share")
        ✓ half of the points move: share = 0.52 ∈ [0.4, 0.6]
    """
    _decide(statement, symbol, float(measured), "∈", low=low, high=high)


def slope(
    statement: str, x: Numbers, y: Numbers, expected: float, *, tol: float, symbol: str = "slope"
) -> None:
    """Claim a power law y ~ x^expected: the least-squares slope of log y against log x.

    Args:
        statement: what is claimed, in words.
        x: positive abscissae (step sizes, sample sizes), shape (k,), k ≥ 2.
        y: positive ordinates (errors, times), shape (k,).
        expected: the exponent.
        tol: largest deviation of the fitted slope from ``expected``.
        symbol: the name printed; ``"order"`` for orders of convergence.

    Raises:
        ClaimError: when the slope deviates more than ``tol`` or is NaN.

    Example:
        >>> slope("errors shrink with the square of the step", [1, 2, 4], [3, 12, 48], 2, tol=0.1)
        ✓ errors shrink with the square of the step: slope = 2 ∈ [1.9, 2.1]
    """
    fitted = float(np.polyfit(np.log(_array(x)), np.log(_array(y)), 1)[0])
    _decide(statement, symbol, fitted, "∈", low=expected - tol, high=expected + tol)


def rate(statement: str, errors: Numbers, expected: float, *, tol: float) -> None:
    """Claim linear convergence errors[k] ~ expectedᵏ: exp of the slope of log error against k.

    Args:
        statement: what is claimed, in words.
        errors: positive errors at consecutive iterations, shape (k,), k ≥ 2.
        expected: the factor per iteration, between 0 and 1.
        tol: largest deviation of the fitted factor.

    Raises:
        ClaimError: when the rate deviates more than ``tol`` or is NaN.

    Example:
        >>> rate("the error halves", [1, 0.5, 0.25], 0.5, tol=0.01)
        ✓ the error halves: rate = 0.5 ∈ [0.49, 0.51]
    """
    values = _array(errors)
    fitted = math.exp(np.polyfit(np.arange(len(values)), np.log(values), 1)[0])
    _decide(statement, "rate", fitted, "∈", low=expected - tol, high=expected + tol)


def mean(statement: str, samples: Numbers, expected: float, *, errors: float = 4) -> None:
    """Claim that independent samples have the mean ``expected``, within ``errors`` standard errors.

    Args:
        statement: what is claimed, in words.
        samples: independent draws, shape (k,), k ≥ 2.
        expected: the mean of their law.
        errors: how many standard errors the sample mean may be off.

    Raises:
        ClaimError: when the sample mean is further off, or the samples do not vary.

    Example:
        >>> mean("a fair coin", [0, 1, 0, 1, 1, 0], 0.5)
        ✓ a fair coin: |z| = 0 ≤ 4
    """
    values = _array(samples)
    error = float(np.std(values, ddof=1)) / math.sqrt(values.size)
    z = abs(float(np.mean(values)) - expected) / error if error > 0 else math.nan
    _decide(statement, "|z|", z, "≤", high=errors)


def holds(statement: str, condition: bool | Tensor | np.ndarray) -> None:
    """Claim a condition that is true or false, everywhere if it is an array.

    Example:
        >>> holds("the plan is a permutation", True)
        ✓ the plan is a permutation
    """
    truth = bool(np.all(_array(condition).astype(bool))) and _array(condition).size > 0
    if not truth:
        raise ClaimError(f"✗ {statement}")
    print(f"✓ {statement}")


def raises(statement: str, error: type[Exception], call: Callable[[], object]) -> None:
    """Claim that ``call()`` refuses its input with the given error.

    Example:
        >>> raises("division by zero is refused", ZeroDivisionError, lambda: 1 / 0)
        ✓ division by zero is refused: raises ZeroDivisionError
    """
    try:
        call()
    except error:
        print(f"✓ {statement}: raises {error.__name__}")
    else:
        raise ClaimError(f"✗ {statement}: no {error.__name__} was raised")


def measured(label: str, value: float, unit: str = "") -> None:
    """Show a number that differs between machines and that no statement depends on.

    Example:
        >>> measured("wall time", 0.0123456, "s")
        ≈ wall time: 0.012 s
    """
    print(f"≈ {label}: {value:.2g}" + (f" {unit}" if unit else ""))


def _decide(
    statement: str,
    symbol: str,
    value: float,
    relation: str,
    *,
    low: float = -math.inf,
    high: float = math.inf,
) -> None:
    """Print the claim's line if low ≤ value ≤ high, raise if not; NaN is never in between."""
    if ":" in statement:
        raise ValueError(f"a statement holds no colon, which ends it in the printed line: {statement!r}")
    bound = {"≤": f"{high:g}", "≥": f"{low:g}", "∈": f"[{low:g}, {high:g}]"}[relation]
    if not low <= value <= high:
        refuted = {"≤": "≰", "≥": "≱", "∈": "∉"}[relation]
        raise ClaimError(f"✗ {statement}: {symbol} = {value:.6g} {refuted} {bound}")
    print(f"✓ {statement}: {symbol} = {value:.2g} {relation} {bound}")


def _array(value: Numbers | bool) -> np.ndarray:
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    return np.asarray(value, dtype=float)
