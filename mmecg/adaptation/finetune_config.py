"""What fine-tuning is told: method, length, rates, and how labels are taken."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from mmecg.adaptation.incomplete import Incomplete
from mmecg.adaptation.lora import RANK
from mmecg.errors import InvalidInputError

Method = Literal["full", "lora", "attention", "linear"]
RATES: Mapping[Method, float] = {"full": 5e-4, "lora": 2e-3, "attention": 2e-3, "linear": 0.0}
"""Peak learning rates; none is needed where nothing is trained after the probe."""


@dataclass(frozen=True)
class FinetuneConfig:
    """What is trained, and how.

    Attributes
    ----------
    fold, fraction, incomplete, prior, resamples, seed
        As :class:`mmecg.adaptation.probe.ProbeConfig`.
    method : {"full", "lora", "attention", "linear"}
    epochs, batch_size : int
    patience : int
        Epochs without a better choosing fold after which training ends.
    learning_rate : float, optional
        Peak of the schedule for the backbone (attention: the pooling); default :data:`RATES`.
    weight_decay, warmup_fraction : float
    class_weights : bool
        Weigh the positives of rare labels; outputs are calibrated afterwards.
    rank : int
        Of LoRA.
    lead : str, optional
        Adapt a network that takes this lead only.
    axis_augmentation : bool
        Turn the axis of that lead at random in training.
    """

    fold: int
    method: Method = "full"
    fraction: float = 1.0
    epochs: int = 20
    batch_size: int = 64
    patience: int = 6
    learning_rate: float | None = None
    weight_decay: float = 0.01
    warmup_fraction: float = 0.1
    class_weights: bool = False
    incomplete: Incomplete = "known"
    prior: Mapping[str, float] = field(default_factory=dict)
    rank: int = RANK
    lead: str | None = None
    axis_augmentation: bool = False
    resamples: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            known = ", ".join(get_args(Method))
            raise InvalidInputError(f"method is {self.method!r}, expected one of {known}", field="method")
        for name, least in (("epochs", 0), ("batch_size", 2), ("rank", 1), ("patience", 1)):
            if (got := getattr(self, name)) < least:
                raise InvalidInputError(f"{name} is {got}, expected at least {least}", field=name)
        if self.axis_augmentation and self.lead is None:
            raise InvalidInputError("axis augmentation turns one lead; say which (lead)", field="axis_augmentation")
