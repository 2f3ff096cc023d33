"""Validation names the argument, the value and the remedy, and lets honest input through."""

import math

import numpy as np
import pytest
import torch

from otbook import _check

C = torch.tensor([[0.0, 1.0, 2.0], [1.0, 0.5, 0.0]], dtype=torch.float64)
NAN, INF = math.nan, math.inf

BAD_CLOUDS = [
    (torch.ones(3, dtype=torch.float64), ValueError, r"x must have shape \(…, n, d\).*x\[:, None\]"),
    (torch.ones(0, 3, dtype=torch.float64), ValueError, "x has shape .* empty measure"),
    (torch.tensor([[1.0, NAN, 0.0]], dtype=torch.float64), ValueError, r"x holds nan at x\[0, 1\]"),
    (torch.tensor([[1.0, INF, 0.0]], dtype=torch.float64), ValueError, r"x holds inf at x\[0, 1\]"),
    (torch.ones(2, 3, dtype=torch.float16), ValueError, r"x has dtype float16; use float32 or float64"),
    (torch.ones(2, 3, dtype=torch.complex64), ValueError, "x has dtype complex64"),
    (torch.ones(2, 3, dtype=torch.float32), ValueError, r"float64 .* float32 .* convert it with"),
    ("points", TypeError, "x must be a tensor, an array or a list of numbers, but a str"),
]

BAD_COSTS = [
    (torch.ones(3), r"C must have shape \(…, n, m\)"),
    (torch.ones(0, 3), "C has shape .* empty measure"),
    (torch.tensor([[0.0, NAN], [1.0, 0.0]]), r"C holds NaN at C\[0, 1\]"),
    (torch.tensor([[0.0, -INF], [1.0, 0.0]]), r"C holds −inf at C\[0, 1\]"),
    (torch.tensor([[0.0, 1.0], [INF, INF]]), "infinite cost in all of row 1"),
    (torch.tensor([[0.0, INF], [1.0, INF]]), "infinite cost in all of column 1"),
]

BAD_WEIGHTS = [
    ([0.5, -0.5, 1.0], "negative weight, -0.5, at b.1."),
    ([0.5, NAN, 0.5], "b holds nan at b.1."),
    ([INF, 0.0, 0.0], "b holds inf at b.0."),
    ([0.5, 0.5, 0.5], r"b has mass 1.5, not 1, .* b / b.sum"),
    ([0.0, 0.0, 0.0], r"b has mass 0, not 1"),
    ([0.5, 0.5], r"b must have shape \(…, 3\), .* has shape \(2,\)"),
    (0.5, r"b must have shape \(…, 3\)"),
]


@pytest.mark.parametrize(("cost", "message"), BAD_COSTS)
def test_bad_cost(cost, message):
    with pytest.raises(ValueError, match=message):
        _check.problem(cost, None, None)


@pytest.mark.parametrize(("b", "message"), BAD_WEIGHTS)
def test_bad_weights(b, message):
    with pytest.raises(ValueError, match=message):
        _check.problem(C, None, torch.tensor(b, dtype=torch.float64))


def test_dtypes_must_agree():
    with pytest.raises(ValueError, match=r"b is float32 on cpu.*b\.to\(dtype=torch\.float64"):
        _check.problem(C, None, torch.full((3,), 1 / 3))


def test_devices_must_agree():
    with pytest.raises(ValueError, match="on meta.*convert it with"):
        _check.problem(C, None, torch.empty(3, dtype=torch.float64, device="meta"))


def test_batches_must_agree():
    with pytest.raises(ValueError, match=r"a has batch shape \(4,\), but C has \(2,\)"):
        _check.problem(C.expand(2, 2, 3), torch.full((4, 2), 0.5, dtype=torch.float64), None)


def test_uniform_by_default():
    _, a, b = _check.problem(C, None, None)
    assert a.tolist() == [0.5, 0.5]
    torch.testing.assert_close(b, torch.full((3,), 1 / 3, dtype=torch.float64))


def test_weights_are_shared_by_a_batch():
    _, a, b = _check.problem(C.expand(4, 2, 3), [0.25, 0.75], None)
    assert a.shape == (4, 2)
    assert b.shape == (4, 3)


def test_zero_weights_are_accepted():
    assert _check.problem(C, [0.0, 1.0], None)[1].tolist() == [0.0, 1.0]


@pytest.mark.parametrize("n", [3, 7, 1000])
def test_weights_normalised_in_float32_are_accepted_in_float64(n):
    a = torch.rand(n, generator=torch.Generator().manual_seed(n))
    a = (a / a.sum()).double()
    cleaned = _check.weights(a, n, "a", like=C)
    assert abs(cleaned.sum().item() - 1) <= 1e-15 * n
    torch.testing.assert_close(cleaned, a, rtol=1e-6, atol=0)


def test_float32_weights_are_accepted():
    a = torch.full((3,), 1 / 3)
    torch.testing.assert_close(_check.weights(a, 3, "a", like=a), a)


def test_numpy_lists_and_integers_become_tensors():
    assert _check.tensor(np.arange(3), "x").dtype == torch.get_default_dtype()
    assert _check.tensor(np.ones(3, dtype=np.float32), "x").dtype == torch.float32
    assert _check.tensor([1, 2], "x", like=C).dtype == torch.float64


def test_input_is_not_changed():
    a = torch.tensor([0.5 + 1e-7, 0.5], dtype=torch.float64)
    kept = a.clone()
    _check.weights(a, 2, "a", like=C)
    torch.testing.assert_close(a, kept, rtol=0, atol=0)


@pytest.mark.parametrize("value", [0, -1.0, NAN, INF, torch.tensor(0.0)])
def test_positive(value):
    with pytest.raises(ValueError, match="eps must be a finite number above 0, but is .*; use emd"):
        _check.positive(value, "eps", remedy="use emd")


@pytest.mark.parametrize("value", ["a", None, torch.ones(2)])
def test_not_a_number(value):
    with pytest.raises(TypeError, match="eps must be a number"):
        _check.positive(value, "eps")


@pytest.mark.parametrize("value", [0, -3, 2.5])
def test_not_a_count(value):
    with pytest.raises(ValueError, match="max_iter must be a whole number of at least 1"):
        _check.positive_int(value, "max_iter")


def test_choice():
    with pytest.raises(ValueError, match="'a', 'b', but is 'c'"):
        _check.choice("c", "cost", ("a", "b"))
