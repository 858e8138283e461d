"""Plots of the prediction evaluation, each drawn from a table that is written beside it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mmecg.evaluation.metrics import MIN_POSITIVES
from mmecg.plotting import png_bytes

BLUE, RED, GREEN, ORANGE, GREY, PURPLE = "#1b6ca8", "#c8374a", "#2f7d4f", "#c77c11", "#8a949e", "#6b4c9a"
_CYCLE = (BLUE, RED, GREEN, ORANGE, PURPLE, "#3aa6a6", "#7a5230", "#5a6672", "#b04a8f")
_NAMES = {
    "history": "with history", "current": "without history", "random_encoder": "random encoder", "ecg": "ECG alone",
    "everyone": "act on everyone", "no one": "act on no one",
}  # fmt: skip
_DPI = 110

Tables = Mapping[str, pl.DataFrame]


def draw_plots(tables: Tables) -> dict[str, bytes]:
    """Return every plot that the tables allow, as PNG by name.

    Parameters
    ----------
    tables : mapping of str to polars.DataFrame
        Those of the parts of an evaluation.
    """
    drawn: dict[str, bytes] = {}
    for name, (needed, draw) in _PLOTS.items():
        for suffix in ("", "_cross_fitted"):
            if needed + suffix in tables and tables[needed + suffix].height:
                drawn[name + suffix] = png_bytes(draw(tables[needed + suffix]), dpi=_DPI)
    return drawn


def draw_labels(table: pl.DataFrame) -> Figure:
    """Draw the AUROC of every label with its interval, beside the random encoder; rare labels are paler."""
    table = table.filter(pl.col("auroc").is_not_null()).sort("positives", "label")
    half = -(-table.height // 2)
    figure = _figure(11, 1.3 + 0.21 * max(half, 8))
    for axes, part in zip(figure.subplots(1, 2), (table[half:], table[:half]), strict=True):
        for row, line in enumerate(part.iter_rows(named=True)):
            alpha = 1.0 if line["positives"] >= MIN_POSITIVES else 0.35
            if line["low"] is not None:
                axes.plot([line["low"], line["high"]], [row, row], color=BLUE, linewidth=2.5, alpha=0.45 * alpha)
            axes.plot(line["auroc"], row, "o", color=BLUE, markersize=4, alpha=alpha)
            if line["random_encoder"] is not None:
                axes.plot(line["random_encoder"], row, "x", color=RED, markersize=4, alpha=alpha)
        names = [f"{line['label']} ({line['positives']})" for line in part.iter_rows(named=True)]
        axes.set_yticks(range(part.height), names, fontsize=7)
        axes.set_ylim(-0.7, max(part.height, 1) - 0.3)
        axes.axvline(0.5, color=GREY, linestyle=":", linewidth=1)
        axes.set_xlim(0.35, 1.01)
        _grid(axes, "x")
    _legend(figure, [("o", BLUE, "prediction, 95 % interval"), ("x", RED, "random encoder"), (":", GREY, "prevalence")])
    figure.supxlabel(f"AUROC (paler: fewer than {MIN_POSITIVES} positives)", fontsize=9)
    return figure


def draw_reliability(table: pl.DataFrame) -> Figure:
    """Draw rate against probability in bins of equal mass: superclasses, and some statements."""
    labels = table["label"].unique(maintain_order=True).to_list()
    classes = [label for label in labels if label.startswith("superclass")]
    panels = [[label for label in labels if label not in classes], classes]
    panels = [panel for panel in panels if panel]
    figure = _figure(5.2 * len(panels), 4.6)
    for axes, panel in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels, strict=True):
        axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1)
        for colour, label in zip(_CYCLE, panel, strict=False):
            part = table.filter(pl.col("label") == label)
            style = {"linewidth": 2.2, "color": "#1c2733"} if "pooled" in label else {"linewidth": 1.2, "color": colour}
            axes.plot(part["probability"], part["rate"], "o-", markersize=3.5, label=label.split("/")[-1], **style)
        axes.set_xlabel("mean predicted probability of the bin")
        axes.set_ylabel("share with the label")
        axes.set_aspect("equal")
        axes.legend(fontsize=7, loc="upper left")
        _grid(axes, "both")
    return figure


def draw_conformal(table: pl.DataFrame) -> Figure:
    """Draw coverage of every label at 90 % against how many decisions it rests on, by class."""
    shown = table.filter((pl.col("level") == 0.9) & pl.col("coverage").is_not_null() & (pl.col("decisions") > 0))
    figure = _figure(8.5, 4)
    axes = figure.add_subplot()
    for side, colour, marker in (("present", RED, "o"), ("absent", BLUE, "s")):
        part = shown.filter(pl.col("class") == side)
        axes.plot(
            part["decisions"], part["coverage"], marker, color=colour, markersize=4, alpha=0.7, label=f"label {side}"
        )
    most = shown["decisions"].to_numpy().max(initial=2)
    lowest = shown["coverage"].to_numpy().min(initial=1.0)
    size = np.logspace(0, math.log10(most), 200)
    spread = 1.96 * np.sqrt(0.9 * 0.1 / size)
    axes.fill_between(size, 0.9 - spread, np.minimum(0.9 + spread, 1), color=GREY, alpha=0.2, linewidth=0,
                      label="95 % of labels, if 90 % holds")  # fmt: skip
    axes.axhline(0.9, color=GREY, linewidth=1)
    axes.set_xscale("log")
    axes.set_ylim(min(0.5, lowest - 0.05), 1.02)
    axes.set_xlabel("studies of the label in this class")
    axes.set_ylabel("coverage")
    axes.legend(fontsize=8, loc="lower right")
    _grid(axes, "both")
    return figure


def draw_risk_coverage(table: pl.DataFrame) -> Figure:
    """Draw the error rate of what is answered against how much is answered."""
    figure = _figure(6.5, 4)
    axes = figure.add_subplot()
    lines = {
        "by_uncertainty": (BLUE, "least certain studies left out"),
        "per_decision": (GREEN, "least certain decisions left out"),
        "if_errors_were_known": (ORANGE, "best possible, by study"),
        "at_random": (GREY, "at random"),
    }
    for name, (colour, words) in lines.items():
        axes.plot(100 * table["coverage"], 100 * table[name], color=colour, label=words, linewidth=1.8)
    axes.axvline(80, color=GREY, linestyle=":", linewidth=1)
    axes.set_xlabel("answered, %")
    axes.set_ylabel("wrong decisions among them, %")
    axes.legend(fontsize=8)
    _grid(axes, "both")
    return figure


def draw_decision_curves(table: pl.DataFrame) -> Figure:
    """Draw the net benefit of each label, one panel a label."""
    labels = table["label"].unique(maintain_order=True).to_list()
    columns = min(3, len(labels))
    rows = -(-len(labels) // columns)
    figure = _figure(3.6 * columns, 2.6 * rows + 0.4)
    grid = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    colours = {"history": BLUE, "current": GREEN, "random_encoder": RED, "everyone": GREY, "no one": "0.3"}
    for axes, label in zip(grid, labels, strict=False):
        part = table.filter(pl.col("label") == label)
        top = part["net_benefit"].max()
        for name in part["system"].unique(maintain_order=True):
            line = part.filter(pl.col("system") == name)
            style = "--" if name == "current" else ":" if name in ("everyone", "no one") else "-"
            axes.plot(line["threshold"], line["net_benefit"], style, color=colours.get(name, PURPLE), linewidth=1.4)
        axes.set_ylim(-0.15 * top, 1.08 * top)  # type: ignore[operator]
        axes.set_title(label.removeprefix("superclass/"), fontsize=9)
        axes.tick_params(labelsize=7)
        _grid(axes, "both")
    for axes in grid[len(labels) :]:
        axes.set_axis_off()
    styles = {"everyone": ":", "no one": ":"}
    drawn = [name for name in colours if name in table["system"].to_list()]
    _legend(figure, [(styles.get(name, "-"), colours[name], _NAMES[name]) for name in drawn])
    figure.supxlabel("threshold probability", fontsize=9)
    figure.supylabel("net benefit per study", fontsize=9)
    return figure


def draw_systems(table: pl.DataFrame) -> Figure:
    """Draw the change in macro-AUROC of history, controls and variants against no history."""
    shown = table.filter(~pl.col("system").is_in(["current", "prevalence"])).sort("gain")
    names = [_NAMES.get(name, name.replace("_", " ")) for name in shown["system"]]
    colours = [BLUE if name == "history" else RED if name.startswith("control") else GREY if name == "random_encoder"
               else GREEN for name in shown["system"]]  # fmt: skip
    figure = _figure(8, 1.1 + 0.32 * shown.height)
    axes = figure.add_subplot()
    _forest(axes, shown["gain"], shown["gain_low"], shown["gain_high"], names, colours)
    axes.axvspan(-0.005, 0.005, color=GREY, alpha=0.2, linewidth=0)
    axes.set_xscale("symlog", linthresh=0.05)
    axes.set_xticks(
        [-0.3, -0.1, -0.05, -0.02, 0, 0.02, 0.05], ["-0.3", "-0.1", "-0.05", "-0.02", "0", "+0.02", "+0.05"]
    )
    axes.set_xlabel("macro-AUROC minus that without history (band: ± 0.005; beyond 0.05 logarithmic)")
    return figure


def draw_strata(table: pl.DataFrame) -> Figure:
    """Draw the gain from history by number of earlier studies and by gap."""
    shown = table.filter(pl.col("gain").is_not_null() & (pl.col("stratum") != "0"))[::-1]
    names = [f"{line['by']}: {line['stratum']}  ({line['studies']} studies, {line['labels']} labels)"
             for line in shown.iter_rows(named=True)]  # fmt: skip
    figure = _figure(8, 1.0 + 0.32 * max(shown.height, 1))
    axes = figure.add_subplot()
    _forest(axes, shown["gain"], shown["low"], shown["high"], names, [BLUE] * shown.height)
    axes.set_xlabel("gain in macro-AUROC, 95 % interval")
    return figure


def draw_label_gains(table: pl.DataFrame) -> Figure:
    """Draw the gain of every label; filled if its p-value holds after Holm's correction."""
    shown = table.sort("gain")
    names = [f"{line['label']} ({line['positives']})" for line in shown.iter_rows(named=True)]
    figure = _figure(8, 1.0 + 0.22 * max(shown.height, 1))
    axes = figure.add_subplot()
    colours = [BLUE if p < 0.05 else GREY for p in shown["p_holm"]]
    _forest(axes, shown["gain"], shown["low"], shown["high"], names, colours, size=7)
    axes.set_xlabel("gain in AUROC, 95 % interval (blue: p < 0.05 after Holm's correction)")
    return figure


