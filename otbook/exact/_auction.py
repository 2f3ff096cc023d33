"""The auction: sources bid for targets, and prices rise until nobody wants to change by more than ε.

One problem in NumPy, one bid at a time. A bid looks at a row of the cost as a whole. Letting all sources
bid at once saves Python's overhead in the first rounds, and loses more in the many rounds of a few bidders.
"""

from __future__ import annotations

import numpy as np


def sell(C: np.ndarray, eps: float, scaling: float) -> tuple[np.ndarray, np.ndarray, int]:
    """Assign all sources, on average within ``eps`` of the cheapest choice at the final prices.

    Args:
        C: costs between 0 and 1, or infinite, shape (n, n); some permutation has a finite cost.
        eps: the last ε.
        scaling: divisor of ε from phase to phase; it starts at 1 / scaling.

    Returns:
        The source that owns each target, shape (n,), the prices p, shape (n,), and the number of bids.

    Source:
        Bertsekas (1988), Gauss–Seidel version with ε-scaling.
    """
    n = len(C)
    prices, owner, bids = np.zeros(n), np.full(n, -1), 0
    step = max(1 / scaling, eps)
    while True:
        bids += _phase(C, prices, owner, step)
        # What each owner pays above its cheapest choice.
        excess = C[owner, np.arange(n)] + prices
        excess -= (C + prices).min(1)[owner]
        if excess.mean() <= eps:
            return owner, prices, bids
        step = max(step / scaling, eps)
        # Who is content with the finer ε keeps its target. A target without owner has had no bid in
        # this phase, and so the price of the last one: this is what bounds the number of bids.
        owner[excess > step] = -1


def _phase(C: np.ndarray, prices: np.ndarray, owner: np.ndarray, eps: float) -> int:
    """Bids until every source has a target; ``prices`` and ``owner`` are updated."""
    held = np.zeros(len(C), dtype=bool)
    held[owner[owner >= 0]] = True
    free, holder, rows = np.flatnonzero(~held).tolist(), owner.tolist(), list(C)
    offers, bids = np.empty(len(C)), 0
    while free:
        bids += 1
        i = free.pop()
        np.add(rows[i], prices, out=offers)
        j = offers.argmin()
        least = offers[j]
        offers[j] = np.inf
        margin = offers.min() - least
        # With a single allowed target there is no second choice: raise by the range of the costs.
        prices[j] += (margin if margin < np.inf else 1.0) + eps
        if holder[j] >= 0:
            free.append(holder[j])
        holder[j] = i
    owner[:] = holder
    return bids
