from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from mmecg.datasets.ptb_xl import read_ptb_xl_table, read_scp_statements
from mmecg.errors import InvalidInputError
from mmecg.evaluation import protocols
from mmecg.evaluation.cohort import read_cohort, sampling_rate_of, without_subjects_of
from mmecg.evaluation.plots import save_plots
from mmecg.evaluation.protocols import EvaluationOptions, evaluate
from mmecg.evaluation.results import REQUIRED_ROWS, Evaluation, save_evaluation


def _options(folder: Path, **changes: Any) -> EvaluationOptions:
    settings: dict[str, Any] = {"data": folder, "fold": 9, "bundle_folds": (1, 2), "resamples": 60, **changes}
    return EvaluationOptions(**settings)


@pytest.fixture(scope="module")
def evaluation(toy_folder: Path, encoders: Any) -> Evaluation:
    return evaluate(_options(toy_folder), encoders)


def test_every_required_row_has_value_interval_n_and_baselines(evaluation: Evaluation) -> None:
    metrics = evaluation.metrics()
    assert set(REQUIRED_ROWS) <= metrics.keys()
    for key, row in metrics.items():
        assert {"value", "low", "high", "n", "baselines"} <= row.keys(), key
        assert {"random_encoder", "prevalence"} <= row["baselines"].keys(), key
        assert row["low"] <= row["value"] <= row["high"], key
        assert row["n"] > 0, key
        assert "supervision" in row, key
    assert evaluation.complete


def test_a_sighted_encoder_beats_the_baselines_in_every_row(evaluation: Evaluation) -> None:
    metrics = evaluation.metrics()
    for key in ("linear_probe/superclass", "zero_shot/superclass", "knn50/superclass", "ecg_to_ecg/precision_at_10"):
        assert metrics[key]["value"] > 0.99, key
    for key in ("zero_shot/superclass", "ecg_to_ecg/precision_at_10", "ecg_to_report/recall_at_10"):
        assert metrics[key]["value"] > metrics[key]["baselines"]["prevalence"], key
    assert metrics["zero_shot/superclass"]["baselines"]["random_encoder"] < 0.8
    # The findings lie on leads II to V1: lead I shows none of them, the limb leads show most.
    assert metrics["lead_subset/I"]["value"] < 0.5 < metrics["lead_subset/limb"]["value"]


def test_per_label_table_counts_positives(evaluation: Evaluation) -> None:
    table = evaluation.per_label
    assert set(table["protocol"]) == {"zero_shot", "linear_probe", "linear_probe_embedding", "knn50"}
    rows = table.filter(pl.col("protocol") == "zero_shot", pl.col("task") == "all")
    assert dict(rows.select("label", "positives").iter_rows())["SR"] == evaluation.run["test_records"]
    assert rows.filter(pl.col("label") == "SR")["auroc"].item() is None  # every record has it: no negative


def test_the_same_options_give_the_same_figures(toy_folder: Path, encoders: Any, evaluation: Evaluation) -> None:
    assert evaluate(_options(toy_folder), encoders).metrics() == evaluation.metrics()


