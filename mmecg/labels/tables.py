"""Tables of reports: cut into statements, each distinct one mined once, and joined back; flags.

A *piece* is a stretch of text that ends where a sentence surely ends. Pieces are mined apart from each other, so each
distinct one of a batch is mined once; nothing is kept between batches, so memory does not grow with the table.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import polars as pl

from mmecg.errors import InvalidInputError
from mmecg.labels.assertion import LabelAssertion
from mmecg.labels.normalise import blank_masked
from mmecg.report import MASK_HINTS, MAX_TEXT_CHARS

if TYPE_CHECKING:
    from mmecg.labels.mining import LabelMiner, Mined

Longs = npt.NDArray[np.int64]
Probability = Callable[[LabelAssertion], float | None]
"""That a finding is present where it is spoken of so; ``TextEvidence.mention_probability`` is one."""

ASSERTION_SCHEMA = pl.Schema(
    {
        "row": pl.Int64,
        "study_id": pl.String,
        "column": pl.String,
        "finding": pl.String,
        "status": pl.String,
        "start": pl.Int32,
        "end": pl.Int32,
        "evidence": pl.String,
        "rule": pl.String,
        "cue": pl.String,
        "cue_start": pl.Int32,
        "cue_end": pl.Int32,
        "location": pl.String,
        "age": pl.String,
        "degree": pl.String,
        "age_status": pl.String,
        "cause_status": pl.String,
        "language": pl.String,
        "needs_prior": pl.Boolean,
        "alternatives": pl.String,
        "probability": pl.Float64,
    }
)
"""Columns of a table of assertions, as the README of this folder describes them."""

ROW_SCHEMA = pl.Schema({"row": pl.Int64, "study_id": pl.String, "flags": pl.List(pl.String)})
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

_TRUNCATED = range(250, 257)
"""Lengths at which machine reports are cut, in code points."""
_SUSPECT = "(?i)[<&]|" + "|".join(map(re.escape, MASK_HINTS))
_MARKUP = r"<[A-Za-z/!][^<>]*>|&[a-z]{2,8};"
_CONTROL = r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]"
_QUALIFIERS = ("location", "age", "degree")
_CUE_SPAN = ("cue_start", "cue_end")
_SAID = ("status", "cue", *_QUALIFIERS, "age_status", "cause_status", "language", "needs_prior", "alternatives")
_SAID_SCHEMA = {name: ASSERTION_SCHEMA[name] for name in _SAID}
_BLOCK_CHARS = 150_000  # such blocks stay in the processor's cache
_FOLDED = {"ae": "ä|æ|a\u0308", "oe": "ö|ø|o\u0308", "ue": "ü|#|u\u0308", "aa": "å|a\u030a", "ss": "ß"}
_SPACE_KEPT = "\x1f"  # stands for a space that is not to be cut at; no text that is mined holds it


@dataclass(frozen=True)
class ReportBatch:
    """Rows of a table and the texts in them.

    Attributes
    ----------
    rows : polars.DataFrame
        :data:`ROW_SCHEMA`.
    texts : polars.DataFrame
        Texts to be mined: ``at`` (position in ``rows``), ``column`` and ``text`` (with masked parts blank).
    """

    rows: pl.DataFrame
    texts: pl.DataFrame


@dataclass(frozen=True)
class Pieces:
    """Texts cut at sentence ends.

    Attributes
    ----------
    distinct : list of str
    which : int64, shape (pieces,)
        Position in ``distinct``.
    text, offset : int64, shape (pieces,)
        Which text it stands in, and where it begins there, in code points.
    """

    distinct: list[str]
    which: Longs
    text: Longs
    offset: Longs


def check_columns(schema: pl.Schema, text_columns: Sequence[str], id_column: str | None) -> None:
    """Check that a table has the columns that are asked for. Raises ``InvalidInputError``."""
    wanted = [*text_columns, *([id_column] if id_column else [])]
    for name in wanted:
        if name not in schema:
            known = ", ".join(list(schema)[:20])
            raise InvalidInputError(f"table has no column {name!r}, expected one of {known}", field="column")
    if not text_columns or len(set(text_columns)) != len(text_columns):
        raise InvalidInputError("text columns are none or repeated, expected each once; name them", field="column")


def repeated_ids(table: pl.LazyFrame, id_column: str) -> pl.Series:
    """Return the hashes of the ids that a table has more than once; 8 bytes an id are held meanwhile."""
    ids = pl.col(id_column).cast(pl.String, strict=False)
    hashes = np.sort(table.select(ids.drop_nulls().hash()).collect(engine="streaming").to_series().to_numpy())
    return pl.Series(np.unique(hashes[1:][hashes[1:] == hashes[:-1]]))


def read_batch(
    batch: pl.DataFrame, text_columns: Sequence[str], id_column: str | None, first_row: int, repeated: pl.Series
) -> ReportBatch:
    """Take the texts out of a batch of rows and flag what is wrong with them.

    Parameters
    ----------
    batch : polars.DataFrame
    text_columns : sequence of str
        Each field is mined on its own (``report_0`` to ``report_17`` of MIMIC-IV-ECG).
    id_column : str, optional
        Without one, the row number is the id.
    first_row : int
        Number of the batch's first row.
    repeated : polars.Series of uint64
        Hashes of the ids that the whole table has more than once (:func:`repeated_ids`).
    """
    numbers = pl.int_range(first_row, first_row + batch.height, eager=True)
    ids = (batch[id_column] if id_column else numbers).cast(pl.String, strict=False).alias("study_id")
    texts = pl.concat([_texts_of(batch[name]) for name in text_columns])
    rows = pl.DataFrame({"row": numbers, "study_id": ids})
    flags = [*_flag_texts(texts), *_flag_ids(ids, repeated), _flag_empty(texts, batch.height)]
    readable = texts.filter(pl.col("text").is_not_null() & (pl.col("characters") <= MAX_TEXT_CHARS))
    suspects = readable.with_row_index("place").filter(pl.col("text").str.contains(_SUSPECT))
    flags += _flag_suspects(suspects)
    text = readable["text"]
    if suspects.height:
        blank = [_blank_markup(blank_masked(item)) for item in suspects["text"]]
        text = text.scatter(suspects["place"], blank)
    return ReportBatch(_with_flags(rows, flags), readable.select("at", "column", text))


def without_control_characters(reports: ReportBatch) -> ReportBatch:
    """Return the batch without texts that hold control characters; their rows are flagged."""
    bad = pl.col("text").str.contains(_CONTROL)
    flagged = reports.texts.filter(bad).select("at", flag=pl.lit("control_characters"))
    return ReportBatch(_with_flags(reports.rows, [flagged]), reports.texts.filter(~bad))


def _with_flags(rows: pl.DataFrame, flags: list[pl.DataFrame]) -> pl.DataFrame:
    """Add flags (``at``, ``flag``) to rows."""
    listed = pl.concat([found.filter(pl.col("flag").is_not_null()) for found in flags])
    if "flags" in rows.columns:
        held = rows.select(at=pl.int_range(0, pl.len()), flag="flags").explode("flag").drop_nulls()
        listed, rows = pl.concat([listed, held]), rows.drop("flags")
    grouped = listed.group_by("at").agg(pl.col("flag").unique().sort().alias("flags"))
    joined = (
        rows.with_row_index("at")
        .with_columns(pl.col("at").cast(pl.Int64))
        .join(grouped, on="at", how="left", maintain_order="left")
    )
    return joined.drop("at").with_columns(pl.col("flags").fill_null(pl.lit([], dtype=pl.List(pl.String))))


def cut(texts: pl.Series, stops: Collection[bytes]) -> Pieces:
    """Cut texts where sentences surely end: line ends, semicolons, and full stops before a space.

    Parameters
    ----------
    texts : polars.Series of str
    stops : collection of bytes
        Words in plain form whose full stop may belong to a literal; texts are not cut behind them.
    """
    if stops and (pattern := _stop_pattern(stops)):
        held = texts.str.contains(pattern)
        kept = texts.filter(held).str.replace_all(pattern, "${1}." + _SPACE_KEPT)
        texts = texts.scatter(held.arg_true(), kept) if held.any() else texts
    for end, cut_end in ((". ", ".\n"), (";", "\n"), ("\r", "\n")):
        if texts.str.contains(end, literal=True).any():
            texts = texts.str.replace_all(end, cut_end, literal=True)
    lists = texts.str.split("\n")
    counts = lists.list.len().to_numpy().astype(np.int64)
    pieces = lists.explode() if len(lists) else pl.Series([], dtype=pl.String)
    lengths = pieces.str.len_chars().to_numpy().astype(np.int64) + 1
    begin = np.cumsum(lengths) - lengths
    text = np.repeat(np.arange(counts.size), counts)
    first_piece = np.cumsum(counts) - counts
    offset = begin - np.repeat(begin[first_piece], counts) if begin.size else begin
    groups = pl.DataFrame({"piece": pieces}).with_row_index("at").group_by("piece").agg("at")
    which = np.empty(len(pieces), dtype=np.int64)
    sizes = groups["at"].list.len().to_numpy()
    if len(pieces):
        which[groups["at"].explode().to_numpy()] = np.repeat(np.arange(groups.height), sizes)
    distinct = groups["piece"].str.replace_all(_SPACE_KEPT, " ", literal=True)
    return Pieces(distinct.to_list(), which, text, offset)


def mine_batch(
    miner: LabelMiner,
    batch: pl.DataFrame,
    text_columns: Sequence[str],
    id_column: str | None,
    *,
    first_row: int,
    repeated: pl.Series,
    probability: Probability | None = None,
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Mine a batch of rows; see :func:`read_batch` and :meth:`mmecg.labels.mining.LabelMiner.mine_batches`.

    Returns
    -------
    assertions, rows : polars.DataFrame
        :data:`ASSERTION_SCHEMA`, in order of row, column and text; :data:`ROW_SCHEMA`.
    """
    reports = read_batch(batch, text_columns, id_column, first_row, repeated)
    pieces = cut(reports.texts["text"], miner.stops)
    if pl.Series(pieces.distinct, dtype=pl.String).str.contains(_CONTROL).any():
        reports = without_control_characters(reports)
        pieces = cut(reports.texts["text"], miner.stops)
    said = pl.concat([_say(miner, *part, probability) for part in _mine_pieces(miner, pieces.distinct)], rechunk=True)
    counts = np.bincount(said["piece"].to_numpy(), minlength=len(pieces.distinct))
    begin = np.cumsum(counts) - counts
    times = counts[pieces.which]
    before = np.cumsum(times) - times
    source = np.arange(int(times.sum())) + np.repeat(begin[pieces.which] - before, times)
    text, offset = np.repeat(pieces.text, times), np.repeat(pieces.offset, times).astype(np.int32)
    at = reports.texts["at"].gather(text)
    found = said.drop("piece")[source].with_columns(
        reports.rows["row"].gather(at),
        reports.rows["study_id"].gather(at),
        reports.texts["column"].gather(text),
        pl.col("start") + offset,
        pl.col("end") + offset,
        *(pl.when(pl.col(name) >= 0).then(pl.col(name) + offset).otherwise(-1).alias(name) for name in _CUE_SPAN),
    )
    if len(text_columns) > 1:
        order = pl.col("column").replace_strict(list(text_columns), range(len(text_columns)), return_dtype=pl.Int32)
        found = found.sort("row", order, "start", maintain_order=True)
    return found.select(*ASSERTION_SCHEMA).cast(ASSERTION_SCHEMA), reports.rows


