"""A drain in the middle of a busy moment: what was acknowledged is kept, and every call ends with a plain answer."""

import itertools
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import grpc
import pytest
from mmecg_index.corpus import Corpus
from mmecg_server.server import Server

from mmecg.client import ChannelOptions, Client, RetryPolicy
from mmecg.errors import MmecgError, NotReadyError
from mmecg.retriever import Retriever

ONCE = ChannelOptions(retry=RetryPolicy(attempts=1), timeout_s=60)
STREAMS, CALLERS = 3, 4


@pytest.fixture
def path(tmp_path):
    return tmp_path / "corpus"


def test_drain_under_load_loses_nothing_and_ends_every_call_cleanly(config, encoder, path, make_study):
    corpus = Corpus.create(path, encoder.fingerprint)
    server = Server(config)
    server.serve(Retriever(encoder, corpus))
    address = f"127.0.0.1:{server.port}"
    base = make_study(0)
    acknowledged: list[str] = []
    deleted: list[str] = []
    ends: Counter[str] = Counter()
    stopping = threading.Event()
    numbers = itertools.count()

    def endless(sent):
        while not stopping.wait(0.002):
            study_id = f"study-{next(numbers)}"
            sent.append(study_id)
            yield replace(base, study_id=study_id)

    def ingest():
        sent: list[str] = []
        with Client(address, ONCE) as client:
            try:
                for outcome in client.upsert(endless(sent)):
                    assert outcome.error is None or isinstance(outcome.error, NotReadyError), outcome.error
                    if outcome.error is None:
                        acknowledged.append(sent[outcome.item])
            except MmecgError as error:
                ends[type(error).__name__] += 1

    def ask():
        with Client(address, ONCE) as client:
            while True:
                try:
                    client.search(ecg=base.ecg, top_k=3, exclude_same_subject=False)
                    if len(acknowledged) > 20 and len(deleted) < 5:
                        study_id = acknowledged.pop()
                        client.delete_study(study_id)
                        deleted.append(study_id)
                    ends["answered"] += 1
                except NotReadyError:
                    ends["refused"] += 1
                    return

    with ThreadPoolExecutor(STREAMS + CALLERS) as pool:
        running = [pool.submit(ingest) for _ in range(STREAMS)] + [pool.submit(ask) for _ in range(CALLERS)]
        deadline = time.monotonic() + 120
        while len(acknowledged) < 60 or ends["answered"] < 10:
            assert time.monotonic() < deadline, (len(acknowledged), ends)
            time.sleep(0.01)
        started = time.monotonic()
        server.stop()
        took = time.monotonic() - started
        stopping.set()
        for call in running:
            call.result(timeout=60)
    corpus.close()
    assert took < config.drain_s
    assert ends["refused"] == CALLERS
    assert ends["NotReadyError"] == STREAMS
    assert set(ends) == {"answered", "refused", "NotReadyError"}
    codes = Counter(
        (sample.labels["method"], sample.labels["code"])
        for family in server.metrics.registry.collect()
        for sample in family.samples
        if sample.name == "mmecg_calls_total"
    )
    assert {code for _, code in codes} <= {"OK", "UNAVAILABLE", "NOT_FOUND"}
    with Corpus.open(path, encoder.fingerprint) as again:
        kept = set()
        token = ""
        while True:
            page, token = again.list_studies(page_size=1000, page_token=token)
            kept.update(page)
            if not token:
                break
        assert set(acknowledged) <= kept
        assert kept.isdisjoint(deleted)
        assert again.stats().embeddings["ecg"] == len(kept)


def test_a_second_drain_and_a_drain_before_serving_are_harmless(config):
    server = Server(config)
    server.stop()
    server.stop()
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel, pytest.raises(grpc.FutureTimeoutError):
        grpc.channel_ready_future(channel).result(timeout=0.3)
