import numpy as np
import pytest

from mmecg.datasets.synthetic import synthetic_ecg
from mmecg.ecg import lead_index
from mmecg.experiments import saliency
from mmecg.experiments.saliency import PARTS_S, PLACES, Place, inside
from mmecg.prediction import explain


def test_the_place_is_the_leads_and_the_part_of_every_beat():
    ecg = synthetic_ecg(heart_rate_bpm=60, noise_mv=0, wander_mv=0)
    mask = inside(ecg, Place(("II", "V1"), "qrs"))
    rows = [lead_index("II"), lead_index("V1")]
    assert mask[rows].any(axis=1).all()
    assert not np.delete(mask, rows, axis=0).any()
    begin, end = PARTS_S["qrs"]
    assert mask[rows[0]].mean() == pytest.approx(end - begin, abs=0.03)  # of each second
    assert mask[rows[0]][np.argmax(ecg.signal[lead_index("II")])]


def test_parts_follow_each_other():
    ecg = synthetic_ecg(heart_rate_bpm=60)
    masks = [inside(ecg, Place(("I",), part)) for part in ("before_qrs", "qrs", "st_t")]
    assert (np.sum(masks, axis=0) <= 1).all()


def test_every_finding_names_leads():
    for place in PLACES.values():
        assert [lead_index(lead) for lead in place.leads]


def test_evidence_stands_beside_random_encoder_and_signal(bench, monkeypatch):
    monkeypatch.setattr(saliency, "PLACES", {label: PLACES[label] for label in ("LVH", "IMI")})
    monkeypatch.setattr(saliency, "RECORDINGS", 2)
    monkeypatch.setattr(explain, "PATH_STEPS", 8)
    outcome = saliency.run(bench)
    rows = {row.key: row for row in outcome.rows}
    row = rows["toy/LVH"]
    assert set(row.baselines) == {"random_encoder", "prevalence", "signal"}
    assert row.n == 2
    assert 0 < row.value < 1
    assert rows["toy/all_findings/over_signal"].value == pytest.approx(
        np.mean([rows[f"toy/{label}"].value - rows[f"toy/{label}"].baselines["signal"] for label in ("LVH", "IMI")])
    )
