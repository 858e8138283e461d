import json

import polars as pl
import pytest

from mmecg.cli import main
from mmecg.experiments.catalogue import NAMES, experiment
from mmecg.experiments.runner import run_experiment, save


def quiet(what, done, total):
    pass


@pytest.fixture(scope="module")
def finished(options):
    return run_experiment("linear-probe", options, quiet)


def test_every_experiment_is_there_and_says_what_it_asks_and_does():
    for name in NAMES:
        found = experiment(name)
        assert found.name == name
        assert found.asked.endswith("?")
        assert len(found.protocol) > 100


def test_linear_probe_finds_what_can_be_seen(finished):
    metrics = finished.metrics()
    row = metrics["toy/superclass"]
    assert row["low"] <= row["value"] <= row["high"]
    assert row["value"] > 0.9  # the amplitude tells LVH
    assert set(row["baselines"]) == {"random_encoder", "prevalence", "measured"}
    assert set(finished.outcome.headline) <= set(metrics)
    assert metrics["toy/superclass/gain"]["excludes_zero"] in (True, False)


def test_the_run_says_folds_seed_time_and_memory(finished):
    run = finished.run
    assert (run["fold"], run["seed"]) == (9, 0)
    assert (run["fit_recordings"], run["choose_recordings"], run["test_recordings"]) == (64, 32, 32)
    assert run["cpu_minutes"] > 0
    assert run["peak_memory_mb"] > 50
    assert "not known to have seen PTB-XL" in run["supervision"]


def test_files_hold_what_was_found(finished, tmp_path):
    save(finished, tmp_path / "out")
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics == json.loads(json.dumps(finished.metrics()))
    table = pl.read_parquet(tmp_path / "out" / "per_label.parquet")
    assert {"superclass", "all"} == set(table["task"])
    row = (tmp_path / "out" / "row.md").read_text()
    assert row.startswith(
        "| linear-probe | `mmecg experiment linear-probe --data ptb-xl/ --fold 9 --encoder toy --out OUT`"
    )
    assert finished.outcome.sentence in (tmp_path / "out" / "report.md").read_text()


def test_the_command_lists_experiments(capsys):
    assert main(["experiment", "--list", "--json"]) == 0
    assert [one["name"] for one in json.loads(capsys.readouterr().out)] == list(NAMES)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["linear-prob", "--data", "x", "--out", "out"], "did you mean linear-probe"),
        (["linear-probe"], "--data, --out not given"),
    ],
)
def test_the_command_says_what_is_wrong(arguments, expected, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["experiment", *arguments]) == 2
    assert expected in capsys.readouterr().err
