"""What the readers of CSV-described folders share: a strict table, and record paths that stay inside the folder."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import polars as pl

from mmecg.errors import InvalidInputError, SignalError


def read_csv(path: Path, required: Collection[str]) -> pl.DataFrame:
    """Read a CSV file (also gzipped) with every column as text; empty fields are null.

    Raises
    ------
    InvalidInputError
        The file is missing, is not a CSV, or lacks a required column.
    """
    try:
        table = pl.read_csv(path, infer_schema=False)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise InvalidInputError(
            f"{path.name} cannot be read ({type(error).__name__}), expected a UTF-8 table; check the folder",
            field="data",
        ) from None
    missing = [name for name in required if name not in table.columns]
    if missing:
        raise InvalidInputError(
            f"{path.name} has no column {', '.join(missing)}, expected the published layout", field="data"
        )
    return table


def number(name: str) -> pl.Expr:
    """Return a column of text as finite numbers; what is none is null."""
    value = pl.col(name).cast(pl.Float64, strict=False)
    return pl.when(value.is_finite()).then(value)


def moment(name: str, time_format: str) -> pl.Expr:
    """Return a column of text as times; what is none is null."""
    return pl.col(name).str.to_datetime(time_format, time_unit="us", strict=False)


def find_table(folder: Path, name: str) -> Path:
    """Return ``folder/name.csv``, or ``folder/name.csv.gz`` if only that is there."""
    plain = folder / f"{name}.csv"
    packed = folder / f"{name}.csv.gz"
    return packed if packed.exists() and not plain.exists() else plain


def record_inside(folder: Path, name: str | None) -> Path:
    """Return the path of a record that a table names.

    Raises
    ------
    SignalError
        The table names none, or one outside the folder.
    """
    if not name:
        raise SignalError("the table names no record file", field="ecg.wfdb.header")
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise SignalError("record lies outside the folder of its table", field="ecg.wfdb.header")
    return folder / name