def test_files_are_written_and_are_strict_json(evaluation: Evaluation, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    save_evaluation(evaluation, out)
    plots = save_plots(evaluation, out)

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    assert json.loads((out / "metrics.json").read_text(), parse_constant=refuse) == evaluation.metrics()
    assert json.loads((out / "run.json").read_text(), parse_constant=refuse)["fit_folds"] == [1, 2]
    assert pl.read_parquet(out / "per_label.parquet").height == evaluation.per_label.height
    assert "| zero_shot/superclass |" in (out / "report.md").read_text()
    assert [path.read_bytes()[:4] for path in plots] == [b"\x89PNG"] * 3
    assert not list(out.glob("*.partial"))


def test_without_training_folds_the_fitted_rows_say_why_and_the_others_are_computed(
    toy_folder: Path, encoders: Any, tmp_path: Path
) -> None:
    alone = tmp_path / "fold9"
    shutil.copytree(toy_folder, alone)
    table = read_ptb_xl_table(alone)
    for name in table.filter(pl.col("strat_fold") != 9)["filename_lr"]:
        (alone / f"{name}.hea").unlink()
    found = evaluate(_options(alone), encoders)
    metrics = found.metrics()
    for key in ("linear_probe/all", "knn50/superclass", "vitals_gain/knn50_superclass"):
        assert metrics[key]["value"] is None
        assert "training folds [1, 2] have no signal file" in metrics[key]["reason"]
    assert metrics["zero_shot/superclass"]["value"] > 0.99
    assert not found.complete
    assert any("--train-data" in note for note in found.run["notes"])
    elsewhere = evaluate(_options(alone, train_data=toy_folder), encoders)
    assert elsewhere.metrics()["knn50/superclass"]["value"] > 0.99


def test_a_patient_of_the_test_fold_never_enters_the_training_records(
    toy_folder: Path, encoders: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = read_ptb_xl_table(toy_folder)
    leaking = table.filter(pl.col("strat_fold") == 9)["subject_id"][0]
    moved = (pl.col("subject_id") == leaking) & (pl.col("study_id").cast(pl.Int64) % 2 == 1)
    mixed = table.with_columns(pl.when(moved).then(1).otherwise(pl.col("strat_fold")).alias("strat_fold"))
    assert leaking in mixed.filter(pl.col("strat_fold") == 1)["subject_id"].to_list()
    kept = without_subjects_of(mixed.filter(pl.col("strat_fold") == 1), mixed.filter(pl.col("strat_fold") == 9))
    assert leaking not in kept["subject_id"].to_list()
    cohorts: dict[str, set[str]] = {}

    def spy(*args: Any, what: str, **options: Any) -> Any:
        cohort = read_cohort(*args, what=what, **options)
        cohorts[what] = set(cohort.subject_ids.tolist())
        return cohort

    monkeypatch.setattr(protocols, "read_ptb_xl_table", lambda folder: mixed)
    monkeypatch.setattr(protocols, "read_cohort", spy)
    evaluate(_options(toy_folder), encoders)
    assert leaking in cohorts["fold 9"]
    assert cohorts["fold 9"].isdisjoint(cohorts["folds 1-2"])


def test_the_fold_itself_is_never_fitted_on_and_training_on_it_is_said(toy_folder: Path, encoders: Any) -> None:
    found = evaluate(_options(toy_folder, bundle_folds=(1, 2, 9)), encoders)
    assert found.run["fit_folds"] == [1, 2]
    assert any("trained on fold 9" in note for note in found.run["notes"])


def test_a_broken_record_is_left_out_and_named(toy_folder: Path, encoders: Any, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(toy_folder, broken)
    name = read_ptb_xl_table(broken).filter(pl.col("strat_fold") == 9)["filename_lr"][3]
    data = (broken / f"{name}.dat").read_bytes()
    (broken / f"{name}.dat").write_bytes(data[: len(data) // 2])
    found = evaluate(_options(broken), encoders)
    assert found.run["test_records"] == 79
    assert len(found.run["skipped"]) == 1
    assert name in found.run["skipped"][0]["record"]
    assert not found.complete


def test_unknown_fold_and_missing_signals_are_refused(toy_folder: Path, encoders: Any, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"fold 7 has no record, expected one of \[1, 2, 9\]"):
        evaluate(_options(toy_folder, fold=7), encoders)
    for name in ("ptbxl_database.csv", "scp_statements.csv"):
        shutil.copy(toy_folder / name, tmp_path)
    with pytest.raises(InvalidInputError, match="no signal file of the 80 records"):
        evaluate(_options(tmp_path), encoders)


def test_500_hz_is_taken_where_100_hz_is_missing(tmp_path: Path) -> None:
    table = pl.DataFrame({"filename_lr": ["records100/a_lr"], "filename_hr": ["records500/a_hr"]})
    (tmp_path / "records500").mkdir()
    (tmp_path / "records500" / "a_hr.hea").touch()
    assert sampling_rate_of(tmp_path, table) == 500
    (tmp_path / "records100").mkdir()
    (tmp_path / "records100" / "a_lr.hea").touch()
    assert sampling_rate_of(tmp_path, table) == 100


def test_statements_table_of_the_toy_folder_is_complete(toy_folder: Path) -> None:
    assert read_scp_statements(toy_folder)["superclass"].drop_nulls().n_unique() == 5


def test_an_undefined_figure_is_null_with_a_reason(toy_folder: Path, encoders: Any) -> None:
    class Contrary:
        """Zero-shot below chance: there is nothing above it to keep on fewer leads."""

        def __getattr__(self, name: str) -> Any:
            return getattr(encoders["bundle"], name)

        def encode_ecg(self, ecgs: Any) -> Any:
            return -encoders["bundle"].encode_ecg(ecgs)

    found = evaluate(_options(toy_folder, resamples=5), {**encoders, "bundle": Contrary()})
    row = found.metrics()["lead_subset/limb"]
    assert row["value"] is None
    assert "nothing is above chance" in row["reason"]
    assert found.metrics()["zero_shot/superclass"]["value"] < 0.5
    assert not found.complete
