"""``mmecg mine-labels``: tables in and out, and what is wrong with tables."""

import gzip
import json
from pathlib import Path

import polars as pl
import pytest

from mmecg.labels.tables import ASSERTION_SCHEMA
from mmecg.report import MAX_TEXT_CHARS

REPORTS = {
    "1": "sinus rhythm. possible left ventricular hypertrophy.",
    "2": "no evidence of atrial fibrillation",
    "3": "",
    "4": "sinusrhythmus linkshypertrophie möglich",
    "5": "vorhofflimmern Edit: LVH 100",
}


@pytest.fixture
def reports(tmp_path: Path) -> Path:
    path = tmp_path / "reports.csv"
    pl.DataFrame({"study_id": list(REPORTS), "report": list(REPORTS.values())}).write_csv(path)
    return path


def test_csv(run, reports, tmp_path):
    out, wide = tmp_path / "out.parquet", tmp_path / "wide.parquet"
    outcome = run("mine-labels", reports, "--out", out, "--wide", wide)
    assert outcome.code == 0, outcome.err
    assert "in 4 of 5 rows" in outcome.out
    assert "1 rows flagged gold_codes" in outcome.err
    found = pl.read_parquet(out)
    assert found.schema == ASSERTION_SCHEMA
    for study_id, start, end, evidence in found.select("study_id", "start", "end", "evidence").iter_rows():
        assert REPORTS[study_id][start:end] == evidence
    said = {(row[0], row[1]): row[2] for row in found.select("study_id", "finding", "status").iter_rows()}
    assert said["1", "SR"] == said["4", "SR"] == said["5", "AFIB"] == "present"
    assert said["1", "LVH"] == said["4", "LVH"] == "possible"
    assert said["2", "AFIB"] == "negated"
    assert ("5", "LVH") not in said
    assert found["probability"].is_between(0, 1).all()
    labels = pl.read_parquet(wide)
    assert labels["study_id"].to_list() == list(REPORTS)
    assert labels["AFIB"].to_list() == [None, False, None, None, True]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.parquet", "reports.csv", "wide.parquet"]


def test_several_processes(run, reports, tmp_path):
    one, several = tmp_path / "one.parquet", tmp_path / "several.parquet"
    assert run("mine-labels", reports, "--out", one, "--jobs", 1).code == 0
    assert run("mine-labels", reports, "--out", several, "--jobs", 2).code == 0
    assert pl.read_parquet(one).equals(pl.read_parquet(several))


@pytest.mark.parametrize("jobs", ["0", "-1", "two"])
def test_number_of_processes_that_is_none(run, reports, tmp_path, jobs):
    outcome = run("mine-labels", reports, "--out", tmp_path / "out.parquet", f"--jobs={jobs}")
    assert outcome.code == 2
    assert "no number of processes" in outcome.err


def test_parquet_with_numbered_columns_and_json(run, tmp_path):
    path, out = tmp_path / "machine.parquet", tmp_path / "out.parquet"
    columns = {f"report_{number}": ["Sinus rhythm" if number == 10 else None] for number in (10, 2)}
    pl.DataFrame({"study_id": [7], **columns}).write_parquet(path)
    outcome = run("mine-labels", path, "--out", out, "--json")
    assert outcome.code == 0, outcome.err
    answer = json.loads(outcome.out)
    assert answer == {
        "rows": 1,
        "rows_with_assertions": 1,
        "assertions": 1,
        "flags": {},
        "findings": {"SR": {"present": 1}},
        "names": {"SR": "sinus rhythm"},
    }
    assert pl.read_parquet(out).select("study_id", "column").row(0) == ("7", "report_10")


@pytest.mark.parametrize(
    ("vocabulary", "code"),
    [
        ("scp", "AFIB"),
        ("snomed", "164889003"),
        ("ecg-fm", "Atrial fibrillation"),
        ("ecg_fm", "Atrial fibrillation"),
    ],
)
def test_codes_of_another_system(run, reports, tmp_path, vocabulary, code):
    out, wide = tmp_path / "out.parquet", tmp_path / "wide.parquet"
    assert run("mine-labels", reports, "--out", out, "--wide", wide, "--vocabulary", vocabulary).code == 0
    found = pl.read_parquet(out).filter(pl.col("finding") == code)
    assert found.select("study_id", "status").rows() == [("2", "negated"), ("5", "present")]
    assert pl.read_parquet(wide)[code].to_list() == [None, False, None, None, True]


