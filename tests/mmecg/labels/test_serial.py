"""Serial statements against a real corpus: which study is the prior one, and what it says of the statement."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import polars as pl
import pytest
from mmecg_index.corpus import Corpus

from mmecg.labels.assertion import LabelAssertion, Resolution, SerialResolution
from mmecg.labels.mining import LabelMiner
from mmecg.labels.report_miner import ReportMiner
from mmecg.labels.serial import REASONS, RESOLUTION_SCHEMA, SerialResolver, prior_studies
from mmecg.labels.vocabulary import load_vocabulary
from mmecg.labels.wide import codes_of, translate, wide_table
from mmecg.report import Report
from mmecg.study import Study

NOW = datetime(2020, 5, 1, 12)
GONE = "atrial fibrillation no longer evident"
Store = Callable[..., None]


@pytest.fixture(scope="module")
def miner() -> LabelMiner:
    return LabelMiner()


@pytest.fixture
def corpus(tmp_path: Path) -> Iterator[Corpus]:
    with Corpus.create(tmp_path / "corpus", "f" * 64) as corpus:
        yield corpus


@pytest.fixture
def store(corpus: Corpus) -> Store:
    def put(
        name: str, days_ago: float | None, report: str | None = None, *labels: str, subject_id: str = "her"
    ) -> None:
        at = None if days_ago is None else NOW - timedelta(days=days_ago)
        text = Report.from_text(report) if report is not None else None
        given = dict.fromkeys(labels, 0.0)
        study = Study(study_id=name, subject_id=subject_id, acquired_at=at, report=text, labels=given)
        corpus.upsert([study], [{}])

    return put


@pytest.fixture
def resolve(corpus: Corpus, miner: LabelMiner) -> Callable[..., dict[str, SerialResolution]]:
    resolver = SerialResolver(corpus, miner.mine)

    def run(
        text: str, subject_id: str | None = "her", acquired_at: datetime | None = NOW
    ) -> dict[str, SerialResolution]:
        found = resolver.resolve(miner.mine(text), subject_id, acquired_at)
        return {one.finding: one.serial for one in found if one.serial}

    return run


def test_a_prior_study_with_labels(resolve, store) -> None:
    store("before", 2.5, None, "AFIB")
    assert resolve(GONE) == {"AFIB": SerialResolution(Resolution.CONSISTENT, "", False, True, True, "before", 2.5)}


def test_a_prior_study_with_a_report_only(resolve, store) -> None:
    store("before", 1, "Sinus rhythm. No left bundle branch block.")
    found = resolve(f"{GONE}. Left bundle branch block is now present. Right bundle branch block is new.")
    assert found["AFIB"] == SerialResolution(Resolution.CONTRADICTED, "", False, True, False, "before", 1.0)
    assert found["CLBBB"] == SerialResolution(Resolution.CONSISTENT, "", True, False, False, "before", 1.0)
    assert found["CRBBB"] == SerialResolution(Resolution.UNKNOWN, "not_known", True, False, None, "before", 1.0)


def test_labels_come_before_the_report_and_the_report_fills_what_they_leave_open(resolve, store) -> None:
    store("before", 1, "No atrial fibrillation. Left bundle branch block.", "AFIB")
    found = resolve(f"{GONE}. Left bundle branch block is no longer present.")
    assert [found[name].prior_value for name in ("AFIB", "CLBBB")] == [True, True]


def test_a_future_study_is_never_used(resolve, store) -> None:
    store("after", -1, None, "AFIB")
    store("long_after", -400, None, "AFIB")
    assert resolve(GONE)["AFIB"] == SerialResolution(Resolution.NEEDS_PRIOR, "no_prior", False, True)
    store("before", 30, None, "SR")
    assert resolve(GONE)["AFIB"] == SerialResolution(Resolution.CONTRADICTED, "", False, True, False, "before", 30.0)


def test_neither_the_same_time_nor_no_time_nor_another_subject_is_prior(resolve, store) -> None:
    store("same", 0, None, "AFIB")
    store("untimed", None, None, "AFIB")
    store("other", 1, None, "AFIB", subject_id="him")
    assert resolve(GONE)["AFIB"].reason == "no_prior"


def test_the_last_earlier_study_is_the_one(resolve, store) -> None:
    store("old", 100, None, "AFIB")
    store("last", 3, None, "SR")
    assert (resolve(GONE)["AFIB"].prior_study_id, resolve(GONE)["AFIB"].resolution) == ("last", "contradicted")


def test_times_with_a_zone_are_compared_as_everywhere(resolve, store) -> None:
    store("before", 0.02, None, "AFIB")  # half an hour
    same_moment = NOW.replace(tzinfo=UTC).astimezone(timezone(timedelta(hours=-5)))
    assert resolve(GONE, acquired_at=same_moment)["AFIB"].prior_study_id == "before"
    assert resolve(GONE, acquired_at=same_moment - timedelta(hours=1))["AFIB"].reason == "no_prior"


@pytest.mark.parametrize(
    ("subject_id", "acquired_at", "reason"),
    [("nobody", NOW, "no_prior"), (None, NOW, "no_subject"), ("her", None, "no_time")],
)
def test_without_a_prior_study(resolve, store, subject_id, acquired_at, reason) -> None:
    store("before", 1, None, "AFIB")
    found = resolve(GONE, subject_id, acquired_at)["AFIB"]
    assert found == SerialResolution(Resolution.NEEDS_PRIOR, reason, False, True)


@pytest.mark.parametrize(
    ("text", "finding", "expected"),
    [
        ("sinus rhythm has replaced atrial fibrillation", "SR", ("consistent", True, False, False)),
        ("sinus rhythm has replaced atrial fibrillation", "AFIB", ("consistent", False, True, True)),
        ("ST now depressed", "STD_", ("contradicted", True, False, True)),
        ("ST now depressed", "SERIAL_ST_DEPRESSION_NEW", ("contradicted", None, None, None)),
        ("ST less depressed", "STD_", ("consistent", None, True, True)),
        ("ST elevation has replaced ST depression", "STE_", ("not_known", True, False, None)),
        (
            "ST elevation has replaced ST depression",
            "SERIAL_ST_ELEVATION_REPLACED_DEPRESSION",
            ("consistent", None, None, None),
        ),
        ("new infarct", "MI", ("contradicted", True, False, True)),
        ("new anterior infarct", "AMI", ("not_known", True, False, None)),
        ("QT has lengthened", "SERIAL_QT_LENGTHENED", ("needs_measurement", None, None, None)),
        ("no significant change", "SERIAL_NO_CHANGE", ("whole_ecg", None, None, None)),
        ("no new ST depression", "STD_", ("denied", None, None, None)),
        ("recurrence of atrial fibrillation", "AFIB", ("before_not_stated", True, None, True)),
    ],
)
def test_what_an_earlier_study_says(resolve, store, text, finding, expected) -> None:
    store("before", 1, None, "AFIB", "STD_", "IMI")
    found = resolve(text)[finding]
    verdict = found.reason or found.resolution.value
    assert (verdict, found.now, found.before, found.prior_value) == expected
    assert (found.resolution is Resolution.UNKNOWN) == bool(found.reason)
    assert found.reason in {*REASONS, ""}


@pytest.mark.parametrize(
    ("report", "value"),
    [
        ("atrial fibrillation is now present", True),
        ("atrial fibrillation is no longer present", False),
        ("no new atrial fibrillation", None),
        ("possible atrial fibrillation", None),
        ("normal sinus rhythm", False),
        ("", None),
    ],
)
def test_what_the_earlier_report_says_of_its_own_ecg(resolve, store, report, value) -> None:
    store("before", 1, report)
    assert resolve(GONE)["AFIB"].prior_value is value


def test_what_needs_no_prior_stays_as_it_is(corpus, miner) -> None:
    found = miner.mine("left bundle branch block. no atrial fibrillation")
    assert SerialResolver(corpus, miner.mine).resolve(found, "her", NOW) == found


def test_a_subject_of_many_studies(resolve, corpus) -> None:
    studies = [
        Study(study_id=f"s{day:04}", subject_id="her", acquired_at=NOW - timedelta(days=day), labels={"AFIB": 100.0})
        for day in range(-2, 1100)
    ]
    corpus.upsert(studies, [{}] * len(studies))
    assert resolve(GONE)["AFIB"].prior_study_id == "s0001"


def test_a_table_says_what_single_reports_say(corpus, miner, store) -> None:
    reports = {
        "a": "atrial fibrillation",
        "b": f"{GONE}. ST now depressed. left bundle branch block.",
        "c": f"{GONE}. QT has lengthened. no new infarct",
        "alone": GONE,
        "untimed": GONE,
    }
    for number, name in enumerate("abc"):
        store(name, 9 - number, reports[name])
    store("alone", 1, GONE, subject_id="him")
    store("untimed", None, GONE)
    reports["elsewhere"] = GONE
    resolver = SerialResolver(corpus, miner.mine)
    table = pl.DataFrame({"id": list(reports), "report": list(reports.values())})
    assertions = miner.mine_table(table, id_column="id")
    found = resolver.resolve_table(assertions, prior_studies(corpus.metadata()))
    assert found.select(assertions.columns).equals(assertions)
    assert found.filter(~pl.col("needs_prior")).select(RESOLUTION_SCHEMA.names()).null_count().row(0) == (2,) * 7

    def singly(name: str) -> Iterator[LabelAssertion]:
        stored = corpus.get([name], with_signal=False)[0] if name != "elsewhere" else None
        subject, time = (stored.subject_id, stored.acquired_at) if stored else (None, None)
        yield from resolver.resolve(miner.mine(reports[name]), subject, time)

    expected = [
        (name, one.finding, *(getattr(one.serial, field) for field in RESOLUTION_SCHEMA))
        for name in reports
        for one in singly(name)
        if one.serial
    ]
    got = found.filter("needs_prior").select("study_id", "finding", *RESOLUTION_SCHEMA)
    assert got.with_columns(pl.col("reason", "prior_study_id").fill_null("")).rows() == expected
    assert {row[2] for row in expected} == {"consistent", "contradicted", "unknown", "needs_prior"}


CONSISTENT = {"AFIB": False, "STD_": True, "CLBBB": True, "IMI": True}
"""What of the present is said by statements that the earlier report bears out, and by one that needs none."""


def test_labels_say_what_is_now_where_the_earlier_study_bears_it_out(corpus, store, miner) -> None:
    store("before", 1, "Atrial fibrillation. No ST depression. No left bundle branch block.")
    text = f"{GONE}. ST now depressed. New left bundle branch block. Tachycardia is new. Old inferior infarct."
    resolver = SerialResolver(corpus, miner.mine)
    alone, beside = (
        {label.code: label.value for label in ReportMiner().mine_report(text, resolve=resolve).labels}
        for resolve in (tuple, lambda said: resolver.resolve(said, "her", NOW))
    )
    assert {name: beside[name] for name in CONSISTENT} == CONSISTENT
    assert {name for name, value in alone.items() if value is not None} == {"IMI"}
    assert {name for name, value in beside.items() if value is not None} == set(CONSISTENT)
    table = pl.DataFrame({"id": ["now"], "report": [text]})
    ((assertions, rows),) = miner.mine_batches(table, id_column="id")
    seen = pl.DataFrame({"row": [0], "subject_id": ["her"], "acquired_at": [NOW]}, schema_overrides={"row": pl.Int64})
    resolved = resolver.resolve_table(assertions, prior_studies(corpus.metadata(), seen))
    for said, expected in ((assertions, alone), (resolved, beside)):
        wide = wide_table(said, rows, list(expected))
        assert {name: wide[name][0] for name in expected} == expected
    codes = codes_of(load_vocabulary(), miner.findings, "snomed")
    denied = translate(resolved, codes).filter(~pl.col("now"))["finding"].to_list()
    assert denied == ["164889003"], "atrial fibrillation has gone; what it is a kind of may have come otherwise"


def test_prior_studies_are_strictly_earlier_ones_of_the_subject() -> None:
    studies = pl.DataFrame(
        {
            "study_id": ["a1", "a2", "a3", "b1", "a0", "a2b"],
            "subject_id": ["a", "a", "a", "b", "a", "a"],
            "acquired_at": [datetime(2020, 1, day) if day else None for day in (1, 2, 4, 2, None, 2)],
        }
    )
    assert sorted(prior_studies(studies).iter_rows()) == [
        ("a0", None, None, "no_time"),
        ("a1", None, None, "no_prior"),
        ("a2", "a1", 1.0, None),
        ("a2b", "a1", 1.0, None),
        ("a3", "a2b", 2.0, None),
        ("b1", None, None, "no_prior"),
    ]
