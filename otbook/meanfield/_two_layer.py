"""Two-layer networks as measures over their neurons, and the velocity at which training moves them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from .. import _check
from .._result import ConvergenceWarning

Activation = Callable[[Tensor], Tensor]


def _tanh_slope(z: Tensor) -> Tensor:
    return 1 - torch.tanh(z) ** 2


def _relu_slope(z: Tensor) -> Tensor:
    return (z > 0).to(z.dtype)


def _erf_slope(z: Tensor) -> Tensor:
    return 2 / math.sqrt(math.pi) * torch.exp(-(z**2))


#: φ and φ' by name. The slope of relu at 0 is 0, which is also what PyTorch's autograd takes.
ACTIVATIONS: dict[str, tuple[Activation, Activation]] = {
    "tanh": (torch.tanh, _tanh_slope),
    "relu": (torch.relu, _relu_slope),
    "erf": (torch.erf, _erf_slope),
    "identity": (lambda z: z, torch.ones_like),
}

#: The exponent s of the factor n⁻ˢ in front of the sum over neurons.
SCALINGS = {"mean-field": 1.0, "ntk": 0.5}


class TwoLayer(nn.Module):
    """A network with one hidden layer, f(x) = n⁻ˢ Σᵢ aᵢ φ(⟨wᵢ, x⟩).

    With s = 1 (``"mean-field"``) it is the integral f(x; ρ) = ∫ a φ(⟨w, x⟩) dρ(w, a) against the
    empirical measure ρ of its neurons; with s = ½ (``"ntk"``) it is √n times that integral. The neurons
    start as independent draws of one law that does not depend on n: w ~ N(0, std_w² I_d) and
    a ~ N(0, std_a²). There is no bias; append a coordinate 1 to x for one.

    Args:
        n: number of neurons.
        d: dimension of the inputs.
        activation: ``"tanh"``, ``"relu"``, ``"erf"``, ``"identity"``, or a function of a tensor that acts
            on every entry and that PyTorch can differentiate.
        scaling: ``"mean-field"``, ``"ntk"``, or the exponent s as a number.
        std_w: standard deviation of every entry of w at the start.
        std_a: standard deviation of a at the start.
        generator: source of randomness, on ``device``; PyTorch's own, as for every ``nn.Module``, if None.
        dtype: of the parameters; PyTorch's default if None.
        device: of the parameters; PyTorch's default if None.

    Attributes:
        w: parameter, shape (n, d).
        a: parameter, shape (n,).
        time_scale: n²ˢ⁻¹, by which the plain gradient is multiplied so that f moves at a speed that does
            not depend on n: the factor n for the mean-field scaling, 1 for ``"ntk"``.

    Raises:
        ValueError: for sizes below 1, an unknown activation or scaling, a deviation that is not positive.
        TypeError: for a generator that is none.

    Source:
        Mei, Montanari and Nguyen (2018), where θ = (w, a) is one neuron.

    Example:
        >>> model = TwoLayer(100, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> model(torch.ones(5, 3, dtype=torch.float64)).shape
        torch.Size([5])
        >>> model.measure().shape
        torch.Size([100, 4])
    """

    def __init__(
        self,
        n: int,
        d: int,
        *,
        activation: str | Activation = "tanh",
        scaling: str | float = "mean-field",
        std_w: float = 1.0,
        std_a: float = 1.0,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        n, d = _check.positive_int(n, "n"), _check.positive_int(d, "d")
        std_w, std_a = _check.positive(std_w, "std_w"), _check.positive(std_a, "std_a")
        if generator is not None:
            generator = _check.generator(generator)
        options = {"generator": generator, "dtype": dtype, "device": device}
        z = torch.randn(n, d + 1, **options)
        self._set(std_w * z[:, :d], std_a * z[:, d], activation, scaling)

    @classmethod
    def from_measure(
        cls, z: Tensor, *, activation: str | Activation = "tanh", scaling: str | float = "mean-field"
    ) -> TwoLayer:
        """The network with given neurons.

        Args:
            z: one row (wᵢ, aᵢ) a neuron, shape (n, d + 1); copied. dtype and device are kept.
            activation: as for the class.
            scaling: as for the class.

        Returns:
            The network, with n neurons.

        Raises:
            ValueError: if z is not a finite matrix with at least two columns.

        Example:
            >>> z = torch.tensor([[1.0, 2.0], [0.0, 5.0]])  # two neurons on the line
            >>> TwoLayer.from_measure(z, activation="identity")(torch.tensor([[3.0]]))
            tensor([3.], grad_fn=<MulBackward0>)
        """
        z = _check.points(z, "z").detach().clone()
        if z.ndim != 2 or z.shape[1] < 2:
            raise ValueError(
                f"z must have shape (n, d + 1), one row (w, a) a neuron, but has shape {tuple(z.shape)}"
            )
        model = cls.__new__(cls)
        nn.Module.__init__(model)
        model._set(z[:, :-1], z[:, -1], activation, scaling)
        return model

    def _set(self, w: Tensor, a: Tensor, activation: str | Activation, scaling: str | float) -> None:
        if isinstance(activation, str):
            self.phi, self.slope = ACTIVATIONS[_check.choice(activation, "activation", tuple(ACTIVATIONS))]
        elif callable(activation):
            self.phi, self.slope = activation, _slope_of(activation)
        else:
            raise TypeError(
                f"activation must be a name or a function, but a {type(activation).__name__} was given"
            )
        if isinstance(scaling, str):
            scaling = SCALINGS[_check.choice(scaling, "scaling", tuple(SCALINGS))]
        elif not math.isfinite(scaling):
            raise ValueError(f"scaling must be a finite exponent, but is {scaling}")
        self.exponent = float(scaling)
        self.w, self.a = nn.Parameter(w.contiguous()), nn.Parameter(a.contiguous())

    @property
    def time_scale(self) -> float:
        """n²ˢ⁻¹: how many units of plain gradient flow make one unit of rescaled time."""
        return len(self.a) ** (2 * self.exponent - 1)

    def forward(self, x: Tensor) -> Tensor:
        """The outputs f(x) at points x of shape (…, d); shape (…)."""
        return len(self.a) ** -self.exponent * (self.phi(x @ self.w.T) @ self.a)

    def measure(self) -> Tensor:
        """The neurons (wᵢ, aᵢ) as points of equal weight, shape (n, d + 1): a copy, without gradient."""
        return torch.cat([self.w, self.a[:, None]], dim=1).detach()


def mean_field_velocity(model: TwoLayer, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The velocity of every neuron under training: minus n²ˢ⁻¹ times the gradient of the loss.

    The loss is ½ E[(f(x) − y)²], the mean over the m rows of x. With the mean-field scaling

        v_w = −E[(f(x) − y) a φ'(⟨w, x⟩) x]   and   v_a = −E[(f(x) − y) φ(⟨w, x⟩)],

    minus the gradient in (w, a) of the first variation of the loss, and −n times what autograd gives.
    For another exponent s both are multiplied by n^{s−1}. Written out, so no graph is built.

    Args:
        model: the network.
        x: inputs, shape (m, d).
        y: targets, shape (m,).

    Returns:
        v_w of shape (n, d) and v_a of shape (n,).

    Raises:
        ValueError: if the shapes, dtypes or devices do not fit each other.

    Source:
        The distributional dynamics of Mei, Montanari and Nguyen (2018), for the empirical measure of the
        data and without their step size schedule.

    Example:
        >>> model = TwoLayer.from_measure(torch.tensor([[1.0, 2.0]]), activation="identity")
        >>> v_w, v_a = mean_field_velocity(model, torch.tensor([[3.0]]), torch.tensor([5.0]))
        >>> v_w.item(), v_a.item()  # f − y = 6 − 5 = 1
        (-6.0, -3.0)
    """
    x, y = _data(model, x, y)
    return _velocity(model, x, y)[:2]


def train(
    model: TwoLayer,
    x: Tensor,
    y: Tensor,
    *,
    step: float,
    n_steps: int,
    callback: Callable[[int, TwoLayer], None] | None = None,
) -> Tensor:
    """Train in place by explicit Euler steps of the gradient flow: z ← z + step · v(z).

    The loss is ½ E[(f(x) − y)²]. Time does not depend on the width: ``n_steps`` steps reach the time
    step × n_steps of the flow for every n, see :func:`mean_field_velocity`.

    Args:
        model: the network; its parameters change.
        x: inputs, shape (m, d).
        y: targets, shape (m,).
        step: length of a step, in units of the flow's time.
        n_steps: number of steps.
        callback: called as callback(k, model) before step k and once more at the end, k = 0, …, n_steps.

    Returns:
        The loss before every step and at the end, shape (n_steps + 1,). If a step is too long and the loss
        leaves the finite numbers, training stops at the last finite state and fewer losses come back.

    Raises:
        ValueError: if the shapes, dtypes or devices do not fit, or step or n_steps is not positive.

    Warns:
        ConvergenceWarning: when the loss has become infinite or NaN.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> x = torch.randn(50, 2, generator=g)
        >>> losses = train(TwoLayer(200, 2, generator=g), x, x[:, 0], step=0.2, n_steps=100)
        >>> bool(losses[-1] < 0.1 * losses[0])
        True
    """
    x, y = _data(model, x, y)
    step, n_steps = _check.positive(step, "step"), _check.positive_int(n_steps, "n_steps")
    losses: list[Tensor] = []
    last = model.w.detach().clone(), model.a.detach().clone()
    with torch.no_grad():
        for k in range(n_steps + 1):
            v_w, v_a, loss = _velocity(model, x, y)
            if not torch.isfinite(loss):
                model.w.copy_(last[0])
                model.a.copy_(last[1])
                warnings.warn(
                    f"the loss is {loss.item()} after {k} steps of length {step:g}; use a shorter step",
                    ConvergenceWarning,
                    stacklevel=2,
                )
                break
            losses.append(loss)
            if callback:
                callback(k, model)
            if k < n_steps:
                last[0].copy_(model.w)
                last[1].copy_(model.a)
                model.w += step * v_w
                model.a += step * v_a
    return torch.stack(losses) if losses else x.new_empty(0)


@torch.no_grad()
def _velocity(model: TwoLayer, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The two velocities and the loss."""
    w, a, n = model.w, model.a, len(model.a)
    z = x @ w.T  # (m, n)
    phi = model.phi(z)
    r = n**-model.exponent * (phi @ a) - y  # (m,)
    factor = -(n ** (model.exponent - 1)) / len(r)
    v_w = factor * a[:, None] * ((r[:, None] * model.slope(z)).T @ x)
    return v_w, factor * (r @ phi), r.square().mean() / 2


def _slope_of(activation: Activation) -> Activation:
    """φ' by forward differentiation, exact and without a graph."""

    def slope(z: Tensor) -> Tensor:
        return torch.func.jvp(activation, (z,), (torch.ones_like(z),))[1]

    return slope


def _data(model: TwoLayer, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    x = _check.points(x, "x", like=model.w)
    y = _check.line_points(y, "y", like=model.w)
    if x.ndim != 2 or x.shape[1] != model.w.shape[1]:
        raise ValueError(
            f"x must have shape (m, {model.w.shape[1]}), one input a row, but has shape {tuple(x.shape)}"
        )
    if y.shape != x.shape[:1]:
        raise ValueError(
            f"y must have shape ({len(x)},), one target for each row of x, but has shape {tuple(y.shape)}"
        )
    return x, y
