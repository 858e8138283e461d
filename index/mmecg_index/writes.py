"""What changes the studies of a corpus, or of a part of it: store and delete, each one operation of the writer.

A study that is stored as it is given is not written again. ``content_hash`` tells: a keyed hash over everything that a
study says, whoever encoded it. Its embeddings are compared as well, unless the caller says by name how they were made
(``recipe``): then those of the same content, recipe and bundle are the same.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import numpy as np

from mmecg.embedding import MODALITIES
from mmecg.errors import ConflictError, ModelChangedError, PermissionDeniedError, QueryError
from mmecg.search import Embeddings, WriteRequest, check_vectors
from mmecg.study import Scope, Study
from mmecg_index.calls import entered
from mmecg_index.codec import (
    content_hash,
    decode_study,
    describe_study,
    encode_document,
    encode_vector,
    metadata_of,
    study_checksum,
)
from mmecg_index.database import next_sequence, sort_time
from mmecg_index.queries import StudyQueries, not_found
from mmecg_index.requests import Answered, trim_now_and_then
from mmecg_index.writer import Stored, Writer, Written

Item = TypeVar("Item")

_UPSERT = """
INSERT INTO studies
    (study_id, subject_id, sort_time, sequence, document, crc, signal, site, content_hash, recipe)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (study_id) DO UPDATE SET
    (subject_id, sort_time, sequence, document, crc, signal, site, content_hash, recipe)
    = (excluded.subject_id, excluded.sort_time, excluded.sequence, excluded.document, excluded.crc, excluded.signal,
       excluded.site, excluded.content_hash, excluded.recipe)
