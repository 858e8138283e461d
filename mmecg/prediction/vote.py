"""The vote of similar studies of other subjects, straight from the corpus."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from math import ceil

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mmecg.neighbours import vote_weights
from mmecg.prediction.known import KnownLabels
from mmecg.search import MAX_TOP_K, CorpusStore, Filter

SAME_RECORDING = 0.99995
"""Cosine from which on a neighbour is the same recording under another id, which must not vote for itself."""

_REMEMBERED = 4096


@dataclass(frozen=True)
class Vote:
    """How the neighbours voted.

    Attributes
    ----------
    shares : float64, shape (labels,)
        Share of the votes for each label, as :func:`mmecg.neighbours.knn_scores` gives it.
    study_ids : tuple of str
        Nearest first.
    scores, weights : float64, shape (k,)
        Cosine, and weight of the vote; the weights sum to 1.
    values : float32, shape (k, labels)
        What each votes for.
    studies : int
        Coded studies of other subjects that could have voted.
    """

    shares: NDArray[np.float64]
    study_ids: tuple[str, ...]
    scores: NDArray[np.float64]
    weights: NDArray[np.float64]
    values: NDArray[np.float32]
    studies: int


class CohortVotes:
    """Asks the coded studies of a corpus. Safe to use from several threads.

    Parameters
    ----------
    corpus : CorpusStore
    known : KnownLabels
    k : int
        Studies that vote.
    minimum_studies : float
        Coded studies of other subjects below which there is no vote.
    """

    def __init__(self, corpus: CorpusStore, known: KnownLabels, k: int, minimum_studies: float) -> None:
        self._corpus = corpus
        self._known = known
        self._k = k
        self._minimum = minimum_studies
        self._coded: tuple[pl.DataFrame, NDArray[np.bool_]] | None = None
        self._values_of = lru_cache(_REMEMBERED)(self._read)

    def of(
        self,
        embedding: NDArray[np.float32],
        subject_id: str | None,
        study_id: str | None,
        *,
        before: datetime | None = None,
    ) -> Vote | None:
        """Return the vote; None if the corpus has too few coded studies of other subjects.

        Parameters
        ----------
        embedding : float32, shape (dim,), unit norm
        subject_id, study_id : str or None
            Who and what may not vote.
        before : datetime, optional
            Only studies acquired before it vote.
        """
        table = self._corpus.metadata()
        coded = self._coded_rows(table)
        allowed = table.height
        if before is not None:
            earlier = (table["acquired_at"] < before).fill_null(False).to_numpy()
            coded, allowed = coded & earlier, int(earlier.sum())
        others = int(coded.sum())
        if subject_id is not None and others >= self._minimum:
            others -= int((coded & (table["subject_id"] == subject_id).to_numpy()).sum())
        if others < max(self._minimum, 1):
            return None
        where = Filter(
            exclude_subject_ids=frozenset(filter(None, [subject_id])),
            exclude_study_ids=frozenset(filter(None, [study_id])),
            acquired_before=before,
        )
        # As deep as should hold k coded ones, with some to spare: a second search costs as much as the first.
        depth = min(MAX_TOP_K, ceil(1.2 * self._k * allowed / others))
        while True:
            found = self._corpus.search(embedding[None], depth, where=where)
            places, scores = _places(table, found.rows[0], found.scores[0])
            votes = coded[places] & (scores < SAME_RECORDING)
            if votes.sum() >= self._k or depth >= MAX_TOP_K or found.rows[0][-1] < 0:
                break
            depth = min(MAX_TOP_K, 2 * depth)
        return self._count(table, places[votes][: self._k], scores[votes][: self._k], others)

    def _count(
        self, table: pl.DataFrame, places: NDArray[np.int64], scores: NDArray[np.float64], studies: int
    ) -> Vote | None:
        if not len(places):
            return None
        weights = vote_weights(scores)
        study_ids, listed = (table[column][places].to_list() for column in ("study_id", "labels"))
        values = np.stack([self._values_of(tuple(labels)) for labels in listed])
        return Vote(weights @ values, tuple(study_ids), scores, weights, values, studies)

    def _coded_rows(self, table: pl.DataFrame) -> NDArray[np.bool_]:
        """Return which rows of the metadata list an SCP statement; remembered until a write changes the table."""
        held = self._coded
        if held is None or held[0] is not table:
            listed = table.lazy().with_row_index("place").select("place", "labels").explode("labels")
            places = listed.filter(pl.col("labels").is_in(list(self._known.labels))).select("place").collect()
            coded = np.zeros(table.height, np.bool_)
            coded[places["place"].to_numpy()] = True
            self._coded = held = (table, coded)
        return held[1]

    def _read(self, labels: Sequence[str]) -> NDArray[np.float32]:
        there = self._known.implied(self._known.findings(labels))
        return np.array([label in there for label in self._known.labels], np.float32)


def _places(
    table: pl.DataFrame, rows: NDArray[np.int64], scores: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the places of rows in the metadata, with their scores; a row deleted meanwhile is left out."""
    stored = table["row"].to_numpy()
    at = np.searchsorted(stored, rows)
    there = (rows >= 0) & (at < len(stored))
    there[there] = stored[at[there]] == rows[there]
    return at[there].astype(np.int64), scores[there].astype(np.float64)
