"""Fine-tuned from an encoder against trained from scratch, with 1 to 100 % of the labelled patients."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace

import polars as pl

from mmecg.adaptation.label_table import split_folds
from mmecg.adaptation.towers import OWN
from mmecg.errors import InvalidInputError
from mmecg.evaluation.label_metrics import Figure
from mmecg.evaluation.metrics import MIN_POSITIVES
from mmecg.experiments.bench import RANDOM, Bench
from mmecg.experiments.experiment import Experiment, Outcome
from mmecg.experiments.figures import auroc_figure, difference, known_rows, rows_beside, verdict
from mmecg.experiments.training import Recipe, outputs, train

STEPS: Mapping[float, int] = {0.01: 60, 0.1: 150, 1.0: 400}
"""Share of the patients to the steps of training with them; more would be repetition."""

RECIPE = Recipe(learning_rate=2e-3)
GROUPS: Mapping[str, tuple[str, ...]] = {"AFIB": ("all/AFIB",), "superclass": (), "all": ()}
"""What is reported; without names, the group of labels that is called so."""


def run(bench: Bench) -> Outcome:
    """Train from every encoder and from fresh weights, with more and more labels."""
    for name, encoder in bench.encoders.items():
        if encoder.name != OWN:
            raise InvalidInputError(f"{name} is an {encoder.name}, expected our own tower, fed with crops in millivolt")
    recordings, options = bench.recordings, bench.options
    groups = {group: names or recordings.group(group) for group, names in GROUPS.items()}
    labels = tuple(dict.fromkeys(label for names in groups.values() for label in names))
    truth = recordings.truth(labels)
    rows, lines = [], []
    figures: dict[tuple[str, float], dict[str, Figure]] = {}
    for share, steps in STEPS.items():
        part = split_folds(recordings.labels, options.fold, fraction=share * options.fraction, seed=options.seed).fit
        scores = {}
        for name, encoder in bench.encoders.items():
            what = f"training from {name}, {share:.0%}"
            recipe = replace(RECIPE, steps=steps)
            model = train(bench, copy.deepcopy(encoder), truth, part, recipe, what=what)
            scores[name] = outputs(model, recordings.signals[bench.split.test])
        for group, names in groups.items():
            columns = [labels.index(name) for name in names]
            gold = truth[:, columns]
            least = MIN_POSITIVES if group == "all" else 1
            found = {
                name: auroc_figure(bench, gold, values[:, columns], min_positives=least)
                for name, values in scores.items()
            }
            figures[group, share] = found
            n = known_rows(bench, gold)
            rows += rows_beside(bench, f"{group}/{share:g}", found, n, recordings=len(part), steps=steps)
            values = {name: figure.value for name, figure in found.items()}
            lines.append({"group": group, "share": share, "recordings": len(part), **values})
    gaps = {key: difference(found[bench.first], found[RANDOM]) for key, found in figures.items()}
    told = "; ".join(
        f"{group} " + ", ".join(f"{share:.0%} {verdict(gaps[group, share])}" for share in STEPS)
        for group in ("AFIB", "superclass")
    )
    notes = [
        f"Steps of {RECIPE.batch} crops of {RECIPE.crop_s:g} s: "
        + ", ".join(f"{steps} with {share:.0%}" for share, steps in STEPS.items())
        + f"; peak rate {RECIPE.learning_rate:g}, chosen for neither."
    ]
    sentence = f"AUROC fine-tuned from the {bench.first} over from scratch, by share of the labels: {told}."
    headline = tuple(f"{bench.first}/AFIB/{share:g}/gain" for share in STEPS)
    return Outcome(headline, tuple(rows), sentence, {"curve": pl.DataFrame(lines)}, notes=notes)


EXPERIMENT = Experiment(
    name="transfer",
    asked="Is a network that starts from the encoder better than one that starts from fresh weights, and with how many "
    "labels?",
    protocol="All weights are trained on superclasses and statements of 1, 10 and 100 % of the fitted patients, from "
    "each encoder and from fresh weights of the same network (the row of the random encoder, here trained as well); "
    "same patients, steps, crops and rate. AUROC of atrial fibrillation, macro-AUROC of superclasses and of statements "
    "with at least ten positives in the test fold.",
    run=run,
)
