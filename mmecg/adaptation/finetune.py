"""Fine-tuning of any backbone on any label table: all weights, LoRA, attention pooling, or the linear head alone.

Every method begins with the linear probe of the encoder as it was, and the epoch that is best on the choosing fold is
kept, the probe itself included; so a method that does not help gives the probe back. Seeded; an interrupted run in the
same folder goes on after its last whole epoch; works on several processes (``torchrun``).
"""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import distributed, nn

from mmecg.adaptation.backbone import BATCH_SIZE, Backbone, check_free, randomised, with_leads
from mmecg.adaptation.classifier import Classifier, EcgClassifier, fit_calibration, stack
from mmecg.adaptation.examples import Examples
from mmecg.adaptation.finetune_config import RATES, FinetuneConfig
from mmecg.adaptation.incomplete import Incomplete, LabelLoss, label_loss
from mmecg.adaptation.label_table import LabelTable, Split, split_folds
from mmecg.adaptation.lead_axes import random_axis
from mmecg.adaptation.linear import LinearHead, fit_linear
from mmecg.adaptation.lora import add_lora, merge_lora
from mmecg.adaptation.probe import ENCODER, RANDOM, ProbeConfig, priors_of, probe_features, run_facts
from mmecg.adaptation.scores import ScoreTable, label_auroc, score_systems
from mmecg.encoders.registry import SeenData
from mmecg.errors import BundleError
from mmecg.evaluation.results import Evaluation
from mmecg.modeling.ecg_encoder import EcgEncoder
from mmecg.training.checkpoint import FILE, load_checkpoint, save_checkpoint
from mmecg.training.distributed import average_gradients, initialise
from mmecg.training.progress import one_cycle

HEAD_RATE = 1e-3
GRADIENT_NORM = 1.0
SETTLING = 512
"""Recordings that the batch norms of an untrained network get their statistics from."""
AXIS_SHARE = 0.5
"""Share of the recordings whose axis is turned under axis augmentation; the others keep the lead as it is."""


@dataclass(frozen=True)
class FinetuneResult:
    """What fine-tuning gave.

    Attributes
    ----------
    classifier : EcgClassifier
    scores : ScoreTable
    evaluation : Evaluation
    """

    classifier: EcgClassifier
    scores: ScoreTable
    evaluation: Evaluation


def finetune(
    backbone: Backbone, examples: Examples, config: FinetuneConfig, out: Path, *, quiet: bool = False
) -> FinetuneResult | None:
    """Fine-tune a backbone and write the classifier.

    Parameters
    ----------
    backbone : Backbone
        Not changed.
    examples : Examples
    config : FinetuneConfig
    out : Path
        Gets the classifier (:func:`mmecg.adaptation.classifier.load_classifier` and
        :func:`mmecg.adaptation.backbone.load_backbone` read it) and, while it runs, ``checkpoint.safetensors``.
    quiet : bool
        No progress on standard error.

    Returns
    -------
    FinetuneResult or None
        None in all processes but the first.

    Raises
    ------
    InvalidInputError
        Folds, labels, leads or priors are impossible.
    AlreadyExistsError
        An encoder is at ``out``.
    BundleError
        The checkpoint in ``out`` is damaged or of another recipe.
    """
    rank, world, device = initialise()
    check_free(out)
    split = split_folds(examples.table, config.fold, fraction=config.fraction, seed=config.seed)
    start = copy.deepcopy(backbone) if config.lead is None else with_leads(backbone, [config.lead])
    run = _Run(start.to(device), examples, split, config)
    out.mkdir(exist_ok=True)
    run.train(out, rank, world, quiet=quiet or rank > 0)
    if rank:
        return None
    result = run.finish(backbone)
    _save(result, examples, split, config, out)
    (out / FILE).unlink(missing_ok=True)
    return result


