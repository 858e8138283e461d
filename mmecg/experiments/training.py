"""A small tower trained on labels, as far as an experiment has to change what the tower sees in training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from mmecg.adaptation.backbone import Backbone
from mmecg.errors import InvalidInputError
from mmecg.experiments.bench import Bench
from mmecg.training.augment import random_crops

Change = Callable[[NDArray[np.float32], np.random.Generator], NDArray[np.float32]]
"""What is done to training crops: float32, shape (batch, leads=12, samples), mV, to the same."""


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Attributes
    ----------
    steps, batch : int
        Of AdamW with a one-cycle schedule.
    crop_s : float
        Length of the random crops.
    learning_rate, weight_decay : float
    """

    steps: int = 600
    batch: int = 64
    crop_s: float = 2.5
    learning_rate: float = 3e-3
    weight_decay: float = 0.01


class Classifier(nn.Module):
    """An encoder and a linear layer on its features."""

    def __init__(self, encoder: Backbone, labels: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.feature_dim, labels)

    def forward(self, signal: Tensor) -> Tensor:
        """Map float32, shape (batch, leads=12, samples), mV, to log-odds: float32, shape (batch, labels)."""
        found: Tensor = self.head(self.encoder(signal))
        return found


@torch.inference_mode()
def outputs(
    network: nn.Module, signals: NDArray[np.int16], change: Change | None = None, *, seed: int = 0, batch: int = 64
) -> NDArray[np.float32]:
    """Return what a network makes of whole recordings, in evaluation mode: float32, shape (n, outputs).

    Parameters
    ----------
    network : nn.Module
        From float32, shape (batch, leads=12, samples), mV, to (batch, outputs).
    signals : int16, shape (n, leads=12, samples), µV
    change : callable, optional
        What is done to the recordings, such as leads that are hidden.
    seed : int
        Of the change.
    batch : int
    """
    network.eval()
    rng = np.random.default_rng(seed)
    found = []
    for start in range(0, len(signals), batch):
        part = signals[start : start + batch].astype(np.float32) / np.float32(1000)
        found.append(network(torch.from_numpy(part if change is None else change(part, rng))).numpy())
    return np.concatenate(found)


def train(
    bench: Bench,
    encoder: Backbone,
    truth: NDArray[np.float32],
    rows: NDArray[np.int64],
    recipe: Recipe,
    *,
    change: Change | None = None,
    what: str = "training",
) -> Classifier:
    """Train an encoder of our own tower, and a linear layer, on some rows; the encoder is changed.

    Parameters
    ----------
    bench : Bench
    encoder : Backbone
    truth : float32, shape (n, labels)
        1, 0, or NaN where unknown, which counts for nothing.
    rows : int64
        To train on.
    recipe : Recipe
    change : callable, optional
        What is done to the crops.
    what : str
        For the progress.

    Raises
    ------
    InvalidInputError
        The recordings have another sampling rate than the encoder's input.
    """
    if bench.recordings.rate != encoder.sampling_rate_hz:
        raise InvalidInputError(
            f"recordings have {bench.recordings.rate} Hz, expected {encoder.sampling_rate_hz:g} Hz as the network; "
            "unpack the files of that rate beside ptbxl_database.csv",
            field="data",
        )
    rng = np.random.default_rng(bench.options.seed)
    with torch.random.fork_rng():
        torch.manual_seed(bench.options.seed)
        model = Classifier(encoder, truth.shape[1])
    model.train()
    optimiser = torch.optim.AdamW(model.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, recipe.learning_rate, total_steps=recipe.steps)
    signals, samples = bench.recordings.signals, round(recipe.crop_s * bench.recordings.rate)
    for step, taken in enumerate(_batches(rows, recipe, rng)):
        crops = random_crops(signals, taken, samples, rng)
        targets = torch.from_numpy(truth[taken])
        logits = model(torch.from_numpy(crops if change is None else change(crops, rng)))
        known = torch.isfinite(targets)
        loss = binary_cross_entropy_with_logits(logits[known], targets[known])
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step % 20 == 0:
            bench.progress(what, step, recipe.steps)
    return model.eval()


def _batches(rows: NDArray[np.int64], recipe: Recipe, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """Yield the rows of each step: permutations of all rows, one after the other."""
    order = np.empty(0, np.int64)
    for _ in range(recipe.steps):
        while len(order) < recipe.batch:
            order = np.concatenate([order, rng.permutation(rows)])
        yield order[: recipe.batch]
        order = order[recipe.batch :]
