from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from mmecg_index import ann, faiss_index
from mmecg_index.corpus import Corpus
from mmecg_index.database import sort_time
from mmecg_index.paging import parse_token, render_token

from mmecg.ecg import Ecg
from mmecg.embedding import MODALITIES, normalise
from mmecg.errors import (
    AlreadyExistsError,
    ConfigError,
    FingerprintMismatchError,
    IndexFormatError,
    NotReadyError,
    QueryError,
    StudyNotFoundError,
    SubjectNotFoundError,
)
from mmecg.exact_index import ExactIndex
from mmecg.report import Report
from mmecg.search import METADATA_SCHEMA, Filter
from mmecg.study import Study
from mmecg.vitals import Vitals

DIM = 8
FINGERPRINT = "a" * 64


def study(number: int, **changes: object) -> Study:
    counts = np.random.default_rng(number).integers(-900, 900, (12, 200))
    values: dict = {
        "study_id": f"s{number}",
        "subject_id": f"p{number // 3}",
        "acquired_at": datetime(2020, 1, 1) + timedelta(days=100 - number),
        "ecg": Ecg.from_array(counts / 1000, sampling_rate_hz=100),
        "report": Report.from_text(["Sinus Rhythm", "Atrial fibrillation"][number % 2]),
        "vitals": Vitals(age_years=20 + number % 60, sex="female"),
        "labels": {"AFIB": 100.0} if number % 2 else {"NORM": 100.0},
    }
    return Study(**(values | changes))


def embedding(number: int, modalities: tuple[str, ...] = MODALITIES) -> dict[str, np.ndarray]:
    random = np.random.default_rng(1000 + number)
    drawn = {modality: normalise(random.standard_normal(DIM)) for modality in MODALITIES}
    return {modality: drawn[modality] for modality in modalities}


@pytest.fixture
def corpus(tmp_path: Path) -> Iterator[Corpus]:
    with Corpus.create(tmp_path / "corpus", FINGERPRINT, dim=DIM) as made:
        made.upsert([study(i) for i in range(40)], [embedding(i) for i in range(40)])
        yield made


def reopened(corpus: Corpus, **options: str) -> Corpus:
    corpus.close()
    return Corpus.open(corpus.path, FINGERPRINT, **options)


def check_against_oracle(corpus: Corpus) -> None:
    """Every index must answer as an exact one over what the database holds."""
    table = corpus.metadata()
    assert dict(table.schema) == METADATA_SCHEMA
    rows = table["row"].to_numpy()
    assert (np.diff(rows) > 0).all()
    assert corpus.rows(table["study_id"].to_list()).tolist() == rows.tolist()
    stored = corpus.embeddings(rows)
    queries = normalise(np.random.default_rng(0).standard_normal((5, DIM)))
    for target in MODALITIES:
        oracle = ExactIndex(DIM, FINGERPRINT)
        there = [(row, vectors[target]) for row, vectors in zip(rows, stored, strict=True) if target in vectors]
        if there:
            oracle.upsert(np.array([row for row, _ in there]), np.stack([vector for _, vector in there]))
        for where in (
            None,
            Filter(labels_any=frozenset({"AFIB"})),
            Filter(exclude_subject_ids=frozenset({"p1", "p2"})),
        ):
            allowed = None if where is None else where.passing_rows(table)
            found = corpus.search(queries, 12, target=target, where=where)
            truth = oracle.search(queries, 12, rows=allowed)
            np.testing.assert_array_equal(found.rows, truth.rows)
            np.testing.assert_allclose(found.scores, truth.scores, atol=1e-6)
            assert found.plan.rows_passing == truth.plan.rows_passing
            assert found.plan.rows_total == truth.plan.rows_total


def test_studies_come_back_in_the_order_asked_for(corpus: Corpus) -> None:
    found = corpus.get(["s7", "s3", "s7"])
    assert [item.study_id for item in found] == ["s7", "s3", "s7"]
    assert found[0].ecg is not None
    assert study(7).ecg is not None
    assert found[0].ecg.signal.tobytes() == study(7).ecg.signal.tobytes()
    bare = corpus.get(["s7"], with_signal=False)[0]
    assert bare.ecg is None
    assert (bare.report, bare.vitals, bare.labels) == (study(7).report, study(7).vitals, study(7).labels)


