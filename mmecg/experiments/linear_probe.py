"""Linear probing of frozen features, beside a random encoder and beside what can be measured without any network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mmecg.evaluation.metrics import MIN_POSITIVES, auroc
from mmecg.experiments.bench import RANDOM, Bench
from mmecg.experiments.experiment import Experiment, Outcome
from mmecg.experiments.figures import (
    auroc_figure,
    difference,
    excludes_zero,
    fit_head,
    known_rows,
    rows_beside,
    spoken,
    verdict,
)
from mmecg.prediction.waveform import summarise

MEASURED = "measured"
"""Name of the baseline without a network: some two hundred numbers of median beat, rhythm and spectrum."""

TASKS = {"superclass": 1, "all": MIN_POSITIVES}
"""Group of labels to the positives in the test fold that a label needs to enter the mean."""


def run(bench: Bench) -> Outcome:
    """Probe every encoder."""
    inputs = {name: bench.features(name) for name in bench.encoders} | {MEASURED: measured_features(bench)}
    rows, tables, sentences = [], [], []
    for task, least in TASKS.items():
        labels = bench.recordings.group(task)
        truth = bench.recordings.truth(labels)
        scores = {name: _scores(bench, features, truth) for name, features in inputs.items()}
        figures = {name: auroc_figure(bench, truth, found, min_positives=least) for name, found in scores.items()}
        n = known_rows(bench, truth)
        rows += rows_beside(bench, task, figures, n, min_positives=least, supervision=bench.supervision)
        first = figures[bench.first]
        over = difference(first, figures[MEASURED])
        nothing = {"random_encoder": difference(figures[RANDOM], figures[MEASURED]).value, "prevalence": 0.0}
        rows.append(over.row(f"{bench.first}/{task}/over_{MEASURED}", n, nothing, excludes_zero=excludes_zero(over)))
        gain = verdict(difference(first, figures[RANDOM]))
        sentences.append(f"{task} {spoken(first)}, over a random encoder {gain}, over measured numbers {verdict(over)}")
        tables.append(_per_label(bench, task, labels, truth, scores))
    sentence = f"Macro-AUROC of a probe on frozen features: {'; '.join(sentences)}."
    headline = tuple(f"{bench.first}/{task}" for task in TASKS)
    return Outcome(headline, tuple(rows), sentence, {"per_label": pl.concat(tables)})


def measured_features(bench: Bench) -> NDArray[np.float32]:
    """Return :func:`mmecg.prediction.waveform.summarise` of every recording; what is missing is the mean."""
    found = np.stack([summarise(bench.recordings.ecg(row)) for row in range(len(bench.recordings))])
    mean = np.nan_to_num(np.nanmean(found[bench.split.fit], axis=0))
    return np.where(np.isfinite(found), found, mean).astype(np.float32)


def _scores(bench: Bench, features: NDArray[np.float32], truth: NDArray[np.float32]) -> NDArray[np.float32]:
    probe = fit_head(features, truth, bench.split.fit, bench.split.choose)
    return probe.logits(features[bench.split.test])


def _per_label(
    bench: Bench,
    task: str,
    labels: Sequence[str],
    truth: NDArray[np.float32],
    scores: Mapping[str, NDArray[np.float32]],
) -> pl.DataFrame:
    rows = truth[bench.split.test]
    known = np.isfinite(rows).all(axis=1)
    positive = rows[known] > 0.5
    table = {"task": [task] * len(labels), "label": [label.split("/", 1)[1] for label in labels]}
    found = {name: auroc(positive, values[known]) for name, values in scores.items()}
    return pl.DataFrame({**table, "positives": positive.sum(axis=0), **found}).with_columns(
        pl.col(pl.Float64).fill_nan(None)
    )


EXPERIMENT = Experiment(
    name="linear-probe",
    asked="How much do frozen features of the encoder say about the labels, beyond those of a random network?",
    protocol="Logistic regression on the features of the whole recording; penalty chosen on the fold before the test "
    "fold; macro-AUROC over the five superclasses, and over the statements with at least ten positives in the test "
    "fold. Beside it the same probe on features of the same network with fresh weights, and on some two hundred "
    "numbers measured in the signal.",
    run=run,
)