class _Run:
    """Data, network and optimiser of one run."""

    def __init__(self, backbone: Backbone, examples: Examples, split: Split, config: FinetuneConfig) -> None:
        self.examples, self.split, self.config = examples, split, config
        self.inputs = backbone.prepare(examples.ecgs)
        self.features = backbone.features_of_inputs(self.inputs)
        self.probe = ProbeConfig(
            config.fold, config.fraction, config.incomplete, config.prior, config.resamples, config.seed
        )
        self.loss, self.values = self._labels()
        self.choose = _choosing(examples.table, split, config.incomplete)
        head = self._probe()
        self.probe_logits = head.logits(self.features[split.test])
        if config.method == "full" and backbone.untrained:
            _settle(backbone, [self.inputs[row] for row in split.fit])
            self.features = backbone.features_of_inputs(self.inputs)
            head = self._probe()
        self.crop = _crop_of(backbone)
        torch.manual_seed(config.seed)
        self.network = Classifier(
            backbone,
            len(examples.table.labels),
            attention=config.method == "attention",
            trains_backbone=config.method == "full",
        )
        self.network.start_from(head)
        self.optimizer = self._prepare(backbone)
        self.network.to(backbone.device)
        self.best = copy.deepcopy(self.network)
        self.state: dict[str, Any] = {"epochs_done": 0, "best_epoch": 0, "history": []}

    def _labels(self) -> tuple[LabelLoss, torch.Tensor]:
        table, config = self.examples.table, self.config
        values = table.values[self.split.fit]
        prior = priors_of(self.features, table, self.split, config.incomplete, config.prior, seed=config.seed)
        loss = label_loss(config.incomplete, values, prior=prior, class_weights=config.class_weights)
        return loss, torch.from_numpy(table.values)

    def _probe(self) -> LinearHead:
        table, features = self.examples.table, self.features
        choose = (features[self.split.choose], self.choose)
        return fit_linear(features[self.split.fit], table.values[self.split.fit], self.loss, choose, table.groups)

    def _prepare(self, backbone: Backbone) -> torch.optim.AdamW:
        """Fix what is not trained; return the optimiser of the rest, the head with a rate of its own."""
        config = self.config
        rate = RATES[config.method] if config.learning_rate is None else config.learning_rate
        if config.method == "lora":
            adapted = add_lora(backbone, rank=config.rank)
        else:
            if config.method != "full":
                backbone.requires_grad_(False)
            adapted = [item for item in backbone.parameters() if item.requires_grad]
        network = self.network
        own = [item for name, item in network.named_parameters() if not name.startswith("backbone.")]
        head = list(network.head.parameters())
        others = [item for item in own if all(item is not part for part in head)]
        groups = [{"params": [*adapted, *others], "peak": rate}, {"params": head, "peak": min(rate, HEAD_RATE)}]
        groups = [group for group in groups if group["params"]]
        return torch.optim.AdamW(groups, lr=rate, weight_decay=config.weight_decay)

    def train(self, out: Path, rank: int, world: int, *, quiet: bool) -> None:
        """Train until the epochs are done or the choosing fold gets no better; the best network is in ``best``."""
        config = self.config
        epochs = 0 if config.method == "linear" else config.epochs
        self._resume(out)
        if not self.state["history"]:
            self._record(None, quiet=quiet)
        while self.state["epochs_done"] < epochs:
            if self.state["epochs_done"] - self.state["best_epoch"] >= config.patience:
                break
            loss = self._epoch(epochs, rank, world)
            self.state["epochs_done"] += 1
            self._record(loss, quiet=quiet)
            if rank == 0:
                recipe = {"recipe": _plain(config), "fingerprint": self.network.backbone.fingerprint}
                save_checkpoint(
                    out, objective=self.network, average=self.best, optimizer=self.optimizer, state=self.state | recipe
                )

    def finish(self, backbone: Backbone) -> FinetuneResult:
        """Merge, calibrate and score the best network."""
        config, split, table = self.config, self.split, self.examples.table
        merge_lora(self.best)
        network = self.best.eval()
        network.trains_backbone = False
        logits = network.logits([self.inputs[row] for row in split.choose])
        calibration = fit_calibration(logits, self.choose) if config.incomplete == "known" else None
        systems: dict[str, NDArray[np.floating]] = {
            config.method: network.logits([self.inputs[row] for row in split.test])
        }
        untrained = backbone.untrained
        if config.method != "linear":
            systems[RANDOM if untrained else f"linear probe of the {ENCODER}"] = self.probe_logits.astype(np.float64)
        if not untrained:
            other = randomised(self.network.backbone, seed=config.seed).features_of_inputs(self.inputs)
            head = probe_features(other, table, split, self.probe)
            systems[RANDOM] = head.logits(other[split.test]).astype(np.float64)
        scores = score_systems(systems, table.take(split.test), resamples=config.resamples, seed=config.seed)
        facts = run_facts(backbone, self.examples, split, asdict(config)) | {
            "epochs_done": self.state["epochs_done"],
            "best_epoch": self.state["best_epoch"],
            "history": self.state["history"],
            "calibrated": calibration is not None,
        }
        details = {name: getattr(config, name) for name in ("fraction", "incomplete", "seed")}
        rows = scores.rows(f"finetune_{config.method}", best_epoch=self.state["best_epoch"], **details)
        groups = {name: tuple(columns) for name, columns in table.groups.items()}
        classifier = EcgClassifier(network, table.labels, groups, config.method, calibration, "")
        return FinetuneResult(classifier, scores, Evaluation(tuple(rows), scores.per_label, facts))

    def _epoch(self, epochs: int, rank: int, world: int) -> float:
        """Train one epoch; return the mean loss."""
        config, done = self.config, self.state["epochs_done"]
        torch.manual_seed(config.seed * 10_000 + done)
        self.network.train()
        parameters = [item for group in self.optimizer.param_groups for item in group["params"]]
        device = self.network.backbone.device
        loss_of, total = _on(self.loss, device), 0.0
        batches = list(self._batches(done))
        for step, rows in enumerate(batches):
            rng = np.random.default_rng([config.seed, done, step, rank])
            mine = rows[rank::world]
            progress = (done + step / len(batches)) / epochs
            for group in self.optimizer.param_groups:
                group["lr"] = one_cycle(progress, _Cycle(group["peak"], config.warmup_fraction))
            logits = self.network(*stack(self._augmented(mine, rng), range(len(mine)), device))
            per_label = loss_of.per_label(logits, self.values[mine].to(device))
            groups = [per_label[list(columns)].mean() for columns in self.examples.table.groups.values()]
            loss = torch.stack(groups).mean()
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            average_gradients(parameters)
            nn.utils.clip_grad_norm_(parameters, GRADIENT_NORM)
            self.optimizer.step()
            total += loss.item() / len(batches)
        return total

    def _batches(self, epoch: int) -> Iterator[NDArray[np.int64]]:
        order = np.random.default_rng([self.config.seed, epoch]).permutation(self.split.fit)
        yield from np.array_split(order, max(1, len(order) // self.config.batch_size))

    def _augmented(self, rows: NDArray[np.int64], rng: np.random.Generator) -> list[NDArray[np.float32]]:
        """Return the inputs of recordings: with turned axes if asked for, cropped at random where the network crops."""
        config, backbone = self.config, self.network.backbone
        found = [self.inputs[row] for row in rows]
        if config.axis_augmentation and config.lead is not None:
            turned = np.flatnonzero(rng.random(len(rows)) < AXIS_SHARE)
            ecgs = [random_axis(self.examples.ecgs[rows[at]], config.lead, rng) for at in turned]
            for at, item in zip(turned, backbone.prepare(ecgs), strict=True):
                found[at] = item
        length = min(self.crop, *(item.shape[-1] for item in found), backbone.samples)
        starts = [rng.integers(0, item.shape[-1] - length + 1) for item in found]
        return [item[..., start : start + length] for item, start in zip(found, starts, strict=True)]

    def _record(self, loss: float | None, *, quiet: bool) -> None:
        """Measure the choosing fold, keep the network if it is the best so far, and say so."""
        logits = self.network.logits([self.inputs[row] for row in self.split.choose])
        score = _shared(_macro(self.choose, logits, self.examples.table.groups), self.network.backbone.device)
        history = self.state["history"]
        if not history or score > max(item["choosing_auroc"] for item in history):
            self.best.load_state_dict(self.network.state_dict())
            self.state["best_epoch"] = self.state["epochs_done"]
        history.append({"epoch": self.state["epochs_done"], "loss": loss, "choosing_auroc": score})
        if not quiet:
            shown = "linear probe" if loss is None else f"epoch {self.state['epochs_done']}  loss {loss:.4f}"
            print(f"{shown}  choosing fold {score:.4f}", file=sys.stderr, flush=True)

    def _resume(self, out: Path) -> None:
        state = load_checkpoint(out, objective=self.network, average=self.best, optimizer=self.optimizer)
        if state is None:
            return
        given = (_plain(self.config), self.network.backbone.fingerprint)
        if (state.pop("recipe"), state.pop("fingerprint")) != given:
            raise BundleError(
                f"checkpoint in {out} is of another recipe or encoder; remove it, or choose another --out"
            )
        self.state = state


@dataclass(frozen=True)
class _Cycle:
    learning_rate: float
    warmup_fraction: float


def _plain(config: FinetuneConfig) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(asdict(config)))
    return plain


def _choosing(table: LabelTable, split: Split, incomplete: Incomplete) -> NDArray[np.float32]:
    """Return the labels of the choosing fold; incomplete ones count as the loss counts them."""
    values = table.values[split.choose]
    return values if incomplete == "known" else np.nan_to_num(values)


def _crop_of(backbone: Backbone) -> int:
    """Return the length of a training crop: our tower learns from windows of its pooling, others from whole inputs."""
    if isinstance(backbone.network, EcgEncoder):
        return round(backbone.network.config.window_s * backbone.sampling_rate_hz)
    return backbone.samples


@torch.no_grad()
def _settle(backbone: Backbone, inputs: Sequence[NDArray[np.float32]]) -> None:
    """Give the batch norms of an untrained network the statistics of the data, which training begins from."""
    norms = [item for item in backbone.modules() if isinstance(item, nn.BatchNorm1d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative average
        norm.train()
    few = [item for item in inputs[:SETTLING] if item.shape[-1] == inputs[0].shape[-1]]
    for part in range(0, len(few), BATCH_SIZE):
        backbone(torch.from_numpy(np.concatenate(few[part : part + BATCH_SIZE])).to(backbone.device))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()


def _macro(values: NDArray[np.float32], logits: NDArray[np.float64], groups: Mapping[str, tuple[int, ...]]) -> float:
    """Return the mean over label groups of macro-AUROC; 0 if no label can be measured."""
    auroc = label_auroc(values, logits)
    means = [auroc[list(columns)] for columns in groups.values()]
    held = [float(item[np.isfinite(item)].mean()) for item in means if np.isfinite(item).any()]
    return float(np.mean(held)) if held else 0.0


def _shared(score: float, device: torch.device) -> float:
    """Return the first process's figure in all, so that all stop together."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return score
    held = torch.tensor([score], dtype=torch.float64, device=device)
    distributed.broadcast(held, 0)
    return float(held.item())


def _on(loss: LabelLoss, device: torch.device) -> LabelLoss:
    return LabelLoss(loss.kind, loss.share.to(device), loss.prior.to(device), loss.positive_weight.to(device))


def _save(result: FinetuneResult, examples: Examples, split: Split, config: FinetuneConfig, out: Path) -> None:
    seen = []
    if examples.data:
        folds = sorted(set(examples.table.folds[np.concatenate([split.fit, split.choose])].tolist()))
        seen.append(SeenData(examples.data, "finetuning", "config.json of the classifier", tuple(folds)))
    result.classifier.save(out, seen=seen, training=_plain(config))


__all__ = ["FinetuneConfig", "FinetuneResult", "finetune"]
