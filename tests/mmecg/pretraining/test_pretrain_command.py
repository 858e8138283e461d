"""``mmecg pretrain`` on a small folder in PTB-XL layout."""

import json

import pytest

from mmecg.adaptation.backbone import load_backbone
from mmecg.cli import main
from mmecg.cli.pretrain import parse_folds
from mmecg.datasets.parquet import write_studies
from mmecg.datasets.synthetic import synthetic_ecg
from mmecg.errors import InvalidInputError
from mmecg.study import Study

RECIPE = ("--folds", "1-2", "--choose-fold", "3", "--epochs", "1", "--batch-size", "8", "--no-masked")


def test_command_pretrains_and_prints_before_and_after(folder, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["pretrain", "--data", str(folder), "--out", str(out), *RECIPE, "--seed", "3", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["seed"] == 3
    assert printed["before"].keys() == printed["after"].keys() >= {"val_segments_top_1", "probe_auroc"}
    assert load_backbone(printed["path"]).fingerprint == printed["fingerprint"]


def test_a_table_of_studies_is_pretrained_on(tmp_path, capsys):
    studies = [
        Study(study_id=str(number), subject_id=str(number), ecg=synthetic_ecg(seed=number)) for number in range(60)
    ]
    write_studies(studies, tmp_path / "mine.parquet")
    arguments = ["pretrain", "--data", str(tmp_path / "mine.parquet"), "--out", str(tmp_path / "out"), "--no-masked"]
    assert main([*arguments, "--epochs", "1", "--batch-size", "8", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert "probe_auroc" not in printed["after"]
    assert [seen.name for seen in load_backbone(printed["path"]).config.seen] == ["mine"]


def test_test_folds_are_refused(folder, tmp_path, capsys):
    arguments = ["pretrain", "--data", str(folder), "--out", str(tmp_path / "out"), "--folds", "1-2,9"]
    assert main(arguments) == 2
    assert "fold 9 is kept for evaluation" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_encoder_that_is_no_directory_is_refused(folder, tmp_path, capsys):
    arguments = ["pretrain", "--data", str(folder), "--out", str(tmp_path / "out"), *RECIPE]
    assert main([*arguments, "--encoder", str(tmp_path / "nothing")]) == 1
    assert "neither MANIFEST.json nor config.json" in capsys.readouterr().err


@pytest.mark.parametrize(("text", "folds"), [("1-3", (1, 2, 3)), ("5,1-2", (1, 2, 5)), ("4", (4,))])
def test_folds_are_numbers_and_ranges(text, folds):
    assert parse_folds(text) == folds


@pytest.mark.parametrize("text", ["", "a", "1-", "1..3", "1-b"])
def test_other_folds_are_refused(text):
    with pytest.raises(InvalidInputError, match="numbers and ranges"):
        parse_folds(text)
