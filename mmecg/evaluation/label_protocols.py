"""Protocols of the label evaluation that fit something, or rank something."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mmecg.datasets.splits import subject_groups
from mmecg.evaluation.label_data import LABELS_20, LabelData
from mmecg.evaluation.label_metrics import Figure, everything_f1, f1, precision_at
from mmecg.evaluation.results import Row
from mmecg.labels.agreement import CHANNELS, ECG_CHANNELS
from mmecg.labels.evidence import mention_scores
from mmecg.labels.few_gold import fit_few_gold
from mmecg.labels.logistic import expit, f1_thresholds, fit_held_out
from mmecg.labels.review import suspicion

GOLD_STUDIES = 500
DRAWS = 5
FLIPPED = 0.05
TFIDF_PENALTY = 0.2
MIN_PU_POSITIVES = 400
"""With 8 % of them labelled, a code needs so many."""


@dataclass(frozen=True)
class System:
    """What a system says of the records.

    Attributes
    ----------
    name : str
    log_odds : float32, shape (n, labels)
    decided : bool, shape (n, labels)
    """

    name: str
    log_odds: NDArray[np.float32]
    decided: NDArray[np.bool_]

    def take(self, rows: NDArray[np.int64]) -> System:
        """Return some of the records."""
        return System(self.name, self.log_odds[rows], self.decided[rows])


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


def positive_unlabelled(train: pl.DataFrame, given: Given) -> list[Row]:
    """Return the rows ``pu/f1_share_of_oracle/*``: what is left of F1 if most positives are not labelled.

    Features are the 100 leading components of TF-IDF of the reports. Of the training positives of each of the 20 codes
    20 % keep their label (``0.2``), or 8 to 32 % depending on the code (``0.2/label_dependent``); frequency and prior
    are estimated. The value is the F1 at probability 0.5 as a share of that of the same model on all labels. The
    baseline takes the unlabelled as negative. There is no interval: the share is that of one fit.
    """
    from mmecg.datasets.ptb_xl import label_matrix
    from mmecg.labels.positive_unlabelled import simulate_positive_unlabelled

    columns = given.data.columns(LABELS_20)
    gold = label_matrix(train, LABELS_20)
    keys = {"pu/f1_share_of_oracle/0.2": np.full(len(LABELS_20), 0.2)}
    keys["pu/f1_share_of_oracle/0.2/label_dependent"] = np.geomspace(0.08, 0.32, len(LABELS_20))[::-1]
    if not len(gold) or gold.sum(axis=0).min() < MIN_PU_POSITIVES:
        why = f"a code has fewer than {MIN_PU_POSITIVES} positives in the training folds; give a folder that has them"
        return [Row.missing(key, why) for key in keys]
    features, tested = _text_components(train, given.data)
    rows = []
    for key, frequency in keys.items():
        found = simulate_positive_unlabelled(
            features, gold, tested, given.data.gold[:, columns], train["subject_id"].to_list(), frequency.tolist(),
            given.seed,
        )  # fmt: skip
        baselines = {"naive_negative": found["f1_naive"] / found["f1_oracle"]}
        rows.append(Row(key, found["f1_share_of_oracle"], np.nan, np.nan, len(tested), baselines, found))
    return rows


def _text_components(train: pl.DataFrame, data: LabelData) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    reader = TfidfVectorizer(ngram_range=(1, 2), min_df=5, sublinear_tf=True)
    reduce = TruncatedSVD(100, random_state=0)
    known = reduce.fit_transform(reader.fit_transform(train["report_text"].fill_null("").to_list()))
    fresh = reduce.transform(reader.transform(data.table["report_text"].fill_null("").to_list()))
    return known.astype(np.float32), fresh.astype(np.float32)


def few_gold(given: Given, scores: Mapping[str, NDArray[np.floating]]) -> Row:
    """Return the row ``few_gold_500/macro_f1_20``.

    500 studies, drawn by patient, lend their gold to a stack; it is tested on the other studies of the fold. Value and
    resamples are means over five draws. ``value_rules_only`` has no text weights: what the rules say enters as it is.
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
    figures: dict[str, list[Figure]] = {name: [] for name in variants}
    for draw in range(DRAWS):
        known = _draw(given.data.subject_ids, given.seed + draw)
        rest = ~known
        for name, channels in variants.items():
            mode = fit_few_gold({k: v[known] for k, v in channels.items()}, gold[known], LABELS_20)
            found = mode.stack.log_odds({k: v[rest] for k, v in channels.items()}) >= mode.stack.thresholds
            figures[name].append(f1(gold[rest], found, given.weights[rest])[0])
    means = {name: float(np.mean([figure.value for figure in found])) for name, found in figures.items()}
    samples = np.mean([figure.samples for figure in figures["value"]], axis=0)
    spread = float(np.std([figure.value for figure in figures["value"]]))
    baselines = {"prevalence": everything_f1(gold)[0], "text": means["text"]}
    extra = {"draws": DRAWS, "std_over_draws": spread, "value_rules_only": means["rules_only"]}
    return Figure(means["value"], samples).row(key, len(gold) - GOLD_STUDIES, baselines, **extra)


def _draw(subject_ids: NDArray[np.str_], seed: int) -> NDArray[np.bool_]:
    """Mark all records of random patients, so many that there are at least 500 records."""
    patients, patient_of = np.unique(subject_ids, return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(patients))
    counts = np.bincount(patient_of)[order]
    chosen = order[: int(np.searchsorted(np.cumsum(counts), GOLD_STUDIES)) + 1]
    return np.isin(patient_of, chosen)


def disagreement(given: Given, ecg: NDArray[np.bool_], both: System) -> list[Row]:
    """Return the rows ``disagreement/*``: true label errors among the hundred most doubtful labels.

    ``simulated_flips``: 5 % of the positive gold labels of the 20 codes are taken away and as many are added where
    there is none; an error is a flipped label. ``mined_labels``: the labels are what the rules find in the text, the
    queue holds those that the ECG decides otherwise, and an error is one that differs from gold validated by a human.
    The headline is the lower of the two.
    """
    columns = given.data.columns(LABELS_20)
    gold, probability = given.data.gold[:, columns], expit(both.log_odds[:, columns])
    flipped = _flip(gold, given.seed)
    rows = [
        _queue_row("simulated_flips", given.weights, suspicion(gold ^ flipped, probability), flipped, len(gold)),
    ]
    human = np.flatnonzero(given.data.table["validated_by_human"].fill_null(False).to_numpy())
    if len(human):
        mined, seen = given.data.mentioned[human][:, columns], ecg[human][:, columns]
        doubt = np.where(mined != seen, suspicion(mined, probability[human]), -1.0)
        rows.append(_queue_row("mined_labels", given.weights[human], doubt, mined != gold[human], len(human)))
    else:
        rows.append(Row.missing("disagreement/precision_at_100/mined_labels", "no record is validated by a human"))
    lower = min(rows, key=lambda row: row.value)
    extra = {"lower_of": [row.key for row in rows]}
    return [
        Row("disagreement/precision_at_100", lower.value, lower.low, lower.high, lower.n, lower.baselines, extra),
        *rows,
    ]


def _queue_row(
    name: str, weights: NDArray[np.float32], doubt: NDArray[np.float64], wrong: NDArray[np.bool_], n: int
) -> Row:
    queued = doubt >= 0
    chance = float(wrong[queued].mean()) if queued.any() else 0.0
    figure = precision_at(doubt, wrong & queued, weights)
    extra = {"queue": int(queued.sum()), "errors": int(wrong.sum())}
    return figure.row(f"disagreement/precision_at_100/{name}", n, {"prevalence": chance}, **extra)


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
