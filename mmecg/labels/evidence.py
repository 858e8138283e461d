"""What the words of a report mean for each label: probabilities learnt on gold, one cue and phrase at a time.

A report is described by its assertions alone, never by its raw words. Each assertion gives a chain of features from
general to specific (finding; with status; with cue; with language; the very rule with its cue). One logistic
regression a label adds the weights of all features of a report. As every weight is drawn towards zero, a rare phrase
keeps what its parents say, and departs from it as far as its own records carry. Findings said beside a label count as
well, and a report in which nothing was found has a feature of its own.

A *mention* has a probability of its own: how often the finding is gold where it is said in this way, drawn towards the
rate of the next more general way where few records say it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmecg.labels.assertion import LabelAssertion, Status, main_language
from mmecg.labels.logistic import expit, f1_thresholds, fit_held_out

PENALTY = 3.0
MIN_REPORTS = 3
"""A feature of fewer training reports is left out."""

MENTION_PRIOR = 10.0
"""Weight of the more general rate in a mention's probability, in records."""

DENIED = frozenset({Status.NEGATED, Status.SERIAL, Status.HISTORICAL, Status.CONDITIONAL})
"""Statuses in which a mention does not say that the finding is there."""

Reports = Sequence[Sequence[LabelAssertion]]


@dataclass(frozen=True)
class TextEvidence:
    """Weights of the features of a report for every label.

    Attributes
    ----------
    labels : tuple of str
    features : tuple of str
        Sorted.
    weight : float32, shape (features, labels)
    bias : float32, shape (labels,)
    thresholds : float32, shape (labels,)
        Log-odds from which on a label is decided present; chosen for F1 on held-out training folds.
    mentions : mapping of str to float
        Way of speaking to the rate at which the finding is gold.
    """

    labels: tuple[str, ...]
    features: tuple[str, ...]
    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    thresholds: NDArray[np.float32]
    mentions: Mapping[str, float]

    def log_odds(self, reports: Reports) -> NDArray[np.float32]:
        """Return the log-odds of every label from each report's assertions: float32, shape (n, labels)."""
        return np.asarray(feature_matrix(reports, self.features) @ self.weight + self.bias, np.float32)

    def probabilities(self, reports: Reports) -> NDArray[np.float64]:
        """Return the probability of every label from each report's assertions: float64, shape (n, labels)."""
        return expit(self.log_odds(reports))

    def mention_probability(self, assertion: LabelAssertion) -> float | None:
        """Return how often a finding is gold where a report speaks of it in this way; None for one without gold.

        A way of speaking that no training report used has the rate of the next more general one that some did.
        """
        if assertion.finding not in self.labels:
            return None
        return next(self.mentions[way] for way in (*_ways(assertion), "") if way in self.mentions)


@dataclass(frozen=True)
class FittedText:
    """Fitted weights, and what they say of the training reports while those were held out.

    Attributes
    ----------
    evidence : TextEvidence
    held_out : float32, shape (n, labels)
        Log-odds of each training report from weights that were fitted without its group.
    """

    evidence: TextEvidence
    held_out: NDArray[np.float32]


def fit_text_evidence(
    reports: Reports,
    gold: NDArray[np.bool_],
    labels: Sequence[str],
    groups: NDArray[np.generic],
    *,
    penalty: float = PENALTY,
) -> FittedText:
    """Learn what words mean from reports with gold labels.

    Parameters
    ----------
    reports : sequence of sequence of LabelAssertion, length n
    gold : bool, shape (n, labels)
    labels : sequence of str
    groups : shape (n,)
        Held out one at a time for the thresholds; all records of a patient must share one.
    penalty : float

    Raises
    ------
    InvalidInputError
        There are fewer than two groups.
    """
    features = _common_features(reports)
    weight, bias, held_out = fit_held_out(feature_matrix(reports, features), gold, groups, penalty=penalty)
    thresholds = f1_thresholds(held_out, gold)
    mentions = mention_rates(reports, gold, labels)
    return FittedText(TextEvidence(tuple(labels), features, weight, bias, thresholds, mentions), held_out)


def mention_scores(reports: Reports, labels: Sequence[str]) -> dict[str, NDArray[np.float32]]:
    """Return what the rules say without any gold: how each label is spoken of.

    Returns
    -------
    mapping of {"stated", "doubted", "denied"} to float32, shape (n, labels)
        1 where a mention speaks of the label so, else 0. They may serve as channels of a stack.
    """
    place = {label: index for index, label in enumerate(labels)}
    found = {name: np.zeros((len(reports), len(labels)), np.float32) for name in ("stated", "doubted", "denied")}
    for row, report in enumerate(reports):
        for item in report:
            if item.finding in place:
                kind = "stated" if item.status is Status.PRESENT else "denied" if item.status in DENIED else "doubted"
                found[kind][row, place[item.finding]] = 1
    return found


