"""Fitting of the prediction heads that ship in a bundle. See ``scripts/train-heads``.

Scores of a bundle on records that it was trained on flatter it, so two kinds of records are used:

* the linear heads (:class:`SingleHead`, :class:`EmbeddingHead`, :class:`AgeHead`) are fitted on what the bundle makes
  of its own training records, as every probe is;
* everything that says how much a score is worth (calibration, vote, history, intervals, sets) is fitted on *honest*
  scores: of bundles that left folds out, by heads fitted on those bundles' own folds. Intervals, sets and the ranks of
  uncertainty come from a further round: calibration, vote and history are fitted on four fifths of the patients and
  applied to the fifth.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mmecg.datasets.splits import subject_groups
from mmecg.errors import InvalidInputError
from mmecg.evaluation.age_fitting import QUANTILES, ages, fit_age
from mmecg.evaluation.history_fitting import (
    HistoryPart,
    HistoryRecipe,
    fit_cohort,
    fit_history,
    fit_superclass,
    fit_vitals,
)
from mmecg.evaluation.prediction_data import PredictionData, history_of, priors_of
from mmecg.evaluation.probe import Probe, fit_probe
from mmecg.labels.logistic import logit
from mmecg.neighbours import knn_scores
from mmecg.prediction.calibration import LogitMap, fit_logit_map, fit_venn_abers, probability_of
from mmecg.prediction.cohort import CohortHead
from mmecg.prediction.conformal import fit_conformal
from mmecg.prediction.heads import Confidence, PredictionHeads, RouteConfidence
from mmecg.prediction.history import HistoryHead, HistoryTokens, build_tokens, last_known
from mmecg.prediction.novelty import NoveltyDetector
from mmecg.prediction.single import EmbeddingHead, SingleHead
from mmecg.prediction.superclass import SuperclassHead
from mmecg.prediction.vitals_head import VitalsHead

MEMBERS = 8
GROUPS = 5


@dataclass(frozen=True)
class HonestScores:
    """Scores of records by bundles and heads that have not seen their patients.

    Attributes
    ----------
    data : PredictionData
        n records, encoded by the bundle that left them out.
    logits : float64, shape (n, labels)
        Not calibrated.
    votes : float64, shape (n, labels)
        Of the records that the bundle was trained on.
    age_error : float64, shape (n,), years
        Absolute; NaN where the age is unknown.
    part : int64, shape (n,)
        Which bundle left it out.
    readers : tuple of EmbeddingHead
        Of each bundle.
    """

    data: PredictionData
    logits: NDArray[np.float64]
    votes: NDArray[np.float64]
    age_error: NDArray[np.float64]
    part: NDArray[np.int64]
    readers: tuple[EmbeddingHead, ...]

    @cached_property
    def earlier(self) -> list[list[int]]:
        """Rows of the same patient's earlier records, oldest first."""
        return priors_of(self.data)

    def take(self, rows: NDArray[np.integer]) -> HonestScores:
        """Return some of the records."""
        return HonestScores(
            self.data.take(rows),
            self.logits[rows],
            self.votes[rows],
            self.age_error[rows],
            self.part[rows],
            self.readers,
        )


def honest_scores(parts: Sequence[tuple[PredictionData, Sequence[int]]]) -> HonestScores:
    """Score every record by the first bundle that left its fold out.

    Parameters
    ----------
    parts : sequence of (PredictionData, folds)
        The same records, encoded by each bundle, and the folds that it was trained on.

    Raises
    ------
    InvalidInputError
        The records differ, a bundle was trained on all folds or on none of them, or a record on no bundle's left side.
    """
    first = parts[0][0]
    part = np.full(len(first), -1)
    readers, pieces = [], []
    for index, (data, folds) in enumerate(parts):
        seen = np.isin(data.folds, list(folds))
        if seen.all() or not seen.any() or data.study_ids.tolist() != first.study_ids.tolist():
            raise InvalidInputError(
                f"a stack bundle was trained on folds {sorted(folds)}, expected some of "
                f"{np.unique(first.folds).tolist()} but not all, and the same records for each; train one that leaves "
                "a fold out (`mmecg train --config`)"
            )
        rows = np.flatnonzero(~seen & (part < 0))
        part[rows] = index
        known, fresh = data.take(seen), data.take(rows)
        readers.append(fit_embedding(known))
        probe = fit_probe(known.features, known.gold, known.subject_ids)
        votes = knn_scores(fresh.embedding, known.embedding, known.gold)
        error = np.abs(fit_age(known).predict(fresh.features, 0.5)[0] - ages(fresh))
        pieces.append((rows, fresh.features, fresh.embedding, probe.scores(fresh.features), votes, error))
    if (part < 0).any():
        raise InvalidInputError(
            f"no stack bundle left out folds {np.unique(first.folds[part < 0]).tolist()}, expected one for each fold; "
            "give bundles that together leave out every fold"
        )
    order = np.argsort(np.concatenate([piece[0] for piece in pieces]))
    features, embedding, logits, votes, errors = (
        np.concatenate([piece[at] for piece in pieces])[order] for at in range(1, 6)
    )
    data = PredictionData(first.table, first.labels, first.gold, features, embedding)
    return HonestScores(data, logits.astype(np.float64), votes, errors, part, tuple(readers))


