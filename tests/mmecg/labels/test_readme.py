"""The README's examples are what the code says today."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mmecg.assets import DEMO_CORPUS
from mmecg.datasets.parquet import read_studies

README = (Path(__file__).parents[3] / "mmecg" / "labels" / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.search(r"\n## Examples\n.*?```python\n(?P<code>.*?)```\n.*?\|---\|\n(?P<rows>.*?)\n\n", README, re.DOTALL)
COLUMNS = ("study", "span", "words", "finding", "status", "cue", "probability", "more")


def table(text: str) -> list[dict[str, str]]:
    rows = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in text.strip().splitlines()]
    return [dict(zip(COLUMNS, row, strict=True)) for row in rows]


def test_examples_are_what_their_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    assert EXAMPLES
    exec(EXAMPLES["code"], {})
    printed, written = table(capsys.readouterr().out), table(EXAMPLES["rows"])
    assert len(written) == 10
    for now, then in zip(printed, written, strict=True):
        # refitted weights may move a probability a little
        assert float(now.pop("probability")) == pytest.approx(float(then.pop("probability")), abs=0.05)
        assert now == then, "run the command of the section Examples and paste what it prints"


def test_examples_show_raw_words_and_many_statuses() -> None:
    assert EXAMPLES
    written = table(EXAMPLES["rows"])
    raws = {study.study_id: study.report.raw for study in read_studies(DEMO_CORPUS, with_signal=False) if study.report}
    for row in written:
        start, end = map(int, row["span"].split("–"))
        assert " ".join(raws[row["study"]][start:end].split()) == row["words"]
    assert {row["status"] for row in written} >= {
        "present", "probable", "possible", "cannot_rule_out", "alternative", "serial",
    }  # fmt: skip
