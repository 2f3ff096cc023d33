"""Transport for domain adaptation: closed forms, POT, descent, and the habits of scikit-learn."""

import pickle
import subprocess
import sys

import numpy as np
import ot
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import estimator_checks

from otbook import sinkhorn
from otbook.costs import sqeuclidean
from otbook.learning import (
    GroupLassoTransport,
    LaplaceTransport,
    OTTransport,
    SinkhornTransport,
    UnbalancedTransport,
)

ALL = [
    OTTransport(),
    SinkhornTransport(eps=0.3),
    UnbalancedTransport(eps=0.3, rho=2.0),
    GroupLassoTransport(eps=0.3, eta=0.4, max_iter=3),
    GroupLassoTransport(eps=0.3, eta=0.4, penalty="lpl1", max_iter=3),
    LaplaceTransport(eps=0.3, eta=0.5, max_iter=3),
]
PENALISED = ALL[3:]
every = pytest.mark.parametrize("method", ALL, ids=repr)


def data(n=18, m=14, d=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)), np.arange(n) % 3, rng.normal(size=(m, d)) @ np.diag([2, 1, 0.5][:d]) + 1


@every
def test_the_coupling_has_the_marginals_and_the_images_are_barycentric(method):
    Xs, ys, Xt = data()
    fit = clone(method).fit(Xs, ys, Xt)
    P = fit.coupling_
    np.testing.assert_array_less(-1e-15, P)
    if not isinstance(method, UnbalancedTransport):
        np.testing.assert_allclose(P.sum(1), 1 / 18, atol=1e-6)
        np.testing.assert_allclose(P.sum(0), 1 / 14, atol=1e-6)
    np.testing.assert_allclose(fit.images_, P @ Xt / P.sum(1, keepdims=True), atol=1e-12)
    np.testing.assert_allclose(fit.transform(Xs), fit.images_, atol=1e-12)


@every
def test_new_points_move_like_the_nearest_sample(method):
    Xs, ys, Xt = data()
    fit = clone(method).fit(Xs, ys, Xt)
    new = data(seed=1)[0]
    k = ((new[:, None] - Xs) ** 2).sum(2).argmin(1)
    np.testing.assert_allclose(fit.transform(new), new + fit.images_[k] - Xs[k], atol=1e-12)


def test_a_positive_definite_map_is_recovered_exactly():
    Xs, _, _ = data(n=40)
    A = np.array([[2, 0.5, 0], [0.5, 1, 0.3], [0, 0.3, 0.7]])
    fit = OTTransport().fit(Xs, Xt=(Xs @ A - 4)[::-1])
    np.testing.assert_allclose(fit.images_, Xs @ A - 4, atol=1e-12)


@pytest.mark.parametrize("method", [OTTransport(), SinkhornTransport(eps=0.5, tol=1e-12)], ids=repr)
def test_equals_pot(method):
    Xs, _, Xt = data()
    new = data(seed=2)[0]
    theirs = ot.da.EMDTransport(out_of_sample_map="ferradans")
    if isinstance(method, SinkhornTransport):
        theirs = ot.da.SinkhornTransport(0.5, max_iter=5000, tol=1e-12, out_of_sample_map="ferradans")
    theirs.fit(Xs=Xs, Xt=Xt)
    ours = clone(method).fit(Xs, Xt=Xt)
    np.testing.assert_allclose(ours.transform(Xs), theirs.transform(Xs=Xs), atol=1e-8)
    np.testing.assert_allclose(ours.transform(new), theirs.transform(Xs=new), atol=1e-8)


def test_the_concave_penalty_takes_the_steps_of_pot():
    Xs, ys, Xt = data()
    ours = GroupLassoTransport(eps=0.4, eta=0.7, penalty="lpl1", delta=0.001 * 14, max_iter=6, tol=1e-12)
    a, b, C = np.full(18, 1 / 18), np.full(14, 1 / 14), sqeuclidean(Xs, Xt).numpy()
    theirs = ot.da.sinkhorn_lpl1_mm(
        a, ys, b, C, 0.4, eta=0.7 / 14**0.5, numItermax=7, numInnerItermax=9000, stopInnerThr=1e-13
    )
    np.testing.assert_allclose(ours.fit(Xs, ys, Xt).coupling_, theirs, atol=1e-9)


