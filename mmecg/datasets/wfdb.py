"""WFDB records to :class:`mmecg.ecg.Ecg`: formats 16, 80, 212, FLAC and the others, and CinC-challenge ``.mat`` files.

Policies, stated once:

* **Leads** are taken by name. Signals that are not one of the 12 standard leads (Frank leads, V7, MLII, pulse waves)
  are ignored as long as one standard lead is there; ``rename`` says that a foreign name is a standard lead.
* **Claims are checked first.** Number of signals, length and sampling rate of the header are compared with the limits
  of :mod:`mmecg.ecg` and with the size of the signal file before anything of that size is allocated. A signal file is
  always a plain name beside the header, never a path.
* **Unit**: mV, µV (uV) and V are converted; another unit, or an uncalibrated gain (0 or left out), is refused.
* **Missing samples** (WFDB's reserved value): a lead that has nothing else is a missing lead; a lead that has some is
  refused, as any NaN is.
* **Several frequencies**: leads with fewer samples a frame are resampled to the rate of the lead with the most.
* **Checksums** of the header are verified where given: other samples than those that were written are refused.
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

from mmecg.datasets.wfdb_header import (
    BYTES_PER_SAMPLE,
    FLAC_FORMATS,
    MAX_HEADER_BYTES,
    MISSING_SAMPLE,
    WfdbHeader,
    WfdbSignal,
    parse_header,
)
from mmecg.ecg import (
    MAX_DURATION_S,
    MAX_SAMPLING_RATE_HZ,
    MIN_DURATION_S,
    MIN_SAMPLING_RATE_HZ,
    Ecg,
    lead_index,
    resample,
)
from mmecg.errors import SignalError

MAX_FLAC_RATIO = 200
"""Largest accepted ratio of decoded to stored bytes of a FLAC file; an ECG reaches 2 to 10."""

_UNIT_TO_MV = {"mv": 1.0, "uv": 1e-3, "µv": 1e-3, "μv": 1e-3, "v": 1e3}


def read_wfdb(path: str | Path, *, rename: Mapping[str, str] | None = None, verify_checksum: bool = True) -> Ecg:
    """Read one WFDB record.

    Parameters
    ----------
    path : str or Path
        The record with or without ``.hea``, ``.dat`` or ``.mat``.
    rename : mapping of str to str, optional
        Name in the header to standard lead, for example ``{"ECG": "I"}``.
    verify_checksum : bool
        Refuse a record whose samples do not add up to the header's checksum.

    Returns
    -------
    Ecg
        At the record's own sampling rate.

    Raises
    ------
    SignalError
        The record is missing, truncated or damaged, its header claims too much, or :meth:`Ecg.from_array` refuses it.
    """
    record = _record_path(Path(path))
    header = read_wfdb_header(record)
    return _read(header, _Folder(record), rename or {}, verify_checksum)


def read_wfdb_bytes(
    header: bytes,
    signal: bytes | Mapping[str, bytes],
    *,
    rename: Mapping[str, str] | None = None,
    verify_checksum: bool = True,
) -> Ecg:
    """Read a WFDB record from the contents of its header and its signal file.

    Parameters
    ----------
    header : bytes
        Content of the ``.hea`` file.
    signal : bytes, or mapping of str to bytes
        Content of the one signal file that the standard leads are in, or the contents by file name.
    rename, verify_checksum
        See :func:`read_wfdb`, also for what is raised.
    """
    parsed = parse_header(header)
    if isinstance(signal, bytes):
        names = {parsed.signals[index].file_name for index, _ in _choose_leads(parsed, rename or {})}
        if len(names) != 1:
            raise SignalError(
                f"WFDB header spreads its leads over {len(names)} signal files, expected one; "
                "send a record with one signal file, or the samples themselves",
                field="ecg.wfdb.signal",
            )
        signal = {names.pop(): signal}
    return _read(parsed, _Memory(header, signal), rename or {}, verify_checksum)


def read_wfdb_header(path: str | Path) -> WfdbHeader:
    """Read the header of a record.

    Raises
    ------
    SignalError
        It is missing, or :func:`mmecg.datasets.wfdb_header.parse_header` refuses it.
    """
    record = _record_path(Path(path))
    file = record.with_name(record.name + ".hea")
    try:
        with file.open("rb") as stream:
            return parse_header(stream.read(MAX_HEADER_BYTES + 1))
    except OSError as error:
        raise SignalError(
            f"WFDB header {file.name} cannot be read ({error.strerror}); give the record's path",
            field="ecg.wfdb.header",
        ) from None


class _Source(Protocol):
    """Where signal files lie."""

    def size(self, file_name: str) -> int:
        """Return the size in bytes. Raises ``SignalError`` if the file is not there."""

    def read(self, file_name: str, limit: int) -> bytes:
        """Return the first ``limit`` bytes."""

    def decode(self, file_names: Sequence[str], channels: Sequence[int], frames: int) -> list[NDArray[Any]]:
        """Let the wfdb package decode the first frames of signals that lie in the named files."""


@dataclass(frozen=True)
class _Folder:
    record: Path

    def size(self, file_name: str) -> int:
        try:
            return (self.record.parent / file_name).stat().st_size
        except OSError as error:
            raise _no_file(file_name, str(error.strerror)) from None

    def read(self, file_name: str, limit: int) -> bytes:
        with (self.record.parent / file_name).open("rb") as stream:
            return stream.read(limit)

    def decode(self, file_names: Sequence[str], channels: Sequence[int], frames: int) -> list[NDArray[Any]]:
        options = {"physical": False, "smooth_frames": False, "ignore_skew": True}
        record = _wfdb().rdrecord(str(self.record.absolute()), channels=channels, sampto=frames, **options)
        return list(record.e_d_signal)


@dataclass(frozen=True)
class _Memory:
    header: bytes
    files: Mapping[str, bytes]

    def size(self, file_name: str) -> int:
        if file_name not in self.files:
            raise _no_file(file_name, "was not sent")
        return len(self.files[file_name])

    def read(self, file_name: str, limit: int) -> bytes:
        return self.files[file_name][:limit]

    def decode(self, file_names: Sequence[str], channels: Sequence[int], frames: int) -> list[NDArray[Any]]:
        with tempfile.TemporaryDirectory(prefix="mmecg-") as folder:
            root = Path(folder)
            for name in file_names:
                (root / name).write_bytes(self.files[name])
            # Written last, so that no signal file can take the header's place.
            (root / "record.hea").write_bytes(self.header)
            return _Folder(root / "record").decode(file_names, channels, frames)


@cache
def _wfdb() -> Any:
    """Import the wfdb package, only where it is needed: with recent pandas, its own import warns of deprecations."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import wfdb
    return wfdb


