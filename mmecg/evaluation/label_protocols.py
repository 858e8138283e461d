"""Protocols of the label evaluation that fit something, or rank something."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mmecg.datasets.splits import subject_groups
from mmecg.evaluation.cohort import Encoded
from mmecg.evaluation.label_data import LABELS_20, LabelData
from mmecg.evaluation.label_metrics import Figure, everything_f1, f1, precision_at
from mmecg.evaluation.results import Row
from mmecg.labels.agreement import CHANNELS, ECG_CHANNELS, Scores
from mmecg.labels.evidence import mention_scores
from mmecg.labels.few_gold import fit_few_gold
from mmecg.labels.logistic import expit, f1_thresholds, fit_held_out
from mmecg.labels.review import queue_scores, suspicion
from mmecg.labels.weights import Agreement

GOLD_STUDIES = 500
DRAWS = 5
FLIPPED = 0.05
TFIDF_PENALTY = 0.2


@dataclass(frozen=True)
class System:
    """What a system says of the records.

    Attributes
    ----------
    name : str
    log_odds : float32, shape (n, labels)
    thresholds : float32, shape (labels,)
        Log-odds from which on a label is decided present.
    """

    name: str
    log_odds: NDArray[np.float32]
    thresholds: NDArray[np.float32]

    @cached_property
    def decided(self) -> NDArray[np.bool_]:
        """Which labels are decided present: bool, shape (n, labels)."""
        return np.asarray(self.log_odds >= self.thresholds)

    @cached_property
    def probability(self) -> NDArray[np.float64]:
        """Probability of every label: float64, shape (n, labels)."""
        return expit(self.log_odds)

    def take(self, rows: NDArray[np.int64]) -> System:
        """Return some of the records."""
        return System(self.name, self.log_odds[rows], self.thresholds)


@dataclass(frozen=True)
class Reading:
    """What one encoder's reader and stacks make of the records.

    Attributes
    ----------
    scores : mapping of channel to floating, shape (n, labels)
        Of text and ECG.
    ecg, both : System
        From the ECG alone, and with the text.
    """

    scores: Scores
    ecg: System
    both: System

    @classmethod
    def of(cls, agreement: Agreement, text: System, encoded: Encoded) -> Reading:
        """Read encoded records."""
        scores = {"text": text.log_odds, **agreement.reader.scores(encoded.features, encoded.embedding)}
        ecg = System("ecg", agreement.ecg.log_odds(scores), agreement.ecg.thresholds)
        return cls(scores, ecg, System("text_ecg", agreement.text_ecg.log_odds(scores), agreement.text_ecg.thresholds))


@dataclass(frozen=True)
class Given:
    """The records under test, and their resamples.

    Attributes
    ----------
    data : LabelData
    weights : float32, shape (n, resamples)
    seed : int
    """

    data: LabelData
    weights: NDArray[np.float32]
    seed: int

    def take(self, rows: NDArray[np.int64]) -> Given:
        """Return some of the records."""
        return Given(self.data.take(rows), self.weights[rows], self.seed)


def tfidf_peer(train: pl.DataFrame, data: LabelData) -> NDArray[np.bool_] | None:
    """Return what a supervised model of raw words decides: TF-IDF of one and two words, logistic regression a label.

    It sees words that no rule knows, and is no part of mmecg's labels. None without words, or
    without two training patients.

    Parameters
    ----------
    train : polars.DataFrame
        Records of the training folds, none of a test patient.
    data : LabelData
        Records to decide on.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    from mmecg.datasets.ptb_xl import label_matrix

    gold = label_matrix(train, data.labels)
    texts = train["report_text"].fill_null("").to_list()
    if not any(texts) or train["subject_id"].n_unique() < 2:
        return None
    reader = TfidfVectorizer(ngram_range=(1, 2), min_df=min(3, len(texts)), sublinear_tf=True)
    inputs = reader.fit_transform(texts)
    groups = subject_groups(train["subject_id"].to_numpy().astype(np.str_), 2)
    weight, bias, held_out = fit_held_out(inputs, gold, groups, penalty=TFIDF_PENALTY)
    found = reader.transform(data.table["report_text"].fill_null("").to_list()) @ weight + bias
    return np.asarray(found >= f1_thresholds(held_out, gold))


