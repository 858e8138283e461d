"""The summary of a recording: what does not matter to it, and what does."""

import numpy as np
import pytest

from mmecg.datasets.corruptions import invert, swap_electrodes
from mmecg.datasets.synthetic import synthetic_ecg
from mmecg.ecg import LEADS, Ecg
from mmecg.prediction.waveform import ALIGNED, BANDS_HZ, EDGES_S, OF_LEAD, align, points_right, summarise

PARTS = len(EDGES_S) - 1
BEAT = slice(0, 8 * PARTS)
RESIDUALS = slice(8 * PARTS, 8 * PARTS + 4)
WHOLE = slice(8 * PARTS + 12, 8 * PARTS + 18)  # size, spread, beats per s, interval, its spread, height


@pytest.fixture(scope="module")
def ecg() -> Ecg:
    return synthetic_ecg(heart_rate_bpm=75)


def test_one_number_for_each_place(ecg):
    assert summarise(ecg).shape == OF_LEAD.shape == (8 * PARTS + 4 + 8 + 6 + len(BANDS_HZ),)


def test_rate_and_regularity_of_the_beats(ecg):
    _, _, per_second, interval, spread, _ = summarise(ecg)[WHOLE]
    assert per_second == pytest.approx(75 / 60, abs=0.11)
    assert interval == pytest.approx(0.8, abs=0.03)
    irregular = summarise(synthetic_ecg(heart_rate_bpm=75, rhythm="atrial_fibrillation"))[WHOLE]
    assert irregular[4] > spread + 0.3


def test_the_beat_points_where_its_lead_does(ecg):
    beat = summarise(ecg)[BEAT].reshape(8, PARTS)
    qrs = beat[:, 9:13]  # -20 to 60 ms
    assert np.abs(beat).max() == pytest.approx(1, abs=0.01)
    for row, lead in enumerate(("I", "II", "V1")):
        signal = ecg.signal[LEADS.index(lead)]
        extreme = qrs[row][np.abs(qrs[row]).argmax()]
        assert np.sign(extreme) == np.sign(signal[np.abs(signal).argmax()])


def test_an_inverted_recording_has_the_inverted_beat(ecg):
    np.testing.assert_allclose(summarise(invert(ecg))[BEAT], -summarise(ecg)[BEAT], atol=1e-5)


def test_einthovens_law_kept_and_broken(ecg):
    assert summarise(ecg)[RESIDUALS] == pytest.approx(np.log10(0.05))
    assert summarise(swap_electrodes(ecg, "RA", "LL"))[RESIDUALS] == pytest.approx(np.log10(0.05))
    broken = summarise(invert(ecg, ["I"]))[RESIDUALS]
    assert broken[0] > np.log10(0.5)


def test_gain_changes_the_size_alone(ecg):
    loud = Ecg(2 * ecg.signal, ecg.sampling_rate_hz, ecg.lead_mask.copy())
    difference = summarise(loud) - summarise(ecg)
    assert difference[WHOLE][0] == pytest.approx(np.log10(2), abs=0.01)
    difference[WHOLE.start] = 0
    assert np.abs(difference).max() < 0.02


def test_another_sampling_rate_changes_little(ecg):
    fast = summarise(synthetic_ecg(heart_rate_bpm=75, sampling_rate_hz=500))
    assert np.corrcoef(fast, summarise(ecg))[0, 1] > 0.99


def test_leads_that_were_not_recorded_are_nan(ecg):
    summary = summarise(ecg.select_leads(["I", "II", "V3"]))
    known = np.isin(OF_LEAD, [-1, 0, 1, 8])
    assert (np.isfinite(summary) == known).all()
    assert np.isnan(summarise(ecg.select_leads(["II", "III"]))[RESIDUALS]).all()  # a residual needs I and II


@pytest.mark.parametrize("seconds", [1, 2.5, 60])
@pytest.mark.parametrize("rate", [50, 250])
def test_any_length_and_rate(seconds, rate):
    assert np.isfinite(summarise(synthetic_ecg(duration_s=seconds, sampling_rate_hz=rate))).all()


def test_a_constant_recording_is_summarised_too():
    ecg = Ecg(np.ones((12, 300), np.float32), 100.0, np.ones(12, bool))
    assert np.isfinite(summarise(ecg)).all()


def test_exchanged_arms_turn_lead_i_against_the_chest_leads(ecg):
    swapped = swap_electrodes(ecg, "RA", "LA")
    summary = np.stack([summarise(one) for one in (ecg, swapped, ecg.select_leads(["II", "V1"]))])
    found = align(summary)
    assert found.shape == (3, ALIGNED)
    waves = found.reshape(3, 3, 7)  # P, QRS, T; I-V5, I-V6, II-V5, II-V6, I-V1, II-V1, I-II
    assert (np.abs(found[:2]) <= 1 + 1e-6).all()
    assert (waves[0, :, 1] > 0.5).all(), "in P, QRS and T, I points where V6 does"
    np.testing.assert_allclose(waves[1, :, :2], -waves[0, :, :2], atol=0.1)
    assert np.isnan(waves[2, :, :5]).all()
    np.testing.assert_allclose(waves[2, :, 5], waves[0, :, 5], atol=0.05)
    assert points_right(summary).tolist() == [False, True, False]
