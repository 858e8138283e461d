from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from mmecg_index.backup import back_up, restore
from mmecg_index.corpus import Corpus
from mmecg_index.durable import new_directory
from mmecg_index.reading import FILE
from mmecg_index.verify import (
    BACKUP_MANIFEST,
    describe_file,
    read_backup_manifest,
    render_backup_manifest,
    verify,
)

from mmecg.errors import AlreadyExistsError, IndexFormatError, MmecgError

Content = Callable[[Path], dict]


def flipped(file: Path, at: int, bit: int) -> None:
    with file.open("r+b") as stream:
        stream.seek(at)
        (value,) = stream.read(1)
        stream.seek(at)
        stream.write(bytes([value ^ (1 << bit)]))


def test_restored_corpus_answers_as_the_one_that_was_backed_up(filled: Path, tmp_path: Path, content: Content) -> None:
    before = content(filled)
    made = back_up(filled, tmp_path / "backup")
    assert made.studies == 30
    assert made.size_bytes == sum(
        file.stat().st_size
        for file in (tmp_path / "backup").rglob("*")
        if file.is_file() and file.name != BACKUP_MANIFEST
    )
    assert verify(tmp_path / "backup").findings == ()
    restored = restore(tmp_path / "backup", tmp_path / "restored")
    assert restored == made
    assert content(tmp_path / "restored") == before
    assert verify(tmp_path / "restored").findings == ()


def test_backup_is_one_file_with_its_indexes_and_only_the_owners(filled: Path, tmp_path: Path) -> None:
    back_up(filled, tmp_path / "backup")
    names = {path.relative_to(tmp_path / "backup").parts[0] for path in (tmp_path / "backup").rglob("*")}
    assert names == {FILE, "index", BACKUP_MANIFEST}
    assert (tmp_path / "backup").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "backup" / FILE).stat().st_mode & 0o777 == 0o600
    manifest = json.loads((tmp_path / "backup" / BACKUP_MANIFEST).read_text())
    assert manifest["studies"] == 30
    assert manifest["corpus_version"] == 2
    back_up(filled, tmp_path / "bare", with_indexes=False)
    assert not (tmp_path / "bare" / "index").exists()
    assert verify(tmp_path / "bare").findings == ()


def test_backup_can_be_verified_where_nothing_may_be_written(filled: Path, tmp_path: Path) -> None:
    back_up(filled, tmp_path / "backup")
    before = sorted(path.name for path in (tmp_path / "backup").iterdir())
    for path in [tmp_path / "backup", *(tmp_path / "backup").rglob("*")]:
        path.chmod(0o500 if path.is_dir() else 0o400)
    assert verify(tmp_path / "backup").ok
    assert sorted(path.name for path in (tmp_path / "backup").iterdir()) == before


def test_backup_while_writes_go_on_is_of_one_moment(filled: Path, tmp_path: Path, study, embedding) -> None:
    """Every write stores two studies: a backup that has one of them is not of one moment."""
    stop = threading.Event()
    with Corpus(filled) as corpus:

        def write() -> None:
            number = 1000
            while not stop.is_set():
                pair = [study(number, ecg=None), study(number + 1, ecg=None)]
                corpus.upsert(pair, [embedding(number), embedding(number + 1)])
                number += 2

        writer = threading.Thread(target=write)
        writer.start()
        try:
            made = [back_up(filled, tmp_path / f"backup-{i}") for i in range(4)]
        finally:
            stop.set()
            writer.join()
        assert verify(filled).findings == ()
    assert made[0].studies < made[-1].studies
    for i, each in enumerate(made):
        assert verify(tmp_path / f"backup-{i}").findings == ()
        assert each.studies % 2 == 0
        with Corpus(tmp_path / f"backup-{i}") as corpus:
            assert len(corpus.list_studies(page_size=1000)[0]) == min(each.studies, 1000)
            assert corpus.stats().sequence == each.sequence


