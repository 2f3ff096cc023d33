"""The loss against exact transport and closed forms, its gradients, and the bounds of word distances."""

import itertools
import math

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from scipy.stats import wasserstein_distance

from otbook import emd, ipot
from otbook.costs import cosine, euclidean
from otbook.learning import (
    relaxed_word_movers_distance,
    sequence_ot_loss,
    soft_embeddings,
    word_centroid_distance,
    word_movers_distance,
)
from otbook.learning._sequence import _plan

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def sentences(t=4, s=6, d=5, batch=(), seed=0):
    g = seeded(seed)
    shapes = ((*batch, t, d), (*batch, s, d))
    return tuple(torch.randn(shape, generator=g, dtype=torch.float64) for shape in shapes)


def planar(*degrees):
    angle = torch.tensor(degrees, dtype=torch.float64) * math.pi / 180
    return torch.stack([angle.cos(), angle.sin()], 1)


# The loss


def test_one_word_against_one_is_one_minus_the_cosine():
    loss = sequence_ot_loss(3 * planar(10), planar(70))
    torch.testing.assert_close(loss, torch.tensor(0.5, dtype=torch.float64))


def test_one_word_against_many_is_the_mean_cost():
    x, y = sentences(1, 6)
    torch.testing.assert_close(sequence_ot_loss(x, y), cosine(x, y).mean())


def test_with_many_steps_it_is_the_exact_cost():
    x, y = sentences()
    exact = emd(cosine(x, y)).value
    torch.testing.assert_close(sequence_ot_loss(x, y, n_steps=1000), exact, atol=1e-6, rtol=0)
    x, y = sentences(6, 6)
    row, column = linear_sum_assignment(cosine(x, y))
    best = cosine(x, y)[row, column].mean()
    torch.testing.assert_close(sequence_ot_loss(x, y, n_steps=1000), best, atol=1e-6, rtol=0)


def test_it_is_the_cost_of_the_plan_of_ipot():
    x, y = sentences()
    plan = ipot(cosine(x, y), beta=0.3, n_outer=7).plan
    expected = (plan * cosine(x, y)).sum()
    torch.testing.assert_close(sequence_ot_loss(x, y, beta=0.3, n_steps=7), expected)


@DTYPES
@pytest.mark.parametrize("beta", [0.01, 0.1, 1.0], ids=str)
def test_the_fast_plan_is_that_of_ipot(beta, dtype):
    """On both sides of the switch to the log domain, with padding and weights that are not uniform."""
    x, y = (z.to(dtype) for z in sentences(5, 7, batch=(3,)))
    a = torch.tensor([[1, 2, 0, 1, 1], [1, 1, 1, 1, 1], [0, 0, 1, 0, 0]], dtype=dtype)
    b = torch.tensor([3, 1, 1, 0, 1, 1, 0], dtype=dtype)
    C, weights = cosine(x, y), (a / a.sum(1, keepdim=True), (b / b.sum()).expand(3, 7))
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    for n_steps in (1, 2, 3, 15):
        plan = ipot(C, *weights, beta=beta, n_outer=n_steps).plan
        loss = sequence_ot_loss(x, y, a, b, beta=beta, n_steps=n_steps)
        torch.testing.assert_close(loss, (plan * C).sum((1, 2)), atol=tolerance, rtol=0)
        fast = _plan(C, *weights, beta, n_steps)
        torch.testing.assert_close(fast, plan, atol=tolerance, rtol=0)


def test_orthonormal_words_give_the_share_of_words_that_do_not_match():
    """One minus the clipped precision of single words."""
    words = torch.eye(5, dtype=torch.float64)
    generated, reference = [0, 0, 1, 4], [0, 1, 2, 3]
    loss = sequence_ot_loss(words[generated], words[reference], n_steps=2000)
    torch.testing.assert_close(loss, torch.tensor(1 - 2 / 4, dtype=torch.float64), atol=1e-3, rtol=0)


def test_every_permutation_has_the_same_loss_and_gradient():
    x, y = sentences(4, 4)
    losses, slopes = [], []
    for order in itertools.permutations(range(4)):
        z = x[list(order)].requires_grad_()
        losses.append(sequence_ot_loss(z, y))
        back = torch.argsort(torch.tensor(order))
        slopes.append(torch.autograd.grad(losses[-1], z)[0][back])
    losses, slopes = torch.stack(losses), torch.stack(slopes)
    torch.testing.assert_close(losses, losses[:1].expand(24), atol=1e-12, rtol=0)
    torch.testing.assert_close(slopes, slopes[:1].expand_as(slopes), atol=1e-12, rtol=0)


