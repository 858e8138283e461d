"""How figures rise with the number of labelled patients, on frozen features of each encoder."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mmecg.adaptation.label_table import split_folds
from mmecg.evaluation.label_metrics import Figure
from mmecg.evaluation.metrics import MIN_POSITIVES
from mmecg.experiments.bench import RANDOM, Bench
from mmecg.experiments.experiment import Experiment, Outcome
from mmecg.experiments.figures import auroc_figure, average, difference, fit_head, known_rows, rows_beside, verdict

SHARES = (0.01, 0.03, 0.1, 0.3, 1.0)
DRAWS = 3
"""Draws of patients for each share below the whole, averaged."""

TASKS = {"superclass": 1, "all": MIN_POSITIVES}


def run(bench: Bench) -> Outcome:
    """Probe with more and more of the patients."""
    rows, lines, figures = [], [], {}
    for task, least in TASKS.items():
        truth = bench.recordings.truth(bench.recordings.group(task))
        n = known_rows(bench, truth)
        for share in SHARES:
            parts = _draws(bench, share)
            figures[task, share] = {
                name: average([_figure(bench, name, truth, part, least) for part in parts]) for name in bench.encoders
            }
            recordings = float(np.mean([len(part) for part in parts]))
            rows += rows_beside(
                bench, f"{task}/{share:g}", figures[task, share], n, recordings=recordings, draws=len(parts)
            )
            values = {name: figure.value for name, figure in figures[task, share].items()}
            lines.append({"task": task, "share": share, "recordings": recordings, **values})
            bench.progress(f"probing {task}", len(rows), 0)
        steps = math.log2(SHARES[-1] / SHARES[-2])
        doubling = {
            name: _scaled(difference(figures[task, SHARES[-1]][name], figures[task, SHARES[-2]][name]), 1 / steps)
            for name in bench.encoders
        }
        rows += rows_beside(bench, f"{task}/last_doubling", doubling, n, prevalence=0.0)
    few, full = (figures["superclass", share] for share in (SHARES[0], SHARES[-1]))
    sentence = (
        f"Superclasses with all labels {full[bench.first].value:.3f}, "
        f"{verdict(difference(full[bench.first], full[RANDOM]))} over a random encoder; with 1 % of the patients "
        f"{few[bench.first].value:.3f}, {verdict(difference(few[bench.first], few[RANDOM]))}."
    )
    headline = tuple(f"{bench.first}/superclass/{share:g}/gain" for share in (SHARES[-1], SHARES[0]))
    return Outcome(headline, tuple(rows), sentence, {"curve": pl.DataFrame(lines)})


def _draws(bench: Bench, share: float) -> list[NDArray[np.int64]]:
    """Return the rows to fit on, one array a draw; a share of all the patients that are fitted on."""
    whole = bench.split.fit
    if share == 1:
        return [whole]
    table, options = bench.recordings.labels, bench.options
    drawn = [
        split_folds(table, options.fold, fraction=share, seed=1000 * options.seed + draw).fit for draw in range(DRAWS)
    ]
    return [np.intersect1d(rows, whole) for rows in drawn]


def _figure(bench: Bench, name: str, truth: NDArray[np.float32], rows: NDArray[np.int64], least: int) -> Figure:
    features = bench.features(name)
    probe = fit_head(features, truth, rows, bench.split.choose)
    return auroc_figure(bench, truth, probe.logits(features[bench.split.test]), min_positives=least)


def _scaled(figure: Figure, factor: float) -> Figure:
    return Figure(figure.value * factor, figure.samples * factor)


EXPERIMENT = Experiment(
    name="label-efficiency",
    asked="How many labelled patients does a probe on frozen features need, and what does doubling them still bring?",
    protocol="Probes as in linear-probe, fitted on 1, 3, 10, 30 and 100 % of the patients (below 100 %, the mean of "
    f"{DRAWS} draws; the same draws for every encoder), penalty chosen on the whole fold before the test fold. "
    "last_doubling is the gain from 30 to 100 % divided by the doublings between them.",
    run=run,
)
