"""What an erased subject could have left behind, looked for in every byte of every file of a corpus.

A trace is an id, or any run of 16 bytes of the documents (as they are stored and as plain text), of the vectors or of
the compressed signals, wherever it lies and however it is aligned. A run that studies of others contain as well (the
same sentence in another report) proves nothing and is passed over; so is an id that is part of another's.

The files are read by a process of its own (:mod:`mmecg_index.runs`): one that has the database open must not open and
close its file beside SQLite, because that gives up SQLite's locks (they belong to the process, not to the file handle).
"""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmecg.administration import Trace as Trace
from mmecg.errors import MmecgError
from mmecg_index.database import select_in
from mmecg_index.runs import RUN, Runs

_SAMPLE = 500
"""Studies whose documents say what is common."""


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
        contents.append(_lowered(document).encode())
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
    # What every document holds (the names of its fields) would be met at every step.
    sample = f"SELECT document FROM studies LIMIT {_SAMPLE}"  # noqa: S608
    common = _shared(Runs(wanted.contents), connection, sample)
    message = {
        "ids": wanted.ids,
        "contents": [value.hex() for value in wanted.contents],
        "without": [run.hex() for run in common],
    }
    command = [sys.executable, "-m", "mmecg_index.runs", str(directory)]
    done = subprocess.run(command, input=json.dumps(message).encode(), capture_output=True, check=False)  # noqa: S603
    if done.returncode:
        raise MmecgError(f"{directory} cannot be searched (exit code {done.returncode}); check who may read its files")
    found = json.loads(done.stdout)
    others = _runs_of_others(connection, {bytes.fromhex(run) for run, *_ in found["runs"]})
    traces = [Trace(file, offset, "content") for run, file, offset in found["runs"] if bytes.fromhex(run) not in others]
    shared = {wanted_id for wanted_id in {each for each, *_ in found["ids"]} if _id_of_others(connection, wanted_id)}
    traces += [Trace(file, offset, "id") for wanted_id, file, offset in found["ids"] if wanted_id not in shared]
    return _joined(traces)


def _lowered(document: str) -> str:
    """Return the text of the report as the metadata table holds it."""
    report = json.loads(document)["report"]
    return report["text"].lower() if report else ""


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


def _runs_of_others(connection: sqlite3.Connection, runs: set[bytes]) -> set[bytes]:
    """Return those of the runs that what is in the corpus now contains."""
    if not runs:
        return set()
    wanted = Runs(sorted(runs))
    connection.create_function("lowered", 1, _lowered, deterministic=True)
    tables = (
        "SELECT document, signal FROM studies",
        "SELECT lowered(document) FROM studies",
        "SELECT vector FROM embeddings",
        "SELECT time || principal || method || outcome || request_id FROM audit",
        "SELECT sql FROM sqlite_master",
    )
    return set[bytes]().union(*(_shared(wanted, connection, query) for query in tables)) & runs


def _shared(runs: Runs, connection: sqlite3.Connection, query: str) -> set[bytes]:
    """Return those of the runs that the values of a query hold."""
    found: set[bytes] = set()
    cursor = connection.execute(query)
    while batch := cursor.fetchmany(1000):
        values = [value.encode() if isinstance(value, str) else value for row in batch for value in row if value]
        # Separated by what is in no run: equal bytes.
        found.update(run for run, _ in runs.find(np.frombuffer(bytes(RUN).join(values), np.uint8)))
    return found


def _id_of_others(connection: sqlite3.Connection, wanted_id: str) -> bool:
    """Return True if an id is part of what is in the corpus now."""
    queries = (
        "SELECT 1 FROM studies WHERE instr(study_id || subject_id || sort_time, :text) "
        "OR instr(document, :text) OR instr(lowered(document), :text) OR instr(signal, :bytes) LIMIT 1",
        "SELECT 1 FROM embeddings WHERE instr(fingerprint, :text) OR instr(vector, :bytes) LIMIT 1",
        "SELECT 1 FROM audit WHERE instr(time || principal || method || outcome || request_id, :text) LIMIT 1",
        "SELECT 1 FROM sqlite_master WHERE instr(sql, :text) LIMIT 1",
    )
    values = {"text": wanted_id, "bytes": wanted_id.encode()}
    connection.create_function("lowered", 1, _lowered, deterministic=True)
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