def test_invariant_to_rotation_scale_and_repetition_and_symmetric():
    x, y = sentences(4, 6)
    loss = sequence_ot_loss(x, y)
    rotation = torch.linalg.qr(torch.randn(5, 5, generator=seeded(1), dtype=torch.float64))[0]
    lengths = 1 + torch.rand(4, 1, generator=seeded(2), dtype=torch.float64)
    torch.testing.assert_close(sequence_ot_loss(lengths * x @ rotation, y @ rotation), loss)
    torch.testing.assert_close(sequence_ot_loss(torch.cat([x, x]), y), loss, atol=1e-12, rtol=0)
    exact = [sequence_ot_loss(*pair, n_steps=1000) for pair in ((x, y), (y, x))]
    torch.testing.assert_close(exact[0], exact[1], atol=1e-6, rtol=0)


def test_zero_for_a_permutation_and_for_collapsed_vectors():
    x, _ = sentences()
    assert abs(sequence_ot_loss(x, x.flip(0), n_steps=1000)) < 1e-6
    same = torch.ones(3, 5, dtype=torch.float64) * torch.tensor([[1.0], [2.0], [7.0]], dtype=torch.float64)
    assert sequence_ot_loss(same, 4 * same[:2]) == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize("filler", [0.0, 1e6, -3.0], ids=str)
def test_padding_does_not_matter(filler):
    x, y = sentences(4, 6)
    full = torch.full((2, 5), filler, dtype=torch.float64)
    longer = [torch.cat([z, full]) for z in (x, y)]
    masks = [torch.tensor([True] * n + [False] * 2) for n in (4, 6)]
    z, w = longer[0].requires_grad_(), longer[1].requires_grad_()
    padded, plain = sequence_ot_loss(z, w, *masks), sequence_ot_loss(x, y)
    torch.testing.assert_close(padded, plain, atol=1e-12, rtol=0)
    for slope, n in zip(torch.autograd.grad(padded, (z, w)), (4, 6), strict=True):
        assert torch.isfinite(slope).all()
        assert (slope[n:] == 0).all()
        assert slope[:n].abs().max() > 0


def test_masks_may_weigh_the_words():
    x, y = sentences(3, 4)
    a = torch.tensor([1.0, 2.0, 1.0], dtype=torch.float64)
    weighted = sequence_ot_loss(x, y, a, n_steps=2000)
    repeated = sequence_ot_loss(x[[0, 1, 1, 2]], y, n_steps=2000)
    torch.testing.assert_close(weighted, repeated, atol=1e-6, rtol=0)
    torch.testing.assert_close(weighted, emd(cosine(x, y), a / 4).value, atol=1e-6, rtol=0)


def test_batches_are_separate_problems():
    x, y = sentences(4, 6, batch=(3, 2))
    lengths = torch.tensor([[4, 2], [3, 4], [1, 4]])
    mask = torch.arange(4) < lengths[..., None]
    together = sequence_ot_loss(x, y, mask)
    assert together.shape == (3, 2)
    for i, j in itertools.product(range(3), range(2)):
        alone = sequence_ot_loss(x[i, j, : lengths[i, j]], y[i, j])
        torch.testing.assert_close(together[i, j], alone, atol=1e-12, rtol=0)


def test_leading_axes_broadcast():
    x, y = sentences(4, 6, batch=(3,))
    many = sequence_ot_loss(x, y[0], torch.ones(4), torch.ones(3, 6))
    assert many.shape == (3,)
    torch.testing.assert_close(many[2], sequence_ot_loss(x[2], y[0]))


@DTYPES
def test_keeps_the_dtype(dtype):
    x, y = (z.to(dtype) for z in sentences())
    loss = sequence_ot_loss(x, y, torch.tensor([1, 1, 1, 0]))
    assert loss.dtype == dtype
    exact = sequence_ot_loss(x.double(), y.double(), [1, 1, 1, 0])
    torch.testing.assert_close(loss.double(), exact, atol=1e-5, rtol=0)


def test_arrays_and_lists_are_welcome():
    x, y = sentences()
    torch.testing.assert_close(sequence_ot_loss(x.numpy(), y.tolist()), sequence_ot_loss(x, y))


# Its gradient


def test_the_gradient_in_the_cost_is_the_plan():
    x, y = sentences()
    z = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(sequence_ot_loss(z, y), z)
    plan = ipot(cosine(x, y), beta=0.5, n_outer=20).plan
    (expected,) = torch.autograd.grad((plan * cosine(z, y)).sum(), z)
    torch.testing.assert_close(slope, expected, atol=1e-12, rtol=0)


