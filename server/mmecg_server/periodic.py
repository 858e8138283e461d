"""What the server does now and then beside its calls: see whether the corpus takes writes, probe its index's recall."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from mmecg.embedding import MODALITIES
from mmecg_server.logs import log
from mmecg_server.metrics import Measurable, Metrics

LOOK_EVERY_S = 1.0
FIRST_PROBE_S = 5.0

Action = Callable[[Callable[[float], bool]], object]


class Periodic:
    """Calls a function every so many seconds, in a thread of its own, until it is closed.

    Parameters
    ----------
    name : str
        Of the thread, and in the log.
    action : callable
        Given a function that waits so many seconds, and returns True if it is time to end. What it raises is logged by
        its type, and it is called again.
    every_s : float
        Pause between two calls.
    first_s : float, optional
        Pause before the first; default ``every_s``.
    """

    def __init__(self, name: str, action: Action, every_s: float, *, first_s: float | None = None) -> None:
        self._name = name
        self._action = action
        self._every_s = every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=self._run, args=(every_s if first_s is None else first_s,), name=name, daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._stop.set()
        self._thread.join()

    def _run(self, pause_s: float) -> None:
        while not self._stop.wait(pause_s):
            pause_s = self._every_s
            try:
                self._action(self._stop.wait)
            except Exception as error:
                log("periodic_failed", level=logging.WARNING, name=self._name, type=type(error).__name__)


def probe_recall_every(every_s: float, corpus: Measurable, metrics: Metrics) -> Periodic:
    """Publish the recall of each index, soon and then every so many seconds."""

    def probe(wait: Callable[[float], bool]) -> None:
        for modality in MODALITIES:
            started = time.monotonic()
            recall = corpus.probe_recall(modality, wait)
            if recall is not None:
                metrics.observe_recall(modality, recall, time.monotonic() - started)

    return Periodic("recall-probe", probe, every_s, first_s=min(every_s, FIRST_PROBE_S))
