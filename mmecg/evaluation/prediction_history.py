"""What the subject's earlier studies add, and the controls that make it believable.

Every row is on studies with at least one earlier study of the same subject and compares systems under the same
resamples of patients. A control keeps everything but the truth of the history: it should add nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.special import expit, logit

from mmecg.evaluation.bootstrap import interval
from mmecg.evaluation.label_metrics import Figure, brier, ece
from mmecg.evaluation.metrics import eligible
from mmecg.evaluation.prediction_cases import Cases, Part
from mmecg.evaluation.prediction_metrics import Aurocs, average_precision, holm, mean_figure, wald_p
from mmecg.evaluation.results import Row
from mmecg.prediction.history import Prior, last_known

CONTROLS: dict[str, str] = {
    "control_shuffled": "contents and times of all histories permuted",
    "control_other_patient": "the whole history of another patient",
    "control_count_only": "only how many earlier studies there are",
    "control_carry_forward": "the last known value of the label alone, without the ECG",
}
VARIANTS: dict[str, str] = {
    "labels_only": "labels of the earlier studies, not their ECGs",
    "embeddings_only": "ECGs of the earlier studies, not their labels",
    "reports_only": "what is mined from the reports of the earlier studies, not their labels",
    "reordered": "times permuted within each history",
}
GAPS: dict[str, tuple[float, float]] = {
    "<1 week": (0, 7), "1-4 weeks": (7, 30), "1-12 months": (30, 365.25), "1-3 years": (365.25, 3 * 365.25),
    "3+ years": (3 * 365.25, math.inf),
}  # fmt: skip
COUNTS: dict[str, tuple[float, float]] = {"0": (0, 1), "1": (1, 2), "2-4": (2, 5), "5+": (5, math.inf)}

Histories = Sequence[Sequence[Prior]]


def other_owners(subject_ids: NDArray[np.str_], *, seed: int = 0) -> NDArray[np.int64]:
    """Return for each study another one, of another subject, each used once: int64, shape (n,).

    Studies of one subject lie side by side in a random order of subjects; turning that ring by the size of the largest
    subject leaves nobody with a study of their own. If one subject has more than half of the studies there is no such
    choice, and some keep their own.
    """
    rng = np.random.default_rng(seed)
    subjects, subject_of, sizes = np.unique(subject_ids, return_inverse=True, return_counts=True)
    order = np.argsort(rng.permutation(len(subjects))[subject_of], kind="stable")
    owners = np.empty(len(order), np.int64)
    owners[order] = np.roll(order, int(sizes.max()) if len(sizes) else 0)
    return owners


def shuffled(histories: Histories, *, seed: int = 0) -> list[list[Prior]]:
    """Return the histories with what is known permuted among all earlier studies of all subjects, and the times too.

    How many earlier studies each study has stays; latest first stays.
    """
    rng = np.random.default_rng(seed)
    everyone = [prior for history in histories for prior in history]
    contents, times = rng.permutation(len(everyone)), rng.permutation(len(everyone))
    found, at = [], 0
    for history in histories:
        drawn = [
            replace(everyone[contents[at + place]], days_before=everyone[times[at + place]].days_before)
            for place in range(len(history))
        ]
        found.append(sorted(drawn, key=lambda prior: prior.days_before))
        at += len(history)
    return found


def reordered(histories: Histories, *, seed: int = 0) -> list[list[Prior]]:
    """Return the histories with the times permuted within each of them: tells whether the order matters."""
    rng = np.random.default_rng(seed)
    found = []
    for history in histories:
        times = rng.permutation([prior.days_before for prior in history])
        drawn = [replace(prior, days_before=float(time)) for prior, time in zip(history, times, strict=True)]
        found.append(sorted(drawn, key=lambda prior: prior.days_before))
    return found


def carry_forward(histories: Histories, rates: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return log-odds from the last known value of each label alone; the label's rate where nothing is known.

    Parameters
    ----------
    histories : sequence of sequence of Prior, length n
    rates : float64, shape (labels,)
        Log-odds of each label's rate.
    """
    known = last_known(histories, len(rates))
    return np.where(known == 0, rates, np.where(known == 2, logit(0.95), logit(0.05)))


