"""Runs of bytes, found in any file at any place: what the search for traces does in a process of its own.

``python -m mmecg_index.runs DIRECTORY`` reads from standard input what to look for, and needs NumPy only.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

RUN = 16
"""Bytes."""

MIN_ID_BYTES = 4
"""A shorter id is met by chance everywhere: it is not looked for as bytes."""

_MIN_DISTINCT = 5
"""Different bytes in a run that says something; constant and alternating bytes are everywhere."""

_CHUNK = 1 << 22
_TABLE_BITS = 22
_MIX = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F))


class Runs:
    """All runs of :data:`RUN` bytes of some values, but for those ``without``, to be found in a buffer at any place."""

    def __init__(self, values: Sequence[bytes], *, without: Iterable[bytes] = ()) -> None:
        by_length: dict[int, list[bytes]] = {}
        for value in values:
            by_length.setdefault(len(value), []).append(value)
        stacks = [_stacked(equal) for length, equal in by_length.items() if length >= RUN]
        found = np.concatenate([_windows(stack, RUN) for stack in stacks] or [np.empty((0, RUN), np.uint8)])
        ordered = np.sort(found, axis=1)
        telling = (np.diff(ordered, axis=1) != 0).sum(axis=1) + 1 >= _MIN_DISTINCT
        found = found[telling]
        known = np.unique(_mixed(_stacked(list(without)).reshape(-1, RUN).view(np.uint64)))
        found = found[~_contains(known, _mixed(found.view(np.uint64)))]
        # A run holds a word of 8 bytes at an offset that 8 divides: those are looked up first, one in eight bytes.
        self._words = np.unique(_windows(found, 8).view(np.uint64))
        self._hashes = np.unique(_mixed(found.view(np.uint64)))
        self._table = np.zeros(1 << _TABLE_BITS, np.bool_)
        self._table[_slots(self._words)] = True

    def __len__(self) -> int:
        return len(self._hashes)

    def find(self, data: NDArray[np.uint8]) -> Iterator[tuple[bytes, int]]:
        """Yield each run that a buffer holds, once, with an offset where it lies."""
        words = data[: len(data) // 8 * 8].view(np.uint64)
        at = np.flatnonzero(self._table[_slots(words)])
        at = at[_contains(self._words, words[at])] * 8
        seen: set[int] = set()
        for shift in range(RUN - 8 + 1):
            starts = at - shift
            starts = starts[(starts >= 0) & (starts + RUN <= len(data))]
            windows = data[starts[:, None] + np.arange(RUN)].view(np.uint64)
            hashes = _mixed(windows)
            hits = np.flatnonzero(_contains(self._hashes, hashes))
            for hit in hits[np.unique(hashes[hits], return_index=True)[1]].tolist():
                if int(hashes[hit]) not in seen:
                    seen.add(int(hashes[hit]))
                    yield windows[hit].tobytes(), int(starts[hit])


def search_files(
    directory: Path, ids: Sequence[str], contents: Iterable[bytes], *, without: Iterable[bytes] = ()
) -> dict[str, list[Any]]:
    """Return the runs and ids that files below a directory hold: [run in hexadecimal or id, file, offset] each."""
    runs = Runs(list(contents), without=without)
    forms = [(each, form) for each in ids if len(each.encode()) >= MIN_ID_BYTES for form in _forms(each)]
    overlap = max([RUN, *(len(form) for _, form in forms)])
    found: dict[str, list[Any]] = {"runs": [], "ids": []}
    for file in sorted(path for path in directory.rglob("*") if path.is_file()):
        # Read, not mapped: a server may cut or delete a file meanwhile, and what is gone is gone.
        name, at, before = file.relative_to(directory).as_posix(), 0, b""
        with suppress(FileNotFoundError), file.open("rb") as stream:
            while block := stream.read(_CHUNK):
                data, start = before + block, at - len(before)
                found["ids"] += [[each, name, start + where] for each, form in forms if (where := data.find(form)) >= 0]
                buffer = np.frombuffer(data, np.uint8)
                found["runs"] += [[run.hex(), name, start + where] for run, where in runs.find(buffer)]
                at, before = at + len(block), data[-overlap:]
    return found


def _forms(text: str) -> set[bytes]:
    """Return an id in UTF-8 and as JSON escapes it."""
    return {text.encode(), json.dumps(text)[1:-1].encode()}


def _stacked(values: Sequence[bytes]) -> NDArray[np.uint8]:
    """Return values of one length: uint8, shape (values, length)."""
    length = len(values[0]) if values else 0
    return np.frombuffer(b"".join(values), np.uint8).reshape(len(values), length)


def _windows(values: NDArray[np.uint8], length: int) -> NDArray[np.uint8]:
    """Return all runs of a length in each of some values: uint8, shape (runs, length)."""
    runs = np.lib.stride_tricks.sliding_window_view(values, length, axis=1)
    return np.ascontiguousarray(runs).reshape(-1, length)


def _mixed(windows: NDArray[np.uint64]) -> NDArray[np.uint64]:
    mixed = (windows[:, 0] ^ (windows[:, 0] >> np.uint64(29))) * _MIX[0]
    found: NDArray[np.uint64] = (mixed ^ windows[:, 1] ^ (windows[:, 1] >> np.uint64(31))) * _MIX[1]
    return found


def _slots(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    return (words * _MIX[0]) >> np.uint64(64 - _TABLE_BITS)


def _contains(ordered: NDArray[np.uint64], values: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Return which values are among some that are in order."""
    if not len(ordered):
        return np.zeros(len(values), np.bool_)
    at = np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)
    found: NDArray[np.bool_] = ordered[at] == values
    return found


def _main() -> None:
    message = json.loads(sys.stdin.buffer.read())
    contents, without = (map(bytes.fromhex, message[name]) for name in ("contents", "without"))
    print(json.dumps(search_files(Path(sys.argv[1]), message["ids"], contents, without=without)))


if __name__ == "__main__":
    _main()
