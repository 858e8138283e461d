"""Erasing a subject for good: out of the answers at once, then out of every file.

1. One transaction deletes the studies with their embeddings and signals, blanks the digests of every request about
   the subject, and records the erasure (keyed hash of the subject, not done). From its commit on no answer holds it.
2. What the files still hold goes: the indexes are built anew without the vectors that were removed (an approximate
   segment keeps them under a mark otherwise) and saved, older snapshots are deleted, and the write-ahead log is copied
   into the database and cut to nothing. SQLite overwrites what is deleted (``secure_delete``), but not the copies that
   it leaves in the unused part of a page when it moves a row. A small database is therefore written anew (``VACUUM``);
   of a larger one the look-up trees that hold ids are (``REINDEX``), and the pages of its tables are looked at
   (:mod:`mmecg_index.leftovers`): only if there are such copies, of whomever, or the file is of a time when rows that
   were deleted were not overwritten, the whole of it is written anew.
3. The erasure is marked done. One that was interrupted is finished when the corpus is opened.

Searches go on all the while; writes wait while a look-up tree is built (a second a million studies), and for a
``VACUUM``. An erasure is remembered, so that a backup that was made before it can be brought to the same state
(:meth:`Eraser.apply`).

Not covered: other copies (backups, exports), what a file system or a disk keeps of overwritten blocks, and memory of
the process that was given back but not yet used again.
"""

from __future__ import annotations

import shutil
import sqlite3
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from mmecg.administration import Erasure as Erasure
from mmecg.embedding import MODALITIES
from mmecg.errors import IndexFormatError, NotReadyError, QueryError
from mmecg.study import check_id
from mmecg_index.aside import run_aside
from mmecg_index.audit import audited, digest
from mmecg_index.cache import IndexCache
from mmecg_index.calls import entered
from mmecg_index.database import Database, select_in
from mmecg_index.leftovers import LEFTOVERS
from mmecg_index.reading import reading
from mmecg_index.requests import forget
from mmecg_index.schema import OVERWRITTEN
from mmecg_index.structure import StructureCheck
from mmecg_index.table import METADATA, MetadataTable
from mmecg_index.traces import Trace, find_traces, wanted_of
from mmecg_index.writer import Writer, Written
from mmecg_index.writes import remove_rows

_EMPTY_LOG_S = 30.0
"""How long to wait for readers before an erasure is left to be finished later."""

_TRY_MS = 200

_SMALL_BYTES = 16 * 2**20
"""Up to this size a database is written anew in a fraction of a second."""

_TREES_WITH_IDS = ("studies_by_subject", "sqlite_autoindex_studies_1")


