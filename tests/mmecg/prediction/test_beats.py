"""Where beats are: found at the rate that the signal has, and compared between leads."""

import numpy as np
import pytest

from mmecg.datasets.synthetic import synthetic_ecg
from mmecg.prediction.beats import INDEPENDENT, agreement, beat_leads, cut_beats, find_beats


@pytest.mark.parametrize("rate", [40, 60, 90, 120, 170])
def test_every_beat_is_found_once(rate: int) -> None:
    beats = find_beats(synthetic_ecg(heart_rate_bpm=rate, seed=rate).signal[INDEPENDENT])
    assert abs(len(beats) - rate / 6) <= 1.5
    assert np.abs(np.diff(beats) - 6000 / rate).max() < 0.15 * 6000 / rate, "RR varies by 3 %"


def test_a_flat_line_has_none() -> None:
    assert len(find_beats(np.zeros((8, 1000), np.float32))) == 0


def test_agreement_counts_what_both_have() -> None:
    beats = np.array([100, 200, 300, 400])
    assert agreement(beats, beats + 10) == 1
    assert agreement(beats, beats + 40) == 0
    assert agreement(beats, beats[:3]) == pytest.approx(3 / 4)
    assert agreement(beats, beats[:0]) == 0


def test_leads_that_beats_are_looked_for_in() -> None:
    mask = np.ones(12, np.bool_)
    assert beat_leads(mask).tolist() == INDEPENDENT.tolist()
    mask[:] = False
    mask[[2, 3]] = True
    assert beat_leads(mask).tolist() == [2, 3]


def test_beats_at_the_edge_are_not_cut() -> None:
    signal = np.arange(2000, dtype=np.float32).reshape(2, 1000)
    cut = cut_beats(signal, np.array([5, 500, 995]), 0.1, 0.2)
    assert cut.shape == (1, 2, 30)
    assert cut[0, 0].tolist() == list(range(490, 520))
