import numpy as np
import pytest

from mmecg.experiments import pair_validity
from mmecg.experiments.pair_validity import ADJACENT, PAIRS, PATIENT, STRANGERS, _agreements, _pairs


@pytest.fixture(scope="module")
def metrics(bench):
    outcome = pair_validity.run(bench)
    return {row.key: row for row in outcome.rows}


def test_pairs_are_of_a_recording_of_a_patient_and_of_strangers(bench):
    pairs = _pairs(bench)
    subjects = bench.recordings.subjects
    assert pairs[ADJACENT][0].tolist() == pairs[ADJACENT][1].tolist() == bench.split.test.tolist()
    assert (subjects[pairs[PATIENT][0]] == subjects[pairs[PATIENT][1]]).all()
    assert (pairs[PATIENT][0] != pairs[PATIENT][1]).all()
    assert (subjects[pairs[STRANGERS][0]] != subjects[pairs[STRANGERS][1]]).all()


def test_rhythms_agree_by_rate_and_by_regularity():
    one = np.array([[60.0, 0.02], [60.0, 0.02], [60.0, 0.02], [np.nan, 0.02]])
    other = np.array([[65.0, 0.03], [70.0, 0.02], [61.0, 0.30], [60.0, 0.02]])
    found = _agreements(one, other)
    assert found["same_rate"][:3].tolist() == [1, 0, 1]
    assert found["same_regularity"][:3].tolist() == [1, 1, 0]
    assert found["same_rhythm"][:3].tolist() == [1, 0, 0]
    assert np.isnan(found["same_rhythm"][3])


def test_adjacent_segments_agree_more_than_strangers(metrics):
    assert metrics["adjacent/same_rhythm"].value > metrics["strangers/same_rhythm"].value + 0.2
    assert "adjacent/same_labels" not in metrics  # labels are of the whole recording


def test_every_pair_has_its_baselines(metrics):
    for kind in PAIRS:
        row = metrics[f"toy/{kind}/cosine"]
        assert row.low <= row.value <= row.high
        assert set(row.baselines) == {"random_encoder", "prevalence"}