def _mine_pieces(miner: LabelMiner, pieces: list[str]) -> Iterator[tuple[list[str], int, Mined]]:
    """Yield blocks of pieces, the number of their first, and what was mined from them."""
    ends = np.cumsum(np.fromiter(map(len, pieces), dtype=np.int64, count=len(pieces)))
    low = 0
    while low < len(pieces) or low == 0:
        limit = (ends[low - 1] if low else 0) + _BLOCK_CHARS
        high = max(int(np.searchsorted(ends, limit)), low + 1)
        block = pieces[low:high]
        yield block, low, miner.mine_block(block)
        low = high


def _say(
    miner: LabelMiner, pieces: list[str], first: int, mined: Mined, probability: Probability | None
) -> pl.DataFrame:
    """Return what was mined from a block of pieces as a table; offsets count from the piece's beginning."""
    statements = miner.statements
    said = pl.DataFrame(
        {
            "status": [item.status.value for item in statements],
            "cue": [item.cue for item in statements],
            **{kind: [_values(item.qualifiers, kind) for item in statements] for kind in _QUALIFIERS},
            "age_status": [item.age_status and item.age_status.value for item in statements],
            "cause_status": [item.cause_status and item.cause_status.value for item in statements],
            "language": [item.language for item in statements],
            "needs_prior": [item.needs_prior for item in statements],
            "alternatives": ["|".join(item.alternatives) for item in statements],
        },
        schema=_SAID_SCHEMA,
    )
    spans = zip(mined.text.tolist(), mined.start.tolist(), mined.end.tolist(), strict=True)
    return said[mined.statement].with_columns(
        pl.Series("piece", mined.text.astype(np.int64) + first),
        pl.Series("finding", miner.findings, dtype=pl.String).gather(mined.finding),
        pl.Series("rule", miner.rules, dtype=pl.String).gather(mined.rule),
        pl.Series("evidence", [pieces[text][start:end] for text, start, end in spans], dtype=pl.String),
        *(pl.Series(name, getattr(mined, name)) for name in ("start", "end", *_CUE_SPAN)),
        pl.Series("probability", _probabilities(miner, mined, probability), dtype=pl.Float64),
    )


