"""Progress on the fold that a recipe is chosen on: the two pretext tasks, and a quick linear probe."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray

from mmecg.adaptation.backbone import Backbone
from mmecg.evaluation.metrics import auroc, macro
from mmecg.evaluation.probe import fit_probe
from mmecg.pretraining.data import PairSampler
from mmecg.pretraining.objective import MEASURES, TERMS, Objective
from mmecg.pretraining.recordings import Recordings

PROBE = "probe_auroc"


def pretext_measures(objective: Objective, sampler: PairSampler, device: torch.device) -> dict[str, float]:
    """Return the means of losses and measures over one epoch of a sampler, in evaluation mode.

    The same segments and masks are drawn every time; names begin with ``val_``.
    """
    training = objective.training
    objective.eval()
    found: dict[str, list[float]] = {}
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.inference_mode():
        torch.manual_seed(0)
        for batch in sampler.epoch(0):
            for name, value in objective(batch.to(device))[1].items():
                found.setdefault(name, []).append(float(value))
    objective.train(training)
    return {f"val_{name}": float(np.mean(found[name])) for name in (*TERMS, *MEASURES) if name in found}


def probe_auroc(
    backbone: Backbone, train: Recordings, held_out: Recordings, *, records: int, seed: int
) -> dict[str, float]:
    """Return the superclass macro-AUROC of a linear probe on frozen features; labels are read for this alone.

    Empty without labels, and if no superclass is both there and missing in ``held_out``.

    Parameters
    ----------
    backbone : Backbone
    train, held_out : Recordings
    records : int
        Recordings of ``train`` that it is fitted on, drawn at random, without those of no superclass.
    seed : int
        Of the draw and of the probe.
    """
    labelled = np.flatnonzero(train.superclass.any(1))
    rows = np.random.default_rng(seed).permutation(labelled)[:records]
    tested = np.flatnonzero(held_out.superclass.any(1))
    if not len(rows) or not len(tested):
        return {}
    subjects = [train.subject_ids[row] for row in rows]
    probe = fit_probe(features_of(backbone, train, rows), train.superclass[rows], subjects, seed=seed)
    scores = probe.scores(features_of(backbone, held_out, tested))
    score, _ = macro(auroc(held_out.superclass[tested], scores), held_out.superclass[tested], min_positives=1)
    return {PROBE: score} if math.isfinite(score) else {}


def features_of(backbone: Backbone, data: Recordings, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the features of some recordings, as the backbone gives them: float32, shape (rows, feature_dim)."""
    length = min(backbone.samples, data.signals.shape[2])
    count = data.signals.shape[2] // length
    inputs = [
        data.signals[row, :, : count * length].reshape(-1, count, length).swapaxes(0, 1).astype(np.float32)
        for row in rows
    ]
    return backbone.features_of_inputs(inputs)
