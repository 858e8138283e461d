"""MIMIC-IV-ECG folders: ``record_list.csv``, ``machine_measurements.csv`` and WFDB records below ``files/``.

Policies, stated once:

* **Leads** are placed by name; this data set stores I, II, III, aVR, *aVF, aVL*, V1 to V6.
* **Report**: the non-empty lines of ``report_0`` to ``report_17``, one a line in the raw text.
* **29999** is a missing measurement. **Heart rate** is 60000 / ``rr_interval`` (ms), unless that
  is missing, 0 or implausible; then it is that of the emergency department, if given. The measurements become
  attributes.
* **A number or a time that cannot be read** is missing. **A record is skipped, with its reason,** if its ids or its
  report cannot be used. Of several rows of one study in ``machine_measurements.csv`` the first counts, as does the
  first of one subject in ``patients.csv``.
* **Age and sex** come from ``patients.csv`` of MIMIC-IV, if given: ``anchor_age`` moved by the years between
  ``anchor_year`` and the ECG. The anchor age 91 stands for "above 89" and is read as 90, with the attribute
  ``age_note = "above 89"``.
* **Emergency department**, if given (:func:`mmecg.datasets.mimic_iv_ed.read_mimic_iv_ed`): the vitals measured nearest
  to the ECG, and every triage complaint, within :data:`MAX_GAP_H` hours. A note keeps its time, which marks it as
  later than the ECG where it is.

Source: Gow et al., MIMIC-IV-ECG, PhysioNet, doi:10.13026/4nqg-sb35.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from mmecg.datasets.bulk import BulkRead, BulkReport
from mmecg.datasets.mimic_iv_ed import TIME_FORMAT, note_of_row, vitals_of_row
from mmecg.datasets.tables import find_table, moment, number, read_csv, record_inside
from mmecg.datasets.wfdb import read_wfdb
from mmecg.ecg import Ecg
from mmecg.errors import MmecgError
from mmecg.report import Report
from mmecg.study import Study
from mmecg.vitals import VITAL_DEFINITIONS, Vitals

MISSING = 29999
REPORT_COLUMNS: tuple[str, ...] = tuple(f"report_{number}" for number in range(18))
MEASUREMENTS: tuple[str, ...] = (
    "rr_interval", "p_onset", "p_end", "qrs_onset", "qrs_end", "t_end", "p_axis", "qrs_axis", "t_axis"
)  # fmt: skip
"""Machine measurements: interval and onsets in ms, axes in degrees."""

MAX_GAP_H = 6.0
_MASKED_ANCHOR_AGE = 91
_MASKED_AGE_YEARS = 90.0
_EMPTY: tuple[dict[str, Any], ...] = ()


def read_mimic_iv_ecg_table(folder: str | Path, *, patients: str | Path | None = None) -> pl.DataFrame:
    """Read the tables of a folder without touching a signal.

    Parameters
    ----------
    folder : str or Path
    patients : str or Path, optional
        ``patients.csv`` or ``patients.csv.gz`` of MIMIC-IV.

    Returns
    -------
    polars.DataFrame
        One row a record: ``study_id, subject_id, acquired_at, path, cart_id, report_raw`` (null without a report), the
        columns of :data:`MEASUREMENTS` (null where 29999), ``heart_rate_bpm, age_years, age_note, sex``.

    Raises
    ------
    InvalidInputError
        A file is missing or not in this layout.
    """
    root = Path(folder)
    records = read_csv(find_table(root, "record_list"), ("subject_id", "study_id", "ecg_time", "path"))
    machine = read_csv(find_table(root, "machine_measurements"), ("study_id", "report_0", "rr_interval"))
    absent = [name for name in (*REPORT_COLUMNS, *MEASUREMENTS, "cart_id") if name not in machine.columns]
    machine = machine.with_columns(pl.lit(None, pl.String).alias(name) for name in absent)
    lines = pl.concat_list(pl.col(name).str.strip_chars().replace("", None) for name in REPORT_COLUMNS)
    machine = machine.unique("study_id", keep="first", maintain_order=True).select(
        "study_id",
        "cart_id",
        lines.list.drop_nulls().list.join("\n").replace("", None).alias("report_raw"),
        *(_measured(name) for name in MEASUREMENTS),
    )
    heart_rate = 60000 / pl.col("rr_interval")
    vital = next(vital for vital in VITAL_DEFINITIONS if vital.name == "heart_rate_bpm")
    table = records.join(machine, "study_id", how="left", maintain_order="left").with_columns(
        moment("ecg_time", TIME_FORMAT).alias("acquired_at"),
        pl.when(heart_rate.is_between(vital.low, vital.high)).then(heart_rate).alias("heart_rate_bpm"),
    )
    if patients is None:
        missing = {"age_years": pl.Float64, "age_note": pl.String, "sex": pl.String}
        table = table.with_columns(pl.lit(None, dtype).alias(name) for name, dtype in missing.items())
    else:
        table = _with_patients(table, Path(patients))
    return table.select(
        "study_id", "subject_id", "acquired_at", "path", "cart_id", "report_raw", *MEASUREMENTS, "heart_rate_bpm",
        "age_years", "age_note", "sex",
    )  # fmt: skip


def read_mimic_iv_ecg(
    folder: str | Path,
    *,
    patients: str | Path | None = None,
    emergency: pl.DataFrame | None = None,
    processes: int | None = None,
    quiet: bool = True,
) -> MimicIvEcgStudies:
    """Read the studies of a folder, one by one.

    Parameters
    ----------
    folder : str or Path
    patients : str or Path, optional
        ``patients.csv`` or ``patients.csv.gz`` of MIMIC-IV, for age and sex.
    emergency : polars.DataFrame, optional
        From :func:`mmecg.datasets.mimic_iv_ed.read_mimic_iv_ed`, for vitals and triage complaints.
    processes, quiet
        See :class:`mmecg.datasets.bulk.BulkRead`.

    Returns
    -------
    MimicIvEcgStudies
        Iterate over it; records that cannot be read are skipped, and listed in its ``report`` afterwards.
    """
    table = read_mimic_iv_ecg_table(folder, patients=patients)
    return MimicIvEcgStudies(folder, table, emergency=emergency, processes=processes, quiet=quiet)


class MimicIvEcgStudies:
    """The studies of a table's records, read while you iterate. See :func:`read_mimic_iv_ecg`."""

    def __init__(
        self,
        folder: str | Path,
        table: pl.DataFrame,
        *,
        emergency: pl.DataFrame | None = None,
        processes: int | None = None,
        quiet: bool = True,
    ) -> None:
        self.table = table
        self._emergency: dict[str, list[dict[str, Any]]] = {}
        for row in () if emergency is None else emergency.iter_rows(named=True):
            self._emergency.setdefault(row["subject_id"], []).append(row)
        items = list(enumerate(table["path"].to_list()))
        self._bulk = BulkRead(
            partial(_read_record, Path(folder)), items, name=_path_of, processes=processes, quiet=quiet
        )

    def __len__(self) -> int:
        return self.table.height

    def __iter__(self) -> Iterator[Study]:
        for (position, _), ecg in self._bulk:
            row = self.table.row(position, named=True)
            try:
                study = study_of_row(row, ecg, self._emergency.get(row["subject_id"], _EMPTY))
            except MmecgError as error:
                self._bulk.reject(row["study_id"] or "(no study_id)", str(error))
            else:
                yield study

    @property
    def report(self) -> BulkReport:
        """What was skipped so far, and why."""
        return self._bulk.report


