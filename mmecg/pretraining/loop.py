"""The pretraining loop: deterministic by seed, resumable after an epoch; CPU, one GPU, or several (``torchrun``)."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from mmecg.adaptation.backbone import Backbone, load_backbone, save_backbone, small_backbone
from mmecg.adaptation.backbone_config import BackboneConfig
from mmecg.adaptation.towers import build_network
from mmecg.encoders.ecg_fm import SPEC as ECG_FM
from mmecg.encoders.registry import SeenData
from mmecg.errors import AlreadyExistsError, BundleError
from mmecg.pretraining.config import PretrainingConfig
from mmecg.pretraining.data import PairSampler
from mmecg.pretraining.objective import TERMS, Objective
from mmecg.pretraining.recordings import Recordings, ptb_xl_recordings, study_recordings
from mmecg.pretraining.validation import PROBE, pretext_measures, probe_auroc
from mmecg.study import Study
from mmecg.training.checkpoint import FILE, load_checkpoint, save_checkpoint
from mmecg.training.distributed import average_gradients, initialise
from mmecg.training.progress import append_log, one_cycle, trim_log, update_average

GRADIENT_NORM = 1.0
FOLDER = "backbone"
QUALITY = {
    "val_masked_accuracy": "masked prediction, accuracy",
    "val_segments_top_1": "segments, top 1",
    PROBE: "linear probe, superclass macro-AUROC",
}
"""What the curves show beside the losses."""


@dataclass(frozen=True)
class Pretrained:
    """What a run left.

    Attributes
    ----------
    path : Path
        The backbone.
    fingerprint : str
    before, after : mapping of str to float
        Measures on ``choose_fold`` before the first epoch (of a fresh network, the random-encoder row) and at the end;
        empty where another process measured.
    """

    path: Path
    fingerprint: str
    before: Mapping[str, float]
    after: Mapping[str, float]


def pretrain(
    config: PretrainingConfig, data: Path | Iterable[Study], out: Path, *, name: str = "PTB-XL", quiet: bool = False
) -> Pretrained | None:
    """Pretrain an encoder.

    Parameters
    ----------
    config : PretrainingConfig
    data : Path or iterable of Study
        PTB-XL folder, or other studies; these bring no labels, so that there is no probe.
    out : Path
        Gets ``backbone/``, ``log.jsonl``, ``curves.png`` and, while it runs, ``checkpoint.safetensors``; an interrupted
        run in the same folder goes on after its last whole epoch.
    name : str
        Of the data, for the contamination card of what comes out.
    quiet : bool
        No progress on standard error.

    Returns
    -------
    Pretrained or None
        None in every process but the first.

    Raises
    ------
    AlreadyExistsError
        ``out`` holds a finished run.
    ConfigError
        The recipe does not fit the encoder or the data.
    InvalidInputError
        The data cannot be read or lacks the folds.
    BundleError
        The encoder's directory, or the checkpoint in ``out``, is damaged or of another recipe.
    """
    rank, world, device = initialise()
    if (out / FOLDER).exists():
        raise AlreadyExistsError(f"{out / FOLDER} exists already; remove it, or give another --out")
    backbone = start_backbone(config)
    if isinstance(data, Path):
        train = ptb_xl_recordings(data, backbone, config.folds, quiet=quiet or rank > 0)
        held_out = ptb_xl_recordings(data, backbone, [config.choose_fold], quiet=quiet or rank > 0)
    else:
        train, held_out = study_recordings(data, backbone, [config.folds, [config.choose_fold]])
    return run(config, backbone, train, held_out, out, place=(rank, world, device), name=name, quiet=quiet)


def run(
    config: PretrainingConfig,
    backbone: Backbone,
    train: Recordings,
    held_out: Recordings,
    out: Path,
    *,
    place: tuple[int, int, torch.device] = (0, 1, torch.device("cpu")),
    name: str = "PTB-XL",
    quiet: bool = False,
) -> Pretrained | None:
    """Pretrain a backbone on recordings in memory; what :func:`pretrain` does after reading.

    Parameters
    ----------
    held_out : Recordings
        What progress is measured on, by the first process.
    place : tuple of (rank, world size, device)
    """
    rank, world, device = place
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(config.seed)
    samples = round(config.segments.seconds * backbone.sampling_rate_hz)
    objective = Objective(backbone.to(device), config, samples=samples).to(device)
    cut = partial(PairSampler, samples=samples, steps=objective.steps, sampling_rate_hz=backbone.sampling_rate_hz)
    sampler = cut(train, config, rank=rank, world_size=world)
    state = _Run(objective, config, steps=sampler.batches * config.epochs)
    done = state.resume(out)
    watch = None
    if rank == 0:
        trim_log(out, done)
        judge = cut(held_out, replace(config, batch_size=min(config.batch_size, len(held_out))))
        watch = _Watch(state, train, held_out, judge, out, quiet)
        if not done:
            state.before = state.after = watch.look(0, {})
    for epoch in range(done, config.epochs):
        started = time.perf_counter()
        torch.manual_seed((config.seed * 10_000 + epoch) * 1_000 + rank)
        losses = state.epoch(sampler, epoch, device)
        if watch:
            state.after = watch.look(epoch + 1, {"seconds": time.perf_counter() - started, **losses})
        if rank == 0:
            state.save(out, epoch + 1)
    if rank:
        return None
    folds = ", ".join(map(str, config.folds))
    seen = SeenData(name, "pretraining", f"mmecg pretrain on folds {folds}, without labels", config.folds)
    path = out / FOLDER
    fingerprint = save_backbone(path, state.average.cpu().eval(), seen=[seen], training=asdict(config))
    (out / FILE).unlink(missing_ok=True)
    return Pretrained(path, fingerprint, state.before, state.after)


def start_backbone(config: PretrainingConfig) -> Backbone:
    """Return the encoder that a recipe starts from.

    Raises
    ------
    BundleError
        Its directory is missing or damaged.
    """
    if config.encoder == "small":
        return small_backbone(config.seed)
    if config.encoder == ECG_FM.name:
        shape = asdict(config.ecg_fm)
        what = BackboneConfig(ECG_FM.name, shape, ECG_FM.preprocessing[ECG_FM.default_variant])
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            network = build_network(ECG_FM.name, shape, leads=len(what.preprocessing.leads))
        return Backbone(what, network, f"random-{config.seed}")
    return load_backbone(config.encoder, random=config.fresh, seed=config.seed)


class _Run:
    """Weights, their average, the optimizer and the schedule."""

    def __init__(self, objective: Objective, config: PretrainingConfig, *, steps: int) -> None:
        self.objective, self.config, self.steps = objective, config, steps
        self.average = copy.deepcopy(objective.backbone)
        self.before: dict[str, float] = {}
        self.after: dict[str, float] = {}
        self.step = 0
        self._parameters = [each for each in objective.parameters() if each.requires_grad]
        self._optimizer = torch.optim.AdamW(
            self._parameters, config.learning_rate, betas=(0.9, 0.98), weight_decay=config.weight_decay
        )

    def epoch(self, sampler: PairSampler, epoch: int, device: torch.device) -> dict[str, float]:
        """Train one epoch; return the mean of each term and measure."""
        self.objective.train()
        total: dict[str, float] = {}
        for batch in sampler.epoch(epoch):
            for group in self._optimizer.param_groups:
                group["lr"] = one_cycle(self.step / self.steps, self.config)
            loss, found = self.objective(batch.to(device))
            self._optimizer.zero_grad()
            loss.backward()
            average_gradients(self._parameters)
            nn.utils.clip_grad_norm_(self._parameters, GRADIENT_NORM)
            self._optimizer.step()
            self.step += 1
            latest, decay = self.objective.backbone, self.config.average_decay
            update_average(self.average, latest, decay=decay, step=self.step)
            for name, value in found.items():
                total[name] = total.get(name, 0.0) + value.item() / sampler.batches
        return total

    def resume(self, out: Path) -> int:
        """Restore the last checkpoint, if any; return the number of epochs done."""
        state = load_checkpoint(out, objective=self.objective, average=self.average, optimizer=self._optimizer)
        if state is None:
            return 0
        if state["recipe"] != json.loads(json.dumps(asdict(self.config))):
            raise BundleError("checkpoint is of another recipe; remove it, or choose another --out")
        self.step, self.before, self.after = state["step"], state["before"], state["after"]
        return int(state["epochs_done"])

    def save(self, out: Path, epochs_done: int) -> None:
        """Write a checkpoint."""
        state = {"epochs_done": epochs_done, "step": self.step, "recipe": asdict(self.config)}
        state |= {"before": self.before, "after": self.after}
        save_checkpoint(out, objective=self.objective, average=self.average, optimizer=self._optimizer, state=state)


@dataclass(frozen=True)
class _Watch:
    """Measures progress on the fold chosen on, and logs it."""

    run: _Run
    train: Recordings
    held_out: Recordings
    judge: PairSampler
    out: Path
    quiet: bool

    def look(self, epoch: int, losses: Mapping[str, float]) -> dict[str, float]:
        """Return the pretext measures after an epoch, and the probe where it is due; the log gets the losses, too."""
        run, config = self.run, self.run.config
        found = pretext_measures(run.objective, self.judge, run.average.device)
        if config.probe_every and (epoch % config.probe_every == 0 or epoch == config.epochs):
            found |= probe_auroc(run.average, self.train, self.held_out, records=config.probe_records, seed=config.seed)
        record = {"epoch": epoch, **losses, **found}
        append_log(self.out, record, config.epochs, quiet=self.quiet, terms=TERMS, quality=QUALITY)
        return found
