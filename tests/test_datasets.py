"""Data sets: shapes, ranges, and the same draw from the same generator."""

import pytest
import torch

from otbook import datasets


@pytest.mark.parametrize(("name", "mean"), [("china", 0.55), ("flower", 0.26)])
def test_photographs_are_colours(name, mean):
    photo = datasets.photograph(name, height=64)
    assert photo.shape == (64, 96, 3)
    assert photo.dtype == torch.float64
    assert photo.min() >= 0
    assert photo.max() <= 1
    assert abs(photo.mean() - mean) < 0.1


def test_only_two_photographs_exist():
    with pytest.raises(ValueError, match="name must be one of 'china', 'flower', but is 'cat'"):
        datasets.photograph("cat")
    with pytest.raises(ValueError, match="height must be a whole number of at least 1, but is 0"):
        datasets.photograph("china", height=0)


def test_digits_come_with_their_labels():
    images, labels = datasets.digits()
    assert images.shape == (1797, 8, 8)
    assert images.min() == 0
    assert images.max() == 1
    assert labels.bincount().min() >= 170
    # A zero is dark in its middle, a one is bright there.
    middle = images[:, 3:5, 3:5].mean((1, 2))
    assert middle[labels == 0].mean() < 0.2 < 0.6 < middle[labels == 1].mean()


def test_eight_gaussians_sit_on_a_circle():
    x = datasets.eight_gaussians(4000, generator=torch.Generator().manual_seed(0), radius=3.0)
    again = datasets.eight_gaussians(4000, generator=torch.Generator().manual_seed(0), radius=3.0)
    torch.testing.assert_close(x, again, rtol=0, atol=0)
    angle = torch.atan2(x[:, 1], x[:, 0]) / (torch.pi / 4)
    assert (angle - angle.round()).abs().max() < 0.4
    assert (angle.round().remainder(8).long().bincount() > 400).all()
    spread = x.norm(dim=1) - 3
    assert abs(spread.std() - 0.15) < 0.01


def test_a_sample_has_at_least_one_point():
    with pytest.raises(ValueError, match="n must be a whole number of at least 1"):
        datasets.eight_gaussians(0, generator=torch.Generator())


def test_tryptophan_is_a_molecule():
    names, positions, bonds, drawing = datasets.tryptophan()
    assert len(names) == len(set(names)) == 24
    assert [name[0] == "H" for name in names] == [False] * 14 + [True] * 10
    assert positions.shape == (24, 3)
    assert drawing.shape == (14, 2)
    assert positions.dtype == drawing.dtype == torch.float64
    # The bonds of the formula are the pairs of heavy atoms that lie within a bond's length in space.
    near = torch.cdist(positions[:14], positions[:14]).triu(1)
    close_pairs = ((near > 0) & (near < 2)).nonzero()
    assert sorted(bonds.sort(1).values.tolist()) == close_pairs.tolist()
    # Each hydrogen sits on one heavy atom.
    to_heavy = torch.cdist(positions[14:], positions[:14])
    assert ((to_heavy < 1.2).sum(1) == 1).all()
    # The drawing has bonds of one length, nearly.
    drawn = (drawing[bonds[:, 0]] - drawing[bonds[:, 1]]).norm(dim=1)
    assert (drawn - 1).abs().max() < 0.3


def test_gaussian_grid_has_its_modes_where_it_says():
    x = datasets.gaussian_grid(5000, generator=torch.Generator().manual_seed(0))
    again = datasets.gaussian_grid(5000, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(x, again, rtol=0, atol=0)
    cell = (x / 2).round()
    assert cell.unique(dim=0).shape == (25, 2)
    assert cell.min() == -2
    assert cell.max() == 2
    assert abs((x - 2 * cell).std() - 0.05) < 0.002
    three = datasets.gaussian_grid(900, generator=torch.Generator().manual_seed(0), side=3, spacing=1.0)
    assert three.round().unique(dim=0).shape == (9, 2)


def test_two_moons_lie_on_their_half_circles():
    x, label = datasets.two_moons(2000, generator=torch.Generator().manual_seed(0), noise=0.0)
    upper, lower = x[label == 0], x[label == 1]
    assert 900 < len(upper) < 1100
    torch.testing.assert_close(upper.norm(dim=1), torch.ones(len(upper), dtype=torch.float64))
    assert upper[:, 1].min() >= 0
    shifted = lower - torch.tensor([1.0, 0.5], dtype=torch.float64)
    torch.testing.assert_close(shifted.norm(dim=1), torch.ones(len(lower), dtype=torch.float64))
    assert lower[:, 1].max() <= 0.5
    noisy, _ = datasets.two_moons(2000, generator=torch.Generator().manual_seed(0), noise=0.1)
    assert abs((noisy - x).std() - 0.1) < 0.01


def test_digit_features_tell_digits_apart():
    images, labels = datasets.digits()
    z = datasets.digit_features(images)
    assert z.shape == (1797, 9)
    torch.testing.assert_close(z, datasets.digit_features(images.flatten(1)))
    assert datasets.digit_features(images[:3].float()).dtype == torch.float32
    centres = torch.stack([z[labels == k].mean(0) for k in range(10)])
    within = z - centres[labels]
    # The divisor, n or n - 10, depends on the version of scikit-learn.
    covariance = within.T @ within / 1792
    torch.testing.assert_close(covariance, torch.eye(9, dtype=torch.float64), rtol=0, atol=0.004)
    assert (torch.cdist(z, centres).argmin(1) == labels).double().mean() > 0.95
    with pytest.raises(ValueError, match=r"images must have shape \(n, 8, 8\)"):
        datasets.digit_features(images[:, :7])
