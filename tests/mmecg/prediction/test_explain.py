"""Saliency on the real tower: complete, where the signal is, and the same story by both methods."""

import numpy as np
import pytest

from mmecg.bundle import Bundle
from mmecg.datasets.synthetic import synthetic_ecg
from mmecg.ecg import Ecg
from mmecg.errors import QueryError
from mmecg.prediction.calibration import LogitMap
from mmecg.prediction.explain import MAX_EXPLAINED, explain
from mmecg.prediction.single import SingleHead

LABELS = ("NORM", "AFIB", "PVC")


@pytest.fixture(scope="module")
def head(bundle: Bundle) -> SingleHead:
    """Random directions in the space of the features; what is explained is the tower."""
    random = np.random.default_rng(0)
    features = bundle.config.model.ecg.features
    weight = random.standard_normal((2, features, len(LABELS))).astype(np.float32)
    nothing, one = np.zeros(3), np.ones(3)
    kept = LogitMap(one, one, nothing, np.zeros((97, 3), np.float32), ("beta",) * 3)
    return SingleHead(weight, np.zeros((2, len(LABELS)), np.float32), kept)


def test_integrated_gradients_add_up(bundle: Bundle, head: SingleHead) -> None:
    ecg = synthetic_ecg(seed=3)
    for one in explain(bundle.encoder, head, LABELS, ecg, ["AFIB", "PVC"]):
        gap = one.logit - one.baseline_logit
        assert one.values.shape == (12, 1000)
        assert abs(gap) > 0.5
        assert one.values.sum() == pytest.approx(gap, abs=0.005 * float(np.abs(one.values).sum()))
        assert sum(one.lead_shares.values()) == pytest.approx(1)


def test_logit_is_that_of_the_head(bundle: Bundle, head: SingleHead) -> None:
    ecg = synthetic_ecg(sampling_rate_hz=500, seed=4)
    (one,) = explain(bundle.encoder, head, LABELS, ecg, ["PVC"])
    features = bundle.encoder.ecg_features([ecg])
    assert one.logit == pytest.approx(float((features @ head.weight[0])[0, 2]), abs=1e-3)


def test_occlusion_finds_the_one_beat_that_differs(bundle: Bundle, head: SingleHead) -> None:
    quiet = synthetic_ecg(seed=5, noise_mv=0)
    signal = quiet.signal.copy()
    signal[6:, 480:520] += 3 * np.hanning(40).astype(np.float32)
    odd = Ecg.from_array(signal, sampling_rate_hz=100)
    plain, marked = (explain(bundle.encoder, head, LABELS, ecg, ["PVC"], method="occlusion")[0] for ecg in (quiet, odd))
    change = np.abs(marked.values - plain.values)
    assert change[6:, 460:540].mean() > 5 * change[:6].mean()
    assert change[6:, 460:540].mean() > 3 * change[6:, :400].mean()


def test_a_missing_lead_has_none(bundle: Bundle, head: SingleHead) -> None:
    ecg = synthetic_ecg(seed=6, duration_s=3).select_leads(["I", "II", "V2"])
    for method in ("integrated_gradients", "occlusion"):
        (one,) = explain(bundle.encoder, head, LABELS, ecg, ["NORM"], method=method)
        assert one.values.shape == (12, 300)
        assert set(np.flatnonzero(np.abs(one.values).sum(axis=1))) == {0, 1, 7}


def test_bad_requests(bundle: Bundle, head: SingleHead) -> None:
    ecg = synthetic_ecg()
    with pytest.raises(QueryError, match="no trained head"):
        explain(bundle.encoder, head, LABELS, ecg, ["nothing"])
    with pytest.raises(QueryError, match="expected one of integrated_gradients, occlusion"):
        explain(bundle.encoder, head, LABELS, ecg, ["NORM"], method="guess")
    many = tuple(f"superclass/{number}" for number in range(MAX_EXPLAINED + 1))
    with pytest.raises(QueryError, match="at most 8"):
        explain(bundle.encoder, head, many, ecg, many)
