"""PTB-XL folders (1.0.1 to 1.0.3, 100 or 500 Hz): table, labels, signals, studies.

Policies, stated once:

* **Age** 300 stands for "above 89" and is read as 90, with the attribute ``age_note = "above 89"``.
* **Sex** 0 is male and 1 is female. **Height and weight** outside the plausible range of
  :data:`mmecg.vitals.VITAL_DEFINITIONS` are read as missing and named in the attribute ``implausible``.
* **A number or a time that cannot be read** is missing, and named in the attribute ``implausible``.
* **A record is skipped, with its reason,** if its patient is not given, its age is impossible, its report is not plain
  text of bounded length, or its statements cannot be read. One such record never ends the reading of the others.
* **Labels** keep their likelihood 0..100, where 0 means *unknown*, not absent. As in the published benchmarks, a
  statement counts as positive if it is listed, whatever its likelihood (:func:`label_matrix`).
* **Reports** are cleaned by :func:`mmecg.report.clean_ptb_xl`; the raw text stays beside the clean one.

Source: Wagner et al., Scientific Data 7:154 (2020); benchmark: Strodthoff et al., IEEE JBHI 25(5) (2021).
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mmecg.datasets.bulk import BulkRead, BulkReport
from mmecg.datasets.tables import moment, number, read_csv, record_inside
from mmecg.datasets.wfdb import read_wfdb
from mmecg.ecg import LEADS, Ecg, fit_length
from mmecg.errors import InvalidInputError, MmecgError, ReportError, SignalError
from mmecg.report import Report, check_text
from mmecg.study import Study
from mmecg.vitals import VITAL_DEFINITIONS, Vitals

SUPERCLASSES: tuple[str, ...] = ("NORM", "MI", "STTC", "CD", "HYP")
"""Diagnostic superclasses: normal, myocardial infarction, ST/T change, conduction disturbance, hypertrophy."""

DURATION_S = 10
NOISE_COLUMNS: tuple[str, ...] = ("baseline_drift", "static_noise", "burst_noise", "electrodes_problems")
MASKED_AGE = 300
MASKED_AGE_YEARS = 90.0

_ATTRIBUTES = (
    *NOISE_COLUMNS,
    "extra_beats",
    "pacemaker",
    "heart_axis",
    "infarction_stadium1",
    "infarction_stadium2",
    "strat_fold",
    "validated_by_human",
    "age_note",
    "implausible",
)
_REQUIRED = ("ecg_id", "patient_id", "scp_codes", "report", "strat_fold", "filename_lr")
_OPTIONAL = (
    "age", "sex", "height", "weight", "site", "device", "recording_date", "heart_axis", "infarction_stadium1",
    "infarction_stadium2", "validated_by_human", *NOISE_COLUMNS, "extra_beats", "pacemaker", "filename_hr",
)  # fmt: skip
_LABEL = pl.Struct({"label": pl.String(), "likelihood": pl.Float64()})


def read_ptb_xl_table(folder: str | Path) -> pl.DataFrame:
    """Read ``ptbxl_database.csv`` without touching a signal.

    Returns
    -------
    polars.DataFrame
        One row a record, in the order of the file: ``study_id, subject_id, acquired_at, age_years, age_note, sex,
        height_cm, weight_kg, implausible, site, device, report_raw, report_text, labels`` (list of ``label,
        likelihood``; null if unreadable), ``strat_fold, validated_by_human, filename_lr, filename_hr``, the noise
        columns (cleaned of stray commas), ``extra_beats, pacemaker, heart_axis, infarction_stadium1,
        infarction_stadium2``.

    Raises
    ------
    InvalidInputError
        The file is missing or not in this layout.
    """
    raw = read_csv(Path(folder) / "ptbxl_database.csv", _REQUIRED)
    raw = raw.with_columns(pl.lit(None, pl.String).alias(name) for name in _OPTIONAL if name not in raw.columns)
    reports = [_clean_report(text or "") for text in raw["report"]]
    age, recorded = number("age"), moment("recording_date", "%Y-%m-%d %H:%M:%S")
    measured = {"height_cm": number("height"), "weight_kg": number("weight")}
    doubtful = {
        "height_cm": ("height", ~_plausible("height_cm", measured["height_cm"]).fill_null(False)),
        "weight_kg": ("weight", ~_plausible("weight_kg", measured["weight_kg"]).fill_null(False)),
        "age_years": ("age", age.is_null()),
        "acquired_at": ("recording_date", recorded.is_null()),
    }
    masked = age >= MASKED_AGE
    return raw.with_columns(
        pl.Series("report_raw", [report.raw for report in reports], pl.String),
        pl.Series("report_text", [report.text for report in reports], pl.String),
        pl.Series("labels", [_parse_labels(text) for text in raw["scp_codes"]], pl.List(_LABEL)),
    ).select(
        pl.col("ecg_id").alias("study_id"),
        number("patient_id").cast(pl.Int64, strict=False).cast(pl.String).alias("subject_id"),
        recorded.alias("acquired_at"),
        pl.when(masked).then(MASKED_AGE_YEARS).otherwise(age).alias("age_years"),
        pl.when(masked).then(pl.lit("above 89")).alias("age_note"),
        _sex().alias("sex"),
        *(pl.when(_plausible(name, value)).then(value).alias(name) for name, value in measured.items()),
        _names(doubtful).alias("implausible"),
        number("site").cast(pl.Int64, strict=False).cast(pl.String).alias("site"),
        pl.col("device").str.replace_all(r"\s+", " ").str.strip_chars().alias("device"),
        "report_raw",
        "report_text",
        "labels",
        number("strat_fold").cast(pl.Int64, strict=False).alias("strat_fold"),
        (pl.col("validated_by_human").str.to_lowercase() == "true").alias("validated_by_human"),
        "filename_lr",
        "filename_hr",
        *(pl.col(name).str.strip_chars(" ,").replace("", None).alias(name) for name in NOISE_COLUMNS),
        *(pl.col(name).str.strip_chars().alias(name) for name in ("extra_beats", "pacemaker", "heart_axis")),
        "infarction_stadium1",
        "infarction_stadium2",
    )


def read_scp_statements(folder: str | Path) -> pl.DataFrame:
    """Read ``scp_statements.csv``.

    Returns
    -------
    polars.DataFrame
        One row a statement: ``label, description, diagnostic, form, rhythm`` (booleans), ``superclass, subclass``
        (null unless diagnostic).

    Raises
    ------
    InvalidInputError
        The file is missing or not in this layout.
    """
    raw = read_csv(Path(folder) / "scp_statements.csv", ("description", "diagnostic", "form", "rhythm"))
    return raw.select(
        pl.col(raw.columns[0]).alias("label"),
        "description",
        *((number(name) == 1).fill_null(False).alias(name) for name in ("diagnostic", "form", "rhythm")),
        pl.col("diagnostic_class").alias("superclass"),
        pl.col("diagnostic_subclass").alias("subclass"),
    )


def label_matrix(table: pl.DataFrame, labels: Sequence[str]) -> NDArray[np.bool_]:
    """Return which record lists which label, whatever its likelihood: bool, shape (records, labels)."""
    column = {label: index for index, label in enumerate(labels)}
    matrix = np.zeros((table.height, len(labels)), np.bool_)
    for row, listed in enumerate(table["labels"].to_list()):
        for entry in listed or ():
            if entry["label"] in column:
                matrix[row, column[entry["label"]]] = True
    return matrix


def superclass_matrix(table: pl.DataFrame, statements: pl.DataFrame) -> NDArray[np.bool_]:
    """Return which record lists a statement of which superclass: bool, shape (records, labels=5).

    Columns are in the order of :data:`SUPERCLASSES`. A record that lists no diagnostic statement has none; the
    published superclass benchmark leaves such records out.
    """
    diagnostic = statements.filter(pl.col("superclass").is_not_null())
    listed = label_matrix(table, diagnostic["label"].to_list())
    classes = diagnostic["superclass"].to_numpy()
    return np.stack([listed[:, classes == name].any(axis=1) for name in SUPERCLASSES], axis=1)


@dataclass(frozen=True)
class PtbXlSignals:
    """Signals of many records.

    Attributes
    ----------
    signals : int16, shape (records, leads=12, samples), µV
        Exactly the stored values: PTB-XL's grid is 1 µV. Divide by 1000 for mV.
    table : polars.DataFrame
        The rows of the records that were read, in the order of ``signals``.
    report : BulkReport
        What was skipped, and why.
    """

    signals: NDArray[np.int16]
    table: pl.DataFrame
    report: BulkReport


def read_ptb_xl_signals(
    folder: str | Path,
    table: pl.DataFrame,
    *,
    sampling_rate_hz: int = 100,
    processes: int | None = None,
    quiet: bool = True,
) -> PtbXlSignals:
    """Read the signals of a table's records into one array; a record that is no valid study is skipped as well.

    Parameters
    ----------
    folder : str or Path
    table : polars.DataFrame
        All or some rows of :func:`read_ptb_xl_table`.
    sampling_rate_hz : {100, 500}
    processes, quiet
        See :class:`mmecg.datasets.bulk.BulkRead`.
    """
    items = _items(table, sampling_rate_hz)
    read = partial(_read_microvolt, Path(folder), sampling_rate_hz)
    bulk = BulkRead(read, items, name=_file_of, processes=processes, quiet=quiet)
    signals = np.empty((len(items), len(LEADS), DURATION_S * sampling_rate_hz), np.int16)
    kept: list[int] = []
    for (row, _), signal in bulk:
        if _study_or_reject(bulk, table.row(row, named=True)) is not None:
            signals[len(kept)] = signal
            kept.append(row)
    return PtbXlSignals(signals[: len(kept)], table[kept], bulk.report)


def read_ptb_xl(
    folder: str | Path,
    *,
    sampling_rate_hz: int = 100,
    folds: Collection[int] | None = None,
    processes: int | None = None,
    quiet: bool = True,
) -> PtbXlStudies:
    """Read the studies of a folder, one by one.

    Parameters
    ----------
    folder : str or Path
    sampling_rate_hz : {100, 500}
    folds : collection of int, optional
        Values of ``strat_fold`` to keep; default all.
    processes, quiet
        See :class:`mmecg.datasets.bulk.BulkRead`.

    Returns
    -------
    PtbXlStudies
        Iterate over it; records that cannot be read are skipped, and listed in its ``report`` afterwards.
    """
    table = read_ptb_xl_table(folder)
    if folds is not None:
        table = table.filter(pl.col("strat_fold").is_in(sorted(folds)))
    return PtbXlStudies(folder, table, sampling_rate_hz=sampling_rate_hz, processes=processes, quiet=quiet)


class PtbXlStudies:
    """The studies of a table's records, read while you iterate. See :func:`read_ptb_xl`."""

    def __init__(
        self,
        folder: str | Path,
        table: pl.DataFrame,
        *,
        sampling_rate_hz: int = 100,
        processes: int | None = None,
        quiet: bool = True,
    ) -> None:
        self.table = table
        read = partial(_read_file, Path(folder))
        items = _items(table, sampling_rate_hz)
        self._bulk = BulkRead(read, items, name=_file_of, processes=processes, quiet=quiet)

    def __len__(self) -> int:
        return self.table.height

    def __iter__(self) -> Iterator[Study]:
        for (row, _), ecg in self._bulk:
            study = _study_or_reject(self._bulk, self.table.row(row, named=True), ecg)
            if study is not None:
                yield study

    @property
    def report(self) -> BulkReport:
        """What was skipped so far, and why."""
        return self._bulk.report


