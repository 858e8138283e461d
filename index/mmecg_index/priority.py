"""Threads that work in the background, and step back behind those that answer calls."""

from __future__ import annotations

import os
import sys
import threading
from contextlib import suppress

_NICE = 10


def lower_priority() -> None:
    """Let this thread, and those that it starts, run when others do not want to; Linux alone knows that of a thread."""
    if sys.platform == "linux":
        here = threading.get_native_id()
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, here, max(_NICE, os.getpriority(os.PRIO_PROCESS, here)))
