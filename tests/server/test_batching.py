"""Micro-batching: alone at once, together under load, bounded, and on time."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from mmecg_server.batching import MicroBatcher
from mmecg_server.call import Call, on_behalf_of

from mmecg.errors import NotReadyError, OverloadedError, ReportError


class Recorder:
    """Doubles numbers, notes its batches, refuses negative ones, and waits while it is held."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.free = threading.Event()
        self.free.set()
        self.entered = threading.Event()

    def __call__(self, items):
        self.batches.append(list(items))
        self.entered.set()
        assert self.free.wait(120)
        if any(item < 0 for item in items):
            raise ReportError("negative")
        return np.array(items, np.float32)[:, None] * 2


@pytest.fixture
def encode() -> Recorder:
    return Recorder()


@pytest.fixture
def batcher(encode):
    batcher = MicroBatcher(encode, max_batch=4, max_queue=6, name="test")
    yield batcher
    encode.free.set()
    batcher.close()


def waiting(batcher, count: int) -> None:
    while batcher._items_waiting < count:
        time.sleep(0.001)


def hold(encode, pool, batcher):
    """Let one item occupy the encoder."""
    encode.free.clear()
    first = pool.submit(batcher, [0])
    assert encode.entered.wait(60)
    return first


def test_a_call_that_would_wait_beyond_its_deadline_is_refused_at_once(batcher, encode):
    batcher._item_s = 1000.0  # what many slow batches would have taught it
    with ThreadPoolExecutor() as pool, on_behalf_of(Call(time.monotonic() + 900)):
        first = hold(encode, pool, batcher)  # nothing waits: taken, whatever the last ones took
        second = pool.submit(batcher, [1])
        waiting(batcher, 1)
        with pytest.raises(OverloadedError, match="1 items wait to be encoded, which takes longer") as caught:
            batcher([2])
        assert caught.value.limit == "queue"
        encode.free.set()
        assert (first.result(60).item(), second.result(60).item()) == (0, 2)
    assert 0 < batcher._item_s < 1000


def test_alone_it_does_not_wait(batcher, encode):
    assert batcher([3]).tolist() == [[6]]
    assert encode.batches == [[3]]


def test_what_gathers_becomes_one_batch_and_everybody_gets_his_own(batcher, encode):
    with ThreadPoolExecutor(8) as pool:
        first = hold(encode, pool, batcher)
        others = []
        for number in range(1, 5):
            others.append(pool.submit(batcher, [number]))
            waiting(batcher, number)
        encode.free.set()
        assert first.result().tolist() == [[0]]
        assert [other.result().tolist() for other in others] == [[[2]], [[4]], [[6]], [[8]]]
    assert encode.batches == [[0], [1, 2, 3, 4]]


def test_large_requests_are_cut(batcher, encode):
    assert batcher(list(range(10))).ravel().tolist() == [2 * n for n in range(10)]
    assert [len(batch) for batch in encode.batches] == [4, 4, 2]


def test_one_bad_item_fails_only_its_own_call(batcher, encode):
    with ThreadPoolExecutor(8) as pool:
        hold(encode, pool, batcher)
        good, bad = pool.submit(batcher, [1]), pool.submit(batcher, [-1])
        waiting(batcher, 2)
        encode.free.set()
        assert good.result().tolist() == [[2]]
        with pytest.raises(ReportError):
            bad.result()


def test_beyond_the_queue_it_refuses_at_once(batcher, encode):
    with ThreadPoolExecutor(8) as pool:
        hold(encode, pool, batcher)
        pool.submit(batcher, [1, 1, 1, 1])
        waiting(batcher, 4)
        with pytest.raises(OverloadedError):
            batcher([1, 1, 1])
        encode.free.set()


def test_deadline_ends_the_wait_and_spares_the_encoder(batcher, encode):
    with ThreadPoolExecutor(8) as pool:
        hold(encode, pool, batcher)
        with pytest.raises(TimeoutError), on_behalf_of(Call(time.monotonic() + 0.05)):
            batcher([7])
        encode.free.set()
    assert batcher([8]).tolist() == [[16]]
    assert [7] not in encode.batches


def test_a_caller_who_left_is_dropped(batcher, encode):
    left = threading.Event()

    def ask():
        with on_behalf_of(Call(float("inf"), lambda: not left.is_set())):
            return batcher([7])

    with ThreadPoolExecutor(8) as pool:
        hold(encode, pool, batcher)
        gone = pool.submit(ask)
        waiting(batcher, 1)
        left.set()
        encode.free.set()
        with pytest.raises(TimeoutError):
            gone.result()
    assert [7] not in encode.batches


def test_closed_it_refuses(encode):
    batcher = MicroBatcher(encode, max_batch=4, max_queue=6, name="test")
    batcher.close()
    with pytest.raises(NotReadyError):
        batcher([1])
