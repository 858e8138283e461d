"""`Corpus`: the system of record for studies and their embeddings, in one directory.

SQLite holds everything; the vector indexes and the metadata table are caches that are rebuilt from it. A write is
answered after its commit reached the disk; a search sees it from then on.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mmecg.embedding import EMBEDDING_DIM, MODALITIES
from mmecg.errors import (
    FingerprintMismatchError,
    IndexFormatError,
    QueryError,
)
from mmecg.search import (
    MAX_TOP_K,
    METADATA_SCHEMA,
    CorpusStats,
    Filter,
    IndexResult,
    Scope,
    Target,
    check_vectors,
)
from mmecg.study import Study
from mmecg_index import database
from mmecg_index.cache import IndexCache
from mmecg_index.codec import (
    check_study,
    encode_study,
    encode_vector,
    metadata_record,
    study_checksum,
)
from mmecg_index.durable import DirectoryLock, new_directory
from mmecg_index.passing import PassingRows
from mmecg_index.queries import StudyQueries
from mmecg_index.scope import ScopedCorpus, Views

_FILE = "corpus.sqlite"
_UPSERT = """
INSERT INTO studies (study_id, subject_id, sort_time, sequence, document, crc, signal, site)
VALUES (?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (study_id) DO UPDATE SET (subject_id, sort_time, sequence, document, crc, signal, site)
    = (excluded.subject_id, excluded.sort_time, excluded.sequence, excluded.document, excluded.crc, excluded.signal,
       excluded.site)
RETURNING row
"""


class Corpus(StudyQueries):
    """A :class:`~mmecg.search.CorpusStore` in a directory. Make one with :meth:`create`, use it with :meth:`open`.

    Reads go on from many threads, also during a write; writes wait for each other. One process a directory.
    """

    def __init__(self, path: Path, *, factory: str | None = None) -> None:
        if not (path / _FILE).is_file():
            raise IndexFormatError(f"{path} holds no corpus; make one with `mmecg build`")
        self.path = path
        self._write_lock = threading.RLock()
        self._table_lock = threading.Lock()
        self._lock = DirectoryLock(path)
        self._caches: dict[str, IndexCache] = {}
        self._closed = False
        self._views = Views(self)
        try:
            self._database = database.Database(path / _FILE)
            try:
                self._pending: dict[int, tuple[Any, ...] | None] = {}
                self._table = self._read_table()
                self._passing = PassingRows(self._table)
                factory = factory or self._database.factory
                for modality in MODALITIES:
                    self._caches[modality] = IndexCache(path / "index", modality, self._database, factory=factory)
                if factory is not None:
                    self._database.remember_factory(factory)
            except BaseException:
                for cache in self._caches.values():
                    cache.close()
                self._database.close()
                raise
        except BaseException:
            self._lock.release()
            raise

    @classmethod
    def create(cls, path: Path, fingerprint: str, *, dim: int = EMBEDDING_DIM, factory: str | None = None) -> Corpus:
        """Make an empty corpus and open it.

        Parameters
        ----------
        path : Path
            Directory to make.
        fingerprint : str
            Fingerprint of the bundle whose embeddings it will hold.
        dim : int
            Length of an embedding.
        factory : str, optional
            FAISS factory string instead of the choice by size; the corpus remembers it.

        Raises
        ------
        AlreadyExistsError
            ``path`` is there, and not an empty directory.
        """
        path = path.absolute()
        with new_directory(path) as directory:
            database.create(directory / _FILE, fingerprint=fingerprint, dim=dim)
        return cls(path, factory=factory)

    @classmethod
    def open(cls, path: Path, fingerprint: str, *, factory: str | None = None) -> Corpus:
        """Open a corpus, with the factory string that it remembers unless another is given.

        Raises
        ------
        IndexFormatError
            There is none, or it is damaged, foreign or of another version.
        FingerprintMismatchError
            It holds embeddings of another bundle.
        NotReadyError
            Another process uses it.
        """
        corpus = cls(path.absolute(), factory=factory)
        if corpus.fingerprint != fingerprint:
            corpus.close()
            raise FingerprintMismatchError(got=corpus.fingerprint, expected=fingerprint, what="corpus")
        return corpus

    def __enter__(self) -> Corpus:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def upsert(self, studies: Sequence[Study], embeddings: Sequence[Mapping[str, NDArray[np.float32]]]) -> int:
        """Store studies durably, replacing those whose id is there; return the committed sequence number.

        All of them are stored, or none. Of a repeated id the last counts.

        Parameters
        ----------
        studies : sequence of Study
        embeddings : sequence of mapping of modality to float32, shape (dim,), unit norm
            One mapping a study; a modality that is left out is not found by a search of that target.
        """
        if len(studies) != len(embeddings):
            raise QueryError(f"got {len(studies)} studies and {len(embeddings)} embeddings, expected one each")
        last = {study.study_id: (study, vectors) for study, vectors in zip(studies, embeddings, strict=True)}
        for _, vectors in last.values():
            self._check_embeddings(vectors)
        encoded = [encode_study(study) for study, _ in last.values()]
        with self._write_lock:
            rows: list[int] = []
            with self._database.writing() as (connection, sequence):
                for (study, vectors), (document, signal) in zip(last.values(), encoded, strict=True):
                    time = database.sort_time(study.acquired_at)
                    crc = study_checksum(study.study_id, study.subject_id, document)
                    values = (study.study_id, study.subject_id, time, sequence, document, crc, signal, study.site)
                    row = connection.execute(_UPSERT, values).fetchone()[0]
                    connection.execute("DELETE FROM embeddings WHERE row = ?", (row,))
                    connection.executemany(
                        "INSERT INTO embeddings VALUES (?, ?, ?, ?, ?)",
                        [encode_vector(row, name, self.fingerprint, vector) for name, vector in vectors.items()],
                    )
                    rows.append(row)
            with self._table_lock:
                for row, (study, _), (document, _) in zip(rows, last.values(), encoded, strict=True):
                    self._pending[row] = metadata_record(row, study.study_id, study.subject_id, document)
            self._update_indexes(rows, [vectors for _, vectors in last.values()])
            return sequence

    def delete(self, study_id: str) -> int:
        """Delete a study; return the committed sequence number. Raises ``StudyNotFoundError``."""
        with self._write_lock:
            (row,) = self.rows([study_id]).tolist()
            with self._database.writing() as (connection, sequence):
                connection.execute("DELETE FROM studies WHERE row = ?", (row,))
                connection.execute("INSERT INTO deletions VALUES (?, ?)", (row, sequence))
            for cache in self._caches.values():
                cache.index.remove(np.array([row], np.int64))
            with self._table_lock:
                self._pending[row] = None
            return sequence

    def metadata(self) -> pl.DataFrame:
        """Return the metadata table (:data:`METADATA_SCHEMA`), ascending by row; an immutable snapshot."""
        with self._table_lock:
            if self._pending:
                changed = pl.Series(list(self._pending), dtype=pl.Int64)
                records = [record for record in self._pending.values() if record is not None]
                kept = self._table.filter(~pl.col("row").is_in(changed.implode()))
                self._table = pl.concat([kept, _table(records)]).sort("row")
                self._pending = {}
            return self._table

    def search(
        self,
        queries: NDArray[np.float32],
        top_k: int,
        *,
        target: Target = "ecg",
        where: Filter | None = None,
    ) -> IndexResult:
        """Search the embeddings of one modality under a filter; queries: float32, shape (queries, dim), unit norm."""
        index = self._caches[target].index
        where = where or Filter()
        excluded = self._rows_of(where.exclude_subject_ids, where.exclude_study_ids)
        where = replace(where, exclude_subject_ids=frozenset(), exclude_study_ids=frozenset())
        if where == Filter() and top_k + len(excluded) <= MAX_TOP_K:
            return index.search_without(queries, top_k, excluded)
        table, passing = self.metadata(), self._passing
        if passing.table is not table:
            self._passing = passing = PassingRows(table)
        return index.search(queries, top_k, rows=passing.of(where, excluded))

    def stats(self) -> CorpusStats:
        """Return what the corpus holds."""
        table = self.metadata()
        with self._database.reading() as connection:
            (sequence,) = connection.execute("SELECT sequence FROM corpus").fetchone()
        return CorpusStats(
            studies=len(table),
            subjects=table["subject_id"].n_unique(),
            embeddings={modality: len(cache.index) for modality, cache in self._caches.items()},
            fingerprint=self.fingerprint,
            sequence=sequence,
        )

    def within(self, scope: Scope) -> ScopedCorpus:
        """Return a view for which nothing outside a scope is there."""
        return self._views.of(scope)

    def compact(self) -> None:
        """Build what approximate indexes the size calls for, and save the indexes; searches and writes go on."""
        for cache in self._caches.values():
            cache.compact()
        with self._write_lock:
            for cache in self._caches.values():
                cache.save()

    def close(self) -> None:
        """Save the indexes, release files and locks; harmless when done twice."""
        with self._write_lock:
            if self._closed:
                return
            self._closed = True
            self._views.close()
            try:
                for cache in self._caches.values():
                    cache.close()
                    cache.save()
            finally:
                self._database.close()
                self._lock.release()

    def _check_embeddings(self, vectors: Mapping[str, NDArray[np.float32]]) -> None:
        for name, vector in vectors.items():
            if name not in MODALITIES:
                raise QueryError(f"modality {str(name)[:20]!r} is unknown, expected one of {', '.join(MODALITIES)}")
            check_vectors(np.asarray(vector)[None], self._database.dim)

    def _update_indexes(self, rows: Sequence[int], embeddings: Sequence[Mapping[str, NDArray[np.float32]]]) -> None:
        for modality, cache in self._caches.items():
            there = [
                (row, vectors[modality]) for row, vectors in zip(rows, embeddings, strict=True) if modality in vectors
            ]
            missing = set(rows) - {row for row, _ in there}
            if missing:
                cache.index.remove(np.array(sorted(missing), np.int64))
            if there:
                cache.upsert(np.array([row for row, _ in there], np.int64), np.stack([vector for _, vector in there]))

    def _read_table(self) -> pl.DataFrame:
        with self._database.reading() as connection:
            found = connection.execute("SELECT row, study_id, subject_id, document, crc FROM studies ORDER BY row")
            records = []
            for row, study_id, subject_id, document, crc in found:
                check_study(study_id, subject_id, document, crc)
                records.append(metadata_record(row, study_id, subject_id, document))
        return _table(records)


def _table(records: list[tuple[Any, ...]]) -> pl.DataFrame:
    return pl.DataFrame(records, schema=METADATA_SCHEMA, orient="row")
