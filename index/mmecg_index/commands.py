"""Commands of an operator in the audit trail of the corpus they read or make, also beside a server."""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from mmecg.errors import MmecgError
from mmecg_index import schema
from mmecg_index.audit import AuditEntry, insert
from mmecg_index.database import connect
from mmecg_index.reading import FILE, reading
from mmecg_index.verify import BACKUP_MANIFEST

_LOG = logging.getLogger(__name__)


@dataclass
class Command:
    """A command, as far as it has come: a :class:`~mmecg_index.calls.Call`.

    Attributes
    ----------
    principal, method : str
        Who runs what.
    items : int
        How many studies; filled in by who runs it.
    outcome : str
        "OK", or the class of the error it ended with.
    """

    principal: str
    method: str
    items: int = 0
    outcome: str = "OK"
    only_reads: bool = False
    request_id: str = ""
    touched: Mapping[tuple[str, str], None] = field(default_factory=dict)
    failed: Mapping[str, Mapping[tuple[str, str], None]] = field(default_factory=dict)


@contextmanager
def entered(directory: Path, method: str, principal: str) -> Iterator[Command]:
    """Enter a command in the trail of a corpus when it ends, however it ends.

    A backup is not changed by who reads it, and what is not there or may not be written is not entered; if an entry
    fails, that is logged, and no reason for the command to fail.

    Parameters
    ----------
    directory : Path
        Of the corpus; it may be made meanwhile, and a server may use it.
    method, principal : str
    """
    command = Command(principal, method)
    try:
        yield command
    except BaseException as error:
        command.outcome = type(error).__name__
        raise
    finally:
        _enter(directory, command)


def _enter(directory: Path, command: Command) -> None:
    file = directory / FILE
    if not file.is_file() or (directory / BACKUP_MANIFEST).exists():
        return
    try:
        if not (os.access(file, os.W_OK) and os.access(directory, os.W_OK)):
            raise PermissionError(f"{directory} cannot be written to")
        with reading(directory) as view:
            secret, version = view.secret, view.version
        if version != schema.VERSION:
            return  # of an earlier release, which has no trail
        entry = AuditEntry(datetime.now(UTC), command.principal, command.method, command.outcome, items=command.items)
        with closing(connect(file)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            insert(connection, secret, [entry])
            connection.execute("COMMIT")
    except (MmecgError, OSError, sqlite3.Error) as error:
        reason = type(error).__name__
        _LOG.warning(
            "the command is not entered in the audit trail (%s)",
            reason,
            extra={"event": "command_not_entered", "fields": {"reason": reason}},
        )
