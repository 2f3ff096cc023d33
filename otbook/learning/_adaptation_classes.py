"""Domain adaptation with the labels of the source: plans that keep classes, or neighbours, together."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from .. import _check
from ..costs import sqeuclidean
from ..entropic import sinkhorn
from ._adaptation import Labels, OTTransport


class _Penalised(OTTransport):
    """Entropic transport with a further penalty η Ω(P), by linearising Ω."""

    def _descend(self, C: Tensor, omega: Callable[[Tensor], tuple[float, Tensor]], *, convex: bool) -> Tensor:
        """Minimise ⟨C, P⟩ + ε KL(P ‖ a⊗b) + η Ω(P); ``omega`` returns Ω and its gradient."""
        eta, n_steps = _check.positive(self.eta, "eta"), _check.positive_int(self.max_iter, "max_iter")

        def base(P: Tensor, C: Tensor) -> float:
            return float((C * P).sum() + self.eps * torch.special.xlogy(P, P * P.numel()).sum())

        result = sinkhorn(C, eps=self.eps, tol=self.tol)
        P, (penalty, slope) = result.plan, omega(result.plan)
        self.objective_ = [base(P, C) + eta * penalty]
        for _ in range(n_steps):
            tilted = C + eta * slope
            result = sinkhorn(tilted, eps=self.eps, tol=self.tol, g0=result.g)
            gap = base(P, tilted) - base(result.plan, tilted)
            for t in 0.5 ** torch.arange(20) if convex else (1.0,):
                trial = torch.lerp(P, result.plan, float(t))
                penalty, slope = omega(trial)
                value = base(trial, C) + eta * penalty
                # Armijo's rule; where Ω is concave its tangent lies above it, and the full step descends.
                if not convex or value <= self.objective_[-1] - 0.1 * float(t) * gap:
                    break
            else:  # not even the shortest step descends: at the minimum, up to rounding
                trial, value, slope = P, self.objective_[-1], omega(P)[1]
            P = trial
            self.objective_.append(value)
        if convex:
            self.gap_ = gap
        return P


class GroupLassoTransport(_Penalised):
    """As :class:`SinkhornTransport`, with a penalty that groups the senders of a target by their class.

    Minimises ⟨C, P⟩ + ε KL(P ‖ a⊗b) + η Ω(P). With p = P_ij / b_j, the column of the target j divided
    by its mass, p_c the part of it that comes from the class c, and n_c the size of that class,

    - ``penalty="l1l2"``: Ω = Σ_j b_j Σ_c √n_c ‖p_c‖₂. Convex. Each step linearises Ω, solves the
      entropic problem with the cost C + η ∇Ω, and goes towards its solution, as far as
      halving the step until the objective falls enough allows: the generalised conditional gradient.
    - ``penalty="lpl1"``: Ω = Σ_j b_j Σ_c √(‖p_c‖₁ + δ). Concave, so its tangent lies above it, and the
      solution of the linearised problem is taken as it is: majorisation and minimisation. The
      limit is stationary, and not always the minimum.

    Neither ever raises the objective, up to ``tol``.

    Args:
        eps: weight ε of the entropic term, in units of the squared distances, above 0.
        eta: price η, in the same units, above 0.
        penalty: ``"l1l2"`` or ``"lpl1"``.
        delta: smoothing δ of the root, a share, above 0; for ``"lpl1"`` only.
        max_iter: number of steps after the entropic plan. There is no other stopping rule.
        tol: largest marginal error of each plan.

    Attributes:
        objective_: the objective after each step, a list of ``max_iter`` + 1 numbers.
        gap_: for ``"l1l2"``, an upper bound of the last but one objective minus the minimum.

    Note:
        Ω is in shares, so that η depends neither on the number of targets nor of sources. For classes of
        n_c samples each POT's ``ot.da.sinkhorn_l1l2_gl`` has the same minimiser with its
        eta = η √n_c. For m targets ``ot.da.sinkhorn_lpl1_mm`` has the same iterations with its
        eta = η/√m and δ = 0.001 m.

    Source:
        Courty, Flamary, Tuia, Rakotomamonjy (2017), sections 4.2 and 4.4; ``"lpl1"``: Courty, Flamary,
        Tuia (2014), algorithm 1.

    Example:
        >>> Xs, Xt = np.array([[0.0], [1.0]]), np.array([[0.2], [0.8]])
        >>> mapping = GroupLassoTransport(eps=1.0, eta=2.0, penalty="lpl1").fit(Xs, ["a", "b"], Xt)
        >>> mapping.coupling_.round(2)
        array([[0.5, 0. ],
               [0. , 0.5]])
    """

    def __init__(
        self,
        *,
        eps: float = 0.1,
        eta: float = 0.1,
        penalty: str = "l1l2",
        delta: float = 1e-2,
        max_iter: int = 10,
        tol: float = 1e-6,
    ) -> None:
        self.eps = eps
        self.eta = eta
        self.penalty = penalty
        self.delta = delta
        self.max_iter = max_iter
        self.tol = tol

    def _couple(self, xs: Tensor, xt: Tensor, C: Tensor, ys: Labels | None) -> Tensor:
        convex = _check.choice(self.penalty, "penalty", ("l1l2", "lpl1")) == "l1l2"
        delta = _check.positive(self.delta, "delta")
        member = torch.nn.functional.one_hot(torch.from_numpy(_classes(ys, len(C)))).to(C)  # (n, classes)
        m = len(xt)

        def omega(P: Tensor) -> tuple[float, Tensor]:
            p = m * P
            if convex:
                size = member.sum(0)[:, None].sqrt()
                norm = (member.T @ p.square()).sqrt()  # (classes, m)
                # At 0 the norm has a kink, and 0 is a subgradient.
                return float((size * norm).sum() / m), p * (member @ (size / torch.where(norm > 0, norm, 1)))
            root = (member.T @ p + delta).sqrt()
            return float(root.sum() / m), member @ (0.5 / root)

        return self._descend(C, omega, convex=convex)


class LaplaceTransport(_Penalised):
    """As :class:`SinkhornTransport`, with a price on neighbours of one class that move differently.

    Minimises ⟨C, P⟩ + ε KL(P ‖ a⊗b) + η Ω(P), where Ω is the mean of ‖u_i − u_k‖² over the pairs (i, k) of
    which one is among the ``n_neighbors`` nearest samples of the other's class, and u_i = T(x_i) − x_i
    is the displacement. Convex and quadratic; solved as in :class:`GroupLassoTransport`.

    Args:
        eps: weight ε of the entropic term, in units of the squared distances, above 0.
        eta: price η, without unit, above 0.
        n_neighbors: nearest samples of the same class that count as neighbours.
        max_iter: number of steps after the entropic plan. There is no other stopping rule.
        tol: largest marginal error of each plan.

    Attributes:
        objective_: the objective after each step, a list of ``max_iter`` + 1 numbers.
        gap_: an upper bound of the last but one objective minus the minimum.

    Source:
        Ferradans, Papadakis, Peyré, Aujol (2014), who penalise displacements; for adaptation Courty,
        Flamary, Tuia, Rakotomamonjy (2017), section 4.3, with the positions T(x_i) in place of u_i.

    Example:
        >>> Xs, Xt = np.array([[0.0], [1.0]]), np.array([[0.2], [0.8]])
        >>> LaplaceTransport(eps=1.0, eta=100.0).fit_transform(Xs, ["a", "a"], Xt).round(2)
        array([[0.2],
               [0.8]])
    """

    def __init__(
        self,
        *,
        eps: float = 0.1,
        eta: float = 1.0,
        n_neighbors: int = 5,
        max_iter: int = 10,
        tol: float = 1e-6,
    ) -> None:
        self.eps = eps
        self.eta = eta
        self.n_neighbors = n_neighbors
        self.max_iter = max_iter
        self.tol = tol

    def _couple(self, xs: Tensor, xt: Tensor, C: Tensor, ys: Labels | None) -> Tensor:
        n = len(xs)
        classes = torch.from_numpy(_classes(ys, n)).to(xs.device)
        apart = sqeuclidean(xs, xs).masked_fill(classes[:, None] != classes, torch.inf)
        apart.fill_diagonal_(torch.inf)
        k = min(_check.positive_int(self.n_neighbors, "n_neighbors"), n)
        near = torch.zeros_like(apart).scatter_(1, apart.topk(k, largest=False).indices, 1)
        S = torch.maximum(near, near.T).masked_fill(apart == torch.inf, 0)
        L = 2 * (torch.diag(S.sum(1)) - S) / S.sum().clamp(min=1)  # Ω = tr(Uᵀ L U)

        def omega(P: Tensor) -> tuple[float, Tensor]:
            U = n * P @ xt - xs
            return float((U * (L @ U)).sum()), 2 * n * (L @ U) @ xt.T

        return self._descend(C, omega, convex=True)


def _classes(ys: Labels | None, n: int) -> np.ndarray:
    """Labels as numbers of classes, 0, 1, …"""
    if ys is None:
        raise ValueError("ys is missing; this penalty needs the labels of the source, fit(Xs, ys, Xt=Xt)")
    labels = ys.cpu().numpy() if isinstance(ys, Tensor) else np.asarray(ys)
    if labels.shape != (n,):
        raise ValueError(f"ys must hold one label a sample, shape ({n},), but has shape {labels.shape}")
    return np.unique(labels, return_inverse=True)[1].reshape(-1).astype(np.int64)