def test_the_group_lasso_is_not_worse_than_pot():
    Xs, ys, Xt = data()
    ours = GroupLassoTransport(eps=0.4, eta=0.7, max_iter=60, tol=1e-11).fit(Xs, ys, Xt)
    a, b, C = np.full(18, 1 / 18), np.full(14, 1 / 14), sqeuclidean(Xs, Xt).numpy()
    P = ot.da.sinkhorn_l1l2_gl(a, ys, b, C, 0.4, eta=0.7 * 6**0.5, numItermax=200, numInnerItermax=2000)
    groups = sum(6**0.5 * np.linalg.norm(P[ys == c], axis=0).sum() for c in range(3))
    theirs = (C * P).sum() + 0.4 * (P * np.log(P * C.size)).sum() + 0.7 * groups
    assert ours.gap_ < 1e-3
    # POT's line search stops a little above; neither may be below the certified minimum.
    assert ours.objective_[-1] - ours.gap_ <= theirs < 1.01 * ours.objective_[-1]


@pytest.mark.parametrize("method", PENALISED, ids=repr)
def test_the_objective_never_rises_and_the_penalty_acts(method):
    Xs, ys, Xt = data()
    fit = clone(method).set_params(max_iter=15, tol=1e-11).fit(Xs, ys, Xt)
    assert len(fit.objective_) == 16
    assert np.diff(fit.objective_).max() <= 1e-9
    assert fit.objective_[0] - fit.objective_[-1] > 1e-3
    plain = SinkhornTransport(eps=0.3).fit(Xs, Xt=Xt)
    assert np.abs(plain.coupling_ - fit.coupling_).sum() > 0.01


@pytest.mark.parametrize("method", [PENALISED[0], PENALISED[2]], ids=repr)
def test_the_certificate_bounds_the_distance_to_the_minimum(method):
    Xs, ys, Xt = data()
    best = clone(method).set_params(max_iter=100, tol=1e-11).fit(Xs, ys, Xt).objective_[-1]
    for k in (1, 3, 10):
        fit = clone(method).set_params(max_iter=k, tol=1e-11).fit(Xs, ys, Xt)
        assert fit.gap_ >= fit.objective_[-2] - best - 1e-9


def test_the_gradient_of_each_penalty_is_its_derivative(monkeypatch):
    Xs, ys, Xt = data()
    seen = []
    for method in PENALISED:
        monkeypatch.setattr(
            type(method),
            "_descend",
            lambda self, C, omega, *, convex: seen.append(omega) or sinkhorn(C, eps=1).plan,
        )
        clone(method).fit(Xs, ys, Xt)
    rng = torch.Generator().manual_seed(0)
    P = torch.rand(18, 14, generator=rng, dtype=torch.float64) / 252
    D = torch.randn(18, 14, generator=rng, dtype=torch.float64) / 252
    for omega in seen:
        difference = (omega(P + 1e-5 * D)[0] - omega(P - 1e-5 * D)[0]) / 2e-5
        assert abs(difference - float((omega(P)[1] * D).sum())) < 1e-7 * max(1, abs(difference))


def test_the_laplacian_is_the_mean_over_pairs_of_neighbours(monkeypatch):
    """Two classes on a line, neighbours within a class only: (0, 1) and (2, 3)."""
    seen = []
    monkeypatch.setattr(
        LaplaceTransport,
        "_descend",
        lambda self, C, omega, *, convex: seen.append(omega) or sinkhorn(C, eps=1).plan,
    )
    Xs, Xt = np.array([[0.0], [1], [1.1], [3]]), np.array([[0.0], [1], [2], [5]])
    LaplaceTransport(n_neighbors=1).fit(Xs, [0, 0, 1, 1], Xt)
    U = Xt - Xs  # the displacements of the diagonal plan
    expected = ((U[0] - U[1]) ** 2 + (U[2] - U[3]) ** 2).item() / 2
    assert abs(seen[0](torch.eye(4, dtype=torch.float64) / 4)[0] - expected) < 1e-12


