"""The evaluation of prediction as a whole: which studies take part, what runs, what cannot be computed and why."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mmecg.bundle import Bundle, load_bundle
from mmecg.datasets.ptb_xl import read_ptb_xl_signals, read_ptb_xl_table, read_scp_statements
from mmecg.ecg import Ecg
from mmecg.embedding import Encoder
from mmecg.errors import InvalidInputError
from mmecg.evaluation.bootstrap import DEFAULT_RESAMPLES
from mmecg.evaluation.cohort import Progress, read_cohort, sampling_rate_of, without_subjects_of
from mmecg.evaluation.prediction_cases import Cases, Part, join, subject_rates
from mmecg.evaluation.prediction_confidence import ConformalSets, calibration, conformal, discrimination
from mmecg.evaluation.prediction_crossfit import CrossFit, Parts, early_records, temporal
from mmecg.evaluation.prediction_data import PredictionData, prediction_data, priors_of, read_prediction_data
from mmecg.evaluation.prediction_decisions import abstention, decision_curves
from mmecg.evaluation.prediction_fitting import honest_scores
from mmecg.evaluation.prediction_history import apply_count, fit_count, history
from mmecg.evaluation.prediction_measures import measures
from mmecg.evaluation.prediction_modalities import Bases, modalities, subset_systems
from mmecg.evaluation.prediction_random import RandomFeatures, RandomSystem
from mmecg.evaluation.prediction_report import PredictionEvaluation
from mmecg.evaluation.prediction_shift import RECORDS, Readers, out_of_distribution, outside_set, shift_tests
from mmecg.evaluation.prediction_subgroups import gaps, subgroups
from mmecg.evaluation.prediction_systems import Current, Logits, Tested, current_of, systems_of, with_history
from mmecg.evaluation.results import Evaluation, Row, with_contamination
from mmecg.prediction.heads import PredictionHeads, read_heads

RANDOM_RECORDS = 4000
"""Training studies that the random encoder's probe is fitted on, at most; a random choice."""

REQUIRED_ROWS: tuple[str, ...] = (
    "single/all", "single/superclass", "history_gain/macro_auroc", "control_shuffled/macro_auroc",
    "control_other_patient/macro_auroc", "control_count_only/macro_auroc", "control_carry_forward/macro_auroc",
    "ece/macro", "ece/worst_subgroup", "calibration/slope", "conformal90/coverage", "conformal90/worst_subgroup",
    "abstain20/error_reduction", "ood/auroc", "gap/sex", "gap/age",
)  # fmt: skip
"""Rows that every ``metrics.json`` has, computed or with the reason why not."""


@dataclass(frozen=True)
class PredictionEvaluationOptions:
    """What to evaluate on.

    Attributes
    ----------
    data : Path
        Folder in PTB-XL layout.
    fold : int
    train_data : Path, optional
        Folder with the training folds, if they do not lie in ``data``.
    ludb : Path, optional
    cross_fit : tuple of Path
        Two bundles trained on disjoint folds, or none.
    cache : Path, optional
        Folder in which the encodings of the cross-fit are kept.
    resamples, seed : int
    """

    data: Path
    fold: int
    train_data: Path | None = None
    ludb: Path | None = None
    cross_fit: tuple[Path, ...] = ()
    cache: Path | None = None
    resamples: int = DEFAULT_RESAMPLES
    seed: int = 0


@dataclass(frozen=True)
class _Read:
    """Studies of the fold and of the training folds, by the bundle's encoder and a random one."""

    test: PredictionData
    train: PredictionData | None
    random_test: NDArray[np.float32]
    random_train: tuple[PredictionData, NDArray[np.float32]] | None
    skipped: pl.DataFrame
    reason: str


