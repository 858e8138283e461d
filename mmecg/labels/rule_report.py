"""How good each rule is: what every pattern finds, and how often gold agrees.

A *rule* here is a pattern with the cue that decided its status, since the two together are what a reader doubts or
trusts ("infarct" with "cannot be excluded"). Only findings that are gold labels can be scored; the others have counts.
The same holds for the implications of the vocabulary: few have gold at both ends.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mmecg.labels.assertion import LabelAssertion, main_language
from mmecg.labels.mining import LabelMiner
from mmecg.labels.rules import RULES_FOLDER
from mmecg.labels.vocabulary import load_vocabulary

REPORT_FILE = RULES_FOLDER / "REPORT.csv"
"""Scores of the shipped rules on folds 1 to 8 of PTB-XL, made by ``scripts/rule-report``."""

FOLDS = tuple(range(1, 9))
AXIS_CODES: dict[str, tuple[str, ...]] = {
    "LEFT_AXIS_DEVIATION": ("LAD", "ALAD"),
    "RIGHT_AXIS_DEVIATION": ("RAD", "ARAD"),
}
"""Values of the column ``heart_axis`` of PTB-XL."""

MIN_REPORTS = 5
"""Rules seen in fewer reports are left out: their precision would be noise."""


def mine_reports(miner: LabelMiner, texts: Sequence[str]) -> list[tuple[LabelAssertion, ...]]:
    """Mine reports; equal texts are mined once. A report without words has no assertions."""
    known = {text: miner.mine(text) if text.strip() else () for text in dict.fromkeys(texts)}
    return [known[text] for text in texts]


def score_rules(
    reports: Sequence[Sequence[LabelAssertion]],
    gold: NDArray[np.bool_],
    labels: Sequence[str],
    *,
    min_reports: int = MIN_REPORTS,
) -> pl.DataFrame:
    """Score every rule on gold.

    Parameters
    ----------
    reports : sequence of sequence of LabelAssertion, length n
    gold : bool, shape (n, labels)
    labels : sequence of str
    min_reports : int
        Rules seen in fewer reports are left out.

    Returns
    -------
    DataFrame
        One row a rule, cue and finding: ``language``, ``rule``, ``cue`` (empty if none), ``finding``, ``status``;
        ``reports`` that it is in; ``coverage``, the share that these are of the language's reports; ``precision``, the
        share of them in which the finding is gold; ``recall``, the share of the language's gold that it finds. The last
        two are empty where gold has no such label. A report is of the language that most of its assertions are of.
    """
    column = {label: index for index, label in enumerate(labels)}
    seen: Counter[tuple[str, ...]] = Counter()
    right: Counter[tuple[str, ...]] = Counter()
    size: Counter[str] = Counter()
    positives: dict[str, NDArray[np.int64]] = {}
    for row, assertions in enumerate(reports):
        if not assertions:
            continue
        language = main_language(assertions)
        size[language] += 1
        positives[language] = positives.get(language, np.zeros(len(labels), np.int64)) + gold[row]
        for key in {(item.language, item.rule, item.cue, item.finding, str(item.status)) for item in assertions}:
            seen[key] += 1
            right[key] += key[3] in column and bool(gold[row, column[key[3]]])
    rows = [
        (*key, count, count / max(size[key[0]], 1), *_agreement(right[key], count, _gold_of(key, column, positives)))
        for key, count in sorted(seen.items())
        if count >= min_reports
    ]
    names = ("language", "rule", "cue", "finding", "status", "reports", "coverage", "precision", "recall")
    types = (*[pl.String] * 5, pl.Int64, *[pl.Float64] * 3)
    return pl.DataFrame(rows, schema=dict(zip(names, types, strict=True)), orient="row").with_columns(
        pl.col(pl.Float64).round(4)
    )


def write_rule_report(data: Path, out: Path = REPORT_FILE) -> pl.DataFrame:
    """Score the shipped rules on folds 1 to 8 of a PTB-XL folder, write them as CSV, and return them."""
    scores = rule_report(data)
    scores.write_csv(out)
    return scores


def rule_report(data: Path) -> pl.DataFrame:
    """Score the shipped rules on folds 1 to 8 of a PTB-XL folder, as :func:`score_rules` returns them."""
    from mmecg.datasets.ptb_xl import label_matrix, read_ptb_xl_table, read_scp_statements

    table = read_ptb_xl_table(data).filter(pl.col("strat_fold").is_in(FOLDS))
    labels = read_scp_statements(data)["label"].to_list()
    reports = mine_reports(LabelMiner(), table["report_raw"].fill_null("").to_list())
    return score_rules(reports, label_matrix(table, labels), labels)


def axis_gold(table: pl.DataFrame) -> dict[str, NDArray[np.bool_]]:
    """Return the axis deviations by finding, from the column ``heart_axis`` of PTB-XL: bool, shape (n,)."""
    return {
        finding: table["heart_axis"].is_in(codes).fill_null(value=False).to_numpy()
        for finding, codes in AXIS_CODES.items()
    }


def score_edges(table: pl.DataFrame, labels: Sequence[str], gold: NDArray[np.bool_]) -> pl.DataFrame:
    """Test the implications of the vocabulary on gold: statements, and the axis.

    Parameters
    ----------
    table : polars.DataFrame
        Of :func:`mmecg.datasets.ptb_xl.read_ptb_xl_table`.
    labels : sequence of str
    gold : bool, shape (n, labels)

    Returns
    -------
    polars.DataFrame
        One row an implication: ``finding``, ``implies``, ``records`` with the first, and ``precision``, the share of
        them with the second. Both are null where gold has no label for one of the ends, or no record with the first:
        such an implication is untested and rests on its reason.
    """
    axes = axis_gold(table)
    names = [*labels, *axes]
    values = np.column_stack([gold, *axes.values()])
    counts = dict(zip(names, values.sum(axis=0).tolist(), strict=True))
    rows = [
        (edge.finding, edge.implies, None if found is None else counts[edge.finding], found)
        for edge, found in load_vocabulary().edge_precision(names, values).items()
    ]
    types = {"finding": pl.String(), "implies": pl.String(), "records": pl.Int64(), "precision": pl.Float64()}
    return pl.DataFrame(rows, schema=types, orient="row")


def describe_edges(edges: pl.DataFrame) -> str:
    """Return in words which implications :func:`score_edges` could test."""
    tested = edges.drop_nulls("precision")
    found = "; ".join(
        f"{finding} implies {implies} in {precision:.2f} of {records} records"
        for finding, implies, records, precision in tested.iter_rows()
    )
    untested = edges.height - tested.height
    return (
        f"{tested.height} of {edges.height} implications could be tested on gold{': ' if found else ''}{found}. The "
        f"other {untested} have no gold at one of their ends and rest on what the words mean."
    )


def edge_report(data: Path) -> pl.DataFrame:
    """Test the implications on folds 1 to 8 of a PTB-XL folder, as :func:`score_edges` returns them."""
    from mmecg.datasets.ptb_xl import label_matrix, read_ptb_xl_table, read_scp_statements

    table = read_ptb_xl_table(data).filter(pl.col("strat_fold").is_in(FOLDS))
    labels = read_scp_statements(data)["label"].to_list()
    return score_edges(table, labels, label_matrix(table, labels))


def _gold_of(key: tuple[str, ...], column: dict[str, int], positives: dict[str, NDArray[np.int64]]) -> int | None:
    """Return the gold reports of a rule's finding in its language; None if gold has no such label."""
    return int(positives[key[0]][column[key[3]]]) if key[3] in column and key[0] in positives else None


def _agreement(hits: int, count: int, gold: int | None) -> tuple[float | None, float | None]:
    return (None, None) if gold is None else (hits / count, hits / max(gold, 1))
