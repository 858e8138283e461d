"""Waves that were marked by hand beside a WFDB record, as in LUDB: a file a lead, with begin, peak and end of each."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mmecg.errors import SignalError

BEGIN, END = 39, 40
WAVES: dict[int, str] = {24: "P", 1: "QRS", 27: "T"}
"""Annotation code of a peak to the wave: the codes of WFDB (``ecgcodes.h``)."""

_SKIP, _NUMBERS, _AUXILIARY = 59, (60, 61, 62), 63
_MAX_BYTES = 1 << 20


@dataclass(frozen=True)
class Wave:
    """One marked wave.

    Attributes
    ----------
    kind : {"P", "QRS", "T"}
    begin, peak, end : int
        Samples; ``begin`` and ``end`` are those of the peak where they are not marked.
    """

    kind: str
    begin: int
    peak: int
    end: int


def read_waves(path: str | Path, annotator: str) -> tuple[Wave, ...]:
    """Read the waves that were marked beside a record, in their order.

    Parameters
    ----------
    path : str or Path
        The record, without a suffix.
    annotator : str
        Suffix of the file: in LUDB the lead in lower case.

    Raises
    ------
    SignalError
        The file is missing or damaged.
    """
    path = Path(path)
    try:
        with path.with_name(f"{path.name}.{annotator}").open("rb") as file:
            marks = list(_parse(file.read(_MAX_BYTES)))
    except (OSError, struct.error) as error:
        raise SignalError(
            f"annotation {path.name}.{annotator} cannot be read ({type(error).__name__}), expected the waves "
            "of a record; check the folder",
            field="ecg.wfdb.annotation",
        ) from None
    found = []
    for at, (code, sample) in enumerate(marks):
        if code in WAVES:
            before = at > 0 and marks[at - 1][0] == BEGIN
            after = at + 1 < len(marks) and marks[at + 1][0] == END
            found.append(Wave(WAVES[code], marks[at - before][1], sample, marks[at + after][1]))
    return tuple(found)


def _parse(content: bytes) -> Iterator[tuple[int, int]]:
    """Yield code and sample of every annotation in the MIT format: words of 6 bits of code and 10 of time passed."""
    at = sample = 0
    while True:
        (word,) = struct.unpack_from("<H", content, at)
        code, value, at = word >> 10, word & 0x3FF, at + 2
        if word == 0:  # the end
            return
        if code == _SKIP:  # a long time passed: the higher word first
            high, low = struct.unpack_from("<hH", content, at)
            sample, at = sample + (high << 16) + low, at + 4
        elif code == _AUXILIARY:  # text of so many bytes, and one more to make them even
            at += value + value % 2
        elif code not in _NUMBERS:
            sample += value
            yield code, sample
