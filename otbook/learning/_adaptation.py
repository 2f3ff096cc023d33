"""Domain adaptation by transport: move labelled source samples to where an unlabelled target lies.

The classes follow the habits of scikit-learn (``fit``, ``transform``, ``get_params``, ``clone``), which
need not be installed. NumPy arrays in, NumPy arrays out; tensors in, tensors out, on their device.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .. import _check
from .._check import ArrayLike
from ..costs import sqeuclidean
from ..entropic import sinkhorn, sinkhorn_unbalanced
from ..exact import emd
from ._maps import barycentric_projection

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
            mass = plan.sum(1)
            if not (mass > 0).all():
                raise ValueError(
                    f"Xs[{int(mass.argmin())}] keeps no mass, so it has no image; use a larger rho or eps"
                )
            images = barycentric_projection(plan, xt)
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


def _matrix(X: ArrayLike, name: str, *, like: Tensor | None = None) -> Tensor:
    """Samples (n, d). Integer arrays become floats; NumPy arrays may be read-only, and are not changed."""
    if isinstance(X, np.ndarray):
        target = like.detach().cpu().numpy().dtype if like is not None else np.float64
        X = np.array(X, dtype=X.dtype if X.dtype.kind == "f" else target)
    x = _check.points(X, name, like=like)
    if x.ndim != 2:
        raise ValueError(f"{name} must have shape (n, d), but has shape {tuple(x.shape)}; give one sample")
    return x


def _not_fitted(message: str) -> Exception:
    try:
        from sklearn.exceptions import NotFittedError
    except ImportError:
        return ValueError(message)
    return NotFittedError(message)
