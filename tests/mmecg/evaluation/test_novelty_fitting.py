"""The novelty detector, fitted on synthetic ECGs with a plain encoder, and tried on others."""

import numpy as np
import pytest

from mmecg.datasets.corruptions import CORRUPTIONS, swap_electrodes
from mmecg.datasets.other_signals import other_signal
from mmecg.datasets.synthetic import synthetic_ecg
from mmecg.ecg import LIMB_LEADS, Ecg
from mmecg.evaluation import novelty_fitting
from mmecg.evaluation.metrics import auroc
from mmecg.evaluation.novelty_fitting import RIGHT_AXIS_TIMES, NoveltyData, fit_detector, fit_novelty, novelty_data
from mmecg.prediction.novelty import ORDINARY, UNKNOWN, NoveltyDetector
from mmecg.prediction.store import load_heads, save_heads
from mmecg.prediction.waveform import points_right, summarise

KINDS = {*CORRUPTIONS, UNKNOWN}


def encode(ecgs):
    """Return a few numbers of each lead in place of a tower's features."""
    return np.stack([np.concatenate([e.signal.std(1), e.signal.max(1), e.signal.min(1)]) for e in ecgs])


def ordinary(count, seed):
    rng = np.random.default_rng(seed)
    return [
        synthetic_ecg(
            heart_rate_bpm=rng.uniform(50, 110), amplitude=rng.uniform(0.6, 1.5), noise_mv=rng.uniform(0.005, 0.03),
            rhythm="sinus" if rng.random() < 0.8 else "atrial_fibrillation", seed=seed * 10_000 + row,
        )
        for row in range(count)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def data() -> NoveltyData:
    return novelty_data(ordinary(250, 1), encode)


@pytest.fixture(scope="module")
def detector(data: NoveltyData) -> NoveltyDetector:
    return fit_detector(data, data.source % 5 == 0)


def probability(detector, ecgs):
    return detector.scores(encode(ecgs), ecgs).probability


def test_corruptions_are_told_from_other_ordinary_recordings(detector):
    real, rng = ordinary(60, 2), np.random.default_rng(0)
    scores = [probability(detector, real)]
    for kind, name in (("limb_swap", "RA-LA"), ("not_ecg", "pulse"), ("inverted", "all leads")):
        changed = [CORRUPTIONS[kind][name](ecg, rng) for ecg in real]
        found = detector.scores(encode(changed), changed)
        both = np.concatenate([scores[0], found.probability])[:, None]
        assert auroc(np.arange(120)[:, None] >= 60, both)[0] > 0.97
        assert max(set(found.kind), key=found.kind.count) == kind


def test_few_false_alarms_on_ordinary_recordings_and_their_versions(detector):
    real = ordinary(80, 3)
    assert (probability(detector, real) >= 0.5).mean() <= 0.08
    assert (probability(detector, [ecg.crop(2, 5) for ecg in real]) >= 0.5).mean() <= 0.15
    fewer = probability(detector, [ecg.select_leads(LIMB_LEADS) for ecg in real])
    exchanged = probability(detector, [swap_electrodes(ecg, "RA", "LA") for ecg in real])
    assert fewer.mean() < exchanged.mean() - 0.4


def test_what_no_example_showed_is_far(data):
    shown = np.array([name.split("/")[0] not in ("noise", "not_ecg") for name in data.name.tolist()])
    narrow = data.take(shown)
    detector = fit_detector(narrow, narrow.source % 5 == 0)
    rng = np.random.default_rng(0)
    ecgs = [other_signal("white_noise", duration_s=10, sampling_rate_hz=100, rng=rng) for _ in range(20)]
    found = detector.scores(encode(ecgs), ecgs)
    assert (found.probability >= 0.5).mean() >= 0.9
    assert (detector.log_distance(np.stack([summarise(ecg) for ecg in ecgs])) > detector.far_at).mean() >= 0.9


def test_held_out_recordings_set_the_thresholds(data, detector):
    held_out = data.take((data.source % 5 == 0) & (data.name == ORDINARY))
    assert (detector.judge(held_out.features, held_out.summary).probability >= 0.5).mean() <= 0.06


def test_rare_right_axes_are_shown_more_often(data, monkeypatch):
    names = np.where(data.name == "limb_swap/RA-LA", "ordinary/right", data.name)
    ordinary_ones, held_out = np.char.startswith(names, ORDINARY), data.source % 5 == 0
    right = points_right(data.summary)
    assert right[names == "ordinary/right"].mean() > 0.9
    expected = np.where(right, RIGHT_AXIS_TIMES, 1)[ordinary_ones & ~held_out].sum()
    shown, fit = [], novelty_fitting._fit_network

    def watched(inputs, targets, *rest):
        shown.append((targets == 0).sum())
        return fit(inputs, targets, *rest)

    monkeypatch.setattr(novelty_fitting, "_fit_network", watched)
    fit_detector(NoveltyData(data.features, data.summary, names, data.source), held_out)
    assert shown == [expected]


def test_a_recording_is_judged_by_itself(detector):
    ecgs = [*ordinary(3, 4), swap_electrodes(synthetic_ecg(), "RA", "LA")]
    together = detector.scores(encode(ecgs), ecgs)
    alone = [detector.scores(encode([ecg]), [ecg]) for ecg in ecgs]
    np.testing.assert_allclose(together.probability, [one.probability[0] for one in alone], rtol=1e-3, atol=1e-6)
    assert together.kind == [one.kind[0] for one in alone]
    assert set(together.kind) <= KINDS


def test_absurd_input_gives_a_probability(detector):
    ecg = Ecg(synthetic_ecg().signal * np.float32(1e6), 100.0, np.ones(12, bool))
    for factor in (0, 1e30):
        found = detector.scores(np.float32(factor) * np.ones((1, 36), np.float32), [ecg])
        assert 0 <= found.probability[0] <= 1


def test_saved_and_loaded_it_says_the_same(detector, tmp_path):
    save_heads(tmp_path / "detector.safetensors", detector)
    loaded = load_heads(tmp_path / "detector.safetensors", NoveltyDetector)
    ecgs = ordinary(4, 5)
    np.testing.assert_array_equal(probability(loaded, ecgs), probability(detector, ecgs))
    assert loaded.classes == detector.classes


def test_fitting_leaves_out_what_cannot_be_corrupted_and_repeats_itself():
    ecgs = [*ordinary(24, 6), synthetic_ecg().select_leads(["II", "V1"])]
    subjects = [str(row // 2) for row in range(len(ecgs))]
    first, again = (fit_novelty(ecgs, subjects, encode, features=encode(ecgs), seed=3) for _ in range(2))
    np.testing.assert_array_equal(first.weight, again.weight)
    assert first.classes[0] == ORDINARY
    assert len(first.classes) == 1 + sum(len(names) for names in CORRUPTIONS.values())