def test_earlier_studies_are_strictly_earlier_and_the_latest_of_them(corpus: Corpus) -> None:
    start = datetime(2020, 1, 1)
    corpus.upsert(
        [study(100 + day, subject_id="long", acquired_at=start + timedelta(days=day)) for day in range(50)]
        + [study(200, subject_id="long", acquired_at=None)],
        [{}] * 51,
    )
    asked = start + timedelta(days=20)
    assert corpus.earlier("long", asked, limit=3) == (["s119", "s118", "s117"], 20)
    assert corpus.earlier("long", asked + timedelta(microseconds=1), limit=1) == (["s120"], 21)
    assert corpus.earlier("long", asked, limit=2, exclude={"s119", "s150"}) == (["s118", "s117"], 19)
    assert corpus.earlier("long", start, limit=3) == ([], 0)
    assert corpus.earlier("long", datetime(2020, 1, 21, 1, tzinfo=timezone(timedelta(hours=1))), limit=99)[1] == 20
    with pytest.raises(SubjectNotFoundError):
        corpus.earlier("nobody", asked, limit=3)


def test_search_is_that_of_an_exact_index(corpus: Corpus) -> None:
    check_against_oracle(corpus)


def test_a_second_upsert_replaces_and_keeps_the_row(corpus: Corpus) -> None:
    (row,) = corpus.rows(["s5"]).tolist()
    before = corpus.stats()
    sequence = corpus.upsert([study(5, site="west", labels={}, report=None)], [embedding(99, ("ecg", "vitals"))])
    assert sequence == before.sequence + 1
    assert corpus.rows(["s5"]).tolist() == [row]
    assert corpus.get(["s5"])[0].site == "west"
    after = corpus.stats()
    assert after.studies == before.studies
    assert after.embeddings == {"ecg": 40, "text": 39, "vitals": 40}
    record = corpus.metadata().row(by_predicate=pl.col("row") == row, named=True)
    assert (record["site"], record["labels"], record["text"]) == ("west", [], "")
    check_against_oracle(corpus)


def test_upsert_is_idempotent(corpus: Corpus) -> None:
    before = corpus.metadata()
    corpus.upsert([study(i) for i in range(40)], [embedding(i) for i in range(40)])
    assert corpus.metadata().equals(before)
    check_against_oracle(corpus)


def test_the_last_of_a_repeated_id_counts(corpus: Corpus) -> None:
    corpus.upsert([study(50), study(50, site="x")], [embedding(50), embedding(51, ("ecg",))])
    assert corpus.get(["s50"])[0].site == "x"
    assert set(corpus.embeddings(corpus.rows(["s50"]))[0]) == {"ecg"}
    check_against_oracle(corpus)


def test_delete(corpus: Corpus) -> None:
    (row,) = corpus.rows(["s5"]).tolist()
    assert corpus.delete("s5") == corpus.stats().sequence
    for call in (lambda: corpus.delete("s5"), lambda: corpus.get(["s1", "s5"]), lambda: corpus.rows(["s5"])):
        with pytest.raises(StudyNotFoundError):
            call()
    assert corpus.embeddings(np.array([row])) == [{}]
    check_against_oracle(corpus)
    corpus.upsert([study(5)], [embedding(5)])
    assert corpus.rows(["s5"])[0] > row
    check_against_oracle(corpus)


def test_a_refused_batch_stores_nothing(corpus: Corpus) -> None:
    before = corpus.stats()
    for bad in ({"ecg": np.ones(DIM, np.float32)}, {"ecg": embedding(1)["ecg"][:4]}, {"sound": embedding(1)["ecg"]}):
        with pytest.raises(QueryError):
            corpus.upsert([study(60), study(61)], [embedding(60), bad])
    with pytest.raises(QueryError):
        corpus.upsert([study(60)], [])
    assert corpus.stats() == before


def test_stats(corpus: Corpus) -> None:
    found = corpus.stats()
    assert (found.studies, found.subjects, found.sequence, found.fingerprint) == (40, 14, 1, FINGERPRINT)
    assert found.embeddings == {"ecg": 40, "text": 40, "vitals": 40}


