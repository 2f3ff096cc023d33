"""The classical Runge–Kutta method for particles, with integrals along their paths."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


def integrate(
    rates: Callable[[float, Tensor], tuple[Tensor, ...]], x: Tensor, start: float, end: float, n_steps: int
) -> tuple[Tensor, ...]:
    """Follow x' = v(t, x) from ``start`` to ``end``, and integrate other rates along the way.

    Args:
        rates: maps a time and points (…, n, d) to the velocity, of the same shape, and to further rates.
        x: points at the start, shape (…, n, d).
        start: first time.
        end: last time; before ``start`` to go backwards.
        n_steps: steps of equal length, of order four, with four evaluations each.

    Returns:
        The points at the end, and the integral of each further rate from ``start`` to ``end``.

    Source:
        Kutta (1901); Hairer, Nørsett, Wanner (1993), section II.1.
    """
    h, state = (end - start) / n_steps, None
    for k in range(n_steps):
        t, slopes = start + k * h, []
        for part in (0.0, 0.5, 0.5, 1.0):  # each stage starts from the last slope
            slopes.append(rates(t + part * h, x + part * h * slopes[-1][0] if slopes else x))
        v, *others = ((a + 2 * b + 2 * c + d) / 6 for a, b, c, d in zip(*slopes, strict=True))
        x = x + h * v
        steps = [h * other for other in others]
        state = steps if state is None else [a + b for a, b in zip(state, steps, strict=True)]
    return x, *state
