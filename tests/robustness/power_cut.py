"""What a disk may hold after a power cut: built from the record of every change and every sync that ``disk.c`` made.

The rules are the strict ones. A file's content is certain up to its last sync; of what was written since, any sectors
of 4 KiB are there and the others are not. A name (created, renamed, removed) is certain once its directory was synced;
of the later ones a directory has kept the first few.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SECTOR = 4096
_HEADER = struct.Struct("<ciiqq")


@dataclass(frozen=True)
class Record:
    """One change, sync ("s") or mark ("k"); see ``disk.c``."""

    kind: str
    path: str
    other: str
    number: int
    data: bytes


def read_records(path: Path) -> list[Record]:
    """Return everything that was recorded."""
    content, at, found = path.read_bytes(), 0, []
    while at + _HEADER.size <= len(content):
        kind, length, other, number, size = _HEADER.unpack_from(content, at)
        at += _HEADER.size
        name = content[at : at + length].decode()
        second = content[at + length : at + length + other].decode()
        at += length + other
        data = content[at : at + size] if kind == b"w" else b""
        at += len(data)
        found.append(Record(kind.decode(), name, second, number, data))
    return found


class PowerCut:
    """States that a disk could be in, had the power failed after some record.

    Parameters
    ----------
    records : list of Record
        From an empty directory on.
    root : Path
        That directory.
    """

    def __init__(self, records: list[Record], root: Path) -> None:
        self._records = records
        self._root = str(root)
        self._files = list(self._identify())

    def _identify(self) -> Iterator[int]:
        """Yield for each record which file it is about: the number of the record that made it; -1 for none."""
        there: dict[str, int] = {}
        for number, record in enumerate(self._records):
            if record.kind == "c":
                there[record.path] = number
            elif record.kind == "l":
                there[record.other] = there.get(record.path, -1)
            elif record.kind == "u":
                there.pop(record.path, None)
            elif record.kind == "r":
                there = _renamed(there, record.path, record.other)
            yield there.get(record.path, -1) if record.kind in "wts" else number if record.kind == "c" else -1

    def mark(self, end: int) -> int:
        """Return the last mark among the first records."""
        return max((record.number for record in self._records[:end] if record.kind == "k"), default=0)

    def build(self, end: int, target: Path, drawn: random.Random) -> None:
        """Write what is left after the first ``end`` records into a directory."""
        share = drawn.choice((0.0, 0.2, 0.5, 0.9, 1.0))
        names, directories = self._names(end, drawn)
        target.mkdir(parents=True)
        for directory in sorted(directories):
            (target / directory[len(self._root) + 1 :]).mkdir(parents=True, exist_ok=True)
        for path, file in names.items():
            place = target / path[len(self._root) + 1 :]
            if place.parent.is_dir():
                place.write_bytes(self._content(file, end, share, drawn))

    def _names(self, end: int, drawn: random.Random) -> tuple[dict[str, int], set[str]]:
        synced: dict[str, int] = {}
        for number, record in enumerate(self._records[:end]):
            if record.kind == "s" and self._files[number] < 0:
                synced[record.path] = number
        kept: dict[str, int] = {}
        names: dict[str, int] = {}
        directories = {self._root}
        for number, record in enumerate(self._records[:end]):
            if record.kind not in "cmrudl":
                continue
            parent = (record.other or record.path).rpartition("/")[0]
            if parent not in kept:
                kept[parent] = drawn.choice((end, drawn.randint(synced.get(parent, 0), end)))
            if number > kept[parent] or (parent not in directories and parent.startswith(self._root + "/")):
                continue
            if record.kind == "c":
                names[record.path] = number
            elif record.kind == "m":
                directories.add(record.path)
            elif record.kind == "u":
                names.pop(record.path, None)
            elif record.kind == "d":
                directories.discard(record.path)
                names = {path: file for path, file in names.items() if not path.startswith(record.path + "/")}
            elif record.kind == "l" and record.path in names:
                names[record.other] = names[record.path]
            elif record.kind == "r":
                names = _renamed(names, record.path, record.other)
                directories = set(_renamed(dict.fromkeys(directories, 0), record.path, record.other))
        return names, directories

    def _content(self, file: int, end: int, share: float, drawn: random.Random) -> bytes:
        numbers = [number for number in range(file, end) if self._files[number] == file]
        certain = max((number for number in numbers if self._records[number].kind == "s"), default=-1)
        content = bytearray()
        for number in numbers:
            record = self._records[number]
            if record.kind == "t" and (number < certain or drawn.random() < share):
                del content[record.number :]
                content += bytes(record.number - len(content))
            elif record.kind == "w":
                for start, piece in _sectors(record.number, record.data):
                    if number < certain or drawn.random() < share:
                        content += bytes(max(0, start - len(content)))
                        content[start : start + len(piece)] = piece
        return bytes(content)


def _sectors(offset: int, data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(data):
        size = SECTOR - (offset + at) % SECTOR
        yield offset + at, data[at : at + size]
        at += size


def _renamed(names: dict[str, int], old: str, new: str) -> dict[str, int]:
    moved = {}
    for path, file in names.items():
        if path == old or path.startswith(old + "/"):
            moved[new + path[len(old) :]] = file
        elif path != new:
            moved.setdefault(path, file)
    return moved
