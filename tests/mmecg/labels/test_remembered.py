"""Every key has its rows, whether they are worked out now or were before."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmecg.labels.remembered import KEY_BYTES, Remembered


class Worker:
    """Gives "ab" the rows (97, 2) and (98, 2)."""

    def __init__(self, limit: int) -> None:
        self.remembered = Remembered(2, limit)
        self.worked_out: list[bytes] = []

    def rows(self, keys: list[bytes]) -> list[list[tuple[int, ...]]]:
        def work_out(missing: list[int]) -> tuple[np.ndarray, np.ndarray]:
            some = [keys[at] for at in missing]
            self.worked_out += some
            rows = [(sign, len(key)) for key in some for sign in key]
            return np.array(rows, dtype=np.int32).reshape(-1, 2), np.array([len(key) for key in some], dtype=np.int32)

        rows, counts = self.remembered.rows(keys, work_out)
        assert rows.dtype == counts.dtype == np.int32
        return [[tuple(row) for row in part] for part in np.split(rows, np.cumsum(counts)[:-1])] if keys else []


KEYS = st.lists(st.binary(max_size=3), max_size=20)


@given(st.lists(KEYS, max_size=6), st.sampled_from([0, 1000, 10**6]))
def test_rows_of_keys(batches: list[list[bytes]], limit: int) -> None:
    worker = Worker(limit)
    for keys in batches:
        assert worker.rows(keys) == [[(sign, len(key)) for sign in key] for key in keys]
    if limit == 10**6:
        assert sorted(worker.worked_out) == sorted({key for keys in batches for key in keys})


def test_tables_grow() -> None:
    worker = Worker(10**9)
    keys = [str(number).encode() for number in range(5_000)]
    assert worker.rows(keys) == worker.rows(keys[:3_000]) + worker.rows(keys[3_000:])
    assert len(worker.worked_out) == 5_000


def test_all_is_forgotten_when_it_is_full() -> None:
    worker = Worker(2 * KEY_BYTES)
    for keys, held in (([b"a", b"b"], 2), ([b"a", b"c"], 2), ([b"c"], 1)):
        worker.rows(keys)
        assert len(worker.remembered) == held
    assert worker.worked_out == [b"a", b"b", b"a", b"c", b"c"]


def test_what_fails_is_not_remembered() -> None:
    remembered = Remembered(2, 1000)

    def fail(missing: list[int]) -> tuple[np.ndarray, np.ndarray]:
        raise ArithmeticError("no rows")

    with pytest.raises(ArithmeticError, match="no rows"):
        remembered.rows([b"a"], fail)
    assert len(remembered) == 0
