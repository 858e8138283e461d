"""What the C library may keep of memory that the server has given back."""

from __future__ import annotations

import ctypes
import sys

_M_ARENA_MAX = -8
"""Parameter of ``mallopt`` (glibc, malloc.h)."""

TRIM_EVERY_S = 60.0
"""Pause between two times that free pages are handed back to the system."""

_ARENAS = 2
"""A thread takes a pool of its own by default, up to eight a core; each keeps the gaps of its largest moment. With
mixed calls from 24 clients the resident memory grew by about 1 MiB a minute for as long as was measured, with two pools
by a quarter of that, and as many calls were answered."""


def bound_arenas() -> bool:
    """Let all threads share few pools of memory; to be called before any is started.

    Returns
    -------
    bool
        False if this C library is not glibc, or refuses: nothing has changed then.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(_M_ARENA_MAX, _ARENAS))


def give_back() -> bool:
    """Hand pages of memory that hold nothing back to the system, also between others that are in use.

    Returns
    -------
    bool
        True if some were.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    return trim is not None and bool(trim(0))
