"""Backups: a consistent copy of a corpus while it is in use, and a new corpus from such a copy.

A backup is a directory with the database (one file, no write-ahead log beside it), the newest index snapshots, and
``BACKUP.json`` with the size and SHA-256 of each. It is written aside, synced, and renamed.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from mmecg.administration import Backup as Backup
from mmecg.errors import ArtifactError, IndexFormatError
from mmecg_index.corpus import Corpus
from mmecg_index.durable import new_directory, sync
from mmecg_index.manifest import read_manifest
from mmecg_index.reading import FILE, View, reading
from mmecg_index.verify import (
    BACKUP_FORMAT,
    BACKUP_MANIFEST,
    BACKUP_VERSION,
    describe_file,
    read_backup_manifest,
    render_backup_manifest,
    verify,
)

_STEP_PAGES = 2048
"""8 MiB at a time, so that other threads of this process run in between."""


def back_up(corpus: Path, target: Path, *, with_indexes: bool = True) -> Backup:
    """Copy a corpus as it is at this moment; whoever uses it reads and writes on.

    Parameters
    ----------
    corpus : Path
    target : Path
        Directory to make.
    with_indexes : bool
        Copy the index snapshots, so that a restored corpus need not build them.

    Raises
    ------
    AlreadyExistsError
        ``target`` is there, and not an empty directory.
    IndexFormatError
        There is no corpus, or it is damaged.
    """
    with new_directory(target.absolute()) as directory:
        with reading(corpus) as view:
            _copy_database(view, directory / FILE)
            if with_indexes:
                _copy_indexes(view, corpus / "index", directory / "index")
            files = {
                file.relative_to(directory).as_posix(): describe_file(file)
                for file in sorted(directory.rglob("*"))
                if file.is_file()
            }
            backup = Backup(view.sequence, view.count("studies"), sum(each["bytes"] for each in files.values()))
            manifest = {
                "format": BACKUP_FORMAT,
                "version": BACKUP_VERSION,
                "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
                "mmecg_version": metadata.version("mmecg"),
                "corpus_version": view.version,
                "fingerprint": view.fingerprint,
                "dim": view.dim,
                "sequence": backup.sequence,
                "studies": backup.studies,
                "embeddings": view.count("embeddings"),
                "files": files,
            }
        (directory / BACKUP_MANIFEST).write_bytes(render_backup_manifest(manifest))
        _sync_below(directory)
    return backup


def restore(backup: Path, target: Path, *, erasures_from: Path | None = None) -> Backup:
    """Make a corpus of a backup, after reading the backup as a whole.

    Parameters
    ----------
    backup : Path
    target : Path
        Directory to make.
    erasures_from : Path, optional
        Corpus that the backup was made of, which may be in use, or a later backup of it. Who was erased from it after
        this backup was made is erased here too; without it, they are in the restored corpus again.

    Raises
    ------
    AlreadyExistsError
        ``target`` is there, and not an empty directory.
    IndexFormatError
        The backup is damaged or not one, or ``erasures_from`` is another corpus.
    """
    manifest = read_backup_manifest(backup)
    with new_directory(target.absolute()) as directory:
        found = verify(backup)
        if not found.ok:
            raise IndexFormatError(f"{backup} is damaged ({found.findings[0]}); restore another backup")
        for name, expected in manifest["files"].items():
            copy = directory / name
            if not copy.resolve().is_relative_to(directory.resolve()):
                raise IndexFormatError(f"{backup} names a file outside of it; it is not of mmecg; use another backup")
            copy.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            shutil.copyfile(backup / name, copy)
            copy.chmod(0o600)
            if describe_file(copy) != expected:
                raise IndexFormatError(f"{name} changed while it was copied; check the disk, restore again")
        erased, sequence = 0, manifest["sequence"]
        if erasures_from is not None:
            with Corpus(directory) as corpus:
                erased, sequence = corpus.eraser.apply(erasures_from), corpus.sequence
        _sync_below(directory)
    size = sum(each["bytes"] for each in manifest["files"].values())
    return Backup(sequence, manifest["studies"] - erased, size, erased)


def _copy_database(view: View, target: Path) -> None:
    os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    copy = sqlite3.connect(target, isolation_level=None)
    try:
        # The view's read transaction lasts for all steps, so the copy is of one moment and never starts again.
        view.connection.backup(copy, pages=_STEP_PAGES)
        (mode,) = copy.execute(
            "PRAGMA journal_mode = DELETE"
        ).fetchone()  # one file, that can be read where none may be made
    finally:
        copy.close()
    if mode != "delete":
        raise IndexFormatError(f"{target} cannot be closed as one file (journal mode {mode}); make the backup again")


def _copy_indexes(view: View, source: Path, target: Path) -> None:
    """Copy the newest snapshot of each modality, unless a server replaces it meanwhile or it is newer than the view."""
    newest: dict[str, Path] = {}
    for path in sorted(source.glob("*-*")):
        if not path.name.startswith("."):
            newest[path.name.rpartition("-")[0]] = path
    for path in newest.values():
        copy = target / path.name
        try:
            manifest = read_manifest(path)
            if manifest["sequence"] > view.sequence or manifest["fingerprint"] != view.fingerprint:
                continue
            shutil.copytree(path, copy)
            whole = all(describe_file(copy / name) == expected for name, expected in manifest["files"].items())
        except (OSError, ArtifactError, shutil.Error):
            whole = False
        if not whole:
            shutil.rmtree(copy, ignore_errors=True)


def _sync_below(directory: Path) -> None:
    for path in directory.rglob("*"):
        sync(path)