def test_each_class_alone_in_its_group_makes_the_group_lasso_a_constant():
    """With one sample a class Ω₁₂ = Σ p = 1 whatever the plan."""
    Xs, _, Xt = data()
    fit = GroupLassoTransport(eps=0.3, eta=5.0, tol=1e-10).fit(Xs, np.arange(18), Xt)
    plain = SinkhornTransport(eps=0.3, tol=1e-10).fit(Xs, Xt=Xt)
    np.testing.assert_allclose(fit.coupling_, plain.coupling_, atol=1e-9)


def test_unbalanced_transport_leaves_what_is_far():
    Xs, Xt = np.array([[0.0], [1], [50]]), np.array([[0.0], [1], [-70]])
    fit = UnbalancedTransport(eps=0.01, rho=5.0).fit(Xs, Xt=Xt)
    np.testing.assert_allclose(fit.images_[:2], Xs[:2], atol=1e-6)
    assert fit.coupling_[2].sum() < 1e-6


@every
def test_labels_of_any_kind_name_the_same_classes(method):
    Xs, ys, Xt = data()
    named = clone(method).fit(Xs, np.array(["c", "a", "b"])[ys], Xt)
    np.testing.assert_allclose(
        named.coupling_, clone(method).fit(Xs, torch.from_numpy(ys), Xt).coupling_, atol=1e-12
    )


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_tensors_in_tensors_out(method, dtype):
    Xs, ys, Xt = data()
    x, y = (torch.from_numpy(v).to(dtype) for v in (Xs, Xt))
    fit = clone(method).fit(x, ys, y)
    assert fit.transform(x).dtype == fit.coupling_.dtype == fit.images_.dtype == dtype
    reference = clone(method).fit(x.double().numpy(), ys, y.double().numpy())
    torch.testing.assert_close(fit.images_.double(), torch.from_numpy(reference.images_), atol=2e-3, rtol=0)


@every
def test_stays_on_the_device(method, device):
    Xs, ys, Xt = data()
    fit = clone(method).fit(torch.from_numpy(Xs).to(device), ys, torch.from_numpy(Xt).to(device))
    assert fit.images_.device == device
    np.testing.assert_allclose(fit.images_.cpu(), clone(method).fit(Xs, ys, Xt).images_, atol=1e-5)


# The habits of scikit-learn


@every
def test_clone_and_parameters(method):
    copy = clone(method)
    assert copy.get_params() == method.get_params()
    assert repr(copy) == repr(method)
    for name, value in method.get_params().items():
        assert copy.set_params(**{name: value}) is copy
    with pytest.raises(ValueError, match="'epsilon' is no parameter of"):
        copy.set_params(epsilon=1)


@every
def test_inputs_are_not_changed_and_fit_is_idempotent(method):
    Xs, ys, Xt = data()
    before = Xs.copy(), ys.copy(), Xt.copy()
    params = method.get_params()
    fit = clone(method).fit(Xs, ys, Xt)
    first = fit.coupling_.copy()
    np.testing.assert_array_equal(fit.fit(Xs, ys, Xt).coupling_, first)
    for old, new in zip(before, (Xs, ys, Xt), strict=True):
        np.testing.assert_array_equal(old, new)
    assert fit.get_params() == params
    Xs[:] = 0  # the fitted map keeps its own samples
    np.testing.assert_allclose(fit.transform(before[0]), fit.images_, atol=1e-12)
    x = torch.from_numpy(before[0].copy())
    fit = clone(method).fit(x, ys, torch.from_numpy(Xt))
    x.zero_()  # nor does it share those of a tensor
    torch.testing.assert_close(fit.transform(torch.from_numpy(before[0])), fit.images_, atol=1e-12, rtol=0)


@every
def test_not_fitted(method):
    with pytest.raises(NotFittedError, match="is not fitted; call fit"):
        clone(method).transform(np.zeros((2, 3)))


@every
def test_pickle(method):
    Xs, ys, Xt = data()
    fit = clone(method).fit(Xs, ys, Xt)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(fit)).transform(Xs), fit.transform(Xs))


def test_pipeline():
    Xs, ys, Xt = data()
    pipe = make_pipeline(OTTransport(), StandardScaler(), KNeighborsClassifier(1))
    pipe.fit(Xs, ys, ottransport__Xt=Xt)
    np.testing.assert_array_equal(
        pipe.predict(Xs),
        KNeighborsClassifier(1).fit(pipe[:-1].transform(Xs), ys).predict(pipe[:-1].transform(Xs)),
    )


