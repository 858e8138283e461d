"""The recipe: one frozen dataclass, read from TOML. ``mmecg/assets/training.toml`` is the shipped bundle's."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mmecg.config import load_config
from mmecg.errors import ConfigError
from mmecg.modeling.dual_encoder import DualEncoderConfig

Supervision = Literal["labels", "reports"]


@dataclass(frozen=True)
class LossWeights:
    """Weight of each term of the objective (see :mod:`mmecg.training.objective`)."""

    reports: float = 1.0
    words: float = 0.5
    statements: float = 1.0
    prompts: float = 1.0
    neighbours: float = 2.0
    spread: float = 0.05
    vitals: float = 0.5


@dataclass(frozen=True)
class TrainingConfig:
    """Everything that decides a trained bundle, beside the data.

    Attributes
    ----------
    folds : tuple of int
        PTB-XL folds to train on.
    choose_fold : int, optional
        Fold on which progress is measured; never one of ``folds``. The shipped bundle has none.
    supervision : {"labels", "reports"}
        ``"reports"`` uses report text and vitals only, and no statement code in any form.
    epochs, batch_size, learning_rate, weight_decay, warmup_fraction, average_decay, seed
        AdamW with a one-cycle schedule; an exponential average of the weights is what is kept.
    crop_s : float
        Length of a training crop.
    lead_mask_probability : float
        Share of crops that keep only some leads.
    extra_reports : int
        Reports of other studies that serve as further negatives of a batch.
    rarity_exponent : float
        A claim about one label draws the label with probability proportional to its count to minus this power.
    text_width, text_hidden : int
        Shape of the text tower.
    mixed_precision : bool
        bfloat16 for the ECG tower.
    vitals_weight : float
        Weight of the vitals beside an ECG of weight 1 where training fuses the two.
    query_vitals_weight : float
        The same for queries: what the bundle recommends and evaluation uses. Chosen on fold 8.
    """

    folds: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7, 8)
    choose_fold: int | None = None
    supervision: Supervision = "labels"
    epochs: int = 40
    batch_size: int = 256
    learning_rate: float = 2e-3
    weight_decay: float = 0.02
    warmup_fraction: float = 0.15
    average_decay: float = 0.998
    seed: int = 0
    crop_s: float = 2.5
    lead_mask_probability: float = 0.5
    extra_reports: int = 1024
    rarity_exponent: float = 0.75
    text_width: int = 256
    text_hidden: int = 512
    mixed_precision: bool = True
    vitals_weight: float = 0.3
    query_vitals_weight: float = 0.1
    weights: LossWeights = field(default_factory=LossWeights)
    model: DualEncoderConfig = field(default_factory=DualEncoderConfig)

    def __post_init__(self) -> None:
        if not self.folds or self.choose_fold in self.folds:
            raise ConfigError(
                f"folds are {self.folds} and choose_fold is {self.choose_fold}, expected training folds that do not "
                "hold the fold to choose on"
            )
        if self.epochs < 1 or self.batch_size < 2:
            raise ConfigError(f"epochs {self.epochs} and batch_size {self.batch_size}, expected at least 1 and 2")

    def effective_weights(self) -> LossWeights:
        """Return the loss weights; the label terms are zero under ``supervision = "reports"``."""
        if self.supervision == "labels":
            return self.weights
        return dataclasses.replace(self.weights, statements=0.0, prompts=0.0, neighbours=0.0)


def load_training_config(path: Path | None = None) -> TrainingConfig:
    """Read a recipe; None means the shipped bundle's. Raises ``ConfigError``."""
    return load_config(TrainingConfig, path or Path(__file__).parents[1] / "assets" / "training.toml")
