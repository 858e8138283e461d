"""Both contrasts against slow versions that anyone can read."""

import math

import pytest
import torch

from mmecg.pretraining.contrastive import draw_negatives, masked_contrast, segment_contrast


def cosine(a, b):
    return float(a @ b / (a.norm() * b.norm()))


def slow_masked(predictions, targets, codes, negatives, temperature):
    losses, hits = [], []
    for row in range(len(predictions)):
        for step in range(predictions.shape[1]):
            positive = math.exp(cosine(predictions[row, step], targets[row, step]) / temperature)
            others = [
                math.exp(cosine(predictions[row, step], targets[row, other]) / temperature)
                for other in negatives[row, step].tolist()
                if codes[row, other].tolist() != codes[row, step].tolist()
            ]
            losses.append(-math.log(positive / (positive + sum(others))))
            hits.append(bool(others) and positive > max(others))
    return sum(losses) / len(losses), sum(hits) / len(hits)


def test_masked_contrast_is_that_of_the_slow_version():
    torch.manual_seed(0)
    predictions, entries = torch.randn(3, 7, 5), torch.randn(4, 5)
    codes = torch.randint(0, 2, (3, 7, 2))
    targets = entries[codes[..., 0] * 2 + codes[..., 1]]  # equal codes are equal targets
    negatives = draw_negatives(3, 7, 9, torch.device("cpu"))
    loss, accuracy = masked_contrast(predictions, targets, codes, negatives, temperature=0.3)
    expected = slow_masked(predictions, targets, codes, negatives, 0.3)
    assert (loss.item(), accuracy.item()) == pytest.approx(expected, rel=1e-5)


def test_a_perfect_prediction_costs_little_and_a_collapsed_codebook_is_no_success():
    torch.manual_seed(0)
    targets = torch.randn(2, 6, 32)
    codes = torch.arange(6).expand(2, 6)[..., None]
    negatives = draw_negatives(2, 6, 20, torch.device("cpu"))
    loss, accuracy = masked_contrast(targets, targets, codes, negatives)
    assert loss < 0.05
    assert accuracy == 1
    loss, accuracy = masked_contrast(targets, targets, torch.zeros_like(codes), negatives)
    assert (loss, accuracy) == (0, 0)


def test_negatives_are_every_other_step_and_never_the_step_itself():
    torch.manual_seed(0)
    negatives = draw_negatives(2, 5, 400, torch.device("cpu"))
    assert negatives.shape == (2, 5, 400)
    for step in range(5):
        drawn, counts = negatives[:, step].unique(return_counts=True)
        assert drawn.tolist() == [other for other in range(5) if other != step]
        assert counts.min() > 150


def slow_segments(first, second, groups, temperature):
    def one_way(queries, keys):
        losses = []
        for row, query in enumerate(queries):
            exponentials = [math.exp(cosine(query, key) / temperature) for key in keys]
            own = [each for each, group in zip(exponentials, groups, strict=True) if group == groups[row]]
            losses.append(-sum(math.log(each / sum(exponentials)) for each in own) / len(own))
        return sum(losses) / len(losses)

    return (one_way(first, second) + one_way(second, first)) / 2


@pytest.mark.parametrize("groups", [[0, 1, 2, 3, 4, 5], [0, 1, 0, 2, 1, 0]], ids=["recordings", "patients"])
def test_segment_contrast_is_that_of_the_slow_version(groups):
    torch.manual_seed(0)
    first, second = torch.randn(2, 6, 4)
    loss, _ = segment_contrast(first, second, torch.tensor(groups), temperature=0.5)
    assert loss.item() == pytest.approx(slow_segments(first, second, groups, 0.5), rel=1e-5)


def test_top_1_counts_a_positive_of_any_pair_of_the_group():
    first = torch.eye(4)
    second = torch.eye(4)[[1, 0, 2, 3]]
    assert segment_contrast(first, second, torch.tensor([0, 1, 2, 3]))[1] == 0.5
    assert segment_contrast(first, second, torch.tensor([0, 0, 2, 3]))[1] == 1
