"""The leads of one WFDB segment in millivolt: header and files are compared first, then the counts are decoded.

The policies are stated in :mod:`mmecg.datasets.wfdb`, which makes records of these.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mmecg.datasets.wfdb_header import BYTES_PER_SAMPLE, FLAC_FORMATS, MISSING_SAMPLE, WfdbHeader, WfdbSignal
from mmecg.ecg import (
    LEADS,
    MAX_DURATION_S,
    MAX_SAMPLING_RATE_HZ,
    MIN_DURATION_S,
    MIN_SAMPLING_RATE_HZ,
    lead_index,
    resample,
)
from mmecg.errors import SignalError

MAX_FLAC_RATIO = 200
"""Largest accepted ratio of decoded to stored bytes of a FLAC file; an ECG reaches 2 to 10."""

_UNIT_TO_MV = {"mv": 1.0, "uv": 1e-3, "µv": 1e-3, "μv": 1e-3, "v": 1e3}


@dataclass(frozen=True)
class Leads:
    """Standard leads of a segment, ascending by position in :data:`mmecg.ecg.LEADS`; a repeated one is kept.

    Attributes
    ----------
    names : list of str
    signal : float32, shape (n_leads, samples), mV
        NaN where a sample is missing.
    sampling_rate_hz : float
    """

    names: list[str]
    signal: NDArray[np.float32]
    sampling_rate_hz: float


class Source(Protocol):
    """Where signal files lie."""

    def size(self, file_name: str) -> int:
        """Return the size in bytes. Raises ``SignalError`` if the file is not there."""

    def read(self, file_name: str, limit: int) -> bytes:
        """Return the first ``limit`` bytes."""

    def decode(self, file_names: Sequence[str], channels: Sequence[int], frames: int) -> list[NDArray[Any]]:
        """Let the wfdb package decode the first frames of signals that lie in the named files."""


@dataclass(frozen=True)
class Folder:
    """Signal files beside the header of a record on disk."""

    record: Path

    def size(self, file_name: str) -> int:
        """See :class:`Source`."""
        try:
            return (self.record.parent / file_name).stat().st_size
        except OSError as error:
            raise _no_file(file_name, str(error.strerror)) from None

    def read(self, file_name: str, limit: int) -> bytes:
        """See :class:`Source`."""
        with (self.record.parent / file_name).open("rb") as stream:
            return stream.read(limit)

    def decode(self, file_names: Sequence[str], channels: Sequence[int], frames: int) -> list[NDArray[Any]]:
        """See :class:`Source`."""
        options = {"physical": False, "smooth_frames": False, "ignore_skew": True}
        record = _wfdb().rdrecord(str(self.record.absolute()), channels=channels, sampto=frames, **options)
        return list(record.e_d_signal)


@dataclass(frozen=True)
class Memory:
    """The contents of a header and of its signal files."""

    header: bytes
    files: Mapping[str, bytes]

    def size(self, file_name: str) -> int:
        """See :class:`Source`."""
        if file_name not in self.files:
            raise _no_file(file_name, "was not sent")
        return len(self.files[file_name])

    def read(self, file_name: str, limit: int) -> bytes:
        """See :class:`Source`."""
        return self.files[file_name][:limit]

    def decode(self, file_names: Sequence[str], channels: Sequence[int], frames: int) -> list[NDArray[Any]]:
        """See :class:`Source`."""
        with tempfile.TemporaryDirectory(prefix="mmecg-") as folder:
            root = Path(folder)
            for name in file_names:
                (root / name).write_bytes(self.files[name])
            # Written last, so that no signal file can take the header's place.
            (root / "record.hea").write_bytes(self.header)
            return Folder(root / "record").decode(file_names, channels, frames)


@cache
def _wfdb() -> Any:
    """Import the wfdb package, only where it is needed: with recent pandas, its own import warns of deprecations."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import wfdb
    return wfdb


