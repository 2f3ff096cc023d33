"""Input-convex neural networks: convex functions to be trained, whose gradients are transport maps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import _check

Activation = Callable[[Tensor], Tensor]


class ICNN(nn.Module):
    """A network φ: ℝᵈ → ℝ that is convex in its input, whatever its parameters are.

    With a convex, non-decreasing activation σ and non-negative matrices V₁², …, V_L² (squares entry by
    entry), the layers are

        z₁ = σ(A₀x + b₀),   z_{k+1} = σ(V_k² z_k + A_k x + b_k),
        φ(x) = ⟨v², z_L⟩ + ⟨a, x⟩ + ½‖Qx‖² + ½ α ‖x‖².

    A non-negative combination of convex functions is convex, σ of it too, and so on upwards. The
    quadratic terms make φ strongly convex with modulus α (``strong_convexity``), and with Q = √(1−α) I,
    where training starts, they are ½‖x‖², the potential of the identity map.

    Args:
        d: dimension of the inputs.
        widths: of the hidden layers, for example (64, 64).
        activation: σ, convex, non-decreasing and acting on every entry. It must be smooth, like the
            default softplus, for a continuous map; with relu the map is piecewise affine.
        strong_convexity: α, between 0 and 1. With α > 0 the conjugate φ* is finite everywhere, and the
            transport is invertible.
        generator: source of randomness, on ``device``; PyTorch's own, as for every ``nn.Module``, if None.
        dtype: of the parameters; PyTorch's default if None.
        device: of the parameters; PyTorch's default if None.

    Raises:
        ValueError: for a dimension or a width below 1, no width at all, or α outside [0, 1].

    Source:
        Amos, Xu, Kolter (2017), equation (2), with squares for the non-negative weights; the quadratic
        terms as in Korotin, Egiazarian, Asadulaev, Safin, Burnaev (2021), Wasserstein-2 generative networks.

    Example:
        >>> phi = ICNN(2, (16, 16), generator=torch.Generator().manual_seed(0))
        >>> x, y = torch.randn(2, 5, 2, generator=torch.Generator().manual_seed(1))
        >>> phi(x).shape, phi.transport(x).shape
        (torch.Size([5]), torch.Size([5, 2]))
        >>> bool((phi((x + y) / 2) <= (phi(x) + phi(y)) / 2).all())
        True
    """

    def __init__(
        self,
        d: int,
        widths: Sequence[int],
        *,
        activation: Activation = F.softplus,
        strong_convexity: float = 0.1,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        d = _check.positive_int(d, "d")
        widths = [_check.positive_int(width, "widths") for width in widths]
        if not widths:
            raise ValueError("widths must name at least one hidden layer, for example (64, 64), but is empty")
        if generator is not None:
            _check.generator(generator)
        if not 0 <= strong_convexity <= 1:
            raise ValueError(
                f"strong_convexity must lie between 0 and 1, but is {strong_convexity:g}; "
                "scale the data for maps that expand everywhere"
            )
        self.strong_convexity = float(strong_convexity)
        self.activation = activation
        kind = {"dtype": dtype, "device": device}

        def normal(*shape: int, std: float) -> nn.Parameter:
            return nn.Parameter(std * torch.randn(*shape, generator=generator, **kind))

        self.A = nn.ParameterList([normal(width, d, std=1 / math.sqrt(d)) for width in widths])
        self.b = nn.ParameterList([normal(width, std=1.0) for width in widths])
        # The squares have the mean 1/fan-in: z_{k+1} starts near an average of z_k.
        self.V = nn.ParameterList([normal(k, j, std=j**-0.5) for j, k in pairwise(widths)])
        # A tenth of that at the output: the map starts near the identity.
        self.v = normal(widths[-1], std=(0.1 / widths[-1]) ** 0.5)
        self.a = nn.Parameter(torch.zeros(d, **kind))
        self.Q = nn.Parameter(math.sqrt(1 - strong_convexity) * torch.eye(d, **kind))

    def forward(self, x: Tensor) -> Tensor:
        """φ(x): points (…, d) to values (…)."""
        z = self.activation(F.linear(x, self.A[0], self.b[0]))
        for V, A, b in zip(self.V, self.A[1:], self.b[1:], strict=True):
            z = self.activation(F.linear(z, V.square()) + F.linear(x, A, b))
        quadratic = F.linear(x, self.Q).square().sum(-1) + self.strong_convexity * x.square().sum(-1)
        return z @ self.v.square() + x @ self.a + quadratic / 2

    def transport(self, x: Tensor, *, create_graph: bool = False) -> Tensor:
        """The map T(x) = ∇φ(x), which is optimal between its source and its image for ‖x − y‖².

        Args:
            x: points, shape (…, d), with the dtype and device of the parameters.
            create_graph: keep what is needed to differentiate T in x and in the parameters; without it
                the result is detached.

        Returns:
            Images, shape (…, d).
        """
        if create_graph:
            return torch.func.grad(lambda x: self(x).sum())(x)
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            (T,) = torch.autograd.grad(self(x).sum(), x)
        return T

    def conjugate(
        self, y: Tensor, x0: Tensor | None = None, *, n_steps: int = 50, tol: float = 1e-8
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The Legendre conjugate φ*(y) = sup_x ⟨x, y⟩ − φ(x), with a certificate, by Newton's method.

        Strong convexity bounds what any x may be short of the supremum: by ‖y − ∇φ(x)‖²/(2α) at most.

        Args:
            y: points, shape (n, d).
            x0: where to start, shape (n, d); y if None.
            n_steps: largest number of Newton steps, each with n systems of size d; 0 bounds φ* from x0 alone.
            tol: stop when every residual ‖y − ∇φ(x)‖ is at most ``tol``, in units of y.

        Returns:
            x, shape (n, d), where the supremum is nearly attained, so that x ≈ (∇φ)⁻¹(y); a lower and an
            upper bound of φ*(y), shape (n,) each. All detached. They are bounds whether or not ``tol`` was
            reached.

        Raises:
            ValueError: if α = 0, when the supremum may be infinite.
        """
        if self.strong_convexity == 0:
            raise ValueError(
                "the conjugate needs strong_convexity above 0, but it is 0; make the network with 0.1, say"
            )
        value = lambda x: self(x)  # noqa: E731
        hessian = torch.func.vmap(torch.func.hessian(value))
        slope = torch.func.vmap(torch.func.grad_and_value(value))
        y = y.detach()
        x = (y if x0 is None else x0).detach().clone()
        with torch.no_grad():
            g, phi = slope(x)
            for _ in range(n_steps):
                residual = y - g
                if residual.norm(dim=-1).max() <= tol:
                    break
                move = torch.linalg.solve(hessian(x), residual)
                height, gain = (x * y).sum(-1) - phi, (move * residual).sum(-1)
                t = torch.ones_like(phi)
                for _ in range(30):  # halve the steps that do not ascend enough (Armijo)
                    new = x + t[:, None] * move
                    g, phi = slope(new)
                    rounding = 10 * torch.finfo(x.dtype).eps * (1 + height.abs())
                    short = (new * y).sum(-1) - phi < height + 0.1 * t * gain - rounding
                    if not short.any():
                        break
                    t = torch.where(short, t / 2, t)
                x = new
            low = (x * y).sum(-1) - phi
            high = low + (y - g).square().sum(-1) / (2 * self.strong_convexity)
        return x, low, high
