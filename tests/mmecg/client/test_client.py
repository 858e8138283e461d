"""What the client does by itself: what it takes, what it refuses before sending, retries, and resuming a stream."""

import asyncio
import queue
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from mmecg.client import AsyncClient, ChannelOptions, Client, RetryPolicy, as_ecg
from mmecg.client.requests import SearchArguments, query_of, render_query, search_request
from mmecg.client.retry import pause_for
from mmecg.client.window import AsyncWindow, Window, as_async
from mmecg.errors import InvalidInputError, NotReadyError, OverloadedError, QueryError, SignalError
from mmecg.retriever import Query
from mmecg.search import Filter


def test_import_is_thin():
    code = "import sys, mmecg.client; print(sorted({'torch', 'faiss', 'wfdb', 'scipy'} & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert loaded == "[]"


def test_nobody_there_is_a_clear_error():
    options = ChannelOptions(timeout_s=5, retry=RetryPolicy(attempts=2, first_pause_s=0.01))
    with Client("127.0.0.1:1", options) as client, pytest.raises(NotReadyError, match="UNAVAILABLE"):
        client.stats()


def test_a_request_beyond_the_limit_is_not_sent():
    with Client("127.0.0.1:1", ChannelOptions(max_message_bytes=1000)) as client:
        with pytest.raises(InvalidInputError, match="at most 1000"):
            client.embed_text(["x" * 2000])
        with pytest.raises(InvalidInputError, match="at most 1000"):
            list(client.embed_many([Query(text="x" * 2000)]))


def test_array_needs_a_rate():
    with pytest.raises(SignalError, match="sampling_rate_hz"):
        as_ecg(np.ones((12, 100)))


def test_path_that_is_not_there_is_a_signal_error(tmp_path):
    with pytest.raises(SignalError):
        as_ecg(tmp_path / "nothing")


def test_unit_of_an_array_is_converted():
    microvolt = np.random.default_rng(0).standard_normal((12, 500)) * 500
    assert np.abs(as_ecg(microvolt, sampling_rate_hz=100, unit="uV").signal).max() < 3


def test_query_is_rendered_whole():
    arguments = SearchArguments(text="a", study_id="s", subject_id="p", weights={"text": 2.0, "study": 0.5}, top_k=3)
    request = search_request(query_of(arguments), arguments)
    assert (request.query.text, request.query.study_id, request.query.subject_id) == ("a", "s", "p")
    assert (request.query.weights.text, request.query.weights.study) == (2.0, 0.5)
    assert request.top_k == 3
    assert "ecg" not in request.read_mask.paths


def test_unknown_weight_target_and_bare_embedding_are_refused():
    with pytest.raises(QueryError, match="weight"):
        render_query(Query(text="a", weights={"txt": 1.0}))
    with pytest.raises(QueryError, match="target"):
        search_request(Query(text="a"), {"target": "image"})
    with pytest.raises(QueryError, match="fingerprint"):
        render_query(Query(embedding=np.ones(256, np.float32)))


def test_pauses_double_within_bounds_and_stop_at_the_deadline():
    policy = RetryPolicy(attempts=6, first_pause_s=0.1, max_pause_s=0.5)
    assert list(policy.pauses(time.monotonic() + 60)) == [0.1, 0.2, 0.4, 0.5, 0.5]
    assert list(policy.pauses(time.monotonic() - 1)) == []


def test_only_errors_of_the_moment_are_tried_again():
    deadline = time.monotonic() + 60
    busy = OverloadedError("busy")
    busy.retry_after_s = 0.7
    assert 0.7 <= pause_for(busy, 0.1, deadline) <= 0.8
    assert pause_for(NotReadyError("loading"), None, deadline) is None
    assert pause_for(SignalError("bad"), 0.1, deadline) is None
    assert pause_for(busy, 0.1, time.monotonic() + 0.2) is None
    assert pause_for(OverloadedError("Received message larger than max (9 vs. 8)"), 0.1, deadline) is None