def draw_subgroups(table: pl.DataFrame) -> Figure:
    """Draw AUROC, calibration error and coverage of every subgroup that is not suppressed."""
    shown = table.filter(~pl.col("suppressed"))[::-1]
    names = [f"{line['attribute']}: {line['value']} ({line['studies']})" for line in shown.iter_rows(named=True)]
    figure = _figure(11.5, 1.3 + 0.2 * max(shown.height, 1))
    left, middle, right = figure.subplots(1, 3, sharey=True)
    places = range(shown.height)
    _forest(
        left, shown["auroc"], shown["auroc_low"], shown["auroc_high"], names, [BLUE] * shown.height, size=7, zero=False
    )
    left.plot(shown["random_encoder"], places, "x", color=RED, markersize=3.5)
    left.set_xlabel("macro-AUROC (x: random encoder)", fontsize=8)
    middle.plot(shown["ece"], places, "o", color=BLUE, markersize=4)
    middle.plot(shown["ece_if_calibrated"], places, "|", color=ORANGE, markersize=7)
    middle.set_xlabel("ECE (|: expected if calibrated)", fontsize=8)
    right.hlines(places, shown["coverage_low"], shown["coverage_high"], color=BLUE, linewidth=2.5, alpha=0.45)
    right.plot(shown["coverage"], places, "o", color=BLUE, markersize=4)
    right.plot(shown["coverage_present"], places, "o", color=RED, markersize=3, alpha=0.7)
    right.axvline(0.9, color=GREY, linewidth=1)
    right.set_xlabel("coverage at 90 % (red: of present labels)", fontsize=8)
    for axes in (left, middle, right):
        axes.tick_params(labelsize=7)
        _grid(axes, "both")
    return figure


