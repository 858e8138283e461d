"""Whether saliency lies where a finding is: in the right leads and in the right part of the beat.

Where a finding shows follows from its definition: Surawicz et al., AHA/ACCF/HRS recommendations, part III, Circulation
119:e235 (2009), for blocks; Hancock et al., part V, Circulation 119:e251 (2009), for hypertrophy; Thygesen et al.,
Fourth universal definition of myocardial infarction, Circulation 138:e618 (2018), for the leads of infarcts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from mmecg.adaptation.backbone import Backbone
from mmecg.adaptation.linear import LinearHead
from mmecg.adaptation.towers import OWN
from mmecg.ecg import LEADS, Ecg, lead_index
from mmecg.errors import InvalidInputError
from mmecg.evaluation.label_metrics import Figure
from mmecg.experiments.bench import RANDOM, Bench
from mmecg.experiments.experiment import Experiment, Outcome
from mmecg.experiments.figures import average, difference, excludes_zero, fit_head, mean_figure, rows_beside, verdict
from mmecg.prediction.beats import INDEPENDENT, RATE_HZ, find_beats
from mmecg.prediction.explain import integrated_gradients

RECORDINGS = 8
"""Test recordings with the finding that are explained, at most."""

SIGNAL = "signal"
"""Name of the baseline that is no saliency: the size of the signal itself, which attributions are a multiple of."""

Part = Literal["qrs", "st_t", "before_qrs"]
PARTS_S: Mapping[Part, tuple[float, float]] = {"before_qrs": (-0.28, -0.08), "qrs": (-0.08, 0.1), "st_t": (0.1, 0.44)}
"""From when to when, around the steepest place of QRS. QRS reaches as far as a bundle branch block is wide."""


@dataclass(frozen=True)
class Place:
    """Where a finding shows.

    Attributes
    ----------
    leads : tuple of str
    part : {"qrs", "st_t", "before_qrs"}
        Of the beat.
    """

    leads: tuple[str, ...]
    part: Part


PLACES: Mapping[str, Place] = {
    "CLBBB": Place(("I", "aVL", "V1", "V2", "V5", "V6"), "qrs"),
    "CRBBB": Place(("I", "V1", "V2", "V6"), "qrs"),
    "LAFB": Place(("I", "II", "III", "aVL", "aVF"), "qrs"),
    "IMI": Place(("II", "III", "aVF"), "qrs"),
    "ASMI": Place(("V1", "V2", "V3", "V4"), "qrs"),
    "LVH": Place(("I", "aVL", "V1", "V2", "V5", "V6"), "qrs"),
    "ISCAL": Place(("I", "aVL", "V3", "V4", "V5", "V6"), "st_t"),
    "1AVB": Place(LEADS, "before_qrs"),
}


def run(bench: Bench) -> Outcome:
    """Explain recordings that have a finding, and measure the share of saliency in its place."""
    for name, encoder in bench.encoders.items():
        if encoder.name != OWN:
            raise InvalidInputError(
                f"{name} is an {encoder.name}, expected our own tower, whose input is millivolt; give a bundle, or a "
                "directory that pretrain or finetune wrote from one",
                field="encoder",
            )
    labels = [f"all/{label}" for label in PLACES]
    truth = bench.recordings.truth(labels)
    split = bench.split
    probes = {name: fit_head(bench.features(name), truth, split.fit, split.choose) for name in bench.encoders}
    rows, lines = [], []
    gaps: dict[str, list[Figure]] = {RANDOM: [], SIGNAL: []}
    rng = np.random.default_rng(bench.options.seed)
    for column, (label, place) in enumerate(PLACES.items()):
        have = np.flatnonzero(truth[split.test, column] > 0)
        chosen = np.sort(rng.choice(have, min(RECORDINGS, len(have)), replace=False))
        if not len(chosen):
            continue
        found = _shares(bench, probes, column, place, chosen)
        weights = bench.weights[chosen]
        figures = {name: mean_figure(values, weights) for name, values in found.items()}
        area = figures.pop("area")
        extra = {"leads": list(place.leads), "part": place.part}
        rows += rows_beside(bench, label, figures, len(chosen), prevalence=area.value, **extra)
        for other, gap in gaps.items():
            gap.append(difference(figures[bench.first], figures[other]))
        lines.append(
            {"finding": label, "n": len(chosen), "area": area.value, **{k: f.value for k, f in figures.items()}}
        )
        bench.progress("explaining", column + 1, len(PLACES))
    overall = {name: average(of_findings) for name, of_findings in gaps.items()}
    explained = sum(int(str(line["n"])) for line in lines)
    names = (bench.first, RANDOM, SIGNAL, "area")
    mean = {name: float(np.mean([float(str(line[name])) for line in lines])) for name in names}
    for name, mean_gap in overall.items():
        key = f"{bench.first}/all_findings/over_{name}"
        beside = {"random_encoder": mean[RANDOM] - mean[name], "prevalence": mean["area"] - mean[name]}
        rows.append(mean_gap.row(key, explained, beside, excludes_zero=excludes_zero(mean_gap)))
    sentence = (
        f"Mean over {len(lines)} findings: {mean[bench.first]:.2f} of the evidence lies in leads and part of the beat "
        f"that define the finding, whose area is {mean['area']:.2f}; over a random encoder {verdict(overall[RANDOM])}, "
        f"over where the signal itself is large {verdict(overall[SIGNAL])}."
    )
    headline = tuple(f"{bench.first}/all_findings/over_{name}" for name in gaps)
    return Outcome(headline, tuple(rows), sentence, {"findings": pl.DataFrame(lines)})


def inside(ecg: Ecg, place: Place) -> NDArray[np.bool_]:
    """Return where a finding shows in a recording at :data:`~mmecg.prediction.beats.RATE_HZ`: bool, (leads, samples).

    Parameters
    ----------
    ecg : Ecg
    place : Place
    """
    signal = ecg.resample(RATE_HZ).signal
    begin, end = (round(second * RATE_HZ) for second in PARTS_S[place.part])
    times = (find_beats(signal[INDEPENDENT])[:, None] + np.arange(begin, end)).ravel()
    found = np.zeros(signal.shape, np.bool_)
    rows = [lead_index(lead) for lead in place.leads]
    found[np.ix_(np.array(rows), np.unique(times[(times >= 0) & (times < signal.shape[1])]))] = True
    return found


def _shares(
    bench: Bench, probes: Mapping[str, LinearHead], column: int, place: Place, chosen: NDArray[np.int64]
) -> dict[str, NDArray[np.float64]]:
    """Return the share of evidence inside the place for each recording, by encoder and baseline."""
    shares: dict[str, list[float]] = {name: [] for name in (*bench.encoders, SIGNAL, "area")}
    for row in bench.split.test[chosen]:
        ecg = bench.recordings.ecg(row)
        mask = inside(ecg, place)
        signal = ecg.resample(RATE_HZ).signal
        size = np.abs(signal - np.median(signal, axis=1, keepdims=True))
        shares[SIGNAL].append(float(size[mask].sum() / size.sum()))
        shares["area"].append(float(mask.mean()))
        for name, encoder in bench.encoders.items():
            evidence = np.maximum(_saliency(encoder, probes[name], ecg, column), 0)
            shares[name].append(float(evidence[mask].sum() / max(evidence.sum(), 1e-12)))
    return {name: np.array(values) for name, values in shares.items()}


def _saliency(encoder: Backbone, head: LinearHead, ecg: Ecg, column: int) -> NDArray[np.float32]:
    """Return what each sample adds to the log-odds of the probe: float32, shape (leads, samples)."""
    weight = torch.from_numpy(head.weight[:, column] / head.scale)

    def logits(signal: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = encoder(signal) @ weight  # constants of the head do not change a gradient
        return found[:, None]

    (segments,) = encoder.prepare([ecg.resample(RATE_HZ)])
    return integrated_gradients(logits, torch.from_numpy(segments[0]), 0)


EXPERIMENT = Experiment(
    name="saliency",
    asked="Do attributions of a label lie in the leads and in the part of the beat that define the finding?",
    protocol=f"Up to {RECORDINGS} test recordings with each of {len(PLACES)} findings; integrated gradients (as mmecg "
    "predict shows them) of a linear probe on frozen features. Value: the share of positive attribution inside the "
    "defining leads and part of the beat. Prevalence: the share of area, which is what even saliency would have. "
    "Beside it the same probe on a random encoder, and signal: the share of the signal's own size, as an attribution "
    "is a gradient times the signal.",
    run=run,
)
