"""Parquet tables of studies: compact, streamed, and read by any tool that reads Parquet.

One row a study, zstd-compressed, with these columns (:data:`SCHEMA`):

``study_id, subject_id, acquired_at, sampling_rate_hz, samples, leads``
    ``leads`` names the recorded leads in the order of :data:`mmecg.ecg.LEADS`; null without an ECG.
``counts_per_mv``
    Gain of each lead, as in WFDB. A lead whose values lie on the grid of a whole number of counts a millivolt (every
    record with a whole-numbered gain does) keeps them exactly; another is rounded to 1/32767 of its largest value.
``signal``
    The int16 counts of all leads, one lead after the other, as differences of neighbouring samples (modulo 65536, the
    first sample counts from zero), little-endian, stored as all low bytes followed by all high bytes. Differences of
    neighbours are small, so this compresses to about half of what plain int16 does.
``report_raw, report_text, notes`` (list of text, kind, written_at)
``age_years, sex, height_cm, …, temperature_c``
    The fields of :class:`mmecg.vitals.Vitals`; null is missing.
``labels`` (list of label, likelihood), ``site, device, attributes`` (list of name, value)

A table of other origin needs ``study_id`` and ``subject_id`` only; columns that are not there are missing values.
A row that is no valid study (no id, text that is too long, an impossible vital sign, …) ends :func:`read_studies`, and
is skipped with its reason by :class:`ParquetStudies`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from polars.io.plugins import register_io_source

from mmecg.datasets.bulk import BulkReport
from mmecg.ecg import LEADS, Ecg
from mmecg.errors import ArtifactError, InvalidInputError, MmecgError, SignalError
from mmecg.report import Report, check_text
from mmecg.study import ClinicalNote, Study
from mmecg.vitals import VITAL_DEFINITIONS, Vitals

BATCH_STUDIES = 256
"""Studies of one row group: what is held in memory at a time."""

_VITALS: dict[str, pl.DataType] = {vital.name: pl.Float64() for vital in VITAL_DEFINITIONS} | {"sex": pl.String()}

SCHEMA: dict[str, pl.DataType] = {
    "study_id": pl.String(),
    "subject_id": pl.String(),
    "acquired_at": pl.Datetime("us"),
    "sampling_rate_hz": pl.Float64(),
    "samples": pl.Int64(),
    "leads": pl.List(pl.String()),
    "counts_per_mv": pl.List(pl.Float64()),
    "signal": pl.Binary(),
    "report_raw": pl.String(),
    "report_text": pl.String(),
    "notes": pl.List(pl.Struct({"text": pl.String(), "kind": pl.String(), "written_at": pl.Datetime("us")})),
    **_VITALS,
    "labels": pl.List(pl.Struct({"label": pl.String(), "likelihood": pl.Float64()})),
    "site": pl.String(),
    "device": pl.String(),
    "attributes": pl.List(pl.Struct({"name": pl.String(), "value": pl.String()})),
}
"""Columns and types of a table of studies."""

_INT16_MAX = 32767
_MAX_COUNTS_PER_MV = 1_000_000


def write_studies(studies: Iterable[Study], path: str | Path) -> int:
    """Write studies to one file, batch by batch; the file appears under its name only when it is complete.

    Parameters
    ----------
    studies : iterable of Study
        Consumed once; never held as a whole.
    path : str or Path

    Returns
    -------
    int
        How many studies were written.
    """
    target = Path(path)
    partial = target.with_name(f".{target.name}.partial")
    written = 0

    def frames(*_: Any) -> Iterator[pl.DataFrame]:
        nonlocal written
        rows = map(row_of_study, studies)
        while batch := list(islice(rows, BATCH_STUDIES)):
            written += len(batch)
            yield pl.DataFrame(batch, schema=SCHEMA, orient="row")

    try:
        source = register_io_source(frames, schema=pl.Schema(SCHEMA))
        source.sink_parquet(partial, compression="zstd", compression_level=15, row_group_size=BATCH_STUDIES)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return written


def read_studies(path: str | Path, *, with_signal: bool = True) -> Iterator[Study]:
    """Read the studies of one file, batch by batch, in the order in which they were written.

    Parameters
    ----------
    path : str or Path
    with_signal : bool
        False leaves the signals unread, and ``Study.ecg`` out.

    Raises
    ------
    ArtifactError
        The file is missing, damaged, or not a table of studies.
    InvalidInputError
        A study is not valid (a vital sign outside its range, an amplitude that cannot be millivolt, …).
    """
    yield from map(study_of_row, _rows(path, with_signal=with_signal))


class ParquetStudies:
    """The studies of one file, read while you iterate; a row that is no valid study is skipped.

    Parameters
    ----------
    path : str or Path

    Raises
    ------
    ArtifactError
        The file is missing, damaged, or not a table of studies.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = path
        self._studies = count_studies(path)
        self._read = 0
        self._failures: list[tuple[str, str]] = []

    def __len__(self) -> int:
        return self._studies

    def __iter__(self) -> Iterator[Study]:
        self._read, self._failures = 0, []
        for position, row in enumerate(_rows(self._path), 1):
            try:
                study = study_of_row(row)
            except MmecgError as error:
                self._failures.append((row["study_id"] or f"row {position}", str(error)))
            else:
                self._read += 1
                yield study

    @property
    def report(self) -> BulkReport:
        """What was skipped so far, and why."""
        schema = {"record": pl.String(), "reason": pl.String()}
        return BulkReport(self._read, pl.DataFrame(self._failures, schema=schema, orient="row"))


