"""The servers of the crash run: a small one that compacts and saves its indexes all the time, and the real program."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kill_points import Trap, _before
from mmecg_index import durable, faiss_index
from mmecg_index.corpus import Corpus
from mmecg_server.config import LimitsConfig, ServerConfig
from mmecg_server.logs import set_up_logging
from small import FINGERPRINT, serving

from mmecg.errors import MmecgError

LIMITS = LimitsConfig(max_streams=16)
SMALL_TAIL = 60
"""Vectors beyond which an index is compacted, instead of 50,000."""

REINDEX_EVERY_S = 0.25


def serve_until_killed(
    place: Path, pipe: int, *, trap: Callable[[], None] | None, factory: str | None, synchronous: Any
) -> None:
    """Serve the corpus of a place; write the port into the pipe once the server is ready."""
    set_up_logging()
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    faiss_index._MIN_TAIL = SMALL_TAIL
    if trap is not None:
        trap()
    path, options = place / "corpus", {"synchronous": synchronous, "reserve_bytes": 0}
    if not path.exists():
        Corpus.create(path, FINGERPRINT, factory=factory, **options).close()
    with Corpus.open(path, FINGERPRINT, **options) as corpus:
        threading.Thread(target=_reindex, args=(corpus,), daemon=True).start()
        config = ServerConfig(port=0, drain_s=1, limits=LIMITS)
        with serving(config, corpus, backups=place / "backups") as server:
            _tell(pipe, server.port)
            stop.wait()


def stop_when_asked() -> None:
    """Let the server that was asked to end die somewhere in its last snapshots, if nothing kills it before."""
    original = Corpus.close

    def close(self: Corpus) -> None:
        _before(durable, "sync", Trap(7))
        original(self)

    Corpus.close = close  # type: ignore[method-assign]


def run_program(place: Path, pipe: int) -> None:
    """Become ``python -m mmecg_server``; write the port into the pipe once it serves."""
    log = place / "program.log"
    log.unlink(missing_ok=True)
    config = place / "server.toml"
    (place / "backups").mkdir(exist_ok=True)
    config.write_text(
        f'corpus = "{place / "corpus"}"\nport = 0\ntorch_threads = 1\n[admin]\nbackup_dir = "{place / "backups"}"\n'
        "[limits]\nmax_streams = 16\n"
    )
    if not os.fork():
        end = time.monotonic() + 120
        while time.monotonic() < end:
            for line in log.read_text().splitlines() if log.exists() else []:
                if '"event": "serving"' in line:
                    _tell(pipe, json.loads(line)["port"])
                    os._exit(0)
            time.sleep(0.05)
        os._exit(1)
    os.dup2(os.open(log, os.O_CREAT | os.O_WRONLY, 0o600), 2)
    os.execv(sys.executable, [sys.executable, "-m", "mmecg_server", "--config", str(config)])


def _reindex(corpus: Corpus) -> None:
    """Compact and save, as an operator's reindex does, over and over."""
    while True:
        time.sleep(REINDEX_EVERY_S)
        try:
            corpus.compact()
        except MmecgError:
            return


def _tell(pipe: int, port: int) -> None:
    os.write(pipe, str(port).encode())
    os.close(pipe)
