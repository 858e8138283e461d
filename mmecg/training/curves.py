"""Training curves as a picture."""

from __future__ import annotations

import json
from pathlib import Path

from mmecg.training.objective import TERMS


def draw_curves(log: Path, picture: Path) -> None:
    """Draw the loss terms, and the zero-shot AUROC where it was measured, of a ``log.jsonl``."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    records = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    loss, quality = figure.subplots(1, 2)
    for term in TERMS:
        points = [(record["epoch"], record[term]) for record in records if term in record]
        loss.plot(*zip(*points, strict=True), label=term, marker="." if len(points) == 1 else None)
    loss.set(xlabel="epoch", ylabel="loss", title="Loss terms (training)", yscale="log")
    loss.legend(frameon=False)
    for name in ("zero_shot/superclass", "zero_shot/all"):
        points = [(record["epoch"], record[name]) for record in records if name in record]
        if points:
            quality.plot(*zip(*points, strict=True), label=name, marker="o")
    quality.set(xlabel="epoch", ylabel="macro-AUROC", title="Zero-shot, fold chosen on")
    if quality.lines:
        quality.legend(frameon=False)
    else:
        quality.text(0.5, 0.5, "no fold to choose on", ha="center", transform=quality.transAxes)
    figure.savefig(picture, dpi=100)