def fit_single(data: PredictionData, calibration: LogitMap, *, members: int = MEMBERS) -> SingleHead:
    """Fit the linear heads on a bundle's own training records.

    Parameters
    ----------
    data : PredictionData
    calibration : LogitMap
        Fitted on honest scores.
    members : int
        The first on all patients, the others each on as many drawn with replacement.
    """
    probes = [fit_probe(data.features, data.gold, data.subject_ids)]
    subjects, subject_of = np.unique(data.subject_ids, return_inverse=True)
    random = np.random.default_rng(0)
    for _ in range(members - 1):
        times = np.bincount(random.integers(len(subjects), size=len(subjects)), minlength=len(subjects))[subject_of]
        rows = np.repeat(np.arange(len(data)), times)
        drawn = data.subject_ids[rows]
        probes.append(fit_probe(data.features[rows], data.gold[rows], drawn, penalties=(probes[0].penalty,)))
    weights, biases = zip(*map(_unscaled, probes), strict=True)
    return SingleHead(np.stack(weights), np.stack(biases), calibration)


def fit_embedding(data: PredictionData) -> EmbeddingHead:
    """Fit log-odds of stored embeddings on a bundle's own training records."""
    return EmbeddingHead(*_unscaled(fit_probe(data.embedding, data.gold, data.subject_ids)))