def test_summary_says_how_mentions_are_spread(run, tmp_path):
    path = tmp_path / "a.csv"
    texts = ["possible lvh", "lvh", "no lvh", "history of lvh"]
    pl.DataFrame({"report": texts}).write_csv(path)
    outcome = run("mine-labels", path, "--out", tmp_path / "out.parquet")
    (line,) = (line.split() for line in outcome.out.splitlines() if line.split()[:1] == ["LVH"])
    assert line == ["LVH", "left", "ventricular", "hypertrophy", "4", "1", "1", "1", "1"]


def test_summary_says_what_codes_are_called(run, reports, tmp_path):
    outcome = run("mine-labels", reports, "--out", tmp_path / "out.parquet", "--vocabulary", "snomed")
    (line,) = (line.split() for line in outcome.out.splitlines() if line.split()[:1] == ["164889003"])
    assert line == ["164889003", "atrial", "fibrillation", "2", "1", "0", "1", "0"]


def test_gzip_other_columns_and_no_ids(run, tmp_path):
    path, out = tmp_path / "notes.csv.gz", tmp_path / "out.parquet"
    path.write_bytes(gzip.compress(b"note,extra\nsinus rhythm,1\nflutter,2\n"))
    assert run("mine-labels", path, "--out", out, "--text-column", "note").code == 0
    assert pl.read_parquet(out).select("study_id", "column", "finding").row(0) == ("0", "note", "SR")


def test_texts_that_cannot_be_mined_make_exit_code_1(run, tmp_path):
    path, out, wide = tmp_path / "a.csv", tmp_path / "out.parquet", tmp_path / "wide.parquet"
    texts = ["sinus rhythm", "x" * (MAX_TEXT_CHARS + 1), "x" * 1_000_000, "sinus\x00rhythm"]
    pl.DataFrame({"study_id": ["a", "b", "b", "c"], "report": texts}).write_csv(path)
    outcome = run("mine-labels", path, "--out", out, "--wide", wide, "--json")
    assert outcome.code == 1
    assert json.loads(outcome.out)["flags"] == {"control_characters": 1, "duplicate_id": 2, "too_long": 2}
    assert pl.read_parquet(wide)["study_id"].to_list() == ["a", "b", "b", "c"]


def test_wrong_encoding_is_flagged_and_mined(run, tmp_path):
    path, out = tmp_path / "latin.csv", tmp_path / "out.parquet"
    path.write_bytes("study_id,report\n1,linkshypertrophie möglich\n2,sinusrhythmus\n".encode("latin-1"))
    outcome = run("mine-labels", path, "--out", out)
    assert outcome.code == 0
    assert "1 rows flagged encoding" in outcome.err
    assert pl.read_parquet(out)["finding"].to_list() == ["LVH", "SR"]


@pytest.mark.parametrize(
    ("encoding", "separator", "named"), [("cp1252", ";", ";"), ("utf-16", "\t", "tab"), ("utf-8-sig", "\t", "\\t")]
)
def test_encoding_and_separator(run, tmp_path, encoding, separator, named):
    path, out, wide = tmp_path / "a.csv.gz", tmp_path / "out.parquet", tmp_path / "wide.parquet"
    rows = ["study_id,report", "1,linkshypertrophie möglich", '2,"sinusrhythmus\nvänstergrenblock"', "3,"]
    path.write_bytes(gzip.compress("\n".join(rows).replace(",", separator).encode(encoding)))
    outcome = run(
        "mine-labels", path, "--out", out, "--wide", wide, "--encoding", encoding, "--separator", named, "--jobs", 1
    )
    assert outcome.code == 0, outcome.err
    assert pl.read_parquet(out)["evidence"].to_list() == ["linkshypertrophie", "sinusrhythmus", "vänstergrenblock"]
    assert pl.read_parquet(wide)["flags"].to_list() == [[], [], ["empty"]]


def test_bytes_that_the_encoding_lacks_cost_no_row(run, tmp_path):
    path, wide = tmp_path / "a.csv", tmp_path / "wide.parquet"
    path.write_bytes(b"study_id,report\n1,sinusrhythmus \xff\n2,flutter\n")
    outcome = run("mine-labels", path, "--out", tmp_path / "out.parquet", "--wide", wide, "--encoding", "ascii")
    assert "1 rows flagged encoding; name the encoding of the table with --encoding" in outcome.err
    assert pl.read_parquet(wide).select("SR", "flags").rows() == [(True, ["encoding"]), (None, [])]


