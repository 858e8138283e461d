"""Whether adjacent segments of a recording are a valid positive pair, as contrastive multi-segment coding takes them.

CMSC (Kiyasseh et al., ICML 2021, arXiv:2005.13249) pulls the features of adjacent segments together, those of other
patients apart. That is right as far as a pair shows the same findings and the same rhythm, and it teaches something as
far as pairs of strangers do not.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mmecg.embedding import normalise
from mmecg.evaluation.label_metrics import Figure
from mmecg.experiments.bench import RANDOM, Bench, segments
from mmecg.experiments.experiment import Experiment, Outcome
from mmecg.experiments.figures import (
    difference,
    excludes_zero,
    fit_head,
    mean_figure,
    spoken,
)
from mmecg.labels.logistic import expit
from mmecg.prediction.measure import measure

SEGMENT_S = 5.0
RATE_TOLERANCE = 0.1
"""Heart rates within this share of each other are the same."""

IRREGULAR = 0.1
"""RMSSD over mean RR above which a rhythm is irregular: sinus arrhythmia, ectopy, fibrillation."""

ADJACENT, PATIENT, STRANGERS = "adjacent", "patient", "strangers"
PAIRS = (ADJACENT, PATIENT, STRANGERS)
"""Segments of one recording; first segments of two recordings of a patient; first segments of two patients."""

Values = NDArray[np.float64]


def run(bench: Bench) -> Outcome:
    """Compare the three kinds of pairs by rhythm, by what probes find in them, and by features."""
    pairs = _pairs(bench)
    rows, lines = [], []
    rhythm = _rhythms(bench)
    shares: dict[tuple[str, str], Figure] = {}
    for kind, (one, other) in pairs.items():
        first, second = rhythm[one, 0], rhythm[other, 1 if kind == ADJACENT else 0]
        for name, agree in _agreements(first, second).items():
            shares[kind, name] = _share(bench, agree, one)
        if kind != ADJACENT:  # labels are of the whole recording
            shares[kind, "same_labels"] = _share(bench, _same_findings(bench, one, other), one)
    for kind, name in shares:
        strangers = {"prevalence": shares[STRANGERS, name].value}
        rows.append(shares[kind, name].row(f"{kind}/{name}", len(pairs[kind][0]), strangers))
    found = {name: _by_encoder(bench, name, pairs) for name in bench.encoders}
    for name in [name for name in bench.encoders if name != RANDOM]:
        for key, figure in found[name].items():
            kind, what = key
            baselines = {
                "random_encoder": found[RANDOM][key].value,
                "prevalence": found[name][STRANGERS, what].value,
            }
            rows.append(figure.row(f"{name}/{kind}/{what}", len(pairs[kind][0]), baselines))
        gap = difference(found[name][ADJACENT, "same_predicted"], found[name][PATIENT, "same_predicted"])
        random = {kind: found[RANDOM][kind, "same_predicted"].value for kind in (ADJACENT, PATIENT)}
        nothing = {"random_encoder": random[ADJACENT] - random[PATIENT], "prevalence": 0.0}
        n = len(pairs[ADJACENT][0])
        rows.append(gap.row(f"{name}/adjacent_over_patient", n, nothing, excludes_zero=excludes_zero(gap)))
    for kind in PAIRS:
        line: dict[str, object] = {"pairs": kind, "n": len(pairs[kind][0])}
        line |= {name: figure.value for (of, name), figure in shares.items() if of == kind}
        line |= {what: figure.value for (of, what), figure in found[bench.first].items() if of == kind}
        lines.append(line)
    sentence = _sentence(shares, found[bench.first])
    headline = (f"{ADJACENT}/same_rhythm", f"{bench.first}/{ADJACENT}/same_predicted")
    return Outcome(headline, tuple(rows), sentence, {"pairs": pl.DataFrame(lines)})


def _sentence(shares: Mapping[tuple[str, str], Figure], found: Mapping[tuple[str, str], Figure]) -> str:
    told = [
        f"{spoken(shares[ADJACENT, 'same_rhythm'])} of adjacent pairs agree in rate and regularity, "
        f"{spoken(shares[PATIENT, 'same_rhythm'])} of pairs of a patient, "
        f"{spoken(shares[STRANGERS, 'same_rhythm'])} of strangers",
        *(
            f"{kind} {spoken(found[kind, 'same_predicted'])}" + (" show the same predicted superclasses" * (not at))
            for at, kind in enumerate(PAIRS)
        ),
    ]
    return "; ".join(told) + "."


def _pairs(bench: Bench) -> dict[str, tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Return the rows of both sides of each kind of pairs, all in the test fold."""
    rng = np.random.default_rng(bench.options.seed)
    rows = bench.split.test
    subjects = bench.recordings.subjects
    of_patient = [
        (one, other)
        for subject in np.unique(subjects[rows])
        for held in [rows[subjects[rows] == subject]]
        for one, other in pairwise(held.tolist())
    ]
    others = rng.permutation(rows)
    for place in np.flatnonzero(subjects[rows] == subjects[others]):
        others[place] = rng.choice(rows[subjects[rows] != subjects[rows[place]]])
    both = np.array(of_patient, np.int64).reshape(-1, 2)
    return {ADJACENT: (rows, rows), PATIENT: (both[:, 0], both[:, 1]), STRANGERS: (rows, others)}


