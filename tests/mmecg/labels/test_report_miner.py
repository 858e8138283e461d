"""One report at a time: the same remarks as a table of reports."""

import polars as pl
import pytest

from mmecg.labels.mining import LabelMiner
from mmecg.labels.report_miner import ReportMiner

TEXTS = {
    "sinus rhythm": (),
    " \n": ("empty",),
    "linkshypertrophie m\ufffdglich": ("encoding",),
    "<p>Atrial <b>fibrillation</b></p> Edit: LVH 50": ("gold_codes", "markup"),
    "sinus rhythm " * 19 + "atrial": ("truncated",),
    "qtc < 400 ms, pr > 200 ms": (),
}


@pytest.fixture(scope="module")
def miner() -> ReportMiner:
    return ReportMiner()


@pytest.mark.parametrize("text", TEXTS)
def test_flags_are_those_of_a_table(miner: ReportMiner, text: str) -> None:
    assert miner.mine_report(text).flags == TEXTS[text]
    ((_, rows),) = LabelMiner(("en",)).mine_batches(pl.DataFrame({"report": [text]}), ["report"])
    assert tuple(rows["flags"][0]) == TEXTS[text]


@pytest.mark.parametrize("vocabulary", ["ecg_fm", "ecg-fm"])
def test_a_vocabulary_by_either_spelling(miner: ReportMiner, vocabulary: str) -> None:
    (label,) = miner.mine_report("no atrial fibrillation", vocabulary=vocabulary).labels
    assert (label.code, label.value) == ("Atrial fibrillation", False)


def test_empty_text_says_nothing(miner: ReportMiner) -> None:
    mined = miner.mine_report("")
    assert (mined.assertions, mined.labels, mined.flags) == ((), (), ("empty",))