def read_leads(
    header: WfdbHeader,
    source: Source,
    rename: Mapping[str, str],
    verify_checksum: bool,
    *,
    frames_announced: int | None = None,
) -> Leads:
    """Read the standard leads of a record, or of one segment of a record.

    Parameters
    ----------
    header : WfdbHeader
    source : Source
    rename, verify_checksum
        See :func:`mmecg.datasets.wfdb.read_wfdb`.
    frames_announced : int, optional
        Length of a segment as its record says; a segment may be shorter than a recording has to be.

    Raises
    ------
    SignalError
        Header, files or lengths do not fit each other or the limits, or the samples are damaged.
    """
    chosen = choose_leads(header, rename)
    if not chosen:
        found = ", ".join(repr(signal.description[:12]) for signal in header.signals[:12])
        raise SignalError(
            f"none of the record's signals ({found}) is a standard lead, expected some of I, II, III, aVR, aVL, aVF, "
            "V1 to V6; say with `rename` which lead a signal is",
            field="ecg.leads",
        )
    signals = [header.signals[index] for index, _ in chosen]
    frames = _check_claims(header, signals, source)
    if frames_announced is None:
        check_duration(frames, header.sampling_rate_hz)
    elif frames != frames_announced:
        raise SignalError(
            f"a segment has {frames} samples a lead, but its record announces {frames_announced}; "
            "the segment is truncated, or belongs to another record",
            field="ecg.wfdb.signal",
        )
    counts = _decode(header, [index for index, _ in chosen], frames, source)
    if verify_checksum and header.frames is not None:
        _check_checksums(signals, counts)
    per_frame = max(signal.samples_per_frame for signal in signals)
    rate = header.sampling_rate_hz * per_frame
    rows: list[NDArray[np.float32]] = []
    for signal, row in zip(signals, counts, strict=True):
        millivolt = _to_millivolt(signal, row)
        if signal.samples_per_frame != per_frame:
            millivolt = resample(millivolt, header.sampling_rate_hz * signal.samples_per_frame, rate)
        rows.append(millivolt)
    order = sorted(range(len(chosen)), key=lambda number: lead_index(chosen[number][1]))
    return Leads([LEADS[lead_index(chosen[number][1])] for number in order], np.stack(rows)[order], rate)


def choose_leads(header: WfdbHeader, rename: Mapping[str, str]) -> list[tuple[int, str]]:
    """Return position and name of the standard leads; none if there is none."""
    chosen: list[tuple[int, str]] = []
    for index, signal in enumerate(header.signals):
        name = rename.get(signal.description, signal.description)
        try:
            lead_index(name)
        except SignalError:
            continue
        if signal.format != 0 and signal.file_name != "~":
            chosen.append((index, name))
    return chosen


def check_duration(frames: int, frames_per_s: float) -> None:
    """Refuse a recording that is too short or too long, before it is read.

    Raises
    ------
    SignalError
        It is.
    """
    duration_s = frames / frames_per_s if frames_per_s > 0 else float("inf")
    if not MIN_DURATION_S <= duration_s <= MAX_DURATION_S:
        raise SignalError(
            f"recording lasts {duration_s:g} s, expected {MIN_DURATION_S:g} s to {MAX_DURATION_S:g} s; "
            "cut the recording, or check the WFDB header",
            field="ecg.signal",
        )


def _check_claims(header: WfdbHeader, signals: Sequence[WfdbSignal], source: Source) -> int:
    """Return the number of frames, or refuse a header that claims more than the limits and its files allow."""
    rate = header.sampling_rate_hz * max(signal.samples_per_frame for signal in signals)
    if not MIN_SAMPLING_RATE_HZ <= rate <= MAX_SAMPLING_RATE_HZ:
        raise SignalError(
            f"sampling rate is {rate:g} Hz, expected {MIN_SAMPLING_RATE_HZ:g} to {MAX_SAMPLING_RATE_HZ:g} Hz; "
            "check the WFDB header",
            field="ecg.sampling_rate_hz",
        )
    frames = header.frames
    for name in dict.fromkeys(signal.file_name for signal in signals):
        size = source.size(name)
        available = _frames_in_file(header, name, size)
        if header.frames is None:
            frames = available if frames is None else min(frames, available)
        elif header.frames > available:
            raise SignalError(
                f"WFDB header claims {header.frames} samples a lead, but its signal file of {size} bytes "
                f"holds at most {available}; the file is truncated or the header is wrong",
                field="ecg.wfdb.signal",
            )
    return (frames or 0) - max(signal.skew for signal in signals)


def _members(header: WfdbHeader, file_name: str) -> list[WfdbSignal]:
    # In the order in which their samples are interleaved.
    return [signal for signal in header.signals if signal.file_name == file_name]


def _frames_in_file(header: WfdbHeader, file_name: str, size: int) -> int:
    members = _members(header, file_name)
    if len({(signal.format, signal.byte_offset) for signal in members}) != 1:
        raise SignalError("signals of one WFDB file differ in format; check the header", field="ecg.wfdb.header")
    storage, offset = members[0].format, members[0].byte_offset
    samples = sum(signal.samples_per_frame for signal in members)
    if storage in FLAC_FORMATS:
        if header.frames is None:
            raise SignalError("WFDB header of a FLAC record gives no length; add it", field="ecg.wfdb.header")
        return size * MAX_FLAC_RATIO * 8 // (samples * (storage - 500))
    if storage not in BYTES_PER_SAMPLE:
        known = ", ".join(map(str, sorted([*BYTES_PER_SAMPLE, *FLAC_FORMATS])))
        raise SignalError(f"WFDB format {storage} is not supported, expected {known}", field="ecg.wfdb.header")
    return int(max(size - offset, 0) / (BYTES_PER_SAMPLE[storage] * samples) + 1e-6)


