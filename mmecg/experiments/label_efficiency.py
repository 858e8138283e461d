"""How figures rise with the number of labelled patients, on frozen features of each encoder."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mmecg.adaptation.label_table import split_folds
from mmecg.evaluation.label_metrics import Figure
from mmecg.experiments.bench import RANDOM, Bench
from mmecg.experiments.experiment import Experiment, Outcome
from mmecg.experiments.figures import auroc_figure, average, difference, fit_head, known_rows, rows_beside, verdict

SHARES = (0.01, 0.03, 0.1, 0.3, 1.0)
DRAWS = 3
"""Draws of patients for each share below the whole, averaged."""

TASK = "superclass"


def run(bench: Bench) -> Outcome:
    """Probe with more and more of the patients."""
    rows, lines = [], []
    figures: dict[float, dict[str, Figure]] = {}
    truth = bench.recordings.truth(bench.recordings.group(TASK))
    n = known_rows(bench, truth)
    for done, share in enumerate(SHARES):
        bench.progress("probing", done, len(SHARES))
        parts = _draws(bench, share)
        found = {name: average([_figure(bench, name, truth, part) for part in parts]) for name in bench.encoders}
        figures[share] = found
        recordings = float(np.mean([len(part) for part in parts]))
        rows += rows_beside(bench, f"{TASK}/{share:g}", found, n, recordings=recordings, draws=len(parts))
        values = {name: figure.value for name, figure in found.items()}
        lines.append({"share": share, "recordings": recordings, **values})
    doublings = math.log2(SHARES[-1] / SHARES[-2])
    last = {name: difference(figures[SHARES[-1]][name], figures[SHARES[-2]][name]) for name in bench.encoders}
    last = {name: Figure(gap.value / doublings, gap.samples / doublings) for name, gap in last.items()}
    rows += rows_beside(bench, f"{TASK}/last_doubling", last, n, prevalence=0.0)
    few, full = figures[SHARES[0]], figures[SHARES[-1]]
    sentence = (
        f"Superclass macro-AUROC of the {bench.first} with all labels {full[bench.first].value:.3f}, "
        f"{verdict(difference(full[bench.first], full[RANDOM]))} over a random encoder; with {SHARES[0]:.0%} of the "
        f"patients {few[bench.first].value:.3f}, {verdict(difference(few[bench.first], few[RANDOM]))}; the last "
        f"doubling of labels adds {verdict(last[bench.first])}."
    )
    headline = tuple(f"{bench.first}/{TASK}/{share:g}/gain" for share in (SHARES[-1], SHARES[0]))
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


def _figure(bench: Bench, name: str, truth: NDArray[np.float32], rows: NDArray[np.int64]) -> Figure:
    features = bench.features(name)
    head = fit_head(features, truth, rows, bench.split.choose)
    return auroc_figure(bench, truth, head.logits(features[bench.split.test]))


EXPERIMENT = Experiment(
    name="label-efficiency",
    asked="How many labelled patients does a probe on frozen features need, and what does doubling them still bring?",
    protocol="Probes as in linear-probe, fitted on 1, 3, 10, 30 and 100 % of the patients (below 100 %, the mean of "
    f"{DRAWS} draws; the same draws for every encoder), penalty chosen on the whole fold before the test fold. "
    "last_doubling is the gain from 30 to 100 % divided by the doublings between them.",
    run=run,
)
