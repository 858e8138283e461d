"""The pairs of segments that batches are made of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmecg.errors import ConfigError
from mmecg.pretraining.config import PretrainingConfig
from mmecg.pretraining.masking import lead_masks, span_masks
from mmecg.pretraining.recordings import Recordings
from mmecg.training.augment import augment


@dataclass(frozen=True)
class Batch:
    """Pairs of segments.

    Attributes
    ----------
    signal : float32, shape (2 * batch, leads, samples)
        The first segments of all pairs, then the second ones.
    groups : int64, shape (batch,)
        Equal for pairs that belong together: of one recording, or one patient.
    mask : bool, shape (2 * batch, steps)
        Steps to hide.
    """

    signal: Tensor
    groups: Tensor
    mask: Tensor

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device."""
        return Batch(
            self.signal.to(device, non_blocking=True),
            self.groups.to(device, non_blocking=True),
            self.mask.to(device, non_blocking=True),
        )


class PairSampler:
    """Draw the batches of an epoch; the same seed, epoch and rank draw the same batches.

    Every recording is once in an epoch. With ``cmsc = "patient"``, the other segment is of any recording of its
    patient, itself included; else of the recording itself. Two segments of one recording are adjacent, at a random
    place where there is room, in random order.

    Parameters
    ----------
    data : Recordings
    config : PretrainingConfig
    samples : int
        Length of a segment.
    steps : int
        Steps of the network in a segment; 0 hides none.
    sampling_rate_hz : float
    rank, world_size : int
        This process and how many there are; each takes its share of every batch.

    Raises
    ------
    ConfigError
        Two segments are longer than a recording, or a batch is larger than the data.
    """

    def __init__(
        self,
        data: Recordings,
        config: PretrainingConfig,
        *,
        samples: int,
        steps: int,
        sampling_rate_hz: float,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        length = data.signals.shape[2]
        if 2 * samples > length:
            raise ConfigError(
                f"segments.seconds is {samples / sampling_rate_hz:g} s, expected at most half of a recording of "
                f"{length / sampling_rate_hz:g} s"
            )
        if len(data) < config.batch_size:
            raise ConfigError(f"batch_size is {config.batch_size}, expected at most {len(data)} recordings")
        self.data, self.config = data, config
        self.samples, self.steps = samples, steps
        self._rate, self._rank, self._world = sampling_rate_hz, rank, world_size
        _, patient_of = np.unique(np.asarray(data.subject_ids), return_inverse=True)
        self._groups = patient_of if config.cmsc == "patient" else np.arange(len(data))
        order = np.argsort(self._groups, kind="stable")
        self._members = np.split(order, np.cumsum(np.bincount(self._groups))[:-1])

    @property
    def batches(self) -> int:
        """Batches in an epoch."""
        return len(self.data) // self.config.batch_size

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """Yield the batches of one epoch."""
        rng = np.random.default_rng([self.config.seed, epoch])
        own = np.random.default_rng([self.config.seed, epoch, self._rank, 1])
        order, size = rng.permutation(len(self.data)), self.config.batch_size
        for step in range(self.batches):
            yield self._batch(order[step * size : (step + 1) * size], rng, own)

    def draw(self, rows: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
        """Draw a pair of segments for each recording: int64, shape (2, batch, 2); recording and start of each."""
        partners = np.array([rng.choice(self._members[self._groups[row]]) for row in rows], np.int64)
        room = self.data.signals.shape[2] - self.samples
        apart = rng.integers(0, room + 1, (2, len(rows)))
        start = rng.integers(0, room - self.samples + 1, len(rows))
        adjacent = np.stack([start, start + self.samples])
        swapped = np.where(rng.random(len(rows)) < 0.5, adjacent, adjacent[::-1])
        return np.stack([np.stack([rows, partners]), np.where(partners == rows, swapped, apart)], axis=-1)

    def _batch(self, rows: NDArray[np.int64], rng: np.random.Generator, own: np.random.Generator) -> Batch:
        count = len(rows)
        pairs = self.draw(rows, rng)
        leads = lead_masks(2 * count, self.data.signals.shape[1], self.config.rlm, rng)
        spans = self.config.masking
        hidden = np.zeros((2 * count, 0), np.bool_)
        if self.steps:
            hidden = span_masks(
                2 * count,
                self.steps,
                rng,
                probability=spans.probability,
                length=spans.length,
                min_spans=spans.min_spans,
            )
        # What is drawn does not depend on the number of processes, only who takes it.
        mine = np.arange(count)[self._rank :: self._world]
        both = np.concatenate([mine, count + mine])
        cuts = pairs[:, mine].reshape(-1, 2)
        half = np.stack([self.data.signals[row, :, start : start + self.samples] for row, start in cuts])
        signal = half.astype(np.float32)
        if self.config.augment:
            signal = augment(signal, self._rate, own)
        return Batch(
            torch.from_numpy(signal * leads[both]),
            torch.from_numpy(self._groups[rows[mine]].astype(np.int64)),
            torch.from_numpy(hidden[both]),
        )
