"""Every subset of the evidence has its system: who gets a note, whose note it is, and what answers without an ECG."""

from datetime import datetime, timedelta

import numpy as np
import polars as pl
import pytest

from mmecg.datasets.ptb_xl import read_ptb_xl_table, read_scp_statements
from mmecg.evaluation.bootstrap import patient_weights
from mmecg.evaluation.prediction_cases import Cases
from mmecg.evaluation.prediction_data import PredictionData, prediction_data, priors_of
from mmecg.evaluation.prediction_modalities import MODALITIES, SUBSET, Bases, modalities, subset_systems
from mmecg.prediction.notes import UNDATED_DAYS

TOLD = 3.0


@pytest.fixture(scope="module")
def data(toy_folder) -> PredictionData:
    """Two records a patient, a year apart; what the report of the first says holds in both."""
    table = read_ptb_xl_table(toy_folder).head(120)
    said = {0: "normal ecg", 1: "old inferior infarct", 2: "left ventricular hypertrophy"}
    codes = {0: "NORM", 1: "IMI", 2: "LVH"}
    patient = np.arange(len(table)) // 2
    times = [datetime(1990, 1, 1) + timedelta(days=int(p) + 365 * (row % 2)) for row, p in enumerate(patient)]
    table = table.with_columns(
        subject_id=pl.Series([f"p{p}" for p in patient]),
        acquired_at=pl.Series(times).cast(table.schema["acquired_at"]),
        report_raw=pl.Series([said[p % 3] for p in patient]),
        labels=pl.Series([[{"label": codes[p % 3], "likelihood": 100.0}] for p in patient]).cast(
            table.schema["labels"]
        ),
    )
    noise = np.random.default_rng(0).normal(size=(len(table), 8)).astype(np.float32)
    return prediction_data(table, read_scp_statements(toy_folder), noise, noise)


@pytest.fixture(scope="module")
def systems(data: PredictionData) -> dict[str, np.ndarray]:
    logits = np.random.default_rng(1).normal(-2, 1, data.gold.shape)
    bases = Bases(logits, logits + 0.1, logits + 0.2, np.full(data.gold.shape, -2.0), np.full(data.gold.shape, -1.9))

    def add(base, records):
        def apply(rows, histories):
            told = np.zeros_like(base[rows])
            for place, history in enumerate(histories):
                assert all(one.days_before == UNDATED_DAYS for one in history if one.study_id == "")
                told[place] = sum(np.nan_to_num(one.known) for one in history)
            seen = np.isfinite(records.embedding[rows, 0])[:, None]
            return base[rows] + TOLD * told + np.where(seen, 0.0, 0.5)

        return apply

    return subset_systems(data, bases, add, lambda found: found, seed=0) | {
        "current": bases.current,
        "history": bases.current,
        "ecg": bases.ecg,
    }


def test_a_note_is_the_report_before_and_moves_what_it_states(data: PredictionData, systems: dict) -> None:
    first = np.array([not rows for rows in priors_of(data)])
    assert first.sum() == 60
    for name in ("notes", "ecg_notes", "history_notes", "other_notes"):
        base = systems["ecg" if name == "ecg_notes" else "current"]
        assert (systems[SUBSET + name][first] == base[first]).all()
    moved = systems[f"{SUBSET}notes"] - systems["current"]
    column = {label: at for at, label in enumerate(data.labels)}
    infarct = data.gold[:, column["IMI"]] & ~first
    assert moved[infarct][:, [column["IMI"], column["superclass/MI"]]] == pytest.approx(TOLD)
    assert moved[~data.gold[:, column["IMI"]]][:, column["IMI"]] == pytest.approx(0)
    others = systems[f"{SUBSET}other_notes"] - systems["current"]
    assert (others[infarct][:, column["IMI"]] == 0).any()


def test_what_answers_without_an_ecg(data: PredictionData, systems: dict) -> None:
    followed = np.array([bool(rows) for rows in priors_of(data)])
    assert (systems[f"{SUBSET}vitals_only"] == -1.9).all()
    assert (systems[f"{SUBSET}notes_only"][~followed] == -2.0).all()
    assert (systems[f"{SUBSET}vitals_notes_only"] - systems[f"{SUBSET}notes_only"]).round(6).max() == 0.1
    own = systems[f"{SUBSET}history_only"][followed] - TOLD * data.gold[followed]
    np.testing.assert_allclose(own, -1.9 + 0.5, err_msg="the embedding of the study is not seen")
    told = systems[f"{SUBSET}report_only"]
    assert told[data.gold].mean() > told[~data.gold].mean() + 3


def test_the_table_has_every_subset_and_rows_for_notes(data: PredictionData, systems: dict) -> None:
    followed = np.array([len(rows) for rows in priors_of(data)])
    weights = patient_weights(data.subject_ids, resamples=50)
    gap = np.where(followed, 365.0, np.nan)
    part = modalities(Cases(data.table, data.labels, data.gold, weights, followed, gap, systems))
    rows = {row.key: row for row in part.rows}
    assert rows["modalities/notes_gain"].value > 0.1 > abs(rows["modalities/control_other_notes"].value)
    assert rows["modalities/notes_gain"].n == 60
    listed = part.tables["modalities"]["evidence"].to_list()
    assert {MODALITIES[name] for name in systems} <= set(listed)
    assert part.tables["modalities"]["low"].null_count() <= 2