def evaluate_prediction(
    options: PredictionEvaluationOptions, bundle: Bundle, *, progress: Progress = lambda what, done, total: None
) -> PredictionEvaluation:
    """Compute every row that the data allow.

    Parameters
    ----------
    options : PredictionEvaluationOptions
    bundle : Bundle
        With prediction heads.
    progress : callable

    Raises
    ------
    BundleError
        The bundle has no heads.
    InvalidInputError
        The folder is not in PTB-XL layout, or no record of the fold can be read.
    """
    heads = read_heads(bundle)
    read, random = _read(options, bundle, progress)
    parts, crossed = _cross_fit(options, progress)
    tested, readers, random_sets = _systems(options, bundle, heads, read, random, crossed)
    cases = tested.cases
    route = heads.confidence.cohort if _votes(heads, read) else heads.confidence.alone

    def sets_at(level: float) -> NDArray[np.bool_]:
        return route.conformal.sets(cases.systems["history"], tested.category, level)

    found = []
    for name, system in (("full", "history"), ("current", "current"), ("single", "single"), ("ecg", "ecg")):
        progress(f"discrimination, {name}", 0, 1)
        found.append(discrimination(cases, system, name))
    progress("calibration, sets, abstention", 0, 1)
    found += [calibration(cases, "history"), conformal(cases, sets_at, random_sets), abstention(cases, "history")]
    drawn = tuple(name for name in ("history", "current", "random_encoder") if name in cases.systems)
    found.append(decision_curves(cases, drawn))
    progress("history", 0, 1)
    found += [history(cases), modalities(cases)]
    progress("subgroups", 0, 1)
    found += [subgroups(cases, "history", sets_at(0.9)), gaps(cases, "history")]
    if crossed is not None and parts is not None:
        progress("history, cross-fitted", 0, 1)
        everything, untrained = _cross_fitted_cases(options, crossed, random, progress)
        found += [history(everything, "/cross_fitted"), modalities(everything, "/cross_fitted")]
        progress("temporal split", 0, 1)
        by_time = temporal(parts, crossed.honest, crossed, untrained, resamples=options.resamples, seed=options.seed)
        found.append(by_time)
    chosen, ecgs = _signals(options, cases)
    found += [
        shift_tests(chosen, ecgs, readers, progress=progress),
        out_of_distribution(chosen, ecgs, readers, progress=progress),
    ]
    if options.ludb is not None:
        progress("LUDB", 0, 1)
        found.append(outside_set(options.ludb, heads.labels, readers, resamples=options.resamples, seed=options.seed))
        found.append(measures(options.ludb, resamples=options.resamples, seed=options.seed))
    return _joined(options, bundle, heads, read, tested, join(found))


def _read(options: PredictionEvaluationOptions, bundle: Bundle, progress: Progress) -> tuple[_Read, Encoder]:
    random = bundle.encoder.random_like(seed=options.seed)
    table, statements = read_ptb_xl_table(options.data), read_scp_statements(options.data)
    wanted = table.filter(pl.col("strat_fold") == options.fold)
    if wanted.is_empty():
        folds = sorted(table["strat_fold"].drop_nulls().unique().to_list())
        raise InvalidInputError(f"fold {options.fold} has no record, expected one of {folds}", field="fold")
    encoders: dict[str, Encoder] = {"bundle": bundle.encoder, "random": random}
    test, random_test, skipped = _encode(options.data, wanted, statements, encoders, progress, f"fold {options.fold}")
    folder = options.train_data or options.data
    table = table if options.train_data is None else read_ptb_xl_table(folder)
    folds = sorted(set(bundle.config.training.folds) - {options.fold})
    rows = without_subjects_of(table.filter(pl.col("strat_fold").is_in(folds)), wanted)
    try:
        if rows.is_empty():
            raise InvalidInputError(f"the bundle's training folds {folds} have no record in the data")
        train, _, missed = _encode(folder, rows, statements, {"bundle": bundle.encoder}, progress, "training folds")
    except InvalidInputError as error:
        reason = f"{error}; name a folder that has them with --train-data"
        return _Read(test, None, random_test, None, skipped, reason), random
    drawn = np.sort(np.random.default_rng(options.seed).permutation(len(train))[:RANDOM_RECORDS])
    few, features, _ = _encode(folder, train.table[drawn], statements, {"random": random}, progress, "random encoder")
    return _Read(test, train, random_test, (few, features), pl.concat([skipped, missed]), ""), random