def test_typos_are_mended_on_request(run, tmp_path):
    path, out, mended = tmp_path / "a.csv", tmp_path / "out.parquet", tmp_path / "mended.parquet"
    path.write_text("report\n" + "atrial fibrillation\n" * 20 + "atrial fibrilaltion\n")
    assert run("mine-labels", path, "--out", out).code == 0
    outcome = run("mine-labels", path, "--out", mended, "--mend-typos")
    assert outcome.code == 0
    assert "1 typing errors" in outcome.err
    assert pl.read_parquet(out).height == 20
    assert pl.read_parquet(mended)["evidence"].to_list() == ["atrial fibrillation"] * 20 + ["atrial fibrilaltion"]


def test_table_of_no_rows(run, tmp_path):
    path, out, wide = tmp_path / "a.csv", tmp_path / "out.parquet", tmp_path / "wide.parquet"
    path.write_text("study_id,report\n")
    assert run("mine-labels", path, "--out", out, "--wide", wide).code == 0
    assert pl.read_parquet(out).height == pl.read_parquet(wide).height == 0


def test_prior_study_is_looked_up_in_the_corpus(run, corpus, tmp_path):
    path, out = tmp_path / "a.csv", tmp_path / "out.parquet"
    text = "sinus rhythm has replaced atrial fibrillation"
    pl.DataFrame({"study_id": ["study-3", "elsewhere"], "report": [text] * 2}).write_csv(path)
    outcome = run("mine-labels", path, "--out", out, "--corpus", corpus)
    assert outcome.code == 0, outcome.err
    assert "2 serial statements: needs_prior" in outcome.err
    found = pl.read_parquet(out)
    columns = ("study_id", "finding", "change", "resolution", "reason", "now", "prior_value", "prior_study_id")
    assert found.select(*columns, "days_since_prior").rows() == [
        ("study-3", "SR", "appeared", "contradicted", None, True, True, "study-2", 1.0),  # sinus rhythm before, too
        ("study-3", "AFIB", "disappeared", "contradicted", None, False, False, "study-2", 1.0),
        ("elsewhere", "SR", "appeared", "needs_prior", "no_subject", True, None, None, None),
        ("elsewhere", "AFIB", "disappeared", "needs_prior", "no_subject", False, None, None, None),
    ]


def test_prior_study_of_rows_that_the_corpus_lacks(run, corpus, tmp_path):
    """Subject and time stand in the table; what the corpus knows of a study comes first; never a later study."""
    path, out, wide = tmp_path / "a.csv", tmp_path / "out.parquet", tmp_path / "wide.parquet"
    rows = {
        "new": ("subject-1", "1990-01-04 12:00"),
        "zoned": ("subject-1", "1990-01-05T01:00+01:00"),
        "same moment": ("subject-1", "1990-01-03T00:00"),
        "study-3": ("subject-9", "2030-01-01"),
        "untimed": ("subject-1", "yesterday"),
        "nobody": ("", "1990-01-05"),
        "twice": ("subject-1", "1990-01-04 12:00"),
    }
    ids = [*rows, "twice"]
    subjects, times = zip(*(rows[name] for name in rows), strict=True)
    text = "sinus rhythm has replaced atrial fibrillation"
    table = {"study_id": ids, "who": [*subjects, "subject-0"], "at": [*times, "1990-01-03"], "report": [text] * 8}
    pl.DataFrame(table).with_columns(pl.col("who").replace("", None)).write_csv(path)
    named = ("--subject-column", "who", "--time-column", "at")
    outcome = run("mine-labels", path, "--out", out, "--wide", wide, "--corpus", corpus, *named)
    assert outcome.code == 0, outcome.err
    found = pl.read_parquet(out).filter(pl.col("finding") == "AFIB")
    assert found.select("study_id", "resolution", "reason", "prior_study_id", "days_since_prior").rows() == [
        ("new", "consistent", None, "study-3", 0.5),
        ("zoned", "consistent", None, "study-3", 1.0),
        ("same moment", "needs_prior", "no_prior", None, None),
        ("study-3", "contradicted", None, "study-2", 1.0),
        ("untimed", "needs_prior", "no_time", None, None),
        ("nobody", "needs_prior", "no_subject", None, None),
        ("twice", "consistent", None, "study-3", 0.5),
        ("twice", "consistent", None, "study-1", 1.0),
    ]
    assert pl.read_parquet(wide)["study_id"].to_list() == ids