def test_window_resumes_at_the_first_without_answer():
    window = Window(iter("abcdef"))
    first = window.attempt()
    assert [next(first) for _ in range(4)] == list("abcd")
    assert [window.answer(), window.answer()] == [0, 1]
    assert list(window.attempt()) == list("cdef")
    assert next(first, None) == "e"
    for _ in range(4):
        window.answer()
    assert next(first, None) is None
    assert window.answered == 6


def test_window_hands_on_what_the_source_raises():
    def source():
        yield "a"
        raise ValueError("broken")

    window = Window(source())
    assert list(window.attempt()) == ["a"]
    with pytest.raises(ValueError, match="broken"):
        window.check()


@pytest.mark.parametrize(("name", "advice"), [
    ("filter", "did you mean where?"),
    ("topk", "did you mean top_k?"),
    ("txt", "did you mean text?"),
    ("zzzzz", "expected some of ecg, "),
])  # fmt: skip
def test_an_unknown_argument_of_a_search_is_refused(name, advice):
    with Client("127.0.0.1:1") as client, pytest.raises(TypeError) as caught:
        client.search(**{"text": "a", name: Filter(sex="female")})
    assert repr(name) in str(caught.value)
    assert advice in str(caught.value)


def test_a_bulk_search_takes_options_only():
    with Client("127.0.0.1:1") as client, pytest.raises(TypeError, match="'text'"):
        client.search_many([Query(text="a")], text="b")

    async def use() -> None:
        async with AsyncClient("127.0.0.1:1") as client:
            with pytest.raises(TypeError, match="did you mean where"):
                client.search_many([Query(text="a")], filter=Filter(sex="female"))

    asyncio.run(use())


def test_every_argument_of_a_search_is_known():
    arguments = SearchArguments(
        ecg=np.random.default_rng(0).standard_normal((12, 500)) * 500, leads=None, sampling_rate_hz=100, unit="uV",
        text="a", where=Filter(sex="female"), exclude_same_subject=False, page_token="", with_studies=True,
    )  # fmt: skip
    query = query_of(arguments)
    assert np.abs(query.ecg.signal).max() < 3
    assert search_request(query, arguments).filter.sex


def test_window_notes_answers_while_the_source_is_waited_for():
    asked, answers = threading.Event(), queue.Queue()

    def source():
        yield "a"
        asked.set()
        # A conversation: the second request depends on the first answer.
        yield answers.get(timeout=60)

    window, got = Window(source()), []
    sender = threading.Thread(target=lambda: got.extend(window.attempt()), daemon=True)
    sender.start()
    assert asked.wait(60)
    noting = threading.Thread(target=window.answer, daemon=True)
    noting.start()
    noting.join(10)
    assert not noting.is_alive()
    answers.put("b")
    sender.join(60)
    assert got == ["a", "b"]


def test_async_window_keeps_what_a_broken_attempt_waited_for():
    async def use() -> None:
        free = asyncio.Event()

        async def source():
            yield "a"
            await free.wait()
            yield "b"
            raise ValueError("broken")

        window = AsyncWindow(source())
        first = window.attempt()
        assert await anext(first) == "a"
        waiting = asyncio.ensure_future(anext(first))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        free.set()
        assert [item async for item in window.attempt()] == ["a", "b"]
        assert [window.answer(), window.answer()] == [0, 1]
        with pytest.raises(ValueError, match="broken"):
            window.check()

    asyncio.run(use())


def test_a_slow_iterator_does_not_hold_up_the_event_loop():
    free = threading.Event()

    def slow():
        yield 1
        assert free.wait(60)
        yield 2

    async def use() -> None:
        async def release() -> None:
            free.set()

        items = as_async(slow())
        assert await anext(items) == 1
        found, _ = await asyncio.gather(anext(items), release())
        assert found == 2
        assert [item async for item in as_async([3, 4])] == [3, 4]

    asyncio.run(use())
