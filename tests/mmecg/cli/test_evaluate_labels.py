from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

TABLE = """ecg_id,patient_id,age,sex,report,scp_codes,strat_fold,filename_lr
1,1,50,0,sinus rhythm. normal ecg,"{'SR': 0.0, 'NORM': 100.0}",9,records100/1
2,2,60,1,atrial fibrillation,"{'AFIB': 0.0}",9,records100/2
3,3,61,1,sinus rhythm. possible left ventricular hypertrophy,"{'SR': 0.0, 'LVH': 50.0}",9,records100/3
"""
STATEMENTS = """,description,diagnostic,form,rhythm,diagnostic_class,diagnostic_subclass
SR,sinus rhythm,,,1.0,,
NORM,normal ECG,1.0,,,NORM,NORM
AFIB,atrial fibrillation,,,1.0,,
LVH,left ventricular hypertrophy,1.0,,,HYP,LVH
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "ptbxl_database.csv").write_text(TABLE)
    (tmp_path / "scp_statements.csv").write_text(STATEMENTS)
    return tmp_path


def test_evaluate_labels_writes_its_files_and_names_what_is_missing(folder: Path, run: Callable) -> None:
    out = folder / "out"
    done = run("evaluate-labels", "--data", folder, "--fold", 9, "--out", out, "--resamples", 10, "--json")
    assert done.code == 1  # no signals: rows are missing
    printed = json.loads(done.out)
    assert json.loads((out / "metrics.json").read_text()) == printed
    assert {path.name for path in out.iterdir()} == {
        "metrics.json", "run.json", "per_label.parquet", "per_label.csv", "report.md",
    }  # fmt: skip
    assert printed["text/macro_f1_20"]["value"] == pytest.approx(1.0)
    assert printed["text_ecg/macro_f1_20"]["value"] is None
    assert "rows that need signals were not computed" in done.err
    report = (out / "report.md").read_text()
    assert "| text/macro_f1_20 |" in report
    assert "0 of 136 implications could be tested on gold" in report


def test_evaluate_labels_says_once_why_rows_are_missing(folder: Path, run: Callable) -> None:
    done = run("evaluate-labels", "--data", folder, "--fold", 9, "--out", folder / "out", "--resamples", 10)
    assert "text/macro_f1_20" in done.out
    assert "text_ecg/macro_f1_20" not in done.out
    (line,) = (line for line in done.err.splitlines() if "text_ecg/macro_f1_20" in line)
    assert "disagreement/precision_at_100" in line
    assert line.count("expected records100/") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nowhere", "--fold", "9"], "ptbxl_database.csv"),
        (["--fold", "3"], "fold 3 has no record"),
    ],
)
def test_evaluate_labels_refuses_in_one_line(folder: Path, run: Callable, arguments: list[str], message: str) -> None:
    done = run("evaluate-labels", "--data", folder, "--out", folder / "out", *arguments)
    assert done.code == 2
    assert message in done.error
    assert not (folder / "out").exists()


def test_review_labels_writes_a_page_and_a_table(table: Path, tmp_path: Path, run: Callable) -> None:
    out = tmp_path / "review"
    done = run("review-labels", "--studies", table, "--labels", "AFIB,SR,PVC", "--top", 2, "--out", out, "--json")
    assert done.code == 0, done.err
    printed = json.loads(done.out)
    queue = pl.read_parquet(out / "queue.parquet")
    assert printed["studies"] == 24
    assert queue.height == printed["disagreements"]
    assert set(queue["label"].unique()) <= {"AFIB", "SR", "PVC"}
    assert queue.select("coding_habit", -pl.col("suspicion")).rows() == sorted(
        queue.select("coding_habit", -pl.col("suspicion")).rows()
    ), "most doubtful first, coding habits last"
    page = (out / "review.html").read_text()
    assert page.count("<section>") == min(2, queue.height)
    assert page.count("data:image/png;base64,iVBOR") == page.count("<section>")


def test_review_labels_shows_each_ecg_beside_its_report_though_an_id_occurs_twice(
    table: Path, tmp_path: Path, run: Callable
) -> None:
    studies = pl.read_parquet(table)
    arguments = ("--labels", "AFIB,SR,PVC", "--top", 100, "--json")
    assert run("review-labels", "--studies", table, "--out", tmp_path / "a", *arguments).code == 0
    same = tmp_path / "same.parquet"
    studies.with_columns(study_id=pl.lit("7")).write_parquet(same)
    assert run("review-labels", "--studies", same, "--out", tmp_path / "b", *arguments).code == 0
    first, second = ((tmp_path / name / "review.html").read_text() for name in "ab")
    assert "<section>" in first
    assert re.findall('base64,[^"]+', first) == re.findall('base64,[^"]+', second)


@pytest.mark.parametrize("top", [0, -1])
def test_review_labels_refuses_a_page_of_nothing(table: Path, tmp_path: Path, run: Callable, top: int) -> None:
    assert run("review-labels", "--studies", table, "--out", tmp_path / "r", f"--top={top}").code == 2


def test_review_labels_refuses_an_unknown_label_and_a_fold_of_a_table(
    table: Path, tmp_path: Path, run: Callable
) -> None:
    done = run("review-labels", "--studies", table, "--labels", "AFIP", "--out", tmp_path / "r")
    assert (done.code, "label 'AFIP' is unknown" in done.error) == (2, True)
    done = run("review-labels", "--studies", table, "--fold", 9, "--out", tmp_path / "r")
    assert (done.code, "--fold does not apply" in done.error) == (2, True)