def _read(header: WfdbHeader, source: _Source, rename: Mapping[str, str], verify_checksum: bool) -> Ecg:
    chosen = _choose_leads(header, rename)
    signals = [header.signals[index] for index, _ in chosen]
    frames = _check_claims(header, signals, source)
    counts = _decode(header, [index for index, _ in chosen], frames, source)
    if verify_checksum and header.frames is not None:
        _check_checksums(signals, counts)
    rows: list[NDArray[np.float32]] = []
    leads: list[str] = []
    per_frame = max(signal.samples_per_frame for signal in signals)
    rate = header.sampling_rate_hz * per_frame
    for signal, (_, lead), row in zip(signals, chosen, counts, strict=True):
        millivolt = _to_millivolt(signal, row)
        if np.isnan(millivolt).all():
            continue
        if signal.samples_per_frame != per_frame:
            millivolt = resample(millivolt, header.sampling_rate_hz * signal.samples_per_frame, rate)
        rows.append(millivolt)
        leads.append(lead)
    if not rows:
        raise SignalError("every sample is missing, expected a recording", field="ecg.signal")
    return Ecg.from_array(np.stack(rows), sampling_rate_hz=rate, leads=leads)


def _choose_leads(header: WfdbHeader, rename: Mapping[str, str]) -> list[tuple[int, str]]:
    """Return position and name of the standard leads; ``Ecg.from_array`` refuses repeated ones."""
    chosen: list[tuple[int, str]] = []
    for index, signal in enumerate(header.signals):
        name = rename.get(signal.description, signal.description)
        try:
            lead_index(name)
        except SignalError:
            continue
        if signal.format != 0 and signal.file_name != "~":
            chosen.append((index, name))
    if not chosen:
        found = ", ".join(repr(signal.description[:12]) for signal in header.signals[:12])
        raise SignalError(
            f"none of the record's signals ({found}) is a standard lead, expected some of I, II, III, aVR, aVL, aVF, "
            "V1 to V6; say with `rename` which lead a signal is",
            field="ecg.leads",
        )
    return chosen


def _check_claims(header: WfdbHeader, signals: Sequence[WfdbSignal], source: _Source) -> int:
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
    frames = (frames or 0) - max(signal.skew for signal in signals)
    duration = frames / header.sampling_rate_hz
    if not MIN_DURATION_S <= duration <= MAX_DURATION_S:
        raise SignalError(
            f"recording lasts {duration:g} s, expected {MIN_DURATION_S:g} s to {MAX_DURATION_S:g} s; "
            "cut the recording, or check the WFDB header",
            field="ecg.signal",
        )
    return frames


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


def _decode(header: WfdbHeader, indices: Sequence[int], frames: int, source: _Source) -> list[NDArray[Any]]:
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


def _decode_16(members: Sequence[WfdbSignal], frames: int, name: str, source: _Source) -> list[NDArray[np.int16]]:
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


def _record_path(path: Path) -> Path:
    return path.with_suffix("") if path.suffix.lower() in {".hea", ".dat", ".mat"} else path


def _no_file(file_name: str, reason: str) -> SignalError:
    message = f"WFDB signal file {file_name[:40]} cannot be read ({reason}); keep it beside its header"
    return SignalError(message, field="ecg.wfdb.signal")
