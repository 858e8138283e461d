"""`Corpus`: the system of record for studies and their embeddings, in one directory.

SQLite holds everything; the vector indexes and the metadata table are caches that are rebuilt from it. A write is
answered after its commit reached the disk; a search sees it from then on.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mmecg.embedding import EMBEDDING_DIM, MODALITIES
from mmecg.errors import FingerprintMismatchError, IndexFormatError, MmecgError, ModelChangedError
from mmecg.search import MAX_TOP_K, CorpusStats, Filter, IndexResult, Scope, Target
from mmecg_index import database
from mmecg_index.audit import AuditTrail
from mmecg_index.cache import IndexCache
from mmecg_index.database import Database, Synchronous
from mmecg_index.durable import DirectoryLock, new_directory
from mmecg_index.erasure import Eraser, Erasure
from mmecg_index.faiss_index import FaissIndex
from mmecg_index.gauges import CorpusGauges, probe_recall, read_gauges
from mmecg_index.passing import PassingRows
from mmecg_index.scope import ScopedCorpus, Views
from mmecg_index.space import SpaceView
from mmecg_index.structure import StructureCheck
from mmecg_index.table import MetadataTable
from mmecg_index.writer import RESERVE_BYTES, Stored, Writer, Written
from mmecg_index.writes import StudyWrites

_LOG = logging.getLogger(__name__)
_FILE = "corpus.sqlite"


class Corpus(StudyWrites):
    """A :class:`~mmecg.search.CorpusStore` in a directory. Make one with :meth:`create`, use it with :meth:`open`.

    Reads go on from many threads, also during a write; writes of many threads are committed together. One process a
    directory.

    Parameters
    ----------
    path : Path
    factory : str, optional
        FAISS factory string instead of the choice by size, or of the one that the corpus remembers.
    synchronous : {"full", "normal"}
        "full": what is acknowledged survives a power cut. "normal": the last writes may be lost by one, though not by
        the end of the process; what is there is consistent either way.
    reserve_bytes : int
        Free bytes of the disk below which writes are refused.
    memory_map : bool, optional
        Map the saved indexes instead of reading them into memory; default what the corpus remembers.

    Attributes
    ----------
    audit : AuditTrail
        Who did what.
    eraser : Eraser
    """

    def __init__(
        self,
        path: Path,
        *,
        factory: str | None = None,
        synchronous: Synchronous = "full",
        reserve_bytes: int = RESERVE_BYTES,
        memory_map: bool | None = None,
    ) -> None:
        if not (path / _FILE).is_file():
            raise IndexFormatError(f"{path} holds no corpus; make one with `mmecg build`")
        self.path = path
        self._closed = False
        self._closing = threading.Lock()
        self._caches: dict[str, IndexCache] = {}
        self._filling: dict[str, IndexCache] = {}
        """The indexes of a space that is being filled beside the one that is searched, see reembed.py."""
        with ExitStack() as stack:
            stack.callback(DirectoryLock(path).release)
            self._database = Database(path / _FILE, synchronous=synchronous)
            stack.callback(self._database.close)
            self._writer = Writer(self._database, self._publish, reserve_bytes=reserve_bytes)
            stack.callback(self._close_database)
            factory = factory or self._database.factory
            memory_map = self._database.memory_map if memory_map is None else memory_map
            self._load(stack, factory, memory_map)
            self._passing = PassingRows(self._table.current())
            self._database.remember(factory, memory_map)
            self._views = Views(self)
            stack.callback(self._views.close)
            self.audit = AuditTrail(self._writer, self._database.secret)
            self._structure = StructureCheck(self._database)
            stack.callback(self._structure.close)
            self.eraser = Eraser(
                path,
                self._database,
                self._writer,
                lambda: self._snapshotted,
                lambda: self._filling.values(),
                self._structure,
            )
            try:
                self.eraser.finish()
            except MmecgError as error:
                _LOG.error(
                    "an erasure that was interrupted is not finished: %s",
                    error,
                    extra={"event": "erasure_unfinished", "fields": {"reason": type(error).__name__}},
                )
            self._structure.start()
            self._resources = stack.pop_all()

    @classmethod
    def create(
        cls,
        path: Path,
        fingerprint: str,
        *,
        dim: int = EMBEDDING_DIM,
        factory: str | None = None,
        synchronous: Synchronous = "full",
        reserve_bytes: int = RESERVE_BYTES,
        memory_map: bool | None = None,
    ) -> Corpus:
        """Make an empty corpus and open it.

        Parameters
        ----------
        path : Path
            Directory to make.
        fingerprint : str
            Fingerprint of the bundle whose embeddings it will hold.
        dim : int
            Length of an embedding.
        factory, synchronous, reserve_bytes, memory_map
            See :class:`Corpus`; the corpus remembers ``factory`` and ``memory_map``.

        Raises
        ------
        AlreadyExistsError
            ``path`` is there, and not an empty directory.
        """
        path = path.absolute()
        with new_directory(path) as directory:
            database.create(directory / _FILE, fingerprint=fingerprint, dim=dim)
        return cls(path, factory=factory, synchronous=synchronous, reserve_bytes=reserve_bytes, memory_map=memory_map)

    @classmethod
    def open(
        cls,
        path: Path,
        fingerprint: str,
        *,
        factory: str | None = None,
        synchronous: Synchronous = "full",
        reserve_bytes: int = RESERVE_BYTES,
        memory_map: bool | None = None,
    ) -> Corpus:
        """Open a corpus; one of an older format version is brought to the current one first.

        Raises
        ------
        IndexFormatError
            There is none, or it is damaged, foreign or of another version.
        FingerprintMismatchError
            It holds embeddings of another bundle.
        NotReadyError
            Another process uses it.
        """
        corpus = cls(
            path.absolute(),
            factory=factory,
            synchronous=synchronous,
            reserve_bytes=reserve_bytes,
            memory_map=memory_map,
        )
        if corpus.fingerprint != fingerprint:
            corpus.close()
            raise FingerprintMismatchError(got=corpus.fingerprint, expected=fingerprint, what="corpus")
        return corpus

    def __enter__(self) -> Corpus:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def metadata(self) -> pl.DataFrame:
        """Return the metadata table (:data:`METADATA_SCHEMA`), ascending by row; an immutable snapshot."""
        return self._table.current()

    def search(
        self,
        queries: NDArray[np.float32],
        top_k: int,
        *,
        target: Target = "ecg",
        where: Filter | None = None,
        fingerprint: str | None = None,
    ) -> IndexResult:
        """Search the embeddings of one modality under a filter.

        Parameters
        ----------
        queries : float32, shape (queries, dim), unit norm
        top_k, target, where
            See :meth:`mmecg.search.CorpusStore.search`.
        fingerprint : str, optional
            Of the bundle that made the queries.

        Raises
        ------
        ModelChangedError
            The index is of another bundle.
        """
        index = self.index_of(target, fingerprint)
        rest, excluded = self._split(where)
        if rest == Filter() and top_k + len(excluded) <= MAX_TOP_K:
            return index.search_without(queries, top_k, excluded)
        return index.search(queries, top_k, rows=self._current().of(rest, excluded))

    def index_of(self, target: Target, fingerprint: str | None = None) -> FaissIndex:
        """Return the index of a modality, if it is of the bundle that is named; see :meth:`search`."""
        index = self._caches[target].index
        if fingerprint not in (None, index.fingerprint):
            raise ModelChangedError
        return index

    def stats(self) -> CorpusStats:
        """Return what the corpus holds."""
        table = self.metadata()
        return CorpusStats(
            studies=len(table),
            subjects=table["subject_id"].n_unique(),
            embeddings={modality: len(cache.index) for modality, cache in self._caches.items()},
            fingerprint=self.fingerprint,
            sequence=self.sequence,
        )

    def gauges(self) -> CorpusGauges:
        """Return its present state, for whoever runs it."""
        return read_gauges(
            self._database, self._caches, self._table.folder, searchable=self.sequence, writable=self.writable
        )

    def probe_recall(self, modality: str, wait: Callable[[float], object]) -> float | None:
        """Return the recall of an index, scanned in the background; see :func:`mmecg_index.gauges.probe_recall`."""
        return probe_recall(self._caches[modality].index, wait)

    def within(self, scope: Scope) -> ScopedCorpus:
        """Return a view for which nothing outside a scope is there."""
        return self._views.of(scope)

    def in_space(self, fingerprint: str) -> SpaceView:
        """Return a view for those who work with the bundle of this fingerprint; see :class:`SpaceView`."""
        return SpaceView(self, fingerprint)

    def erase_subject(self, subject_id: str, *, check: bool = False, principal: str = "") -> Erasure:
        """Erase a subject from the answers and from every file; see :meth:`mmecg_index.erasure.Eraser.erase`."""
        erased = self.eraser.erase([subject_id], check=check, principal=principal)
        self._current()  # the tables of filters that still held it go
        return erased

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._closed

    def compact(self) -> None:
        """Build what approximate indexes the size calls for, and save the indexes; searches and writes go on."""
        for cache in self._caches.values():
            cache.compact()
        for each in self._snapshotted:
            each.save()

    def close(self) -> None:
        """Save the indexes, release files and locks; harmless when done twice."""
        self.audit.close()
        with self._closing:
            if self._closed:
                return
            self._closed = True
            self._structure.close()
            with self._resources:
                for cache in (*self._caches.values(), *self._filling.values()):
                    cache.close()
                try:
                    if self.writable:  # else the indexes may lack what is stored
                        for each in self._snapshotted:
                            each.save()
                        self._writer.checkpoint("TRUNCATE")
                except MmecgError as error:
                    _LOG.error(
                        "the end of the log is worked off at the next start: %s",
                        error,
                        extra={"event": "not_saved_at_the_end", "fields": {"reason": type(error).__name__}},
                    )

    @property
    def _snapshotted(self) -> tuple[MetadataTable | IndexCache, ...]:
        """What has snapshots of its own."""
        return self._table, *self._caches.values()

    def _load(self, stack: ExitStack, factory: str | None, memory_map: bool) -> None:
        """Load the table and the indexes, at the same time: most of it is reading files, and adding them up."""
        folder = self.path / "index"
        with ThreadPoolExecutor(1 + len(MODALITIES), "load") as pool:
            table = pool.submit(MetadataTable, folder, self._database, self._writer)
            caches = {
                modality: pool.submit(
                    IndexCache, folder, modality, self._database, self._writer, factory=factory, memory_map=memory_map
                )
                for modality in MODALITIES
            }
        for cache in caches.values():
            if cache.exception() is None:
                stack.callback(cache.result().close)  # harmless when it was replaced since
        self._caches = {modality: cache.result() for modality, cache in caches.items()}
        self._table = table.result()

    def _close_database(self) -> None:
        with self._writer.exclusive():
            self._database.close()

    def _current(self) -> PassingRows:
        table, passing = self.metadata(), self._passing
        if passing.table is not table:
            self._passing = passing = PassingRows(table)
        return passing

    def _publish(self, written: Sequence[Written]) -> None:
        """Bring what is searched up to what was committed: first what is new, last what is gone from the table."""
        rows: dict[int, Stored | None] = {}
        for each in written:
            rows.update(each.rows)
        if not rows:
            return
        self._table.change({row: stored.record for row, stored in rows.items() if stored is not None})
        for modality, cache in self._caches.items():
            there = {
                row: stored.embeddings[modality]
                for row, stored in rows.items()
                if stored is not None and modality in stored.embeddings
            }
            cache.index.remove(np.array(sorted(rows.keys() - there.keys()), np.int64))
            if there:
                cache.upsert(np.array(list(there), np.int64), np.stack(list(there.values())))
        for cache in self._filling.values():  # embedded anew before the switch
            cache.index.remove(np.array(sorted(rows), np.int64))
        self._table.change({row: None for row, stored in rows.items() if stored is None})
