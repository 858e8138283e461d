"""``python -m mmecg_server`` with the small encoder in place of the bundle, and without predictions."""

from __future__ import annotations

import signal
import sys
import threading

from mmecg_index.corpus import Corpus
from mmecg_server.__main__ import read_arguments
from mmecg_server.logs import log, set_up_logging
from small import FINGERPRINT, serving


def main() -> None:
    """Serve until SIGTERM."""
    config = read_arguments(None)
    set_up_logging()
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    if config.corpus is None:
        raise SystemExit("--config names no corpus")
    with Corpus.open(config.corpus, FINGERPRINT, reserve_bytes=0) as corpus, serving(config, corpus) as server:
        log("listening", host=config.host, port=server.port, metrics_port=server.metrics_port)
        log("serving", port=server.port)
        stop.wait()


if __name__ == "__main__":
    sys.exit(main())
