"""From assertions to one row a study: the wide table, other code systems, and what an earlier ECG says."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import polars as pl

from mmecg.labels.assertion import LabelAssertion, Status, value_of
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
        :data:`ASSERTION_SCHEMA`.
    rows : polars.DataFrame
        :data:`mmecg.labels.report_rows.ROW_SCHEMA`.
    findings : sequence of str
        Columns to write.

    Returns
    -------
    polars.DataFrame
        ``row``, ``study_id``, ``flags``, and for each finding ``<finding>`` (true: stated as present or probable;
        false: denied; null: unlabelled, or left open) and ``<finding>__probability`` (the highest of its mentions).
    """
    status = pl.col("status")
    says_yes = status.is_in([Status.PRESENT, Status.PROBABLE]).any()
    only_no = (status == Status.NEGATED).all()
    cells = assertions.group_by("row", "finding").agg(
        pl.when(says_yes).then(True).when(only_no).then(False).alias("value"), pl.col("probability").max()
    )
    result = rows.select("row", "study_id", "flags")
    for name in findings:
        of_one = cells.filter(pl.col("finding") == name).select(
            "row", pl.col("value").alias(name), pl.col("probability").alias(f"{name}__probability")
        )
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
    return found.with_columns(pl.col("code").alias("finding")).drop("code", "exact")


def prior_studies(studies: pl.DataFrame) -> pl.DataFrame:
    """Return for each study the last one of its subject that was acquired strictly before it.

    Parameters
    ----------
    studies : polars.DataFrame
        ``study_id``, ``subject_id`` and ``acquired_at``; a study without a time has no prior study and is none.

    Returns
    -------
    polars.DataFrame
        ``study_id`` and ``prior_study_id``.
    """
    timed = studies.filter(pl.col("acquired_at").is_not_null()).sort("acquired_at", "study_id")
    earlier = timed.select("subject_id", "acquired_at", pl.col("study_id").alias("prior_study_id"))
    found = timed.join_asof(
        earlier,
        on="acquired_at",
        by="subject_id",
        strategy="backward",
        allow_exact_matches=False,
        check_sortedness=False,
    )
    return found.select("study_id", "prior_study_id").drop_nulls()


def resolve_serial(
    assertions: pl.DataFrame,
    priors: Mapping[str, str],
    mine_study: Callable[[str], Sequence[LabelAssertion] | None],
) -> pl.DataFrame:
    """Say what the report of the prior study says of each finding that needs it.

    Parameters
    ----------
    assertions : polars.DataFrame
        :data:`mmecg.labels.tables.ASSERTION_SCHEMA`.
    priors : mapping of str to str
        Study to prior study.
    mine_study : callable
        Study id to what its report says; None if it has no report.

    Returns
    -------
    polars.DataFrame
        The assertions with ``prior_study_id`` (null: there is none, or none is needed) and ``prior_value`` (true:
        stated there; false: denied there; null: not mentioned, left open, or no report).
    """
    rows: list[tuple[str | None, bool | None]] = []
    for study_id, finding, needs_prior in assertions.select("study_id", "finding", "needs_prior").iter_rows():
        prior = priors.get(study_id) if needs_prior else None
        said = (mine_study(prior) if prior is not None else None) or ()
        statuses = [one.status for one in said if one.finding == finding]
        rows.append((prior, value_of(statuses) if statuses else None))
    schema = {"prior_study_id": pl.String, "prior_value": pl.Boolean}
    return assertions.hstack(pl.DataFrame(rows, schema=schema, orient="row"))
