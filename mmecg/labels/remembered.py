"""What was worked out once, kept under its key in a table of numbers, for when the key comes again."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int32]
KEY_BYTES = 200
"""What a key takes beyond its own bytes."""


class Remembered:
    """Groups of rows under keys; forgets all when it is full. Safe to use from several threads.

    Parameters
    ----------
    width : int
        Numbers a row.
    limit : int
        Bytes to hold, about.
    """

    def __init__(self, width: int, limit: int) -> None:
        self._width, self._limit = width, limit
        self._lock = threading.Lock()
        self._forget()

    def _forget(self) -> None:
        self._groups: dict[bytes, int] = {}
        self._table = np.empty((1024, self._width), dtype=np.int32)
        self._begin = np.zeros(1024, dtype=np.int32)
        self._held = 0

    def __len__(self) -> int:
        return len(self._groups)

    def rows(self, keys: Sequence[bytes], work_out: Callable[[list[int]], tuple[Ints, Ints]]) -> tuple[Ints, Ints]:
        """Return the rows of some keys, one after the other.

        Parameters
        ----------
        keys : sequence of bytes
        work_out : callable
            Given the positions of keys that are not known, returns their rows and how many each has.

        Returns
        -------
        rows : int32, shape (rows, width)
        counts : int32, shape (keys,)
            Rows of each key.
        """
        with self._lock:
            if self._held > self._limit:
                self._forget()
            known = list(map(self._groups.get, keys))
            if None in known:
                missing: dict[bytes, int] = {}
                for at in (at for at, group in enumerate(known) if group is None):
                    missing.setdefault(keys[at], at)
                self._add(list(missing), *work_out(list(missing.values())))
                known = list(map(self._groups.get, keys))
            groups = np.array(known, dtype=np.int32)
            begin = self._begin[groups]
            counts = self._begin[groups + 1] - begin
            before = np.cumsum(counts, dtype=np.int32) - counts
            at_row = np.arange(int(counts.sum()), dtype=np.int32) + np.repeat(begin - before, counts)
            return self._table[at_row], counts

    def _add(self, keys: list[bytes], rows: Ints, counts: Ints) -> None:
        first, begin = len(self._groups), int(self._begin[len(self._groups)])
        for values, needed in ((self._table, begin + len(rows)), (self._begin, first + len(keys) + 1)):
            if needed > len(values):
                values.resize((2 * needed, *values.shape[1:]), refcheck=False)
        self._table[begin : begin + len(rows)] = rows
        self._begin[first + 1 : first + 1 + len(keys)] = begin + np.cumsum(counts)
        self._groups.update(zip(keys, range(first, first + len(keys)), strict=True))
        self._held += sum(map(len, keys)) + KEY_BYTES * len(keys) + rows.nbytes
