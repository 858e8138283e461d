"""Masks have the statistics that their papers state."""

import numpy as np
import pytest

from mmecg.pretraining.masking import lead_masks, span_masks

TOKENS = 156  # of ECG-FM in 5 s


def runs(row):
    edges = np.flatnonzero(np.diff(np.concatenate([[0], row.astype(int), [0]])))
    return edges[1::2] - edges[::2]


def test_hidden_share_and_equal_numbers_in_all_rows():
    masks = span_masks(512, TOKENS, np.random.default_rng(0))
    hidden = masks.sum(1)
    assert masks.shape == (512, TOKENS)
    assert len(set(hidden)) == 1
    # Rows are cut down to the one with the most overlap, so the share is below that of a row by itself.
    alone = np.mean([span_masks(1, TOKENS, np.random.default_rng(seed)).mean() for seed in range(500)])
    assert alone == pytest.approx(1 - np.exp(-0.65), abs=0.03)
    assert 0.5 * alone < masks.mean() < alone


def test_spans_have_their_length():
    for seed in range(50):
        (row,) = span_masks(1, TOKENS, np.random.default_rng(seed))
        assert (runs(row) >= 10).all()
        assert len(runs(row)) <= 11  # 0.65 * 156 / 10 = 10.1 spans, rounded up or down


def test_number_of_spans_is_right_on_average():
    # Spans of one step cannot overlap, so that hidden steps are spans.
    counts = [span_masks(1, 50, np.random.default_rng(seed), probability=0.25, length=1).sum() for seed in range(2000)]
    assert set(counts) == {12, 13}
    assert np.mean(counts) == pytest.approx(12.5, abs=0.05)


def test_there_are_two_spans_at_least():
    for seed in range(20):
        (row,) = span_masks(1, 200, np.random.default_rng(seed), probability=0.01, length=10)
        assert 10 < row.sum() <= 20


def test_every_step_is_hidden_now_and_then():
    masks = np.concatenate([span_masks(1, 31, np.random.default_rng(seed)) for seed in range(400)])
    assert (masks.mean(0) > 0.05).all()
    assert (~masks).any(1).all()  # something is left to predict from


def test_a_few_steps_are_enough():
    masks = span_masks(4, 8, np.random.default_rng(0))
    assert masks.any(1).all()
    assert not masks.all(1).any()


def test_leads_are_hidden_with_their_probability():
    masks = lead_masks(4000, 12, 0.5, np.random.default_rng(0))
    assert masks.shape == (4000, 12, 1)
    assert set(np.unique(masks)) == {0, 1}
    assert masks.mean(0).ravel() == pytest.approx(np.full(12, 0.5), abs=0.03)
    kept = masks[:, :, 0].sum(1)
    assert kept.std() == pytest.approx(np.sqrt(12 * 0.25), abs=0.1)  # leads are drawn one by one


def test_a_recording_keeps_a_lead():
    assert (lead_masks(500, 12, 0.99, np.random.default_rng(0)).sum(1) >= 1).all()
    assert (lead_masks(8, 12, 0.0, np.random.default_rng(0)) == 1).all()
