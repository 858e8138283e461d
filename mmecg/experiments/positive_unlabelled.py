"""Training on incomplete labels: positive-unlabelled against taking the unlabelled as negative."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mmecg.errors import InvalidInputError
from mmecg.evaluation.label_metrics import Figure, brier, everything_f1, f1
from mmecg.evaluation.results import Row
from mmecg.experiments.bench import RANDOM, Bench
from mmecg.experiments.experiment import Experiment, Outcome
from mmecg.experiments.figures import auroc_figure, difference, excludes_zero, spoken
from mmecg.labels.positive_unlabelled import (
    MIN_MENTIONED,
    LinearModel,
    fit_labelled,
    fit_positive_unlabelled,
    mask_labels,
)

HIDDEN = (0.3, 0.5, 0.7, 0.9)
LABELS_AT_MOST = 8
METHODS = ("naive", "elkan_noto", "nnpu")
ORACLE = "oracle"


def run(bench: Bench) -> Outcome:
    """Hide positives of the training recordings, and compare what is learnt from the rest."""
    truth, labels = _labels(bench)
    rows: list[Row] = []
    lines: list[dict[str, object]] = []
    gains: dict[float, Figure] = {}
    models = {name: {ORACLE: _fit(bench, name, truth, None, ORACLE)} for name in bench.encoders}
    whole = {name: _figures(bench, name, truth, models[name][ORACLE]) for name in bench.encoders}
    n = len(bench.split.test)
    for hidden in HIDDEN:
        found: dict[str, dict[str, dict[str, Figure]]] = {}
        for name in bench.encoders:
            bench.progress(f"hiding {hidden:.0%} with {name}", len(lines), 0)
            found[name] = {
                method: _figures(bench, name, truth, _fit(bench, name, truth, hidden, method)) for method in METHODS
            }
        for name in [name for name in bench.encoders if name != RANDOM]:
            for method in METHODS:
                for what, figure in found[name][method].items():
                    baselines = {
                        "random_encoder": found[RANDOM][method][what].value,
                        "prevalence": _prevalence(bench, truth)[what],
                        "naive": found[name]["naive"][what].value,
                        "oracle": whole[name][what].value,
                    }
                    rows.append(figure.row(f"{name}/{hidden:g}/{method}/{what}", n, baselines, labels=labels))
                if method != "naive":
                    gain = difference(found[name][method]["f1"], found[name]["naive"]["f1"])
                    random = found[RANDOM][method]["f1"].value - found[RANDOM]["naive"]["f1"].value
                    nothing = {"random_encoder": random, "prevalence": 0.0}
                    key = f"{name}/{hidden:g}/{method}/f1_over_naive"
                    rows.append(gain.row(key, n, nothing, excludes_zero=excludes_zero(gain)))
                    if name == bench.first and method == "elkan_noto":
                        gains[hidden] = gain
        lines += [
            {"encoder": name, "hidden": hidden, "method": method, **{key: one.value for key, one in figures.items()}}
            for name, ways in found.items()
            for method, figures in (ways | {ORACLE: whole[name]}).items()
        ]
    told = ", ".join(f"{hidden:.0%} hidden {spoken(gain)}" for hidden, gain in gains.items())
    within = [f"{hidden:.0%}" for hidden, gain in gains.items() if not excludes_zero(gain)]
    sentence = f"Gain of macro-F1 by Elkan and Noto's weights over naive negatives: {told}"
    sentence += f"; no difference beyond the interval at {', '.join(within)}." if within else "."
    headline = tuple(f"{bench.first}/{hidden:g}/elkan_noto/f1_over_naive" for hidden in (HIDDEN[1], HIDDEN[-1]))
    return Outcome(headline, tuple(rows), sentence, {"methods": pl.DataFrame(lines)})


def _labels(bench: Bench) -> tuple[NDArray[np.float32], list[str]]:
    """Return the most frequent statements that stay frequent enough when most of their positives are hidden."""
    names = bench.recordings.group("all")
    truth = bench.recordings.truth(names)
    left = truth[bench.split.fit].sum(axis=0) * (1 - max(HIDDEN))
    # Half as many again: what stays is drawn at random.
    enough = [column for column in np.argsort(-left, kind="stable") if left[column] >= 1.5 * MIN_MENTIONED]
    if not enough:
        raise InvalidInputError(
            f"no statement keeps {1.5 * MIN_MENTIONED:.0f} positives to fit on with {max(HIDDEN):.0%} of them hidden; "
            "give a folder with more recordings",
            field="data",
        )
    kept = [column for column in enough[:LABELS_AT_MOST] if 0 < truth[bench.split.test, column].mean() < 1]
    return truth[:, kept], [names[column] for column in kept]


def _fit(bench: Bench, name: str, truth: NDArray[np.float32], hidden: float | None, method: str) -> LinearModel:
    rows, seed = bench.split.fit, bench.options.seed
    features, labels = bench.features(name)[rows], truth[rows] > 0
    if hidden is None:
        return fit_labelled(features, labels)
    mentioned = mask_labels(labels, 1 - hidden, np.random.default_rng([seed, round(100 * hidden)]))
    if method == "naive":
        return fit_labelled(features, mentioned)
    subjects = bench.recordings.subjects[rows]
    return fit_positive_unlabelled(features, mentioned, subjects, "nnpu" if method == "nnpu" else "elkan_noto", seed)


def _figures(bench: Bench, name: str, truth: NDArray[np.float32], model: LinearModel) -> dict[str, Figure]:
    gold = truth[bench.split.test] > 0
    chance = model.probabilities(bench.features(name)[bench.split.test])
    return {
        "f1": f1(gold, chance >= 0.5, bench.weights)[0],
        "auroc": auroc_figure(bench, truth, chance),
        "brier": brier(gold, chance, bench.weights),
    }


def _prevalence(bench: Bench, truth: NDArray[np.float32]) -> Mapping[str, float]:
    gold = truth[bench.split.test] > 0
    share = np.broadcast_to(gold.mean(axis=0), gold.shape)
    constant = brier(gold, share, bench.weights)
    return {"f1": everything_f1(gold)[0], "auroc": 0.5, "brier": constant.value}


EXPERIMENT = Experiment(
    name="positive-unlabelled",
    asked="If 30 to 90 % of the positive labels are missing, what is regained by knowing that the others are "
    "unlabelled rather than negative?",
    protocol="Of the positives of the fitted recordings a share is hidden at random, label by label (those of the "
    f"{LABELS_AT_MOST} most frequent statements that keep enough); test labels are complete. Logistic regression on 64 "
    "principal components of frozen features: naive (unlabelled is negative), Elkan and Noto's weights and the "
    "non-negative risk estimator, label frequencies estimated; the oracle has all labels. Macro-F1 at probability 0.5, "
    "macro-AUROC, Brier.",
    run=run,
)