@pytest.mark.parametrize("page_size", [1, 3, 7, 39, 40, 1000])
def test_pages_show_every_study_once(corpus: Corpus, page_size: int) -> None:
    token, seen = "", []
    while True:
        ids, token = corpus.list_studies(page_size=page_size, page_token=token)
        seen += ids
        if not token:
            break
        assert len(ids) == page_size
    assert seen == [f"s{i}" for i in range(40)]


def test_a_subject_is_listed_oldest_first_unknown_times_last(corpus: Corpus) -> None:
    extra = [study(70, subject_id="p2", acquired_at=None), study(71, subject_id="p2", acquired_at=datetime(1999, 1, 1))]
    corpus.upsert(extra, [{}, {}])
    token, seen = "", []
    while True:
        ids, token = corpus.list_studies(subject_id="p2", page_size=2, page_token=token)
        seen += ids
        if seen[-1] == "s8":  # A deletion between two pages hides nothing else.
            corpus.delete("s8")
        if not token:
            break
    assert seen == ["s71", "s8", "s7", "s6", "s70"]
    with pytest.raises(SubjectNotFoundError):
        corpus.list_studies(subject_id="nobody")


def test_foreign_tokens_and_sizes_are_refused(corpus: Corpus) -> None:
    token = corpus.list_studies(page_size=2)[1]
    other = corpus.list_studies(subject_id="p2", page_size=1)[1]
    for bad in ("x", "é", token[:-4], token + "AAAA", other, "bnVsbA==", "e30="):
        with pytest.raises(QueryError):
            corpus.list_studies(page_token=bad)
    for bad in (token, corpus.list_studies(subject_id="p1", page_size=1)[1]):
        with pytest.raises(QueryError):
            corpus.list_studies(subject_id="p2", page_token=bad)
    for size in (0, -1, 1001):
        with pytest.raises(QueryError):
            corpus.list_studies(page_size=size)


def test_forged_tokens_are_refused(corpus: Corpus) -> None:
    of_all = corpus.list_studies(page_size=2)[1]
    of_subject = corpus.list_studies(subject_id="p2", page_size=1)[1]
    for token, subject in ((of_all, None), (of_subject, "p2")):
        raw = base64.urlsafe_b64decode(token)
        for place in range(len(raw)):
            flipped = bytes(one ^ (place == at) for at, one in enumerate(raw))
            with pytest.raises(QueryError):
                corpus.list_studies(subject_id=subject, page_token=base64.urlsafe_b64encode(flipped).decode())
    plain = base64.urlsafe_b64encode(json.dumps(["of an earlier release", 1]).encode()).decode()
    for bad in (plain, "[" * 100_000, "A" * 100_000, of_subject):
        with pytest.raises(QueryError):
            corpus.list_studies(page_token=bad)


def test_a_token_as_long_as_a_message_is_refused_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    longest = [sort_time(datetime(2020, 1, 1)), "\U0001f600" * 128]
    assert parse_token(b"key", render_token(b"key", "\U0001f600" * 128, longest), "\U0001f600" * 128) == longest
    monkeypatch.setattr("mmecg_index.paging._crypted", lambda secret, nonce, data: b"" if not data else 1 / 0)
    with pytest.raises(QueryError):
        parse_token(b"key", "A" * 1_000_000, None)


def test_a_token_tells_nothing_and_goes_on_after_a_restart(corpus: Corpus, tmp_path: Path) -> None:
    rest, token = corpus.list_studies(page_size=38)
    last = corpus.list_studies(page_size=38, page_token=token)[0]
    tokens = [corpus.list_studies(page_size=size)[1] for size in range(1, 39)]
    assert len({len(one) for one in tokens}) == 1
    assert len(set(tokens)) == 38
    raw = base64.urlsafe_b64decode(token)
    # Under one key a row number would stand in the same place, and differ in a digit or two.
    others = [base64.urlsafe_b64decode(one) for one in tokens[:-1]]
    assert min(sum(a != b for a, b in zip(raw, other, strict=True)) for other in others) > len(raw) // 2
    corpus.close()
    with Corpus.open(corpus.path, FINGERPRINT) as again:
        assert again.list_studies(page_size=38, page_token=token)[0] == last
        assert len(rest) + len(last) == 40
    with Corpus.create(tmp_path / "other", FINGERPRINT) as other_corpus, pytest.raises(QueryError):
        other_corpus.list_studies(page_token=token)


