"""Preprocessing of published encoders: the golden inputs, and each step on its own."""

from __future__ import annotations

import numpy as np
import pytest

from mmecg.ecg import LEADS, Ecg
from mmecg.encoders.ecg_fm import SPEC
from mmecg.encoders.preprocessing import (
    Preprocessing,
    crop_middle,
    pad_end,
    resample_linear,
    z_score_leads,
    z_score_record,
)
from mmecg.errors import ConfigError, SignalError

TOLERANCE = 1e-5


def ecg(samples=5000, leads=LEADS, rate=500.0, seed=0):
    rng = np.random.default_rng(seed)
    return Ecg.from_array(rng.standard_normal((len(leads), samples)), sampling_rate_hz=rate, leads=leads)


@pytest.mark.parametrize("variant", ["published", "notebook"])
def test_ecg_fm_inputs_match(golden, error, variant):
    inputs = [SPEC.preprocessing[variant].apply(item) for item in golden.ecgs()[:2]]
    assert error(np.stack(inputs), golden.preprocessed["ecgfm_input"]) < TOLERANCE


def test_ecg_fm_input_of_a_100_hz_record_matches(golden, error):
    segments = SPEC.preprocessing["published"].apply(golden.edge_ecgs()["resample100"])
    assert error(segments[:, 1], golden.edge["resample100__ecgfm_input_lead_II"]) < TOLERANCE


@pytest.mark.parametrize("normalisation", ["lead", "record"])
def test_order_and_case_of_leads_do_not_matter(normalisation):
    preprocessing = Preprocessing(normalisation=normalisation)
    given = ecg()
    order = [3, 5, 4, 0, 1, 2, 11, 10, 9, 8, 7, 6]
    names = [LEADS[index].upper() for index in order]
    permuted = Ecg.from_array(given.signal[order], sampling_rate_hz=500, leads=names)
    np.testing.assert_array_equal(preprocessing.apply(permuted), preprocessing.apply(given))


@pytest.mark.parametrize("normalisation", ["lead", "record"])
def test_missing_leads_are_zeros_and_change_no_statistics(normalisation):
    preprocessing = Preprocessing(normalisation=normalisation)
    (segment,) = preprocessing.apply(ecg(leads=("V1", "II")))
    present = np.isin(LEADS, ("II", "V1"))
    assert not segment[~present].any()
    assert segment[present].std() == pytest.approx(1, abs=1e-5)


def test_a_recording_without_any_of_the_leads_is_refused():
    with pytest.raises(SignalError, match="expected at least one of I;"):
        Preprocessing(leads=("I",)).apply(ecg(leads=("V1", "II")))


@pytest.mark.parametrize(("samples", "segments"), [(2500, 1), (4999, 1), (5000, 2), (7600, 3), (1000, 1)])
def test_segments_are_cut_without_overlap_and_the_rest_is_dropped(samples, segments):
    preprocessing = Preprocessing(samples=2500)
    given = ecg(samples)
    cut = preprocessing.apply(given)
    assert (cut.shape, cut.dtype) == ((segments, 12, 2500), np.float32)
    whole = z_score_leads(given.signal.astype(np.float64)).astype(np.float32)
    joined = np.concatenate(list(cut), axis=1)
    kept = min(samples, joined.shape[1])
    np.testing.assert_array_equal(joined[:, :kept], whole[:, :kept])
    assert not joined[:, kept:].any()


def test_a_crop_keeps_the_middle_and_is_normalised_on_its_own():
    preprocessing = Preprocessing(normalisation="record", framing="crop")
    given = ecg(6000)
    (segment,) = preprocessing.apply(given)
    expected = z_score_record(given.signal[:, 500:5500].astype(np.float64))
    np.testing.assert_array_equal(segment, expected.astype(np.float32))


def test_a_short_recording_is_padded_after_normalising_and_never_stretched():
    preprocessing = Preprocessing(normalisation="record", framing="crop")
    given = ecg(3000)
    (segment,) = preprocessing.apply(given)
    expected = z_score_record(given.signal.astype(np.float64))
    np.testing.assert_array_equal(segment[:, :3000], expected.astype(np.float32))
    assert not segment[:, 3000:].any()


@pytest.mark.parametrize("resampling", ["linear", "polyphase"])
@pytest.mark.parametrize("rate", [100.0, 257.0, 360.0, 1000.0])
def test_any_rate_keeps_a_slow_wave_where_it_was(resampling, rate):
    seconds = np.arange(int(10 * rate)) / rate
    wave = np.sin(2 * np.pi * 1.1 * seconds)
    given = Ecg.from_array(np.tile(wave, (12, 1)), sampling_rate_hz=rate)
    (segment,) = Preprocessing(resampling=resampling).apply(given)
    expected = np.sin(2 * np.pi * 1.1 * np.arange(5000) / 500)
    correlation = np.corrcoef(segment[1], expected)[0, 1]
    assert correlation > 0.999


def test_linear_resampling_maps_ends_onto_ends():
    out = resample_linear(np.array([[0.0, 1.0, 4.0]]), 1, 2)
    np.testing.assert_allclose(out, [[0.0, 0.4, 0.8, 1.6, 2.8, 4.0]])
    shorter = resample_linear(np.arange(7.0)[None], 2, 1)
    np.testing.assert_allclose(shorter, [[0.0, 3.0, 6.0]])


@pytest.mark.parametrize("value", [0.0, 0.1, -1e6])
def test_a_flat_lead_becomes_zeros(value):
    signal = np.stack([np.full(1000, value), np.sin(np.arange(1000.0))])
    scored = z_score_leads(signal)
    assert not scored[0].any()
    assert scored[1].std() == pytest.approx(1)
    assert not z_score_record(np.full((2, 1000), value)).any()


def test_epsilon_is_added_to_the_deviation():
    signal = np.array([[1.0, -1.0]])
    assert z_score_leads(signal, 1.0).tolist() == [[0.5, -0.5]]
    assert z_score_record(signal, 3.0).tolist() == [[0.25, -0.25]]


def test_crop_and_pad_leave_alone_what_fits():
    signal = np.arange(6, dtype=np.float32).reshape(1, 6)
    assert crop_middle(signal, 3).tolist() == [[1, 2, 3]]
    assert crop_middle(signal, 9).tolist() == signal.tolist()
    assert pad_end(signal, 8).tolist() == [[0, 1, 2, 3, 4, 5, 0, 0]]
    assert pad_end(signal, 4).tolist() == signal.tolist()


def test_an_unknown_filter_is_refused():
    with pytest.raises(ConfigError, match="filter 'hum' is unknown"):
        Preprocessing(filters=("hum",))
