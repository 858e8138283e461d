"""The structure of a database in use, checked in the background: no answer comes from look-up trees that are damaged.

SQLite has no checksums. A flipped bit in one of its trees can leave a study out of a list without any error;
``PRAGMA integrity_check`` compares every tree with its table. A small file is checked when it is opened. A larger one
is checked as soon as it is open, and every file again once a day, by a process of its own that only reads (it is ended
for an erasure, which needs a log that nobody reads, and begins anew). If it finds damage, nothing is read or written
any more. Until it has ended, lists are compared with the metadata table, see :mod:`mmecg_index.queries`.
"""

from __future__ import annotations

import logging
import sqlite3
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from mmecg.errors import MmecgError
from mmecg_index.aside import run_aside, step_aside

if TYPE_CHECKING:
    from mmecg_index.database import Database

_LOG = logging.getLogger(__name__)
_EVERY_S = 24 * 3600.0
_AGAIN_S = 1.0
_WHOLE = "ok"


class StructureCheck:
    """Checks the file of a database, and declares it damaged.

    Parameters
    ----------
    database : Database
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._ended = threading.Event()
        self._reading = threading.Lock()
        self._counting = threading.Lock()
        self._pauses = 0
        self._thread = threading.Thread(target=self._run, name="structure", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self) -> None:
        """End what is under way."""
        self._ended.set()
        if self._thread.ident is not None:
            self._thread.join()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """End what is under way, and begin nothing meanwhile. For one thread at a time, the others wait."""
        self._count(1)
        try:
            with self._reading:
                yield
        finally:
            self._count(-1)

    def _run(self) -> None:
        due = _EVERY_S if self._database.is_checked else 0.0
        while not self._ended.wait(due):
            due = _EVERY_S
            try:
                with self._reading:
                    found = run_aside(__name__, [str(self._database.path)], wanted=self._is_wanted)
            except (MmecgError, OSError) as error:
                _LOG.warning(
                    "the structure of the database could not be checked, it is tried again tomorrow: %s",
                    error,
                    extra={"event": "structure_not_checked", "fields": {"reason": type(error).__name__}},
                )
                continue
            if found is None:
                due = _AGAIN_S
            elif found.strip() != _WHOLE:
                self._database.condemn()
                return

    def _count(self, change: int) -> None:
        with self._counting:
            self._pauses += change

    def _is_wanted(self) -> bool:
        return not (self._ended.is_set() or self._pauses)


def is_whole(file: Path) -> bool:
    """Return whether every tree of a database fits its table; only reads, in one transaction."""
    with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=rw", uri=True)) as connection:
        connection.execute("PRAGMA busy_timeout = 10000")
        connection.execute("PRAGMA query_only = ON")
        try:
            (found,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
        except sqlite3.DatabaseError as error:
            if error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                return False
            raise  # a read that failed says nothing of what is stored
        return bool(found == "ok")


def _main() -> None:
    step_aside()
    print(_WHOLE if is_whole(Path(sys.argv[1])) else "damaged")


if __name__ == "__main__":
    _main()
