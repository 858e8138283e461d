"""What is read in a recording beside the tower is what the parts say by themselves, also from several threads."""

import time

import numpy as np

from mmecg.datasets.synthetic import synthetic_ecg
from mmecg.ecg import Ecg
from mmecg.prediction.examined import examine
from mmecg.prediction.measure import read_beats
from mmecg.prediction.predictor import Predictor
from mmecg.prediction.waveform import summarise
from mmecg.quality import assess_quality


def flat_v5() -> Ecg:
    signal = synthetic_ecg(sampling_rate_hz=500, seed=3).signal.copy()
    signal[10] = 0.2
    return Ecg.from_array(signal, sampling_rate_hz=500)


def test_examined_is_what_its_parts_say():
    ecg = flat_v5()
    found = examine(ecg)
    assert found.quality == assess_quality(ecg)
    assert "V5" not in {one.lead for one in found.reading.measurements}, "a flat lead is not measured"
    assert found.reading.values == read_beats(ecg, unreadable=["V5"]).values
    np.testing.assert_array_equal(found.summary, summarise(ecg))


def test_a_recording_is_examined_while_the_tower_works(bundle, heads):
    seen = []

    def slow_tower(ecgs):
        for _ in range(500):  # the tower has not begun: who else resamples is an examiner
            if all(ecg._resampled is not None for ecg in ecgs):
                break
            time.sleep(0.01)
        seen.append([ecg._resampled is None for ecg in ecgs])
        return bundle.encoder.ecg_features(ecgs)

    alone = Predictor(bundle, heads=heads)
    beside = alone.sharing(slow_tower).predict(flat_v5())
    assert seen[-1] == [False]
    at_once = alone.predict(flat_v5())
    assert beside.labels == at_once.labels
    assert str(beside.measurements) == str(at_once.measurements), "as text, for NaN is not NaN"
    assert beside.uncertainty == at_once.uncertainty
