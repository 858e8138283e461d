"""Texts and tables through the miner: the same answer by every way, with offsets into the raw text, and no row lost."""

from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmecg.datasets.ptb_xl import read_ptb_xl_table
from mmecg.errors import InvalidInputError, ReportError
from mmecg.labels import mining
from mmecg.labels.assertion import LabelAssertion
from mmecg.labels.mining import LabelMiner
from mmecg.labels.normalise import blank_masked
from mmecg.labels.report_rows import FLAGS, ROW_SCHEMA
from mmecg.labels.tables import ASSERTION_SCHEMA
from mmecg.labels.wide import wide_table
from mmecg.report import MAX_TEXT_CHARS

PTB_XL = Path(__file__).parents[4] / "shared" / "data" / "ptbxl"
WORDS = [
    "LVH",
    "rvh",
    "sinus rhythm",
    "infarct",
    "inferior",
    "mÖglich",
    "linkshypertrophie",
    "possible",
    "no",
    "or",
    "and",
    "old",
    "age undet.",
    "age undet",
    "v.a.",
    "alter unbest.",
    "but",
    "4.46",
    "unbestätigter bericht",
    "Edit: LVH 50",
    "<b>",
    "ä",
    "中",
    "x.y",
    "|",
    "   ",
    ". ",
    ".",
    "; ",
    ",",
    "\n",
    "\r\n",
    "infarkt",
    "164",
    "98765.4",
    "qrs",
    "QRS120ms",
    "patient's",
    "vorderwandinfarkt",
]
LEAKS = ["Edit: LVH 50, (AFIB 100)", "EDIT : rvh", "4.46      unbestÄtigter bericht Edit: sinus rhythm"]
REPORTS = st.lists(st.sampled_from(WORDS), max_size=14).map(" ".join)


def as_rows(text: str, found: tuple[LabelAssertion, ...]) -> list[tuple]:
    return [
        (
            a.finding,
            a.status.value,
            a.start,
            a.end,
            text[a.start : a.end],
            a.rule,
            a.cue,
            a.cue_start,
            a.cue_end,
            a.age_status and a.age_status.value,
            a.language,
            a.needs_prior,
            "|".join(a.alternatives),
        )
        for a in found
    ]


