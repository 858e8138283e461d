"""Requests that were answered: a retry after a lost answer gets the same answer, and does nothing a second time."""

from __future__ import annotations

import sqlite3
import time

from mmecg.errors import AlreadyExistsError, QueryError
from mmecg_index.audit import digest
from mmecg_index.writer import Operation, Written

MAX_AGE_S = 7 * 24 * 3600.0
MAX_REQUESTS = 1_000_000
_TRIM_EVERY = 1000
_MAX_ID_CHARS = 128


class Request:
    """A request that a caller named, so that it is done once.

    Parameters
    ----------
    secret : bytes
        Key of the corpus; a request id may hold the id of a person, so only its keyed hash is stored.
    principal, request_id : str
        Who asks, and how they name it.
    content : bytes
        Digest of what is asked for.

    Raises
    ------
    QueryError
        The request id is empty or too long.
    """

    def __init__(self, secret: bytes, principal: str, request_id: str, content: bytes) -> None:
        if not 1 <= len(request_id) <= _MAX_ID_CHARS:
            raise QueryError(
                f"request_id has {len(request_id)} characters, expected 1 to {_MAX_ID_CHARS}", field="request_id"
            )
        self._key = (principal, digest(secret, "request", request_id))
        self._content = content

    def answer(self, connection: sqlite3.Connection) -> int | None:
        """Return the sequence number it was answered with; None if it was not.

        Raises
        ------
        AlreadyExistsError
            This request id stands for something else.
        """
        query = "SELECT digest, sequence FROM requests WHERE principal = ? AND request = ?"
        stored = connection.execute(query, self._key).fetchone()
        if stored is None:
            return None
        if stored[0] != self._content:
            raise AlreadyExistsError(
                "request_id was used for another request, expected a new one for each; send it with a new request_id"
            )
        return int(stored[1])

    def once(self, operation: Operation) -> Operation:
        """Return an operation that does its work only if the request was not answered yet."""

        def run(connection: sqlite3.Connection) -> Written:
            if (sequence := self.answer(connection)) is not None:
                return Written(sequence)
            written = operation(connection)
            now = time.time()
            values = (*self._key, self._content, written.sequence, now)
            connection.execute("INSERT INTO requests VALUES (?, ?, ?, ?, ?)", values)
            if written.sequence % _TRIM_EVERY == 0:
                trim(connection, now)
            return written

        return run


def trim(connection: sqlite3.Connection, now: float) -> None:
    """Forget requests beyond :data:`MAX_AGE_S` or :data:`MAX_REQUESTS`, the oldest first."""
    connection.execute("DELETE FROM requests WHERE time < ?", (now - MAX_AGE_S,))
    connection.execute(
        "DELETE FROM requests WHERE (principal, request) IN "
        "(SELECT principal, request FROM requests ORDER BY time DESC LIMIT -1 OFFSET ?)",
        (MAX_REQUESTS,),
    )
