"""One value for a recording from those of its segments: maximum, mean or minimum, on labels that need 10 s."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mmecg.evaluation.label_metrics import Figure
from mmecg.experiments.bench import RANDOM, Bench, segments
from mmecg.experiments.experiment import Experiment, Outcome
from mmecg.experiments.figures import (
    auroc_figure,
    difference,
    excludes_zero,
    fit_head,
    known_rows,
    rows_beside,
    verdict,
)
from mmecg.labels.logistic import expit

SEGMENT_S = 5.0
"""As the input of ECG-FM."""

GROUPS: Mapping[str, tuple[str, ...]] = {
    "intermittent": ("all/PVC", "all/PAC", "all/BIGU", "all/TRIGU"),
    "throughout": ("all/AFIB", "all/AFLT", "all/SARRH", "all/SBRAD", "all/STACH", "all/SVARR", "all/PACE"),
}
"""Labels of rhythm by whether one segment may show what another does not: the rule of the authors of ECG-FM takes the
maximum for ectopic beats and the mean for most rhythms."""

REDUCTIONS = ("max", "mean", "min")
WHOLE = "whole"


def run(bench: Bench) -> Outcome:
    """Compare the reductions with each other and with features of the whole recording."""
    rows, tables, sentences, headline = [], [], [], []
    for group, wanted in GROUPS.items():
        labels = _with_positives(bench, wanted)
        if not labels:
            continue
        truth = bench.recordings.truth(labels)
        found = {name: _scores(bench, name, truth) for name in bench.encoders}
        figures: dict[str, dict[str, Figure]] = {
            name: {way: auroc_figure(bench, truth, scores) for way, scores in ways.items()}
            for name, ways in found.items()
        }
        n = known_rows(bench, truth)
        for way in (WHOLE, *REDUCTIONS):
            of_way = {name: ways[way] for name, ways in figures.items()}
            rows += rows_beside(bench, f"{group}/{way}", of_way, n, labels=list(labels))
        first = figures[bench.first]
        pairs = {"max_over_mean": ("max", "mean"), "mean_over_whole": ("mean", WHOLE), "min_over_mean": ("min", "mean")}
        gaps = {key: difference(first[one], first[other]) for key, (one, other) in pairs.items()}
        for key, gap in gaps.items():
            one, other = pairs[key]
            nothing = {
                "random_encoder": figures[RANDOM][one].value - figures[RANDOM][other].value,
                "prevalence": 0.0,
            }
            rows.append(gap.row(f"{bench.first}/{group}/{key}", n, nothing, excludes_zero=excludes_zero(gap)))
        headline += [f"{bench.first}/{group}/max_over_mean", f"{bench.first}/{group}/mean_over_whole"]
        sentences.append(
            f"{group}: maximum over mean {verdict(gaps['max_over_mean'])}, mean over the whole recording "
            f"{verdict(gaps['mean_over_whole'])}"
        )
        tables += [_per_label(bench, group, labels, truth, name, ways) for name, ways in found.items()]
    sentence = f"AUROC from {SEGMENT_S:g} s segments, {'; '.join(sentences)}."
    return Outcome(tuple(headline), tuple(rows), sentence, {"per_label": pl.concat(tables)} if tables else {})


def _with_positives(bench: Bench, labels: tuple[str, ...]) -> tuple[str, ...]:
    """Return the labels that occur in each part of the split."""
    known = [label for label in labels if label in bench.recordings.labels.labels]
    parts = (bench.split.fit, bench.split.choose, bench.split.test)
    truth = bench.recordings.truth(known)
    return tuple(
        label for label, column in zip(known, truth.T, strict=True) if all((column[p] > 0).any() for p in parts)
    )


def _scores(bench: Bench, name: str, truth: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    """Return the scores of the test recordings by reduction: each float32, shape (n, labels)."""
    split = bench.split
    whole = bench.features(name)
    scores = {WHOLE: fit_head(whole, truth, split.fit, split.choose).logits(whole[split.test])}
    shown = bench.features(name, segments(SEGMENT_S))
    count = shown.shape[1]
    flat = shown.reshape(-1, shown.shape[2])
    of_segments = [(rows[:, None] * count + np.arange(count)).ravel() for rows in (split.fit, split.choose)]
    probe = fit_head(flat, np.repeat(truth, count, axis=0), *of_segments)
    chance = expit(probe.logits(shown[split.test].reshape(-1, shown.shape[2])))
    chance = chance.reshape(len(split.test), count, -1)
    return scores | {way: getattr(np, way)(chance, axis=1).astype(np.float32) for way in REDUCTIONS}


def _per_label(
    bench: Bench,
    group: str,
    labels: tuple[str, ...],
    truth: NDArray[np.float32],
    name: str,
    ways: Mapping[str, NDArray[np.float32]],
) -> pl.DataFrame:
    lines = []
    for column, label in enumerate(labels):
        line: dict[str, object] = {"encoder": name, "group": group, "label": label}
        line["positives"] = int((truth[bench.split.test, column] > 0).sum())
        for way, scores in ways.items():
            line[way] = auroc_figure(bench, truth[:, [column]], scores[:, [column]]).value
        lines.append(line)
    return pl.DataFrame(lines)


EXPERIMENT = Experiment(
    name="segment-aggregation",
    asked="An encoder that sees a few seconds gives several answers for a recording: is their maximum, mean or minimum "
    "the best, on labels that need the whole 10 s, and is any as good as seeing the whole?",
    protocol=f"Segments of {SEGMENT_S:g} s are encoded one by one; a probe is fitted on segments that carry their "
    "recording's label; its probabilities are reduced by maximum, mean and minimum. Labels of ectopic beats, which may "
    "show in one segment only, and of rhythms, which hold throughout, apart. Beside it the probe on features of the "
    "whole recording. Macro-AUROC on the test fold.",
    run=run,
)
