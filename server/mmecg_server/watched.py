"""Files of the operator that may be replaced while the server runs: certificates, principals, keys.

A file is read again as soon as it has changed (time, size or inode), without a thread that polls: whoever needs the
value asks for it, which costs a ``stat`` of each file. A new file that cannot be used is logged and passed over until
it changes again, so that a mistake, or a pair of files of which only one has been replaced, stops nothing.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from mmecg.errors import ConfigError
from mmecg_server.logs import log

T = TypeVar("T")

Stamp = tuple[tuple[int, int, int] | None, ...]


class Watched(Generic[T]):
    """What some files say, as of now. Safe to ask from many threads.

    Parameters
    ----------
    what : str
        Names the value in the log: ``"certificates"``.
    paths : sequence of Path
        None of them is read but by ``parse``.
    parse : callable
        The contents of the files, in their order, to the value. Raises ``ConfigError``.

    Raises
    ------
    ConfigError
        A file cannot be read, or does not hold what it should. Later on, that is only logged.
    """

    def __init__(self, what: str, paths: Sequence[Path], parse: Callable[..., T]) -> None:
        self._what = what
        self._paths = tuple(paths)
        self._parse = parse
        self._lock = threading.Lock()
        self._stamp = self._look()
        self._value = self._read()

    def current(self) -> T:
        """Return the value; that of the files as they are now, if they can be used."""
        if self._look() != self._stamp:
            self.reload()
        return self._value

    def reload(self) -> bool:
        """Read the files again; return whether they could be used."""
        with self._lock:
            # The stamp is older than the content: a file that changes meanwhile is read once more.
            self._stamp = self._look()
            try:
                self._value = self._read()
            except ConfigError as error:
                log("reload_failed", level=logging.ERROR, what=self._what, reason=str(error))
                return False
        log("reloaded", what=self._what)
        return True

    def _read(self) -> T:
        try:
            contents = [path.read_bytes() for path in self._paths]
        except OSError as error:
            raise ConfigError(f"{self._what}: file {error.filename} cannot be read ({error.strerror})") from None
        return self._parse(*contents)

    def _look(self) -> Stamp:
        return tuple(map(_stamp, self._paths))


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