def _encode(
    folder: Path,
    table: pl.DataFrame,
    statements: pl.DataFrame,
    encoders: dict[str, Encoder],
    progress: Progress,
    what: str,
) -> tuple[PredictionData, NDArray[np.float32], pl.DataFrame]:
    """Return studies by the first encoder, the features of the last one, and what was skipped."""
    cohort = read_cohort(folder, table, statements, encoders, subsets={}, progress=progress, what=what)
    place = {study: row for row, study in enumerate(table["study_id"].to_list())}
    kept = table[[place[study] for study in cohort.study_ids.tolist()]]
    first, *_, last = [*cohort.encoded.values(), *cohort.encoded.values()]
    return prediction_data(kept, statements, first.features, first.embedding), last.features, cohort.skipped


def _cross_fit(options: PredictionEvaluationOptions, progress: Progress) -> tuple[Parts | None, CrossFit | None]:
    if not options.cross_fit:
        return None, None
    bundles = [load_bundle(path) for path in options.cross_fit]
    folds = [tuple(bundle.config.training.folds) for bundle in bundles]
    everything = sorted({options.fold}.union(*folds))
    folder = options.train_data or options.data
    parts = [
        (read_prediction_data(folder, bundle, everything, progress=progress, cache=options.cache), seen)
        for bundle, seen in zip(bundles, folds, strict=True)
    ]
    progress("cross-fitting", 0, 1)
    return parts, CrossFit.fit(honest_scores(parts))


def _cross_fitted_cases(
    options: PredictionEvaluationOptions, crossed: CrossFit, random: Encoder, progress: Progress
) -> tuple[Cases, RandomFeatures]:
    folder = options.train_data or options.data
    followed = np.array([bool(rows) for rows in crossed.honest.earlier])
    asked = np.flatnonzero(followed | ~early_records(crossed.honest)[0])
    untrained = RandomFeatures.read(
        folder, crossed.honest, random, asked, records=RANDOM_RECORDS, progress=progress, seed=options.seed
    )
    others = {"random_encoder": untrained.cross_fitted(), **crossed.subsets(seed=options.seed)}
    return crossed.tested(others, resamples=options.resamples, seed=options.seed).cases, untrained


def _votes(heads: PredictionHeads, read: _Read) -> bool:
    return read.train is not None and len(read.train) >= heads.cohort.minimum_studies


def _systems(
    options: PredictionEvaluationOptions,
    bundle: Bundle,
    heads: PredictionHeads,
    read: _Read,
    random: Encoder,
    crossed: CrossFit | None,
) -> tuple[Tested, Readers, ConformalSets | None]:
    current = current_of(read.test, read.train, heads)
    others = subset_systems(
        read.test,
        Bases.of(current, read.test.vitals, heads.vitals, heads.prevalence),
        lambda base, records: with_history(records, base, heads),
        heads.join_superclasses,
        seed=options.seed,
    )
    readers = Readers(
        {"bundle": bundle.encoder, "random": random},
        logits=lambda features: heads.join_superclasses(heads.single.logits(features)[0]),
        novelty=lambda features, ecgs: heads.novelty.scores(features, ecgs).probability,
    )
    random_sets: ConformalSets | None = None
    if read.random_train is not None:
        data, features = read.random_train
        untrained = RandomSystem.fit(data, features, seed=options.seed)
        random_logits = untrained.probe.scores(read.random_test).astype(np.float64)
        others["random_encoder"] = random_logits
        random_sets = partial(untrained.sets, random_logits)
        mean, scale = features.mean(axis=0), features.std(axis=0) + 1e-6
        readers = Readers(
            readers.encoders,
            readers.logits,
            lambda features: untrained.probe.scores(features).astype(np.float64),
            readers.novelty,
            lambda features: np.square((features - mean) / scale).mean(axis=1).astype(np.float64),
        )
    return (
        systems_of(
            read.test,
            current,
            with_history(read.test, current.current, heads),
            add_to_ecg=with_history(read.test, current.ecg, heads),
            finish=heads.join_superclasses,
            counted=_counted(options, read, current, crossed),
            others=others,
            resamples=options.resamples,
            seed=options.seed,
        ),
        readers,
        random_sets,
    )