def draw_shift(table: pl.DataFrame) -> Figure:
    """Draw macro-AUROC over the strength of each noise, and of the other changes."""
    clean = table.filter(pl.col("change") == "clean").row(0, named=True)
    figure = _figure(10.5, 4.2)
    left, right = figure.subplots(1, 2)
    noisy = table.filter(pl.col("change").str.ends_with("dB")).with_columns(
        pl.col("change").str.split("/").list.first().alias("kind"),
        pl.col("change").str.extract(r"(-?\d+)dB").cast(pl.Int64).alias("snr"),
    )
    for colour, kind in zip(_CYCLE, noisy["kind"].unique(maintain_order=True), strict=False):
        part = noisy.filter(pl.col("kind") == kind).sort("snr", descending=True)
        left.plot(part["snr"], part["auroc"], "o-", color=colour, markersize=4, label=kind)
        left.fill_between(part["snr"], clean["auroc"] + part["low"], clean["auroc"] + part["high"], color=colour,
                          alpha=0.12, linewidth=0)  # fmt: skip
    left.axhline(clean["auroc"], color=GREY, linewidth=1, linestyle=":", label="unchanged")
    left.invert_xaxis()
    left.set_xlabel("signal-to-noise ratio, dB")
    left.set_ylabel("macro-AUROC")
    left.legend(fontsize=8)
    others = table.filter(~pl.col("change").str.ends_with("dB") & (pl.col("change") != "clean"))[::-1]
    _forest(
        right, others["difference"], others["low"], others["high"], others["change"].to_list(), [BLUE] * others.height
    )
    right.set_xlabel("macro-AUROC minus that of the unchanged recordings", fontsize=8)
    _grid(left, "both")
    return figure