COMPARED = (
    "finding",
    "status",
    "start",
    "end",
    "evidence",
    "rule",
    "cue",
    "cue_start",
    "cue_end",
    "age_status",
    "language",
    "needs_prior",
    "alternatives",
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(st.lists(REPORTS, min_size=1, max_size=6))
def test_a_table_says_what_each_text_says(tiny_rules: Path, texts: list[str]) -> None:
    miner, alone = (LabelMiner(("de", "en"), folder=tiny_rules) for _ in range(2))
    found = miner.mine_table(pl.DataFrame({"report": texts}))
    expected = [(row, *values) for row, text in enumerate(texts) for values in as_rows(text, alone.mine(text))]
    assert found.select("row", *COMPARED).rows() == expected
    for row, start, end, evidence in found.select("row", "start", "end", "evidence").iter_rows():
        assert texts[row].encode("utf-32-le")[4 * start : 4 * end].decode("utf-32-le") == evidence


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(
    REPORTS,
    st.sampled_from(LEAKS),
)
def test_nothing_is_mined_from_leaked_codes(tiny_rules: Path, text: str, leak: str) -> None:
    miner = LabelMiner(("de", "en"), folder=tiny_rules)
    assert all(item.end <= len(text) and item.cue_end <= len(text) for item in miner.mine(f"{text} {leak}"))


def test_mixed_languages(miner: LabelMiner) -> None:
    found = miner.mine("Sinusrhythmus mit Hinterwandinfarkt. No atrial fibrillation. Linkshypertrophie möglich.")
    assert [(item.finding, item.language, item.status.value) for item in found] == [
        ("SR", "de", "present"),
        ("MI", "de", "present"),
        ("AFIB", "en", "negated"),
        ("LVH", "de", "possible"),
    ]


@pytest.mark.parametrize("limit", [0, 10**8])
def test_what_is_remembered_is_bounded_and_changes_nothing(
    miner: LabelMiner, tiny_rules: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    texts = ["possible LVH", "LVH", "no RVH", "LVH or RVH", "old infarct", "inferior infarct", "LVH and RVH"]
    texts = [f"{text} {number}" for text in texts for number in (164, 171, 83)]
    expected = [miner.mine(text) for text in texts]
    monkeypatch.setattr(mining, "SENTENCE_BYTES", limit)
    monkeypatch.setattr(mining, "PIECE_BYTES", limit)
    bounded = LabelMiner(("de", "en"), folder=tiny_rules)
    assert [bounded.mine(text) for text in texts] == expected
    held = set()
    for table in [pl.DataFrame({"report": [text]}) for text in texts * 2]:
        assert bounded.mine_table(table).height == len(expected[texts.index(table["report"][0])])
        held.add(len(bounded._pieces))
    assert max(held) == (2 * 7 if limit else 1)  # three-digit and two-digit numbers


def test_tables_say_what_blocks_say() -> None:
    if not PTB_XL.is_dir():
        pytest.skip("../shared/data/ptbxl is not here")
    reports = read_ptb_xl_table(PTB_XL).filter(pl.col("strat_fold") <= 8)["report_raw"].drop_nulls().unique().sort()
    texts = [blank_masked(text) for text in reports]
    miner, alone = LabelMiner(), LabelMiner()
    found = pl.concat(part for part, _ in miner.mine_batches(reports.alias("report").to_frame(), batch_rows=3_000))
    mined = alone.mine_block(texts)
    spans = ("start", "end", "cue_start", "cue_end")
    assert found["row"].to_list() == mined.text.tolist()
    assert found.select(spans).rows() == list(zip(*(getattr(mined, name).tolist() for name in spans), strict=True))
    assert found["finding"].to_list() == [alone.findings[number] for number in mined.finding]
    assert found["rule"].to_list() == [alone.rules[number] for number in mined.rule]
    said = [alone.statements[number] for number in mined.statement]
    assert found.select("status", "cue", "language").rows() == [(one.status, one.cue, one.language) for one in said]
    assert found["change"].to_list() == [alone.changes[number] if number >= 0 else None for number in mined.change]
    evidence = zip(found["row"], found["start"], found["end"], strict=True)
    assert found["evidence"].to_list() == [reports[row][start:end] for row, start, end in evidence]


def test_shape_that_was_seen_with_another_finding(miner: LabelMiner) -> None:
    (first,), (second,) = miner.mine("possible LVH"), miner.mine("possible atrial fibrillation")
    assert (first.finding, first.rule) == ("LVH", "en/LVH/2")
    assert (second.finding, second.rule, second.status) == ("AFIB", "en/AFIB/1", first.status)


@pytest.mark.parametrize("text", ["x" * (MAX_TEXT_CHARS + 1), "a\x00b", "a\ud800"])
def test_one_text_that_is_unusable(miner: LabelMiner, text: str) -> None:
    with pytest.raises(ReportError):
        miner.mine(text)


BAD = {
    "fine": ("sinus rhythm", [], 1),
    "null": (None, ["empty"], 0),
    "blank": (" \n\t", ["empty"], 0),
    "silent": ("nothing to see", [], 0),
    "huge": ("sinus rhythm. " * 71_500, ["too_long"], 0),
    "control": ("sinus rhythm \x00\x01", ["control_characters"], 0),
    "wrong encoding": ("linkshypertrophie m\ufffdglich", ["encoding"], 1),
    "html": ("<p class='x'>sinus&nbsp;rhythm</p>", ["markup"], 1),
    "cut": ("sinus rhythm. " + "x" * 240, ["truncated"], 1),
    "leak": ("sinus rhythm Edit: LVH 50", ["gold_codes"], 1),
    "twice": ("LVH", ["duplicate_id"], 1),
    "twice ": ("RVH", [], 1),
}


@pytest.mark.parametrize("batch_rows", [1, 4, 1000])
def test_every_row_comes_out_flagged(miner: LabelMiner, batch_rows: int) -> None:
    ids = [*BAD, "twice", None, " ", " "]
    texts = [*(text for text, _, _ in BAD.values()), *["infarct"] * 4]
    table = pl.DataFrame({"id": ids, "report": texts})
    parts = list(miner.mine_batches(table, id_column="id", batch_rows=batch_rows))
    assertions, rows = (pl.concat(part) for part in zip(*parts, strict=True))
    assert rows["row"].to_list() == list(range(len(ids)))
    assert rows["study_id"].to_list() == ids
    assert rows.schema == ROW_SCHEMA
    assert assertions.schema == ASSERTION_SCHEMA
    assert rows["flags"].to_list() == [*(flags for _, flags, _ in BAD.values()), ["duplicate_id"], *[["no_id"]] * 3]
    assert set(rows["flags"].explode().drop_nulls()) <= set(FLAGS)
    counts = [assertions.filter(pl.col("row") == row).height for row in range(len(ids))]
    assert counts == [*(count for _, _, count in BAD.values()), *[1] * 4]
    wide = wide_table(assertions, rows, ["SR", "MI"])
    assert wide.select("row", "study_id", "flags").equals(rows)


@pytest.mark.parametrize(
    ("column", "flags"),
    [
        (pl.Series([1, None]), [["not_text"], ["empty"]]),
        (pl.Series([b"sinus rhythm", b"\xff"]), [[], ["not_text"]]),
        (pl.Series([None, None]), [["empty"], ["empty"]]),
        (pl.Series(["sinus rhythm", "x"], dtype=pl.Categorical), [[], []]),
        (pl.Series([], dtype=pl.String), []),
    ],
)
def test_columns_of_other_types(miner: LabelMiner, column: pl.Series, flags: list[list[str]]) -> None:
    parts = list(miner.mine_batches(column.alias("report").to_frame()))
    assert [flag for _, rows in parts for flag in rows["flags"].to_list()] == flags


def test_columns_are_texts_of_their_own(miner: LabelMiner) -> None:
    table = pl.DataFrame({"report_0": ["no", "LVH"], "report_1": ["LVH", None], "id": [7, 8]})
    found = miner.mine_table(table, ["report_0", "report_1"], id_column="id")
    assert found.select("study_id", "column", "finding", "status").rows() == [
        ("7", "report_1", "LVH", "present"),
        ("8", "report_0", "LVH", "present"),
    ]


@pytest.mark.parametrize(
    ("columns", "id_column", "message"),
    [
        (["text"], None, "no column 'text'"),
        (["report"], "id", "no column 'id'"),
        ([], None, "none or repeated"),
        (["report"] * 2, None, "repeated"),
    ],
)
def test_columns_that_are_not_there(miner: LabelMiner, columns: list[str], id_column: str | None, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        miner.mine_table(pl.DataFrame({"report": ["x"]}), columns, id_column=id_column)


def test_probabilities_are_asked_for_each_way_of_speaking(miner: LabelMiner) -> None:
    asked: list[tuple[str, str]] = []

    def probability(assertion: LabelAssertion) -> float:
        asked.append((assertion.finding, assertion.cue))
        return 0.25 if assertion.cue else 0.75

    table = pl.DataFrame({"report": ["LVH", "possible LVH", "LVH.", "LVH and SR"]})
    found = miner.mine_table(table, probability=probability)
    assert found["probability"].to_list() == [0.75, 0.25, 0.75, 0.75]
    assert sorted(asked) == [("LVH", ""), ("LVH", "en/possible")]


def test_wide_table(miner: LabelMiner) -> None:
    texts = ["LVH. possible infarct", "no LVH", "no LVH. LVH", "possible LVH. no LVH", "", "probable LVH"]
    ((assertions, rows),) = miner.mine_batches(
        pl.DataFrame({"report": texts}), probability=lambda item: len(item.cue) / 100
    )
    wide = wide_table(assertions, rows, ["LVH", "MI", "RVH"])
    assert wide["LVH"].to_list() == [True, False, True, None, None, True]
    assert wide["LVH__probability"].to_list() == [0.0, 0.05, 0.05, 0.11, None, 0.11]
    assert wide["MI"].to_list() == [None] * 6
    assert wide["MI__probability"].to_list() == [0.11, *[None] * 5]
    assert wide["RVH"].null_count() == len(texts)
