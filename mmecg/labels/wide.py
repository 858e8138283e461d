"""From assertions to one row a study: the wide table, and other code systems."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from mmecg.labels.assertion import Resolution, Status
from mmecg.labels.vocabulary import Relation, Vocabulary


def wide_table(
    assertions: pl.DataFrame,
    rows: pl.DataFrame,
    findings: Sequence[str],
) -> pl.DataFrame:
    """Return one row for each input row, in its order.

    Parameters
    ----------
    assertions : polars.DataFrame
        :data:`ASSERTION_SCHEMA`, with or without what :class:`mmecg.labels.serial.SerialResolver` adds.
    rows : polars.DataFrame
        :data:`mmecg.labels.report_rows.ROW_SCHEMA`.
    findings : sequence of str
        Columns to write.

    Returns
    -------
    polars.DataFrame
        ``row``, ``study_id``, ``flags``, and for each finding ``<finding>`` (true: stated as present or probable;
        false: denied; null: unlabelled, or left open) and ``<finding>__probability`` (the highest of its mentions). A
        serial statement that the earlier study bears out says what it says of ``now``, as in
        :func:`mmecg.labels.assertion.value_of`.
    """
    status = pl.col("status")
    yes, no = status.is_in([Status.PRESENT, Status.PROBABLE]), status == Status.NEGATED
    says: pl.Expr = pl.when(yes).then(True).when(no).then(False)
    if "now" in assertions.columns:
        says = pl.when(pl.col("resolution") == Resolution.CONSISTENT).then("now").otherwise(says)
    says_yes, only_no = says.any(), says.not_().all(ignore_nulls=False)
    cells = assertions.group_by("row", "finding").agg(
        pl.when(says_yes).then(True).when(only_no).then(False).alias("value"), pl.col("probability").max()
    )
    result = rows.select("row", "study_id", "flags")
    of_finding = cells.partition_by("finding", as_dict=True, include_key=False)
    nowhere = cells.clear().drop("finding")
    for name in findings:
        of_one = of_finding.get((name,), nowhere).rename({"value": name, "probability": f"{name}__probability"})
        result = result.join(of_one, on="row", how="left", maintain_order="left")
    return result


def codes_of(vocabulary: Vocabulary, findings: Sequence[str], system: str) -> pl.DataFrame:
    """Return the codes of a system that hold wherever a finding holds.

    Returns
    -------
    polars.DataFrame
        ``finding``, ``code`` and ``exact``: whether the code means just the finding.
    """
    rows = [
        (name, row.code, row.relation is Relation.EXACT)
        for name in findings
        for row in vocabulary.translate(name, system)
    ]
    return pl.DataFrame(rows, schema={"finding": pl.String, "code": pl.String, "exact": pl.Boolean}, orient="row")


def translate(assertions: pl.DataFrame, codes: pl.DataFrame) -> pl.DataFrame:
    """Return the assertions with ``finding`` as codes of another system, one row a code.

    A finding that has no code there is left out; one that is denied denies its exact codes only.
    """
    found = assertions.join(codes, on="finding", how="inner", maintain_order="left")
    found = found.filter(pl.col("exact") | (pl.col("status") != Status.NEGATED))
    if "now" in found.columns:  # what has gone has gone in its exact codes only
        found = found.with_columns(pl.when(pl.col("exact") | pl.col("now")).then("now"))
    return found.with_columns(pl.col("code").alias("finding")).drop("code", "exact")
