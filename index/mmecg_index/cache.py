"""The vector index of one modality: a cache over the database that is loaded, caught up, compacted and saved."""

from __future__ import annotations

import logging
import sqlite3
import threading
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmecg.errors import ArtifactError, ConfigError, MmecgError, NotReadyError
from mmecg_index.ann import BuildCancelledError, step_back
from mmecg_index.codec import decode_vector
from mmecg_index.database import Database
from mmecg_index.faiss_index import FaissIndex, State
from mmecg_index.folder import SnapshotFolder
from mmecg_index.snapshot import load_index, map_segment, save_index
from mmecg_index.writer import Writer

_LOG = logging.getLogger(__name__)
_READ_BATCH = 10_000


class IndexCache:
    """Keeps one :class:`FaissIndex` in step with the database. Only one thread may write at a time.

    Parameters
    ----------
    directory : Path
        Where snapshots lie, as ``<modality>-<sequence>``.
    modality : {"ecg", "text", "vitals"}
    database : Database
    writer : Writer
        Of the database: what is saved is as of a moment between two of its writes.
    factory : str, optional
        FAISS factory string instead of the choice by size.
    memory_map : bool
        Map what is saved, instead of holding it in memory.
    fingerprint : str, optional
        A space that is being filled beside the corpus's own (:mod:`mmecg_index.reembed`): the index is empty until
        :meth:`catch_up`, and must not be saved until the space is the corpus's.

    Attributes
    ----------
    index : FaissIndex
    folder : SnapshotFolder
    """

    def __init__(
        self,
        directory: Path,
        modality: str,
        database: Database,
        writer: Writer,
        *,
        factory: str | None = None,
        memory_map: bool = False,
        fingerprint: str | None = None,
    ) -> None:
        self.folder = SnapshotFolder(directory, modality)
        self._modality = modality
        self._database = database
        self._writer = writer
        self._memory_map = memory_map
        self._saving = threading.Lock()
        self._cancel = threading.Event()
        self._builder: threading.Thread | None = None
        if fingerprint is None:
            self.folder.tidy()
            with database.reading() as connection:
                self.index, self._saved = self._load(connection, factory)
        else:
            self.index, self._saved = FaissIndex(database.dim, fingerprint, factory=factory), -1
        self.index.spill = directory if memory_map else None
        self._saved_ann = self.index.state.segment.ann
        self._build_if_it_pays()

    @property
    def saved(self) -> int:
        """Sequence number of the newest snapshot; -1 if there is none."""
        return self._saved

    @property
    def snapshot_at(self) -> float | None:
        """When the newest snapshot was written, seconds since 1970; None if there is none."""
        try:
            return self.folder.path(self._saved).stat().st_mtime
        except FileNotFoundError:
            return None

    @property
    def snapshot_bytes(self) -> int:
        """Size of the newest snapshot; 0 if there is none, or a newer one is just taking its place."""
        try:
            return sum(file.stat().st_size for file in self.folder.path(self._saved).glob("*"))
        except FileNotFoundError:
            return 0

    def upsert(self, rows: NDArray[np.int64], embeddings: NDArray[np.float32]) -> None:
        """Apply what was committed, and start a compaction in the background if it pays."""
        self.index.upsert(rows, embeddings)
        self._build_if_it_pays()

    def compact(self) -> None:
        """Fold the tail into a new segment now, if that pays, or if an approximate index was asked for by name.

        Raises
        ------
        ConfigError
            There are too few vectors for the inverted lists that were asked for.
        """
        self.settle()
        asked_for = self.index.factory not in (None, "Flat") and self.index.state.segment.ann is None
        if self.index.needs_compaction or (asked_for and len(self.index)):
            self.index.compact(cancel=self._cancel)

    def settle(self) -> None:
        """Wait for a compaction under way."""
        if self._builder is not None:
            self._builder.join()

    def purge(self) -> None:
        """Build anew what holds a vector that was removed; :meth:`save_purged` does the same to the disk.

        Raises
        ------
        NotReadyError
            The corpus is being closed.
        """
        try:
            self.index.purge(cancel=self._cancel)
        except BuildCancelledError:
            raise NotReadyError(
                "the corpus is being closed; what is left of an erasure is done at the next start"
            ) from None

    def save_purged(self) -> None:
        """Write a snapshot and delete every other one, also what a crash left behind of one."""
        self.save()
        with self._saving:
            self.folder.tidy()
            self.folder.keep_only(self._saved)

    def save(self) -> None:
        """Write a snapshot if the newest one lacks a write or the approximate index, then delete the older ones.

        Searches and writes go on meanwhile.

        Raises
        ------
        NotReadyError
            The corpus is closed, or its disk failed: the index may lack what is stored.
        """
        while not self._save():
            pass

    def _save(self) -> bool:
        """Return False if a compaction has replaced meanwhile what was to be saved."""
        with self._writer.exclusive():
            self._writer.check(grows=False)
            sequence, state = self._database.sequence, self.index.state
            if self.index.fingerprint != self._database.fingerprint:
                return True
        with self._saving:
            ann = state.segment.ann
            if sequence < self._saved or (sequence == self._saved and ann is self._saved_ann):
                return True  # another thread has saved it, or something newer
            if ann is not self.index.state.segment.ann:
                return False  # it may hold under a mark what is to be erased
            self._write(state, sequence)
            return True

    def _write(self, state: State, sequence: int) -> None:
        ann, earlier = state.segment.ann, self.folder.path(self._saved)
        self.folder.clear(sequence)
        path = self.folder.path(sequence)
        same = earlier if ann is not None and ann is self._saved_ann and earlier.is_dir() else None
        save_index(self.index, path, sequence=sequence, state=state, same_segment=same)
        self._saved, self._saved_ann = sequence, ann
        self.folder.keep_only(sequence)
        if self._memory_map and ann is not None and not state.segment.mapped:
            mapped = map_segment(path)
            self.index.exchange(state.segment, mapped)
            self._saved_ann = mapped.ann

    def cancel(self) -> None:
        """Tell a compaction under way to end."""
        self._cancel.set()

    def close(self) -> None:
        """End a compaction under way."""
        self.cancel()
        self.settle()

    def _build_if_it_pays(self) -> None:
        if self._cancel.is_set() or not self.index.needs_compaction:
            return
        if self._builder is None or not self._builder.is_alive():
            builder = threading.Thread(target=self._compact, name=f"compact-{self._modality}", daemon=True)
            builder.start()
            self._builder = builder  # started: who compacts joins it at any moment

    def _compact(self) -> None:
        step_back()
        try:
            self.index.compact(cancel=self._cancel)
            self.save()
        except BuildCancelledError:
            _LOG.info(
                "compaction of the %s index was cancelled; it starts again when the corpus is opened",
                self._modality,
                extra={"event": "compaction_cancelled", "fields": {"modality": self._modality}},
            )
        except ConfigError as error:
            _LOG.warning(
                "the %s index stays exact: %s",
                self._modality,
                error,
                extra={"event": "index_stays_exact", "fields": {"modality": self._modality}},
            )
        except (MmecgError, OSError) as error:
            fields = {"modality": self._modality, "reason": type(error).__name__}
            _LOG.warning(
                "the %s index is compacted, but not saved (%s)",
                *fields.values(),
                extra={"event": "snapshot_not_saved", "fields": fields},
            )

    def _load(self, connection: sqlite3.Connection, factory: str | None) -> tuple[FaissIndex, int]:
        """Return an index that holds what the database holds, and the sequence number of its snapshot (-1: none)."""
        (sequence,) = connection.execute("SELECT sequence FROM corpus").fetchone()
        for path in self.folder.newest():
            try:
                index, saved = load_index(path, fingerprint=self._database.fingerprint, memory_map=self._memory_map)
            except ArtifactError as error:
                self.folder.refuse(path, error)
                continue
            if saved <= sequence and index.factory == factory and index.dim == self._database.dim:
                self._apply(connection, index, saved)
                if len(index) == self._count(connection):
                    return index, saved
            self.folder.refuse(path, "does not fit the database")
        index = FaissIndex(self._database.dim, self._database.fingerprint, factory=factory)
        self._apply(connection, index, -1)
        self.folder.rebuilt(len(index))
        return index, -1

    def catch_up(self, connection: sqlite3.Connection, after: int) -> None:
        """Apply everything that was committed after a sequence number; what was applied already does no harm."""
        self._apply(connection, self.index, after)
        self._build_if_it_pays()

    def _apply(self, connection: sqlite3.Connection, index: FaissIndex, saved: int) -> None:
        """Apply everything that was committed after a sequence number."""
        if saved >= 0:
            gone = connection.execute(
                "SELECT row FROM deletions WHERE sequence > :saved UNION ALL "
                "SELECT row FROM studies WHERE sequence > :saved",
                {"saved": saved},
            ).fetchall()
            index.remove(np.array(gone, np.int64).reshape(-1))
        cursor = connection.execute(
            "SELECT row, modality, fingerprint, vector, embeddings.crc FROM studies JOIN embeddings USING (row) "
            "WHERE sequence > ? AND modality = ? AND fingerprint = ? ORDER BY row",
            (saved, self._modality, index.fingerprint),
        )
        while batch := cursor.fetchmany(_READ_BATCH):
            vectors = np.stack([decode_vector(*stored) for stored in batch])
            index.upsert(np.array([row for row, *_ in batch], np.int64), vectors)

    def _count(self, connection: sqlite3.Connection) -> int:
        query = "SELECT count(*) FROM embeddings WHERE modality = ? AND fingerprint = ?"
        return int(connection.execute(query, (self._modality, self._database.fingerprint)).fetchone()[0])
