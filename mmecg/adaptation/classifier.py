"""A backbone with a head for labels: the network that is fine-tuned, and what it becomes when it is saved.

::

    finetuned/
      config.json, model.safetensors    the backbone; load_backbone reads them alone
      classifier.json                   labels, groups, method, fingerprint of the backbone
      classifier.safetensors            standardisation, head, attention pooling
      calibration.safetensors           map of log-odds to calibrated log-odds, if there is one
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mmecg.adaptation.backbone import BATCH_SIZE, Backbone, load_backbone, save_backbone
from mmecg.adaptation.linear import LinearHead
from mmecg.adaptation.pooling import AttentionPool
from mmecg.ecg import Ecg
from mmecg.encoders.registry import SeenData
from mmecg.errors import BundleError
from mmecg.labels.logistic import expit
from mmecg.prediction.calibration import LogitMap, fit_logit_map
from mmecg.prediction.store import load_heads, save_heads

CLASSIFIER, HEAD, CALIBRATION = "classifier.json", "classifier.safetensors", "calibration.safetensors"
_REDUCTIONS = {"mean": "mean", "max": "amax", "min": "amin"}


class Classifier(nn.Module):
    """A backbone, standardisation of its features, a linear head, and optionally attention pooling beside it.

    It begins as a linear probe: what attention adds starts at zero.

    Parameters
    ----------
    backbone : Backbone
    labels : int
    attention : bool
    trains_backbone : bool
        Otherwise the backbone is fixed: in evaluation mode, without gradients.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, backbone: Backbone, labels: int, *, attention: bool, trains_backbone: bool) -> None:
        super().__init__()
        self.backbone = backbone
        self.trains_backbone = trains_backbone
        self.register_buffer("mean", torch.zeros(backbone.feature_dim))
        self.register_buffer("scale", torch.ones(backbone.feature_dim))
        self.head = nn.Linear(backbone.feature_dim, labels)
        self.pool: AttentionPool | None = None
        if attention:
            with torch.inference_mode():
                zeros = torch.zeros(1, len(backbone.leads), backbone.samples, device=backbone.device)
                width = backbone.maps(zeros).shape[1]
            self.pool = AttentionPool(width)
            self.attended = nn.Linear(width, labels, bias=False)
            nn.init.zeros_(self.attended.weight)

    def start_from(self, head: LinearHead) -> None:
        """Take the solution of a linear probe (Kumar et al. 2022, arXiv:2202.10054: fine-tuning then distorts less)."""
        with torch.no_grad():
            for own, given in (
                (self.mean, head.mean), (self.scale, head.scale), (self.head.weight, head.weight.T),
                (self.head.bias, head.bias),
            ):  # fmt: skip
                own.copy_(torch.from_numpy(np.ascontiguousarray(given)))

    def train(self, mode: bool = True) -> Classifier:
        """Set training or evaluation mode; a backbone with fixed statistics stays in evaluation mode."""
        super().train(mode)
        if not self.trains_backbone:
            self.backbone.eval()
        return self

    def forward(self, signal: Tensor, owner: Tensor, count: int) -> Tensor:
        """Return the log-odds of recordings.

        Parameters
        ----------
        signal : float, shape (segments, leads, samples)
        owner : int64, shape (segments,)
            Recording of each segment, 0 to ``count - 1``.
        count : int

        Returns
        -------
        float, shape (count, labels)
        """
        fixed = not any(parameter.requires_grad for parameter in self.backbone.parameters())
        with torch.set_grad_enabled(torch.is_grad_enabled() and not fixed):
            maps = self.backbone.maps(signal)
            features = self.backbone.pool(maps)
        reduction = _REDUCTIONS[self.backbone.config.feature_reduction]
        logits: Tensor = self.head((_reduce(features, owner, count, reduction) - self.mean) / self.scale)
        if self.pool is not None:
            logits = logits + self.attended(_reduce(self.pool(maps), owner, count, "mean"))
        return logits

    def logits(self, inputs: Sequence[NDArray[np.float32]], *, batch: int = BATCH_SIZE) -> NDArray[np.float64]:
        """Return the log-odds of what :meth:`Backbone.prepare` made, in evaluation mode: float64, shape (n, labels)."""
        found = np.zeros((len(inputs), self.head.out_features))
        training = self.training
        self.eval()
        with torch.inference_mode():
            for length in {item.shape[-1] for item in inputs}:
                rows = [row for row, item in enumerate(inputs) if item.shape[-1] == length]
                for start in range(0, len(rows), batch):
                    part = rows[start : start + batch]
                    found[part] = self(*stack(inputs, part, self.backbone.device)).double().cpu().numpy()
        self.train(training)
        return found


def stack(
    inputs: Sequence[NDArray[np.float32]], rows: Sequence[int], device: torch.device
) -> tuple[Tensor, Tensor, int]:
    """Return the arguments of :meth:`Classifier.forward` for some recordings of equal length."""
    owner = np.repeat(np.arange(len(rows)), [len(inputs[row]) for row in rows])
    signal = torch.from_numpy(np.concatenate([inputs[row] for row in rows]))
    return signal.to(device), torch.from_numpy(owner).to(device), len(rows)


