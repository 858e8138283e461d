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
* **Several segments** (fixed or variable layout) are joined to one recording. A lead that starts or stops in between,
  or a gap (``~``), means missing samples and is refused; each segment is a record that can be read on its own.
* **Checksums** of the header are verified where given: other samples than those that were written are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mmecg.datasets.wfdb_header import MAX_HEADER_BYTES, WfdbHeader, parse_header
from mmecg.datasets.wfdb_signals import Folder, Leads, Memory, check_duration, choose_leads, read_leads
from mmecg.ecg import LEADS, Ecg, lead_index
from mmecg.errors import SignalError


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
    if header.segments:
        return _make_ecg(_read_segments(header, record, rename or {}, verify_checksum))
    return _make_ecg(read_leads(header, Folder(record), rename or {}, verify_checksum))


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
    if parsed.segments:
        raise SignalError(
            "WFDB header is of a record of several segments, expected one; read the record's folder, or send the "
            "segments one by one",
            field="ecg.wfdb.header",
        )
    if isinstance(signal, bytes):
        names = {parsed.signals[index].file_name for index, _ in choose_leads(parsed, rename or {})}
        if len(names) != 1:
            raise SignalError(
                f"WFDB header spreads its leads over {len(names)} signal files, expected one; "
                "send a record with one signal file, or the samples themselves",
                field="ecg.wfdb.signal",
            )
        signal = {names.pop(): signal}
    return _make_ecg(read_leads(parsed, Memory(header, signal), rename or {}, verify_checksum))


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


def _read_segments(layout: WfdbHeader, record: Path, rename: Mapping[str, str], verify_checksum: bool) -> Leads:
    """Join the segments; everything that headers can tell is checked before a sample is read."""
    check_duration(sum(length for _, length in layout.segments), layout.sampling_rate_hz)
    lengths = [(name, length) for name, length in layout.segments if length]
    headers = {name: read_wfdb_header(record.with_name(name + ".hea")) for name, _ in lengths if name != "~"}
    present: list[set[int]] = []
    for name, _ in lengths:
        header = headers.get(name)
        present.append({lead_index(lead) for _, lead in choose_leads(header, rename)} if header else set())
        if header and header.sampling_rate_hz != layout.sampling_rate_hz:
            raise SignalError(
                f"a segment has {header.sampling_rate_hz:g} Hz, but its record {layout.sampling_rate_hz:g} Hz; "
                "check the WFDB headers",
                field="ecg.sampling_rate_hz",
            )
    partial = set[int]().union(*present) - present[0].intersection(*present)
    if not any(present):
        raise SignalError("no segment of the record has a standard lead, expected a recording", field="ecg.leads")
    if partial:
        raise SignalError(
            f"{', '.join(LEADS[lead] for lead in sorted(partial))} is not in all {len(present)} segments of the "
            "record, expected leads without a gap; read the segments one by one, each is a record",
            field="ecg.signal",
        )
    parts = [
        read_leads(headers[name], Folder(record.with_name(name)), rename, verify_checksum, frames_announced=length)
        for name, length in lengths
    ]
    if len({(tuple(part.names), part.sampling_rate_hz) for part in parts}) > 1:
        raise SignalError(
            "segments differ in samples a frame or repeat a lead; read them one by one", field="ecg.leads"
        )
    return Leads(parts[0].names, np.concatenate([part.signal for part in parts], axis=1), parts[0].sampling_rate_hz)


def _make_ecg(leads: Leads) -> Ecg:
    """Leave out leads of which every sample is missing; ``Ecg.from_array`` refuses the other kinds of trouble."""
    there = np.flatnonzero(~np.isnan(leads.signal).all(axis=1))
    if not len(there):
        raise SignalError("every sample is missing, expected a recording", field="ecg.signal")
    names = [leads.names[row] for row in there]
    return Ecg.from_array(leads.signal[there], sampling_rate_hz=leads.sampling_rate_hz, leads=names)


def _record_path(path: Path) -> Path:
    return path.with_suffix("") if path.suffix.lower() in {".hea", ".dat", ".mat"} else path
