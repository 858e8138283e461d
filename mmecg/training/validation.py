"""A quick measure of progress on the fold that a recipe is chosen on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from mmecg.datasets.ptb_xl import read_ptb_xl_signals, read_ptb_xl_table, read_scp_statements
from mmecg.embedding import normalise
from mmecg.evaluation.labels import TASKS, label_tasks
from mmecg.evaluation.metrics import auroc, macro
from mmecg.evaluation.prompts import load_prompts
from mmecg.modeling.dual_encoder import BATCH_SIZE, DualEncoder


def zero_shot_auroc(model: DualEncoder, folder: Path, fold: int) -> dict[str, float]:
    """Return the zero-shot macro-AUROC of both tasks on a fold, by prompt ensembles."""
    import torch

    read = read_ptb_xl_signals(folder, read_ptb_xl_table(folder).filter(pl.col("strat_fold") == fold))
    statements = read_scp_statements(folder)
    descriptions = dict(zip(statements["label"], statements["description"], strict=True))
    tasks = label_tasks(read.table, statements)
    was_training = model.training
    model.eval()
    signals = read.signals.astype(np.float32) / np.float32(1000)
    with torch.inference_mode():
        chunks = [signals[start : start + BATCH_SIZE] for start in range(0, len(signals), BATCH_SIZE)]
        features = np.concatenate([model.features_of_array(chunk) for chunk in chunks])
        ecg = model.project_ecg(torch.from_numpy(features).to(model.logit_scale.device)).cpu().numpy()
    scores: dict[str, float] = {}
    for name in TASKS:
        prompts = load_prompts().of_task(name, tasks[name].labels, descriptions)
        anchors = normalise(np.stack([model.encode_text(each).mean(0) for each in prompts]))
        values = tasks[name].values[tasks[name].included]
        scores[f"zero_shot/{name}"] = macro(auroc(values, (ecg @ anchors.T)[tasks[name].included]), values)[0]
    model.train(was_training)
    return scores
