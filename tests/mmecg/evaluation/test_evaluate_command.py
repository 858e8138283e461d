from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmecg.cli import main
from mmecg.evaluation.results import REQUIRED_ROWS


def test_the_command_writes_the_files_and_prints_the_metrics(
    toy_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    code = main(
        ["evaluate", "--data", str(toy_folder), "--fold", "9", "--out", str(out), "--resamples", "20", "--json"]
    )
    printed = json.loads(capsys.readouterr().out)
    assert code in (0, 1)  # 1 if the shipped model finds nothing above chance in toy signals
    assert (code == 0) == all(row["value"] is not None for row in printed.values())
    assert set(REQUIRED_ROWS) <= printed.keys()
    assert json.loads((out / "metrics.json").read_text()) == printed
    seen = "The bundle saw folds 1, 2, 3, 4, 5, 6, 7, 8 of PTB-XL in training (its model card), not fold 9."
    assert {row["contamination"] for row in printed.values()} == {seen}
    assert seen in json.loads((out / "run.json").read_text())["notes"]
    assert {path.name for path in out.iterdir()} == {
        "metrics.json", "run.json", "per_label.parquet", "per_label.csv", "report.md",
        "per_label_superclass.png", "per_label_all.png", "baselines.png",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--fold", "7"], 2, "fold 7 has no record"),
        (["--fold", "9", "--bundle", "nowhere"], 1, "bundle nowhere has no MANIFEST.json"),
        (["--fold", "9", "--data", "nowhere"], 2, "ptbxl_database.csv cannot be read"),
    ],
)
def test_errors_are_one_line_and_write_nothing(
    toy_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, message: str
) -> None:
    out = tmp_path / "out"
    assert main(["evaluate", "--data", str(toy_folder), "--out", str(out), *arguments]) == code
    printed = capsys.readouterr().err
    assert message in printed
    assert "Traceback" not in printed
    assert not out.exists()
