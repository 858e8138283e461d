"""Directories that are either whole or not there (written aside, synced, renamed), and one process a directory."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mmecg.errors import AlreadyExistsError, MmecgError, NotReadyError, OverloadedError


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """Give a directory to fill; on leaving, sync it and rename it to ``path``, or remove it after an exception.

    Only its owner may enter it. A ``path`` that is an empty directory stays (it may be a mount point), with its mode;
    its files are moved in one by one.

    Raises
    ------
    AlreadyExistsError
        ``path`` is there, and not an empty directory.
    OverloadedError
        The disk is full.
    NotReadyError
        The disk refuses what is written.
    """
    try:
        with _new_directory(path) as directory:
            yield directory
    except OSError as error:
        raise _told(error) from error


@contextmanager
def _new_directory(path: Path) -> Iterator[Path]:
    there = path.is_dir() and not any(path.iterdir())
    if path.exists() and not there:
        raise _exists(path)
    # A name of its own: two threads may be asked for one directory, such as a backup and its retry.
    own = f"tmp-{os.getpid()}-{secrets.token_hex(4)}"
    temporary = (path / f".{own}") if there else path.with_name(f".{path.name}.{own}")
    temporary.parent.mkdir(parents=True, exist_ok=True)
    temporary.mkdir(mode=0o700)
    try:
        yield temporary
        for file in temporary.iterdir():
            sync(file)
        sync(temporary)
        if there:
            for file in temporary.iterdir():
                file.rename(path / file.name)
            sync(path)
        else:
            _rename(temporary, path)
        sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _rename(directory: Path, path: Path) -> None:
    try:
        directory.rename(path)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise _exists(path) from None  # somebody else was faster
        raise


def _exists(path: Path) -> AlreadyExistsError:
    return AlreadyExistsError(f"{path} exists and is not empty; open it, choose another place, or remove it first")


def remove_directory(path: Path) -> None:
    """Take a directory away at once, also as a power cut would find it, then delete its files; errors are passed over.

    A crash in between leaves files under a hidden name, ``.<name>``.
    """
    aside = path.with_name(f".{path.name}.gone-{os.getpid()}")
    with suppress(OSError):
        path.rename(aside)
        sync(path.parent)
    shutil.rmtree(aside, ignore_errors=True)


def _told(error: OSError) -> MmecgError:
    """Return what a caller is told, without the path."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error):
        return OverloadedError("the disk is full; nothing was changed; make room, then try again", limit="disk")
    what = type(error).__name__ if error.errno is None else os.strerror(error.errno)
    return NotReadyError(f"the disk refuses what is to be written ({what}); check it, then try again")


def sync(path: Path) -> None:
    """Flush a file or directory to the disk. An error is not retried: the pages may be gone already."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class DirectoryLock:
    """The right of one process to use a directory, until it is released or the process ends.

    Raises
    ------
    NotReadyError
        Another process holds it; the message names that process.
    """

    def __init__(self, directory: Path) -> None:
        self._descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(self._descriptor, 32).decode("ascii", "replace").strip() or "unknown"
            os.close(self._descriptor)
            raise NotReadyError(
                f"{directory} is in use by process {holder}; stop it, or ask it over gRPC instead"
            ) from None
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Give the directory back; harmless when done twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