def study_of_row(row: Mapping[str, Any], ecg: Ecg | None = None, emergency: Any = _EMPTY) -> Study:
    """Build a study from one row of :func:`read_mimic_iv_ecg_table`, its signal, and the subject's emergency rows."""
    near = _near(row, emergency)
    measured = vitals_of_row(near[0]) if near else Vitals()
    own = {name: row[name] for name in ("age_years", "sex", "heart_rate_bpm") if row[name] is not None}
    values = {field.name: getattr(measured, field.name) for field in fields(Vitals)} | own
    notes = [note for note in map(note_of_row, near) if note is not None]
    attributes = {name: f"{row[name]:g}" for name in MEASUREMENTS if row[name] is not None}
    if near and near[0]["implausible"]:
        attributes["implausible"] = ",".join(near[0]["implausible"])
    if row["age_note"]:
        attributes["age_note"] = row["age_note"]
    return Study(
        study_id=row["study_id"],
        subject_id=row["subject_id"],
        acquired_at=row["acquired_at"],
        ecg=ecg,
        report=Report.from_text(row["report_raw"]) if row["report_raw"] else None,
        notes=tuple(sorted(notes, key=lambda note: str(note.written_at))),
        vitals=Vitals.from_mapping(values),
        device=row["cart_id"],
        attributes=attributes,
    )


def _near(row: Mapping[str, Any], emergency: Any) -> list[dict[str, Any]]:
    """Return the emergency rows within the gap, nearest first."""
    if row["acquired_at"] is None:
        return []
    gaps = [(abs(other["measured_at"] - row["acquired_at"]), other) for other in emergency if other["measured_at"]]
    near = [item for item in gaps if item[0] <= timedelta(hours=MAX_GAP_H)]
    return [other for _, other in sorted(near, key=lambda item: item[0])]


def _with_patients(table: pl.DataFrame, path: Path) -> pl.DataFrame:
    patients = (
        read_csv(path, ("subject_id", "gender", "anchor_age", "anchor_year"))
        .unique("subject_id", keep="first", maintain_order=True)
        .select("subject_id", "gender", *(number(name).alias(name) for name in ("anchor_age", "anchor_year")))
    )
    masked = pl.col("anchor_age") >= _MASKED_ANCHOR_AGE
    age = pl.col("anchor_age") + pl.col("acquired_at").dt.year() - pl.col("anchor_year")
    return table.join(patients, "subject_id", how="left", maintain_order="left").with_columns(
        pl.when(masked).then(_MASKED_AGE_YEARS).when(age.is_between(0, 120)).then(age).alias("age_years"),
        pl.when(masked).then(pl.lit("above 89")).alias("age_note"),
        pl.col("gender").replace_strict({"F": "female", "M": "male"}, default=None).alias("sex"),
    )


def _measured(name: str) -> pl.Expr:
    value = number(name)
    return pl.when(value != MISSING).then(value).alias(name)


def _read_record(folder: Path, item: tuple[int, str | None]) -> Ecg:
    return read_wfdb(record_inside(folder, item[1]))


def _path_of(item: tuple[int, str | None]) -> str:
    return item[1] or "(no path)"
