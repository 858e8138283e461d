"""The subject's earlier studies: found in the corpus, joined with those of the caller, never later than allowed.

Work is bounded: the corpus picks the latest ``max_history`` studies before ``as_of`` itself and counts the rest, and
only as many of the caller's are encoded. What is picked passes :meth:`mmecg.study.History.build` once more.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import numpy as np
from numpy.typing import NDArray

from mmecg.ecg import Ecg
from mmecg.errors import QueryError, StudyNotFoundError, SubjectNotFoundError
from mmecg.prediction.history import Prior
from mmecg.prediction.known import KnownLabels
from mmecg.prediction.query import PredictionQuery, is_before_birth
from mmecg.prediction.vote import SAME_RECORDING
from mmecg.retriever import get_present
from mmecg.search import CorpusStore
from mmecg.study import History, Study, without_zone

Vector = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Earlier:
    """The earlier studies that are used.

    Attributes
    ----------
    studies : tuple of Study
        Latest first; those of the corpus without their ECG.
    embeddings : tuple of float32, shape (dim,), or None
        Of each, as stored; None for a study of the caller, or one without an ECG.
    found : int
        Earlier studies that there are.
    flags : tuple of str
    added : frozenset of str
        Ids of those studies that came from the caller.
    refused : int
        Studies of the caller that were left out: undated, or not earlier.
    """

    studies: tuple[Study, ...] = ()
    embeddings: tuple[Vector | None, ...] = ()
    found: int = 0
    flags: tuple[str, ...] = ()
    added: frozenset[str] = frozenset()
    refused: int = 0

    @property
    def ecgs(self) -> tuple[Ecg, ...]:
        """The recordings that have no embedding yet, in the order of the studies."""
        return tuple(study.ecg for study in self.studies if study.study_id in self.added and study.ecg is not None)

    def with_embeddings(self, encoded: Iterable[Vector]) -> Earlier:
        """Return the same with the embeddings of :attr:`ecgs` filled in."""
        rows = iter(encoded)
        filled = tuple(
            next(rows) if study.study_id in self.added and study.ecg is not None else stored
            for study, stored in zip(self.studies, self.embeddings, strict=True)
        )
        return replace(self, embeddings=filled)

    def without_copies(self, embedding: Vector) -> Earlier:
        """Return the same without studies whose ECG is the one of an embedding: stored before it was asked about.

        A bare recording has no id and no time that could tell; what was said of it is the answer, not the past.
        """
        kept = [
            place
            for place, stored in enumerate(self.embeddings)
            if stored is None or not float(stored @ embedding) >= SAME_RECORDING  # NaN without an ECG: kept
        ]
        if len(kept) == len(self.studies):
            return self
        return replace(
            self,
            studies=tuple(self.studies[place] for place in kept),
            embeddings=tuple(self.embeddings[place] for place in kept),
            found=self.found - (len(self.studies) - len(kept)),
            flags=(*self.flags, "same_recording"),
        )

    def priors(self, known: KnownLabels, moment: datetime) -> list[Prior]:
        """Return what the studies are as evidence, latest first; one of which nothing is known is left out."""
        found = []
        for study, embedding in zip(self.studies, self.embeddings, strict=True):
            source, values = known.of(study)
            if study.acquired_at is None or (source == "ecg" and embedding is None):
                continue
            days = (moment - without_zone(study.acquired_at)) / timedelta(days=1)
            one = Prior(study_id=study.study_id, days_before=days, source=source, known=values, embedding=embedding)
            found.append(one)
        return found


def find_earlier(query: PredictionQuery, corpus: CorpusStore | None) -> Earlier:
    """Return the subject's studies strictly before the moment of a query, without the study itself.

    Raises
    ------
    QueryError
        A study that the caller added is not the subject's.
    """
    subject, moment, limit = query.subject, query.moment, query.options.max_history
    if any(study.subject_id != subject for study in query.extra_history):
        raise QueryError(
            "a study of extra_history belongs to another subject than the study to predict, expected the same; "
            "leave it out, or say the subject",
            field="extra_history",
        )
    if not query.options.use_history:
        return Earlier()
    if subject is None:
        return Earlier(flags=("no_subject",))
    added = {study.study_id: study for study in query.extra_history if study.study_id != query.study_id}
    if moment is None:
        return Earlier(refused=len(added))
    usable = History.build(added.values(), subject_id=subject, as_of=moment).studies
    refused, why = len(added) - len(usable), _refusals(added.values(), usable)
    exclude = {*added, *([query.study_id] if query.study_id else ())}
    stored, found, flags = _stored(corpus, subject, moment, limit, exclude)
    found += len(usable)
    chosen = History.build([*stored, *usable[-limit:]], subject_id=subject, as_of=moment).studies[::-1][:limit]
    if not chosen:
        flags = [name for name in flags if name == "unknown_subject"] or ["no_history"]
        if corpus is not None and flags == ["no_history"] and _before_birth(corpus, subject, moment):
            flags.append("before_birth")
        return Earlier(flags=(*flags, *why), refused=refused)
    vectors = _embeddings(corpus, [study.study_id for study in chosen if study.study_id not in added])
    return Earlier(
        chosen,
        tuple(vectors.get(study.study_id) for study in chosen),
        found,
        (*(["history_truncated"] if found > limit else []), *why),
        frozenset(added).intersection(study.study_id for study in chosen),
        refused,
    )


def _refusals(added: Iterable[Study], usable: Sequence[Study]) -> list[str]:
    """Return flags for the caller's studies that are not used."""
    kept = {study.study_id for study in usable}
    undated = {study.acquired_at is None for study in added if study.study_id not in kept}
    return [flag for flag, held in (("undated_history", True), ("later_history", False)) if held in undated]


def _stored(
    corpus: CorpusStore | None, subject: str, moment: datetime, limit: int, exclude: Iterable[str]
) -> tuple[list[Study], int, list[str]]:
    """Return the latest earlier studies of the corpus, and how many there are; one deleted meanwhile is left out."""
    if corpus is None:
        return [], 0, []
    try:
        ids, found = corpus.earlier(subject, moment, limit=limit, exclude=sorted(exclude))
    except SubjectNotFoundError:
        return [], 0, ["unknown_subject"]
    return get_present(corpus, ids, with_signal=False) if ids else [], found, []


def _embeddings(corpus: CorpusStore | None, study_ids: Sequence[str]) -> dict[str, Vector]:
    """Return the stored embedding of the ECG of each study that has one."""
    if corpus is None or not study_ids:
        return {}
    try:
        rows = corpus.rows(study_ids)
    except StudyNotFoundError:  # one was deleted since it was found
        return {} if len(study_ids) == 1 else {k: v for one in study_ids for k, v in _embeddings(corpus, [one]).items()}
    stored = zip(study_ids, corpus.embeddings(rows), strict=True)
    return {study_id: vectors["ecg"] for study_id, vectors in stored if "ecg" in vectors}


def _before_birth(corpus: CorpusStore, subject: str, moment: datetime) -> bool:
    """Return whether the subject's first study says that it was not born yet; it is read for this flag alone."""
    try:
        first, _ = corpus.list_studies(subject_id=subject, page_size=1)
    except SubjectNotFoundError:
        return False
    return any(
        study.acquired_at is not None
        and study.vitals.age_years is not None
        and is_before_birth(moment, without_zone(study.acquired_at), study.vitals.age_years)
        for study in get_present(corpus, first, with_signal=False)
    )
