"""The evaluation as a whole: which records take part, which protocols run, what cannot be computed and why."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from mmecg.datasets.ptb_xl import read_ptb_xl_table, read_scp_statements
from mmecg.embedding import Encoder
from mmecg.errors import InvalidInputError
from mmecg.evaluation.bootstrap import DEFAULT_RESAMPLES, patient_weights
from mmecg.evaluation.classification import Classification, knn, lead_subsets, linear_probe, vitals_gain, zero_shot
from mmecg.evaluation.cohort import LEAD_SUBSETS, Cohort, Progress, read_cohort, without_subjects_of
from mmecg.evaluation.labels import TASKS
from mmecg.evaluation.prompts import PromptEmbeddings, embed_prompts, load_prompts
from mmecg.evaluation.results import REQUIRED_ROWS, Evaluation, Row, with_contamination
from mmecg.evaluation.retrieval import ecg_to_ecg, text_retrieval
from mmecg.evaluation.setting import Setting

DEFAULT_VITALS_WEIGHT = 0.2
FITTED_PROTOCOLS: tuple[str, ...] = ("linear_probe", "knn50", "vitals_gain")
"""Protocols that need labelled records of the training folds."""


@dataclass(frozen=True)
class EvaluationOptions:
    """What to evaluate on, and how.

    Attributes
    ----------
    data : Path
        Folder in PTB-XL layout.
    fold : int
        Value of ``strat_fold`` to test on.
    bundle_folds : tuple of int
        Folds that the bundle was trained on; probes and neighbours are fitted on those other than ``fold``.
    train_data : Path, optional
        Folder with the training folds, if they do not lie in ``data``.
    vitals_weight : float
        Weight of the vitals in a fused query, the ECG having 1.
    resamples, seed : int
        Of the bootstrap; the seed also fixes the inner split of the probes.
    supervision : str
        What the encoder was trained on, in words.
    contamination : str
        What the bundle and its ECG tower saw of the data set, for every row; see
        :meth:`mmecg.bundle.Bundle.contamination`.
    """

    data: Path
    fold: int
    bundle_folds: tuple[int, ...]
    train_data: Path | None = None
    vitals_weight: float = DEFAULT_VITALS_WEIGHT
    resamples: int = DEFAULT_RESAMPLES
    seed: int = 0
    supervision: str = ""
    contamination: str = ""


def evaluate(
    options: EvaluationOptions, encoders: Mapping[str, Encoder], *, progress: Progress = lambda what, done, total: None
) -> Evaluation:
    """Compute every row that the data allow.

    Parameters
    ----------
    options : EvaluationOptions
    encoders : mapping of str to Encoder
        ``"bundle"`` and ``"random"``: the model, and one of the same shape that was never trained.
    progress : callable
        Told what is being done, how much is done, and how much there is.

    Raises
    ------
    InvalidInputError
        The folder is not in PTB-XL layout, or no record of the fold can be read.
    """
    table = read_ptb_xl_table(options.data)
    statements = read_scp_statements(options.data)
    wanted = table.filter(pl.col("strat_fold") == options.fold)
    if wanted.is_empty():
        raise InvalidInputError(
            f"fold {options.fold} has no record, expected one of {_folds_in(table)}; choose one of these", field="fold"
        )
    test = read_cohort(
        options.data,
        wanted,
        statements,
        encoders,
        subsets=LEAD_SUBSETS,
        progress=progress,
        what=f"fold {options.fold}",
    )
    train, reason, fit_folds = _read_train(options, table, wanted, statements, encoders, progress)
    weights = patient_weights(test.subject_ids, resamples=options.resamples, seed=options.seed)
    setting = Setting(train, test, weights, options.seed, options.supervision)
    rows, tables = _run_protocols(setting, options, statements, encoders, progress)
    rows = [_explained(row) for row in rows] + _missing_rows(rows, reason)
    run = _describe(options, encoders["bundle"].fingerprint, setting, fit_folds, reason)
    return Evaluation(tuple(with_contamination(rows, options.contamination)), pl.concat(tables), run)


def _read_train(
    options: EvaluationOptions,
    table: pl.DataFrame,
    test_table: pl.DataFrame,
    statements: pl.DataFrame,
    encoders: Mapping[str, Encoder],
    progress: Progress,
) -> tuple[Cohort | None, str, list[int]]:
    """Return the records to fit on, or None and the reason, and the folds that were found."""
    folder = options.train_data or options.data
    if options.train_data is not None:
        table = read_ptb_xl_table(folder)
    folds = sorted(set(options.bundle_folds) - {options.fold})
    rows = without_subjects_of(table.filter(pl.col("strat_fold").is_in(folds)), test_table)
    found = _folds_in(rows)
    advice = "name a folder that has them with --train-data"
    if rows.is_empty():
        return None, f"the bundle's training folds {folds} have no record in the data; {advice}", []
    try:
        train = read_cohort(
            folder, rows, statements, encoders, subsets={}, progress=progress, what=f"folds {_ranges(found)}"
        )
    except InvalidInputError:
        return None, f"the bundle's training folds {folds} have no signal file in the data; {advice}", []
    return train, "", found


def _run_protocols(
    setting: Setting,
    options: EvaluationOptions,
    statements: pl.DataFrame,
    encoders: Mapping[str, Encoder],
    progress: Progress,
) -> tuple[list[Row], list[pl.DataFrame]]:
    prompts = _prompts(encoders, setting.test, statements)
    steps = 6
    progress("zero-shot", 0, steps)
    scored = list(zero_shot(setting, prompts))
    subset_rows = lead_subsets(setting, prompts, _by_task(scored))
    gains: list[Row] = []
    if setting.train is not None:
        progress("linear probe", 1, steps)
        scored += linear_probe(setting, setting.train, of="features")
        progress("linear probe", 2, steps)
        scored += linear_probe(setting, setting.train, of="embedding")
        progress("neighbours", 3, steps)
        neighbours = knn(setting, setting.train)
        scored += neighbours
        progress("vitals", 4, steps)
        gains = vitals_gain(setting, setting.train, encoders, _by_task(neighbours), weight=options.vitals_weight)
    progress("retrieval", 5, steps)
    retrieval = [*ecg_to_ecg(setting), *text_retrieval(setting, encoders)]
    progress("done", steps, steps)
    rows = [*(found.row for found in scored), *retrieval, *subset_rows, *gains]
    return rows, [found.per_label for found in scored]


def _prompts(
    encoders: Mapping[str, Encoder], test: Cohort, statements: pl.DataFrame
) -> dict[str, dict[str, PromptEmbeddings]]:
    bank = load_prompts()
    descriptions = dict(statements.select("label", "description").iter_rows())
    of_task = {task: bank.of_task(task, test.tasks[task].labels, descriptions) for task in TASKS}
    return {
        name: {task: embed_prompts(encoder, prompts) for task, prompts in of_task.items()}
        for name, encoder in encoders.items()
    }


def _by_task(scored: Sequence[Classification]) -> dict[str, Classification]:
    return {found.row.key.rsplit("/", 1)[1]: found for found in scored}


def _explained(row: Row) -> Row:
    """Return the row, with a reason if it has no value."""
    if math.isfinite(row.value):
        return row
    why = "undefined on these records: no label has enough positives and negatives, or nothing is above chance"
    return Row.missing(row.key, row.extra.get("reason", why))


def _missing_rows(rows: Collection[Row], reason: str) -> list[Row]:
    present = {row.key for row in rows}
    return [Row.missing(key, reason) for key in REQUIRED_ROWS if key not in present]


def _describe(
    options: EvaluationOptions, fingerprint: str, setting: Setting, fit_folds: Sequence[int], reason: str
) -> dict[str, Any]:
    skipped = [setting.test.skipped, *([] if setting.train is None else [setting.train.skipped])]
    expected = sorted(set(options.bundle_folds) - {options.fold})
    notes = [options.contamination] if options.contamination else []
    if options.fold in options.bundle_folds:
        notes.append(f"the bundle was trained on fold {options.fold}: these figures are not held out.")
    if reason:
        notes.append(f"rows of {', '.join(FITTED_PROTOCOLS)} were not computed: {reason}.")
    elif list(fit_folds) != expected:
        notes.append(f"probes and neighbours come from folds {list(fit_folds)} only; {expected} were expected.")
    if any(not table.is_empty() for table in skipped):
        notes.append(f"{sum(table.height for table in skipped)} records could not be read and were left out.")
    return {
        "fold": options.fold,
        "fingerprint": fingerprint,
        "bundle_training_folds": list(options.bundle_folds),
        "fit_folds": list(fit_folds),
        "fit_records": 0 if setting.train is None else len(setting.train),
        "test_records": len(setting.test),
        "test_subjects": len(np.unique(setting.test.subject_ids)),
        "resamples": options.resamples,
        "seed": options.seed,
        "vitals_weight": options.vitals_weight,
        "supervision": options.supervision,
        "notes": notes,
        "skipped": pl.concat(skipped).to_dicts(),
    }


def _folds_in(table: pl.DataFrame) -> list[int]:
    return sorted(table["strat_fold"].drop_nulls().unique().to_list())


def _ranges(folds: Sequence[int]) -> str:
    """Return ``"1-4, 6"`` for 1, 2, 3, 4, 6."""
    parts: list[list[int]] = []
    for fold in folds:
        if parts and parts[-1][-1] == fold - 1:
            parts[-1].append(fold)
        else:
            parts.append([fold])
    return ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)
