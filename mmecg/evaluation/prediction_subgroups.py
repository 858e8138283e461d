"""Subgroups of patients: discrimination, calibration and coverage of each, and the gaps between sexes and ages.

A label enters a cell only with at least 10 positives in it; a subgroup without such a label is suppressed, and listed
as such. Small subgroups have a large calibration error by the noise of their bins alone, so what a calibrated model
would show stands beside it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mmecg.evaluation.bootstrap import bootstrap_mean, interval
from mmecg.evaluation.label_metrics import Figure, ece
from mmecg.evaluation.labels import TASKS
from mmecg.evaluation.metrics import MIN_POSITIVES, auroc, eligible
from mmecg.evaluation.prediction_cases import Cases, Part
from mmecg.evaluation.prediction_confidence import Sets
from mmecg.evaluation.prediction_history import COUNTS
from mmecg.evaluation.prediction_metrics import Aurocs, ece_if_calibrated, ece_of_labels
from mmecg.evaluation.results import Row

AGE_GROUPS: dict[str, tuple[float, float]] = {"<50": (0, 50), "50-64": (50, 65), "65-79": (65, 80), "80+": (80, 200)}
BMI_GROUPS: dict[str, tuple[float, float]] = {
    "<18.5": (0, 18.5), "18.5-24.9": (18.5, 25), "25-29.9": (25, 30), "30+": (30, 1000),
}  # fmt: skip
MIN_STUDIES = 150
"""A subgroup with fewer, 10 for each bin, does not count as the one of the largest calibration error."""

DEFINED_BY: dict[str, str] = {"pacing": "PACE"}
"""Attribute -> the label that defines it, which its subgroups are therefore not asked for."""

MIN_PRESENT = 50
"""A subgroup with fewer positives over all labels does not count as the one of worst coverage."""

RESAMPLES = 300
"""Resamples of the intervals within subgroups, at most."""

Group = tuple[str, str, NDArray[np.bool_]]


def groups_of(cases: Cases) -> list[Group]:
    """Return attribute, value and mask of every subgroup that has a study."""
    return [(name, value, mask) for name, value, mask in _groups(cases) if mask.any()]


def _groups(cases: Cases) -> Iterator[Group]:
    table = cases.table
    age = _numbers(table, "age_years")
    for decade in range(0, 90, 10):
        yield "age", f"{decade}-{decade + 9}", (age >= decade) & (age < decade + 10)
    yield "age", "90+", age >= 90
    yield "age", "not given", np.isnan(age)
    for name in ("sex", "site", "device"):
        values = table[name].fill_null("not given").cast(pl.String).to_numpy().astype(np.str_)
        for value in np.unique(values):
            yield name, str(value), values == value
    height = _numbers(table, "height_cm") / 100
    bmi = _numbers(table, "weight_kg") / height**2
    yield from _ranges("BMI", bmi, BMI_GROUPS)
    yield "BMI", "not given", np.isnan(bmi)
    paced = table["pacemaker"].is_not_null().to_numpy() | cases.gold[:, [name == "PACE" for name in cases.labels]].any(
        axis=1
    )
    yield "pacing", "paced", paced
    yield "pacing", "not paced", ~paced
    noisy = np.zeros(len(cases), np.bool_)
    for name in ("baseline_drift", "static_noise", "burst_noise", "electrodes_problems"):
        noted = table[name].is_not_null().to_numpy()
        noisy |= noted
        yield "signal note", name.replace("_", " "), noted
    yield "signal note", "none", ~noisy
    yield from _ranges("earlier studies", cases.priors.astype(float), COUNTS)


def _ranges(name: str, values: NDArray[np.float64], ranges: dict[str, tuple[float, float]]) -> Iterator[Group]:
    for value, (low, high) in ranges.items():
        yield name, value, (values >= low) & (values < high)


def _numbers(table: pl.DataFrame, column: str) -> NDArray[np.float64]:
    return table[column].cast(pl.Float64).fill_null(math.nan).to_numpy()


def subgroups(cases: Cases, system: str, sets: NDArray[np.bool_]) -> Part:
    """Return the table of subgroups and of their labels, and the rows of the worst ones.

    Parameters
    ----------
    cases : Cases
    system : str
    sets : bool, shape (n, labels, 2)
        Conformal sets at 90 %.
    """
    statements = np.flatnonzero(~cases.superclass)
    covered = Sets.of(cases.gold, sets).covered[:, statements]
    part = replace(cases.task("all"), weights=cases.weights[:, :RESAMPLES])
    rates = part.gold.mean(axis=0)
    lines, cells = [], []
    figures: dict[str, Figure] = {}
    for attribute, value, mask in groups_of(cases):
        asked = np.array([label != DEFINED_BY.get(attribute) for label in part.labels])
        inside = _only(part.take(mask), asked)
        line, of_labels, error = _subgroup(inside, covered[mask][:, asked], system, rates[asked])
        lines.append({"attribute": attribute, "value": value, **line})
        if error is not None:
            figures[f"{attribute} {value}"] = error
        cells.append(of_labels.select(pl.lit(attribute).alias("attribute"), pl.lit(value).alias("value"), pl.all()))
    table = pl.DataFrame(lines, infer_schema_length=None).with_columns(pl.col(pl.Float64).fill_nan(None))
    rows = [*_worst_error(table, figures, len(cases)), *_worst_coverage(table)]
    return Part(tuple(rows), {"subgroups": table, "subgroup_labels": pl.concat(cells)})


def _only(part: Cases, columns: NDArray[np.bool_]) -> Cases:
    systems = {name: logits[:, columns] for name, logits in part.systems.items()}
    labels = tuple(label for label, kept in zip(part.labels, columns, strict=True) if kept)
    return replace(part, labels=labels, gold=part.gold[:, columns], systems=systems)


def _subgroup(
    inside: Cases, covered: NDArray[np.bool_], system: str, rates: NDArray[np.float64]
) -> tuple[dict[str, float | int | bool | None], pl.DataFrame, Figure | None]:
    gold, kept = inside.gold, eligible(inside.gold)
    columns = np.flatnonzero(kept)
    present = np.where(gold, covered, False).sum() / gold.sum() if gold.any() else math.nan
    line: dict[str, float | int | bool | None] = {
        "studies": len(inside),
        "positives": int(gold.sum()),
        "labels": len(columns),
        "suppressed": not len(columns),
        "labels_suppressed": int((gold.any(axis=0) & ~kept).sum()),
    }
    logits = inside.systems[system]
    values = np.where(kept, auroc(gold, logits), np.nan)
    of_labels = pl.DataFrame(
        {"label": list(inside.labels), "positives": gold.sum(axis=0), "auroc": values}
    ).filter(pl.col("positives") > 0).with_columns(
        pl.when(pl.col("positives") >= MIN_POSITIVES).then("auroc").fill_nan(None),
        (pl.col("positives") < MIN_POSITIVES).alias("suppressed"),
    )  # fmt: skip
    if not len(columns):
        return line, of_labels, None
    found = Aurocs.of(gold[:, columns], logits[:, columns], inside.weights)
    macro = found.macro()
    bounds = interval(macro.samples)
    probability = inside.probability(system)[:, columns]
    error = ece(gold[:, columns], probability, inside.weights)
    constant = np.broadcast_to(rates[columns], probability.shape)
    share = covered.mean(axis=1)
    coverage = interval(bootstrap_mean(share, inside.weights))
    line |= {
        "auroc": macro.value,
        "auroc_low": bounds.low,
        "auroc_high": bounds.high,
        "random_encoder": inside.macro_baselines(kept).get("random_encoder", math.nan),
        "ece": error.value,
        "ece_prevalence": float(ece_of_labels(gold[:, columns], constant).mean()),
        "ece_if_calibrated": float(ece_if_calibrated(probability, draws=10, seed=inside.seed).mean()),
        "ece_bias_corrected": max(error.value - error.bias, 0.0),
        "coverage": float(share.mean()),
        "coverage_low": coverage.low,
        "coverage_high": coverage.high,
        "coverage_present": float(present),
    }
    return line, of_labels, error


def _worst_error(table: pl.DataFrame, figures: dict[str, Figure], n: int) -> list[Row]:
    shown = table.filter(~pl.col("suppressed"))
    if shown.is_empty():
        return []
    large = shown.filter(pl.col("studies") >= MIN_STUDIES)
    if large.is_empty():
        return [Row.missing("ece/worst_subgroup", f"no subgroup has {MIN_STUDIES} studies and a label to be asked for")]
    worst = large.sort("ece", descending=True).row(0, named=True)
    name = f"{worst['attribute']} {worst['value']}"
    extra = {
        "subgroup": name,
        "value_if_calibrated": worst["ece_if_calibrated"],
        "value_any_size": shown["ece"].max(),
        "value_beyond_noise": (shown["ece"] - shown["ece_if_calibrated"]).max(),
        "subgroups": large.height,
        "subgroups_too_small": shown.height - large.height,
        "subgroups_suppressed": table.height - shown.height,
        "studies": n,
    }
    return [figures[name].row("ece/worst_subgroup", worst["studies"], {"prevalence": worst["ece_prevalence"]}, **extra)]


def _worst_coverage(table: pl.DataFrame) -> list[Row]:
    enough = table.filter((pl.col("positives") >= MIN_PRESENT) & ~pl.col("suppressed"))
    if enough.is_empty():
        return []
    rows = []
    for key, column in (("worst_subgroup", "coverage"), ("worst_subgroup_present", "coverage_present")):
        worst = enough.sort(column).row(0, named=True)
        low, high = (worst["coverage_low"], worst["coverage_high"]) if column == "coverage" else (math.nan, math.nan)
        extra = {"subgroup": f"{worst['attribute']} {worst['value']}", "positives": worst["positives"],
                 "subgroups": enough.height}  # fmt: skip
        rows.append(Row(f"conformal90/{key}", worst[column], low, high, worst["studies"], {"prevalence": 0.9}, extra))
    return rows


def gaps(cases: Cases, system: str) -> Part:
    """Return the rows ``gap/sex`` and ``gap/age``: largest minus smallest macro-AUROC of the groups.

    The labels are those with at least 10 positives in every group, so that the groups are asked the same. The gap of
    groups that do not differ is above 0 by chance; the interval is that of resampled patients, and for two groups
    ``difference`` has a sign.
    """
    age = _numbers(cases.table, "age_years")
    sex = cases.table["sex"].fill_null("").cast(pl.String).to_numpy().astype(np.str_)
    by_sex = {str(value): sex == value for value in np.unique(sex) if value}
    by_age = {name: mask for _, name, mask in _ranges("age", age, AGE_GROUPS)}
    asked = [(name, groups, task) for name, groups in (("sex", by_sex), ("age", by_age)) for task in TASKS]
    rows = [
        _gap_row(cases, system, groups, f"gap/{name}" + ("" if task == "all" else f"/{task}"), task)
        for name, groups, task in asked
    ]
    return Part(tuple(rows))


def _gap_row(cases: Cases, system: str, groups: dict[str, NDArray[np.bool_]], key: str, task: str) -> Row:
    parts = {name: cases.take(mask).task(task) for name, mask in groups.items() if mask.any()}
    if len(parts) < 2:
        return Row.missing(key, f"only {len(parts)} of the groups {', '.join(groups) or '(none)'} has a study")
    everyone = list(parts.values())
    kept = np.all([eligible(part.gold) for part in everyone], axis=0)
    if not kept.any():
        return Row.missing(key, f"no label has {MIN_POSITIVES} positives in every group")
    columns = np.flatnonzero(kept)
    macros = {
        name: Aurocs.of(part.gold[:, columns], part.systems[system][:, columns], part.weights).macro()
        for name, part in parts.items()
    }
    values = np.array([figure.value for figure in macros.values()])
    samples = np.stack([figure.samples for figure in macros.values()])
    figure = Figure(float(np.ptp(values)), np.asarray(np.ptp(samples, axis=0), np.float64))
    extra: dict[str, object] = {f"auroc_{name}": macro.value for name, macro in macros.items()}
    if len(parts) == 2:
        bounds = interval(samples[0] - samples[1])
        extra |= {"difference": values[0] - values[1], "difference_low": bounds.low, "difference_high": bounds.high}
    baselines = {"prevalence": 0.0}
    if "random_encoder" in cases.systems:
        others = [part.aurocs_without_resamples("random_encoder")[columns].mean() for part in everyone]
        baselines["random_encoder"] = float(np.ptp(others))
    labels = [everyone[0].labels[column] for column in columns]
    return figure.row(key, sum(len(part) for part in everyone), baselines, n_labels=len(labels), labels=labels, **extra)