def _values(qualifiers: tuple[tuple[str, str], ...], kind: str) -> str:
    return "|".join(value for of, value in qualifiers if of == kind)


def _probabilities(miner: LabelMiner, mined: Mined, probability: Probability | None) -> list[float | None]:
    """Ask once for each way of speaking."""
    if probability is None:
        return [None] * mined.finding.size
    ways = list(zip(mined.finding.tolist(), mined.rule.tolist(), mined.statement.tolist(), strict=True))
    known = {way: probability(miner.assertion(*way, 0, 0, -1, -1)) for way in set(ways)}
    return [known[way] for way in ways]


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
    near_limit = texts.filter(characters.is_between(_TRUNCATED[0], _TRUNCATED[-1]))
    return [
        texts.filter(text.is_null()).select("at", flag=pl.lit("not_text")),
        texts.filter(characters > MAX_TEXT_CHARS).select("at", flag=pl.lit("too_long")),
        texts.filter(text.str.contains("\ufffd", literal=True)).select("at", flag=pl.lit("encoding")),
        near_limit.filter(~text.str.contains(r"[.!?]\s*$")).select("at", flag=pl.lit("truncated")),
    ]


def _flag_suspects(texts: pl.DataFrame) -> list[pl.DataFrame]:
    tests = {"markup": _MARKUP, "gold_codes": r"(?i)\bedit\s*:"}
    return [
        texts.filter(pl.col("text").str.contains(pattern)).select("at", flag=pl.lit(name))
        for name, pattern in tests.items()
    ]