def _share(bench: Bench, agree: Values, one: NDArray[np.int64]) -> Figure:
    """Return the mean over pairs; a pair counts as often as the patient of its first side was drawn."""
    return mean_figure(agree, bench.weights[np.searchsorted(bench.split.test, one)])


def _rhythms(bench: Bench) -> Values:
    """Return rate and irregularity of both segments, of test recordings only: (n, 2 segments, 2), NaN elsewhere."""
    found = np.full((len(bench.recordings), 2, 2), np.nan)
    for done, row in enumerate(bench.split.test):
        ecg = bench.recordings.ecg(row)
        for segment in range(2):
            values = {one.name: one.value for one in measure(ecg.crop(segment * SEGMENT_S, SEGMENT_S))}
            found[row, segment] = values["heart_rate_bpm"], values["rr_irregularity"]
        bench.progress("measuring rhythm", done + 1, len(bench.split.test))
    return found


def _agreements(one: Values, other: Values) -> dict[str, Values]:
    """Return 1, 0, or NaN where it cannot be measured, for each pair."""
    known = np.isfinite(one).all(axis=1) & np.isfinite(other).all(axis=1)
    rate = np.abs(one[:, 0] - other[:, 0]) <= RATE_TOLERANCE * (one[:, 0] + other[:, 0]) / 2
    regular = (one[:, 1] > IRREGULAR) == (other[:, 1] > IRREGULAR)
    said = {"same_rate": rate, "same_regularity": regular, "same_rhythm": rate & regular}
    return {name: np.where(known, agree.astype(float), np.nan) for name, agree in said.items()}


def _same_findings(bench: Bench, one: NDArray[np.int64], other: NDArray[np.int64]) -> Values:
    """Return whether both recordings have the same superclasses; NaN where one has none."""
    truth = bench.recordings.truth(bench.recordings.group("superclass"))
    known = np.isfinite(truth[one]).all(axis=1) & np.isfinite(truth[other]).all(axis=1)
    return np.where(known, (truth[one] == truth[other]).all(axis=1).astype(float), np.nan)


def _by_encoder(
    bench: Bench, name: str, pairs: Mapping[str, tuple[NDArray[np.int64], NDArray[np.int64]]]
) -> dict[tuple[str, str], Figure]:
    """Return the share of pairs with the same predicted superclasses, and the mean cosine, by kind of pairs.

    Superclasses are predicted from one segment by a probe that was fitted on first segments; a superclass is predicted
    above the threshold at which as many recordings of the fold chosen on have it as in truth.
    """
    split = bench.split
    truth = bench.recordings.truth(bench.recordings.group("superclass"))
    shown = bench.features(name, segments(SEGMENT_S))
    probe = fit_head(shown[:, 0], truth, split.fit, split.choose)
    known = split.choose[np.isfinite(truth[split.choose]).all(axis=1)]
    chosen = expit(probe.logits(shown[known, 0]))
    share = truth[known].mean(axis=0)
    threshold = [np.quantile(column, 1 - part) for column, part in zip(chosen.T, share, strict=True)]
    centred = shown - shown[split.fit].mean(axis=(0, 1))
    found = {}
    for kind, (one, other) in pairs.items():
        at = 1 if kind == ADJACENT else 0
        decided = [expit(probe.logits(shown[rows, side])) > threshold for rows, side in ((one, 0), (other, at))]
        same = (decided[0] == decided[1]).all(axis=1).astype(float)
        cosine = (normalise(centred[one, 0]) * normalise(centred[other, at])).sum(axis=1)
        found[kind, "same_predicted"] = _share(bench, same, one)
        found[kind, "cosine"] = _share(bench, cosine.astype(float), one)
    return found


EXPERIMENT = Experiment(
    name="pair-validity",
    asked="Contrastive multi-segment coding takes adjacent segments as showing the same: do they, in rhythm and in "
    "labels, and how much more so than segments of another recording of the patient, or of a stranger?",
    protocol=f"Segments of {SEGMENT_S:g} s of the test fold. Same rhythm: mean rates within {RATE_TOLERANCE:.0%}, and "
    f"both or neither irregular (RMSSD over mean RR above {IRREGULAR}). Same labels: the recordings' superclasses. "
    "Same predicted: the superclasses that a probe on one segment finds, at thresholds from the fold chosen on. "
    "Cosine: of centred features. A pair counts for the patient of its first side in the bootstrap; "
    "prevalence is what pairs of strangers have.",
    run=run,
)