def draw_novelty(table: pl.DataFrame) -> Figure:
    """Draw the cumulative share of recordings by how novel they are, one line a kind."""
    figure = _figure(6.5, 4)
    axes = figure.add_subplot()
    for colour, kind in zip(_CYCLE, table["kind"].unique(maintain_order=True), strict=False):
        values = np.sort(table.filter(pl.col("kind") == kind)["novelty"].to_numpy())
        axes.step(values, np.arange(1, len(values) + 1) / len(values), color=colour, label=kind.replace("_", " "),
                  linewidth=2 if kind.startswith("real") else 1.3, where="post")  # fmt: skip
    axes.axvline(0.5, color=GREY, linestyle=":", linewidth=1)
    axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel("novelty")
    axes.set_ylabel("share of recordings up to it")
    axes.legend(fontsize=8)
    _grid(axes, "both")
    return figure


def _forest(
    axes: Axes, value: pl.Series, low: pl.Series, high: pl.Series, names: Sequence[str], colours: Sequence[str], *,
    size: int = 8, zero: bool = True,
) -> None:  # fmt: skip
    """Draw points with intervals, one a line, the first at the bottom."""
    places = np.arange(len(names))
    for place, start, end, colour in zip(places, low, high, colours, strict=True):
        if start is not None and end is not None:
            axes.plot([start, end], [place, place], color=colour, linewidth=2.5, alpha=0.45)
    axes.scatter(value.to_numpy(), places, c=list(colours), s=18, zorder=3)
    axes.set_yticks(places, names, fontsize=size)
    axes.set_ylim(-0.7, max(len(names), 1) - 0.3)
    if zero:
        axes.axvline(0, color="0.3", linewidth=0.8)
    _grid(axes, "x")


def _legend(figure: Figure, entries: Sequence[tuple[str, str, str]]) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=colour, label=words, linestyle=":" if style == ":" else "-")
        if style in ("-", ":")
        else Line2D([], [], color=colour, label=words, linestyle="", marker=style)
        for style, colour, words in entries
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=min(len(handles), 5), fontsize=8, frameon=False)


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _grid(axes: Axes, which: str) -> None:
    axes.grid(axis=which, color="0.92")  # type: ignore[arg-type]
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


_PLOTS: dict[str, tuple[str, Callable[[pl.DataFrame], Figure]]] = {
    "labels": ("labels_full", draw_labels),
    "reliability": ("reliability", draw_reliability),
    "conformal": ("conformal_labels", draw_conformal),
    "risk_coverage": ("risk_coverage", draw_risk_coverage),
    "decision_curves": ("decision_curves", draw_decision_curves),
    "history_systems": ("history_systems", draw_systems),
    "history_strata": ("history_strata", draw_strata),
    "history_labels": ("history_labels", draw_label_gains),
    "subgroups": ("subgroups", draw_subgroups),
    "shift": ("shift", draw_shift),
    "novelty": ("novelty", draw_novelty),
}