def test_metadata_is_a_snapshot(corpus: Corpus) -> None:
    before = corpus.metadata()
    corpus.delete("s0")
    assert len(before) == 40
    assert len(corpus.metadata()) == 39
    assert before["text"].to_list()[1] == "atrial fibrillation"


def test_a_flat_lead_is_in_the_quality_column(corpus: Corpus) -> None:
    signal = np.random.default_rng(0).integers(-900, 900, (12, 500)) / 1000
    signal[4] = 0.1
    corpus.upsert([study(80, ecg=Ecg.from_array(signal, sampling_rate_hz=100))], [embedding(80)])
    record = corpus.metadata().row(by_predicate=pl.col("study_id") == "s80", named=True)
    assert "flat" in record["quality"]
    kept = Filter(exclude_quality=frozenset({"flat"})).passing_rows(corpus.metadata())
    assert kept is not None
    assert record["row"] not in kept


def test_all_is_there_after_reopening(corpus: Corpus) -> None:
    corpus.delete("s11")
    table, stats = corpus.metadata(), corpus.stats()
    again = reopened(corpus)
    assert again.metadata().equals(table)
    assert again.stats() == stats
    check_against_oracle(again)
    again.close()


@pytest.mark.parametrize("factory", ["HNSW8", "IVF1,Flat"])
def test_an_old_snapshot_is_caught_up(corpus: Corpus, factory: str, tmp_path: Path) -> None:
    corpus = reopened(corpus, factory=factory)
    corpus.compact()
    shutil.copytree(corpus.path / "index", tmp_path / "old")
    corpus.upsert([study(3, site="x"), study(90)], [embedding(200), embedding(90)])
    corpus.upsert([study(4)], [embedding(4, ("text",))])
    corpus.delete("s9")
    corpus.close()
    shutil.rmtree(corpus.path / "index")
    shutil.copytree(tmp_path / "old", corpus.path / "index")
    corpus = Corpus.open(corpus.path, FINGERPRINT, factory=factory)
    assert all(cache.index.state.segment.ann for cache in corpus._caches.values())
    check_against_oracle(corpus)
    corpus.close()


@pytest.mark.parametrize("damage", ["damaged", "missing", "newer than the database"])
def test_a_bad_snapshot_is_rebuilt_never_served(corpus: Corpus, damage: str) -> None:
    corpus.close()
    paths = sorted((corpus.path / "index").iterdir())
    assert len(paths) == 4
    for path in paths:
        if damage == "missing":
            shutil.rmtree(path)
        elif damage == "damaged":
            (file,) = [*path.glob("tail_vectors.npy"), *path.glob("table.arrow")]
            content = bytearray(file.read_bytes())
            content[300] ^= 1
            file.write_bytes(content)
    if damage == "newer than the database":
        with sqlite3.connect(corpus.path / "corpus.sqlite") as connection:
            connection.execute("UPDATE corpus SET sequence = 0")
        connection.close()
    again = Corpus.open(corpus.path, FINGERPRINT)
    check_against_oracle(again)
    again.close()


def test_snapshots_do_not_pile_up(corpus: Corpus) -> None:
    for number in range(3):
        corpus.upsert([study(number)], [embedding(number + 500)])
        corpus.compact()
    assert len(list((corpus.path / "index").iterdir())) == 4


def test_another_fingerprint_is_refused(corpus: Corpus) -> None:
    corpus.close()
    with pytest.raises(FingerprintMismatchError):
        Corpus.open(corpus.path, "b" * 64)
    Corpus.open(corpus.path, FINGERPRINT).close()


def test_one_process_a_directory(corpus: Corpus) -> None:
    with pytest.raises(NotReadyError, match=f"process {os.getpid()}"):
        Corpus.open(corpus.path, FINGERPRINT)


