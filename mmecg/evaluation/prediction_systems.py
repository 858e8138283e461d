"""From heads and studies to log-odds of every system: with history, without, with parts of it, and the controls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mmecg.datasets.ptb_xl import study_of_row
from mmecg.evaluation.bootstrap import patient_weights
from mmecg.evaluation.prediction_cases import Cases, subject_rates
from mmecg.evaluation.prediction_data import PredictionData, history_of, priors_of
from mmecg.evaluation.prediction_history import (
    carry_forward,
    other_owners,
    reordered,
    shuffled,
)
from mmecg.neighbours import knn_scores
from mmecg.prediction.heads import PredictionHeads
from mmecg.prediction.history import Prior, build_tokens, last_known
from mmecg.prediction.known import KnownLabels

Logits = NDArray[np.float64]
WithHistory = Callable[[NDArray[np.int64], Sequence[Sequence[Prior]]], Logits]
"""From rows of the data and their histories (latest first) to log-odds: float64, shape (rows, labels)."""


@dataclass(frozen=True)
class Current:
    """Log-odds without history.

    Attributes
    ----------
    ecg, single, current : float64, shape (n, labels)
        Of the current ECG alone, with the votes of other patients' studies, and with the patient's vitals as well;
        superclasses are not yet joined with their statements.
    """

    ecg: Logits
    single: Logits
    current: Logits


def current_of(data: PredictionData, corpus: PredictionData | None, heads: PredictionHeads) -> Current:
    """Return log-odds without history; without a corpus of enough studies nobody votes.

    Parameters
    ----------
    data : PredictionData
    corpus : PredictionData, optional
        Labelled studies of other patients.
    heads : PredictionHeads
    """
    ecg, _ = heads.single.logits(data.features)
    with_vitals = heads.vitals.apply(ecg, data.vitals)
    if corpus is None or len(corpus) < heads.cohort.minimum_studies:
        return Current(ecg, ecg, with_vitals)
    votes = knn_scores(data.embedding, corpus.embedding, corpus.gold, k=heads.cohort.k)
    single, current = (heads.cohort.apply(logits, votes, len(corpus)) for logits in (ecg, with_vitals))
    return Current(ecg, single, current)


def with_history(data: PredictionData, logits: Logits, heads: PredictionHeads) -> WithHistory:
    """Return what adds histories to log-odds, by the heads of a bundle."""

    def apply(rows: NDArray[np.int64], histories: Sequence[Sequence[Prior]]) -> Logits:
        found = [len(history) for history in histories]
        tokens = build_tokens(logits[rows], data.embedding[rows], histories, found, heads.embedding, heads.prevalence)
        return heads.history.apply(logits[rows], tokens).logits

    return apply


@dataclass(frozen=True)
class Tested:
    """Cases with every system, and the history categories that conformal sets need.

    Attributes
    ----------
    cases : Cases
    category : int8, shape (n, labels)
        Of :func:`mmecg.prediction.history.last_known`.
    """

    cases: Cases
    category: NDArray[np.int8]


def systems_of(
    data: PredictionData,
    current: Current,
    add: WithHistory,
    *,
    add_to_ecg: WithHistory | None = None,
    finish: Callable[[Logits], Logits],
    counted: Logits | None = None,
    others: Mapping[str, Logits] | None = None,
    resamples: int,
    seed: int,
) -> Tested:
    """Return the log-odds of every system on the studies.

    Parameters
    ----------
    data : PredictionData
    current : Current
    add : callable
        Adds a history to ``current.current``.
    add_to_ecg : callable, optional
        Adds a history to ``current.ecg``.
    finish : callable
        Joins the superclasses with their statements, in log-odds of all studies.
    counted : float64, shape (n, labels), optional
        Log-odds of the count-only control (:func:`mmecg.evaluation.prediction_history.fit_count`).
    others : mapping of str to float64, shape (n, labels)
        Further systems, such as the random encoder's.
    resamples, seed : int
    """
    earlier = priors_of(data)
    priors = np.array([len(rows) for rows in earlier], np.int64)
    gap = np.array([data.days[row] - data.days[rows[-1]] if rows else np.nan for row, rows in enumerate(earlier)])
    followed = np.flatnonzero(priors > 0)
    own = history_of(data, earlier, rows=followed)
    systems: dict[str, Logits] = {name: finish(logits) for name, logits in vars(current).items()}
    systems |= others or {}

    def record(name: str, logits: Logits, base: Logits = current.current) -> None:
        everyone = np.array(base)
        everyone[followed] = logits
        systems[name] = finish(everyone)

    record("history", add(followed, own))
    if len(followed):
        for name, histories in _variants(data, earlier, followed, own, seed=seed).items():
            record(name, add(followed, histories))
        systems["control_carry_forward"] = systems["current"].copy()
        systems["control_carry_forward"][followed] = carry_forward(own, subject_rates(data.gold))
        if counted is not None:
            record("control_count_only", counted[followed])
        if add_to_ecg is not None:
            record("no_cohort", add_to_ecg(followed, own), current.ecg)
    category = np.zeros(data.gold.shape, np.int8)
    category[followed] = last_known(own, data.gold.shape[1])
    weights = patient_weights(data.subject_ids, resamples=resamples, seed=seed)
    return Tested(Cases(data.table, data.labels, data.gold, weights, priors, gap, systems, seed), category)


def _variants(
    data: PredictionData,
    earlier: Sequence[Sequence[int]],
    followed: NDArray[np.int64],
    own: Sequence[Sequence[Prior]],
    *,
    seed: int,
) -> dict[str, Sequence[Sequence[Prior]]]:
    """Return parts of the histories of the followed studies, and wrong histories."""
    owners = followed[other_owners(data.subject_ids[followed], seed=seed)]
    return {
        "control_shuffled": shuffled(own, seed=seed),
        "control_other_patient": history_of(data, earlier, rows=followed, owners=owners),
        "reordered": reordered(own, seed=seed),
        "labels_only": history_of(data, earlier, rows=followed, embeddings=False),
        "embeddings_only": history_of(data, earlier, rows=followed, labels=False),
        "reports_only": from_reports(data, own),
    }


def from_reports(data: PredictionData, histories: Sequence[Sequence[Prior]]) -> list[list[Prior]]:
    """Return the histories with what their reports say in the place of their labels; the ECGs stay."""
    known = KnownLabels(data.labels, None)
    row_of = {study: row for row, study in enumerate(data.study_ids.tolist())}
    found: dict[str, NDArray[np.float32]] = {}
    for history in histories:
        for prior in history:
            if prior.study_id not in found:
                study = study_of_row(data.table.row(row_of[prior.study_id], named=True))
                found[prior.study_id] = known.of(replace(study, labels={}))[1]
    return [
        [replace(prior, known=found[prior.study_id], source="report") for prior in history] for history in histories
    ]
