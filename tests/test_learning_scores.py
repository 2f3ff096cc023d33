"""Mode scores against samples whose scores are known."""

import pytest
import torch

from otbook.learning import mode_scores

CENTRES = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0]])


def test_a_sample_of_all_modes_has_full_marks():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(300) % 3
    samples = CENTRES[labels] + 0.01 * torch.randn(300, 2, generator=generator)
    scores = mode_scores(samples, CENTRES, radius=0.1)
    assert scores.covered == 3
    assert scores.quality == 1
    assert scores.counts.tolist() == [100, 100, 100]


def test_a_collapsed_sample_has_quality_but_covers_one_mode():
    scores = mode_scores(CENTRES[1].expand(50, 2), CENTRES, radius=0.1)
    assert (scores.covered, scores.quality) == (1, 1.0)
    assert scores.counts.tolist() == [0, 50, 0]


def test_samples_between_modes_count_for_none():
    between = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.05, 0.0]], dtype=torch.float64)
    scores = mode_scores(between, CENTRES.double(), radius=0.1)
    assert (scores.covered, scores.quality) == (1, 0.25)


def test_the_order_of_samples_does_not_matter_and_that_of_modes_is_kept():
    generator = torch.Generator().manual_seed(1)
    samples = 2 * torch.rand(200, 2, generator=generator)
    scores = mode_scores(samples, CENTRES, radius=0.7)
    shuffled = mode_scores(samples[torch.randperm(200, generator=generator)], CENTRES, radius=0.7)
    assert scores.counts.tolist() == shuffled.counts.tolist()
    flipped = mode_scores(samples, CENTRES.flip(0), radius=0.7)
    assert flipped.counts.tolist() == scores.counts.tolist()[::-1]
    assert 0 < scores.quality < 1


@pytest.mark.parametrize(
    ("samples", "centres", "radius", "message"),
    [
        (torch.zeros(3, 2), torch.zeros(2, 3), 1.0, "samples has points in dimension 2"),
        (torch.zeros(3, 2), CENTRES, 0.0, "radius must be"),
        (torch.zeros(2, 3, 2), CENTRES, 1.0, "single clouds"),
        (torch.full((3, 2), torch.nan), CENTRES, 1.0, "samples holds nan"),
    ],
)
def test_refuses_bad_input(samples, centres, radius, message):
    with pytest.raises(ValueError, match=message):
        mode_scores(samples, centres, radius=radius)
