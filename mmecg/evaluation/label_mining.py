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
    LabelData,
    encode_data,
    read_label_data,
)
from mmecg.evaluation.label_metrics import brier, ece, everything_f1, f1, f1_of_labels
from mmecg.evaluation.label_protocols import Given, Reading, System, disagreement, few_gold, tfidf_peer
from mmecg.evaluation.label_pu import positive_unlabelled
from mmecg.evaluation.label_random import fit_untrained
from mmecg.evaluation.results import Evaluation, Row, with_contamination
from mmecg.labels.mining import LabelMiner
from mmecg.labels.rule_report import describe_edges, score_edges
from mmecg.labels.rules import LANGUAGES
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
    weights = patient_weights(data.subject_ids, resamples=options.resamples, seed=options.seed)
    text = System("text", evidence.log_odds(data.reports), evidence.thresholds)
    given = Given(data, weights, options.seed)
    progress("fitting the TF-IDF peer", 0, 1)
    train = without_subjects_of(table.filter(pl.col("strat_fold").is_in(TRAINING_FOLDS)), wanted)
    peer = tfidf_peer(train, data) if options.fold not in TRAINING_FOLDS else None
    rows = _rows(given, text, {"tfidf": peer} if peer is not None else {}) + _calibration_rows(given, text, {})
    progress("positive-unlabelled training", 0, 1)
    rows += positive_unlabelled(train, given)
    tables = [_per_label(given, text)]
    skipped, reason, no_random = pl.DataFrame(schema={"record": pl.String(), "reason": pl.String()}), "", ""
    try:
        more, table_of_ecg, skipped, no_random = _ecg_rows(options, given, text, (train, statements), bundle, progress)
        rows += more
        tables.append(table_of_ecg)
    except (InvalidInputError, ConfigError) as error:
        reason = str(error)
    present = {row.key for row in rows}
    rows += [Row.missing(key, reason or "not enough records") for key in (*TEXT_ROWS, *ECG_ROWS) if key not in present]
    seen = dict.fromkeys(str(row.extra["contamination"]) for row in rows if "contamination" in row.extra)
    notes = [*seen, *_notes(options, peer is not None, reason, no_random, skipped.height)]
    return Evaluation(tuple(rows), pl.concat(tables), _describe(options, data, skipped, notes))


def _ecg_rows(
    options: LabelOptions,
    given: Given,
    text: System,
    tables: tuple[pl.DataFrame, pl.DataFrame],
    bundle: Callable[[], Bundle],
    progress: Progress,
) -> tuple[list[Row], pl.DataFrame, pl.DataFrame, str]:
    """Return rows, table of labels, skipped records, and why there is no random encoder, if so."""
    train, statements = tables
    agreement, loaded = load_agreement(), bundle()
    agreement.reader.check(loaded.fingerprint)
    encoders = {"bundle": loaded.encoder, "random": loaded.encoder.random_like(seed=options.seed)}
    kept, encoded, skipped = encode_data(
        options.data, given.data, statements, encoders, progress=progress, what=f"fold {options.fold}"
    )
    given, text = given.take(kept), text.take(kept)
    readings = {"bundle": Reading.of(agreement, text, encoded["bundle"])}
    shuffled = np.random.default_rng(options.seed).permutation(len(kept))
    control = Reading.of(agreement, text, encoded["bundle"].take(shuffled))
    peers = {"text": text, "ecg": readings["bundle"].ecg, "shuffled_ecg": control.both}
    missing = ""
    try:
        untrained = fit_untrained(
            options.data, train, statements, given.data.labels, encoders["random"], progress=progress, seed=options.seed
        )
        readings["random_encoder"] = Reading.of(untrained, text, encoded["random"])
        peers["random_encoder"] = readings["random_encoder"].both
    except InvalidInputError as error:
        missing = str(error)
    tested, *others = readings.values()
    rows = _rows(given, tested.both, {name: peer.decided for name, peer in peers.items()})
    rows += _calibration_rows(given, tested.both, peers)
    progress("few gold labels", 0, 1)
    rows.append(few_gold(given, tested.scores, others[0].scores if others else None))
    progress("disagreements", 0, 1)
    rows += disagreement(given, text, readings)
    rows = with_contamination(rows, loaded.contamination("PTB-XL", fold=options.fold))
    return rows, _per_label(given, tested.both), skipped, missing


