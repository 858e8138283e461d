"""Training curves as a picture."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from mmecg.training.objective import TERMS

QUALITY = {"zero_shot/superclass": "zero-shot macro-AUROC, superclass", "zero_shot/all": "zero-shot macro-AUROC, all"}
"""What training of the bundle measures on the fold it is chosen on, and how the picture calls it."""


def draw_curves(
    log: Path, picture: Path, *, terms: tuple[str, ...] = TERMS, quality: Mapping[str, str] = QUALITY
) -> None:
    """Draw the loss terms, and what was measured on the fold chosen on, of a ``log.jsonl``.

    Parameters
    ----------
    log, picture : Path
    terms : tuple of str
        Keys of the log that are loss terms.
    quality : mapping of str to str
        Keys of the log that were measured between 0 and 1, and their names in the legend.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    records = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for term in terms:
        points = [(record["epoch"], record[term]) for record in records if term in record]
        if points:
            left.plot(*zip(*points, strict=True), label=term, marker="." if len(points) == 1 else None)
    left.set(xlabel="epoch", ylabel="loss", title="Loss terms (training)", yscale="log")
    if left.lines:
        left.legend(frameon=False)
    for name, label in quality.items():
        points = [(record["epoch"], record[name]) for record in records if name in record]
        if points:
            right.plot(*zip(*points, strict=True), label=label, marker="o")
    right.set(xlabel="epoch", title="Fold chosen on")
    if right.lines:
        right.legend(frameon=False)
    else:
        right.text(0.5, 0.5, "no fold to choose on", ha="center", transform=right.transAxes)
    figure.savefig(picture, dpi=100)
