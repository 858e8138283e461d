"""Tables of reports: cut into statements, each distinct one mined once, and joined back.

A *piece* is a stretch of text that ends where a sentence surely ends. Pieces are mined apart from each other, so each
distinct one is mined once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import polars as pl

from mmecg.labels.assertion import LabelAssertion
from mmecg.labels.report_rows import (
    ReportBatch,
    TableBatch,
    has_control_characters,
    read_batch,
    without_control_characters,
)

if TYPE_CHECKING:
    from mmecg.labels.mining import LabelMiner, Mined

Ints = npt.NDArray[np.int32]
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
        "change": pl.String,
        "alternatives": pl.String,
        "probability": pl.Float64,
    }
)
"""Columns of a table of assertions, as the README of this folder describes them."""

_QUALIFIERS = ("location", "age", "degree")
_NUMBERED = ("finding", "rule", "statement", "change")
_CUE_SPAN = ("cue_start", "cue_end")
_SAID = ("status", "cue", *_QUALIFIERS, "age_status", "cause_status", "language", "needs_prior", "alternatives")
_SAID_SCHEMA = {name: ASSERTION_SCHEMA[name] for name in _SAID}
_BLOCK_CHARS = 150_000  # such blocks stay in the processor's cache
_FOLDED = {"ae": "ä|æ|a\u0308", "oe": "ö|ø|o\u0308", "ue": "ü|#|u\u0308", "aa": "å|a\u030a", "ss": "ß"}
_SPACE_KEPT = "\x1f"  # stands for a space that is not to be cut at; no text that is mined holds it


@dataclass(frozen=True)
class Pieces:
    """Texts cut at sentence ends.

    Attributes
    ----------
    distinct : polars.Series of str
    which : int32, shape (pieces,)
        Position in ``distinct``.
    text, offset : int32, shape (pieces,)
        Which text it stands in, and where it begins there, in code points.
    """

    distinct: pl.Series
    which: Ints
    text: Ints
    offset: Ints


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
    end = ". "
    if texts.str.contains("[;\n\r]").any():
        end = "\n"
        for other, cut_end in ((". ", ".\n"), (";", end), ("\r", end)):
            texts = texts.str.replace_all(other, cut_end, literal=True)
    lists = texts.str.split(end)
    counts = lists.list.len().to_numpy()
    pieces = lists.explode() if len(lists) else pl.Series([], dtype=pl.String)
    lengths = pieces.str.len_chars().to_numpy().astype(np.int64) + len(end)
    begin = np.cumsum(lengths) - lengths
    text = np.repeat(np.arange(counts.size, dtype=np.int32), counts)
    first_piece = np.cumsum(counts) - counts
    offset = (begin - np.repeat(begin[first_piece], counts) if begin.size else begin).astype(np.int32)
    groups = pl.DataFrame({"piece": pieces}).with_row_index("at").group_by("piece").agg("at")
    which = np.empty(len(pieces), dtype=np.int32)
    sizes = groups["at"].list.len().to_numpy()
    if len(pieces):
        which[groups["at"].explode().to_numpy()] = np.repeat(np.arange(groups.height, dtype=np.int32), sizes)
    distinct = groups["piece"].str.replace_all(_SPACE_KEPT, " ", literal=True)
    return Pieces(distinct, which, text, offset)


def mine_batch(
    miner: LabelMiner,
    batch: TableBatch,
    text_columns: Sequence[str],
    id_column: str | None,
    *,
    probability: Probability | None = None,
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Mine a batch of rows; see :func:`read_batch` and :meth:`mmecg.labels.mining.LabelMiner.mine_batches`.

    Returns
    -------
    assertions, rows : polars.DataFrame
        :data:`ASSERTION_SCHEMA`, in order of row, column and text; :data:`mmecg.labels.report_rows.ROW_SCHEMA`.
    """
    reports = read_batch(batch, text_columns, id_column)
    pieces = cut(reports.texts["text"], miner.stops)
    if has_control_characters(pieces.distinct):
        reports = without_control_characters(reports)
        pieces = cut(reports.texts["text"], miner.stops)
    said = _say(miner, pieces.distinct, probability)
    counts = np.bincount(said["piece"].to_numpy(), minlength=len(pieces.distinct)).astype(np.int32)
    begin = np.cumsum(counts, dtype=np.int32) - counts
    times = counts[pieces.which]
    before = np.cumsum(times, dtype=np.int32) - times
    source = np.arange(int(times.sum()), dtype=np.int32) + np.repeat(begin[pieces.which] - before, times)
    text, offset = np.repeat(pieces.text, times), np.repeat(pieces.offset, times)
    at = reports.texts["at"].gather(text)
    found = said.drop("piece")[source].with_columns(
        reports.rows["row"].gather(at),
        reports.rows["study_id"].gather(at),
        reports.texts["column"].gather(text),
        pl.col("start") + offset,
        pl.col("end") + offset,
        *(pl.when(pl.col(name) >= 0).then(pl.col(name) + offset).otherwise(-1).alias(name) for name in _CUE_SPAN),
    )
    found = _with_raw_evidence(found, text, reports)
    if len(text_columns) > 1:
        order = pl.col("column").replace_strict(list(text_columns), range(len(text_columns)), return_dtype=pl.Int32)
        found = found.sort("row", order, "start", maintain_order=True)
    return found.select(*ASSERTION_SCHEMA).cast(ASSERTION_SCHEMA), reports.rows


