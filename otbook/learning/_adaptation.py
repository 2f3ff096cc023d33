"""Domain adaptation by transport: move labelled source samples to where an unlabelled target lies.

The classes follow the habits of scikit-learn (``fit``, ``transform``, ``get_params``, ``clone``), which
need not be installed. NumPy arrays in, NumPy arrays out; tensors in, tensors out, on their device.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from .. import _check
from .._check import ArrayLike
from ..costs import sqeuclidean
from ..entropic import sinkhorn, sinkhorn_unbalanced
from ..exact import emd

Labels = Tensor | np.ndarray | Sequence[object]


class OTTransport:
    """Map source samples to the target along the exact optimal plan, for the squared Euclidean cost.

    ``fit`` minimises ⟨C, P⟩ with C_ij = ‖x_i − y_j‖² over couplings P of the two samples, all points of
    one sample with the same weight. ``transform`` sends the sample x_i to the barycentre of its
    share, T(x_i) = Σ_j P_ij y_j / Σ_j P_ij, and another point x to x + T(x_k) − x_k, for x_k
    the sample nearest to x. A new target needs a new fit. Labels of the target are never seen; those of
    the source are used by :class:`GroupLassoTransport` and :class:`LaplaceTransport` only.

    Attributes:
        coupling_: the plan P, shape (n, m), after ``fit``.
        images_: the images T(x_i), shape (n, d); what ``fit_transform`` returns.
        source_: a copy of the samples x_i, shape (n, d).
        n_features_in_: the dimension d.

    Note:
        In a scikit-learn ``Pipeline`` pass ``Xt`` to the step, as in ``pipe.fit(Xs, ys, ot__Xt=Xt)``. The
        pipeline maps whatever passes through it, so it expects points of the source. To classify points
        of the target train the classifier on ``fit_transform(Xs, ys, Xt)`` instead.

    Source:
        Courty, Flamary, Tuia, Rakotomamonjy (2017), equations (5) and (14); new points: Ferradans,
        Papadakis, Peyré, Aujol (2014).

    Example:
        >>> Xs = np.array([[0.0, 0.0], [1.0, 0.0]])
        >>> mapping = OTTransport().fit(Xs, Xt=np.array([[1.5, 2.0], [0.5, 2.0]]))
        >>> mapping.transform(np.array([[1.0, 0.0], [1.0, 0.25]]))
        array([[1.5 , 2.  ],
               [1.5 , 2.25]])
    """

    def fit(self, Xs: ArrayLike, ys: Labels | None = None, Xt: ArrayLike | None = None) -> OTTransport:
        """Couple the source with the target.

        Args:
            Xs: source samples, shape (n, d), not empty.
            ys: their labels, n of them; needed by :class:`GroupLassoTransport`
                and :class:`LaplaceTransport` only.
            Xt: target samples, shape (m, d), of the same dtype and device.

        Returns:
            The estimator itself.

        Raises:
            ValueError: for samples that are missing, not finite, or not in one space, and for
                parameters out of range.

        Warns:
            ConvergenceWarning: if a solver does not reach its tolerance.
        """
        if Xt is None:
            raise ValueError("Xt is missing; give the target samples by name, fit(Xs, ys, Xt=Xt)")
        wants_tensors = isinstance(Xs, Tensor)
        like = None if isinstance(Xs, (Tensor, np.ndarray)) else _check.first_array(Xt)
        xs = _matrix(Xs, "Xs", like=like).detach()
        xt = _matrix(Xt, "Xt", like=xs).detach()
        _check.same_dimension(xs, xt, ("Xs", "Xt"))
        with torch.no_grad():
            plan = self._couple(xs, xt, sqeuclidean(xs, xt), ys)
            mass = plan.sum(1, keepdim=True)
            if not (mass > 0).all():
                raise ValueError(
                    f"Xs[{int(mass.argmin())}] keeps no mass, so it has no image; use a larger rho or eps"
                )
            images = (plan / mass) @ xt
        self._tensors = xs.clone(), images
        out = (lambda t: t) if wants_tensors else Tensor.numpy
        self.coupling_, self.images_, self.source_ = out(plan), out(images), out(self._tensors[0])
        self.n_features_in_ = xs.shape[1]
        return self

    def transform(self, Xs: ArrayLike) -> Tensor | np.ndarray:
        """Move source points, fitted or new: x + T(x_k) − x_k with the nearest sample x_k.

        Args:
            Xs: points of the source domain, shape (k, d), dtype and device as in ``fit``.

        Returns:
            Their images, shape (k, d). Among equal samples the first decides.

        Raises:
            NotFittedError: before ``fit`` (a ValueError where scikit-learn is not installed).
            ValueError: for another dimension, dtype or device.
        """
        if not hasattr(self, "coupling_"):
            raise _not_fitted(f"this {type(self).__name__} is not fitted; call fit(Xs, ys, Xt=Xt) first")
        xs, images = self._tensors
        x = _matrix(Xs, "Xs", like=xs)
        if x.shape[1] != xs.shape[1]:
            raise ValueError(
                f"X has {x.shape[1]} features, but {type(self).__name__} is expecting {xs.shape[1]} "
                "features as input; give points of the space of fit"
            )
        nearest = sqeuclidean(x.detach(), xs).argmin(1)
        moved = x + (images - xs)[nearest]
        return moved if isinstance(Xs, Tensor) else moved.numpy()

    def fit_transform(
        self, Xs: ArrayLike, ys: Labels | None = None, Xt: ArrayLike | None = None
    ) -> Tensor | np.ndarray:
        """Couple both samples and return the images T(x_i) of the source samples, shape (n, d)."""
        return self.fit(Xs, ys, Xt).images_

    def get_params(self, deep: bool = True) -> dict[str, object]:
        """The parameters of the constructor, by name."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def set_params(self, **params: object) -> OTTransport:
        """Change parameters of the constructor; the next ``fit`` uses them."""
        allowed = self.get_params()
        for name, value in params.items():
            if name not in allowed:
                has = ", ".join(allowed) or "none"
                raise ValueError(f"{name!r} is no parameter of {type(self).__name__}, which has {has}")
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        inside = ", ".join(f"{name}={value!r}" for name, value in self.get_params().items())
        return f"{type(self).__name__}({inside})"

    def __sklearn_tags__(self) -> object:
        from sklearn.utils import Tags, TargetTags, TransformerTags

        tags = {"estimator_type": None, "target_tags": TargetTags(required=False)}
        return Tags(**tags, transformer_tags=TransformerTags())

    def _couple(self, xs: Tensor, xt: Tensor, C: Tensor, ys: Labels | None) -> Tensor:
        return emd(C).plan