def mentioned(reports: Reports, labels: Sequence[str]) -> NDArray[np.bool_]:
    """Return which labels a report mentions without denying them: the rules alone, bool, shape (n, labels)."""
    said = mention_scores(reports, labels)
    return np.asarray(said["stated"] + said["doubted"] > 0)


def report_features(assertions: Sequence[LabelAssertion]) -> set[str]:
    """Return the features of one report."""
    if not assertions:
        return {"nothing found"}
    return {f"language={main_language(assertions)}", *(name for item in assertions for name in _features(item))}


def feature_matrix(reports: Reports, features: Sequence[str]) -> Any:
    """Return which report has which feature.

    Parameters
    ----------
    reports : sequence of sequence of LabelAssertion, length n
    features : sequence of str

    Returns
    -------
    scipy.sparse.csr_matrix, float32, shape (n, features)
    """
    from scipy import sparse

    column = _columns(tuple(features))
    indices: list[int] = []
    ends = [0]
    for assertions in reports:
        indices += sorted(column[name] for name in report_features(assertions) if name in column)
        ends.append(len(indices))
    shape = (len(reports), len(features))
    return sparse.csr_matrix((np.ones(len(indices), np.float32), np.array(indices, np.int32), ends), shape=shape)


def mention_rates(reports: Reports, gold: NDArray[np.bool_], labels: Sequence[str]) -> dict[str, float]:
    """Return the rate at which a mentioned finding is gold, for every way of speaking of it.

    A rate is ``(gold + 10 parent) / (mentions + 10)`` with the rate of the next more general way as ``parent``. The
    most general ways, a status alone and anything at all, have no parent: theirs is ``(gold + 1) / (mentions + 2)``,
    for what is denied must not inherit from what is stated.

    Parameters
    ----------
    reports : sequence of sequence of LabelAssertion, length n
    gold : bool, shape (n, labels)
    labels : sequence of str
    """
    column = {label: index for index, label in enumerate(labels)}
    said: Counter[str] = Counter()
    right: Counter[str] = Counter()
    parent: dict[str, str] = {}
    for row, assertions in enumerate(reports):
        for assertion in assertions:
            if assertion.finding not in column:
                continue
            ways = [*_ways(assertion), ""]
            parent.update(pairwise(ways))
            said.update(ways)
            if gold[row, column[assertion.finding]]:
                right.update(ways)
    rates: dict[str, float] = {}
    for way in sorted(said, key=lambda name: name.count("|")):
        if parent.get(way):
            rates[way] = (right[way] + MENTION_PRIOR * rates[parent[way]]) / (said[way] + MENTION_PRIOR)
        else:
            rates[way] = (right[way] + 1.0) / (said[way] + 2.0)
    return rates


@lru_cache(maxsize=4)
def _columns(features: tuple[str, ...]) -> Mapping[str, int]:
    return {name: index for index, name in enumerate(features)}


def _common_features(reports: Reports) -> tuple[str, ...]:
    counts = Counter(name for assertions in reports for name in report_features(assertions))
    return tuple(sorted(name for name, count in counts.items() if count >= MIN_REPORTS))


def _features(assertion: LabelAssertion) -> Iterable[str]:
    finding, said = assertion.finding, f"{assertion.finding} {assertion.status}"
    yield finding
    yield said
    yield f"{said} {assertion.language}"
    yield f"rule {assertion.rule}"
    if assertion.cue:
        yield f"cue {assertion.cue}"
        yield f"{finding} cue {assertion.cue}"
        yield f"rule {assertion.rule} cue {assertion.cue}"
    for kind, value in assertion.qualifiers:
        yield f"{finding} {kind}={value}"
    if assertion.age_status is not None:
        yield f"{finding} age {assertion.age_status}"
    if assertion.cause_status is not None:
        yield f"{finding} cause {assertion.cause_status}"


def _ways(assertion: LabelAssertion) -> Iterator[str]:
    """Yield the ways of speaking that a mention is one of, from specific to general."""
    said = f"{assertion.status}|{assertion.finding}"
    yield f"{said}|{assertion.cue}|{assertion.rule}"
    yield f"{said}|{assertion.cue}"
    yield said
    yield str(assertion.status)