def test_after_many_steps_the_gradient_is_that_of_the_exact_cost():
    x, y = (z.requires_grad_() for z in sentences())
    slopes = torch.autograd.grad(sequence_ot_loss(x, y, n_steps=1000), (x, y))
    exact = torch.autograd.grad(emd(cosine(x, y)).value, (x, y))
    for slope, truth in zip(slopes, exact, strict=True):
        torch.testing.assert_close(slope, truth, atol=1e-6, rtol=0)

    def loss(x, y):
        return sequence_ot_loss(x, y, n_steps=500)

    small = tuple(z.requires_grad_() for z in sentences(2, 3, 2))
    assert torch.autograd.gradcheck(loss, small, eps=1e-5, atol=1e-4)


def test_the_frozen_plan_is_a_supergradient_up_to_its_own_error():
    x, y = sentences(5, 5)
    C = cosine(x, y)
    plan = ipot(C, beta=0.5, n_outer=10, n_inner=200).plan  # a coupling to rounding
    own = (plan * C).sum() - emd(C).value
    assert own > 1e-6  # the instance is not solved
    for seed in range(20):
        other = 2 * torch.rand(5, 5, generator=seeded(seed), dtype=torch.float64)
        assert emd(other).value <= emd(C).value + own + (plan * (other - C)).sum() + 1e-12


# Soft embeddings


def test_soft_embeddings_in_closed_form():
    logits = torch.tensor([[0.0, math.log(3.0)]], dtype=torch.float64)
    table = torch.tensor([[4.0, 0.0], [0.0, 8.0]], dtype=torch.float64)
    soft = soft_embeddings(logits, table)
    torch.testing.assert_close(soft, torch.tensor([[1.0, 6.0]], dtype=torch.float64))
    hard = soft_embeddings(logits, table, temperature=1e-3)
    torch.testing.assert_close(hard, table[1:])
    uniform = soft_embeddings(logits, table, temperature=1e9)
    torch.testing.assert_close(uniform, table.mean(0, keepdim=True), atol=1e-7, rtol=0)


def test_each_model_has_its_own_table():
    g = seeded()
    logits = torch.randn(3, 2, 4, 6, generator=g, dtype=torch.float64)
    tables = torch.randn(3, 6, 5, generator=g, dtype=torch.float64)
    soft = soft_embeddings(logits, tables)
    assert soft.shape == (3, 2, 4, 5)
    for k in range(3):
        torch.testing.assert_close(soft[k], soft_embeddings(logits[k], tables[k]))


def test_soft_embeddings_are_differentiable():
    g = seeded()
    logits = torch.randn(2, 3, generator=g, dtype=torch.float64, requires_grad=True)
    table = torch.randn(3, 2, generator=g, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z, e: soft_embeddings(z, e, temperature=0.7), (logits, table))


# Bags of words


def bags(n=8, v=12, seed=0):
    g = seeded(seed)
    p, q = torch.randint(0, 3, (2, n, v), generator=g).double() + torch.eye(v, dtype=torch.float64)[:n]
    return p, q, torch.randn(v, 3, generator=g, dtype=torch.float64)


def test_on_the_line_it_is_scipys_wasserstein_distance():
    p, q, _ = bags()
    x = torch.randn(12, 1, generator=seeded(5), dtype=torch.float64)
    for a, b in zip(p, q, strict=True):
        expected = wasserstein_distance(x[:, 0], x[:, 0], a, b)
        assert word_movers_distance(a, b, x).item() == pytest.approx(expected, abs=1e-12)


def test_words_that_do_not_occur_do_not_matter():
    p, q, x = bags()
    full = emd(euclidean(x, x).expand(8, 12, 12), p / p.sum(-1, True), q / q.sum(-1, True)).value
    torch.testing.assert_close(word_movers_distance(p, q, x), full, atol=1e-12, rtol=0)
    far = x.clone()
    far[0] = 1e6
    p[:, 0] = q[:, 0] = 0
    distances = (word_movers_distance, word_centroid_distance, relaxed_word_movers_distance)
    for distance in distances:
        torch.testing.assert_close(distance(p, q, far), distance(p, q, x), atol=1e-9, rtol=0)


def test_a_metric_on_the_bags():
    p, q, x = bags()
    d = word_movers_distance(p[:, None], p, x)
    assert d.shape == (8, 8)
    assert d.diag().max() < 1e-12
    torch.testing.assert_close(d, d.mT, atol=1e-12, rtol=0)
    assert (d[:, None] <= d[:, :, None] + d[None] + 1e-12).all()
    torch.testing.assert_close(word_movers_distance(3 * p, q, 2 * x), 2 * word_movers_distance(p, q, x))