class SinkhornTransport(OTTransport):
    """As :class:`OTTransport`, along the entropic plan: ⟨C, P⟩ + ε KL(P ‖ a⊗b).

    Args:
        eps: weight ε of the entropic term, in units of the squared distances, above 0.
        tol: largest marginal error.

    Source:
        Courty, Flamary, Tuia, Rakotomamonjy (2017), equation (8).

    Example:
        >>> Xs, Xt = np.array([[0.0], [1.0]]), np.array([[0.0], [1.0]])
        >>> SinkhornTransport(eps=1.0).fit_transform(Xs, Xt=Xt).round(3)
        array([[0.269],
               [0.731]])
    """

    def __init__(self, *, eps: float = 0.1, tol: float = 1e-6) -> None:
        self.eps = eps
        self.tol = tol

    def _couple(self, xs: Tensor, xt: Tensor, C: Tensor, ys: Labels | None) -> Tensor:
        return sinkhorn(C, eps=self.eps, tol=self.tol).plan


class UnbalancedTransport(OTTransport):
    """As :class:`SinkhornTransport`, with marginals that may be violated at a price, for label shift.

    Minimises ⟨C, P⟩ + ε KL(P ‖ a⊗b) + ρ KL(P1 ‖ a) + ρ KL(Pᵀ1 ‖ b).

    Args:
        eps: weight ε of the entropic term, in units of the squared distances, above 0.
        rho: price ρ of mass created or destroyed, in the same units; mass travels about √ρ at most.
        tol: tolerance of :func:`otbook.sinkhorn_unbalanced`.

    Source:
        Chizat, Peyré, Schmitzer, Vialard (2018); for adaptation: Fatras et al. (2021).

    Example:
        >>> Xs, Xt = np.array([[0.0], [9.0]]), np.array([[0.0], [0.1], [9.0]])
        >>> UnbalancedTransport(eps=0.1, rho=1.0).fit_transform(Xs, Xt=Xt).round(2)
        array([[0.05],
               [9.  ]])
    """

    def __init__(self, *, eps: float = 0.1, rho: float = 1.0, tol: float = 1e-6) -> None:
        self.eps = eps
        self.rho = rho
        self.tol = tol

    def _couple(self, xs: Tensor, xt: Tensor, C: Tensor, ys: Labels | None) -> Tensor:
        return sinkhorn_unbalanced(C, eps=self.eps, rho=self.rho, tol=self.tol).plan


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


def _matrix(X: ArrayLike, name: str, *, like: Tensor | None = None) -> Tensor:
    """Samples (n, d). Integer arrays become floats; NumPy arrays may be read-only, and are not changed."""
    if isinstance(X, np.ndarray):
        target = like.detach().cpu().numpy().dtype if like is not None else np.float64
        X = np.array(X, dtype=X.dtype if X.dtype.kind == "f" else target)
    x = _check.points(X, name, like=like)
    if x.ndim != 2:
        raise ValueError(f"{name} must have shape (n, d), but has shape {tuple(x.shape)}; give one sample")
    return x


def _classes(ys: Labels | None, n: int) -> np.ndarray:
    """Labels as numbers of classes, 0, 1, …"""
    if ys is None:
        raise ValueError("ys is missing; this penalty needs the labels of the source, fit(Xs, ys, Xt=Xt)")
    labels = ys.cpu().numpy() if isinstance(ys, Tensor) else np.asarray(ys)
    if labels.shape != (n,):
        raise ValueError(f"ys must hold one label a sample, shape ({n},), but has shape {labels.shape}")
    return np.unique(labels, return_inverse=True)[1].reshape(-1).astype(np.int64)


def _not_fitted(message: str) -> Exception:
    try:
        from sklearn.exceptions import NotFittedError
    except ImportError:
        return ValueError(message)
    return NotFittedError(message)
