"""The vector index of one modality: a cache over the database that is loaded, caught up, compacted and saved."""

from __future__ import annotations

import logging
import shutil
import sqlite3
import threading
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmecg.errors import ArtifactError, ConfigError, NotReadyError
from mmecg_index.ann import BuildCancelledError
from mmecg_index.codec import decode_vector
from mmecg_index.database import Database
from mmecg_index.faiss_index import FaissIndex
from mmecg_index.snapshot import load_index, save_index

_LOG = logging.getLogger(__name__)
_READ_BATCH = 10_000


class IndexCache:
    """Keeps one :class:`FaissIndex` in step with the database. Only one thread may write, save or close at a time.

    Parameters
    ----------
    directory : Path
        Where snapshots lie, as ``<modality>-<sequence>``.
    modality : {"ecg", "text", "vitals"}
    database : Database
    factory : str, optional
        FAISS factory string instead of the choice by size.
    fingerprint : str, optional
        A space that is being filled beside the corpus's own (:mod:`mmecg_index.reembed`): the index is empty until
        :meth:`catch_up`, and must not be saved until the space is the corpus's.
    """

    def __init__(
        self,
        directory: Path,
        modality: str,
        database: Database,
        *,
        factory: str | None = None,
        fingerprint: str | None = None,
    ) -> None:
        self._directory = directory
        self._modality = modality
        self._database = database
        self._cancel = threading.Event()
        self._builder: threading.Thread | None = None
        if fingerprint is None:
            for unfinished in directory.glob(f".{modality}-*"):  # a process ended while it saved
                shutil.rmtree(unfinished, ignore_errors=True)
            with database.reading() as connection:
                self.index, self._saved = self._load(connection, factory)
        else:
            self.index, self._saved = FaissIndex(database.dim, fingerprint, factory=factory), -1
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
            return (self._directory / self._name(self._saved)).stat().st_mtime
        except FileNotFoundError:
            return None

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
        for path in self._directory.glob(f".{self._modality}-*"):
            shutil.rmtree(path, ignore_errors=True)
        with self._database.reading() as connection:
            (sequence,) = connection.execute("SELECT sequence FROM corpus").fetchone()
        for path in self._snapshots():
            if path.name != self._name(sequence):
                shutil.rmtree(path, ignore_errors=True)

    def save(self) -> None:
        """Write a snapshot if the newest one lacks a write or the approximate index, then delete the older ones."""
        with self._database.reading() as connection:
            (sequence,) = connection.execute("SELECT sequence FROM corpus").fetchone()
            count = self._count(connection)
        ann = self.index.state.segment.ann
        if (sequence == self._saved and ann is self._saved_ann) or len(self.index) != count:
            return
        self._directory.mkdir(mode=0o700, exist_ok=True)
        target = self._directory / self._name(sequence)
        shutil.rmtree(target, ignore_errors=True)
        save_index(self.index, target, sequence=sequence)
        self._saved, self._saved_ann = sequence, ann
        for older in self._snapshots():
            if older != target:
                shutil.rmtree(older, ignore_errors=True)

    def cancel(self) -> None:
        """Tell a compaction under way to end."""
        self._cancel.set()

    def close(self) -> None:
        """End a compaction under way."""
        self.cancel()
        self.settle()

    def _name(self, sequence: int) -> str:
        return f"{self._modality}-{sequence:015d}"

    def _build_if_it_pays(self) -> None:
        if self.index.needs_compaction and (self._builder is None or not self._builder.is_alive()):
            self._builder = threading.Thread(target=self._compact, name=f"compact-{self._modality}", daemon=True)
            self._builder.start()

    def _compact(self) -> None:
        try:
            self.index.compact(cancel=self._cancel)
        except BuildCancelledError:
            _LOG.info(
                "compaction of the %s index was cancelled; it starts again when the corpus is opened", self._modality
            )
        except ConfigError as error:
            _LOG.warning("the %s index stays exact: %s", self._modality, error)

    def _snapshots(self) -> list[Path]:
        return sorted(self._directory.glob(f"{self._modality}-*"), reverse=True)

    def _load(self, connection: sqlite3.Connection, factory: str | None) -> tuple[FaissIndex, int]:
        """Return an index that holds what the database holds, and the sequence number of its snapshot (-1: none)."""
        (sequence,) = connection.execute("SELECT sequence FROM corpus").fetchone()
        for path in self._snapshots():
            try:
                index, saved = load_index(path, fingerprint=self._database.fingerprint)
            except ArtifactError as error:
                _LOG.warning("snapshot refused, falling back: %s", error)
                continue
            if saved <= sequence and index.factory == factory and index.dim == self._database.dim:
                self._apply(connection, index, saved)
                if len(index) == self._count(connection):
                    return index, saved
            _LOG.warning("snapshot %s does not fit the database, falling back", path.name)
        index = FaissIndex(self._database.dim, self._database.fingerprint, factory=factory)
        self._apply(connection, index, -1)
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