def study_of_row(row: Mapping[str, Any], ecg: Ecg | None = None) -> Study:
    """Build a study from one row of :func:`read_ptb_xl_table` and its signal.

    Raises
    ------
    InvalidInputError
        The row has no patient, an impossible vital sign, a report that is not plain text of bounded length, or
        statements that cannot be read.
    """
    if row["labels"] is None:
        raise InvalidInputError(
            "scp_codes is not a mapping of statement to likelihood 0 to 100, expected the PTB-XL layout; mend the row",
            field="data",
        )
    return Study(
        study_id=row["study_id"],
        subject_id=row["subject_id"],
        acquired_at=row["acquired_at"],
        ecg=ecg,
        report=Report(check_text(row["report_raw"]), row["report_text"]) if row["report_raw"] else None,
        vitals=Vitals(
            age_years=row["age_years"], sex=row["sex"], height_cm=row["height_cm"], weight_kg=row["weight_kg"]
        ),
        labels={entry["label"]: entry["likelihood"] for entry in row["labels"]},
        site=row["site"],
        device=row["device"],
        attributes={name: str(row[name]) for name in _ATTRIBUTES if row[name] is not None},
    )


def _study_or_reject(bulk: BulkRead[Any, Any], row: Mapping[str, Any], ecg: Ecg | None = None) -> Study | None:
    """Build the study of a row; tell the bulk read if there is none."""
    try:
        return study_of_row(row, ecg)
    except MmecgError as error:
        bulk.reject(row["study_id"] or "(no ecg_id)", str(error))
        return None


