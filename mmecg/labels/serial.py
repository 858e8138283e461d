"""Serial statements beside the subject's last earlier study: whether it bears them out, and what they say of now.

A statement says what the finding was in the earlier ECG (:mod:`mmecg.labels.change`); the earlier study's labels, else
its report, say what is known of it. A study of the same time or later is never looked at, nor one without a time.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache

import polars as pl

from mmecg.errors import StudyNotFoundError, SubjectNotFoundError
from mmecg.labels.assertion import LabelAssertion, Resolution, SerialResolution, Status
from mmecg.labels.change import COMPARED, load_serial_table
from mmecg.labels.vocabulary import load_vocabulary
from mmecg.search import MAX_PAGE_SIZE, CorpusStore
from mmecg.study import History, Study, without_zone

REASONS = {
    "no_subject": "the subject is not known",
    "no_time": "the time of the study is not known",
    "no_prior": "the corpus has no earlier study of the subject",
    "not_known": "neither the labels nor the report of the earlier study tell",
    "before_not_stated": "the statement does not say how it was before",
    "needs_measurement": "the statement compares a measurement, which labels and reports do not hold",
    "whole_ecg": "the statement is about the whole ECG, not about a finding",
    "denied": "the change is denied, which leaves open how it was before",
    "doubted": "the finding is doubted, and so is how it was before",
}
"""Why a statement needs a prior study (the first three) or stays unknown."""

RESOLUTION_SCHEMA = pl.Schema(
    {
        "resolution": pl.String,
        "reason": pl.String,
        "now": pl.Boolean,
        "before": pl.Boolean,
        "prior_value": pl.Boolean,
        "prior_study_id": pl.String,
        "days_since_prior": pl.Float64,
    }
)
"""Columns that :meth:`SerialResolver.resolve_table` adds: the fields of ``SerialResolution``."""

_SAID = ("finding", "status", "change")
_MAX_REMEMBERED = 10_000


@dataclass(frozen=True)
class _Prior:
    """The study that statements are compared with, and how many days before; or the reason why there is none."""

    study_id: str = ""
    days: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class _Known:
    """What one source says was there, with what follows from it, and what it denies or thereby excludes."""

    stated: frozenset[str]
    absent: frozenset[str]


class SerialResolver:
    """Resolves serial statements against a corpus. Safe to use from several threads.

    Parameters
    ----------
    corpus : CorpusStore
    mine : callable
        Raw report to what it says: ``LabelMiner().mine``.
    """

    def __init__(self, corpus: CorpusStore, mine: Callable[[str], Sequence[LabelAssertion]]) -> None:
        self._corpus = corpus
        self._mine = mine
        self._vocabulary = load_vocabulary()
        self._names = frozenset(finding.id for finding in self._vocabulary.findings)
        self._table = load_serial_table()

    def resolve(
        self, assertions: Iterable[LabelAssertion], subject_id: str | None, acquired_at: datetime | None
    ) -> tuple[LabelAssertion, ...]:
        """Return the assertions of a study's report with :attr:`LabelAssertion.serial` filled in where it is needed.

        Parameters
        ----------
        assertions : iterable of LabelAssertion
        subject_id : str or None
            None: not known.
        acquired_at : datetime or None
            When the study was acquired; without a time, nothing is earlier.
        """
        assertions = tuple(assertions)
        if not any(assertion.needs_prior for assertion in assertions):
            return assertions
        prior, known = self._prior(subject_id, acquired_at)
        return tuple(
            dataclasses.replace(one, serial=self._judge(one.finding, one.status, one.change, prior, known))
            if one.needs_prior
            else one
            for one in assertions
        )

    def resolve_table(self, assertions: pl.DataFrame, priors: pl.DataFrame) -> pl.DataFrame:
        """Resolve a table of assertions of many studies.

        Parameters
        ----------
        assertions : polars.DataFrame
            :data:`mmecg.labels.tables.ASSERTION_SCHEMA`.
        priors : polars.DataFrame
            What :func:`prior_studies` returns, for the studies of the corpus or for rows of a table.

        Returns
        -------
        polars.DataFrame
            The assertions with :data:`RESOLUTION_SCHEMA`, which is null where no prior study is needed.
        """

        @lru_cache(_MAX_REMEMBERED)
        def known_of(study_id: str) -> tuple[_Known, ...]:
            return self._known(self._corpus.get([study_id], with_signal=False)[0])

        key = "row" if "row" in priors.columns else "study_id"
        asked = assertions.filter("needs_prior").select(key, *_SAID).unique(maintain_order=True)
        asked = asked.join(priors, on=key, how="left", maintain_order="left")
        rows = []
        for asking, finding, status, change, prior_id, days, reason in asked.iter_rows():
            prior = _Prior(prior_id, days) if prior_id else _Prior(reason=reason or "no_subject")
            found = self._judge(finding, Status(status), change, prior, known_of(prior_id) if prior_id else ())
            rows.append((asking, finding, status, change, *dataclasses.astuple(found)))
        schema = pl.Schema([*((name, assertions.schema[name]) for name in (key, *_SAID)), *RESOLUTION_SCHEMA.items()])
        resolved = pl.DataFrame(rows, schema=schema, orient="row").with_columns(
            pl.col("prior_study_id", "reason").replace("", None), pl.lit(True).alias("needs_prior")
        )
        on = [key, *_SAID, "needs_prior"]
        return assertions.join(resolved, on=on, how="left", nulls_equal=True, maintain_order="left")

    def _prior(self, subject_id: str | None, acquired_at: datetime | None) -> tuple[_Prior, tuple[_Known, ...]]:
        """Return the subject's last study strictly before a time, as :class:`History` says, and what is known of it."""
        if subject_id is None or acquired_at is None:
            return _Prior(reason="no_subject" if subject_id is None else "no_time"), ()
        for study_id in reversed(self._studies_of(subject_id)):
            try:
                study = self._corpus.get([study_id], with_signal=False)[0]
            except StudyNotFoundError:
                continue  # deleted since it was listed
            if History.build([study], subject_id=subject_id, as_of=acquired_at).studies and study.acquired_at:
                span = without_zone(acquired_at) - without_zone(study.acquired_at)
                return _Prior(study_id, span / timedelta(days=1)), self._known(study)
        return _Prior(reason="no_prior"), ()

    def _studies_of(self, subject_id: str) -> list[str]:
        """Return the subject's studies, oldest first; none if the corpus does not know the subject."""
        found: list[str] = []
        token = ""
        try:
            while True:
                page, token = self._corpus.list_studies(
                    subject_id=subject_id, page_size=MAX_PAGE_SIZE, page_token=token
                )
                found += page
                if not token:
                    return found
        except SubjectNotFoundError:
            return found

    def _known(self, study: Study) -> tuple[_Known, ...]:
        """Return what is known of a study: what its labels say, then what its report says.

        A label that a study lists is there, whatever its likelihood; one that it does not list is unlabelled.
        """
        sources = [self._source(study.labels)] if study.labels else []
        if study.report is not None:
            said: dict[str, set[bool | None]] = defaultdict(set)
            for assertion in self._mine(study.report.raw):
                said[assertion.finding].add(self._value_of(assertion))
            stated = [finding for finding, values in said.items() if True in values]
            sources.append(self._source(stated, [finding for finding, values in said.items() if values == {False}]))
        return tuple(sources)

    def _source(self, stated: Iterable[str], denied: Iterable[str] = ()) -> _Known:
        there = self._closure(stated)
        excluded = (self._table.excludes.get(finding, frozenset()) for finding in there)
        return _Known(there, frozenset(denied).union(*excluded))

    def _value_of(self, assertion: LabelAssertion) -> bool | None:
        """Return what an assertion says of its own ECG; a serial one may say it too ("now present")."""
        if assertion.status is Status.SERIAL:
            return self._table.changes[assertion.change or COMPARED].now
        if assertion.status is Status.NEGATED and not assertion.needs_prior:
            return False
        return True if assertion.status in (Status.PRESENT, Status.PROBABLE) else None

    def _closure(self, findings: Iterable[str]) -> frozenset[str]:
        return self._vocabulary.closure(self._names.intersection(findings))

    def _value(self, finding: str, known: Iterable[_Known]) -> bool | None:
        """Return whether a finding was there: the first source that tells decides."""
        implied = self._closure([finding]) | {finding}
        for source in known:
            if finding in source.stated:
                return True
            if implied & source.absent:
                return False
        return None

    def _judge(
        self, finding: str, status: Status, change: str, prior: _Prior, known: tuple[_Known, ...]
    ) -> SerialResolution:
        """Return what the earlier study says of one statement."""
        parts = self._table.findings.get(finding, ())
        meaning = self._table.changes[change or COMPARED]
        now = before = value = None
        if status is not Status.SERIAL:
            expected, reason = [], "denied" if status is Status.NEGATED else "doubted"
        elif parts:  # a serial finding speaks of other findings
            expected = [(part.of, self._table.changes[part.change].before) for part in parts if part.of]
            reason = "".join(part.unknown for part in parts)
        else:
            now, before, value = meaning.now, meaning.before, self._value(finding, known)
            expected, reason = [(finding, before)], meaning.unknown
        seen = {
            found == wanted
            for name, wanted in expected
            if wanted is not None and (found := self._value(name, known)) is not None
        }
        if prior.reason:
            resolution, reason = Resolution.NEEDS_PRIOR, prior.reason
        elif seen:
            resolution, reason = Resolution.CONSISTENT if all(seen) else Resolution.CONTRADICTED, ""
        else:
            resolution, reason = Resolution.UNKNOWN, reason or "not_known"
        return SerialResolution(resolution, reason, now, before, value, prior.study_id, prior.days)


