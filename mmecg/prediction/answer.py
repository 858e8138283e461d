"""From log-odds to the values of an answer: decisions, evidence, uncertainty, and whether to abstain."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np
from numpy.typing import NDArray

from mmecg.ecg import Ecg
from mmecg.prediction.asked import AskedLabel
from mmecg.prediction.calibration import probability_of, shift_prevalence
from mmecg.prediction.history import HistoryEffect, Prior
from mmecg.prediction.result import Decision, LabelPrediction, NeighbourEvidence, PriorEvidence
from mmecg.prediction.superclass import SuperclassHead
from mmecg.prediction.vote import Vote
from mmecg.quality import QualityFinding

MOVED = 0.005
"""Probability from which on an earlier study is said to have moved a label."""

MOST_MOVED = 8
CALIBRATED_S = (9.5, 10.5)
"""Seconds of a recording that the calibration is for: the 10 s of PTB-XL, give or take a device's rounding."""

NOT_POOR = 0.5
"""Share of the recorded leads that may be flat, saturated or noisy before the prediction abstains."""

_POOR = frozenset({"flat", "saturated", "noise"})
_NO_ECG = "no_ecg"


@dataclass(frozen=True)
class Scores:
    """What the heads give for one study; everything is shape (labels,).

    Attributes
    ----------
    alone, joined : float64, log-odds
        Without and with the history.
    spread : float64
        Standard deviation of the ensemble's log-odds.
    low, high : float64
        Venn-Abers interval of ``joined``.
    sets : bool, shape (labels, 2)
        Whether the conformal set holds absent, and present.
    absent_of : mapping of int to bool, shape (labels,)
        Whether the set holds absent at the level that so many labels need for a promise together (:func:`join_level`).
    trained, site : floating
        Prevalence in calibration and at the caller's site (NaN: the same).
    superclass : SuperclassHead, optional
        Keeps superclasses at least as likely as their statements where a prevalence shifts them.
    """

    alone: NDArray[np.float64]
    joined: NDArray[np.float64]
    spread: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    sets: NDArray[np.bool_]
    trained: NDArray[np.floating]
    site: NDArray[np.float64]
    superclass: SuperclassHead
    absent_of: Mapping[int, NDArray[np.bool_]] = field(default_factory=dict)


def join_level(level: float, count: int) -> float:
    """Return the level that each of several labels needs for a promise of all of them: Bonferroni's, at most 0.99."""
    return min(max(level, 0.99), 1 - (1 - level) / count)


def predict_labels(
    asked: Sequence[AskedLabel], scores: Scores, missing: Mapping[int, str], *, has_ecg: bool
) -> tuple[tuple[LabelPrediction, ...], tuple[int, ...]]:
    """Return the prediction of each label, and the column that answered it (the likeliest of several).

    A label of several heads is there if any of them is, taken as independent: on fold 8, mean of 13 findings with 10
    positives, that had a log loss of 0.108 and a calibration error of 0.009, the likeliest alone 0.111 and 0.013, the
    sum 0.120 and 0.010. Its interval reaches from the highest lower end to the upper ends joined likewise. Its set has
    *present* if one of the heads' does, and *absent* if all do, at the level that they need together: of the same
    findings 95 % of the present and 93 % of the absent ones were covered at 90 % (by the set of the likeliest head 91
    and 83 %). What the recording does not support of it may be there, so that *absent* alone is not concluded.

    A prevalence at the caller's site shifts probabilities and intervals; the conformal sets, which hold for each class
    by itself, stay.

    Parameters
    ----------
    asked : sequence of AskedLabel
    scores : Scores
    missing : mapping of int to str
        Columns that the recording does not support, and why.
    has_ecg : bool
    """
    every = [scores.alone, scores.joined, _logit(scores.low), _logit(scores.high)]
    # Plain numbers from here on: a NumPy scalar at a time would cost more than all heads together.
    shifted = scores.superclass.at_least(shift_prevalence(np.stack(every), scores.trained, scores.site))
    alone, joined, low, high = probability_of(shifted).tolist()
    sets, spread = scores.sets.tolist(), scores.spread.tolist()
    predicted, columns = [], []
    for one in asked:
        usable = [column for column in one.columns if column not in missing]
        column = max(usable or one.columns, key=lambda at: joined[at])
        columns.append(column)
        if not usable:
            predicted.append(_unsupported(one.label, missing[column]))
            continue
        probability = _any_of(joined, usable)
        present = len(usable) < len(one.columns) or any(sets[at][True] for at in usable)
        absent = all(sets[at][False] for at in usable)
        if len(usable) > 1:
            absent = bool(scores.absent_of[len(usable)][usable].all())
        held = tuple(value for value, there in ((True, present), (False, absent)) if there)
        decision, reason = decide(probability, held) if has_ecg else ("undecided", _NO_ECG)
        predicted.append(
            LabelPrediction(
                label=one.label,
                probability=probability,
                low=min(max(low[at] for at in usable), probability),
                high=max(_any_of(high, usable), probability),
                single=_any_of(alone, usable),
                spread=spread[column],
                conformal_set=held,
                decision=decision,
                reason=reason,
            )
        )
    return tuple(predicted), tuple(columns)


