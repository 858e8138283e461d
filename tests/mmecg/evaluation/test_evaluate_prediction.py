"""The whole evaluation on a tiny folder in PTB-XL layout, with the shipped towers and heads fitted on that folder."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from mmecg.bundle import Bundle, load_bundle
from mmecg.cli import main
from mmecg.datasets.synthetic import synthetic_ecg
from mmecg.evaluation.history_fitting import HistoryRecipe
from mmecg.evaluation.metrics import auroc
from mmecg.evaluation.prediction_crossfit import CrossFit, temporal
from mmecg.evaluation.prediction_data import PredictionData, read_prediction_data
from mmecg.evaluation.prediction_fitting import HonestScores, fit_evidence, fit_heads, honest_scores
from mmecg.evaluation.prediction_history import history
from mmecg.evaluation.prediction_protocols import REQUIRED_ROWS
from mmecg.evaluation.prediction_random import RandomFeatures
from mmecg.prediction.heads import write_heads
from mmecg.prediction.novelty import NoveltyDetector
from mmecg.prediction.waveform import ALIGNED, summarise

RECIPE = HistoryRecipe(steps=60, batch=32, hidden=4, cross_penalty=1.0)
PICTURES = {"labels", "reliability", "conformal", "risk_coverage", "decision_curves", "shift", "novelty", "subgroups"}


def quiet(what: str, done: int, total: int) -> None:
    """Tell nobody."""


@pytest.fixture(scope="module")
def folder(toy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy folder, each patient later than the one before, and the second recording 100 days after the first."""
    found = tmp_path_factory.mktemp("dated") / "ptbxl"
    shutil.copytree(toy_folder, found)
    table = pl.read_csv(found / "ptbxl_database.csv", infer_schema=False)
    row = pl.int_range(pl.len())
    day = pl.datetime(1990, 1, 1, 10) + pl.duration(days=5 * (row // 2) + 100 * (row % 2))
    table.with_columns(day.dt.strftime("%Y-%m-%d %H:%M:%S").alias("recording_date")).write_csv(
        found / "ptbxl_database.csv"
    )
    return found


@pytest.fixture(scope="module")
def parts(folder: Path) -> list[tuple[PredictionData, tuple[int, ...]]]:
    data = read_prediction_data(folder, load_bundle(precision="float32"), (1, 2, 9), progress=quiet)
    return [(data, (1,)), (data, (2, 9))]


def no_detector(features: int) -> NoveltyDetector:
    """A detector that says the same of everything."""
    summary = len(summarise(synthetic_ecg()))
    nothing = np.zeros(features + ALIGNED + summary, np.float32)
    zeros = np.zeros((len(nothing), 2), np.float32)
    output = np.zeros((2, 2), np.float32), np.array([4, 0], np.float32)
    classes = ("ordinary", "noise/white")
    whitening = np.eye(summary, dtype=np.float32)
    return NoveltyDetector(
        nothing, nothing + 1, zeros, np.zeros(2, np.float32), *output, classes, nothing[:summary], whitening, 99.0, 1.0
    )


@pytest.fixture(scope="module")
def bundle(parts: list[tuple[PredictionData, tuple[int, ...]]], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The shipped bundle with heads for the six statements of the folder."""
    shipped = load_bundle(precision="float32")
    path = tmp_path_factory.mktemp("bundle") / "bundle"
    shutil.copytree(shipped.path, path)
    copied = load_bundle(path, precision="float32")
    data = parts[0][0]
    detector = no_detector(data.features.shape[1])
    heads = fit_heads(copied.fingerprint, data, honest_scores(parts), detector, members=1, recipe=RECIPE)
    write_heads(copied, heads)
    return copied


def test_the_command_writes_a_page_that_needs_nothing_else(
    folder: Path, bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = ["--data", folder, "--fold", 9, "--bundle", bundle.path, "--out", out, "--resamples", 20, "--json"]
    code = main(["evaluate-prediction", *map(str, arguments)])
    said = capsys.readouterr()
    assert said.out, said.err
    printed = json.loads(said.out)
    assert code == (0 if all(row["value"] is not None for row in printed.values()) else 1)
    assert json.loads((out / "metrics.json").read_text()) == printed
    assert set(REQUIRED_ROWS) <= printed.keys()
    for key, row in printed.items():
        assert ("reason" in row) == (row["value"] is None), key
        assert row["value"] is None or "prevalence" in row["baselines"], key
    assert printed["single/all"]["baselines"].keys() == {"prevalence", "random_encoder"}
    assert "among the 40 studies with an earlier one" in printed["history_gain/macro_auroc"]["reason"]  # 8 of each
    assert "--cross-fit" in said.err
    seen = bundle.contamination("PTB-XL", fold=9)
    assert seen.startswith("The bundle saw")
    assert {row["contamination"] for row in printed.values()} == {seen}
    assert seen in json.loads((out / "run.json").read_text())["notes"]
    page = (out / "report.html").read_text()
    pictures = {path.stem for path in (out / "plots").iterdir()}
    assert pictures >= PICTURES
    assert page.count("data:image/png;base64,") == len(pictures)
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert "<script" not in page
    assert "<h2>Figures beside their targets</h2>" in page
    assert {"subgroups.csv", "labels_full.csv", "shift.csv"} <= {path.name for path in (out / "tables").iterdir()}


def test_a_bundle_without_heads_and_an_unknown_fold_are_refused_in_one_line(
    folder: Path, bundle: Bundle, toy_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(bundle.path, bare, ignore=shutil.ignore_patterns("prediction"))
    from mmecg.bundle import write_manifest

    write_manifest(bare)
    out = tmp_path / "out"
    for fold, path, message in ((9, bare, "has no prediction heads"), (7, bundle.path, "fold 7 has no record")):
        arguments = ["--data", folder, "--fold", fold, "--bundle", path, "--out", out]
        assert main(["evaluate-prediction", *map(str, arguments)]) in (1, 2)
        printed = capsys.readouterr().err
        assert message in printed
        assert "Traceback" not in printed
    assert not out.exists()


@pytest.fixture(scope="module")
def persistent(parts: list[tuple[PredictionData, tuple[int, ...]]]) -> list[tuple[PredictionData, tuple[int, ...]]]:
    """The same records, with labels that persist from a patient's first recording to the second, and weak features."""
    data = parts[0][0]
    rng = np.random.default_rng(0)
    patient = np.arange(len(data)) // 2
    gold = (rng.random((patient.max() + 1, data.gold.shape[1])) < 0.4)[patient]
    mix = rng.normal(size=(gold.shape[1], 24))
    features = ((gold + rng.normal(0, 1.5, gold.shape)) @ mix).astype(np.float32)
    embedding = features / np.linalg.norm(features, axis=1, keepdims=True)
    made = PredictionData(data.table, data.labels, gold, features, embedding)
    return [(made, folds) for _, folds in parts]


def crossed(honest: HonestScores) -> CrossFit:
    everyone = np.arange(len(honest.data))
    half = (np.arange(len(honest.data)) // 2) % 2
    evidence = tuple(fit_evidence(honest, everyone[half != one], RECIPE) for one in (0, 1))
    return CrossFit(honest, half, evidence)


def test_history_helps_where_labels_persist_and_the_controls_do_not(
    persistent: list[tuple[PredictionData, tuple[int, ...]]],
) -> None:
    fit = crossed(honest_scores(persistent))
    tested = fit.tested(resamples=50, seed=0)
    cases = tested.cases
    assert (cases.priors > 0).sum() == 120
    first = cases.priors == 0
    assert (cases.systems["history"][first] == cases.systems["current"][first]).all()
    assert (tested.category[first] == 0).all()
    assert set(np.unique(tested.category[~first])) == {1, 2}
    rows = {row.key: row for row in history(cases, "/cross_fitted").rows}
    gain = rows["history_gain/macro_auroc/cross_fitted"]
    assert gain.value > 0.05
    for name in ("control_shuffled", "control_other_patient", "control_count_only"):
        assert rows[f"{name}/macro_auroc/cross_fitted"].value < 0.4 * gain.value
    carried = auroc(cases.gold[~first], cases.systems["control_carry_forward"][~first])
    assert np.nanmin(carried) == 1.0  # here the last label is the label
    assert rows["history_labels_only/macro_auroc/cross_fitted"].value > 0.02


def test_the_temporal_split_tests_later_recordings_only(
    persistent: list[tuple[PredictionData, tuple[int, ...]]],
) -> None:
    honest = honest_scores(persistent)
    part = temporal(persistent, honest, crossed(honest), resamples=20, seed=0)
    row = next(row for row in part.rows if row.key == "temporal/all")
    assert (row.n, row.extra["fitted_on"]) == (72, 168)
    assert "1991-04" < row.extra["cut"] < "1991-05"
    assert 0.5 < row.value <= 1
    assert row.baselines.keys() == {"prevalence", "official"}
    features = np.random.default_rng(1).normal(size=(len(honest.data), 24)).astype(np.float32)
    rows, drawn = np.arange(len(features)), np.arange(len(features)) % 2 == 0
    untrained = RandomFeatures(honest, rows, features, drawn, 0)
    again = temporal(persistent, honest, crossed(honest), untrained, resamples=20, seed=0)
    beside = next(row for row in again.rows if row.key == "temporal/all")
    assert beside.value == row.value
    assert 0.3 < beside.baselines["random_encoder"] < row.value - 0.1
    assert np.isfinite(untrained.cross_fitted()).all()
