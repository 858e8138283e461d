"""Places in the code where a server can be made to die, by SIGKILL, at the n-th time that it gets there.

Each is put in by replacing a function of the real program, in the process that is to die, by one that counts.
"""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmecg_index import backup, database, durable, erasure, faiss_index
from mmecg_index.cache import IndexCache
from mmecg_index.erasure import Eraser
from mmecg_index.faiss_index import FaissIndex
from mmecg_index.writer import Writer


class Trap:
    """Kills the process when it is met for the n-th time."""

    def __init__(self, times: int) -> None:
        self._left = times
        self._lock = threading.Lock()

    def __call__(self, *_: object) -> None:
        with self._lock:
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
                time.sleep(60)


def _before(owner: Any, name: str, trap: Trap) -> None:
    original = getattr(owner, name)

    def trapped(*args: Any, **options: Any) -> Any:
        trap()
        return original(*args, **options)

    setattr(owner, name, trapped)


def _after(owner: Any, name: str, trap: Trap) -> None:
    original = getattr(owner, name)

    def trapped(*args: Any, **options: Any) -> Any:
        found = original(*args, **options)
        trap()
        return found

    setattr(owner, name, trapped)


def _before_statement(start: str, trap: Trap) -> None:
    """Put a trap before every SQL statement of the writer that begins so; none is executed before it is traced."""
    original = database.connect

    def connect(*args: Any, **options: Any) -> sqlite3.Connection:
        connection = original(*args, **options)
        connection.set_trace_callback(lambda statement: trap() if statement.startswith(start) else None)
        return connection

    database.connect = connect


def _in_publish(trap: Trap) -> None:
    """Put traps before, between and after the indexes and the table are brought up to a commit."""
    original = Writer.__init__

    def made(self: Writer, base: Any, publish: Callable[[Any], None], **options: Any) -> None:
        def publishing(written: Any) -> None:
            trap()
            publish(written)

        original(self, base, publishing, **options)

    Writer.__init__ = made  # type: ignore[method-assign]


POINTS: dict[str, tuple[Callable[[Trap], None], int]] = {
    "before COMMIT": (lambda trap: _before_statement("COMMIT", trap), 40),
    "in a transaction": (lambda trap: _before_statement("INSERT", trap), 300),
    "COMMIT done, nothing published": (_in_publish, 40),
    "published in part": (lambda trap: _before(FaissIndex, "upsert", trap), 60),
    "published, not answered": (lambda trap: _after(Writer, "_commit", trap), 40),
    "checkpoint": (lambda trap: _before_statement("PRAGMA wal_checkpoint", trap), 3),
    "compaction: built, not swapped": (lambda trap: _after(faiss_index, "build_ann", trap), 3),
    "snapshot: written, not synced": (lambda trap: _before(durable, "sync", trap), 20),
    "snapshot: synced, not renamed": (lambda trap: _before(Path, "rename", trap), 4),
    "snapshot: renamed, others not deleted": (lambda trap: _before(shutil, "rmtree", trap), 12),
    "erasure: committed, files untouched": (lambda trap: _after(Eraser, "_delete", trap), 3),
    "erasure: index built, not saved": (lambda trap: _after(IndexCache, "purge", trap), 5),
    "erasure: snapshots in part": (lambda trap: _after(IndexCache, "save_purged", trap), 5),
    "erasure: log not emptied": (lambda trap: _before(Eraser, "_empty_log", trap), 3),
    "erasure: not marked done": (lambda trap: _before(erasure, "_mark_done", trap), 3),
    "backup: database copied": (lambda trap: _after(backup, "_copy_database", trap), 2),
    "backup: not synced": (lambda trap: _before(backup, "_sync_below", trap), 2),
}
"""Name -> how the trap is set, and how often the point is met at most before the trap springs."""
