"""What changes the studies of a corpus, or of a part of it: upsert, delete, update; each one operation of the writer.

A study that is stored as it is given is not written again. ``content_hash`` tells: a keyed hash over everything that a
study says, whoever encoded it. Its embeddings are compared as well, unless the caller says by name how they were made
(``recipe``): then those of the same content, recipe and bundle are the same.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmecg.embedding import MODALITIES
from mmecg.errors import ConflictError, OverloadedError, PermissionDeniedError, QueryError
from mmecg.search import check_vectors
from mmecg.study import Scope, Study
from mmecg_index.codec import content_hash, encode_study, encode_vector, metadata_record, study_checksum
from mmecg_index.database import next_sequence, sort_time
from mmecg_index.queries import StudyQueries, not_found
from mmecg_index.requests import Request
from mmecg_index.writer import Operation, Stored, Writer, Written

_ATTEMPTS = 8
"""Of an update that meets another writer."""

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

Embeddings = Mapping[str, NDArray[np.float32]]


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

    def upsert(
        self,
        studies: Sequence[Study],
        embeddings: Sequence[Embeddings],
        *,
        recipe: str | None = None,
        request_id: str | None = None,
        principal: str = "",
    ) -> int:
        """Store studies durably, replacing those whose id is there; return the committed sequence number.

        All of them are stored, or none. Of a repeated id the last counts. What is stored just so already is left alone;
        if all is, the number of the last write to them is returned.

        Parameters
        ----------
        studies : sequence of Study
        embeddings : sequence of mapping of modality to float32, shape (dim,), unit norm
            One mapping a study; a modality that is left out is not found by a search of that target.
        recipe : str, optional
            Name of how the bundle made them from the studies, so that :meth:`unchanged` can tell whether it has to
            again; left out if they came from elsewhere.
        request_id : str, optional
            1 to 128 characters; the same one with the same studies returns the same number, whatever came between.
        principal : str
            Who asks; everybody's request ids are their own.

        Raises
        ------
        QueryError
            An embedding is not of this corpus's kind, or the request id is too long.
        AlreadyExistsError
            The request id was used for another request.
        PermissionDeniedError
            A study, or the one of that id that is there, is outside the scope.
        NotReadyError, OverloadedError
            See :meth:`mmecg_index.writer.Writer.write`.
        """
        items = self._items(studies, embeddings, recipe)
        self._check_scope(studies)
        self._writer.check()
        with self._database.reading() as connection:
            for item in items:
                if not item.is_stored(connection, find(connection, item.study.study_id)):
                    _ = item.encoded  # here, where nobody waits for it

        def operation(connection: sqlite3.Connection) -> Written:
            return _store(connection, items, self.scope)

        asked = b"".join(item.asked() for item in items) if request_id is not None else b""
        return self._write(operation, self._request("upsert", asked, request_id, principal))

    def unchanged(self, studies: Sequence[Study], *, recipe: str) -> list[int | None]:
        """Return the sequence number of each study that is stored as it is, with embeddings of this recipe; else None.

        Those need not be embedded again.
        """
        found: list[int | None] = []
        with self._database.reading() as connection:
            for study in studies:
                there = find(connection, study.study_id)
                same = there is not None and there.recipe == recipe and there.content_hash == self._hash(study)
                found.append(there.sequence if there is not None and same else None)
        return found

    def delete(self, study_id: str, *, request_id: str | None = None, principal: str = "") -> int:
        """Delete a study; return the committed sequence number.

        Raises
        ------
        StudyNotFoundError
            It is not there, or outside the scope; but a request id that deleted it returns the number it got then.
        """

        def operation(connection: sqlite3.Connection) -> Written:
            found = find(connection, study_id)
            if found is None or not self.scope.allows(found.subject_id, found.site):
                raise not_found(study_id)
            return remove_rows(connection, [found.row])

        return self._write(operation, self._request("delete", study_id.encode(), request_id, principal), grows=False)

    def update(
        self,
        study_id: str,
        change: Callable[[Study], Study],
        embed: Callable[[Study], Embeddings],
        *,
        etag: str | None = None,
        recipe: str | None = None,
        request_id: str | None = None,
        principal: str = "",
        content: bytes = b"",
    ) -> int:
        """Replace a study by what a function makes of it; return the committed sequence number.

        No write of others is lost: if one comes between reading and writing, the function is asked again.

        Parameters
        ----------
        study_id : str
        change : callable
            Returns the new study, of the same id.
        embed : callable
            Returns the new study's embeddings; called only if something changed.
        etag : str, optional
            What :meth:`tagged` said; if the study is no longer that one, nothing is done.
        recipe, request_id, principal
            See :meth:`upsert`.
        content : bytes
            What the request asks for, so that a request id that comes back with another change is noticed.

        Raises
        ------
        StudyNotFoundError
        ConflictError
            The study is not the one that ``etag`` names.
        AlreadyExistsError, PermissionDeniedError, NotReadyError, OverloadedError
            See :meth:`upsert`.
        """
        request = self._request("update", f"{study_id}\0{etag or ''}\0".encode() + content, request_id, principal)
        if request is not None:
            with self._database.reading() as connection:
                if (answer := request.answer(connection)) is not None:
                    return answer
        for _ in range(_ATTEMPTS):
            operation = self._updating(study_id, change, embed, etag, recipe)
            with suppress(_OvertakenError):
                return self._write(operation, request)
        raise OverloadedError(f"others changed the study {_ATTEMPTS} times meanwhile; send it again")

    def _updating(
        self,
        study_id: str,
        change: Callable[[Study], Study],
        embed: Callable[[Study], Embeddings],
        etag: str | None,
        recipe: str | None,
    ) -> Operation:
        """Return an operation that replaces the study as it is now; ``_OvertakenError`` if it no longer is that one."""
        ((study, content, sequence),) = self._stored([study_id], with_signal=True)
        content = content or self._hash(study)
        if etag not in (None, content.hex()):
            raise ConflictError(
                "the study was changed since it was read (etag); read it again, and apply the change to what it is now"
            )
        changed = change(study)
        if changed.study_id != study_id:
            raise QueryError("an update gives the study another id; delete it and store it anew", field="study_id")
        self._check_scope([changed])
        items = [] if self._hash(changed) == content else self._items([changed], [embed(changed)], recipe)
        for item in items:
            _ = item.encoded

        def operation(connection: sqlite3.Connection) -> Written:
            found = find(connection, study_id)
            if found is None:
                raise not_found(study_id)
            if found.sequence != sequence:
                raise _OvertakenError
            return _store(connection, items, self.scope) if items else Written(sequence)

        return operation

    def _items(self, studies: Sequence[Study], embeddings: Sequence[Embeddings], recipe: str | None) -> list[_Item]:
        """Return what is to be stored; of a repeated id the last."""
        if len(studies) != len(embeddings):
            raise QueryError(f"got {len(studies)} studies and {len(embeddings)} embeddings, expected one each")
        for vectors in embeddings:
            for name, vector in vectors.items():
                if name not in MODALITIES:
                    raise QueryError(f"modality {str(name)[:20]!r} is unknown, expected one of {', '.join(MODALITIES)}")
                check_vectors(np.asarray(vector)[None], self._database.dim)
        last = {study.study_id: (study, vectors) for study, vectors in zip(studies, embeddings, strict=True)}
        return [_Item(study, vectors, self.fingerprint, recipe, self._hash(study)) for study, vectors in last.values()]

    def _hash(self, study: Study) -> bytes:
        return content_hash(study, self._database.secret)

    def _check_scope(self, studies: Sequence[Study]) -> None:
        if not all(self.scope.allows(study.subject_id, study.site) for study in studies):
            raise outside()

    def _request(self, kind: str, content: bytes, request_id: str | None, principal: str) -> Request | None:
        if request_id is None:
            return None
        asked = hashlib.blake2b(kind.encode() + b"\0" + content, key=self._database.secret, digest_size=16).digest()
        return Request(self._database.secret, principal, request_id, asked)

    def _write(self, operation: Operation, request: Request | None, *, grows: bool = True) -> int:
        """Run an operation, once a request; return the sequence number."""
        return self._writer.write(request.once(operation) if request else operation, grows=grows).sequence


class _OvertakenError(Exception):
    """Another write came between reading a study and replacing it."""


class _Item:
    """A study on its way into the corpus."""

    def __init__(
        self, study: Study, embeddings: Embeddings, fingerprint: str, recipe: str | None, content: bytes
    ) -> None:
        self.study = study
        self.embeddings = embeddings
        self.fingerprint = fingerprint
        self.recipe = recipe
        self.content_hash = content

    @cached_property
    def encoded(self) -> tuple[str, bytes | None]:
        """Document and signal."""
        return encode_study(self.study)

    def asked(self) -> bytes:
        """Return what a request with this item asks for; how the bundle embeds it is not part of it."""
        digest = hashlib.blake2b(repr((self.study.study_id, self.recipe)).encode() + self.content_hash)
        for name, vector in sorted(self.embeddings.items() if self.recipe is None else ()):
            digest.update(name.encode() + np.asarray(vector, "<f4").tobytes())
        return digest.digest()

    def is_stored(self, connection: sqlite3.Connection, found: Found | None) -> bool:
        """Return whether it is in the database just so."""
        if found is None or (found.content_hash, found.recipe) != (self.content_hash, self.recipe):
            return False
        query = "SELECT modality, vector FROM embeddings WHERE row = ? AND fingerprint = ?"
        stored = dict(connection.execute(query, (found.row, self.fingerprint)).fetchall())
        if self.recipe is not None:
            return stored.keys() == self.embeddings.keys()
        return stored == {name: np.asarray(vector, "<f4").tobytes() for name, vector in self.embeddings.items()}

    def insert(self, connection: sqlite3.Connection, sequence: int) -> int:
        """Write it; return its row."""
        study, (document, signal) = self.study, self.encoded
        crc = study_checksum(study.study_id, study.subject_id, document)
        values = (study.study_id, study.subject_id, sort_time(study.acquired_at), sequence, document, crc, signal)
        more = (study.site, self.content_hash, self.recipe)
        row = int(connection.execute(_UPSERT, values + more).fetchone()[0])
        connection.execute("DELETE FROM embeddings WHERE row = ?", (row,))
        rows = [encode_vector(row, name, self.fingerprint, vector) for name, vector in self.embeddings.items()]
        connection.executemany("INSERT INTO embeddings VALUES (?, ?, ?, ?, ?)", rows)
        return row


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


def _store(connection: sqlite3.Connection, items: Sequence[_Item], scope: Scope) -> Written:
    """Write what is not stored just so already, as one write."""
    rows: dict[int, Stored | None] = {}
    number: int | None = None
    last = 0
    for item in items:
        study = item.study
        found = find(connection, study.study_id)
        if found is not None and not scope.allows(found.subject_id, found.site):
            raise outside()
        if found is not None and item.is_stored(connection, found):
            last = max(last, found.sequence)
            continue
        if number is None:
            number = last = next_sequence(connection)
        record = metadata_record(
            row := item.insert(connection, number), study.study_id, study.subject_id, item.encoded[0]
        )
        rows[row] = Stored(record, item.embeddings)
    return Written(last, rows)


def outside() -> PermissionDeniedError:
    """Return the error; the same whether a study of that id is there or not."""
    return PermissionDeniedError(
        "a study is of a site or subject outside of what the caller may write, or takes the place of one; leave it out"
    )
