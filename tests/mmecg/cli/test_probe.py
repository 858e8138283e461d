"""``mmecg probe`` and ``mmecg finetune`` on studies with a label table of their own."""

from __future__ import annotations

import csv
import json

import pytest

from mmecg.adaptation.backbone import save_backbone, small_backbone
from mmecg.datasets.parquet import write_studies
from mmecg.datasets.synthetic import synthetic_ecg
from mmecg.study import Study


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """An untrained encoder, 110 studies, and which of them fibrillate: folds 1 to 3, one study a patient."""
    root = tmp_path_factory.mktemp("labelled")
    save_backbone(root / "encoder", small_backbone())
    rows, studies = [], []
    for number in range(110):
        fibrillates = number % 2 == 1
        ecg = synthetic_ecg(
            rhythm="atrial_fibrillation" if fibrillates else "sinus", duration_s=4, seed=number, noise_mv=0.03
        )
        studies.append(Study(study_id=f"s{number}", subject_id=f"p{number}", ecg=ecg))
        rows.append({"study_id": f"s{number}", "fold": 1 + (number >= 50) + (number >= 80), "AFIB": int(fibrillates)})
    write_studies(studies, root / "studies.parquet")
    with (root / "labels.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return root


def arguments(command, root, out):
    return [command, root / "encoder", "--data", root / "studies.parquet", "--labels", root / "labels.csv",
            "--fold", "3", "--resamples", "50", "--out", out]  # fmt: skip


def test_probe_prints_the_table_and_writes_the_figures(run, labelled, tmp_path):
    done = run(*arguments("probe", labelled, tmp_path / "out"))
    assert done.code == 0, done.err
    assert "random encoder" in done.out
    assert "prevalence" in done.out
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text("utf-8"))
    assert metrics["linear_probe/labels/auroc"]["value"] > 0.8
    assert metrics["linear_probe/labels/auroc"]["n"] == 30
    assert (tmp_path / "out" / "report.md").is_file()


def test_probe_as_json_with_fresh_weights(run, labelled, tmp_path):
    done = run(*arguments("probe", labelled, tmp_path / "out"), "--random", "--seed", "4", "--json")
    row = json.loads(done.out)["linear_probe/labels/auroc"]
    assert row["seed"] == 4
    assert set(row["baselines"]) == {"prevalence"}


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--fold", "2"], "to fit on"),
        (["--fraction", "1.5"], "fraction is 1.5"),
        (["--prior", "AFIB=often"], "prior of AFIB is not a number"),
        (["--labels", "nowhere.csv"], "label table nowhere.csv cannot be read"),
    ],
)
def test_probe_refuses_what_cannot_be(run, labelled, tmp_path, extra, message):
    done = run(*arguments("probe", labelled, tmp_path / "out"), *extra)
    assert done.code == 2
    assert message in done.error


def test_finetune_writes_a_classifier_that_is_an_encoder_too(run, labelled, tmp_path):
    out = tmp_path / "out"
    done = run(*arguments("finetune", labelled, out), "--method", "lora", "--epochs", "1", "--class-weights")
    assert done.code == 0, done.err
    assert "linear probe of the encoder" in done.out
    assert "epoch 1" in done.err
    metrics = json.loads((out / "metrics.json").read_text("utf-8"))
    assert metrics["finetune_lora/labels/auroc"]["value"] > 0.8
    again = run("probe", out, *arguments("probe", labelled, tmp_path / "again")[2:])
    assert again.code == 0, again.err
    refused = run(*arguments("finetune", labelled, out))
    assert (refused.code, "holds an encoder already" in refused.error) == (2, True)


def test_probe_needs_labels_beside_other_data(run, labelled, tmp_path):
    done = run(
        "probe", labelled / "encoder", "--data", labelled / "studies.parquet", "--fold", 3, "--out", tmp_path / "o"
    )
    assert done.code == 2
    assert "give --labels TABLE" in done.error
