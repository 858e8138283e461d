"""ECGs from NumPy files: ``.npy`` with one or many recordings, ``.npz`` with names, rate, and reports beside them."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmecg.ecg import Ecg
from mmecg.errors import InvalidInputError, SignalError
from mmecg.report import Report
from mmecg.study import Study

MAX_NPZ_BYTES = 4_000_000_000
"""Largest unpacked size of an ``.npz``; an ``.npy`` is mapped, not loaded, and has no limit."""


def read_numpy(
    path: str | Path,
    *,
    sampling_rate_hz: float | None = None,
    leads: Sequence[str] | None = None,
    unit: str | None = None,
) -> Iterator[Study]:
    """Read the recordings of a NumPy file as studies, one by one.

    Parameters
    ----------
    path : str or Path
        ``.npy``: an array of shape (leads, samples) or (records, leads, samples). ``.npz``: such an array named
        ``signal`` and, as you like, ``sampling_rate_hz``, ``leads``, ``unit``, and per record ``study_id``,
        ``subject_id`` and ``report``. Pickled objects are refused.
    sampling_rate_hz : float, optional
        Needed unless the file gives it.
    leads : sequence of str, optional
        Name of each row, unless the file gives them; may be left out for 12 rows in the order of
        :data:`mmecg.ecg.LEADS`.
    unit : {"mV", "uV", "µV", "V"}, optional
        Unless the file gives it; default mV.

    Yields
    ------
    Study
        Its ``study_id`` is the file's name and the record's number, and its ``subject_id`` the same, unless given.

    Raises
    ------
    SignalError
        The file cannot be read, or :meth:`Ecg.from_array` refuses a recording.
    """
    file = Path(path)
    content = _load(file)
    signal = content["signal"]
    if signal.ndim == 2:
        signal = signal[None]
    if signal.ndim != 3:
        raise SignalError(
            f"signal has {signal.ndim} axes, expected (leads, samples) or (records, leads, samples)", field="ecg.signal"
        )
    rate = sampling_rate_hz if sampling_rate_hz is not None else _scalar(content, "sampling_rate_hz")
    if rate is None:
        raise SignalError("sampling rate is not given, expected samples per second", field="ecg.sampling_rate_hz")
    names = leads if leads is not None else _strings(content, "leads")
    unit = unit or _scalar(content, "unit") or "mV"
    columns = {name: _strings(content, name) for name in ("study_id", "subject_id", "report")}
    for name, values in columns.items():
        if values is not None and len(values) != len(signal):
            raise InvalidInputError(f"{name} has {len(values)} values for {len(signal)} records", field=name)
    for row in range(len(signal)):
        given = {name: values[row] for name, values in columns.items() if values is not None}
        study_id = given.get("study_id", f"{file.stem}-{row}")
        yield Study(
            study_id=study_id,
            subject_id=given.get("subject_id", study_id),
            ecg=Ecg.from_array(signal[row], sampling_rate_hz=float(rate), leads=names, unit=str(unit)),
            report=Report.from_text(given["report"]) if given.get("report") else None,
        )


def _load(file: Path) -> dict[str, NDArray[Any]]:
    try:
        if file.suffix.lower() != ".npz":
            return {"signal": np.load(file, mmap_mode="r", allow_pickle=False)}
        with zipfile.ZipFile(file) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > MAX_NPZ_BYTES:
            raise SignalError(
                f"NumPy file unpacks to {size} bytes, expected at most {MAX_NPZ_BYTES}", field="ecg.signal"
            )
        with np.load(file, allow_pickle=False) as stored:
            content = {name: stored[name] for name in stored.files}
    except SignalError:
        raise
    except (OSError, ValueError, EOFError, MemoryError, zipfile.BadZipFile) as error:
        raise SignalError(
            f"NumPy file {file.name} cannot be read ({type(error).__name__}), expected .npy or .npz without pickled "
            "objects; it is missing, damaged or truncated",
            field="ecg.signal",
        ) from None
    if "signal" not in content:
        raise SignalError(f"NumPy file has no array named signal, found {', '.join(content)[:80]}", field="ecg.signal")
    return content


def _scalar(content: dict[str, NDArray[Any]], name: str) -> Any:
    if name not in content:
        return None
    if content[name].size != 1:
        raise InvalidInputError(f"{name} has {content[name].size} values, expected one", field=name)
    return content[name].item()


def _strings(content: dict[str, NDArray[Any]], name: str) -> list[str] | None:
    return [str(value) for value in content[name].reshape(-1)] if name in content else None