def _counted(
    options: PredictionEvaluationOptions, read: _Read, current: Current, crossed: CrossFit | None
) -> Logits | None:
    """Return the count-only control, fitted on cross-fitted scores, else on the bundle's own training scores' rates."""
    counts = np.array([len(rows) for rows in priors_of(read.test)], np.int64)
    if crossed is not None:
        honest = crossed.honest
        rows = np.flatnonzero(honest.data.folds != options.fold)
        known = np.array([len(honest.earlier[row]) for row in rows], np.int64)
        weights = fit_count(crossed.current().current[rows], known, honest.data.gold[rows])
    elif read.train is not None:
        known = np.array([len(rows) for rows in priors_of(read.train)], np.int64)
        rates = np.broadcast_to(subject_rates(read.train.gold), read.train.gold.shape)
        weights = fit_count(rates, known, read.train.gold)
    else:
        return None
    return apply_count(current.current, counts, weights)


def _signals(options: PredictionEvaluationOptions, cases: Cases) -> tuple[Cases, list[Ecg]]:
    """Return a random choice of the cases, and their recordings."""
    chosen = np.sort(np.random.default_rng(options.seed).permutation(len(cases))[:RECORDS])
    part = cases.take(chosen)
    rate = sampling_rate_of(options.data, part.table)
    signals = read_ptb_xl_signals(options.data, part.table, sampling_rate_hz=rate).signals
    return part, [Ecg.from_array(signal, sampling_rate_hz=rate, unit="uV") for signal in signals]


def _joined(
    options: PredictionEvaluationOptions,
    bundle: Bundle,
    heads: PredictionHeads,
    read: _Read,
    tested: Tested,
    found: Part,
) -> PredictionEvaluation:
    rows = [_explained(row) for row in found.rows]
    present = {row.key for row in rows}
    rows += [Row.missing(key, read.reason or "not enough studies") for key in REQUIRED_ROWS if key not in present]
    folds, seen = sorted(bundle.config.training.folds), bundle.contamination("PTB-XL", fold=options.fold)
    rows = with_contamination(rows, seen)
    run = {
        "fold": options.fold,
        "fingerprint": bundle.fingerprint,
        "bundle_training_folds": folds,
        "corpus_folds": [] if read.train is None else sorted(set(read.train.folds.tolist())),
        "corpus_records": 0 if read.train is None else len(read.train),
        "test_records": len(read.test),
        "test_subjects": len(np.unique(read.test.subject_ids)),
        "with_history": int((tested.cases.priors > 0).sum()),
        "cross_fit": [str(path) for path in options.cross_fit],
        "shift_records": min(RECORDS, len(read.test)),
        "random_encoder_records": 0 if read.random_train is None else len(read.random_train[1]),
        "resamples": options.resamples,
        "seed": options.seed,
        "notes": [*([seen] if seen else []), *_notes(options, folds, read, _votes(heads, read))],
        "skipped": read.skipped.to_dicts(),
    }
    tables = [table for name, table in found.tables.items() if name.startswith("labels_")]
    return PredictionEvaluation(Evaluation(tuple(rows), pl.concat(tables), run), found.tables)


def _explained(row: Row) -> Row:
    if math.isfinite(row.value):
        return row
    return Row.missing(row.key, row.extra.get("reason", "undefined on these studies: too few positives"))


def _notes(options: PredictionEvaluationOptions, folds: Sequence[int], read: _Read, voted: bool) -> list[str]:
    """Return what a reader of the figures must know."""
    notes: list[Any] = []
    if options.fold in folds:
        notes.append(f"the bundle was trained on fold {options.fold}: these figures are not held out.")
    if read.reason:
        notes.append(f"no random encoder and no votes of other patients: {read.reason}.")
    elif not voted:
        notes.append("the training folds have too few studies for votes of other patients; “single” is the ECG alone.")
    if not options.cross_fit:
        notes.append("no cross-fitted rows and no temporal split: name two bundles of disjoint folds with --cross-fit.")
    if read.skipped.height:
        notes.append(f"{read.skipped.height} records could not be read and were left out.")
    return notes
