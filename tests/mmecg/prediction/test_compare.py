"""Leads that changed, and where in the beat: not for another rate, size or start, but for another QRS or T."""

import numpy as np
import pytest

from mmecg.datasets.synthetic import synthetic_ecg
from mmecg.ecg import LEADS, Ecg
from mmecg.prediction.compare import changed_leads
from mmecg.prediction.measure import read_beats


def changed(now: Ecg, before: Ecg) -> dict[tuple[str, str], float]:
    return {(one.lead, one.part): one.difference_mv for one in changed_leads(read_beats(now), read_beats(before))}


def altered(ecg: Ecg, lead: str, part: str) -> Ecg:
    """Turn QRS or ST-T of a lead upside down in every beat."""
    reading = read_beats(ecg)
    assert reading.beat is not None
    signal, place = ecg.signal.copy(), LEADS.index(lead)
    peaks = np.flatnonzero(ecg.signal[1] == np.maximum.reduce([np.roll(ecg.signal[1], k) for k in range(-30, 31)]))
    for peak in peaks:
        first, last = (-7, 9) if part == "qrs" else (12, 48)
        window = slice(max(peak + first, 0), max(peak + last, 0))
        signal[place, window] *= -1
    return Ecg.from_array(signal, sampling_rate_hz=ecg.sampling_rate_hz)


@pytest.mark.parametrize("rate", [50, 75, 100])
def test_another_rate_start_or_sampling_rate_changes_nothing(rate: int) -> None:
    now = synthetic_ecg(seed=1, heart_rate_bpm=60, wander_mv=0)
    assert changed(now, synthetic_ecg(seed=rate, heart_rate_bpm=rate, wander_mv=0)) == {}
    assert changed(now, synthetic_ecg(seed=rate, heart_rate_bpm=rate, sampling_rate_hz=500, wander_mv=0)) == {}


@pytest.mark.parametrize("part", ["qrs", "st_t"])
def test_the_part_that_changed_is_named(part: str) -> None:
    before = synthetic_ecg(seed=2, heart_rate_bpm=60, wander_mv=0)
    now = altered(before, "V5", part)
    assert list(changed(now, before)) == [("V5", part)]
    assert changed(before, now).keys() == changed(now, before).keys(), "either way round"


def test_leads_that_one_of_them_lacks_and_no_beats() -> None:
    before = synthetic_ecg(seed=2, heart_rate_bpm=60, wander_mv=0)
    now = altered(before, "V5", "qrs")
    assert changed(now.select_leads(LEADS[:8]), before) == {}
    noise = Ecg.from_array(np.random.default_rng(0).standard_normal((12, 1000)), sampling_rate_hz=100)
    assert changed(noise, before) == {}