class Eraser:
    """Erases subjects from an open corpus.

    Parameters
    ----------
    directory : Path
    database : Database
    writer : Writer
    caches, filling : callable
        Return the indexes that are searched, and those that are being filled to be searched instead.
    structure : StructureCheck
        Pauses meanwhile: it reads for long.
    """

    def __init__(
        self,
        directory: Path,
        database: Database,
        writer: Writer,
        caches: Callable[[], Collection[IndexCache | MetadataTable]],
        filling: Callable[[], Collection[IndexCache]],
        structure: StructureCheck,
    ) -> None:
        self._directory = directory
        self._database = database
        self._writer = writer
        self._caches = caches
        self._filling = filling
        self._structure = structure

    def erase(self, subject_ids: Sequence[str], *, check: bool = False, principal: str = "") -> Erasure:
        """Erase subjects; one that has no study is remembered as erased too.

        Parameters
        ----------
        subject_ids : sequence of str
        check : bool
            Then read every file and return what of them is left.
        principal : str
            Who asks, for the audit trail; without one, the call of a server that asks, or else nobody.

        Raises
        ------
        NotReadyError
            Somebody reads for too long (a backup): the subject is out of all answers, and out of the files when the
            erasure is repeated or the corpus is opened again.
        """
        if isinstance(subject_ids, str) or not subject_ids:
            raise QueryError("subject_ids is empty or a string, expected a sequence of ids", field="subject_id")
        subjects = [check_id(each, "subject_id") for each in dict.fromkeys(subject_ids)]
        with self._database.reading() as connection:
            wanted = wanted_of(connection, subjects) if check else None
        digests = [digest(self._database.secret, "subject", each) for each in subjects]
        written = self._delete(subjects, digests, principal)
        self.finish()
        if wanted is None:
            return Erasure(len(written.rows), written.sequence)
        with self._database.reading() as connection:
            traces = tuple(find_traces(self._directory, connection, wanted))
        return Erasure(len(written.rows), written.sequence, traces)

    def apply(self, source: Path) -> int:
        """Erase whoever was erased from the corpus that this one was copied from, after the copy was made.

        Parameters
        ----------
        source : Path
            Directory of that corpus (or of a later backup of it); it may be in use. This one is just restored.

        Returns
        -------
        int
            How many studies were erased.

        Raises
        ------
        IndexFormatError
            The two are not copies of one corpus, so that their hashes cannot be compared.
        """
        secret = self._database.secret
        with reading(source) as view:
            if view.secret != secret:
                raise IndexFormatError(
                    f"{source} is not the corpus that the backup was made of (another key); name that corpus, or erase "
                    "the subjects one by one with `mmecg erase-subject`"
                )
            later = "SELECT subject FROM erasures WHERE sequence > ?"
            digests = {subject for (subject,) in view.connection.execute(later, (self._database.sequence,))}
        with self._database.reading() as connection:
            here = [subject for (subject,) in connection.execute("SELECT DISTINCT subject_id FROM studies")]
        subjects = [each for each in here if digest(secret, "subject", each) in digests]
        if not digests:
            return 0
        written = self._delete(subjects, sorted(digests), "")
        self.finish()
        return len(written.rows)

    def finish(self) -> None:
        """Take out of the files what erasures took out of the store; nothing to do if none is open.

        Raises
        ------
        NotReadyError
            Somebody reads for too long, or a file cannot be written or deleted.
        """
        with self._database.reading() as connection:
            open_ones = [subject for (subject,) in connection.execute("SELECT subject FROM erasures WHERE done = 0")]
        if not open_ones:
            return
        try:
            with self._structure.paused():
                self._clean_indexes()
                self._clean_database()
        except OSError as error:
            raise NotReadyError(
                f"the subject is out of all answers, but a file of the corpus cannot be written or deleted "
                f"({type(error).__name__}); check the disk and who may write below the corpus, then repeat the erasure"
            ) from error
        self._writer.write(lambda connection: _mark_done(connection, open_ones), grows=False)

    def _clean_indexes(self) -> None:
        for cache in (*self._caches(), *self._filling()):
            cache.purge()
        for cache in self._caches():
            cache.save_purged()
        self._sweep()

    def _clean_database(self) -> None:
        file = self._database.path
        if file.stat().st_size > _SMALL_BYTES and self._database.overwritten:
            for tree in _TREES_WITH_IDS:
                self._writer.rebuild(f"REINDEX {tree}")
            self._empty_log()
            if not int(run_aside(LEFTOVERS, [str(file)]) or 0):
                return
        self._writer.rebuild("VACUUM")
        self._empty_log()
        if not self._database.overwritten:
            self._writer.write(_mark_overwritten, grows=False)
            self._database.overwritten = True

    def _delete(self, subjects: Sequence[str], digests: Sequence[bytes], principal: str) -> Written:
        moment = datetime.now(UTC).isoformat(timespec="seconds")

        def operation(connection: sqlite3.Connection) -> Written:
            query = "SELECT row, sequence, subject_id, study_id FROM studies"
            found = list(select_in(connection, query, "subject_id", subjects))
            forget(connection, digests, sorted({sequence for _, sequence, *_ in found}))
            removed = remove_rows(connection, [row for row, *_ in found])
            connection.executemany(
                "INSERT OR REPLACE INTO erasures VALUES (?, ?, ?, 0)",
                [(each, removed.sequence, moment) for each in digests],
            )
            return replace(removed, touched=tuple((subject, study) for *_, subject, study in found))

        secret, method = self._database.secret, "corpus.erase_subject"
        noted = audited(operation, secret, principal, method) if principal else entered(operation, secret)
        return self._writer.write(noted, grows=False)

    def _sweep(self) -> None:
        """Delete what else lies beside the indexes: it is made anew from the store."""
        for path in (self._directory / "index").glob("*"):
            if path.name.partition("-")[0] not in (*MODALITIES, METADATA):
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _empty_log(self) -> None:
        """Copy the write-ahead log into the database and cut it; writes go on between the attempts."""
        log = self._database.path.with_name(self._database.path.name + "-wal")
        end = time.monotonic() + _EMPTY_LOG_S
        while True:
            with self._writer.exclusive():
                self._database.writer.execute(f"PRAGMA busy_timeout = {_TRY_MS}")
                try:
                    self._writer.checkpoint("TRUNCATE")
                finally:
                    self._database.writer.execute("PRAGMA busy_timeout = 10000")
                if log.stat().st_size == 0:
                    return
            if time.monotonic() > end:
                raise NotReadyError(
                    "the subject is out of all answers, but somebody reads the database (a backup?), so its log cannot "
                    "be emptied; repeat the erasure when that has ended"
                )
            time.sleep(_TRY_MS / 1000)


def find_remains(directory: Path, subject_ids: Sequence[str], *, known_from: Path | None = None) -> list[Trace]:
    """Look in every file of a corpus, which may be in use, for what is left of subjects that were erased.

    Parameters
    ----------
    directory : Path
        Of the corpus.
    subject_ids : sequence of str
    known_from : Path, optional
        Backup from before the erasure: says which studies, texts, vectors and signals to look for. Without one, only
        the subjects' ids are looked for.

    Raises
    ------
    QueryError
        A subject has studies in the corpus: it was not erased.
    """
    source = directory if known_from is None else known_from
    with reading(source) as view:
        wanted = wanted_of(view.connection, subject_ids)
    with reading(directory) as view:
        there = list(select_in(view.connection, "SELECT DISTINCT subject_id FROM studies", "subject_id", subject_ids))
        if there:
            message = f"{len(there)} of the subjects have studies in the corpus; erase them first"
            raise QueryError(message, field="subject_id")
        return find_traces(directory, view.connection, wanted)


def _mark_done(connection: sqlite3.Connection, subjects: Sequence[bytes]) -> Written:
    connection.executemany("UPDATE erasures SET done = 1 WHERE subject = ?", [(each,) for each in subjects])
    return Written()


def _mark_overwritten(connection: sqlite3.Connection) -> Written:
    connection.execute("INSERT OR REPLACE INTO settings VALUES (?, '1')", (OVERWRITTEN,))
    return Written()