def _flag_ids(ids: pl.Series, repeated: pl.Series) -> list[pl.DataFrame]:
    at = pl.int_range(0, len(ids), eager=True)
    frame = pl.DataFrame({"at": at, "id": ids})
    twice = frame.filter(pl.col("id").hash().is_in(repeated.implode()) & pl.col("id").is_not_null())
    none = frame.filter(pl.col("id").is_null())
    return [
        twice.select("at", flag=pl.lit("duplicate_id")),
        none.select("at", flag=pl.lit("no_id")),
    ]


def _flag_empty(texts: pl.DataFrame, height: int) -> pl.DataFrame:
    said = texts.filter(pl.col("text").is_null() | (pl.col("text").str.contains(r"\S")))["at"].unique()
    at = pl.int_range(0, height, eager=True).alias("at")
    return at.filter(~at.is_in(said.implode())).to_frame().select("at", flag=pl.lit("empty"))


def _blank_markup(text: str) -> str:
    return re.sub(_MARKUP, lambda found: " " * len(found[0]), text)


def _stop_pattern(stops: Collection[bytes]) -> str:
    """Return a pattern of the words in ``stops`` before a full stop and a space, as they may stand in raw text."""
    words = []
    for stop in sorted(stops):
        word = re.escape(stop.decode("ascii"))
        for folded, raw in _FOLDED.items():
            word = word.replace(folded, f"(?:{folded}|{raw})")
        words.append(word)
    return rf"(?i)\b({'|'.join(words)})\. "