def _rows(given: Given, tested: System, peers: Mapping[str, NDArray[np.bool_]]) -> list[Row]:
    rows = []
    peers = {"naive_mention": given.data.mentioned, **peers}
    for count, labels in ((20, LABELS_20), (56, LABELS_56)):
        rows += _f1_rows(given, tested, peers, f"{tested.name}/{{}}_f1_{count}", labels)
    return rows + _subgroup_rows(given, tested, peers)


def _calibration_rows(given: Given, tested: System, peers: Mapping[str, System]) -> list[Row]:
    """Return the rows ``ece`` and ``brier``; the prevalence is a constant probability, the rate of each label."""
    columns = given.data.columns(LABELS_20)
    gold, n, name = given.data.gold[:, columns], len(given.data.gold), tested.name
    error, squared = (figure(gold, tested.probability[:, columns], given.weights) for figure in (ece, brier))
    none = np.empty((n, 0), np.float32)
    errors, squares = {"prevalence": 0.0}, {"prevalence": float(np.square(gold.mean(axis=0) - gold).mean())}
    for peer, system in peers.items():
        errors[peer] = ece(gold, system.probability[:, columns], none).value
        squares[peer] = brier(gold, system.probability[:, columns], none).value
    corrected = max(error.value - error.bias, 0.0)
    pooled = _pooled_ece(given.data.gold, tested.probability)
    everything = float(np.square(tested.probability - given.data.gold).mean())
    return [
        error.row(f"{name}/ece", n, errors, n_labels=20, bins=15, value_bias_corrected=corrected, value_pooled=pooled),
        squared.row(f"{name}/brier", n, squares, n_labels=20, value_all_labels=everything),
    ]


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


def _describe(options: LabelOptions, data: LabelData, skipped: pl.DataFrame, notes: list[str]) -> dict[str, Any]:
    edges = score_edges(data.table, data.labels, data.gold)
    tested = edges.drop_nulls("precision")
    return {
        "fold": options.fold,
        "weights_fitted_on": list(TRAINING_FOLDS),
        "test_records": data.table.height,
        "test_subjects": len(np.unique(data.subject_ids)),
        "languages": {name or "none": int(count) for name, count in zip(*_counts(data.languages), strict=True)},
        "resamples": options.resamples,
        "seed": options.seed,
        "notes": notes,
        "implications": {
            "all": edges.height,
            "tested": tested.to_dicts(),
            "untested": edges.height - tested.height,
            "summary": describe_edges(edges),
        },
        "skipped": skipped.to_dicts(),
    }


def _counts(values: NDArray[np.str_]) -> tuple[list[str], list[int]]:
    names, counts = np.unique(values, return_counts=True)
    return names.tolist(), counts.tolist()


def _notes(options: LabelOptions, has_peer: bool, reason: str, no_random: str, skipped: int) -> list[str]:
    """Return what a reader of the figures must know."""
    notes = []
    if options.fold in TRAINING_FOLDS:
        notes.append(f"the weights were fitted on fold {options.fold}: these figures are not held out.")
    if reason:
        notes.append(f"rows that need signals were not computed: {reason}.")
    if not has_peer:
        notes.append("the TF-IDF peer was left out: it needs the training folds, without the test fold.")
    if no_random:
        notes.append(f"the random encoder was left out, whose stack needs the training folds: {no_random}.")
    if skipped:
        notes.append(f"{skipped} records could not be read and were left out of the rows that need signals.")
    return notes