def _decode(header: WfdbHeader, indices: Sequence[int], frames: int, source: Source) -> list[NDArray[Any]]:
    """Return the counts of the chosen signals, each of shape (frames * samples_per_frame,)."""
    signals = [header.signals[index] for index in indices]
    stored = frames + max(signal.skew for signal in signals)
    decoded: dict[int, NDArray[Any]] = {}
    names = list(dict.fromkeys(signal.file_name for signal in signals))
    foreign = [name for name in names if _members(header, name)[0].format != 16]
    for name in names:
        if name.endswith(".mat"):
            _check_mat(source.read(name, 128))
        if name not in foreign:
            positions = [index for index, signal in enumerate(header.signals) if signal.file_name == name]
            decoded.update(zip(positions, _decode_16(_members(header, name), stored, name, source), strict=True))
    wanted = [index for index in indices if header.signals[index].file_name in foreign]
    if wanted:
        try:
            rows = source.decode(foreign, wanted, stored)
        except Exception as error:
            # The wfdb package meets a damaged file with errors of many kinds.
            raise SignalError(
                f"WFDB signal file cannot be decoded ({type(error).__name__}); it is damaged, truncated or not of the "
                "format that its header names",
                field="ecg.wfdb.signal",
            ) from None
        decoded.update(zip(wanted, rows, strict=True))
    return [_cut(header.signals[index], decoded[index], frames) for index in indices]


def _cut(signal: WfdbSignal, row: NDArray[Any], frames: int) -> NDArray[Any]:
    start = signal.skew * signal.samples_per_frame
    cut = row[start : start + frames * signal.samples_per_frame]
    if len(cut) != frames * signal.samples_per_frame:
        raise SignalError(
            f"WFDB signal file holds {len(row)} samples a lead, fewer than its header claims; it is truncated",
            field="ecg.wfdb.signal",
        )
    return cut


def _decode_16(members: Sequence[WfdbSignal], frames: int, name: str, source: Source) -> list[NDArray[np.int16]]:
    """Decode format 16 (interleaved little-endian int16), by far the most common; the wfdb package is the oracle."""
    offset = members[0].byte_offset
    count = frames * sum(signal.samples_per_frame for signal in members)
    values = np.frombuffer(source.read(name, offset + 2 * count), "<i2", count, offset).reshape(frames, -1)
    rows: list[NDArray[np.int16]] = []
    column = 0
    for signal in members:
        rows.append(values[:, column : column + signal.samples_per_frame].reshape(-1))
        column += signal.samples_per_frame
    return rows


def _check_mat(start: bytes) -> None:
    if start.startswith((b"MATLAB 5.0", b"\x89HDF")):
        raise SignalError(
            "the .mat file is of MATLAB version 5 or later, expected version 4 as in the CinC challenges; "
            "save it with -v4, or pass its matrix as an array",
            field="ecg.wfdb.signal",
        )


def _check_checksums(signals: Sequence[WfdbSignal], counts: Sequence[NDArray[Any]]) -> None:
    bad = [
        signal.description[:12]
        for signal, row in zip(signals, counts, strict=True)
        if signal.checksum is not None and not signal.skew and (int(row.sum(dtype=np.int64)) - signal.checksum) % 65536
    ]
    if bad:
        raise SignalError(
            f"checksum of {', '.join(bad)} does not match the WFDB header: the samples are not those written; "
            "fetch the record again, or read it with verify_checksum=False",
            field="ecg.wfdb.signal",
        )


def _to_millivolt(signal: WfdbSignal, counts: NDArray[Any]) -> NDArray[np.float32]:
    scale = _UNIT_TO_MV.get(signal.unit.lower())
    if scale is None:
        raise SignalError(
            f"lead {signal.description[:12]!r} has the unit {signal.unit[:12]!r}, expected mV, uV or V",
            field="ecg.unit",
        )
    if signal.gain_per_unit is None:
        raise SignalError(
            f"lead {signal.description[:12]!r} is uncalibrated (no gain in the header), expected counts a millivolt; "
            "add the gain to the header",
            field="ecg.unit",
        )
    millivolt = ((counts - np.float64(signal.baseline)) / (signal.gain_per_unit / scale)).astype(np.float32)
    missing = MISSING_SAMPLE.get(signal.format)
    if missing is not None:
        millivolt[counts == missing] = np.nan
    return millivolt


def _no_file(file_name: str, reason: str) -> SignalError:
    message = f"WFDB signal file {file_name[:40]} cannot be read ({reason}); keep it beside its header"
    return SignalError(message, field="ecg.wfdb.signal")