def prior_studies(studies: pl.DataFrame, rows: pl.DataFrame | None = None) -> pl.DataFrame:
    """Return for each study, or each row of a table, the last study of its subject that was acquired strictly before.

    Parameters
    ----------
    studies : polars.DataFrame
        ``study_id``, ``subject_id`` and ``acquired_at``, as :meth:`mmecg.search.CorpusStore.metadata` has them; a study
        without a time has no prior study and is none.
    rows : polars.DataFrame, optional
        ``row``, ``subject_id`` and ``acquired_at`` (UTC, without a zone) of what needs a prior study, null where it is
        not known; default are the studies themselves.

    Returns
    -------
    polars.DataFrame
        One row a study, or row: ``study_id`` or ``row``, ``prior_study_id``, ``days_since_prior`` and ``reason`` (a key
        of :data:`REASONS` where there is no prior study, else null).
    """
    key = "study_id" if rows is None else "row"
    columns = (studies if rows is None else rows).select(key, "subject_id", "acquired_at")
    columns = columns.cast({"acquired_at": studies.schema["acquired_at"]})
    timed = columns.filter(pl.col("acquired_at").is_not_null()).sort("acquired_at", key)
    earlier = studies.filter(pl.col("acquired_at").is_not_null()).sort("acquired_at", "study_id")
    earlier = earlier.select(
        "subject_id", "acquired_at", pl.col("study_id").alias("prior_study_id"), pl.col("acquired_at").alias("prior_at")
    )
    found = timed.join_asof(
        earlier,
        on="acquired_at",
        by="subject_id",
        strategy="backward",
        allow_exact_matches=False,
        check_sortedness=False,
    )
    untimed = columns.filter(pl.col("acquired_at").is_null())
    return pl.concat([found, untimed], how="diagonal").select(
        key,
        "prior_study_id",
        ((pl.col("acquired_at") - pl.col("prior_at")) / timedelta(days=1)).alias("days_since_prior"),
        pl.when(pl.col("subject_id").is_null())
        .then(pl.lit("no_subject"))
        .when(pl.col("acquired_at").is_null())
        .then(pl.lit("no_time"))
        .when(pl.col("prior_study_id").is_null())
        .then(pl.lit("no_prior"))
        .alias("reason"),
    )
