"""What training loops share: schedule, average of the weights, and a log of one JSON line an epoch with its curves."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from mmecg.training.curves import QUALITY, draw_curves
from mmecg.training.objective import TERMS

LOG, CURVES = "log.jsonl", "curves.png"


class Schedule(Protocol):
    """What a recipe says of its learning rate."""

    @property
    def learning_rate(self) -> float:
        """The peak."""

    @property
    def warmup_fraction(self) -> float:
        """Share of training before the peak."""


def one_cycle(progress: float, config: Schedule) -> float:
    """Return the learning rate at a share of training: cosine up to the peak, then cosine down to zero.

    Smith and Topin 2019, arXiv:1708.07120; starts at 1/25 of the peak.
    """
    if progress < config.warmup_fraction:
        rise = (1 - math.cos(math.pi * progress / config.warmup_fraction)) / 2
        return config.learning_rate * (1 / 25 + rise * 24 / 25)
    fall = (progress - config.warmup_fraction) / (1 - config.warmup_fraction)
    return config.learning_rate * (1 + math.cos(math.pi * fall)) / 2


@torch.no_grad()
def update_average(average: nn.Module, latest: nn.Module, *, decay: float, step: int) -> None:
    """Move the average of the weights towards them; faster at the start. Buffers (batch norm statistics) are copied."""
    decay = min(decay, (1 + step) / (10 + step))
    for mean, now in zip(average.parameters(), latest.parameters(), strict=True):
        mean.lerp_(now, 1 - decay)
    for held, buffer in zip(average.buffers(), latest.buffers(), strict=True):
        held.copy_(buffer)


def trim_log(out: Path, epochs_done: int) -> None:
    """Drop log lines beyond the checkpoint: of an epoch that was logged, but not saved, before a crash."""
    log, partial = out / LOG, out / f"{LOG}.partial"
    if log.exists():
        kept = [line for line in log.read_text(encoding="utf-8").splitlines() if _epoch(line) <= epochs_done]
        partial.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        partial.replace(log)


def append_log(
    out: Path,
    record: Mapping[str, Any],
    epochs: int,
    *,
    quiet: bool,
    terms: tuple[str, ...] = TERMS,
    quality: Mapping[str, str] = QUALITY,
) -> None:
    """Write the line of an epoch, draw the curves, and print the line on standard error.

    Parameters
    ----------
    out : Path
        Folder of the run.
    record : mapping
        JSON values; ``epoch`` is the number of epochs done.
    epochs : int
        Number of epochs there will be.
    quiet : bool
        Print nothing.
    terms, quality
        See :func:`mmecg.training.curves.draw_curves`.
    """
    rounded = {name: float(np.round(value, 4)) if isinstance(value, float) else value for name, value in record.items()}
    with (out / LOG).open("a", encoding="utf-8") as file:
        file.write(json.dumps(rounded) + "\n")
    draw_curves(out / LOG, out / CURVES, terms=terms, quality=quality)
    if not quiet:
        shown = "  ".join(f"{name} {value:g}" for name, value in rounded.items() if name != "epoch")
        print(f"epoch {record['epoch']}/{epochs}  {shown}", file=sys.stderr, flush=True)


def _epoch(line: str) -> float:
    try:
        return float(json.loads(line)["epoch"])
    except ValueError:
        return math.inf  # torn by the crash, so of an epoch that was not saved