def test_backup_of_a_corpus_that_another_process_holds(filled: Path, tmp_path: Path) -> None:
    holder = (
        "import sys; from pathlib import Path; from mmecg_index.corpus import Corpus\n"
        "corpus = Corpus(Path(sys.argv[1])); print('ready', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", holder, str(filled)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        assert back_up(filled, tmp_path / "backup").studies == 30
        process.communicate(b"")
    assert verify(tmp_path / "backup").ok


def test_nothing_is_overwritten(filled: Path, tmp_path: Path) -> None:
    back_up(filled, tmp_path / "backup")
    with pytest.raises(AlreadyExistsError):
        back_up(filled, tmp_path / "backup")
    with pytest.raises(AlreadyExistsError):
        restore(tmp_path / "backup", filled)
    with pytest.raises(IndexFormatError, match="holds no corpus"):
        back_up(tmp_path / "nowhere", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_of_two_who_make_one_directory_the_faster_wins(tmp_path: Path) -> None:
    def make(name: str, meanwhile: Callable[[], None] = lambda: None) -> None:
        with new_directory(tmp_path / "backup") as directory:
            (directory / name).write_text("")
            meanwhile()

    with pytest.raises(AlreadyExistsError):
        make("slow", lambda: make("fast"))
    assert [file.relative_to(tmp_path).as_posix() for file in sorted(tmp_path.rglob("*"))] == ["backup", "backup/fast"]


def test_a_backup_that_names_files_outside_is_refused(filled: Path, tmp_path: Path) -> None:
    back_up(filled, tmp_path / "backup", with_indexes=False)
    manifest = read_backup_manifest(tmp_path / "backup")
    (tmp_path / "evil").write_text("evil")
    manifest["files"]["../evil"] = describe_file(tmp_path / "evil")
    (tmp_path / "backup" / BACKUP_MANIFEST).write_bytes(render_backup_manifest(manifest))
    (tmp_path / "new").mkdir()
    with pytest.raises(IndexFormatError, match="outside"):
        restore(tmp_path / "backup", tmp_path / "new" / "corpus")
    assert not any((tmp_path / "new").iterdir())


def test_interrupted_backup_leaves_nothing(filled: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("mmecg_index.backup.render_backup_manifest", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        back_up(filled, tmp_path / "backup")
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]


@pytest.mark.parametrize("damage", ["flip", "cut", "missing", "manifest", "foreign", "version"])
def test_damaged_backup_is_not_restored(filled: Path, tmp_path: Path, damage: str) -> None:
    back_up(filled, tmp_path / "backup")
    file, manifest = tmp_path / "backup" / FILE, tmp_path / "backup" / BACKUP_MANIFEST
    if damage == "flip":
        flipped(file, file.stat().st_size // 2, 3)
    elif damage == "cut":
        os.truncate(file, file.stat().st_size - 4096)
    elif damage == "missing":
        shutil.rmtree(tmp_path / "backup" / "index")
    elif damage == "manifest":
        manifest.write_bytes(manifest.read_bytes().replace(b'"studies": 30', b'"studies": 31'))
    elif damage == "foreign":
        manifest.unlink()
    else:
        from mmecg_index.verify import read_backup_manifest, render_backup_manifest

        manifest.write_bytes(render_backup_manifest(read_backup_manifest(tmp_path / "backup") | {"version": 2}))
    with pytest.raises(IndexFormatError):
        restore(tmp_path / "backup", tmp_path / "restored")
    assert not (tmp_path / "restored").exists()


def test_every_flip_in_a_backup_is_found(filled: Path, tmp_path: Path) -> None:
    back_up(filled, tmp_path / "backup")
    random = np.random.default_rng(0)
    files = sorted(path for path in (tmp_path / "backup").rglob("*") if path.is_file())
    for _ in range(25):
        file = files[random.integers(len(files))]
        at, bit = int(random.integers(file.stat().st_size)), int(random.integers(8))
        flipped(file, at, bit)
        assert not verify(tmp_path / "backup").ok, (file.name, at, bit)
        flipped(file, at, bit)
    assert verify(tmp_path / "backup").ok


def test_every_flip_in_an_index_file_is_found(filled: Path) -> None:
    random = np.random.default_rng(1)
    for file in sorted(path for path in (filled / "index").rglob("*") if path.is_file()):
        for at in random.choice(file.stat().st_size, min(8, file.stat().st_size), replace=False).tolist():
            flipped(file, at, 5)
            found = verify(filled)
            assert any("index snapshot" in finding for finding in found.findings), (file.name, at)
            flipped(file, at, 5)
    assert verify(filled).ok


def test_flips_in_the_database_are_found_or_in_no_answer(filled: Path, tmp_path: Path, content: Content) -> None:
    """Whatever is not found must leave every study, embedding and answer as they were, bit by bit."""
    before = content(filled)
    shutil.rmtree(filled / "index")  # or the answers would come from there
    file = filled / FILE
    original = file.read_bytes()
    random = np.random.default_rng(2)
    # All over the file, and most densely where SQLite keeps its own numbers.
    places = [*random.integers(len(original), size=60).tolist(), *random.integers(100, size=10).tolist()]
    found = 0
    for at in places:
        flipped(file, at, int(random.integers(8)))
        if verify(filled).findings:
            found += 1
        else:
            shutil.copytree(filled, tmp_path / "looked-at")
            with contextlib.suppress(MmecgError):  # refused: that is no answer
                assert content(tmp_path / "looked-at") == before, at
            shutil.rmtree(tmp_path / "looked-at")
        file.write_bytes(original)
    assert found > len(places) // 2


@pytest.mark.parametrize(
    ("statement", "finding"),
    [
        ("UPDATE studies SET document = replace(document, 'cart 7', 'cart 8') WHERE row = 3", "document"),
        ("UPDATE studies SET subject_id = 'patient-0009' WHERE row = 3", "document"),
        ("UPDATE studies SET signal = zeroblob(50) WHERE row = 3", "decoded"),
        ("UPDATE studies SET signal = NULL WHERE row = 3", "signal is missing"),
        ("UPDATE studies SET sort_time = '1999' WHERE row = 3", "time does not fit"),
        ("UPDATE studies SET site = 'elsewhere' WHERE row = 3", "site does not fit"),
        ("UPDATE embeddings SET vector = zeroblob(32) WHERE row = 3", "embedding"),
        ("UPDATE embeddings SET modality = 'sound' WHERE row = 3 AND modality = 'ecg'", "embedding"),
        ("DELETE FROM embeddings WHERE row = 3", "holds vectors that the store has not"),
        ("DELETE FROM studies WHERE row = 3", "refers to one that is not there"),
        ("UPDATE studies SET content_hash = zeroblob(16) WHERE row = 3", "content hash"),
        ("UPDATE corpus SET sequence = 0", "sequence number"),
        ("DROP INDEX studies_by_subject", "schema"),
        ("DROP TRIGGER audit_is_not_deleted", "schema"),
    ],
)
def test_what_sql_can_break_is_found(filled: Path, statement: str, finding: str) -> None:
    connection = sqlite3.connect(filled / FILE)
    connection.execute(statement)
    connection.commit()
    connection.close()
    findings = verify(filled).findings
    assert any(finding in each for each in findings), findings
    assert not any(f"study-{i:04d}" in each or f"patient-{i:04d}" in each for i in range(30) for each in findings)


def test_a_file_that_is_no_database_is_a_finding_and_no_corpus_an_error(filled: Path, tmp_path: Path) -> None:
    (filled / FILE).write_bytes(b"not a database" * 1000)
    assert verify(filled).findings == ("the database cannot be opened: its header, schema or settings are damaged",)
    with pytest.raises(IndexFormatError, match="holds no corpus and no backup"):
        verify(tmp_path)