def few_gold(given: Given, scores: Scores, untrained: Scores | None = None) -> Row:
    """Return the row ``few_gold_500/macro_f1_20``.

    500 studies, drawn by patient, lend their gold to a stack; it is tested on the other studies of the fold. Value and
    resamples are means over five draws. ``value_rules_only`` has no text weights: what the rules say enters as it is.

    Parameters
    ----------
    given : Given
    scores, untrained : mapping of channel to floating, shape (n, labels)
        Of the bundle, and of an encoder that was never trained.
    """
    key = f"few_gold_{GOLD_STUDIES}/macro_f1_20"
    columns = given.data.columns(LABELS_20)
    gold = given.data.gold[:, columns]
    if len(gold) < 2 * GOLD_STUDIES:
        return Row.missing(key, f"the fold has {len(gold)} records, expected at least {2 * GOLD_STUDIES}")
    said = {name: values[:, columns] for name, values in mention_scores(given.data.reports, given.data.labels).items()}
    ecg = {name: scores[name][:, columns] for name in ECG_CHANNELS}
    variants = {
        "value": {name: scores[name][:, columns] for name in CHANNELS},
        "rules_only": {**said, **ecg},
        "text": {"text": scores["text"][:, columns]},
    }
    if untrained is not None:
        variants["random_encoder"] = {name: untrained[name][:, columns] for name in CHANNELS}
    figures: dict[str, list[Figure]] = {name: [] for name in variants}
    for draw in range(DRAWS):
        known = _draw(given.data.subject_ids, given.seed + draw)
        rest = ~known
        for name, channels in variants.items():
            mode = fit_few_gold({k: v[known] for k, v in channels.items()}, gold[known], LABELS_20)
            found = mode.stack.decided({k: v[rest] for k, v in channels.items()})
            figures[name].append(f1(gold[rest], found, given.weights[rest])[0])
    means = {name: float(np.mean([figure.value for figure in found])) for name, found in figures.items()}
    samples = np.mean([figure.samples for figure in figures["value"]], axis=0)
    spread = float(np.std([figure.value for figure in figures["value"]]))
    peers = {name: value for name, value in means.items() if name in ("text", "random_encoder")}
    baselines = {"prevalence": everything_f1(gold)[0], **peers}
    extra = {"draws": DRAWS, "std_over_draws": spread, "value_rules_only": means["rules_only"]}
    return Figure(means["value"], samples).row(key, len(gold) - GOLD_STUDIES, baselines, **extra)


def _draw(subject_ids: NDArray[np.str_], seed: int) -> NDArray[np.bool_]:
    """Mark all records of random patients, so many that there are at least 500 records."""
    patients, patient_of = np.unique(subject_ids, return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(patients))
    counts = np.bincount(patient_of)[order]
    chosen = order[: int(np.searchsorted(np.cumsum(counts), GOLD_STUDIES)) + 1]
    return np.isin(patient_of, chosen)


def disagreement(given: Given, text: System, readings: Mapping[str, Reading]) -> list[Row]:
    """Return the rows ``disagreement/*``: true label errors among the hundred most doubtful labels.

    ``simulated_flips``: 5 % of the positive gold labels of the 20 codes are taken away and as many are added where
    there is none; an error is a flipped label. ``mined_labels``: the labels are what the rules find in the text, the
    queue (:func:`mmecg.labels.review.queue_scores`) holds those that the ECG decides otherwise, and an error is one
    that differs from gold validated by a human. The headline is the lower of the two.

    Parameters
    ----------
    given : Given
    text : System
    readings : mapping of str to Reading
        The first is under test, the others are baselines.
    """
    rows = []
    for name, queue_of in (("simulated_flips", _flipped_labels), ("mined_labels", _mined_labels)):
        queues = {who: queue_of(given, text, reading) for who, reading in readings.items()}
        rows.append(_queue_row(f"disagreement/precision_at_100/{name}", queues))
    lower = min(rows, key=lambda row: row.value)
    return [replace(lower, key="disagreement/precision_at_100", extra={"lower_of": [row.key for row in rows]}), *rows]


@dataclass(frozen=True)
class _Queue:
    """Labels by how doubtful they are (-1: not in the queue), which are wrong, and resamples of the records."""

    doubt: NDArray[np.float64]
    wrong: NDArray[np.bool_]
    weights: NDArray[np.float32]

    @property
    def listed(self) -> NDArray[np.bool_]:
        return np.asarray(self.doubt >= 0)

    def precision(self) -> Figure:
        return precision_at(self.doubt, self.wrong & self.listed, self.weights)


def _queue_row(key: str, queues: Mapping[str, _Queue]) -> Row:
    queue, *others = queues.values()
    if not len(queue.doubt):
        return Row.missing(key, "no record is validated by a human")
    chance = float(queue.wrong[queue.listed].mean()) if queue.listed.any() else 0.0
    peers = {who: other.precision().value for who, other in zip(list(queues)[1:], others, strict=True)}
    extra = {"queue": int(queue.listed.sum()), "errors": int(queue.wrong.sum())}
    return queue.precision().row(key, len(queue.doubt), {"prevalence": chance, **peers}, **extra)


def _flipped_labels(given: Given, text: System, reading: Reading) -> _Queue:
    columns = given.data.columns(LABELS_20)
    gold = given.data.gold[:, columns]
    flipped = _flip(gold, given.seed)
    return _Queue(suspicion(gold ^ flipped, reading.both.probability[:, columns]), flipped, given.weights)


def _mined_labels(given: Given, text: System, reading: Reading) -> _Queue:
    human = np.flatnonzero(given.data.table["validated_by_human"].fill_null(False).to_numpy())
    at = np.ix_(human, given.data.columns(LABELS_20))
    mined = given.data.mentioned[at]
    doubt = queue_scores(mined, text.decided[at], reading.ecg.decided[at], reading.both.probability[at])
    return _Queue(doubt, mined != given.data.gold[at], given.weights[human])


def _flip(gold: NDArray[np.bool_], seed: int) -> NDArray[np.bool_]:
    """Return which labels to flip: 5 % of the positives of each code, and as many of its negatives."""
    rng = np.random.default_rng(seed)
    flipped = np.zeros(gold.shape, np.bool_)
    for column in range(gold.shape[1]):
        there, absent = (np.flatnonzero(gold[:, column] == value) for value in (True, False))
        count = min(round(FLIPPED * len(there)), len(absent))
        for rows in (there, absent):
            flipped[rng.permutation(rows)[:count], column] = True
    return flipped