def test_both_bounds_lie_below_and_neither_above_the_other():
    p, q, x = bags()
    exact = word_movers_distance(p, q, x)
    for bound in (word_centroid_distance, relaxed_word_movers_distance):
        assert (bound(p, q, x) <= exact + 1e-12).all()
        torch.testing.assert_close(bound(p, q, x), bound(q, p, x), atol=1e-12, rtol=0)
    line = torch.tensor([[-1.0], [0.0], [1.0]], dtype=torch.float64)
    spread, middle, left = [1, 0, 1], [0, 1, 0], [2, 0, 1]
    assert word_centroid_distance(spread, middle, line) == 0
    assert relaxed_word_movers_distance(spread, middle, line) == 1
    assert relaxed_word_movers_distance(spread, left, line) == 0
    assert word_centroid_distance(spread, left, line).item() == pytest.approx(1 / 3)


def test_word_distances_are_differentiable_in_the_vectors():
    p, q, x = bags(2, 5)
    for distance in (word_movers_distance, word_centroid_distance, relaxed_word_movers_distance):
        assert torch.autograd.gradcheck(lambda z, d=distance: d(p, q, z), (x.clone().requires_grad_(),))


# Bad input


def test_losses_refuse_what_makes_no_problem():
    x, y = sentences()
    with pytest.raises(ValueError, match="generated has points in dimension 5 and reference"):
        sequence_ot_loss(x, y[:, :3])
    with pytest.raises(ValueError, match="the batch shapes do not agree"):
        sequence_ot_loss(x.expand(2, 4, 5), y.expand(3, 6, 5))
    with pytest.raises(ValueError, match="generated holds a zero vector"):
        sequence_ot_loss(0 * x, y)
    with pytest.raises(ValueError, match=r"generated_mask must have shape \(…, 4\)"):
        sequence_ot_loss(x, y, torch.ones(3))
    with pytest.raises(ValueError, match="reference_mask leaves a text without words"):
        sequence_ot_loss(x, y, None, torch.zeros(6))
    with pytest.raises(ValueError, match="reference_mask must hold finite numbers of at least 0"):
        sequence_ot_loss(x, y, None, -torch.ones(6))
    with pytest.raises(ValueError, match="beta must be"):
        sequence_ot_loss(x, y, beta=0.0)
    with pytest.raises(ValueError, match="n_steps must be"):
        sequence_ot_loss(x, y, n_steps=0)
    with pytest.raises(ValueError, match="reference is float32"):
        sequence_ot_loss(x, y.float())


def test_soft_embeddings_refuse_bad_input():
    with pytest.raises(ValueError, match="logits score 3 words, but embeddings has 4 rows"):
        soft_embeddings(torch.ones(2, 3), torch.ones(4, 5))
    with pytest.raises(ValueError, match="embeddings has leading axes"):
        soft_embeddings(torch.ones(2, 6, 3), torch.ones(4, 3, 5))
    with pytest.raises(ValueError, match="temperature must be"):
        soft_embeddings(torch.ones(2, 3), torch.ones(3, 5), temperature=0)


def test_bags_refuse_bad_input():
    x = torch.ones(3, 2)
    for distance in (word_movers_distance, word_centroid_distance, relaxed_word_movers_distance):
        with pytest.raises(ValueError, match=r"p must have shape \(…, 3\), one number a word"):
            distance([1, 2], [1, 1, 1], x)
        with pytest.raises(ValueError, match="q leaves a text without words"):
            distance([1, 2, 0], [0, 0, 0], x)
        with pytest.raises(ValueError, match=r"embeddings must have shape \(V, d\)"):
            distance([1, 2, 0], [1, 0, 0], x[None])
        with pytest.raises(ValueError, match="the batch shapes do not agree"):
            distance(torch.ones(2, 3), torch.ones(4, 3), x)


def test_another_device_gives_the_same(device):
    x, y = sentences(batch=(3,))
    mask = torch.tensor([1, 1, 1, 0])
    there = sequence_ot_loss(x.to(device), y.to(device), mask.to(device))
    assert there.device == device
    torch.testing.assert_close(there.cpu(), sequence_ot_loss(x, y, mask))
    p, q, table = bags()
    torch.testing.assert_close(
        word_movers_distance(p.to(device), q.to(device), table.to(device)).cpu(),
        word_movers_distance(p, q, table),
    )
