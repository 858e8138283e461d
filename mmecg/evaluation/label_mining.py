"""The evaluation of label mining: text, text and ECG, few gold labels, disagreements, positive-unlabelled training.

Nothing is fitted on the test fold: the weights are those that ship with mmecg. Two rows are exceptions by design and
say so: few-gold mode is given some studies of the fold and tested on the others, and the TF-IDF peer is fitted on the
training folds where the folder has them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mmecg.bundle import Bundle
from mmecg.datasets.ptb_xl import read_ptb_xl_table, read_scp_statements
from mmecg.errors import ConfigError, InvalidInputError
from mmecg.evaluation.bootstrap import DEFAULT_RESAMPLES, patient_weights
from mmecg.evaluation.cohort import Progress, without_subjects_of
from mmecg.evaluation.label_data import (
    LABELS_20,
    LABELS_56,
    LANGUAGES,
    LabelData,
    encode_data,
    read_label_data,
)
from mmecg.evaluation.label_metrics import brier, ece, everything_f1, f1, f1_of_labels
from mmecg.evaluation.label_protocols import Given, System, disagreement, few_gold, positive_unlabelled, tfidf_peer
from mmecg.evaluation.results import Evaluation, Row
from mmecg.labels.logistic import expit
from mmecg.labels.mining import LabelMiner
from mmecg.labels.weights import load_agreement, load_text_evidence

TRAINING_FOLDS: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7, 8)
"""Folds of PTB-XL that the shipped weights were fitted on."""

TEXT_ROWS: tuple[str, ...] = (
    "text/macro_f1_20", "text/micro_f1_20", "text/macro_f1_56", "text/micro_f1_56", "text/ece", "text/brier",
    *(f"text/macro_f1_20/{language}" for language in LANGUAGES),
)  # fmt: skip
ECG_ROWS: tuple[str, ...] = (
    *(f"text_ecg/{row.removeprefix('text/')}" for row in TEXT_ROWS),
    "few_gold_500/macro_f1_20", "disagreement/precision_at_100", "disagreement/precision_at_100/simulated_flips",
    "disagreement/precision_at_100/mined_labels",
)  # fmt: skip
"""Rows that need signals: null with the reason where there are none."""


@dataclass(frozen=True)
class LabelOptions:
    """What to evaluate on.

    Attributes
    ----------
    data : Path
        Folder in PTB-XL layout; signals may be missing.
    fold : int
    resamples, seed : int
    """

    data: Path
    fold: int
    resamples: int = DEFAULT_RESAMPLES
    seed: int = 0


def evaluate_labels(
    options: LabelOptions, bundle: Callable[[], Bundle], *, progress: Progress = lambda what, done, total: None
) -> Evaluation:
    """Compute every row that the data allow.

    Parameters
    ----------
    options : LabelOptions
    bundle : callable
        Loads the bundle; called only if there are signals to read.
    progress : callable

    Raises
    ------
    InvalidInputError
        The folder is not in PTB-XL layout, or the fold has no record.
    """
    table, statements = read_ptb_xl_table(options.data), read_scp_statements(options.data)
    wanted = table.filter(pl.col("strat_fold") == options.fold)
    if wanted.is_empty():
        folds = sorted(table["strat_fold"].drop_nulls().unique().to_list())
        raise InvalidInputError(f"fold {options.fold} has no record, expected one of {folds}", field="fold")
    progress("mining reports", 0, wanted.height)
    evidence, miner = load_text_evidence(), LabelMiner()
    data = read_label_data(wanted, evidence.labels, miner)
    log_odds = evidence.log_odds(data.reports)
    weights = patient_weights(data.subject_ids, resamples=options.resamples, seed=options.seed)
    text = System("text", log_odds, log_odds >= evidence.thresholds)
    given = Given(data, weights, options.seed)
    progress("fitting the TF-IDF peer", 0, 1)
    train = without_subjects_of(table.filter(pl.col("strat_fold").is_in(TRAINING_FOLDS)), wanted)
    peer = tfidf_peer(train, data) if options.fold not in TRAINING_FOLDS else None
    rows = _rows(given, text, {"tfidf": peer} if peer is not None else {})
    progress("positive-unlabelled training", 0, 1)
    rows += positive_unlabelled(train, given)
    tables = [_per_label(given, text)]
    skipped, reason = pl.DataFrame(schema={"record": pl.String(), "reason": pl.String()}), ""
    try:
        more, table_of_ecg, skipped = _ecg_rows(options, given, text, statements, bundle, progress)
        rows += more
        tables.append(table_of_ecg)
    except (InvalidInputError, ConfigError) as error:
        reason = str(error)
    present = {row.key for row in rows}
    rows += [Row.missing(key, reason or "not enough records") for key in (*TEXT_ROWS, *ECG_ROWS) if key not in present]
    return Evaluation(tuple(rows), pl.concat(tables), _describe(options, data, skipped, reason, peer is not None))


def _ecg_rows(
    options: LabelOptions,
    given: Given,
    text: System,
    statements: pl.DataFrame,
    bundle: Callable[[], Bundle],
    progress: Progress,
) -> tuple[list[Row], pl.DataFrame, pl.DataFrame]:
    agreement, what = load_agreement(), f"fold {options.fold}"
    loaded = bundle()
    agreement.reader.check(loaded.fingerprint)
    kept, encoded, skipped = encode_data(
        options.data, given.data, statements, loaded.encoder, progress=progress, what=what
    )
    given, text = given.take(kept), text.take(kept)
    channels = agreement.reader.scores(encoded.features, encoded.embedding)
    shuffled = np.random.default_rng(options.seed).permutation(len(kept))
    scores = {"text": text.log_odds, **channels}
    log_odds = agreement.text_ecg.log_odds(scores)
    both = System("text_ecg", log_odds, log_odds >= agreement.text_ecg.thresholds)
    ecg = agreement.ecg.log_odds(channels)
    control = agreement.text_ecg.log_odds({"text": text.log_odds, **{k: v[shuffled] for k, v in channels.items()}})
    peers = {
        "text": text.decided,
        "ecg": ecg >= agreement.ecg.thresholds,
        "shuffled_ecg": control >= agreement.text_ecg.thresholds,
    }
    rows = _rows(given, both, peers)
    progress("few gold labels", 0, 1)
    rows.append(few_gold(given, scores))
    progress("disagreements", 0, 1)
    rows += disagreement(given, ecg >= agreement.ecg.thresholds, both)
    return rows, _per_label(given, both), skipped


def _rows(given: Given, tested: System, peers: Mapping[str, NDArray[np.bool_]]) -> list[Row]:
    rows = []
    naive = given.data.mentioned
    for count, labels in ((20, LABELS_20), (56, LABELS_56)):
        rows += _f1_rows(given, tested, {"naive_mention": naive, **peers}, f"{tested.name}/{{}}_f1_{count}", labels)
    columns = given.data.columns(LABELS_20)
    gold, probability = given.data.gold[:, columns], expit(tested.log_odds[:, columns])
    rate = np.broadcast_to(gold.mean(axis=0), gold.shape)
    pooled = _pooled_ece(given.data.gold, expit(tested.log_odds))
    n = len(gold)
    error = ece(gold, probability, given.weights)
    rows.append(error.row(f"{tested.name}/ece", n, {"prevalence": 0.0}, n_labels=20, bins=15, value_pooled=pooled))
    everything = float(np.square(expit(tested.log_odds) - given.data.gold).mean())
    constant = float(np.square(rate - gold).mean())
    squared = brier(gold, probability, given.weights)
    rows.append(
        squared.row(f"{tested.name}/brier", n, {"prevalence": constant}, n_labels=20, value_all_labels=everything)
    )
    return rows + _subgroup_rows(given, tested, {"naive_mention": naive, **peers})


def _pooled_ece(gold: NDArray[np.bool_], probability: NDArray[np.floating]) -> float:
    """Return the expected calibration error over all labels pooled, 15 bins of equal mass."""
    flat = np.empty((gold.size, 0), np.float32)
    return ece(gold.reshape(-1, 1), probability.reshape(-1, 1), flat).value


def _subgroup_rows(given: Given, tested: System, peers: Mapping[str, NDArray[np.bool_]]) -> list[Row]:
    table = given.data.table
    groups: dict[str, NDArray[np.bool_]] = {name: given.data.languages == name for name in LANGUAGES}
    for column in ("site", "sex"):
        values = table[column].fill_null("").to_numpy().astype(np.str_)
        names = [name for name in np.unique(values) if name and (values == name).sum() >= MIN_GROUP]
        groups |= {f"{column}/{name}": values == name for name in names}
    rows = []
    for name, inside in groups.items():
        chosen = np.flatnonzero(inside)
        if len(chosen):
            part = {peer: decided[chosen] for peer, decided in peers.items()}
            key = f"{tested.name}/{{}}_f1_20/{name}"
            rows += _f1_rows(given.take(chosen), tested.take(chosen), part, key, LABELS_20)
    return rows


MIN_GROUP = 50
"""A site with fewer records in the fold has no row."""


def _f1_rows(
    given: Given, tested: System, peers: Mapping[str, NDArray[np.bool_]], key: str, labels: tuple[str, ...]
) -> list[Row]:
    columns = given.data.columns(labels)
    gold = given.data.gold[:, columns]
    macro, micro = f1(gold, tested.decided[:, columns], given.weights)
    none = np.empty((len(gold), 0), np.float32)
    others = {name: [found.value for found in f1(gold, said[:, columns], none)] for name, said in peers.items()}
    others["prevalence"] = list(everything_f1(gold))
    extra = {"n_labels": int(gold.any(axis=0).sum())}
    return [
        figure.row(key.format(name), len(gold), {peer: values[at] for peer, values in others.items()}, **extra)
        for at, (name, figure) in enumerate((("macro", macro), ("micro", micro)))
    ]


def _per_label(given: Given, tested: System) -> pl.DataFrame:
    gold, decided = given.data.gold, tested.decided
    hits = (gold & decided).sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        columns = {
            "protocol": [tested.name] * len(given.data.labels),
            "label": list(given.data.labels),
            "positives": gold.sum(axis=0),
            "decided": decided.sum(axis=0),
            "precision": hits / decided.sum(axis=0),
            "recall": hits / gold.sum(axis=0),
            "f1": f1_of_labels(gold, decided),
            "naive_mention": f1_of_labels(gold, given.data.mentioned),
        }
    return pl.DataFrame(columns).with_columns(pl.col(pl.Float64).fill_nan(None))


def _describe(
    options: LabelOptions, data: LabelData, skipped: pl.DataFrame, reason: str, has_peer: bool
) -> dict[str, Any]:
    notes = []
    if options.fold in TRAINING_FOLDS:
        notes.append(f"the weights were fitted on fold {options.fold}: these figures are not held out.")
    if reason:
        notes.append(f"rows that need signals were not computed: {reason}.")
    if not has_peer:
        notes.append("the TF-IDF peer was left out: it needs the training folds, without the test fold.")
    if not skipped.is_empty():
        notes.append(f"{skipped.height} records could not be read and were left out of the rows that need signals.")
    return {
        "fold": options.fold,
        "weights_fitted_on": list(TRAINING_FOLDS),
        "test_records": data.table.height,
        "test_subjects": len(np.unique(data.subject_ids)),
        "languages": {name or "none": int(count) for name, count in zip(*_counts(data.languages), strict=True)},
        "resamples": options.resamples,
        "seed": options.seed,
        "notes": notes,
        "skipped": skipped.to_dicts(),
    }


def _counts(values: NDArray[np.str_]) -> tuple[list[str], list[int]]:
    names, counts = np.unique(values, return_counts=True)
    return names.tolist(), counts.tolist()