def _items(table: pl.DataFrame, sampling_rate_hz: int) -> list[tuple[int, str | None]]:
    return list(enumerate(table[_file_column(sampling_rate_hz)].to_list()))


def _read_file(folder: Path, item: tuple[int, str | None]) -> Ecg:
    return read_wfdb(record_inside(folder, item[1]))


def _read_microvolt(folder: Path, sampling_rate_hz: int, item: tuple[int, str | None]) -> NDArray[np.int16]:
    ecg = _read_file(folder, item).resample(sampling_rate_hz)
    missing = [lead for lead, present in zip(LEADS, ecg.lead_mask, strict=True) if not present]
    if missing:
        raise SignalError(f"record lacks {', '.join(missing)}, expected 12 leads", field="ecg.leads")
    microvolt = np.rint(fit_length(ecg.signal, DURATION_S * sampling_rate_hz) * 1000)
    if np.abs(microvolt).max() > np.iinfo(np.int16).max:
        raise SignalError("record exceeds 32.767 mV, expected a surface ECG", field="ecg.signal")
    return microvolt.astype(np.int16)


def _file_of(item: tuple[int, str | None]) -> str:
    return item[1] or "(no file name)"


def _file_column(sampling_rate_hz: int) -> str:
    try:
        return {100: "filename_lr", 500: "filename_hr"}[sampling_rate_hz]
    except KeyError:
        raise InvalidInputError(
            f"sampling rate is {sampling_rate_hz} Hz, expected 100 or 500 (PTB-XL has these two); resample afterwards",
            field="sampling_rate_hz",
        ) from None


