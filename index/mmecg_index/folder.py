"""Where the snapshots of one thing lie: directories ``<name>-<sequence>``, the newest that fits is used."""

from __future__ import annotations

import shutil
from pathlib import Path

from mmecg_index.durable import remove_directory


class SnapshotFolder:
    """The snapshots of one name in a directory, which need not be there yet.

    Parameters
    ----------
    directory : Path
    name : str
    """

    def __init__(self, directory: Path, name: str) -> None:
        self._directory = directory
        self._name = name

    def path(self, sequence: int) -> Path:
        """Return where the snapshot of a sequence number lies."""
        return self._directory / f"{self._name}-{sequence:015d}"

    def newest(self) -> list[Path]:
        """Return all, newest first."""
        return sorted(self._directory.glob(f"{self._name}-*"), reverse=True)

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
