from dataclasses import replace

import numpy as np
import pytest

from mmecg.adaptation.backbone import small_backbone
from mmecg.ecg import LEADS
from mmecg.errors import InvalidInputError
from mmecg.experiments import random_lead_masking, single_lead
from mmecg.experiments.bench import identity
from mmecg.experiments.random_lead_masking import hide, mask_at_random
from mmecg.experiments.single_lead import turned
from mmecg.experiments.training import Recipe, outputs, train

BRIEF = Recipe(steps=30, batch=16)


@pytest.fixture(scope="module")
def trained(bench):
    truth = bench.recordings.truth(["all/LVH", "superclass/MI"])
    return train(bench, small_backbone(0), truth, bench.split.fit, BRIEF)


def test_training_learns_what_can_be_seen(bench, trained):
    test = bench.split.test
    found = outputs(trained, bench.recordings.signals[test])[:, 0]
    tall = bench.recordings.truth(["all/LVH"])[test, 0] > 0
    assert (found[tall][:, None] > found[~tall][None]).mean() > 0.9


def test_training_is_the_same_for_the_same_seed(bench, trained):
    truth = bench.recordings.truth(["all/LVH", "superclass/MI"])
    again = train(bench, small_backbone(0), truth, bench.split.fit, BRIEF)
    assert identity(again.encoder) == identity(trained.encoder)


def test_recordings_of_another_rate_are_refused(bench):
    fine = replace(bench, recordings=replace(bench.recordings, rate=500))
    with pytest.raises(InvalidInputError, match=r"recordings have 500 Hz, expected 100 Hz"):
        train(fine, small_backbone(0), bench.recordings.truth(["all/LVH"]), bench.split.fit, BRIEF)


def test_hidden_leads_change_nothing(bench, trained):
    signals = np.array(bench.recordings.signals[bench.split.test[:4]])
    loud = signals.copy()
    loud[:, LEADS.index("V3")] *= 3
    limb = hide(("I", "II"))
    np.testing.assert_array_equal(outputs(trained, signals, limb), outputs(trained, loud, limb))


def test_leads_are_hidden_at_random_but_never_all():
    crops = np.ones((200, 12, 5), np.float32)
    kept = mask_at_random(0.9)(crops, np.random.default_rng(0))[:, :, 0]
    assert 0.05 < kept.mean() < 0.2
    assert kept.any(axis=1).all()


def test_masking_on_and_off_stand_beside_each_other(bench, monkeypatch):
    monkeypatch.setattr(random_lead_masking, "RECIPE", Recipe(steps=2, batch=8))
    monkeypatch.setattr(random_lead_masking, "LEAD_LABELS", ("all/LVH", "all/AFIB"))
    outcome = random_lead_masking.run(bench)
    rows = {row.key: row for row in outcome.rows}
    assert set(outcome.headline) <= set(rows)
    gap = rows["superclass/I/on_over_off"]
    assert gap.value == pytest.approx(rows["superclass/I/on"].value - rows["superclass/I/off"].value)


def test_turned_leads_are_the_same_for_a_recording_and_differ_between_recordings(bench):
    view = turned(0, 0)
    ecg = bench.recordings.ecg(0)
    (one,), (again,), (other,) = (view.parts(ecg, row) for row in (0, 0, 1))
    assert one.leads == ("I",)
    np.testing.assert_array_equal(one.signal, again.signal)
    assert not np.array_equal(one.signal, other.signal)


def test_lead_i_stands_beside_12_leads(bench, monkeypatch):
    monkeypatch.setattr(single_lead, "GROUPS", {"AFIB": ("all/AFIB",), "rhythm": ("all/AFIB", "all/SBRAD")})
    outcome = single_lead.run(bench)
    rows = {row.key: row for row in outcome.rows}
    assert set(outcome.headline) <= set(rows)
    assert rows["toy/AFIB/I"].value > 0.7  # the rhythm shows in any lead
    gap = rows["toy/AFIB/axes_on_lead_I"]
    assert gap.value == pytest.approx(rows["toy/AFIB/I_axes"].value - rows["toy/AFIB/I"].value)
