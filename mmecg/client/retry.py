"""Retries: which pause before which attempt, within one deadline."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass

from mmecg.client.status import is_retryable


@dataclass(frozen=True)
class RetryPolicy:
    """Exponential backoff with full jitter, for errors of the moment only.

    Attributes
    ----------
    attempts : int
        Most attempts, the first included; 1 never retries.
    first_pause_s, max_pause_s : float
        Bounds of the pause, which doubles from attempt to attempt. A longer pause that the server asks for wins.
    """

    attempts: int = 5
    first_pause_s: float = 0.05
    max_pause_s: float = 2.0

    def pauses(self, deadline: float) -> Iterator[float]:
        """Yield the upper bound of the pause after each attempt but the last, until the deadline (monotonic time)."""
        for attempt in range(self.attempts - 1):
            if time.monotonic() >= deadline:
                return
            yield min(self.first_pause_s * 2**attempt, self.max_pause_s)


def pause_for(error: Exception, bound_s: float | None, deadline: float) -> float | None:
    """Return how long to wait before the next attempt, or None if there is to be none.

    Parameters
    ----------
    error : Exception
        What the attempt raised.
    bound_s : float, optional
        Upper bound of the pause; None after the last attempt.
    deadline : float
        Moment of :func:`time.monotonic` at which the caller gives up.
    """
    if bound_s is None or not is_retryable(error):
        return None
    asked = getattr(error, "retry_after_s", None) or 0.0
    pause = float(asked + random.uniform(0, bound_s))
    return pause if time.monotonic() + pause < deadline else None
