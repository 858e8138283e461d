"""Processes that are forked from one that has imported everything, so that a round takes a second and not ten."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Child:
    """A process that was forked from this one, and the end of a pipe that it writes to."""

    pid: int
    pipe: int
    status: int = 0
    """How it ended, as :func:`os.waitpid` says; 0 until then."""

    def line(self, limit_s: float = 60.0) -> bytes:
        """Return all that it writes until it closes the pipe; nothing if it ends before."""
        end, found = time.monotonic() + limit_s, b""
        while time.monotonic() < end and (part := os.read(self.pipe, 65536)):
            found += part
        return found

    def wait(self, limit_s: float) -> bool:
        """Return whether it ended before the time was over."""
        end = time.monotonic() + limit_s
        while time.monotonic() < end:
            if self.pid:
                ended, self.status = os.waitpid(self.pid, os.WNOHANG)
                self.pid = 0 if ended else self.pid
            if not self.pid:
                return True
            time.sleep(0.005)
        return not self.pid

    def kill(self) -> None:
        """End it at once."""
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.pid = 0
        os.close(self.pipe)


def fork(work: Callable[[int], None], log: Path) -> Child:
    """Run a function in a process of its own, with what it prints in a file.

    Libraries are imported once, here, and never used here: no thread of theirs runs when the process is forked.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writing)
        return Child(pid, reading)
    code = 1
    try:
        os.close(reading)
        file = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
        os.dup2(file, 1)
        os.dup2(file, 2)
        work(writing)
        code = 0
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)
