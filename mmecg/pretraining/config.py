"""The recipe of self-supervised pretraining: frozen dataclasses, read from TOML, strict."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mmecg.config import Precision, load_config, require
from mmecg.encoders.ecg_fm import EcgFmConfig

Pairs = Literal["recording", "patient", "off"]
TEST_FOLDS = frozenset({9, 10})
"""Folds that figures are reported on."""


@dataclass(frozen=True)
class MaskedConfig:
    """Masked prediction; the defaults are those of ECG-FM's pretraining.

    Attributes
    ----------
    probability : float
        Share of steps that would be hidden if spans never overlapped.
    length, min_spans : int
        Of hidden spans, in steps of the network: 0.03 s for ECG-FM, 0.16 s for our tower.
    negatives : int
        See :func:`mmecg.pretraining.contrastive.draw_negatives`.
    temperature : float
        Of the cosine.
    diversity_weight, penalty_weight : float
        Weights of the diversity of codes and of the mean square of the convolutions' maps, beside a contrast of weight
        1.
    groups, codes, dim : int
        Of the quantiser.
    code_temperature : tuple of (start, end, factor)
        Of the quantiser.
    context_width, context_layers, context_heads : int
        The transformer that is put on top of a network that has none, and thrown away afterwards.
    """

    probability: float = 0.65
    length: int = 10
    min_spans: int = 2
    negatives: int = 100
    temperature: float = 0.1
    diversity_weight: float = 0.1
    penalty_weight: float = 10.0
    groups: int = 2
    codes: int = 320
    dim: int = 256
    code_temperature: tuple[float, ...] = (2.0, 0.5, 0.999995)
    context_width: int = 128
    context_layers: int = 1
    context_heads: int = 4

    def __post_init__(self) -> None:
        require(0 < self.probability < 1, f"masking.probability is {self.probability}, expected one between 0 and 1")
        require(self.dim % self.groups == 0, f"masking.dim {self.dim} is not divisible by {self.groups} groups")
        require(len(self.code_temperature) == 3, "masking.code_temperature is not three numbers: start, end, factor")
        require(
            min(self.length, self.min_spans, self.negatives, self.codes, self.temperature) > 0,
            "masking.length, min_spans, negatives, codes and temperature are not all positive; make them so",
        )


@dataclass(frozen=True)
class SegmentConfig:
    """Contrast of segments.

    Attributes
    ----------
    seconds : float
        Length of a segment.
    temperature : float
        Of the cosine.
    weight : float
        Beside a masked contrast of weight 1.
    projection : int
        Width of a perceptron between features and cosine, thrown away afterwards (Chen et al. 2020, arXiv:2002.05709);
        0 for none, as in the papers.
    """

    seconds: float = 5.0
    temperature: float = 0.1
    weight: float = 1.0
    projection: int = 0

    def __post_init__(self) -> None:
        require(self.seconds > 0, f"segments.seconds is {self.seconds}, expected a positive length")
        require(self.temperature >= 0.01, f"segments.temperature is {self.temperature}, expected at least 0.01")


@dataclass(frozen=True)
class PretrainingConfig:
    """Everything that decides a pretrained encoder, beside the data.

    Attributes
    ----------
    encoder : str
        ``"small"`` (our tower at toy width), ``"ecg-fm"`` (the network of :attr:`ecg_fm`), or the directory of an
        encoder: a bundle, or what ``import-encoder``, ``pretrain`` or ``finetune`` wrote.
    fresh : bool
        Start from random weights although ``encoder`` is a directory.
    masked : bool
        Masked prediction.
    cmsc : {"recording", "patient", "off"}
        Contrast of segments: positives are adjacent segments of a recording, or segments of any two recordings of a
        patient as well.
    rlm : float
        Probability with which each lead is hidden; 0 for none. ECG-FM: 0.5.
    augment : bool
        Gain, noise and baseline wander of :func:`mmecg.training.augment.augment` on every segment, in units of the
        network's input.
    folds : tuple of int
        Folds to train on: of PTB-XL, or by a hash of the subject for other data.
    choose_fold : int
        Fold on which progress is measured; never one of ``folds``.
    include_test_folds : bool
        Allow folds 9 and 10 among them.
    epochs, batch_size, learning_rate, weight_decay, warmup_fraction, average_decay, seed
        AdamW with a one-cycle schedule. ``batch_size`` is of segment pairs, over all processes. With
        ``average_decay`` above 0, an exponential average of the weights is what is kept.
    probe_every : int
        Epochs between linear probes on ``choose_fold``; 0 for none.
    probe_records : int
        Training recordings that the probe is fitted on.
    precision : {"auto", "float32", "bfloat16"}
        Of the network; see :func:`mmecg.modeling.ecg_inference.resolve_dtype`.
    """

    encoder: str = "small"
    fresh: bool = False
    masked: bool = True
    cmsc: Pairs = "recording"
    rlm: float = 0.5
    augment: bool = False
    folds: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7)
    choose_fold: int = 8
    include_test_folds: bool = False
    epochs: int = 20
    batch_size: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    warmup_fraction: float = 0.1
    average_decay: float = 0.0
    seed: int = 0
    probe_every: int = 5
    probe_records: int = 2000
    precision: Precision = "auto"
    masking: MaskedConfig = field(default_factory=MaskedConfig)
    segments: SegmentConfig = field(default_factory=SegmentConfig)
    ecg_fm: EcgFmConfig = field(default_factory=EcgFmConfig)

    def __post_init__(self) -> None:
        require(self.masked or self.cmsc != "off", "masked is off and cmsc is off, so nothing is learnt; turn one on")
        require(0 <= self.rlm < 1, f"rlm is {self.rlm}, expected a probability below 1")
        require(
            bool(self.folds) and self.choose_fold not in self.folds,
            f"folds are {self.folds} and choose_fold is {self.choose_fold}, expected training folds that do not hold "
            "the fold to choose on",
        )
        held_out = sorted(TEST_FOLDS & {*self.folds, self.choose_fold})
        require(
            self.include_test_folds or not held_out,
            f"fold {', '.join(map(str, held_out))} is kept for evaluation, expected folds 1 to 8; choose others, or "
            "say include_test_folds",
        )
        require(
            self.epochs >= 1 and self.batch_size >= 2,
            f"epochs {self.epochs} and batch_size {self.batch_size}, expected at least 1 and 2",
        )


def load_pretraining_config(path: Path | None = None, **overrides: Any) -> PretrainingConfig:
    """Read a recipe: the defaults, a TOML file over them, and keyword arguments over both. Raises ``ConfigError``."""
    return load_config(PretrainingConfig, path, **overrides)
