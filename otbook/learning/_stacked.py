"""Small networks trained side by side: what several seeds cost when they share their calls.

A conclusion about training takes more than one seed. On small problems a network spends its time on calls and
not on arithmetic, so that ten of them in one batched product cost little more than one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from .. import _check


class StackedMLP(nn.Module):
    """Independent multilayer perceptrons of one shape, one for each run.

    Run r maps h₀ = x to h_l = σ(h_{l−1} W_l[r] + b_l[r]), without σ in the last layer. No run sees another:
    the gradient of a sum of losses is, for each run, that of its own. An optimiser that works entry by
    entry, such as Adam, therefore trains them as if each were alone; clipping by a total norm would not.

    Args:
        runs: number r of networks.
        widths: of input, hidden layers and output, at least two.
        activation: σ, a function of a tensor that acts on every entry.
        gain: weights start as N(0, gain² / inputs): √2 keeps the size of what passes ReLU.
        bias: standard deviation of the hidden biases at the start; those of the last layer are 0.
        generator: source of randomness, on ``device``; PyTorch's own, as for every ``nn.Module``, if None.
        dtype: of the parameters; PyTorch's default if None.
        device: of the parameters; PyTorch's default if None.

    Attributes:
        weights: W_l, shape (r, widths[l−1], widths[l]), for each layer.
        biases: b_l, shape (r, 1, widths[l]), for each layer.

    Raises:
        ValueError: for fewer than two widths, and for numbers that are not positive; when called, for points
            of another dimension or for another number of runs.

    Source:
        He, Zhang, Ren and Sun (2015), for the gain.

    Example:
        >>> net = StackedMLP(3, [2, 16, 1], generator=torch.Generator().manual_seed(0))
        >>> net(torch.zeros(5, 2)).shape  # all runs on the same points
        torch.Size([3, 5, 1])
        >>> net[:2](torch.zeros(2, 5, 2)).shape  # two of them, each on its own
        torch.Size([2, 5, 1])
    """

    def __init__(
        self,
        runs: int,
        widths: Sequence[int],
        *,
        activation: Callable[[Tensor], Tensor] = torch.relu,
        gain: float = 1.0,
        bias: float = 0.0,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        runs = _check.positive_int(runs, "runs")
        widths = [_check.positive_int(w, "widths") for w in widths]
        if len(widths) < 2:
            raise ValueError(f"widths must name input and output at least, but is {widths}")
        gain = _check.positive(gain, "gain")
        options = {"dtype": dtype, "device": device}
        self.activation = activation
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for k, m in pairwise(widths):
            W = torch.randn(runs, k, m, generator=generator, **options)
            self.weights.append(gain / math.sqrt(k) * W)
            b = torch.zeros(runs, 1, m, **options)
            self.biases.append(bias * torch.randn(b.shape, generator=generator, **options) if bias else b)
        self.biases[-1].data.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """The outputs (r, n, widths[-1]) at points (r, n, widths[0]), or at (n, widths[0]) for all runs."""
        r, k = self.weights[0].shape[:2]
        if x.ndim not in (2, 3) or x.shape[-1] != k or (x.ndim == 3 and len(x) != r):
            raise ValueError(f"x must have shape (n, {k}) or ({r}, n, {k}), but has {tuple(x.shape)}")
        layers = zip(self.weights, self.biases, strict=True)
        W, b = next(layers)
        h = torch.baddbmm(b, x.expand(r, -1, -1), W)
        for W, b in layers:
            h = torch.baddbmm(b, self.activation(h), W)
        return h

    def __len__(self) -> int:
        """The number of runs."""
        return len(self.weights[0])

    def __getitem__(self, runs: slice) -> StackedMLP:
        """Some of the runs, as networks of their own: a copy, which trains apart."""
        return self._map(lambda p: p[runs])

    def repeat(self, times: int) -> StackedMLP:
        """The same starts ``times`` over, so that runs differ in nothing but what is done to them."""
        times = _check.positive_int(times, "times")
        return self._map(lambda p: p.repeat(times, 1, 1))

    def _map(self, change: Callable[[Tensor], Tensor]) -> StackedMLP:
        other = StackedMLP.__new__(StackedMLP)
        nn.Module.__init__(other)
        other.activation = self.activation
        for name in ("weights", "biases"):
            changed = (
                nn.Parameter(change(p.detach()).clone(), requires_grad=p.requires_grad)
                for p in getattr(self, name)
            )
            setattr(other, name, nn.ParameterList(changed))
        return other