def _any_of(probabilities: Sequence[float], columns: Sequence[int]) -> float:
    """Return the probability that any of several labels is there, taken as independent."""
    if len(columns) == 1:
        return probabilities[columns[0]]
    return 1 - prod(1 - probabilities[at] for at in columns)


def decide(probability: float, held: tuple[bool, ...]) -> tuple[Decision, str]:
    """Return the decision that a conformal set allows, and why it is none.

    A set of one value decides only if that value is also the likelier one: the sets cover each class by itself, so of
    a rare label one study in ten without it may have a set of ``present`` alone, at a probability of a few per cent.
    """
    if len(held) == 2:
        return "undecided", "both values fit at the promised level"
    if not held:
        return "undecided", "neither value fits at the promised level"
    if held[0] != (probability >= 0.5):
        return "undecided", "the one value that fits at the promised level is the less likely one"
    return ("present", "") if held[0] else ("absent", "")


def prior_evidence(
    asked: Sequence[AskedLabel],
    columns: Sequence[int],
    priors: Sequence[Prior],
    history: HistoryEffect,
    embedding: NDArray[np.float32],
    missing: Container[int] = (),
) -> tuple[PriorEvidence, ...]:
    """Return the earlier studies as evidence, latest first.

    Parameters
    ----------
    asked : sequence of AskedLabel
    columns : sequence of int
        That answered them.
    priors : sequence of Prior
    history : HistoryEffect
        Of this study alone.
    embedding : float32, shape (dim,)
        Of the study that is predicted; NaN without an ECG.
    missing : container of int
        Columns that the recording does not support: what moved them is not told.
    """
    found = []
    names, answered = [one.label for one in asked], list(columns)
    weights, effects = history.share[0][:, answered].mean(axis=1), history.effect[0][:, answered]
    logits = history.logits[0, answered]
    moved = np.abs(probability_of(logits) - probability_of(logits - effects))
    moved[:, [column in missing for column in answered]] = 0.0
    strongest = np.argsort(-moved, axis=1, kind="stable")[:, :MOST_MOVED]
    for place, prior in enumerate(priors):
        found.append(
            PriorEvidence(
                study_id=prior.study_id,
                days_before=prior.days_before,
                source=prior.source,
                similarity=float("nan") if prior.embedding is None else float(prior.embedding @ embedding),
                weight=float(weights[place]),
                effects={names[at]: float(effects[place, at]) for at in strongest[place] if moved[place, at] >= MOVED},
            )
        )
    return tuple(found)


def neighbour_evidence(
    asked: Sequence[AskedLabel], columns: Sequence[int], vote: Vote | None
) -> tuple[NeighbourEvidence, ...]:
    """Return the studies that voted, nearest first, with what they voted for among the labels asked for."""
    if vote is None:
        return ()
    labels: list[list[str]] = [[] for _ in vote.study_ids]
    for row, at in np.argwhere(vote.values[:, list(columns)] >= 0.5).tolist():
        labels[row].append(asked[at].label)
    return tuple(
        NeighbourEvidence(study_id=study_id, score=score, weight=weight, labels=tuple(held))
        for study_id, score, weight, held in zip(
            vote.study_ids, vote.scores.tolist(), vote.weights.tolist(), labels, strict=True
        )
    )


def expected_errors(logits: NDArray[np.float64], missing: Mapping[int, str]) -> float:
    """Return the mean over the supported labels of the smaller of probability and its complement."""
    chance = probability_of(-np.abs(logits))
    kept = [column for column in range(len(chance)) if column not in missing]
    return float(chance[kept].mean()) if kept else 0.5


def rank_among(value: float, quantiles: NDArray[np.float32]) -> float:
    """Return the share of calibration studies that were surer."""
    return float(np.searchsorted(quantiles, value, side="left") / len(quantiles))


def is_poor(ecg: Ecg, quality: Sequence[QualityFinding]) -> bool:
    """Return whether more than half of the recorded leads are flat, saturated or noisy (:mod:`mmecg.quality`)."""
    return len(poor_leads(quality)) > NOT_POOR * len(ecg.leads)


def poor_leads(quality: Sequence[QualityFinding]) -> frozenset[str]:
    """Return the leads that are flat, saturated or noisy."""
    return frozenset(lead for finding in quality if finding.kind in _POOR for lead in finding.leads)


def is_calibrated_for(ecg: Ecg) -> bool:
    """Return whether a recording is what the calibration is for: 12 leads of 10 s."""
    return bool(ecg.lead_mask.all()) and CALIBRATED_S[0] <= ecg.duration_s <= CALIBRATED_S[1]


def _unsupported(label: str, reason: str) -> LabelPrediction:
    nothing = float("nan")
    return LabelPrediction(
        label=label,
        probability=nothing,
        low=nothing,
        high=nothing,
        single=nothing,
        spread=nothing,
        conformal_set=(),
        decision="not_supported",
        reason=reason,
    )


def _logit(share: NDArray[np.float64]) -> NDArray[np.float64]:
    safe = np.clip(share, 1e-12, 1 - 1e-12)
    return np.asarray(np.log(safe) - np.log1p(-safe))