RETURNING row
"""


class StudyWrites(StudyQueries):
    """The writes of a corpus, or of a part of it, beside its reads. Safe to call from many threads."""

    scope = Scope()
    """Whose studies may be written."""

    _writer: Writer

    @property
    def sequence(self) -> int:
        """Number of the last write that is on the disk and searchable."""
        return self._writer.sequence

    @property
    def writable(self) -> bool:
        """False after a failure of the disk: reads go on, writes are refused until the corpus is opened again."""
        return self._writer.fault is None

    def upsert(self, studies: Sequence[Study], embeddings: Sequence[Embeddings]) -> int:
        """Store studies with embeddings that came from anywhere; return the sequence number. See :meth:`store`."""
        return max(self.store(studies, embeddings), default=self.sequence)

    def unchanged(self, studies: Sequence[Study], recipes: Sequence[str]) -> list[bool]:
        """Return which studies are stored just so, with embeddings that were made in this way: they need no others."""
        same = []
        with self._database.reading() as connection:
            for study, recipe in zip(studies, recipes, strict=True):
                found = find(connection, study.study_id)
                content = content_hash(study, self._database.secret)
                same.append(found is not None and (found.recipe, found.content_hash) == (recipe, content))
        return same

    def store(
        self,
        studies: Sequence[Study],
        embeddings: Sequence[Embeddings | None],
        *,
        recipes: Sequence[str | None] | None = None,
        etags: Sequence[str | None] | None = None,
        requests: Sequence[WriteRequest | None] | None = None,
        fingerprint: str | None = None,
    ) -> list[int]:
        """Store studies durably, all or none, replacing those whose id is there; return the sequence number of each.

        Of a repeated id the last counts. See :meth:`mmecg.search.CorpusStore.store`; ``fingerprint`` is that of the
        bundle that made the embeddings, default the corpus's of this moment.

        Raises
        ------
        QueryError
            An embedding is not of this corpus's kind, a list is not of one entry a study, or a request id is too long.
        AlreadyExistsError, ConflictError, PermissionDeniedError
            See :meth:`mmecg.search.CorpusStore.store`.
        ModelChangedError
            The corpus holds embeddings of another bundle.
        NotReadyError, OverloadedError
            See :meth:`mmecg_index.writer.Writer.write`.
        """
        fingerprint = fingerprint or self.fingerprint
        items = [
            _Item(self, fingerprint, *each)
            for each in zip(
                studies,
                _one_each(embeddings, studies, "embeddings"),
                _one_each(recipes, studies, "recipes"),
                _one_each(etags, studies, "etags"),
                _one_each(requests, studies, "requests"),
                strict=True,
            )
        ]
        if not all(self.scope.allows(study.subject_id, study.site) for study in studies):
            raise outside()
        self._writer.check()
        with self._database.reading() as connection:
            for item in items:
                if not item.is_stored(connection, find(connection, item.study.study_id)):
                    _ = item.encoded  # here, where nobody waits for it
        numbers: list[int] = []

        def operation(connection: sqlite3.Connection) -> Written:
            if fingerprint != self.fingerprint:  # it changes between two transactions only
                raise ModelChangedError
            numbers.clear()
            return _store(connection, items, self.scope, numbers)

        self._writer.write(entered(operation, self._database.secret))
        return numbers

    def delete(self, study_id: str, *, request: WriteRequest | None = None) -> int:
        """Delete a study; return the committed sequence number.

        Raises
        ------
        StudyNotFoundError
            It is not there, or outside the scope; but a request that deleted it returns the number it got then.
        """
        answered = request and Answered(self._database.secret, request, b"delete\0" + study_id.encode())

        def operation(connection: sqlite3.Connection) -> Written:
            if answered and (number := answered.find(connection)) is not None:
                return Written(number)
            found = find(connection, study_id)
            if found is None or not self.scope.allows(found.subject_id, found.site):
                raise not_found(study_id)
            written = replace(remove_rows(connection, [found.row]), touched=((found.subject_id, study_id),))
            if answered:
                answered.remember(connection, written.sequence)
                trim_now_and_then(connection, written.sequence)
            return written

        return self._writer.write(entered(operation, self._database.secret), grows=False).sequence


class _Item:
    """A study on its way into a corpus."""

    def __init__(
        self,
        corpus: StudyWrites,
        fingerprint: str,
        study: Study,
        embeddings: Embeddings | None,
        recipe: str | None,
        etag: str | None,
        request: WriteRequest | None,
    ) -> None:
        self.study = study
        self.etag = etag
        self._fingerprint = fingerprint
        self._secret = corpus._database.secret
        self._embeddings = embeddings
        self._recipe = recipe
        self._content_hash = content_hash(study, self._secret)
        for name in embeddings or ():
            if name not in MODALITIES:
                raise QueryError(f"modality {str(name)[:20]!r} is unknown, expected one of {', '.join(MODALITIES)}")
        vectors, dim = [np.asarray(vector)[None] for vector in (embeddings or {}).values()], corpus._database.dim
        together = [np.concatenate(vectors)] if {vector.shape for vector in vectors} == {(1, dim)} else vectors
        for matrix in together:
            check_vectors(matrix, dim)
        self.answered = request and Answered(self._secret, request, self._asked(request))

    @cached_property
    def encoded(self) -> tuple[dict[str, Any], str, bytes | None]:
        """What the document says, the document, and the signal."""
        content, signal = describe_study(self.study)
        return content, encode_document(content), signal

    def _asked(self, request: WriteRequest) -> bytes:
        """Return what the request is about; what the bundle makes of it is not part of that."""
        digest = hashlib.blake2b(repr((self.study.study_id, self._recipe)).encode())
        digest.update(self._content_hash if request.content is None else request.content)
        if self._recipe is None:
            for name, vector in sorted((self._embeddings or {}).items()):
                digest.update(name.encode() + np.asarray(vector, "<f4").tobytes())
        return b"store\0" + digest.digest()

    def is_stored(self, connection: sqlite3.Connection, found: Found | None) -> bool:
        """Return whether it is in the database just so."""
        if found is None or (found.content_hash, found.recipe) != (self._content_hash, self._recipe):
            return False
        if self._embeddings is None:
            return True
        query = "SELECT modality, vector FROM embeddings WHERE row = ? AND fingerprint = ?"
        stored = dict(connection.execute(query, (found.row, self._fingerprint)).fetchall())
        if self._recipe is not None:
            return stored.keys() == self._embeddings.keys()
        return stored == {name: np.asarray(vector, "<f4").tobytes() for name, vector in self._embeddings.items()}

    def check_etag(self, connection: sqlite3.Connection, found: Found | None) -> None:
        """Raise ``ConflictError`` if the study that is there is not the one to be replaced."""
        if self.etag is None:
            return
        if found is None:
            raise not_found(self.study.study_id)
        content = found.content_hash
        if content is None:  # written by a release that kept none
            query = "SELECT study_id, subject_id, document, signal FROM studies WHERE row = ?"
            content = content_hash(decode_study(*connection.execute(query, (found.row,)).fetchone()), self._secret)
        if content.hex() != self.etag:
            raise ConflictError(
                "the study was changed since it was read (etag); read it again, and apply the change to what it is now"
            )

    def insert(self, connection: sqlite3.Connection, sequence: int) -> tuple[int, Stored]:
        """Write it; return its row and what stands there now."""
        if self._embeddings is None:
            raise ConflictError("a study that was stored already was changed meanwhile; send it again")
        study, (content, document, signal) = self.study, self.encoded
        crc = study_checksum(study.study_id, study.subject_id, document)
        values = (study.study_id, study.subject_id, sort_time(study.acquired_at), sequence, document, crc, signal)
        more = (study.site, self._content_hash, self._recipe)
        row = int(connection.execute(_UPSERT, values + more).fetchone()[0])
        connection.execute("DELETE FROM embeddings WHERE row = ?", (row,))
        rows = [encode_vector(row, name, self._fingerprint, vector) for name, vector in self._embeddings.items()]
        connection.executemany("INSERT INTO embeddings VALUES (?, ?, ?, ?, ?)", rows)
        return row, Stored(metadata_of(row, study.study_id, study.subject_id, content), self._embeddings)


class Found(NamedTuple):
    """What the database says of a study."""

    row: int
    sequence: int
    content_hash: bytes | None
    recipe: str | None
    subject_id: str
    site: str | None


def find(connection: sqlite3.Connection, study_id: str) -> Found | None:
    """Return what the database says of a study, None if it is not there."""
    query = "SELECT row, sequence, content_hash, recipe, subject_id, site FROM studies WHERE study_id = ?"
    found = connection.execute(query, (study_id,)).fetchone()
    return found and Found(*found)


def remove_rows(connection: sqlite3.Connection, rows: Sequence[int]) -> Written:
    """Delete the studies of rows, as one write."""
    sequence = next_sequence(connection)
    connection.executemany("DELETE FROM studies WHERE row = ?", [(row,) for row in rows])
    connection.executemany("INSERT INTO deletions VALUES (?, ?)", [(row, sequence) for row in rows])
    return Written(sequence, dict.fromkeys(rows))


def outside() -> PermissionDeniedError:
    """Return the error; the same whether a study of that id is there or not."""
    return PermissionDeniedError(
        "a study is of a site or subject outside of what the caller may write, or takes the place of one; leave it out"
    )


def _store(connection: sqlite3.Connection, items: Sequence[_Item], scope: Scope, numbers: list[int]) -> Written:
    """Write what is not stored just so already, as one write; append the sequence number of each to ``numbers``."""
    rows: dict[int, Stored | None] = {}
    new: int | None = None
    for item in items:
        if item.answered and (number := item.answered.find(connection)) is not None:
            numbers.append(number)
            continue
        found = find(connection, item.study.study_id)
        if found is not None and not scope.allows(found.subject_id, found.site):
            raise outside()
        item.check_etag(connection, found)
        if found is not None and item.is_stored(connection, found):
            number = found.sequence
        else:
            number = new = next_sequence(connection) if new is None else new
            row, rows[row] = item.insert(connection, number)
        if item.answered:
            item.answered.remember(connection, number)
        numbers.append(number)
    if new is not None:
        trim_now_and_then(connection, new)
    return Written(new or 0, rows, tuple((item.study.subject_id, item.study.study_id) for item in items))


def _one_each(values: Sequence[Item] | None, studies: Sequence[Study], what: str) -> Sequence[Item | None]:
    if values is None:
        return [None] * len(studies)
    if len(values) != len(studies):
        raise QueryError(f"got {len(studies)} studies and {len(values)} {what}, expected one each")
    return values
