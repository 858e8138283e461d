"""Items that share a message: what comes together, what waits for nobody, and what a source raises."""

import asyncio
import queue
import threading

import pytest
from mmecg_pb.v1.study_pb2 import Study

from mmecg.client import batches
from mmecg.client.batches import MAX_ITEMS, Batches, gather


def named(number, size=1):
    return Study(study_id=f"{number}", subject_id="s" * size)


async def listed(items, **limits):
    async def source():
        for item in items:
            yield item

    return [batch async for batch in gather(source(), **limits)]


def both(items, **limits):
    """What the two make of the same source; they must agree where no time is involved."""
    found = list(Batches(iter(items), **limits))
    assert asyncio.run(listed(items, **limits)) == found
    return found


@pytest.fixture
def patient(monkeypatch):
    """Nobody goes before the batch is full."""
    monkeypatch.setattr(batches, "LINGER_S", 60.0)


@pytest.mark.usefixtures("patient")
def test_items_share_a_message_up_to_the_limits_in_their_order():
    items = [named(number) for number in range(2 * MAX_ITEMS + 3)]
    found = both(items)
    assert [len(batch) for batch in found] == [MAX_ITEMS, MAX_ITEMS, 3]
    assert [item for batch in found for item in batch] == items
    assert both([]) == []


@pytest.mark.usefixtures("patient")
def test_large_items_go_with_few_others_and_the_largest_alone():
    sizes = (10, 10, 10, 500, 10, 400, 10)
    found = both([named(number, size) for number, size in enumerate(sizes)], max_bytes=100)
    assert [[len(item.subject_id) for item in batch] for batch in found] == [[10, 10, 10], [500], [10], [400], [10]]


def test_an_item_does_not_wait_for_one_that_depends_on_its_answer():
    answers = queue.Queue()

    def source():
        for number in range(3):
            yield named(number)
            assert answers.get(timeout=60) == number

    for number, batch in enumerate(Batches(source())):
        assert batch == [named(number)]
        answers.put(number)


def test_the_same_for_asyncio():
    async def use():
        answers = asyncio.Queue()

        async def source():
            for number in range(3):
                yield named(number)
                assert await answers.get() == number

        found = []
        async for batch in gather(source()):
            found.append(batch)
            answers.put_nowait(len(found) - 1)
        assert found == [[named(number)] for number in range(3)]

    asyncio.run(use())


@pytest.mark.usefixtures("patient")
def test_what_the_source_raises_comes_after_what_it_gave():
    def source():
        yield named(0)
        raise ValueError("broken")

    async def source_async():
        for item in source():
            yield item

    async def use():
        found = gather(source_async())
        assert await anext(found) == [named(0)]
        with pytest.raises(ValueError, match="broken"):
            await anext(found)

    found = iter(Batches(source()))
    assert next(found) == [named(0)]
    with pytest.raises(ValueError, match="broken"):
        next(found)
    asyncio.run(use())


@pytest.mark.usefixtures("patient")
def test_a_source_is_asked_no_more_once_nobody_takes_its_items():
    pulled, ended = [], threading.Event()

    def source():
        try:
            for number in range(100 * MAX_ITEMS):
                pulled.append(number)
                yield named(number)
        finally:
            ended.set()

    iterator = iter(Batches(source()))
    next(iterator)
    iterator.close()
    assert ended.wait(60)
    assert len(pulled) <= 2 * MAX_ITEMS + 1
