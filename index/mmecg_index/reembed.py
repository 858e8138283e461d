"""Another bundle for a corpus: its embeddings are made beside those that serve, then it is switched at once.

1. Studies are embedded in the order of their last change, batch by batch. The embeddings of a batch and how far it got
   (``settings``: sequence number and row of the last study) are one transaction, so that it goes on there after a
   crash. A study that is changed loses its embeddings of every space and moves to the end of the order.
2. When none is left, the indexes of the new space are built in memory, from the database, beside those that serve.
3. What was written meanwhile is caught up with, the last few studies while writes wait. One transaction then gives
   the corpus the new fingerprint, and the indexes are swapped.
4. The new indexes are saved, and what belongs to no space any more is deleted, a few rows at a time.

A crash before the transaction of step 3 leaves the old corpus, whole, with part of the new embeddings beside it; one
after it leaves the new corpus, with old embeddings that step 4 deletes at the next start. Encoding and building run in
a thread of low priority, with a rest after each batch.
"""

from __future__ import annotations

import itertools
import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmecg.administration import Reindexing
from mmecg.embedding import MODALITIES, Encoder
from mmecg.errors import ConfigError, InvalidInputError, MmecgError
from mmecg.ingester import embed_studies, encode_into, includes_later_notes, study_text
from mmecg.search import check_vectors
from mmecg.study import Study
from mmecg_index.ann import BuildCancelledError
from mmecg_index.cache import IndexCache
from mmecg_index.codec import check_study, decode_study, encode_vector
from mmecg_index.corpus import Corpus
from mmecg_index.database import next_sequence
from mmecg_index.priority import lower_priority
from mmecg_index.progress import (
    CancelledError,
    Cursor,
    count_done,
    end,
    forget_outgrown,
    mark_outgrown,
    read_cursor,
    write_cursor,
)
from mmecg_index.writer import Written

BATCH = 16
"""Studies of one call of the encoder."""

LAST, MOST = 4, 256
"""Studies that may be left when writes are told to wait: four times as many at each further attempt, up to the most."""

_PASSES = 3
"""At rest through what is left; the second takes what was written during the first."""

_LOG = logging.getLogger(__name__)

Vectors = Mapping[str, NDArray[np.float32]]


class _Found(NamedTuple):
    """A study that is to be embedded, as it was read."""

    sequence: int
    row: int
    study: Study
    include_later_notes: bool


