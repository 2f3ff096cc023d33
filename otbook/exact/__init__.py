"""Exact optimal transport: the linear program min ⟨C, P⟩ over couplings, with a certificate.

Network simplex (POT), a general LP and assignment (SciPy) do the work, and an auction of our own; each
answer comes with dual potentials that prove it, and with derivatives of its value.
"""

from ._assignment import assignment, auction
from ._transport import emd, linear_program

__all__ = ["assignment", "auction", "emd", "linear_program"]