def _rows(path: str | Path, *, with_signal: bool = True) -> Iterator[dict[str, Any]]:
    table = scan_studies(path)
    if not with_signal:
        table = table.drop("signal").with_columns(pl.lit(None, pl.Binary).alias("signal"))
    for start in range(0, count_studies(path), BATCH_STUDIES):
        yield from _collect(table.slice(start, BATCH_STUDIES), path).iter_rows(named=True)


def count_studies(path: str | Path) -> int:
    """Return how many studies a file holds, without reading them. Raises ``ArtifactError`` as :func:`read_studies`."""
    return int(_collect(scan_studies(path).select(pl.len()), path).item())


def scan_studies(path: str | Path) -> pl.LazyFrame:
    """Return the table lazily with all columns of :data:`SCHEMA`; those that the file lacks are null.

    Raises
    ------
    ArtifactError
        The file is missing, damaged, or lacks ``study_id`` or ``subject_id``, or a column has another type.
    """
    try:
        table = pl.scan_parquet(path)
        have = table.collect_schema()
    except (OSError, pl.exceptions.PolarsError) as error:
        raise _unreadable(path, error) from None
    missing = [name for name in ("study_id", "subject_id") if name not in have]
    if missing:
        raise ArtifactError(f"{Path(path).name} has no column {', '.join(missing)}, expected a table of studies")
    return table.select(
        pl.col(name).cast(dtype) if name in have else pl.lit(None, dtype).alias(name) for name, dtype in SCHEMA.items()
    )


def _collect(table: pl.LazyFrame, path: str | Path) -> pl.DataFrame:
    try:
        return table.collect()
    except (OSError, pl.exceptions.PolarsError) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: str | Path, error: Exception) -> ArtifactError:
    return ArtifactError(
        f"{Path(path).name} cannot be read ({type(error).__name__}), expected a Parquet table of studies; "
        "it is missing, damaged or of another layout"
    )


def encode_counts(counts: NDArray[np.int16]) -> bytes:
    """Pack counts as the module docstring says.

    Parameters
    ----------
    counts : int16, shape (leads, samples)
    """
    difference = np.diff(counts.astype(np.int32), axis=1, prepend=0).astype("<u2")
    return difference.view(np.uint8).reshape(-1, 2).T.tobytes()


def decode_counts(content: bytes, *, leads: int, samples: int) -> NDArray[np.int16]:
    """Unpack counts: int16, shape (leads, samples).

    Raises
    ------
    SignalError
        The content has another length.
    """
    if len(content) != 2 * leads * samples:
        raise SignalError(
            f"stored signal has {len(content)} bytes, expected {2 * leads * samples} for {leads} leads of {samples} "
            "samples; the table is damaged",
            field="ecg.signal",
        )
    difference = np.frombuffer(content, np.uint8).reshape(2, -1).T.copy().view("<u2").reshape(leads, samples)
    return np.cumsum(difference, axis=1, dtype=np.uint16).view(np.int16)


def _counts_per_mv(lead: NDArray[np.float32]) -> float:
    """Return the gain of a lead: a whole number if its values lie on such a grid, else 32767 over the largest value."""
    largest = float(np.abs(lead).max())
    if largest == 0:
        return 1.0
    steps = np.diff(np.unique(lead))
    guesses = [1000.0, float(np.rint(1 / steps.min()))] if len(steps) else [1000.0]
    for gain in guesses:
        if 1 <= gain <= _MAX_COUNTS_PER_MV and largest * gain <= _INT16_MAX:
            counts = np.rint(lead * np.float64(gain))
            if np.array_equal((counts / gain).astype(np.float32), lead):
                return gain
    return _INT16_MAX / largest


