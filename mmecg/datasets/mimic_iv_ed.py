"""MIMIC-IV-ED triage and vital signs: timed vitals in our units, and the triage complaint as a note.

Policies, stated once:

* Temperature is published in degrees Fahrenheit and converted. Some rows hold Celsius by mistake; read as Fahrenheit
  they are implausible, and so missing: nothing is guessed.
* A value outside the plausible range of :data:`mmecg.vitals.VITAL_DEFINITIONS` is missing, and so are both pressures if
  the diastolic is not below the systolic one. The column ``implausible`` names them.
* Triage has no time of its own: the arrival (``intime`` of ``edstays``) stands for it.

Source: Johnson et al., MIMIC-IV-ED, PhysioNet, doi:10.13026/5ntk-km72.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from mmecg.datasets.tables import find_table, moment, number, read_csv
from mmecg.report import check_text
from mmecg.study import ClinicalNote
from mmecg.vitals import VITAL_DEFINITIONS, Vitals

_SOURCE_COLUMNS: dict[str, str] = {
    "temperature": "temperature_c",
    "heartrate": "heart_rate_bpm",
    "resprate": "respiratory_rate_bpm",
    "o2sat": "spo2_percent",
    "sbp": "systolic_bp_mmhg",
    "dbp": "diastolic_bp_mmhg",
}
ED_VITALS: tuple[str, ...] = tuple(_SOURCE_COLUMNS.values())
TIME_FORMAT = "%Y-%m-%d %H:%M:%S"


def read_mimic_iv_ed(folder: str | Path) -> pl.DataFrame:
    """Read the triage and vital-sign rows of a MIMIC-IV-ED folder (``edstays``, ``triage``, ``vitalsign``).

    Returns
    -------
    polars.DataFrame
        One row a measurement, by subject and time: ``subject_id, stay_id, measured_at, source`` ("triage" or
        "vitalsign"), the columns of :data:`ED_VITALS`, ``implausible`` (list of names), ``complaint`` (triage only).

    Raises
    ------
    InvalidInputError
        A file is missing or not in this layout.
    """
    root = Path(folder)
    keys = ("subject_id", "stay_id")
    stays = read_csv(find_table(root, "edstays"), (*keys, "intime")).select("stay_id", pl.col("intime").alias("time"))
    triage = read_csv(find_table(root, "triage"), (*keys, *_SOURCE_COLUMNS, "chiefcomplaint")).join(stays, "stay_id")
    signs = read_csv(find_table(root, "vitalsign"), (*keys, "charttime", *_SOURCE_COLUMNS))
    columns = [*keys, "time", *_SOURCE_COLUMNS]
    rows = pl.concat(
        [
            triage.select(*columns, pl.lit("triage").alias("source"), pl.col("chiefcomplaint").alias("complaint")),
            signs.rename({"charttime": "time"}).select(
                *columns, pl.lit("vitalsign").alias("source"), pl.lit(None, pl.String).alias("complaint")
            ),
        ]
    )
    return _to_vitals(rows).sort("subject_id", "measured_at")


def vitals_of_row(row: Mapping[str, Any]) -> Vitals:
    """Return the vitals of one row of :func:`read_mimic_iv_ed`."""
    return Vitals.from_mapping({name: row[name] for name in ED_VITALS})


def note_of_row(row: Mapping[str, Any]) -> ClinicalNote | None:
    """Return the triage complaint of one row of :func:`read_mimic_iv_ed` as a note with its time, if there is one."""
    if not row["complaint"]:
        return None
    return ClinicalNote(check_text(row["complaint"], field="notes"), kind="triage", written_at=row["measured_at"])


def _to_vitals(rows: pl.DataFrame) -> pl.DataFrame:
    # A few cells hold words ("uncertain", "13-15"): not a number is not measured.
    rows = rows.with_columns(number(old).alias(new) for old, new in _SOURCE_COLUMNS.items()).with_columns(
        (pl.col("temperature_c") - 32) / 1.8
    )
    limits = {vital.name: (vital.low, vital.high) for vital in VITAL_DEFINITIONS}
    fits = {name: pl.col(name).is_between(*limits[name]) for name in ED_VITALS}
    ordered = (pl.col("diastolic_bp_mmhg") < pl.col("systolic_bp_mmhg")).fill_null(True)
    for name in ("systolic_bp_mmhg", "diastolic_bp_mmhg"):
        fits[name] = fits[name] & ordered
    return rows.select(
        "subject_id",
        "stay_id",
        moment("time", TIME_FORMAT).alias("measured_at"),
        "source",
        *(pl.when(fit).then(pl.col(name)).alias(name) for name, fit in fits.items()),
        pl.concat_list(pl.when(~fit).then(pl.lit(name)) for name, fit in fits.items())
        .list.drop_nulls()
        .alias("implausible"),
        pl.col("complaint").str.strip_chars().replace("", None).alias("complaint"),
    )
