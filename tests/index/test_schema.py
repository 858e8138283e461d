"""A corpus of version 1, made by the release before, opens, and answers the same."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import tarfile
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mmecg_index import schema
from mmecg_index.corpus import Corpus

from mmecg.embedding import MODALITIES, normalise
from mmecg.errors import IndexFormatError
from mmecg.search import Filter, IndexResult

DIM = 8
FINGERPRINT = "a" * 64
GOLDEN = Path(__file__).parents[1] / "golden" / "corpus_v1"
EXPECTED: dict[str, Any] = json.loads((GOLDEN / "expected.json").read_text())


@pytest.fixture
def old(tmp_path: Path) -> Path:
    path = tmp_path / "corpus"
    path.mkdir(mode=0o700)
    with tarfile.open(GOLDEN / "corpus.tar.gz") as archive:
        archive.extractall(path, filter="data")
    return path


def version(path: Path) -> int:
    connection = sqlite3.connect(path / "corpus.sqlite")
    found = connection.execute("PRAGMA user_version").fetchone()[0]
    connection.close()
    return int(found)


def change(path: Path, *statements: str) -> None:
    connection = sqlite3.connect(path / "corpus.sqlite")
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()


def tables(path: Path) -> list[tuple[str, ...]]:
    """What there is, and every column of it; how a column was declared counts, where it was written down does not."""
    connection = sqlite3.connect(path / "corpus.sqlite")
    found = connection.execute(
        'SELECT m.type, m.name, c.cid, c.name, c.type, c."notnull", c.pk FROM sqlite_schema m '
        "LEFT JOIN pragma_table_info(m.name) c ORDER BY 1, 2, 3"
    ).fetchall()
    connection.close()
    return found


def same(found: IndexResult, expected: dict[str, Any]) -> None:
    assert found.rows.tolist() == expected["rows"]
    scores = [[-np.inf if score is None else score for score in row] for row in expected["scores"]]
    np.testing.assert_allclose(found.scores, scores, atol=2e-6)


def check_answers(corpus: Corpus) -> None:
    ids = EXPECTED["ids"]
    assert corpus.list_studies()[0] == ids
    assert corpus.rows(ids).tolist() == EXPECTED["rows"]
    assert corpus.list_studies(subject_id="p2")[0] == EXPECTED["subject"]
    assert list(corpus.earlier("p0", datetime(2030, 1, 1), limit=5)) == EXPECTED["earlier"]
    for study, expected in zip(corpus.get(ids), EXPECTED["studies"], strict=True):
        found = {
            "study_id": study.study_id,
            "subject_id": study.subject_id,
            "acquired_at": study.acquired_at and study.acquired_at.isoformat(),
            "signal": study.ecg and hashlib.sha256(study.ecg.signal.tobytes()).hexdigest(),
            "report": study.report and study.report.text,
            "notes": [note.text for note in study.notes],
            "age_years": study.vitals.age_years,
            "labels": dict(study.labels),
            "site": study.site,
        }
        assert found == expected
    queries = normalise(np.random.default_rng(0).standard_normal((3, DIM)))
    for target in MODALITIES:
        same(corpus.search(queries, 5, target=target), EXPECTED["search"][target])
    same(corpus.search(queries, 5, where=Filter(labels_any=frozenset({"AFIB"}))), EXPECTED["search_afib"])
    stats = corpus.stats()
    assert EXPECTED["stats"] == {name: getattr(stats, name) for name in EXPECTED["stats"]}


def test_a_corpus_of_version_1_answers_the_same(old: Path, tmp_path: Path) -> None:
    assert version(old) == 1
    for _ in range(2):  # migrated, and then opened as it is
        with Corpus.open(old, FINGERPRINT) as corpus:
            check_answers(corpus)
        assert version(old) == 2
    Corpus.create(tmp_path / "new", FINGERPRINT, dim=DIM).close()
    assert tables(old) == tables(tmp_path / "new")
    connection = sqlite3.connect(old / "corpus.sqlite")
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
    sites = dict(connection.execute("SELECT study_id, site FROM studies"))
    (secret,) = connection.execute("SELECT value FROM settings WHERE name = 'secret'").fetchone()
    connection.close()
    assert sites == {study["study_id"]: study["site"] for study in EXPECTED["studies"]}
    assert len(bytes.fromhex(secret)) == 32


def test_a_file_of_version_1_without_settings_is_migrated(old: Path) -> None:
    change(old, "DROP TABLE settings")
    with Corpus.open(old, FINGERPRINT) as corpus:
        check_answers(corpus)


def test_what_was_damaged_before_is_refused_after(old: Path) -> None:
    change(old, "UPDATE embeddings SET vector = zeroblob(32) WHERE row = 1 AND modality = 'ecg'")
    with Corpus.open(old, FINGERPRINT) as corpus, pytest.raises(IndexFormatError, match="embedding is damaged"):
        corpus.embeddings(np.array([1]))


def test_a_damaged_study_of_version_1_is_not_healed_by_the_migration(old: Path) -> None:
    change(old, "UPDATE studies SET document = replace(document, 'palpitations', 'palpitationz') WHERE row = 1")
    with pytest.raises(IndexFormatError, match="study is damaged"):
        Corpus.open(old, FINGERPRINT)


_DIE = """
import os, signal, sqlite3, sys
from pathlib import Path
from mmecg_index import schema
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("PRAGMA journal_mode = WAL")
connection.execute("PRAGMA cache_size = 1")  # so that pages reach the file before the commit
def step(statement):
    if sys.argv[2] in statement:
        os.kill(os.getpid(), signal.SIGKILL)
connection.set_trace_callback(step)
schema.migrate(connection, "the corpus")
print("migrated")
"""


@pytest.mark.parametrize("at", ["ADD COLUMN recipe", "UPDATE studies", "INSERT INTO emb", "DROP TABLE", "COMMIT"])
def test_a_crash_during_the_migration_leaves_a_corpus_that_opens(old: Path, at: str) -> None:
    command = [sys.executable, "-c", _DIE, str(old / "corpus.sqlite"), at]
    ended = subprocess.run(command, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False)
    assert ended.returncode == -signal.SIGKILL, ended
    assert version(old) == 1
    with Corpus.open(old, FINGERPRINT) as corpus:
        check_answers(corpus)


@pytest.mark.parametrize("number", [0, schema.VERSION + 1])
def test_an_unknown_version_is_refused_and_left_alone(old: Path, number: int) -> None:
    change(old, f"PRAGMA user_version = {number}")
    with pytest.raises(IndexFormatError, match=f"version {number}, expected 1 to {schema.VERSION}; open it with"):
        Corpus.open(old, FINGERPRINT)
    assert version(old) == number