def with_target(base):
    """An estimator whose target is a function of its source, as the checks know nothing of targets."""

    class Adapted(base):
        def fit(self, X, y=None):
            X = np.asarray(X, dtype=None if getattr(X, "dtype", np.dtype(int)).kind == "f" else float)
            ys = np.zeros(len(X), dtype=int) if y is None else np.asarray(y).reshape(len(X), -1)[:, 0]
            return super().fit(X, ys, X[::-1] * X.dtype.type(0.5) + X.dtype.type(1))

        def fit_transform(self, X, y=None):
            return self.fit(X, y).images_

    Adapted.__name__ = f"Adapted{base.__name__}"
    return Adapted


CHECKS = [
    "check_no_attributes_set_in_init",
    "check_parameters_default_constructible",
    "check_get_params_invariance",
    "check_set_params",
    "check_estimator_cloneable",
    "check_estimator_repr",
    "check_dict_unchanged",
    "check_fit_idempotent",
    "check_estimators_overwrite_params",
    "check_methods_subset_invariance",
    "check_methods_sample_order_invariance",
    "check_n_features_in",
    "check_transformer_general",
    "check_readonly_memmap_input",
]


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("base", [OTTransport, SinkhornTransport], ids=lambda b: b.__name__)
@pytest.mark.filterwarnings("ignore")
def test_scikit_learns_own_checks(check, base):
    cls = with_target(base)
    function = getattr(estimator_checks, check, None)
    if function is None:
        pytest.skip(f"this scikit-learn has no {check}")
    estimator = cls() if base is OTTransport else cls(eps=50.0)
    function(cls.__name__, estimator)


def test_otbook_does_not_import_scikit_learn():
    code = "import sys, otbook; from otbook.learning import OTTransport as T; import numpy as np;"
    code += "sys.modules['sklearn'] = sys.modules['sklearn.exceptions'] = None; t = T()\n"
    code += "try: t.transform(np.zeros((1, 1)))\nexcept ValueError as e: print(type(e).__name__)\n"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "ValueError\n"


# Bad input


@pytest.mark.parametrize(
    ("method", "arguments", "message"),
    [
        (OTTransport(), lambda x, y, t: (x, y), "Xt is missing"),
        (OTTransport(), lambda x, y, t: (x, y, t[:, :2]), "dimension"),
        (OTTransport(), lambda x, y, t: (x[0], y, t), "Xs must have shape"),
        (OTTransport(), lambda x, y, t: (x[None], y, t), r"Xs must have shape \(n, d\)"),
        (OTTransport(), lambda x, y, t: (x * np.nan, y, t), "Xs holds nan"),
        (OTTransport(), lambda x, y, t: (x.astype(np.float32), y, t), "float32"),
        (SinkhornTransport(eps=0), lambda x, y, t: (x, y, t), "eps"),
        (UnbalancedTransport(rho=-1), lambda x, y, t: (x, y, t), "rho"),
        (UnbalancedTransport(eps=1e-3, rho=1e-3), lambda x, y, t: (x + 1e4, y, t), "keeps no mass"),
        (GroupLassoTransport(), lambda x, y, t: (x, None, t), "ys is missing"),
        (GroupLassoTransport(), lambda x, y, t: (x, y[1:], t), "one label a sample"),
        (GroupLassoTransport(eta=0), lambda x, y, t: (x, y, t), "eta"),
        (GroupLassoTransport(delta=0), lambda x, y, t: (x, y, t), "delta"),
        (GroupLassoTransport(max_iter=0), lambda x, y, t: (x, y, t), "max_iter"),
        (GroupLassoTransport(penalty="l2"), lambda x, y, t: (x, y, t), "penalty must be one of"),
        (LaplaceTransport(n_neighbors=0), lambda x, y, t: (x, y, t), "n_neighbors"),
    ],
)
def test_bad_input_is_refused(method, arguments, message):
    with pytest.raises(ValueError, match=message):
        method.fit(*arguments(*data()))


def test_transform_refuses_another_space():
    Xs, _, Xt = data()
    with pytest.raises(ValueError, match="X has 2 features, but OTTransport is expecting 3 features"):
        OTTransport().fit(Xs, Xt=Xt).transform(Xs[:, :2])