class Reembedding:
    """Gives a corpus the embeddings of another bundle. One at a time; goes on with what an earlier one began.

    Parameters
    ----------
    corpus : Corpus
        Open; it is read and written all the while.
    encoder : Encoder
        Of the new bundle.
    batch : int
        Studies of one call of the encoder.
    rest : float
        Pause after each batch, as a multiple of the time that it took.
    on_switch : callable, optional
        Called at the switch, while writes wait: what serves takes the new model there. It must be quick.
    on_batch : callable, optional
        Told how many studies each batch held.

    Attributes
    ----------
    pause_s : float, optional
        How long writes waited for the switch.
    """

    def __init__(
        self,
        corpus: Corpus,
        encoder: Encoder,
        *,
        batch: int = BATCH,
        rest: float = 1.0,
        on_switch: Callable[[], None] = lambda: None,
        on_batch: Callable[[int], None] = lambda count: None,
    ) -> None:
        self._corpus = corpus
        self._encoder = encoder
        self._batch = batch
        self._rest = rest
        self._on_switch = on_switch
        self._on_batch = on_batch
        self._cancel = threading.Event()
        self._cursor = Cursor(encoder.fingerprint)
        self._applied = -1
        self._studies = 0
        self._error = ""
        self.pause_s: float | None = None

    @property
    def state(self) -> Reindexing:
        """How far it is."""
        total = len(self._corpus.metadata())
        switched = self._corpus.fingerprint == self._encoder.fingerprint
        studies = total if switched else min(self._studies, total)
        return Reindexing(self._encoder.fingerprint, switched, studies, total, self._error)

    def cancel(self) -> None:
        """Let :meth:`run` end soon; what was made stays."""
        self._cancel.set()
        for cache in self._corpus._filling.values():
            cache.cancel()

    def run(self) -> None:
        """Do all that is left to do.

        Raises
        ------
        CancelledError
        IndexFormatError
            A stored study is damaged.
        QueryError
            The bundle's embeddings are of another length.
        NotReadyError, OverloadedError
            See :meth:`mmecg_index.writer.Writer.write`.
        """
        try:
            if self._corpus.fingerprint != self._encoder.fingerprint:
                self._begin()
                with ThreadPoolExecutor(1, "reembed", initializer=lower_priority) as slow:
                    for _ in range(_PASSES):
                        self._fill(lambda found: slow.submit(self._embed, found).result(), self._rest)
                    since = self._corpus.sequence
                    caches = self._open_caches()
                    slow.submit(self._build, caches).result()
                self._switch(caches, since)
            forget_outgrown(self._corpus, self._cancel, rest=self._rest)
        except BuildCancelledError:
            raise CancelledError("the re-embedding was ended; start it again to go on") from None
        except MmecgError as error:
            self._error = str(error)
            raise
        finally:
            self._drop_caches()

    def _begin(self) -> None:
        """Find out how far an earlier one came, or begin anew."""

        def operation(connection: sqlite3.Connection) -> Written:
            before = read_cursor(connection)
            if before is not None and before.fingerprint == self._encoder.fingerprint:
                self._cursor = before
            else:
                if before is not None:
                    mark_outgrown(connection)
                self._cursor = Cursor(self._encoder.fingerprint)
                write_cursor(connection, self._cursor)
            return Written()

        self._corpus._writer.write(operation)
        with self._corpus._database.reading() as connection:
            self._studies = count_done(connection, self._cursor)

    def _fill(self, embed: Callable[[Sequence[_Found]], Sequence[Vectors]], rest: float) -> None:
        """Embed and store what is left at this moment; what is written meanwhile is for the next time."""
        last = self._corpus.sequence
        while self._cursor.sequence <= last and (found := self._next(self._batch)):
            started = time.monotonic()
            vectors = embed(found)
            self._corpus._writer.write(partial(self._store, found=found, vectors=vectors))
            self._advance(found)
            self._check(rest * (time.monotonic() - started))

    def _next(self, limit: int) -> list[_Found]:
        """Return the studies behind the cursor, in the order of their last change."""
        query = (
            "SELECT sequence, row, study_id, subject_id, document, crc, signal, recipe FROM studies "
            "WHERE (sequence, row) > (?, ?) ORDER BY sequence, row LIMIT ?"
        )
        found = []
        with self._corpus._database.reading() as connection:
            rows = connection.execute(query, (*self._cursor[1:], limit)).fetchall()
        for sequence, row, study_id, subject_id, document, crc, signal, recipe in rows:
            check_study(study_id, subject_id, document, crc)
            study = decode_study(study_id, subject_id, document, signal)
            found.append(_Found(sequence, row, study, includes_later_notes(recipe)))
        return found

    def _embed(self, found: Sequence[_Found]) -> Sequence[Vectors]:
        studies, later = [each.study for each in found], [each.include_later_notes for each in found]
        try:
            vectors: Sequence[Vectors] = embed_studies(self._encoder, studies, later)
        except InvalidInputError:
            vectors = [_embed_what_goes(self._encoder, *each) for each in zip(studies, later, strict=True)]
        for vector in itertools.chain.from_iterable(each.values() for each in vectors):
            check_vectors(np.asarray(vector)[None], self._corpus._database.dim)
        return vectors

    def _store(self, connection: sqlite3.Connection, found: Sequence[_Found], vectors: Sequence[Vectors]) -> Written:
        for each, made in zip(found, vectors, strict=True):
            now = connection.execute("SELECT sequence FROM studies WHERE row = ?", (each.row,)).fetchone()
            if now == (each.sequence,):  # else it is gone, or comes again
                rows = [encode_vector(each.row, name, self._cursor.fingerprint, one) for name, one in made.items()]
                connection.executemany("INSERT OR REPLACE INTO embeddings VALUES (?, ?, ?, ?, ?)", rows)
        write_cursor(connection, self._cursor._replace(sequence=found[-1].sequence, row=found[-1].row))
        return Written()

    def _advance(self, found: Sequence[_Found]) -> None:
        self._cursor = self._cursor._replace(sequence=found[-1].sequence, row=found[-1].row)
        self._studies += len(found)
        self._on_batch(len(found))

    def _open_caches(self) -> dict[str, IndexCache]:
        """Return empty indexes of the new space; from now on, they lose what a write changes."""
        corpus, name = self._corpus, self._encoder.fingerprint
        folder, factory = corpus.path / "index", corpus._database.factory
        caches = {
            modality: IndexCache(
                folder,
                modality,
                corpus._database,
                corpus._writer,
                factory=factory,
                memory_map=corpus._database.memory_map,
                fingerprint=name,
            )
            for modality in MODALITIES
        }
        with corpus._writer.exclusive():
            corpus._filling = caches
        return caches

    def _drop_caches(self) -> None:
        with self._corpus._writer.exclusive():
            caches, self._corpus._filling = self._corpus._filling, {}
        for cache in caches.values():
            cache.close()

    def _build(self, caches: Mapping[str, IndexCache]) -> None:
        self._catch_up(caches)
        for modality, cache in caches.items():
            self._check()
            try:
                cache.compact()
            except ConfigError as error:
                _LOG.warning(
                    "the %s index stays exact: %s",
                    modality,
                    error,
                    extra={"event": "index_stays_exact", "fields": {"modality": modality}},
                )

    def _catch_up(self, caches: Mapping[str, IndexCache]) -> None:
        """Bring the new indexes to where the cursor is."""
        with self._corpus._database.reading() as connection:
            connection.execute("BEGIN")
            try:
                cursor = read_cursor(connection) or self._cursor
                for cache in caches.values():
                    cache.catch_up(connection, self._applied)
                within = "SELECT 1 FROM studies WHERE sequence = ? AND row > ? LIMIT 1"
                is_whole = connection.execute(within, cursor[1:]).fetchone() is None
            finally:
                connection.execute("ROLLBACK")
        self._applied = cursor.sequence if is_whole else cursor.sequence - 1

    def _switch(self, caches: dict[str, IndexCache], since: int) -> None:
        corpus = self._corpus
        for attempt in itertools.count():
            self._fill(self._embed, 0)
            self._catch_up(caches)
            with corpus._writer.exclusive():
                started = time.monotonic()
                limit = min(LAST * 4**attempt, MOST)
                if len(left := self._next(limit + 1)) > limit:
                    continue
                old = self._switch_now(left, caches)
                self.pause_s = paused = time.monotonic() - started
            break
        _LOG.info(
            "the corpus was switched to another bundle; writes waited for %.0f ms",
            1000 * paused,
            extra={"event": "corpus_switched", "fields": {"pause_ms": round(1000 * paused, 1)}},
        )
        for cache in old.values():
            cache.close()  # what it was saving would come after, and in place of, what is saved now
        self._save(since)

    def _switch_now(self, left: Sequence[_Found], caches: dict[str, IndexCache]) -> dict[str, IndexCache]:
        """Embed what is left, and switch; nobody else writes. Return the indexes that served."""
        corpus = self._corpus
        if left:
            vectors = self._embed(left)
            corpus._writer.write_exclusively(partial(self._store, found=left, vectors=vectors))
            self._advance(left)
        self._catch_up(caches)
        sequence = 0

        def operation(connection: sqlite3.Connection) -> None:
            nonlocal sequence
            sequence = next_sequence(connection)  # so that no snapshot of the old space has the number of a new one
            connection.execute("UPDATE corpus SET fingerprint = ?", (self._encoder.fingerprint,))
            end(connection)

        corpus._writer.write_exclusively(operation)
        corpus._database.fingerprint = self._encoder.fingerprint
        old, corpus._caches, corpus._filling = corpus._caches, caches, {}
        corpus._writer.sequence = sequence
        self._on_switch()
        return old

    def _save(self, since: int) -> None:
        """Save the new indexes, without anybody who was erased while they were built."""
        corpus = self._corpus
        with corpus._database.reading() as connection:
            erased = connection.execute("SELECT 1 FROM erasures WHERE sequence > ? LIMIT 1", (since,)).fetchone()
        if erased:
            for cache in corpus._caches.values():
                cache.purge()
        for each in corpus._snapshotted:
            each.save_purged()

    def _check(self, pause_s: float = 0.0) -> None:
        """Rest, and raise ``CancelledError`` when told to end."""
        if self._cancel.wait(pause_s):
            raise CancelledError("the re-embedding was ended; start it again to go on")


def _embed_what_goes(encoder: Encoder, study: Study, include_later_notes: bool) -> Vectors:
    """Return the embeddings of the modalities that the encoder does not refuse."""
    part: dict[str, NDArray[np.float32]] = {}
    text = study_text(study, include_later_notes=include_later_notes) or None
    vitals = None if study.vitals.is_empty() else study.vitals
    with suppress(InvalidInputError):
        encode_into("ecg", encoder.encode_ecg, [study.ecg], [part])
    with suppress(InvalidInputError):
        encode_into("text", encoder.encode_text, [text], [part])
    with suppress(InvalidInputError):
        encode_into("vitals", encoder.encode_vitals, [vitals], [part])
    return part
