"""Where the snapshots of one thing lie: directories ``<name>-<sequence>``, the newest that fits is used."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from mmecg_index.durable import remove_directory

_LOG = logging.getLogger(__name__)


class SnapshotFolder:
    """The snapshots of one name in a directory, which need not be there yet.

    Parameters
    ----------
    directory : Path
    name : str

    Attributes
    ----------
    refused : int
        Snapshots that could not be used since it was opened.
    is_rebuilt : bool
        True if none could be used, and something was stored: it was made anew from the database.
    """

    def __init__(self, directory: Path, name: str) -> None:
        self.refused = 0
        self.is_rebuilt = False
        self._directory = directory
        self._name = name

    def path(self, sequence: int) -> Path:
        """Return where the snapshot of a sequence number lies."""
        return self._directory / f"{self._name}-{sequence:015d}"

    def newest(self) -> list[Path]:
        """Return all, newest first."""
        return sorted(self._directory.glob(f"{self._name}-*"), reverse=True)

    def refuse(self, path: Path, reason: Exception | str) -> None:
        """Count a snapshot that cannot be used, and tell the operator."""
        self.refused += 1
        why = type(reason).__name__ if isinstance(reason, Exception) else reason
        fields = {"snapshot": path.name, "reason": why}
        _LOG.warning(
            "snapshot refused, falling back: %s", reason, extra={"event": "snapshot_refused", "fields": fields}
        )

    def rebuilt(self, rows: int) -> None:
        """Note that something was made anew from so many rows of the database."""
        if rows:
            self.is_rebuilt = True
            fields = {"name": self._name, "rows": rows}
            _LOG.info("made anew from the database", extra={"event": "index_rebuilt", "fields": fields})

    def clear(self, sequence: int) -> None:
        """Make room for the snapshot of a sequence number."""
        self._directory.mkdir(mode=0o700, exist_ok=True)
        remove_directory(self.path(sequence))

    def keep_only(self, sequence: int) -> None:
        """Delete all but one."""
        for other in self.newest():
            if other != self.path(sequence):
                remove_directory(other)

    def tidy(self) -> None:
        """Delete what was left behind when a process ended while it saved."""
        for unfinished in self._directory.glob(f".{self._name}-*"):
            shutil.rmtree(unfinished, ignore_errors=True)