def test_create_does_not_touch_what_is_there(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(AlreadyExistsError):
        Corpus.create(corpus.path, FINGERPRINT)
    (tmp_path / "empty").mkdir()
    Corpus.create(tmp_path / "empty", FINGERPRINT).close()


def test_foreign_and_damaged_databases_are_refused(corpus: Corpus, tmp_path: Path) -> None:
    corpus.close()
    with pytest.raises(IndexFormatError, match="no corpus"):
        Corpus.open(tmp_path / "nothing", FINGERPRINT)
    file = corpus.path / "corpus.sqlite"
    good = file.read_bytes()
    at = good.index(b"Atrial fibrillation")
    foreign = tmp_path / "foreign.sqlite"
    with sqlite3.connect(foreign) as connection:
        connection.execute("CREATE TABLE t (x)")
    connection.close()
    for path in (corpus.path / "index").glob("metadata-*"):  # else it is found when the study is read
        shutil.rmtree(path)
    for bad in (b"", b"not a database" * 500, good[:5000], foreign.read_bytes(), good[:at] + b"B" + good[at + 1 :]):
        file.write_bytes(bad)
        with pytest.raises(IndexFormatError):
            Corpus.open(corpus.path, FINGERPRINT)
    file.write_bytes(good)
    Corpus.open(corpus.path, FINGERPRINT).close()


def test_a_damaged_document_is_reported_when_it_is_read(corpus: Corpus) -> None:
    corpus.close()
    with sqlite3.connect(corpus.path / "corpus.sqlite") as connection:
        connection.execute("UPDATE studies SET document = replace(document, 'Atrial', 'Btrial') WHERE study_id = 's1'")
    connection.close()
    again = Corpus.open(corpus.path, FINGERPRINT)
    table = again.metadata().filter(pl.col("study_id") == "s1")
    assert table["text"].str.starts_with("atrial").all(), "the snapshot is what was stored"
    with pytest.raises(IndexFormatError):
        again.get(["s1"])
    assert again.get(["s2"])
    again.close()


def test_a_damaged_signal_is_reported_when_it_is_read(corpus: Corpus) -> None:
    corpus.close()
    connection = sqlite3.connect(corpus.path / "corpus.sqlite")
    connection.execute("UPDATE studies SET signal = CAST(substr(signal, 1, 50) || x'00' || substr(signal, 52) AS BLOB)")
    connection.commit()
    connection.close()
    with Corpus.open(corpus.path, FINGERPRINT) as again, pytest.raises(IndexFormatError):
        again.get(["s1"])


def test_calls_after_closing_say_so(corpus: Corpus) -> None:
    corpus.close()
    corpus.close()
    for call in (lambda: corpus.get(["s1"]), lambda: corpus.delete("s1"), lambda: corpus.upsert([study(1)], [{}])):
        with pytest.raises(NotReadyError):
            call()


def test_readers_go_on_while_one_writes(corpus: Corpus) -> None:
    stop, failures = threading.Event(), []
    query = embedding(1)["ecg"][None]

    def read() -> None:
        try:
            while not stop.is_set():
                rows = corpus.search(query, 5, where=Filter(labels_any=frozenset({"AFIB"}))).rows[0]
                assert rows[0] == corpus.rows(["s1"])[0]
                table = corpus.metadata()
                assert set(rows) <= set(table["row"].to_list())
                assert corpus.get(["s1"])[0].study_id == "s1"
                assert corpus.list_studies(page_size=5)[0][1] == "s1"
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for number in range(100, 160):
            corpus.upsert([study(number), study(number % 30 + 2)], [embedding(number), embedding(number)])
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not failures, failures[0]


def test_growth_starts_a_compaction_in_the_background(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ann, "FLAT_LIMIT", 50)
    monkeypatch.setattr(faiss_index, "_MIN_TAIL", 20)
    corpus.upsert([study(i) for i in range(40, 100)], [embedding(i) for i in range(40, 100)])
    for cache in corpus._caches.values():
        assert cache._builder is not None
        cache._builder.join()
        assert cache.index.state.segment.ann is not None
    check_against_oracle(corpus)
    again = reopened(corpus)
    assert all(cache.index.state.segment.ann is not None for cache in again._caches.values())
    check_against_oracle(again)
    again.close()


def test_opening_starts_the_build_that_is_due_and_its_result_is_kept(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus.upsert([study(i) for i in range(40, 100)], [embedding(i) for i in range(40, 100)])
    corpus.close()
    monkeypatch.setattr(ann, "FLAT_LIMIT", 50)
    monkeypatch.setattr(faiss_index, "_MIN_TAIL", 20)
    corpus = Corpus.open(corpus.path, FINGERPRINT)
    for cache in corpus._caches.values():
        assert cache._builder is not None
        cache._builder.join()
        assert cache.index.state.segment.ann is not None
    check_against_oracle(corpus)
    # Without a write in between the snapshot has the same sequence number; it is written anew all the same.
    corpus = reopened(corpus)
    for cache in corpus._caches.values():
        assert cache._builder is None
        assert cache.index.state.segment.ann is not None
    check_against_oracle(corpus)
    corpus.close()


def test_the_factory_is_remembered(corpus: Corpus) -> None:
    corpus = reopened(corpus, factory="HNSW8")
    corpus.compact()
    corpus = reopened(corpus)
    for cache in corpus._caches.values():
        assert cache.index.factory == "HNSW8"
        assert cache.index.state.segment.ann is not None
    corpus.close()
    with pytest.raises(ConfigError):
        Corpus.open(corpus.path, FINGERPRINT, factory="nonsense")
    with Corpus.open(corpus.path, FINGERPRINT) as again:
        assert again._caches["ecg"].index.factory == "HNSW8"


def test_only_the_owner_may_read(corpus: Corpus, tmp_path: Path) -> None:
    assert corpus.path.stat().st_mode & 0o777 == 0o700
    files = [file for file in corpus.path.iterdir() if file.is_file()]
    assert {file.name for file in files} >= {"corpus.sqlite", "corpus.sqlite-wal", "lock"}
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
    corpus.close()
    assert (corpus.path / "index").stat().st_mode & 0o777 == 0o700


def test_an_empty_directory_becomes_a_corpus_in_place(tmp_path: Path) -> None:
    (tmp_path / "volume").mkdir()
    (tmp_path / "link").symlink_to("volume")
    with Corpus.create(tmp_path / "link", FINGERPRINT, dim=DIM) as corpus:
        corpus.upsert([study(1)], [embedding(1)])
    assert {item.name for item in (tmp_path / "volume").iterdir()} == {"corpus.sqlite", "lock", "index"}
    assert (tmp_path / "volume" / "corpus.sqlite").stat().st_mode & 0o777 == 0o600


def test_damage_met_while_reading_does_not_name_the_path(corpus: Corpus) -> None:
    with pytest.raises(IndexFormatError, match="the corpus is damaged") as caught, corpus._database.reading():
        raise sqlite3.DatabaseError("database disk image is malformed")
    assert str(corpus.path) not in str(caught.value)


WRITER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_corpus import FINGERPRINT, Corpus, embedding, study
corpus = Corpus.open(Path(sys.argv[1]), FINGERPRINT)
for number in range(1000, 100000):
    corpus.upsert([study(number)], [embedding(number)])
    if number % 3 == 0:
        corpus.delete(f"s{number - 1}")
    print(number, flush=True)
"""


@pytest.mark.parametrize("acknowledged", [1, 7, 40])
def test_what_was_acknowledged_survives_a_kill(corpus: Corpus, acknowledged: int) -> None:
    corpus.close()
    command = [sys.executable, "-c", WRITER, str(corpus.path), str(Path(__file__).parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        last = 0
        for _ in range(acknowledged):
            last = int(writer.stdout.readline())
        writer.send_signal(signal.SIGKILL)
        for line in writer.stdout:
            last = int(line) if line.endswith("\n") else last
    with Corpus.open(corpus.path, FINGERPRINT) as again:
        ids = set(again.metadata()["study_id"])
        for number in range(1000, last + 1):
            deleted = number % 3 == 2 and number < last
            assert (f"s{number}" in ids) != deleted
        check_against_oracle(again)
        assert again.get([f"s{last}"])[0].report == study(last).report
