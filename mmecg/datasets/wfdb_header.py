"""WFDB headers: parse the text, and refuse hostile claims before anything is allocated.

Grammar: header(5) of the WFDB applications guide (physionet.org/physiotools/wag/header-5.htm). The signals themselves
are decoded in :mod:`mmecg.datasets.wfdb`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from mmecg.errors import SignalError

MAX_HEADER_BYTES = 1_000_000
MAX_SIGNALS = 256
MAX_SEGMENTS = 10_000
MAX_SAMPLES_PER_FRAME = 1000
DEFAULT_SAMPLING_RATE_HZ = 250.0
"""Sampling rate of a header that gives none, as header(5) says."""

BYTES_PER_SAMPLE: dict[int, float] = {
    8: 1, 16: 2, 24: 3, 32: 4, 61: 2, 80: 1, 160: 2, 212: 1.5, 310: 4 / 3, 311: 4 / 3
}  # fmt: skip
"""Uncompressed formats of signal(5)."""

FLAC_FORMATS = frozenset({508, 516, 524})

MISSING_SAMPLE: dict[int, int] = {
    16: -(2**15), 24: -(2**23), 32: -(2**31), 61: -(2**15), 80: -(2**7), 160: -(2**15), 212: -(2**11), 310: -(2**9),
    311: -(2**9), 508: -(2**7), 516: -(2**15), 524: -(2**23),
}  # fmt: skip
"""Digital value that means "no sample here", by format (signal(5)); difference format 8 has none."""

_FORMAT = re.compile(r"(\d{1,3})(?:x(\d{1,4}))?(?::(\d{1,6}))?(?:\+(\d{1,9}))?\Z", re.ASCII)
_GAIN = re.compile(r"([-+]?[\d.]+(?:[eE][-+]?\d+)?)(?:\((-?\d+)\))?(?:/(\S+))?\Z", re.ASCII)
_RATE = re.compile(r"([\d.]+(?:[eE][-+]?\d+)?)(?:/.*)?\Z", re.ASCII)
_FILE_NAME = re.compile(r"[A-Za-z0-9_][\w.+-]*\Z")


@dataclass(frozen=True)
class WfdbSignal:
    """One signal line of a header.

    Attributes
    ----------
    file_name : str
        Never with a directory. ``"~"`` names no file.
    format : int
        Storage format of signal(5).
    samples_per_frame, skew, byte_offset : int
    gain_per_unit : float, optional
        Counts a physical unit; None if the header leaves the amplitude uncalibrated.
    baseline : int
        Count that means zero.
    unit : str
        Physical unit as written; ``"mV"`` if left out.
    initial_value, checksum : int, optional
    description : str
        Name of the lead, as written.
    """

    file_name: str
    format: int
    samples_per_frame: int
    skew: int
    byte_offset: int
    gain_per_unit: float | None
    baseline: int
    unit: str
    initial_value: int | None
    checksum: int | None
    description: str


@dataclass(frozen=True)
class WfdbHeader:
    """A header: of one segment, with signals, or of a record of several segments, with those.

    Attributes
    ----------
    record_name : str
    sampling_rate_hz : float
        Frames per second.
    frames : int, optional
        Length; None if the header leaves it to the size of the file.
    signals : tuple of WfdbSignal
    comments : tuple of str
        Comment lines without ``#``.
    segments : tuple of (str, int)
        Name and length in frames of each segment; ``"~"`` names a gap. Each has a header of its own, which for a
        segment of length 0 (a layout) only says what signals there may be.
    """

    record_name: str
    sampling_rate_hz: float
    frames: int | None
    signals: tuple[WfdbSignal, ...]
    comments: tuple[str, ...]
    segments: tuple[tuple[str, int], ...] = ()


def parse_header(text: bytes) -> WfdbHeader:
    """Parse the bytes of a ``.hea`` file.

    Raises
    ------
    SignalError
        Not a header, a number out of range, or a file name with a directory.
    """
    if len(text) > MAX_HEADER_BYTES:
        raise _error(f"has {len(text)} bytes, expected at most {MAX_HEADER_BYTES}")
    try:
        lines = [line.strip() for line in text.decode("utf-8").splitlines()]
    except UnicodeDecodeError:
        # Comments and units (µV) of old records are often Latin-1, in which every byte is a character.
        lines = [line.strip() for line in text.decode("latin-1").splitlines()]
    comments = tuple(line.lstrip("#").strip() for line in lines if line.startswith("#"))
    fields = [line for line in lines if line and not line.startswith("#")]
    if not fields:
        raise _error("is empty")
    name, rate, frames, count = _record_line(fields[0])
    name, slash, segments = name.partition("/")
    if slash:
        return WfdbHeader(name, rate, frames, (), comments, _segments(segments, fields[1:], frames))
    if len(fields) - 1 < count:
        raise _error(f"announces {count} signals, but has {len(fields) - 1} signal lines")
    return WfdbHeader(name, rate, frames, tuple(_signal_line(line) for line in fields[1 : count + 1]), comments)


def _record_line(line: str) -> tuple[str, float, int | None, int]:
    parts = line.split()
    if len(parts) < 2:
        raise _error("has no record line (name, number of signals, sampling rate, number of samples)")
    count = _integer(parts[1], "number of signals")
    if not 1 <= count <= MAX_SIGNALS:
        raise _error(f"announces {count} signals, expected 1 to {MAX_SIGNALS}")
    rate = DEFAULT_SAMPLING_RATE_HZ
    if len(parts) > 2:
        match = _RATE.match(parts[2])
        rate = _real(match.group(1) if match else parts[2], "sampling rate")
    frames = _integer(parts[3], "number of samples") if len(parts) > 3 else 0
    if frames < 0:
        raise _error("has a negative number of samples")
    return parts[0], rate, frames or None, count


def _segments(announced: str, lines: list[str], frames: int | None) -> tuple[tuple[str, int], ...]:
    count = _integer(announced, "number of segments")
    if not 1 <= count <= MAX_SEGMENTS or len(lines) < count:
        raise _error(f"announces {count} segments and has {len(lines)} segment lines, expected 1 to {MAX_SEGMENTS}")
    segments: list[tuple[str, int]] = []
    for line in lines[:count]:
        name, _, length = line.partition(" ")
        if name != "~" and not _FILE_NAME.match(name):
            raise _error("names a segment with a directory or odd characters, expected a plain name beside it")
        segments.append((name, _integer(length.strip(), "length of a segment")))
    names = [name for name, _ in segments if name != "~"]
    if len(set(names)) < len(names):  # or a few bytes on disk could claim hours
        raise _error("names a segment more than once, expected each once")
    total = sum(length for _, length in segments)
    if min(length for _, length in segments) < 0 or frames not in (None, total):
        raise _error(f"announces {frames} samples a lead, but its segments have {total}")
    return tuple(segments)


def _signal_line(line: str) -> WfdbSignal:
    parts = line.split(maxsplit=8)
    if len(parts) < 2:
        raise _error("has a signal line without file name and format")
    file_name = parts[0]
    if file_name != "~" and not _FILE_NAME.match(file_name):
        raise _error("names a signal file with a directory or odd characters, expected a plain file name beside it")
    match = _FORMAT.match(parts[1])
    if not match:
        raise _error(f"has format {parts[1][:20]!r}, expected a number such as 16, 212 or 516")
    storage, per_frame, skew, offset = (int(group) if group else None for group in match.groups())
    if per_frame is not None and not 1 <= per_frame <= MAX_SAMPLES_PER_FRAME:
        raise _error(f"has {per_frame} samples a frame, expected 1 to {MAX_SAMPLES_PER_FRAME}")
    gain, baseline, unit = _gain(parts[2]) if len(parts) > 2 else (None, None, "mV")
    numbers = [_integer(part, "signal line") for part in parts[3:8]]
    adc_zero = numbers[1] if len(numbers) > 1 else 0
    return WfdbSignal(
        file_name=file_name,
        format=storage or 0,
        samples_per_frame=per_frame or 1,
        skew=skew or 0,
        byte_offset=offset or 0,
        gain_per_unit=gain,
        baseline=adc_zero if baseline is None else baseline,
        unit=unit,
        initial_value=numbers[2] if len(numbers) > 2 else None,
        checksum=numbers[3] if len(numbers) > 3 else None,
        description=parts[8].strip() if len(parts) > 8 else "",
    )


def _gain(text: str) -> tuple[float | None, int | None, str]:
    match = _GAIN.match(text)
    if not match:
        raise _error(f"has gain {text[:30]!r}, expected counts a unit such as 1000(0)/mV")
    gain = _real(match.group(1), "gain")
    baseline = int(match.group(2)) if match.group(2) else None
    return gain or None, baseline, match.group(3) or "mV"


def _integer(text: str, what: str) -> int:
    if not re.fullmatch(r"[-+]?\d{1,12}", text, re.ASCII):
        raise _error(f"has {text[:20]!r} for its {what}, expected a whole number")
    return int(text)


def _real(text: str, what: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not abs(value) < 1e15:
        raise _error(f"has {text[:20]!r} for its {what}, expected a number")
    return value


def _error(what: str) -> SignalError:
    return SignalError(f"WFDB header {what}; check the .hea file", field="ecg.wfdb.header")
