"""The base of the powers that kernels are made of: e or 2, whichever the processor raises faster.

exp(x/ε) = B^(x/η) with η = ε ln B. PyTorch takes exp from Intel's library where it is built with it: on
Intel's processors that is up to twice as fast as exp2, elsewhere exp2 is up to three times as fast.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Base(NamedTuple):
    """A base B, by ln B, with the functions Bˣ and log_B x; both take ``out``."""

    ln: float
    power: Callable[..., Tensor]
    log: Callable[..., Tensor]


NATURAL, BINARY = Base(1.0, torch.exp, torch.log), Base(math.log(2.0), torch.exp2, torch.log2)


def _fastest() -> Base:
    processor = getattr(torch.cpu, "get_capabilities", dict)().get("cpu_name", "")
    return NATURAL if torch.backends.mkl.is_available() and processor.startswith("Intel") else BINARY


BASE = _fastest()

#: Powers below exp of this count as 0. What is just above it is a normal number, and the softmax's too, since
#: denormal numbers take a hundred times as long; there less than rounding, even after the scalings drift.
LEAST = {torch.float32: -124.0 * BINARY.ln, torch.float64: -1010.0 * BINARY.ln}
LEAST_SHARE = {torch.float32: -82.0 * BINARY.ln, torch.float64: -1000.0 * BINARY.ln}
