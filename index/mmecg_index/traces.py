"""What an erased subject could have left behind, looked for in every byte of every file of a corpus.

A trace is an id, or any run of 16 bytes of the documents (as they are stored and as plain text), of the vectors or of
the compressed signals, wherever it lies and however it is aligned. A run that studies of others contain as well (the
same sentence in another report) proves nothing and is passed over; so is an id that is part of another's.

The files are read by a process of its own (``python -m mmecg_index.traces DIRECTORY``, what to look for on standard
input): a process that has the database open must not open and close its file beside SQLite, because closing it would
give up SQLite's locks (they belong to the process, not to the file handle). It also keeps the search out of the way.
"""

from __future__ import annotations

import json
import mmap
import sqlite3
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmecg.errors import MmecgError
from mmecg_index.database import select_in

RUN = 16
"""Bytes."""

MIN_ID_BYTES = 4
"""A shorter id is met by chance everywhere: it is not looked for as bytes."""

_MIN_DISTINCT = 5
"""Different bytes in a run that says something; constant and alternating bytes are everywhere."""

_CHUNK = 1 << 22
_TABLE_BITS = 22
_MIX = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F))


@dataclass(frozen=True)
class Wanted:
    """What to look for.

    Attributes
    ----------
    ids : tuple of str
        Of the subjects and their studies.
    contents : tuple of bytes
        Documents, texts, vectors, signals.
    """

    ids: tuple[str, ...]
    contents: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class Trace:
    """Something that was found.

    Attributes
    ----------
    file : str
        Path below the directory of the corpus.
    offset : int
        Where in the file.
    kind : {"id", "content"}
    """

    file: str
    offset: int
    kind: str


def wanted_of(connection: sqlite3.Connection, subject_ids: Sequence[str]) -> Wanted:
    """Return what studies of these subjects consist of; ids only, of those that have none."""
    ids, contents = list(subject_ids), []
    rows = []
    for row, study_id, document, signal in select_in(
        connection, "SELECT row, study_id, document, signal FROM studies", "subject_id", subject_ids
    ):
        rows.append(row)
        ids.append(study_id)
        contents += [document.encode(), *(text.encode() for text in _texts(json.loads(document)))]
        contents += [] if signal is None else [signal]
    contents += [vector for (vector,) in select_in(connection, "SELECT vector FROM embeddings", "row", rows)]
    return Wanted(tuple(ids), tuple(contents))


def find_traces(directory: Path, connection: sqlite3.Connection, wanted: Wanted) -> list[Trace]:
    """Search every file below a directory.

    Parameters
    ----------
    directory : Path
        Of a corpus, open or not.
    connection : sqlite3.Connection
        To that corpus; says what studies that are there contain.
    wanted : Wanted
    """
    message = {"ids": wanted.ids, "contents": [value.hex() for value in wanted.contents]}
    command = [sys.executable, "-m", "mmecg_index.traces", str(directory)]
    done = subprocess.run(command, input=json.dumps(message).encode(), capture_output=True, check=False)  # noqa: S603
    if done.returncode:
        raise MmecgError(f"{directory} cannot be searched (exit code {done.returncode}); check who may read its files")
    found = json.loads(done.stdout)
    others = _runs_of_others(connection, {bytes.fromhex(run) for run, *_ in found["runs"]})
    traces = [Trace(file, offset, "content") for run, file, offset in found["runs"] if bytes.fromhex(run) not in others]
    shared = {wanted_id for wanted_id in {each for each, *_ in found["ids"]} if _id_of_others(connection, wanted_id)}
    traces += [Trace(file, offset, "id") for wanted_id, file, offset in found["ids"] if wanted_id not in shared]
    return _joined(traces)


class Runs:
    """All runs of :data:`RUN` bytes of some values, to be found in a buffer at any place."""

    def __init__(self, values: Iterable[bytes]) -> None:
        windows = [_windows(value) for value in values if len(value) >= RUN]
        found = np.concatenate(windows) if windows else np.empty((0, 2), np.uint64)
        # A run holds a word of 8 bytes at an offset that 8 divides: those are looked up first, one in eight bytes.
        self._words = np.unique(np.concatenate([_words_within(value) for value in values] or [found[:, 0]]))
        self._hashes = np.unique(_mixed(found))
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