@dataclass(frozen=True)
class Evidence:
    """The heads that say how much a score, a vote and a history are worth.

    Attributes
    ----------
    calibration : LogitMap
    vitals : VitalsHead
    cohort : CohortHead
    history : HistoryHead
    superclass : SuperclassHead
    """

    calibration: LogitMap
    vitals: VitalsHead
    cohort: CohortHead
    history: HistoryHead
    superclass: SuperclassHead

    def apply(self, honest: HonestScores, rows: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return log-odds with history, without and with the vote: each float64, shape (rows, labels)."""
        alone = self.vitals.apply(self.calibration.apply(honest.logits[rows]), honest.data.vitals[rows])
        joined = self.cohort.apply(alone, honest.votes[rows])
        alone, joined = (_add_histories(honest, rows, logits, self.history) for logits in (alone, joined))
        return self.superclass.apply(alone), self.superclass.apply(joined)


def fit_evidence(honest: HonestScores, rows: NDArray[np.int64], recipe: HistoryRecipe | None = None) -> Evidence:
    """Fit them on some of the honest records, as if there were no others.

    The history head sees each record with a history several times: with the vote, without, with the earlier labels
    alone, with the earlier embeddings alone; and, so that there is more to learn from, records with the patient's
    *later* studies as if they were earlier. Beside them histories of other patients (:attr:`HistoryRecipe.wrong`).

    Parameters
    ----------
    honest : HonestScores
    rows : int64, shape (n,)
        Whole patients.
    recipe : HistoryRecipe, optional
    """
    honest = honest.take(rows)
    mirrored = time_reversed(honest)
    gold = honest.data.gold
    calibration = fit_logit_map(honest.logits, gold)
    alone = calibration.apply(honest.logits)
    rates = np.broadcast_to(logit(prevalence(honest.data)), gold.shape)
    vitals = VitalsHead(*(fit_vitals(base, honest.data.vitals, gold) for base in (alone, rates)))
    alone = vitals.apply(alone, honest.data.vitals)
    cohort = fit_cohort(alone, honest.votes, gold)
    joined = cohort.apply(alone, honest.votes)
    own, later = with_history(honest), with_history(mirrored)
    queries, others = strangers(honest, own)
    everything: dict[str, bool] = {}
    variants = [
        (honest, own, own, joined, everything),
        (honest, own, own, alone, everything),
        (honest, own, own, joined, {"embeddings": False}),
        (honest, own, own, joined, {"labels": False}),
        (mirrored, later, later, joined, everything),
        (honest, queries, others, joined, everything),
    ]
    parts: list[HistoryPart] = []
    for source, who, whose, scores, knobs in variants:
        for at, tokens in _tokens(source, who, whose, scores[who], **knobs):
            parts.append(HistoryPart(tokens, scores[who[at]], gold[who[at]], who is whose))
    history = fit_history(parts, recipe)
    routes = [_add_histories(honest, np.arange(len(gold)), logits, history) for logits in (alone, joined)]
    superclass = fit_superclass(np.concatenate(routes), np.concatenate([gold, gold]), honest.data.labels)
    return Evidence(calibration, vitals, cohort, history, superclass)


def _add_histories(
    honest: HonestScores, rows: NDArray[np.int64], logits: NDArray[np.float64], head: HistoryHead
) -> NDArray[np.float64]:
    found = logits.copy()
    for part, tokens in _tokens(honest, rows, rows, found):
        found[part] = head.apply(logits[part], tokens).logits
    return found


def with_history(honest: HonestScores) -> NDArray[np.int64]:
    """Return the rows of the records that have an earlier study."""
    return np.flatnonzero([bool(earlier) for earlier in honest.earlier])


def time_reversed(honest: HonestScores) -> HonestScores:
    """Return the records with time running backwards, for fitting alone: later studies become earlier ones."""
    since = pl.col("acquired_at") - datetime(1970, 1, 1)
    table = honest.data.table.with_columns(acquired_at=datetime(1970, 1, 1) - since)
    return replace(honest, data=replace(honest.data, table=table))


def strangers(
    honest: HonestScores, rows: NDArray[np.int64], *, times: int = 2, seed: int = 0
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pair records with the history of another patient that the same bundle left out.

    Returns
    -------
    rows, owners : int64, shape (pairs,)
        Each record ``times`` times, less the pairs of one patient; and the record whose history it gets.
    """
    random = np.random.default_rng(seed)
    queries = np.tile(rows, times)
    owners = queries.copy()
    for part in np.unique(honest.part[rows]):
        owners[honest.part[queries] == part] = random.choice(
            rows[honest.part[rows] == part], int((honest.part[queries] == part).sum())
        )
    subjects = honest.data.subject_ids
    different = subjects[queries] != subjects[owners]
    return queries[different], owners[different]


def _tokens(
    honest: HonestScores,
    rows: NDArray[np.int64],
    owners: NDArray[np.int64],
    logits: NDArray[np.float64],
    *,
    labels: bool = True,
    embeddings: bool = True,
) -> Iterator[tuple[NDArray[np.int64], HistoryTokens]]:
    """Yield for each bundle which of ``rows`` have a history that it left out, and their tokens."""
    found = np.array([len(honest.earlier[owner]) for owner in owners], np.int64)
    for part, reader in enumerate(honest.readers):
        at = np.flatnonzero((found > 0) & (honest.part[rows] == part))
        if not len(at):
            continue
        priors = history_of(
            honest.data, honest.earlier, rows=rows[at], owners=owners[at], labels=labels, embeddings=embeddings
        )
        embedding = honest.data.embedding[rows[at]]
        yield at, build_tokens(logits[at], embedding, priors, found[at].tolist(), reader, prevalence(honest.data))


def prevalence(data: PredictionData) -> NDArray[np.float32]:
    """Return the share of the records that list each label: float32, shape (labels,)."""
    return np.asarray(data.gold.mean(axis=0), np.float32)


def fit_confidence(honest: HonestScores, *, recipe: HistoryRecipe | None = None) -> Confidence:
    """Fit intervals, sets and ranks on log-odds of evidence heads that have not seen the patients either."""
    group = subject_groups(honest.data.subject_ids, GROUPS)
    alone, joined = np.empty_like(honest.logits), np.empty_like(honest.logits)
    for one in range(GROUPS):
        rows = np.flatnonzero(group == one)
        alone[rows], joined[rows] = fit_evidence(honest, np.flatnonzero(group != one), recipe).apply(honest, rows)
    priors = history_of(honest.data, honest.earlier)
    category = last_known(priors, honest.logits.shape[1])
    return Confidence(*(fit_route(logits, honest.data.gold, category) for logits in (alone, joined)))


def fit_route(logits: NDArray[np.float64], gold: NDArray[np.bool_], category: NDArray[np.int8]) -> RouteConfidence:
    """Fit intervals, sets and ranks on log-odds, gold and :func:`last_known`, each shape (n, labels)."""
    probability = probability_of(logits)
    errors = np.minimum(probability, 1 - probability).mean(axis=1)
    uncertainty = np.quantile(errors, QUANTILES).astype(np.float32)
    return RouteConfidence(fit_venn_abers(logits, gold), fit_conformal(logits, gold, category), uncertainty)


def fit_heads(
    fingerprint: str,
    data: PredictionData,
    honest: HonestScores,
    novelty: NoveltyDetector,
    *,
    members: int = MEMBERS,
    recipe: HistoryRecipe | None = None,
) -> PredictionHeads:
    """Fit all heads of a bundle.

    Parameters
    ----------
    fingerprint : str
        Of the bundle.
    data : PredictionData
        Records that it was trained on, encoded by it.
    honest : HonestScores
        Of the same records, by bundles that left folds out.
    novelty : NoveltyDetector
    members : int
    recipe : HistoryRecipe, optional
    """
    evidence = fit_evidence(honest, np.arange(len(honest.data)), recipe)
    return PredictionHeads(
        fingerprint=fingerprint,
        labels=data.labels,
        prevalence=prevalence(data),
        single=fit_single(data, evidence.calibration, members=members),
        embedding=fit_embedding(data),
        vitals=evidence.vitals,
        cohort=evidence.cohort,
        history=evidence.history,
        confidence=fit_confidence(honest, recipe=recipe),
        novelty=novelty,
        age=fit_age(data, honest.age_error),
        superclass=evidence.superclass,
    )


def _unscaled(probe: Probe) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return weight and bias for inputs that are not standardised."""
    weight = probe.weight / probe.scale[:, None]
    return weight, probe.bias - probe.mean @ weight
