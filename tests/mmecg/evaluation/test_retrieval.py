from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
import pytest

from mmecg.evaluation.bootstrap import patient_weights
from mmecg.evaluation.cohort import Cohort, Encoded
from mmecg.evaluation.labels import LabelTask
from mmecg.evaluation.retrieval import ecg_to_ecg, text_retrieval
from mmecg.evaluation.setting import Setting
from mmecg.vitals import Vitals


class FixedText:
    """Embeds a text as the unit vector that the test gives it."""

    fingerprint = "fixed"

    def __init__(self, vectors: dict[str, Sequence[float]]) -> None:
        self._vectors = vectors

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        return np.array([self._vectors[text] for text in texts], np.float32)


def _setting(
    embedding: np.ndarray, subjects: list[str], labels: np.ndarray | None = None, texts: tuple[str, ...] = ()
) -> Setting:
    labels = np.ones((len(subjects), 1), np.bool_) if labels is None else labels
    everyone = np.ones(len(subjects), np.bool_)
    names = tuple(f"L{index}" for index in range(labels.shape[1]))
    encoded = Encoded(embedding, embedding, {})
    cohort = Cohort(
        study_ids=np.array([]),
        subject_ids=np.array(subjects),
        tasks={
            "superclass": LabelTask("superclass", names, labels, labels.any(axis=1)),
            "all": LabelTask("all", names, labels, everyone),
        },
        texts=texts or ("",) * len(subjects),
        vitals=(Vitals(),) * len(subjects),
        encoded={"bundle": encoded, "random": encoded},
        skipped=pl.DataFrame(schema={"record": pl.String(), "reason": pl.String()}),
    )
    return Setting(None, cohort, patient_weights(subjects, resamples=50))


def test_a_patients_own_records_are_never_hits() -> None:
    # Patient p: ten identical ECGs with label 0. Patient q: two ECGs, far away, with label 1. r: label 0, in between.
    angles = np.array([0.0] * 10 + [1.5, 1.4] + [0.5])
    embedding = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    labels = np.zeros((13, 2), np.bool_)
    labels[:10, 0], labels[10:12, 1], labels[12, 0] = True, True, True
    rows = {row.key: row for row in ecg_to_ecg(_setting(embedding, ["p"] * 10 + ["q"] * 2 + ["r"], labels))}
    # p's queries may only find q, q, r (1 of 3 shares the label); q's 11 others never share it; r finds p (10 of 12).
    expected = (10 * (1 / 3) + 2 * 0.0 + 1.0) / 13
    assert rows["ecg_to_ecg/precision_at_10"].value == pytest.approx(expected)
    assert rows["ecg_to_ecg/precision_at_10"].n == 13
    balanced = ((10 / 3 + 1.0) / 11 + 0.0) / 2
    assert rows["ecg_to_ecg/precision_at_10_class_balanced"].value == pytest.approx(balanced)


def test_exact_sets_are_stricter_than_shared_labels() -> None:
    rng = np.random.default_rng(0)
    embedding = rng.normal(size=(80, 5)).astype(np.float32)
    labels = rng.random((80, 5)) < 0.4
    rows = {row.key: row for row in ecg_to_ecg(_setting(embedding, [str(row) for row in range(80)], labels))}
    shared, exact = rows["ecg_to_ecg/precision_at_10"], rows["ecg_to_ecg/precision_at_10_exact_set"]
    assert exact.value < shared.value
    assert shared.n == int(labels.any(axis=1).sum())
    for row in rows.values():
        assert row.low <= row.value <= row.high
        assert row.baselines["prevalence"] == pytest.approx(row.value, abs=0.08)  # random vectors do as well as chance


def test_identical_texts_are_hits_empty_texts_are_left_out() -> None:
    texts = ("a b", "c", "a b", "", "?")
    text = FixedText({"a b": (1, 0), "c": (0, 1)})
    # The ECG of record 2 points at "c": its own text is found behind it, within ten.
    embedding = np.array([[1, 0], [0, 1], [0.2, 0.98], [1, 0], [0, 1]], np.float32)
    forward, backward = text_retrieval(
        _setting(embedding, list("pqrst"), texts=texts), {"bundle": text, "random": text}
    )
    assert (forward.key, forward.n, forward.value) == ("ecg_to_report/recall_at_10", 3, 1.0)
    assert (backward.key, backward.n, backward.value) == ("report_to_ecg/recall_at_10", 3, 1.0)
    assert forward.extra["n_unique_texts"] == 2
    assert forward.extra["n_empty_texts"] == 2
    assert forward.baselines["prevalence"] == 1.0  # three entries, ten guesses


def test_recall_at_10_by_hand_among_more_than_ten_texts() -> None:
    texts = (*(f"t{index}" for index in range(12)), "t0")
    angles = np.linspace(0, 1.5, 12)
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    text = FixedText({f"t{index}": vectors[index] for index in range(12)})
    embedding = np.concatenate([np.tile(vectors[0], (12, 1)), vectors[[0]]]).astype(np.float32)
    forward, _ = text_retrieval(
        _setting(embedding, [str(row) for row in range(13)], texts=texts), {"bundle": text, "random": text}
    )
    # Every ECG ranks t0 (two entries), t1, t2, …: the first ten entries hold t0 to t8, so t9, t10, t11 are missed.
    assert forward.value == pytest.approx(10 / 13)
    # Among distinct texts the first ten are t0 to t9.
    assert forward.extra["value_unique_texts"] == pytest.approx(11 / 13)


def test_without_any_report_the_rows_say_so() -> None:
    rows = text_retrieval(_setting(np.eye(3, dtype=np.float32), list("abc")), {})
    assert [row.key for row in rows] == ["ecg_to_report/recall_at_10", "report_to_ecg/recall_at_10"]
    assert all(np.isnan(row.value) and "no test record has a report" in row.extra["reason"] for row in rows)