def test_subject_without_time(run, reports, corpus, tmp_path):
    outcome = run("mine-labels", reports, "--out", tmp_path / "o", "--corpus", corpus, "--subject-column", "study_id")
    assert "--subject-column came alone, expected subject and time of each row; add --time-column" in outcome.error


def test_summary_counts_serial_statements(run, corpus, tmp_path):
    path, out = tmp_path / "a.csv", tmp_path / "out.parquet"
    text = "atrial fibrillation has replaced sinus rhythm. qt has lengthened"
    pl.DataFrame({"study_id": ["study-2", "study-3"], "report": [text] * 2}).write_csv(path)
    outcome = run("mine-labels", path, "--out", out, "--corpus", corpus, "--json")
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["serial"] == {"consistent": 2, "needs_prior": 3, "unknown": 1}


BAD_FILES = {
    "missing.csv": (None, "No such file"),
    "empty.csv": (b"", "is empty"),
    "binary.csv": (bytes(range(256)) * 8, "name its encoding with --encoding, such as utf-16"),
    "utf16.csv": ("study_id,report\n1,a\n".encode("utf-16"), "convert it to UTF-8"),
    "semicolons.csv": (
        b"study_id;report\n1;a\n",
        "found study_id;report; name what separates the columns with --separator ';'",
    ),
    "tabs.csv": (
        b"study_id\treport\n1\ta\n",
        "found study_id\\treport; name what separates the columns with --separator tab",
    ),
    "quote.csv": (b'study_id,report\n1,"a\n2,b\n', "not closed"),
    "reports.txt": (b"report\nx\n", "unknown ending"),
    "fake.parquet": (b"PAR1 this is none", "cannot be read"),
    "ragged.csv": (b"study_id,report\n1,a,b,c,d\n", "text with commas but without quotation marks"),
    "columns.csv": (b"a,b\n1,2\n", "found a, b; name the text with --text-column"),
    "two_reports.csv": (b"study_id,report,report\n1,a,b\n", "more than one column 'report', expected one; rename them"),
    "two_ids.csv": (b"study_id,study_id,report\n1,2,a\n", "more than one column 'study_id'"),
    "two_parts.csv": (b"report_0,report_1,report_1\n1,2,a\n", "more than one column 'report_1'"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files(run, tmp_path, name):
    content, message = BAD_FILES[name]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    outcome = run("mine-labels", tmp_path / name, "--out", tmp_path / "out.parquet")
    assert outcome.code == 2
    assert message in outcome.error
    assert outcome.error.isprintable()
    assert not (tmp_path / "out.parquet").exists()
    assert not list(tmp_path.glob(".mine-labels-*"))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--text-column", "notes"], "no column 'notes', expected one of study_id, report"),
        (["--id-column", "id"], "no column 'id'"),
        (["--vocabulary", "icd"], "invalid choice"),
        (["--encoding", "latin-99"], "'latin-99' is no known encoding"),
        (["--encoding", "hex"], "'hex' is no known encoding"),
        (["--separator", ";;"], "';;' is no separator, expected one ASCII character"),
        (["--subject-column", "report"], "--subject-column came without --corpus"),
        (["--wide", "nowhere/wide.parquet"], "its folder does not exist"),
        (["--wide", "out.parquet"], "--wide is the file of --out"),
    ],
)
def test_bad_arguments(run, reports, tmp_path, monkeypatch, more, message):
    monkeypatch.chdir(tmp_path)
    outcome = run("mine-labels", reports, "--out", tmp_path / "out.parquet", *more)
    assert outcome.code == 2
    assert message in outcome.error


def test_columns_that_are_not_read_may_share_a_name(run, tmp_path):
    path = tmp_path / "reports.csv"
    path.write_text("study_id,report,note,note,,\n1,sinus rhythm,a,b,,\n")
    assert run("mine-labels", path, "--out", tmp_path / "out.parquet").code == 0


def test_nothing_is_overwritten(run, reports, tmp_path):
    out = tmp_path / "out.parquet"
    out.write_text("precious")
    assert "exists already" in run("mine-labels", reports, "--out", out).error
    assert out.read_text() == "precious"
