"""Studies on their way into a corpus: what each becomes in the database, and how many of them are one write.

What can be asked or written for all of them at once is: a statement costs as much as its rows.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from mmecg.embedding import MODALITIES
from mmecg.errors import ConflictError, PermissionDeniedError, QueryError
from mmecg.quality import QualityFinding, assess_each
from mmecg.search import Embeddings, WriteRequest, check_vectors
from mmecg.study import Scope, Study
from mmecg_index.codec import (
    content_hash,
    decode_study,
    describe,
    describe_study,
    encode_document,
    encode_vector,
    metadata_of,
    study_checksum,
)
from mmecg_index.database import next_sequence, select_in, sort_time
from mmecg_index.queries import not_found
from mmecg_index.requests import Answer, Answered, Key, read_answers, remember, trim_now_and_then
from mmecg_index.writer import Stored, Written

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


class Item:
    """A study on its way into a corpus."""

    def __init__(
        self,
        secret: bytes,
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
        self._secret = secret
        self._embeddings = embeddings
        self._recipe = recipe
        self._described = describe(study)
        self._findings: Sequence[QualityFinding] | None = None
        self._content_hash = content_hash(study, secret, self._described)
        self.answered = request and Answered(secret, request, self._asked(request))

    @cached_property
    def encoded(self) -> tuple[dict[str, Any], str, bytes | None]:
        """What the document says, the document, and the signal."""
        content, signal = describe_study(self.study, self._described, self._findings)
        return content, encode_document(content), signal

    @staticmethod
    def encode(items: Sequence[Item]) -> None:
        """Do for many what is slow, before anybody waits for it: :attr:`encoded`."""
        ecgs = {item: item.study.ecg for item in items if item.study.ecg is not None}
        for item, findings in zip(ecgs, assess_each(list(ecgs.values())), strict=True):
            item._findings = findings
        for item in items:
            _ = item.encoded

    def _asked(self, request: WriteRequest) -> bytes:
        """Return what the request is about; what the bundle makes of it is not part of that."""
        if request.content is not None:
            return change_asked_for(self.study.study_id, request.content)
        digest = hashlib.blake2b(repr((self.study.study_id, self._recipe)).encode())
        digest.update(self._content_hash)
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

    def insert(self, connection: sqlite3.Connection, sequence: int) -> tuple[Found, Stored]:
        """Write all but its embeddings; return what stands there once :meth:`vectors` are written, too."""
        if self._embeddings is None:
            raise ConflictError("a study that was stored already was changed meanwhile; send it again")
        study, (content, document, signal) = self.study, self.encoded
        crc = study_checksum(study.study_id, study.subject_id, document)
        values = (study.study_id, study.subject_id, sort_time(study.acquired_at), sequence, document, crc, signal)
        more = (study.site, self._content_hash, self._recipe)
        row = int(connection.execute(_UPSERT, values + more).fetchone()[0])
        found = Found(row, sequence, self._content_hash, self._recipe, study.subject_id, study.site)
        return found, Stored(metadata_of(row, study.study_id, study.subject_id, content), self._embeddings)

    def vectors(self, row: int) -> list[tuple[int, str, str, bytes, int]]:
        """Return the rows of its embeddings."""
        embeddings = self._embeddings or {}
        return [encode_vector(row, name, self._fingerprint, vector) for name, vector in embeddings.items()]


def change_asked_for(study_id: str, content: bytes) -> bytes:
    """Return what a request is about that says so itself: a change, whose outcome needs the study that it changes."""
    return b"change\0" + hashlib.blake2b(repr(study_id).encode() + content).digest()


class Found(NamedTuple):
    """What the database says of a study."""

    row: int
    sequence: int
    content_hash: bytes | None
    recipe: str | None
    subject_id: str
    site: str | None


def find_all(connection: sqlite3.Connection, study_ids: Sequence[str]) -> dict[str, Found]:
    """Return what the database says of studies, of those that are there."""
    query = "SELECT study_id, row, sequence, content_hash, recipe, subject_id, site FROM studies"
    return {found[0]: Found(*found[1:]) for found in select_in(connection, query, "study_id", study_ids)}


def check_embeddings(embeddings: Sequence[Embeddings | None], dim: int) -> None:
    """Raise ``QueryError`` for an embedding of an unknown modality, another length, or not of unit norm."""
    given = [item for each in embeddings for item in (each or {}).items()]
    for name, _ in given:
        if name not in MODALITIES:
            raise QueryError(f"modality {str(name)[:20]!r} is unknown, expected one of {', '.join(MODALITIES)}")
    vectors = [np.asarray(vector)[None] for _, vector in given]
    together = [np.concatenate(vectors)] if {vector.shape for vector in vectors} == {(1, dim)} else vectors
    for matrix in together:
        check_vectors(matrix, dim)


def outside() -> PermissionDeniedError:
    """Return the error; the same whether a study of that id is there or not."""
    return PermissionDeniedError(
        "a study is of a site or subject outside of what the caller may write, or takes the place of one; leave it out"
    )


def store_items(connection: sqlite3.Connection, items: Sequence[Item], scope: Scope, numbers: list[int]) -> Written:
    """Write what is not stored just so already, as one write; append the sequence number of each to ``numbers``."""
    there = find_all(connection, [item.study.study_id for item in items])
    answers = read_answers(connection, [item.answered for item in items if item.answered])
    rows: dict[int, Stored | None] = {}
    waiting: dict[int, Item] = {}
    """Whose embeddings are yet to be written, by row."""
    new_answers: dict[Key, Answer] = {}
    new: int | None = None
    for item in items:
        if item.answered and (number := item.answered.check(answers.get(item.answered.key))) is not None:
            numbers.append(number)
            continue
        found = there.get(item.study.study_id)
        if found is not None and not scope.allows(found.subject_id, found.site):
            raise outside()
        item.check_etag(connection, found)
        if found is not None and found.row in waiting:  # the same study once more
            _write_vectors(connection, waiting)
        if found is not None and item.is_stored(connection, found):
            number = found.sequence
        else:
            number = new = next_sequence(connection) if new is None else new
            if found is not None:
                connection.execute("DELETE FROM embeddings WHERE row = ?", (found.row,))
            found, stored = item.insert(connection, number)
            there[item.study.study_id], rows[found.row], waiting[found.row] = found, stored, item
        if item.answered:
            answers[item.answered.key] = new_answers[item.answered.key] = item.answered.answer(
                number, item.study.subject_id
            )
        numbers.append(number)
    _write_vectors(connection, waiting)
    remember(connection, new_answers)
    if new is not None:
        trim_now_and_then(connection, new)
    return Written(new or 0, rows, tuple((item.study.subject_id, item.study.study_id) for item in items))


def _write_vectors(connection: sqlite3.Connection, waiting: dict[int, Item]) -> None:
    """Write the embeddings of items, and forget them."""
    rows = [vector for row, item in waiting.items() for vector in item.vectors(row)]
    connection.executemany("INSERT INTO embeddings VALUES (?, ?, ?, ?, ?)", rows)
    waiting.clear()