def search_files(directory: Path, wanted: Wanted) -> dict[str, list[Any]]:
    """Return the runs and ids that files below a directory hold: [run in hexadecimal or id, file, offset] each."""
    runs = Runs(wanted.contents)
    ids = [(each, form) for each in wanted.ids if len(each.encode()) >= MIN_ID_BYTES for form in _forms(each)]
    found: dict[str, list[Any]] = {"runs": [], "ids": []}
    for file in sorted(path for path in directory.rglob("*") if path.is_file() and path.stat().st_size):
        name = file.relative_to(directory).as_posix()
        with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            found["ids"] += [[each, name, at] for each, form in ids if (at := data.find(form)) >= 0]
            for start in range(0, len(data), _CHUNK):
                begin = max(start - RUN, 0)
                chunk = np.frombuffer(data[begin : start + _CHUNK + RUN], np.uint8)
                found["runs"] += [[run.hex(), name, begin + at] for run, at in runs.find(chunk)]
    return found


def _texts(value: Any) -> Iterator[str]:
    """Yield the texts of a document, however deep."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from _texts(each)
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each)


def _forms(text: str) -> set[bytes]:
    """Return an id in UTF-8 and as JSON escapes it."""
    return {text.encode(), json.dumps(text)[1:-1].encode()}


def _runs_of_others(connection: sqlite3.Connection, runs: set[bytes]) -> set[bytes]:
    """Return those of the runs that what is in the corpus now contains."""
    if not runs:
        return set()
    wanted, others = Runs(runs), set()
    tables = (
        "SELECT document, signal FROM studies",
        "SELECT vector FROM embeddings",
        "SELECT time || principal || method || outcome || request_id FROM audit",
        "SELECT sql FROM sqlite_master",
    )
    for query in tables:
        cursor = connection.execute(query)
        while batch := cursor.fetchmany(1000):
            values = [value.encode() if isinstance(value, str) else value for row in batch for value in row if value]
            # Separated by what no run holds: equal bytes.
            joined = np.frombuffer(bytes(RUN).join(values), np.uint8)
            others |= {run for run, _ in wanted.find(joined)} & runs
    return others


def _id_of_others(connection: sqlite3.Connection, wanted_id: str) -> bool:
    """Return True if an id is part of what is in the corpus now."""
    queries = (
        "SELECT 1 FROM studies WHERE instr(study_id || subject_id || sort_time, :text) "
        "OR instr(document, :text) OR instr(signal, :bytes) LIMIT 1",
        "SELECT 1 FROM embeddings WHERE instr(fingerprint, :text) OR instr(vector, :bytes) LIMIT 1",
        "SELECT 1 FROM audit WHERE instr(time || principal || method || outcome || request_id, :text) LIMIT 1",
        "SELECT 1 FROM sqlite_master WHERE instr(sql, :text) LIMIT 1",
    )
    values = {"text": wanted_id, "bytes": wanted_id.encode()}
    return any(connection.execute(query, values).fetchone() for query in queries)


def _joined(traces: list[Trace]) -> list[Trace]:
    """Return traces without those that lie in or right behind another one."""
    joined: list[Trace] = []
    end: tuple[str, str, int] | None = None
    for trace in sorted(traces, key=lambda each: (each.file, each.kind, each.offset)):
        if end is None or end[:2] != (trace.file, trace.kind) or trace.offset > end[2] or trace.kind == "id":
            joined.append(trace)
        end = (trace.file, trace.kind, trace.offset + RUN)
    return joined


def _windows(value: bytes) -> NDArray[np.uint64]:
    """Return the runs of a value that say something, as two words each."""
    runs = np.lib.stride_tricks.sliding_window_view(np.frombuffer(value, np.uint8), RUN)
    ordered = np.sort(runs, axis=1)
    telling = (np.diff(ordered, axis=1) != 0).sum(axis=1) + 1 >= _MIN_DISTINCT
    return np.ascontiguousarray(runs[telling]).view(np.uint64)


def _words_within(value: bytes) -> NDArray[np.uint64]:
    if len(value) < RUN:
        return np.empty(0, np.uint64)
    words = np.lib.stride_tricks.sliding_window_view(np.frombuffer(value, np.uint8), 8)
    return np.unique(np.ascontiguousarray(words).view(np.uint64).reshape(-1))


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
    wanted = Wanted(tuple(message["ids"]), tuple(map(bytes.fromhex, message["contents"])))
    print(json.dumps(search_files(Path(sys.argv[1]), wanted)))


if __name__ == "__main__":
    _main()