def _clean_report(text: str) -> Report:
    """Return the report; one that is refused keeps its raw text, for :func:`study_of_row` to refuse again."""
    try:
        return Report.from_ptb_xl(text)
    except ReportError:
        return Report(text, "")


def _parse_labels(text: str | None) -> list[dict[str, Any]] | None:
    """Return statements and likelihoods; None if the text is no mapping of these."""
    try:
        codes = ast.literal_eval(text or "{}")
        labels = {str(label): float(likelihood) for label, likelihood in codes.items()}
    except (ValueError, SyntaxError, TypeError, AttributeError, MemoryError, RecursionError):
        return None
    if not all(0 <= likelihood <= 100 for likelihood in labels.values()):
        return None
    return [{"label": label, "likelihood": likelihood} for label, likelihood in labels.items()]


def _sex() -> pl.Expr:
    sex = number("sex")
    return pl.when(sex == 0).then(pl.lit("male")).when(sex == 1).then(pl.lit("female"))


def _names(doubtful: Mapping[str, tuple[str, pl.Expr]]) -> pl.Expr:
    """Return the names, joined by commas, whose source column has a value that is in doubt."""
    items = doubtful.items()
    named = [pl.when(doubt & pl.col(source).is_not_null()).then(pl.lit(name)) for name, (source, doubt) in items]
    return pl.concat_str(named, separator=",", ignore_nulls=True).replace("", None)


def _plausible(name: str, value: pl.Expr) -> pl.Expr:
    vital = next(definition for definition in VITAL_DEFINITIONS if definition.name == name)
    return value.is_between(vital.low, vital.high)
