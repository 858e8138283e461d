"""Rows of a table of reports: the texts in them, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from mmecg.errors import InvalidInputError
from mmecg.labels.normalise import MARKUP, blank_masked
from mmecg.report import CONTROL, GOLD_CODES, MASK_HINTS, MAX_TEXT_CHARS

ROW_SCHEMA = pl.Schema({"row": pl.Int64(), "study_id": pl.String(), "flags": pl.List(pl.String)})
"""Columns of a table of rows: one for each input row, whatever it holds."""

FLAGS = (
    "empty",
    "not_text",
    "too_long",
    "encoding",
    "control_characters",
    "markup",
    "truncated",
    "gold_codes",
    "duplicate_id",
    "no_id",
)
"""Remarks on an input row. Text that is ``not_text``, ``too_long`` or has ``control_characters`` is not mined."""

TRUNCATED_LENGTHS = range(250, 257)
"""Lengths at which machine reports are cut, in code points; English ones of PTB-XL at 254 and 255."""
SUSPECTS = {"markup": MARKUP, "gold_codes": GOLD_CODES}
"""Flags that a pattern decides."""


@dataclass(frozen=True)
class TableBatch:
    """Successive rows of a table.

    Attributes
    ----------
    frame : polars.DataFrame
        The columns that are needed.
    first_row : int
        Number of its first row.
    repeated : polars.Series of uint64
        Hashes of the ids that the whole table has more than once.
    """

    frame: pl.DataFrame
    first_row: int
    repeated: pl.Series


@dataclass(frozen=True)
class ReportBatch:
    """Rows of a table and the texts in them.

    Attributes
    ----------
    rows : polars.DataFrame
        :data:`ROW_SCHEMA`.
    texts : polars.DataFrame
        Texts to be mined: ``at`` (position in ``rows``), ``column`` and ``text`` (with masked parts blank).
    raw : mapping of int to str
        Position in ``texts`` of those that may have blank parts, and how they were written.
    """

    rows: pl.DataFrame
    texts: pl.DataFrame
    raw: Mapping[int, str]


def is_truncated(text: str) -> bool:
    """Return whether a text was cut by the system it comes from: of such a length, and without a stop at its end."""
    return len(text) in TRUNCATED_LENGTHS and not text.rstrip().endswith((".", "!", "?"))


def check_columns(schema: pl.Schema, text_columns: Sequence[str], id_column: str | None) -> None:
    """Check that a table has the columns that are asked for. Raises ``InvalidInputError``."""
    wanted = [*text_columns, *([id_column] if id_column else [])]
    for name in wanted:
        if name not in schema:
            known = ", ".join(list(schema)[:20])
            raise InvalidInputError(f"table has no column {name!r}, expected one of {known}", field="column")
    if not text_columns or len(set(text_columns)) != len(text_columns):
        raise InvalidInputError("text columns are none or repeated, expected each once; name them", field="column")


def _repeated_ids(table: pl.LazyFrame, id_column: str) -> pl.Series:
    """Return the hashes of the ids that a table has more than once; 8 bytes an id are held meanwhile."""
    ids = pl.col(id_column).cast(pl.String, strict=False)
    hashes = np.sort(table.select(ids.drop_nulls().hash()).collect(engine="streaming").to_series().to_numpy())
    return pl.Series(np.unique(hashes[1:][hashes[1:] == hashes[:-1]]))


def table_batches(
    table: pl.DataFrame | pl.LazyFrame, text_columns: Sequence[str], id_column: str | None, batch_rows: int
) -> Iterator[TableBatch]:
    """Yield a table batch by batch. Raises ``InvalidInputError`` for a column that is not there."""
    check_columns(table.collect_schema(), text_columns, id_column)
    wanted = list(dict.fromkeys([*text_columns, *([id_column] if id_column else [])]))
    repeated = _repeated_ids(table.lazy(), id_column) if id_column else pl.Series([], dtype=pl.UInt64)
    first_row = 0
    for frame in table.lazy().select(wanted).collect_batches(chunk_size=batch_rows):
        yield TableBatch(frame, first_row, repeated)
        first_row += frame.height


def read_batch(table_batch: TableBatch, text_columns: Sequence[str], id_column: str | None) -> ReportBatch:
    """Take the texts out of a batch of rows and flag what is wrong with them.

    Parameters
    ----------
    table_batch : TableBatch
    text_columns : sequence of str
        Each field is mined on its own (``report_0`` to ``report_17`` of MIMIC-IV-ECG).
    id_column : str, optional
        Without one, the row number is the id.
    """
    batch, first_row = table_batch.frame, table_batch.first_row
    numbers = pl.int_range(first_row, first_row + batch.height, eager=True)
    ids = (batch[id_column] if id_column else numbers).cast(pl.String, strict=False).alias("study_id")
    texts = pl.concat([_texts_of(batch[name]) for name in text_columns])
    rows = pl.DataFrame({"row": numbers, "study_id": ids})
    flags = [*_flag_texts(texts), *_flag_ids(ids, table_batch.repeated), _flag_empty(texts, batch.height)]
    readable = texts.filter(pl.col("text").is_not_null() & (pl.col("characters") <= MAX_TEXT_CHARS))
    suspects = readable.with_row_index("place").filter(
        pl.col("text").str.contains(MASK_HINTS) | pl.col("text").str.contains("[<&]")
    )
    flags += _flag_suspects(suspects)
    text = readable["text"]
    if suspects.height:
        blank = [blank_masked(item) for item in suspects["text"]]
        text = text.scatter(suspects["place"], blank)
    raw = dict(suspects.select("place", "text").iter_rows())
    return ReportBatch(_with_flags(rows, flags), readable.select("at", "column", text), raw)


def has_control_characters(texts: pl.Series) -> bool:
    """Return whether a text holds control characters."""
    return bool(texts.str.contains(CONTROL).any())


def without_control_characters(reports: ReportBatch) -> ReportBatch:
    """Return the batch without texts that hold control characters; their rows are flagged."""
    bad = reports.texts["text"].str.contains(CONTROL)
    flagged = reports.texts.filter(bad).select("at", flag=pl.lit("control_characters"))
    place = {old: new for new, old in enumerate((~bad).arg_true().to_list())}
    raw = {place[at]: text for at, text in reports.raw.items() if at in place}
    return ReportBatch(_with_flags(reports.rows, [flagged]), reports.texts.filter(~bad), raw)


def _with_flags(rows: pl.DataFrame, flags: list[pl.DataFrame]) -> pl.DataFrame:
    """Add flags (``at``, ``flag``) to rows."""
    listed = pl.concat([found.filter(pl.col("flag").is_not_null()) for found in flags])
    if "flags" in rows.columns:
        held = rows.select(at=pl.int_range(0, pl.len()), flag="flags").explode("flag").drop_nulls()
        listed, rows = pl.concat([listed, held]), rows.drop("flags")
    grouped = listed.group_by("at").agg(pl.col("flag").unique().sort().alias("flags"))
    place = np.full(rows.height, grouped.height)
    place[grouped["at"].to_numpy()] = np.arange(grouped.height)
    none = pl.Series("flags", [[]], dtype=ROW_SCHEMA["flags"])
    return rows.with_columns(pl.concat([grouped["flags"], none]).gather(place))


def _texts_of(column: pl.Series) -> pl.DataFrame:
    """Return position, column, text and its length, of the fields that are not null; text is null where it is none."""
    if column.dtype in (pl.String, pl.Categorical, pl.Enum):
        text = column.cast(pl.String)
    elif column.dtype == pl.Binary:
        text = pl.Series([_decode(value) for value in column], dtype=pl.String)
    else:
        text = pl.Series([None] * len(column), dtype=pl.String)
    at = pl.int_range(0, len(column), eager=True)
    frame = pl.DataFrame({"at": at, "text": text}).filter(column.is_not_null())
    return frame.select(
        "at", pl.lit(column.name).alias("column"), "text", pl.col("text").str.len_chars().alias("characters")
    )


def _decode(value: bytes | None) -> str | None:
    """Return the text that bytes hold, or None if they are not UTF-8."""
    try:
        return value.decode("utf-8") if value is not None else None
    except UnicodeDecodeError:
        return None


def _flag_texts(texts: pl.DataFrame) -> list[pl.DataFrame]:
    text, characters = pl.col("text"), pl.col("characters")
    near_limit = texts.filter(characters.is_between(TRUNCATED_LENGTHS[0], TRUNCATED_LENGTHS[-1]) & text.is_not_null())
    is_cut = pl.Series([is_truncated(item) for item in near_limit["text"]], dtype=pl.Boolean)
    return [
        texts.filter(text.is_null()).select("at", flag=pl.lit("not_text")),
        texts.filter(characters > MAX_TEXT_CHARS).select("at", flag=pl.lit("too_long")),
        texts.filter(text.str.contains("\ufffd", literal=True)).select("at", flag=pl.lit("encoding")),
        near_limit.filter(is_cut).select("at", flag=pl.lit("truncated")),
    ]


def _flag_suspects(texts: pl.DataFrame) -> list[pl.DataFrame]:
    return [
        texts.filter(pl.col("text").str.contains(pattern)).select("at", flag=pl.lit(name))
        for name, pattern in SUSPECTS.items()
    ]


def _flag_ids(ids: pl.Series, repeated: pl.Series) -> list[pl.DataFrame]:
    at = pl.int_range(0, len(ids), eager=True)
    frame = pl.DataFrame({"at": at, "id": ids})
    named = pl.col("id").fill_null("").str.strip_chars() != ""
    twice = frame.filter(pl.col("id").hash().is_in(repeated.implode()) & named)
    none = frame.filter(~named)
    return [
        twice.select("at", flag=pl.lit("duplicate_id")),
        none.select("at", flag=pl.lit("no_id")),
    ]


def _flag_empty(texts: pl.DataFrame, height: int) -> pl.DataFrame:
    speaks = texts["text"].is_null() | (texts["text"].str.strip_chars() != "")
    empty = np.ones(height, dtype=bool)
    empty[texts["at"].filter(speaks).to_numpy()] = False
    return pl.DataFrame({"at": np.flatnonzero(empty)}).select("at", flag=pl.lit("empty"))