def _with_raw_evidence(found: pl.DataFrame, text: Ints, reports: ReportBatch) -> pl.DataFrame:
    """Return assertions with the words as written, also where a part of them was blank when they were mined.

    Parameters
    ----------
    found : polars.DataFrame
    text : int32, shape (assertions,)
        The text that each is from.
    reports : ReportBatch
    """
    raw = reports.raw
    was_blanked = np.zeros(reports.texts.height, dtype=bool)
    was_blanked[list(raw)] = True
    at = np.flatnonzero(was_blanked[text])
    if not at.size:
        return found
    spans = zip(text[at].tolist(), found["start"].gather(at), found["end"].gather(at), strict=True)
    words = found["evidence"].scatter(at, [raw[number][start:end] for number, start, end in spans])
    return found.with_columns(words)


def _say(miner: LabelMiner, pieces: pl.Series, probability: Probability | None) -> pl.DataFrame:
    """Return what pieces say as a table; offsets count from the piece's beginning."""
    mined = miner.mine_pieces(pieces)
    said = pl.DataFrame(
        {"piece": mined.text, **{name: getattr(mined, name) for name in (*_NUMBERED, "start", "end", *_CUE_SPAN)}}
    )
    return _name(miner, said).with_columns(
        evidence=pieces.gather(said["piece"]).str.slice(said["start"], said["end"] - said["start"]),
        probability=_probabilities(miner, mined, probability),
    )


def _name(miner: LabelMiner, found: pl.DataFrame) -> pl.DataFrame:
    """Return assertions with names in place of the miner's numbers (:data:`_NUMBERED`)."""
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
    return found.drop("statement").with_columns(
        pl.Series("finding", miner.findings, dtype=pl.String).gather(found["finding"]),
        pl.Series("rule", miner.rules, dtype=pl.String).gather(found["rule"]),
        pl.Series("change", [*miner.changes, None], dtype=pl.String).gather(found["change"]),
        *said[found["statement"]],
    )


def _values(qualifiers: tuple[tuple[str, str], ...], kind: str) -> str:
    return "|".join(value for of, value in qualifiers if of == kind)


def _probabilities(miner: LabelMiner, mined: Mined, probability: Probability | None) -> pl.Series:
    """Ask once for each way of speaking."""
    if probability is None:
        return pl.repeat(None, mined.finding.size, dtype=pl.Float64, eager=True)
    size = (len(miner.findings), len(miner.rules), len(miner.statements))
    numbers = np.ravel_multi_index((mined.finding, mined.rule, mined.statement), size)
    ways, which = np.unique(numbers, return_inverse=True)
    known = [
        probability(miner.assertion(finding, rule, statement, 0, 0, -1, -1, -1))
        for finding, rule, statement in np.transpose(np.unravel_index(ways, size)).tolist()
    ]
    return pl.Series(known, dtype=pl.Float64).gather(which)


def _stop_pattern(stops: Collection[bytes]) -> str:
    """Return a pattern of the words in ``stops`` before a full stop and a space, as they may stand in raw text."""
    words = []
    for stop in sorted(stops):
        word = re.escape(stop.decode("ascii"))
        for folded, raw in _FOLDED.items():
            word = word.replace(folded, f"(?:{folded}|{raw})")
        words.append(word)
    return rf"(?i)\b({'|'.join(words)})\. "