def row_of_study(study: Study) -> dict[str, Any]:
    """Return a study as a row of :data:`SCHEMA`."""
    row: dict[str, Any] = dict.fromkeys(SCHEMA)
    row |= {name: getattr(study, name) for name in ("study_id", "subject_id", "acquired_at", "site", "device")}
    row |= {field.name: getattr(study.vitals, field.name) for field in fields(Vitals)}
    row["notes"] = [{"text": note.text, "kind": note.kind, "written_at": note.written_at} for note in study.notes]
    row["labels"] = [{"label": label, "likelihood": value} for label, value in study.labels.items()]
    row["attributes"] = [{"name": name, "value": value} for name, value in study.attributes.items()]
    if study.report is not None:
        row |= {"report_raw": study.report.raw, "report_text": study.report.text}
    if study.ecg is not None:
        signal = study.ecg.signal[study.ecg.lead_mask]
        gains = [_counts_per_mv(lead) for lead in signal]
        row |= {
            "sampling_rate_hz": study.ecg.sampling_rate_hz,
            "samples": signal.shape[1],
            "leads": list(study.ecg.leads),
            "counts_per_mv": gains,
            "signal": encode_counts(np.rint(signal * np.array(gains)[:, None]).astype(np.int16)),
        }
    return row


def study_of_row(row: Mapping[str, Any]) -> Study:
    """Return the study in a row of :data:`SCHEMA`; for what is raised, see :func:`read_studies`."""
    report = None
    if row["report_raw"] is not None or row["report_text"] is not None:
        raw = row["report_raw"] if row["report_raw"] is not None else row["report_text"]
        given = row["report_text"]
        report = Report(check_text(raw), check_text(given)) if given is not None else Report.from_text(raw)
    labels = _pairs(row["labels"], "labels", ("label", "likelihood"))
    if not all(0 <= value <= 100 for value in labels.values()):
        raise InvalidInputError("labels has a likelihood that is not 0 to 100, expected percent", field="labels")
    return Study(
        study_id=row["study_id"],
        subject_id=row["subject_id"],
        acquired_at=row["acquired_at"],
        ecg=_ecg_of_row(row),
        report=report,
        notes=tuple(map(_note, row["notes"] or ())),
        vitals=Vitals.from_mapping({name: row[name] for name in _VITALS}),
        labels=labels,
        site=None if row["site"] is None else check_text(row["site"], field="site"),
        device=None if row["device"] is None else check_text(row["device"], field="device"),
        attributes=_pairs(row["attributes"], "attributes", ("name", "value")),
    )


def _note(note: Mapping[str, Any] | None) -> ClinicalNote:
    if note is None or note["text"] is None:
        raise InvalidInputError("a note has no text, expected words; leave the note out", field="notes")
    kind = "note" if note["kind"] is None else check_text(note["kind"], field="notes")
    return ClinicalNote(check_text(note["text"], field="notes"), kind, note["written_at"])


def _pairs(entries: Sequence[Mapping[str, Any] | None] | None, field: str, names: tuple[str, str]) -> dict[str, Any]:
    """Return a list of structs as a mapping, with all texts checked."""
    pairs: dict[str, Any] = {}
    for entry in entries or ():
        values: list[Any] = [None if entry is None else entry[name] for name in names]
        if None in values:
            raise InvalidInputError(
                f"{field} has an entry without {' or '.join(names)}, expected both; leave the entry out", field=field
            )
        key, value = values
        pairs[check_text(key, field=field)] = check_text(value, field=field) if isinstance(value, str) else value
    return pairs


def _ecg_of_row(row: Mapping[str, Any]) -> Ecg | None:
    if row["signal"] is None:
        return None
    leads, gains = row["leads"] or list(LEADS), row["counts_per_mv"] or []
    if None in leads or not all(gain is not None and 0 < gain < np.inf for gain in gains):
        raise SignalError(
            "stored signal has a lead without name or a gain that is not above zero, expected both for every lead; "
            "the table is damaged",
            field="ecg.signal",
        )
    if len(gains) != len(leads) or not row["samples"] or not row["sampling_rate_hz"]:
        raise SignalError(
            "stored signal lacks its leads, gains, length or sampling rate; the table is damaged", field="ecg.signal"
        )
    counts = decode_counts(row["signal"], leads=len(leads), samples=row["samples"])
    return Ecg.from_array(counts / np.array(gains)[:, None], sampling_rate_hz=row["sampling_rate_hz"], leads=leads)
