"""Group commit: many threads hand in operations, one of them commits all that wait, durably, in one transaction.

The thread that finds nobody committing leads: it takes what waits, runs each operation in a savepoint of its own,
commits once, publishes the changes to the indexes in the order of the commit, wakes the others, and hands the lead to
the next that waits. There is no timer: a lone write is committed at once, and the group grows while a sync takes time.
An operation that fails takes nothing else with it. When the disk fails, everybody who waits is told, and nothing is
written until the corpus is opened again: after a failed sync nobody knows what is on the disk.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmecg.errors import MmecgError, NotReadyError, OverloadedError
from mmecg_index.database import Database, is_fault, translated

GROUP = 256
"""Most operations of one transaction, so that the first of them does not wait for ever."""

RESERVE_BYTES = 256 * 2**20
"""Of the disk, unless the configuration says otherwise."""

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stored:
    """What stands in a row after a write: its row of the metadata table, and its embeddings of the current space."""

    record: tuple[Any, ...]
    embeddings: Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Written:
    """What an operation did.

    Attributes
    ----------
    sequence : int
        Of this write, or of the earlier one that had done it already; 0 if it was not a write to studies.
    rows : mapping of int to Stored, optional
        Every row that the indexes must learn of; None for a row that is gone.
    touched : tuple of (str, str), optional
        Subject id and study id of everything that changed, for the audit trail.
    """

    sequence: int = 0
    rows: Mapping[int, Stored | None] = field(default_factory=dict)
    touched: tuple[tuple[str, str], ...] = ()


Operation = Callable[[sqlite3.Connection], Written]


class _Ticket:
    """An operation that waits for its outcome."""

    __slots__ = ("done", "error", "operation", "wake", "written")

    def __init__(self, operation: Operation) -> None:
        self.operation = operation
        self.wake = threading.Event()
        self.done = False
        self.written = Written()
        self.error: BaseException | None = None


class Writer:
    """The only way to write to a corpus. Safe to use from many threads.

    Parameters
    ----------
    database : Database
    publish : callable
        Applies committed changes, in their order, to everything that is searched.
    reserve_bytes : int
        Free bytes of the disk below which no more is accepted: room to checkpoint, to delete, and to save indexes.

    Attributes
    ----------
    sequence : int
        Number of the last write that is committed and searchable.
    lags : bool
        Whether what is searched could not follow a write that is stored.
    """

    def __init__(
        self, database: Database, publish: Callable[[Sequence[Written]], None], *, reserve_bytes: int = 0
    ) -> None:
        self.sequence = database.sequence
        self._database = database
        self._publish = publish
        self._reserve_bytes = reserve_bytes
        self._fault: str | None = None
        self.lags = False
        self._mutex = threading.Lock()
        self._waiting: deque[_Ticket] = deque()
        self._has_leader = False
        self._committing = threading.RLock()

    @property
    def fault(self) -> str | None:
        """Why nothing is written any more, until the corpus is opened again; None while all is well."""
        return "its database is damaged" if self._database.is_damaged else self._fault

    def write(self, operation: Operation, *, grows: bool = True) -> Written:
        """Run an operation in a transaction, and return what it did when that is on the disk and searchable.

        Parameters
        ----------
        operation : callable
            Gets the connection; whatever it raises undoes it, and only it.
        grows : bool
            Refuse it when the disk is nearly full; False for what makes room.

        Raises
        ------
        OverloadedError
            Too little of the disk is free, or another program holds the file.
        NotReadyError
            The corpus is closed, or cannot be written to since its disk failed. If it fails under this very operation,
            it may or may not be found done when the corpus is opened again.
        """
        self.check(grows=grows)
        ticket = _Ticket(operation)
        with self._mutex:
            self._waiting.append(ticket)
            leads, self._has_leader = not self._has_leader, True
        if not leads:
            try:
                ticket.wake.wait()
            except BaseException:
                self._withdraw(ticket)
                raise
        if not ticket.done:
            self._lead(ticket)
        if ticket.error is not None:
            raise ticket.error
        return ticket.written

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Keep every write waiting."""
        with self._committing:
            yield

    def write_exclusively(self, operation: Callable[[sqlite3.Connection], object]) -> None:
        """Run an operation in a transaction of its own, inside :meth:`exclusive`; what is searched is the caller's.

        Raises
        ------
        NotReadyError, OverloadedError
            See :meth:`write`.
        """
        connection = self._database.writer
        with self._committing:
            self.check(grows=False)
            try:
                connection.execute("BEGIN IMMEDIATE")
                operation(connection)
                connection.execute("COMMIT")
            except BaseException as error:
                with suppress(sqlite3.Error):
                    if connection.in_transaction:
                        connection.execute("ROLLBACK")
                raise self._failed(error) from error

    def checkpoint(self, mode: str = "PASSIVE") -> None:
        """Move the log into the database file; while nobody reads, ``TRUNCATE`` leaves nothing in the log.

        Raises
        ------
        NotReadyError
            The disk failed, now or before.
        """
        with self._committing:
            self.check(grows=False)
            try:
                self._database.checkpoint(mode)
            except sqlite3.Error as error:
                raise self._failed(error) from error

    def rebuild(self, statement: str) -> None:
        """Write a look-up tree (``REINDEX``) or the whole file (``VACUUM``) anew, while writes wait.

        Raises
        ------
        OverloadedError
            The disk has no room for it.
        NotReadyError
            The disk failed, now or before.
        """
        with self._committing:
            self.check(grows=False)
            try:
                self._database.writer.execute(statement)
            except sqlite3.Error as error:
                raise self._failed(error) from error

    def _lead(self, ticket: _Ticket) -> None:
        """Commit one group, which begins with the ticket, and hand over the lead, whatever happens."""
        try:
            with self._committing:
                with self._mutex:
                    group = [self._waiting.popleft() for _ in range(min(GROUP, len(self._waiting)))]
                try:
                    self._commit(group)
                finally:
                    for each in group:
                        each.done = True
                        each.wake.set()
                if self._fault is None and self._database.checkpoint_is_due:
                    with suppress(MmecgError):  # nobody's write failed; the next one is told
                        self.checkpoint()
        finally:
            self._withdraw(ticket, leads=True)

    def _withdraw(self, ticket: _Ticket, *, leads: bool = False) -> None:
        """Take out a ticket that nobody waits for any more, and hand over the lead if it had it."""
        with self._mutex:
            if ticket in self._waiting:
                self._waiting.remove(ticket)
                leads = leads or ticket.wake.is_set()
            if leads and self._waiting:
                self._waiting[0].wake.set()
            elif leads:
                self._has_leader = False

    def _commit(self, group: list[_Ticket]) -> None:
        """Give every ticket of the group its outcome."""
        connection = self._database.writer
        try:
            self.check(grows=False)
            connection.execute("BEGIN IMMEDIATE")
            for ticket in group:
                _run(ticket, connection)
            connection.execute("COMMIT")
        except BaseException as error:
            with suppress(sqlite3.Error):
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
            for ticket in group:
                ticket.error = self._failed(error)
            if not isinstance(error, Exception):
                raise
            return
        written = [ticket.written for ticket in group if ticket.error is None]
        try:
            self._publish(written)
        except BaseException as error:
            self.lags = True
            self._fault = f"a write is stored, but the indexes could not follow ({type(error).__name__})"
            _LOG.exception(
                "the indexes lag behind the database; the corpus is read-only until it is opened again",
                extra={"event": "index_lags", "fields": {"reason": type(error).__name__}},
            )
            for ticket in group:
                ticket.error = ticket.error or self._refused()
            if not isinstance(error, Exception):
                raise
            return
        self.sequence = max([self.sequence, *(each.sequence for each in written)])

    def check(self, *, grows: bool = True) -> None:
        """Raise what :meth:`write` would raise now."""
        self._database.check_open()
        if self._fault is not None:
            raise self._refused()
        if grows and self._reserve_bytes:
            disk = os.statvfs(self._database.path.parent)
            if disk.f_bavail * disk.f_frsize < self._reserve_bytes:
                raise OverloadedError(
                    f"the disk of the corpus has less than {self._reserve_bytes / 2**20:.0f} MiB free "
                    "(storage.reserve_bytes), so nothing more is stored; make room, then send it again",
                    limit="disk",
                )

    def _failed(self, error: BaseException) -> BaseException:
        """Return what to tell a caller whose transaction failed; after a failure of the disk, write no more."""
        if not isinstance(error, Exception):
            return OverloadedError("the write was interrupted together with another one; send it again")
        if not isinstance(error, sqlite3.Error):
            return error
        if is_fault(error):
            if self._fault is None:
                _LOG.critical(
                    "the corpus is read-only until it is opened again: %s (%s)",
                    error,
                    _name_of(error),
                    extra={"event": "storage_failed", "fields": {"reason": _name_of(error)}},
                )
            self._fault = f"its disk failed ({_name_of(error)})"
            return self._refused()
        return translated(error)

    def _refused(self) -> NotReadyError:
        return NotReadyError(
            f"the corpus cannot be written to: {self._fault}; reads go on. Check the disk and open the corpus again "
            "(restart the server); a write that was under way may be found done or not done: send it again"
        )


def _run(ticket: _Ticket, connection: sqlite3.Connection) -> None:
    connection.execute("SAVEPOINT operation")
    try:
        ticket.written = ticket.operation(connection)
    except Exception as error:
        if not connection.in_transaction or (isinstance(error, sqlite3.Error) and translated(error) is not error):
            raise  # not this operation's fault, and the others' work is lost with it
        connection.execute("ROLLBACK TO operation")
        ticket.error = error
    connection.execute("RELEASE operation")


def _name_of(error: sqlite3.Error) -> str:
    return str(getattr(error, "sqlite_errorname", type(error).__name__))