def fit_count(
    offset: NDArray[np.floating], counts: NDArray[np.integer], gold: NDArray[np.bool_], *, penalty: float = 1.0
) -> NDArray[np.float64]:
    """Fit the count-only control: log-odds plus a constant and a weight of ``log(1 + number of earlier studies)``.

    Parameters
    ----------
    offset : floating, shape (n, labels)
        Log-odds without history, from heads that have not seen the studies.
    counts : int, shape (n,)
    gold : bool, shape (n, labels)
    penalty : float
        On the squares of both, as that many studies' worth of evidence.

    Returns
    -------
    float64, shape (2, labels)
    """
    design = np.column_stack([np.ones(len(counts)), np.log1p(counts)])
    found = np.zeros((2, gold.shape[1]))
    for _ in range(15):
        p = expit(offset + design @ found)
        gradient = design.T @ (gold - p) - penalty * found
        spread = p * (1 - p)
        hessian = np.einsum("np,nq,nl->lpq", design, design, spread, optimize=True) + penalty * np.eye(2)
        found = found + np.clip(np.linalg.solve(hessian, gradient.T[:, :, None])[:, :, 0].T, -2, 2)
    return found


def apply_count(
    logits: NDArray[np.floating], counts: NDArray[np.integer], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return log-odds with what :func:`fit_count` found added."""
    return np.asarray(logits + weights[0] + np.log1p(counts)[:, None] * weights[1], np.float64)


def history(cases: Cases, suffix: str = "") -> Part:
    """Return the gain from history, the controls, the strata and the labels.

    Parameters
    ----------
    cases : Cases
        All studies; ``systems`` has ``"history"``, ``"current"`` and those of :data:`CONTROLS` and :data:`VARIANTS`
        that there are.
    suffix : str
        Ends the row and table names, such as ``"/cross_fitted"``.
    """
    followed = cases.take(cases.priors > 0)
    part = followed.task("all")
    aurocs = {
        name: part.aurocs(name)
        for name in part.systems
        if name not in ("ecg", "no_cohort") and not name.startswith("subset/")
    }
    without = aurocs["current"]
    if not without.enough.any():
        reason = f"no label has 10 positives among the {len(part)} studies with an earlier one"
        keys = ("history_gain", *CONTROLS)
        return Part(tuple(Row.missing(f"{key}/macro_auroc{suffix}", reason) for key in keys))
    rows = [_gain_row(part, aurocs, name, suffix) for name in ("history", *CONTROLS, *VARIANTS)
            if name in aurocs]  # fmt: skip
    rows += _quality_rows(followed, suffix)
    tag = suffix.replace("/", "_")
    tables = {
        f"history_systems{tag}": _systems_table(part, aurocs),
        f"history_strata{tag}": _strata_table(cases),
        f"history_labels{tag}": _labels_table(part, aurocs),
    }
    return Part(tuple(rows), tables)


def _gain_row(part: Cases, aurocs: dict[str, Aurocs], name: str, suffix: str) -> Row:
    without, with_it = aurocs["current"], aurocs[name]
    gain = with_it.gain_over(without)
    key = "history_gain" if name == "history" else name if name.startswith("control") else f"history_{name}"
    everything = with_it.gain_over(without, without.some)
    peers = {peer: aurocs[peer].gain_over(without).value for peer in CONTROLS if peer in aurocs and peer != name}
    return gain.row(
        f"{key}/macro_auroc{suffix}",
        len(part),
        {"prevalence": 0.0, **({} if "random_encoder" not in aurocs else
                               {"random_encoder": aurocs["random_encoder"].gain_over(without).value}), **peers},
        n_labels=int(without.enough.sum()),
        auroc=with_it.macro().value,
        auroc_without=without.macro().value,
        value_all_labels=everything.value,
        n_labels_all_labels=int(without.some.sum()),
        subjects=part.table["subject_id"].n_unique(),
        excludes_zero=bool(_excludes_zero(gain)),
    )  # fmt: skip


def _excludes_zero(figure: Figure) -> bool:
    bounds = interval(figure.samples)
    return bounds.low > 0 or bounds.high < 0


def _quality_rows(followed: Cases, suffix: str) -> list[Row]:
    """Return the gain on superclasses, and what history does to average precision, Brier score and calibration."""
    rows = []
    classes = followed.task("superclass")
    if len(classes) and (without := classes.aurocs("current")).enough.any():
        gain = classes.aurocs("history").gain_over(without)
        rows.append(
            gain.row(f"history_gain/superclass{suffix}", len(classes), {"prevalence": 0.0},
                     n_labels=int(without.enough.sum()), auroc_without=without.macro().value)
        )  # fmt: skip
    part = followed.task("all")
    kept = eligible(part.gold)
    gold, everyone = part.gold[:, kept], np.ones(int(kept.sum()), np.bool_)
    figures: dict[str, dict[str, Figure]] = {"auprc": {}, "brier": {}, "ece": {}}
    for system in ("history", "current"):
        logits, probability = part.systems[system][:, kept], part.probability(system)[:, kept]
        figures["auprc"][system] = mean_figure(*average_precision(gold, logits, part.weights), everyone)
        figures["brier"][system] = brier(gold, probability, part.weights)
        figures["ece"][system] = ece(gold, probability, part.weights)
    for name, found in figures.items():
        with_it, without_it = found["history"], found["current"]
        change = Figure(with_it.value - without_it.value, with_it.samples - without_it.samples)
        extra = {f"{name}_{system}": figure.value for system, figure in found.items()}
        rows.append(
            change.row(f"history_gain/{name}{suffix}", len(part), {"prevalence": 0.0}, n_labels=len(everyone), **extra)
        )
    return rows


def _systems_table(part: Cases, aurocs: dict[str, Aurocs]) -> pl.DataFrame:
    without = aurocs["current"]
    kept = without.enough
    lines: list[dict[str, object]] = []
    for name, found in aurocs.items():
        macro, gain = found.macro(kept), found.gain_over(without)
        bounds, spread = interval(macro.samples), interval(gain.samples)
        lines.append(
            {"system": name, "studies": len(part), "labels": int(kept.sum()), "auroc": macro.value, "low": bounds.low,
             "high": bounds.high, "gain": gain.value, "gain_low": spread.low, "gain_high": spread.high}
        )  # fmt: skip
    constant = {"system": "prevalence", "studies": len(part), "labels": int(kept.sum()), "auroc": 0.5,
                "gain": 0.5 - without.macro().value}  # fmt: skip
    return pl.DataFrame([*lines, constant], infer_schema_length=None).sort("auroc", descending=True)


def _strata_table(cases: Cases) -> pl.DataFrame:
    """Return AUROC with and without history by number of earlier studies and by the gap to the latest."""
    lines = []
    groups = [("earlier studies", name, (cases.priors >= low) & (cases.priors < high))
              for name, (low, high) in COUNTS.items()]  # fmt: skip
    groups += [("gap to the latest", name, (cases.gap_days >= low) & (cases.gap_days < high))
               for name, (low, high) in GAPS.items()]  # fmt: skip
    groups.insert(0, ("earlier studies", "1 or more", cases.priors > 0))
    for by, name, mask in groups:
        part = cases.take(mask).task("all")
        line: dict[str, object] = {"by": by, "stratum": name, "studies": len(part), "labels": 0}
        if len(part):
            with_it, without = part.aurocs("history"), part.aurocs("current")
            line["labels"] = int(without.enough.sum())
            if without.enough.any():
                gain = with_it.gain_over(without)
                bounds = interval(gain.samples)
                line |= {"auroc_without": without.macro().value, "auroc_with": with_it.macro().value,
                         "gain": gain.value, "low": bounds.low, "high": bounds.high,
                         "random_encoder": part.macro_baselines(without.enough).get("random_encoder"),
                         "prevalence": 0.5}  # fmt: skip
        lines.append(line)
    return pl.DataFrame(lines, infer_schema_length=None)


def _labels_table(part: Cases, aurocs: dict[str, Aurocs]) -> pl.DataFrame:
    """Return the gain of every label with enough positives, with p-values corrected for their number."""
    with_it, without = aurocs["history"], aurocs["current"]
    kept = np.flatnonzero(without.enough)
    gain, samples = with_it.values[kept] - without.values[kept], with_it.samples[:, kept] - without.samples[:, kept]
    bounds = [interval(samples[:, column]) for column in range(len(kept))]
    p = wald_p(gain, samples)
    return pl.DataFrame(
        {
            "label": [part.labels[column] for column in kept],
            "positives": part.gold[:, kept].sum(axis=0),
            "auroc_without": without.values[kept],
            "auroc_with": with_it.values[kept],
            "gain": gain,
            "low": [bound.low for bound in bounds],
            "high": [bound.high for bound in bounds],
            "p": p,
            "p_holm": holm(p),
        }
    ).sort("gain", descending=True)
