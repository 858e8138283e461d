"""Random lead masking in training, on and off: with some of the leads, and on labels that show in certain leads."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mmecg.adaptation.backbone import small_backbone
from mmecg.ecg import LEADS, LIMB_LEADS, lead_index
from mmecg.evaluation.label_metrics import Figure
from mmecg.evaluation.metrics import MIN_POSITIVES
from mmecg.experiments.bench import Bench
from mmecg.experiments.experiment import Experiment, Outcome
from mmecg.experiments.figures import CHANCE, auroc_figure, difference, excludes_zero, fit_head, known_rows, verdict
from mmecg.experiments.training import Change, Recipe, outputs, train
from mmecg.pretraining.masking import lead_masks

PROBABILITY = 0.5
"""With which each lead is hidden: that of ECG-FM."""

SUBSETS: Mapping[str, tuple[str, ...]] = {
    "12": LEADS,
    "limb": LIMB_LEADS,
    "I": ("I",),
    "II": ("II",),
    "I-II-V2": ("I", "II", "V2"),
}
LEAD_LABELS = ("all/IMI", "all/ASMI", "all/LAFB", "all/CRBBB", "all/CLBBB", "all/LVH")
"""Statements whose definition names leads."""

SYSTEMS = {"on": PROBABILITY, "off": 0.0}
RECIPE = Recipe(steps=300)


def run(bench: Bench) -> Outcome:
    """Train twice, and test both with fewer and fewer leads."""
    groups = {"superclass": bench.recordings.group("superclass"), "lead_labels": LEAD_LABELS}
    labels = tuple(dict.fromkeys((*groups["superclass"], *bench.recordings.group("all"))))
    truth = bench.recordings.truth(labels)
    scores = {name: _trained(bench, truth, name) for name in SYSTEMS}
    scores["random"] = _random(bench, truth)
    rows, lines = [], []
    gaps: dict[tuple[str, str], Figure] = {}
    for group, names in groups.items():
        columns = [labels.index(name) for name in names]
        gold = truth[:, columns]
        n = known_rows(bench, gold)
        for subset in SUBSETS:
            found = {
                name: auroc_figure(bench, gold, of_subsets[subset][:, columns], min_positives=MIN_POSITIVES)
                for name, of_subsets in scores.items()
            }
            values = {name: figure.value for name, figure in found.items()}
            baselines = {"random_encoder": values["random"], "prevalence": CHANCE}
            rows += [found[name].row(f"{group}/{subset}/{name}", n, baselines) for name in SYSTEMS]
            gaps[group, subset] = difference(found["on"], found["off"])
            gap = gaps[group, subset]
            key = f"{group}/{subset}/on_over_off"
            rows.append(gap.row(key, n, {"prevalence": 0.0}, excludes_zero=excludes_zero(gap)))
            lines.append({"group": group, "leads": subset, **values})
    told = ", ".join(f"{subset} {verdict(gaps['superclass', subset])}" for subset in SUBSETS)
    sentence = (
        f"Macro-AUROC of superclasses with masking over without, by the leads tested on: {told}; of statements that "
        f"show in certain leads, with all 12: {verdict(gaps['lead_labels', '12'])}."
    )
    notes = [
        f"Small tower, {RECIPE.steps} steps of {RECIPE.batch} crops of {RECIPE.crop_s:g} s; no given encoder is used."
    ]
    headline = ("superclass/12/on_over_off", "superclass/I/on_over_off", "lead_labels/12/on_over_off")
    return Outcome(headline, tuple(rows), sentence, {"subsets": pl.DataFrame(lines)}, notes=notes)


def hide(leads: tuple[str, ...]) -> Change:
    """Return what hides all leads but these."""
    keep = np.zeros((len(LEADS), 1), np.float32)
    keep[[lead_index(lead) for lead in leads]] = 1

    def change(crops: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
        return crops * keep

    return change


def mask_at_random(probability: float) -> Change:
    """Return what hides each lead of each crop with a probability."""

    def change(crops: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
        return crops * lead_masks(len(crops), crops.shape[1], probability, rng)

    return change


def _trained(bench: Bench, truth: NDArray[np.float32], name: str) -> dict[str, NDArray[np.float32]]:
    probability = SYSTEMS[name]
    change = mask_at_random(probability) if probability else None
    encoder = small_backbone(bench.options.seed)
    model = train(bench, encoder, truth, bench.split.fit, RECIPE, change=change, what=f"training, masking {name}")
    signals = bench.recordings.signals[bench.split.test]
    return {subset: outputs(model, signals, hide(leads)) for subset, leads in SUBSETS.items()}


def _random(bench: Bench, truth: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    """Return the scores of probes on the untrained network, fitted with all leads."""
    encoder, split, signals = small_backbone(bench.options.seed), bench.split, bench.recordings.signals
    rows = np.concatenate([split.fit, split.choose])
    features = np.zeros((len(bench.recordings), encoder.feature_dim), np.float32)
    features[rows] = outputs(encoder, signals[rows])
    head = fit_head(features, truth, split.fit, split.choose)
    return {
        subset: head.logits(outputs(encoder, signals[split.test], hide(leads))) for subset, leads in SUBSETS.items()
    }


EXPERIMENT = Experiment(
    name="random-lead-masking",
    asked="Does hiding leads at random in training keep a model useful where leads are missing, and what does it cost "
    "with all 12, above all on findings that show in certain leads?",
    protocol=f"The small tower is trained on superclasses and all statements of the fitted recordings, once with each "
    f"lead hidden with probability {PROBABILITY} (Oh et al. 2022, arXiv:2203.06889), once without; same seed, "
    "steps and crops. Tested on the test fold with all leads and with subsets, the others zero. lead_labels: "
    "statements whose definition names leads. Beside it a probe on the untrained network, fitted with all leads.",
    run=run,
)