def _reduce(values: Tensor, owner: Tensor, count: int, reduction: str) -> Tensor:
    """Reduce the rows of each owner: (segments, dim) to (count, dim)."""
    if len(values) == count:
        return values
    index = owner[:, None].expand_as(values)
    return values.new_zeros(count, values.shape[1]).scatter_reduce(0, index, values, reduction, include_self=False)


@dataclass(frozen=True)
class EcgClassifier:
    """A fine-tuned classifier, ready to answer.

    Attributes
    ----------
    network : Classifier
        In evaluation mode.
    labels : tuple of str
    groups : mapping of str to tuple of int
        Label groups, as columns.
    method : str
    calibration : LogitMap, optional
        None if it was fitted on labels that are incomplete.
    fingerprint : str
        Of the backbone.
    """

    network: Classifier
    labels: tuple[str, ...]
    groups: Mapping[str, tuple[int, ...]]
    method: str
    calibration: LogitMap | None
    fingerprint: str

    def logits(self, ecgs: Sequence[Ecg]) -> NDArray[np.float64]:
        """Return the log-odds of every label, calibrated if there is a calibration: float64, shape (n, labels).

        Raises
        ------
        SignalError
            A recording has none of the leads that the network takes.
        """
        raw = self.network.logits(self.network.backbone.prepare(ecgs))
        return raw if self.calibration is None else self.calibration.apply(raw)

    def probabilities(self, ecgs: Sequence[Ecg]) -> NDArray[np.float64]:
        """Return the probability of every label: float64, shape (n, labels)."""
        return expit(self.logits(ecgs))

    def save(
        self, path: str | Path, *, seen: Sequence[SeenData] = (), training: Mapping[str, Any] | None = None
    ) -> str:
        """Write the classifier; return the fingerprint of its backbone.

        Raises
        ------
        AlreadyExistsError
            An encoder is at ``path``.
        """
        root = Path(path)
        name = save_backbone(root, self.network.backbone, seen=seen, training=training)
        state = {key: value for key, value in self.network.state_dict().items() if not key.startswith("backbone.")}
        save_file({key: value.contiguous() for key, value in state.items()}, root / HEAD)
        if self.calibration is not None:
            save_heads(root / CALIBRATION, self.calibration)
        content = {
            "labels": self.labels,
            "groups": {group: list(columns) for group, columns in self.groups.items()},
            "method": self.method,
            "fingerprint": name,
            "calibrated": self.calibration is not None,
        }
        (root / CLASSIFIER).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        return name


def load_classifier(path: str | Path, *, device: str | torch.device = "cpu") -> EcgClassifier:
    """Load what ``mmecg finetune`` wrote.

    Raises
    ------
    BundleError
        A file is missing or damaged, or they do not belong together.
    """
    root = Path(path)
    backbone = load_backbone(root)
    try:
        content = json.loads((root / CLASSIFIER).read_text(encoding="utf-8"))
        labels, method = tuple(content["labels"]), str(content["method"])
        groups = {str(name): tuple(columns) for name, columns in content["groups"].items()}
        if content["fingerprint"] != backbone.fingerprint:
            raise BundleError(f"{root}: {CLASSIFIER} belongs to another backbone; fine-tune again")
        state = load_file(root / HEAD)
        attention = any(key.startswith("pool.") for key in state)
        network = Classifier(backbone, len(labels), attention=attention, trains_backbone=False)
        result = network.load_state_dict(state, strict=False)
        if result.unexpected_keys or any(not key.startswith("backbone.") for key in result.missing_keys):
            raise KeyError("head")
        calibration = load_heads(root / CALIBRATION, LogitMap) if content["calibrated"] else None
    except (OSError, KeyError, TypeError, ValueError, AttributeError, RuntimeError, SafetensorError) as error:
        raise BundleError(
            f"{root} holds no usable classifier ({type(error).__name__}); give a directory of `mmecg finetune`"
        ) from None
    return EcgClassifier(network.to(device).eval(), labels, groups, method, calibration, backbone.fingerprint)


def fit_calibration(logits: NDArray[np.float64], values: NDArray[np.float32]) -> LogitMap:
    """Return the calibration of every label, each fitted where it is known.

    Labels that are known in the same records share a slope; see :func:`mmecg.prediction.calibration.fit_logit_map`. A
    label that is known nowhere is left as it is.

    Parameters
    ----------
    logits : float64, shape (n, labels)
    values : float32, shape (n, labels)
        1, 0 or NaN.
    """
    known = ~np.isnan(values)
    count = values.shape[1]
    slope_low, slope_high, offset = np.ones(count), np.ones(count), np.zeros(count)
    correction, method = None, ["temperature"] * count
    for rows in {known[:, column].tobytes(): known[:, column] for column in range(count)}.values():
        columns = np.flatnonzero((known == rows[:, None]).all(axis=0))
        if not rows.any():
            continue
        part = fit_logit_map(logits[np.ix_(rows, columns)], values[np.ix_(rows, columns)] == 1)
        slope_low[columns], slope_high[columns], offset[columns] = part.slope_low, part.slope_high, part.offset
        if correction is None:
            correction = np.zeros((len(part.correction), count), np.float32)
        correction[:, columns] = part.correction
        for column, name in zip(columns, part.method, strict=True):
            method[column] = name
    held = np.zeros((2, count), np.float32) if correction is None else correction
    return LogitMap(slope_low, slope_high, offset, held, tuple(method))
