"""The model that a server serves with, and how another takes its place while it runs.

Heads of the same bundle are read again; a bundle of another fingerprint makes the corpus embed every study anew, in the
background, and serves from the moment on at which the corpus is switched to it. What cannot be used changes nothing.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from mmecg.administration import Reindexing
from mmecg.bundle import Bundle, read_fingerprint
from mmecg.embedding import Encoder
from mmecg.errors import AlreadyExistsError, BundleError, MmecgError
from mmecg.retriever import Retriever
from mmecg.search import CorpusStore
from mmecg_server.config import ServerConfig
from mmecg_server.logs import log
from mmecg_server.server import Server

if TYPE_CHECKING:
    from mmecg.prediction.predictor import Predictor

AGAIN_S = 1.0
"""Pause before a bundle that the corpus was switched to, and the server could not take, is tried again."""


class Work(Protocol):
    """Embeddings of another bundle that are being made.

    Attributes
    ----------
    pause_s : float, optional
        How long writes waited for the switch.
    """

    pause_s: float | None

    @property
    def state(self) -> Reindexing:
        """How far it is."""

    def run(self) -> None:
        """Do it; raises ``MmecgError``."""

    def cancel(self) -> None:
        """Let it end soon."""


class Engine(Protocol):
    """What a corpus does so that another bundle can take over."""

    def in_space(self, fingerprint: str) -> CorpusStore:
        """Return a view for those who work with a bundle."""

    def reembed(self, encoder: Encoder, on_switch: Callable[[], None]) -> Work:
        """Return the work that gives the corpus the embeddings of an encoder; call back when it is switched."""


class Models:
    """The model of a server. Safe to use from many threads.

    Parameters
    ----------
    server : Server
        Serves with ``bundle``.
    engine : Engine
    bundle : Bundle
    path : Path, optional
        Where the operator puts bundles, as :class:`ServerConfig` says; it is read again by :meth:`reload`.
    load : callable
        Loads the bundle of a directory.
    open_predictor : callable
        Reads the heads of a bundle, for predictions over a view; None if it has none.
    """

    def __init__(
        self,
        server: Server,
        engine: Engine,
        bundle: Bundle,
        *,
        path: Path | None,
        load: Callable[[Path | None], Bundle],
        open_predictor: Callable[[Bundle, CorpusStore], Predictor | None],
    ) -> None:
        self._server = server
        self._engine = engine
        self._bundle = bundle
        self._path = path
        self._load = load
        self._open_predictor = open_predictor
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._work: Work | None = None
        self._wanted = bundle.fingerprint
        self._error = ""
        self._closed = threading.Event()
        self._seen = _fingerprint_or_none(path)

    @property
    def state(self) -> Reindexing:
        """How far the last re-embedding is; that of the bundle that serves if there was none."""
        work, error = self._work, self._error
        if work is not None:
            return replace(work.state, error=error)
        total = self._engine.in_space(self._bundle.fingerprint).count()
        done = self._wanted == self._bundle.fingerprint
        return Reindexing(self._wanted, done, total if done else 0, total, error)

    def start(self, path: Path) -> str:
        """Let the bundle of a directory take over; return its fingerprint. It goes on in the background.

        Raises
        ------
        BundleError
            It cannot be used.
        AlreadyExistsError
            Another one is taking over.
        """
        fingerprint = read_fingerprint(path)
        with self._lock:
            running = self._thread is not None and self._thread.is_alive()
            serves = fingerprint == self._bundle.fingerprint
            if running and fingerprint == self._wanted and not serves:
                return fingerprint
            if running and fingerprint != self._wanted:
                raise AlreadyExistsError(
                    f"the corpus is being given the embeddings of bundle {self._wanted[:12]}; wait until that is done"
                )
            if serves:
                self._refresh(path)
            elif not self._closed.is_set():
                self._wanted, self._work, self._error = fingerprint, None, ""
                self._thread = threading.Thread(target=self._run, args=(path,), name="reindex", daemon=True)
                self._thread.start()
        return fingerprint

    def reload(self) -> None:
        """Read the operator's bundle again, in the background; what cannot be used is logged and passed over."""
        threading.Thread(target=self._reload, name="reload", daemon=True).start()

    def close(self) -> None:
        """End what goes on; it goes on at the next start."""
        with self._lock:
            self._closed.set()
            if self._work is not None:
                self._work.cancel()
        if self._thread is not None:
            self._thread.join()

    def _reload(self) -> None:
        if self._path is None and self._bundle.fingerprint != self._seen:
            return
        try:
            fingerprint, before = read_fingerprint(self._path), self._seen
            self._seen = fingerprint
            if fingerprint == before != self._bundle.fingerprint:
                log("bundle_unchanged", fingerprint=fingerprint)  # another one took over since; not back again
            else:
                self.start(self._path or self._bundle.path)
        except (MmecgError, OSError) as error:
            reason = str(error) if isinstance(error, MmecgError) else type(error).__name__
            log("reload_failed", level=logging.ERROR, what="bundle", reason=reason)

    def _refresh(self, path: Path) -> None:
        """Read the heads of the bundle that serves again."""
        bundle = replace(self._bundle, path=path)
        view = self._engine.in_space(bundle.fingerprint)
        self._server.take(Retriever(bundle.encoder, view), self._open_predictor(bundle, view))
        self._bundle = bundle
        log("reloaded", what="prediction heads", fingerprint=bundle.fingerprint)

    def _run(self, path: Path) -> None:
        log("reindexing", fingerprint=self._wanted)
        switch: _Switch | None = None
        try:
            bundle = self._load(path)
            view = self._engine.in_space(bundle.fingerprint)
            retriever, predictor = Retriever(bundle.encoder, view), self._open_predictor(bundle, view)

            def take() -> None:
                self._server.take(retriever, predictor)
                self._bundle = bundle

            switch = _Switch(take)
            with self._lock:
                self._work = work = self._engine.reembed(bundle.encoder, switch.make)
                if self._closed.is_set():
                    work.cancel()
            work.run()
        except MmecgError as error:
            self._error = str(error)
            log("reindex_ended", level=logging.ERROR, reason=self._error)
        except Exception as error:
            self._error = f"unexpected {type(error).__name__}; see the server's log"
            log("reindex_ended", level=logging.ERROR, reason=type(error).__name__)
        else:
            log("reindexed", fingerprint=bundle.fingerprint, pause_ms=round(1000 * (work.pause_s or 0), 1))
        while switch is not None and switch.is_due and not self._closed.wait(AGAIN_S):
            switch.make()


class _Switch:
    """Lets the server take a bundle once the corpus is of it: there is no way back, so it is tried until it is done."""

    def __init__(self, take: Callable[[], None]) -> None:
        self._take = take
        self.is_due = False

    def make(self) -> None:
        """Try it; what fails is logged."""
        self.is_due = True
        try:
            self._take()
        except Exception as error:
            log("switch_failed", level=logging.ERROR, type=type(error).__name__)
        else:
            self.is_due = False


def find_bundle(config: ServerConfig, fingerprint: str) -> Path | None:
    """Return the bundle of a fingerprint: the configured one, or one in ``admin.bundle_dir``; None if there is none.

    What is not a bundle there is passed over.
    """
    folder = config.admin.bundle_dir
    beside = sorted(folder.iterdir()) if folder is not None and folder.is_dir() else []
    found = (path for path in (config.bundle, *beside) if path is not None and path.is_dir())
    return next((path for path in found if _fingerprint_or_none(path) == fingerprint), None)


def _fingerprint_or_none(path: Path | None) -> str | None:
    try:
        return read_fingerprint(path)
    except (BundleError, OSError):
        return None
