"""``python -m mmecg_server``: read the configuration, bind, load, serve, drain on SIGTERM or SIGINT.

Exit codes: 0 after a drain, 1 if bundle or corpus cannot be used, 2 if the configuration cannot.
This module alone picks the model and the engine.
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import numpy as np
from mmecg_index.administration import CorpusAdministration
from mmecg_index.calls import CallTrail
from mmecg_index.corpus import Corpus
from mmecg_index.progress import forget_outgrown, read_progress
from mmecg_index.reading import FILE, reading
from mmecg_index.reembed import Reembedding

import mmecg
from mmecg.assets import DEMO_CORPUS
from mmecg.bundle import Bundle, load_bundle
from mmecg.config import Precision, effective_config, load_config
from mmecg.datasets.parquet import read_studies
from mmecg.ecg import Ecg
from mmecg.embedding import Encoder
from mmecg.errors import ConfigError, MmecgError, NotAlignedError
from mmecg.labels.report_miner import ReportMiner
from mmecg.report import Report
from mmecg.retriever import Query, Retriever
from mmecg.search import CorpusStore
from mmecg.study import Study
from mmecg_server.config import ServerConfig
from mmecg_server.logs import log, set_up_logging
from mmecg_server.memory import bound_arenas
from mmecg_server.models import Models, find_bundle
from mmecg_server.server import Server

if TYPE_CHECKING:
    from mmecg.prediction.predictor import Predictor


def main(argv: Sequence[str] | None = None) -> int:
    """Run the server until a signal comes; return the exit code."""
    try:
        config = read_arguments(argv)
    except ConfigError as error:
        print(f"mmecg_server: {error}", file=sys.stderr)
        return 2
    set_up_logging()
    bound_arenas()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    reloads: list[Callable[[], None]] = []
    signal.signal(signal.SIGHUP, lambda *_: [reload() for reload in reloads])
    try:
        return run(config, stop, reloads)
    except ConfigError as error:
        log("refused_to_start", level=logging.ERROR, reason=str(error))
        return 2
    except MmecgError as error:
        log("refused_to_start", level=logging.ERROR, reason=str(error))
        return 1


def run(config: ServerConfig, stop: threading.Event, reloads: list[Callable[[], None]]) -> int:
    """Serve until ``stop`` is set; put what SIGHUP is to call into ``reloads``.

    Raises
    ------
    ConfigError
        The address cannot be bound.
    ArtifactError
        Bundle or corpus cannot be used, or they do not share an embedding space.
    """
    log("starting", version=mmecg.__version__, config=effective_config(config))
    with Server(config) as server:
        log("listening", host=config.host, port=server.port, metrics_port=server.metrics_port)
        reloads.append(server.reload)
        bundle = open_bundle(replace(config, bundle=choose_bundle(config)))
        with open_corpus(config, bundle.fingerprint) as corpus:
            view = corpus.in_space(bundle.fingerprint)
            retriever = Retriever(bundle.encoder, view)
            fill_demo(config, retriever)
            if not stop.is_set():
                miner = ReportMiner()
                predictor = open_predictor(bundle, view, miner)
                warm_up(retriever, predictor)
                gc.collect()
                gc.freeze()  # model and corpus stay: no collection has to look through them
                models = open_models(config, server, corpus, bundle, miner)
                administration = CorpusAdministration(
                    corpus, backup_dir=config.admin.backup_dir, bundle_dir=config.admin.bundle_dir, reindexer=models
                )
                server.serve(retriever, miner, predictor, CallTrail(corpus), administration)
                reloads.append(models.reload)
                stats = corpus.stats()
                log("serving", port=server.port, fingerprint=stats.fingerprint, studies=stats.studies)
                go_on(config, corpus, models)
                stop.wait()
                models.close()
            log("draining")
            server.stop()
    return 0


class CorpusEngine:
    """A corpus as :class:`mmecg_server.models.Engine`."""

    def __init__(self, corpus: Corpus) -> None:
        self._corpus = corpus

    def in_space(self, fingerprint: str) -> CorpusStore:
        """Return a view for those who work with a bundle."""
        return self._corpus.in_space(fingerprint)

    def reembed(self, encoder: Encoder, on_switch: Callable[[], None]) -> Reembedding:
        """Return the work that gives the corpus the embeddings of an encoder."""
        return Reembedding(self._corpus, encoder, on_switch=on_switch)


def open_models(config: ServerConfig, server: Server, corpus: Corpus, bundle: Bundle, miner: ReportMiner) -> Models:
    """Return what lets another bundle take over."""
    return Models(
        server,
        CorpusEngine(corpus),
        bundle,
        path=config.bundle,
        load=lambda path: load_bundle(path, precision=config.precision),
        open_predictor=lambda bundle, view: open_predictor(bundle, view, miner),
    )


def choose_bundle(config: ServerConfig) -> Path | None:
    """Return the configured bundle, or the one in ``admin.bundle_dir`` that the corpus was switched to since."""
    if config.corpus is None or not (config.corpus / FILE).is_file():
        return config.bundle
    with reading(config.corpus) as view:
        found = find_bundle(config, view.fingerprint)
    if found is not None and found != config.bundle:
        log("other_bundle", level=logging.WARNING, bundle=str(found), fingerprint=view.fingerprint)
    return found or config.bundle


def go_on(config: ServerConfig, corpus: Corpus, models: Models) -> None:
    """Go on with a re-embedding that did not end, or with what was left to delete after one."""
    with reading(corpus.path) as view:
        unfinished = read_progress(view.connection)
    if unfinished is None:
        threading.Thread(target=forget, args=(corpus,), name="forget", daemon=True).start()
    elif (path := find_bundle(config, unfinished.fingerprint)) is not None:
        models.start(path)
    else:
        log("reindex_waits", level=logging.WARNING, fingerprint=unfinished.fingerprint)


def forget(corpus: Corpus) -> None:
    """Delete embeddings of a bundle that serves no more."""
    try:
        forget_outgrown(corpus)
    except MmecgError as error:
        log("forget_failed", level=logging.WARNING, reason=str(error))


def open_bundle(config: ServerConfig) -> Bundle:
    """Load the bundle, and say how many threads it may use.

    Raises
    ------
    BundleError
        It cannot be used.
    """
    import torch

    torch.set_num_threads(config.torch_threads or max(1, (os.cpu_count() or 1) // 2))
    return load_bundle(config.bundle, precision=config.precision)


@contextmanager
def open_corpus(config: ServerConfig, fingerprint: str) -> Iterator[Corpus]:
    """Open the corpus, and close it at the end.

    Raises
    ------
    ArtifactError
        The corpus cannot be used, or is of another embedding space.
    """
    with tempfile.TemporaryDirectory(prefix="mmecg-demo-") as folder:
        path = config.corpus or Path(folder) / "corpus"
        is_new = not path.exists() or (path.is_dir() and not any(path.iterdir()))
        enter = Corpus.create if is_new else Corpus.open
        with enter(path, fingerprint, **vars(config.storage), **vars(config.index)) as corpus:
            corpus.audit.reads = config.audit.reads
            yield corpus


def fill_demo(config: ServerConfig, retriever: Retriever) -> None:
    """Put the demo studies into the corpus, unless the configuration names one."""
    if config.corpus is None:
        log("loading_demo_corpus")
        retriever.ingest(read_studies(DEMO_CORPUS))


def open_predictor(bundle: Bundle, corpus: CorpusStore, miner: ReportMiner) -> Predictor | None:
    """Read the prediction heads; None if the bundle has none, which leaves the other services as they are.

    Raises
    ------
    ArtifactError
        The heads are damaged or of another bundle.
    """
    from mmecg.prediction.heads import HEADS_FILE
    from mmecg.prediction.predictor import Predictor

    if not (bundle.path / HEADS_FILE).is_file():
        log("no_prediction_heads", level=logging.WARNING)
        return None
    return Predictor(bundle, corpus, miner=miner)


def warm_up(retriever: Retriever, predictor: Predictor | None = None) -> None:
    """Encode, search and predict once, so that the first caller does not pay for what libraries set up lazily."""
    wave = np.sin(np.arange(5000) / 50)[None].repeat(12, axis=0)
    ecg, moment = Ecg.from_array(wave, sampling_rate_hz=500), datetime(2000, 1, 1)
    retriever.search([Query(ecg=ecg)], 1)
    with suppress(NotAlignedError):
        retriever.search([Query(text="sinus rhythm")], 1)
    if predictor is not None:
        name, report = "warm-up", Report.from_text("Sinus rhythm.")
        before = Study(study_id=name, subject_id=name, acquired_at=moment - timedelta(days=1), ecg=ecg, report=report)
        predictor.predict(ecg, subject_id=name, as_of=moment, extra_history=[before])


def read_arguments(argv: Sequence[str] | None) -> ServerConfig:
    """Parse the command line and the configuration file that it names; the command line wins.

    Raises
    ------
    ConfigError
        See :func:`mmecg.config.load_config`.
    """
    parser = argparse.ArgumentParser(prog="mmecg_server", description="Serve ECG embedding and search over gRPC.")
    parser.add_argument("--config", type=Path, help="TOML file; its keys are in server/README.md")
    parser.add_argument("--corpus", type=Path, help="corpus directory; without one, the demo corpus")
    parser.add_argument("--bundle", type=Path, help="model bundle directory; without one, the bundled model")
    parser.add_argument("--host", help="address to bind (127.0.0.1)")
    parser.add_argument("--port", type=int, help="port to bind (50051); 0 picks a free one")
    parser.add_argument("--precision", choices=get_args(Precision), help="what the ECG tower computes in (auto)")
    parser.add_argument("--torch-threads", type=int, help="threads of one encoder call")
    options = vars(parser.parse_args(argv))
    return load_config(ServerConfig, options.pop("config"), **options)


if __name__ == "__main__":
    sys.exit(main())
