from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from mmecg.bundle import load_bundle
from mmecg.datasets.ptb_xl import read_ptb_xl_table
from mmecg.errors import InvalidInputError
from mmecg.evaluation.bootstrap import patient_weights
from mmecg.evaluation.label_data import LABELS_20, LABELS_56, read_label_data
from mmecg.evaluation.label_mining import ECG_ROWS, TEXT_ROWS, LabelOptions, evaluate_labels
from mmecg.evaluation.label_protocols import Given, Reading, System, disagreement, few_gold, tfidf_peer
from mmecg.labels.assertion import LabelAssertion, Status
from mmecg.labels.mining import LabelMiner
from mmecg.labels.weights import load_text_evidence

TOO_FEW = {
    "few_gold_500/macro_f1_20", "disagreement/precision_at_100/mined_labels", "pu/f1_share_of_oracle/0.2",
}  # fmt: skip
"""Rows that eighty toy records are too few for, or that need human validation."""


class Words:
    """A miner that knows the labels by name."""

    def mine(self, text: str) -> tuple[LabelAssertion, ...]:
        return tuple(
            LabelAssertion(word, Status.PRESENT, text.index(word), text.index(word) + len(word), f"en/{word}/0")
            for word in text.split()
        )


def synthetic(count: int = 1200, *, accuracy: float = 3.0):
    """Records of which text and ECG see the gold through noise; two records a patient."""
    rng = np.random.default_rng(0)
    truth = rng.random((count, len(LABELS_20))) < 0.3
    signs = np.where(truth, 1.0, -1.0)
    scores = {
        name: (accuracy * signs + rng.normal(0, 2, truth.shape)).astype(np.float32)
        for name in ("text", "probe", "votes", "zero_shot")
    }
    listed = [[LABELS_20[at] for at in np.flatnonzero(row)] for row in truth]
    table = pl.DataFrame(
        {
            "study_id": [str(row) for row in range(count)],
            "subject_id": [f"p{row // 2}" for row in range(count)],
            "report_raw": [" ".join(LABELS_20[at] for at in np.flatnonzero(row > 0)) for row in scores["text"]],
            "labels": [[{"label": label, "likelihood": 100.0} for label in names] for names in listed],
            "validated_by_human": [True] * count,
        }
    )
    data = read_label_data(table, LABELS_20, Words())
    return Given(data, patient_weights(data.subject_ids, resamples=30), 0), scores


def test_the_label_lists_are_distinct() -> None:
    assert len(set(LABELS_56)) == 56
    assert LABELS_56[:20] == LABELS_20
    assert set(LABELS_56) <= set(load_text_evidence().labels)


def test_what_is_mentioned_is_the_rules_alone() -> None:
    given, scores = synthetic(100)
    np.testing.assert_array_equal(given.data.mentioned, scores["text"] > 0)


def test_few_gold_beats_the_text_alone_and_says_what_it_used() -> None:
    given, scores = synthetic()
    noise = np.random.default_rng(1)
    untrained = {name: noise.normal(size=values.shape) for name, values in scores.items()} | {"text": scores["text"]}
    row = few_gold(given, scores, untrained)
    assert row.key == "few_gold_500/macro_f1_20"
    assert row.baselines["random_encoder"] == pytest.approx(row.baselines["text"], abs=0.03)
    assert row.value > row.baselines["text"]
    assert row.low < row.value < row.high
    assert row.extra["draws"] == 5
    small = few_gold(given.take(np.arange(900)), {name: values[:900] for name, values in scores.items()})
    assert "has 900 records, expected at least 1000" in small.extra["reason"]


def test_true_errors_come_first_in_both_queues() -> None:
    given, scores = synthetic(accuracy=4.0)
    zero = np.zeros(len(LABELS_20), np.float32)
    text, ecg = System("text", scores["text"], zero), System("ecg", scores["probe"], zero)
    blind = System("ecg", np.random.default_rng(1).permutation(scores["probe"]), zero)
    readings = {
        "bundle": Reading(scores, ecg, System("text_ecg", sum(scores.values()), zero)),
        "random_encoder": Reading(scores, blind, System("text_ecg", scores["text"] + blind.log_odds, zero)),
    }
    rows = {row.key: row for row in disagreement(given, text, readings)}
    headline = rows.pop("disagreement/precision_at_100")
    assert {key.rsplit("/", 1)[1] for key in rows} == {"simulated_flips", "mined_labels"}
    assert headline.value == min(row.value for row in rows.values())
    assert headline.value > 0.9
    for row in rows.values():
        assert max(row.baselines["prevalence"], row.baselines["random_encoder"]) < row.value
    assert rows["disagreement/precision_at_100/simulated_flips"].baselines["prevalence"] < 0.1


def test_the_peer_learns_words(toy_folder: Path) -> None:
    table = read_ptb_xl_table(toy_folder)
    train, test = (table.filter(pl.col("strat_fold").is_in(folds)) for folds in ([1, 2], [9]))
    data = read_label_data(test, ("IMI", "LVH"), LabelMiner())
    found = tfidf_peer(train, data)
    assert found is not None
    said = test["report_text"].str.contains("old infarct").to_numpy()
    assert found[said, 0].all()
    assert not found[~said & (test["report_text"] != "").to_numpy(), 0].any()
    assert tfidf_peer(train.head(0), data) is None


@pytest.mark.slow
def test_every_row_is_there_with_its_value_or_the_reason(toy_folder: Path) -> None:
    found = evaluate_labels(LabelOptions(toy_folder, 9, resamples=10), load_bundle)
    rows = {row.key: row for row in found.rows}
    assert {*TEXT_ROWS, *ECG_ROWS, "pu/f1_share_of_oracle/0.2"} <= rows.keys()
    for key in ("text/macro_f1_20", "text_ecg/macro_f1_20", "text_ecg/ece"):
        assert np.isfinite(rows[key].value), key
    for key in ("text_ecg/macro_f1_20", "text_ecg/ece", "text_ecg/brier"):
        assert np.isfinite(rows[key].baselines["random_encoder"]), key
    for key in TOO_FEW:
        assert rows[key].extra["reason"], key
    seen = "The bundle saw folds 1, 2, 3, 4, 5, 6, 7, 8 of PTB-XL in training (its model card), not fold 9."
    assert rows["text_ecg/macro_f1_20"].extra["contamination"] == seen
    assert "contamination" not in rows["text/macro_f1_20"].extra  # no ECG tower has a part in it
    assert seen in found.run["notes"]


def test_without_signals_the_text_rows_stand(toy_folder: Path, tmp_path: Path) -> None:
    for name in ("ptbxl_database.csv", "scp_statements.csv"):
        (tmp_path / name).write_bytes((toy_folder / name).read_bytes())
    found = evaluate_labels(LabelOptions(tmp_path, 9, resamples=10), load_bundle)
    rows = {row.key: row for row in found.rows}
    text = rows["text/macro_f1_20"]
    assert np.isfinite(text.value)
    assert text.baselines["tfidf"] > text.baselines["prevalence"]
    assert "has no signal file" in rows["text_ecg/macro_f1_20"].extra["reason"]
    assert not found.complete


def test_a_fold_without_records_is_refused(toy_folder: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"fold 5 has no record, expected one of \[1, 2, 9\]"):
        evaluate_labels(LabelOptions(toy_folder, 5), load_bundle)
