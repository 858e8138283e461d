"""Requests that were answered: a retry after a lost answer gets the same answer, and does nothing a second time."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain

from mmecg.errors import AlreadyExistsError, QueryError
from mmecg.search import WriteRequest
from mmecg_index.audit import digest

MAX_AGE_S = 7 * 24 * 3600.0
MAX_REQUESTS = 1_000_000
_TRIM_EVERY = 1000
_MAX_ID_CHARS = 128
_MAX_KEYS = 250
"""Of one statement, each of two values; SQLite takes no more than 999 everywhere."""
_BLANK = b""

Key = tuple[str, bytes]
"""Principal, and keyed hash of the request id."""

Answer = tuple[bytes, int]
"""Digest of what was asked for, with the keyed hash of the subject behind it, and sequence number."""

_DIGEST_BYTES = 16


class Answered:
    """A request beside what is stored of it.

    Parameters
    ----------
    secret : bytes
        Key of the corpus; a request id may hold the id of a person, so only its keyed hash is stored.
    request : WriteRequest
    asked : bytes
        What is asked for.

    Raises
    ------
    QueryError
        The request id is empty or too long.
    """

    def __init__(self, secret: bytes, request: WriteRequest, asked: bytes) -> None:
        if not 1 <= len(request.request_id) <= _MAX_ID_CHARS:
            raise QueryError(
                f"request_id has {len(request.request_id)} characters, expected 1 to {_MAX_ID_CHARS}",
                field="request_id",
            )
        self.key: Key = (request.principal, digest(secret, "request", request.request_id))
        self._secret = secret
        self._asked = hashlib.blake2b(asked, key=secret, digest_size=_DIGEST_BYTES).digest()

    def find(self, connection: sqlite3.Connection) -> int | None:
        """Return the sequence number that the request was answered with; None if it was not. See :meth:`check`."""
        return self.check(read_answers(connection, [self]).get(self.key))

    def check(self, stored: Answer | None) -> int | None:
        """Return the sequence number of what :func:`read_answers` found.

        An erasure blanks what was asked for about the subject (see :func:`forget`); then the request id alone counts.

        Raises
        ------
        AlreadyExistsError
            This request id stands for something else.
        """
        if stored is None:
            return None
        if stored[0][:_DIGEST_BYTES] not in (self._asked, _BLANK):
            raise AlreadyExistsError(
                "request_id was used for another request, expected a new one for each; send it with a new request_id"
            )
        return stored[1]

    def answer(self, sequence: int, subject_id: str) -> Answer:
        """Return what is stored of it, which was about a study of this subject."""
        return self._asked + digest(self._secret, "subject", subject_id), sequence


def read_answers(connection: sqlite3.Connection, requests: Iterable[Answered]) -> dict[Key, Answer]:
    """Return what is stored of requests, of those that were answered."""
    keys = [request.key for request in requests]
    found: dict[Key, Answer] = {}
    for start in range(0, len(keys), _MAX_KEYS):
        chunk = keys[start : start + _MAX_KEYS]
        # A join, because SQLite reads the whole table for (principal, request) IN (VALUES …).
        query = (
            "SELECT principal, request, digest, sequence FROM "  # noqa: S608
            f"(VALUES {','.join(['(?, ?)'] * len(chunk))}) AS asked "
            "CROSS JOIN requests ON principal = asked.column1 AND request = asked.column2"
        )
        for principal, name, asked, sequence in connection.execute(query, list(chain.from_iterable(chunk))):
            found[principal, name] = (asked, int(sequence))
    return found


def remember(connection: sqlite3.Connection, answers: Mapping[Key, Answer]) -> None:
    """Store answers, in the transaction of the write."""
    now = time.time()
    rows = [(*key, *answer, now) for key, answer in answers.items()]
    connection.executemany("INSERT INTO requests VALUES (?, ?, ?, ?, ?)", rows)


def forget(connection: sqlite3.Connection, subjects: Sequence[bytes], sequences: Sequence[int]) -> None:
    """Blank what was asked for in requests about subjects, given by their keyed hashes, and in some writes.

    Whoever has the file and its key could test what a person's study said against a digest, also one of a version that
    was replaced. Of requests that an earlier release answered only the writes that stored what is there now are known.
    """
    connection.execute(  # all at once: each time, the whole table is read
        "UPDATE requests SET digest = x'' WHERE hex(substr(digest, ?)) IN (SELECT value FROM json_each(?)) "
        "OR sequence IN (SELECT value FROM json_each(?)) AND length(digest) = ?",
        (
            _DIGEST_BYTES + 1,
            json.dumps([subject.hex().upper() for subject in subjects]),
            json.dumps(list(sequences)),
            _DIGEST_BYTES,
        ),
    )


def trim_now_and_then(connection: sqlite3.Connection, sequence: int) -> None:
    """In one write of a thousand, forget requests beyond :data:`MAX_AGE_S` or :data:`MAX_REQUESTS`, oldest first."""
    if sequence % _TRIM_EVERY:
        return
    now = time.time()
    connection.execute("DELETE FROM requests WHERE time < ?", (now - MAX_AGE_S,))
    connection.execute(
        "DELETE FROM requests WHERE (principal, request) IN "
        "(SELECT principal, request FROM requests ORDER BY time DESC LIMIT -1 OFFSET ?)",
        (MAX_REQUESTS,),
    )
