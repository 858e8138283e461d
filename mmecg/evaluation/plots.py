"""Plots of an evaluation: AUROC of every label with its interval, and each figure beside its baselines."""

from __future__ import annotations

import math
from pathlib import Path

import polars as pl
from matplotlib.figure import Figure

from mmecg.evaluation.metrics import MIN_POSITIVES
from mmecg.evaluation.results import Evaluation

PLOTTED: tuple[str, ...] = ("linear_probe", "zero_shot", "knn50")
_COLOURS = {"linear_probe": "#1b6ca8", "zero_shot": "#d1495b", "knn50": "#3c8d5a"}


def save_plots(evaluation: Evaluation, folder: Path) -> list[Path]:
    """Draw ``per_label_superclass.png``, ``per_label_all.png`` and ``baselines.png``.

    Parameters
    ----------
    evaluation : Evaluation
    folder : Path
        Must exist.

    Returns
    -------
    list of Path
        The files that were written.
    """
    written = []
    for task in ("superclass", "all"):
        figure = draw_per_label(evaluation.per_label.filter(pl.col("task") == task), task)
        written.append(_save(figure, folder / f"per_label_{task}.png"))
    written.append(_save(draw_baselines(evaluation), folder / "baselines.png"))
    return written


def draw_per_label(table: pl.DataFrame, task: str) -> Figure:
    """Draw the AUROC of every label, one colour a protocol, with 95 % intervals; rare labels are paler.

    Parameters
    ----------
    table : polars.DataFrame
        ``Evaluation.per_label`` of one task.
    task : str
        For the title.
    """
    table = table.filter(pl.col("auroc").is_not_null() & pl.col("protocol").is_in(PLOTTED))
    counts = table.group_by("label").agg(pl.col("positives").first()).sort("positives", "label")
    position = {label: index for index, label in enumerate(counts["label"])}
    figure = Figure(figsize=(7, 1.6 + 0.26 * max(len(position), 4)), layout="constrained")
    axes = figure.add_subplot()
    protocols = [name for name in PLOTTED if name in table["protocol"].to_list()]
    for offset, protocol in enumerate(protocols):
        shift = (offset - (len(protocols) - 1) / 2) * 0.24
        for rare in (False, True):
            part = table.filter(
                pl.col("protocol") == protocol,
                pl.col("positives") < MIN_POSITIVES if rare else pl.col("positives") >= MIN_POSITIVES,
            )
            if part.is_empty():
                continue
            value = part["auroc"].to_numpy()
            low = part["low"].fill_null(strategy="zero").to_numpy()
            high = part["high"].fill_null(1.0).to_numpy()
            axes.errorbar(
                value,
                [position[label] + shift for label in part["label"]],
                xerr=[(value - low).clip(min=0), (high - value).clip(min=0)],
                fmt="o",
                markersize=3,
                linewidth=1,
                color=_COLOURS[protocol],
                alpha=0.35 if rare else 1.0,
                label=None if rare else protocol.replace("_", " "),
            )
    axes.axvline(0.5, color="0.6", linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(position)), [f"{label}  ({n})" for label, n in counts.iter_rows()], fontsize=7)
    axes.set_ylim(-0.6, len(position) - 0.4)
    axes.set_xlabel("AUROC, 95 % patient-clustered interval")
    axes.set_title(f"Labels of the task “{task}” (positives); paler: fewer than {MIN_POSITIVES}", fontsize=9)
    if protocols:
        figure.legend(loc="outside lower center", ncols=len(protocols), fontsize=8)
    return figure


def draw_baselines(evaluation: Evaluation) -> Figure:
    """Draw every computed row as a point with its interval, beside its random encoder and prevalence baselines."""
    rows = [row for row in evaluation.rows if math.isfinite(row.value)][::-1]
    figure = Figure(figsize=(7.5, 1.4 + 0.28 * max(len(rows), 3)), layout="constrained")
    axes = figure.add_subplot()
    for index, row in enumerate(rows):
        if math.isfinite(row.low):
            axes.plot([row.low, row.high], [index, index], color="#1b6ca8", linewidth=3, alpha=0.5)
    places = range(len(rows))
    axes.plot([row.value for row in rows], places, "o", color="#1b6ca8", label="bundle, 95 % interval")
    for name, marker, colour in (("random_encoder", "x", "#d1495b"), ("prevalence", "|", "0.35")):
        values = [row.baselines.get(name, math.nan) for row in rows]
        axes.plot(values, places, marker, color=colour, label=name.replace("_", " "))
    axes.set_yticks(places, [row.key for row in rows], fontsize=7)
    axes.grid(axis="x", color="0.9")
    axes.set_title(f"Fold {evaluation.run['fold']}: every figure beside its baselines", fontsize=9)
    figure.legend(loc="outside lower center", ncols=3, fontsize=8)
    return figure


def _save(figure: Figure, path: Path) -> Path:
    figure.savefig(path, dpi=130)
    return path
