"""What a backbone is, but for its weights: encoder, preprocessing, and the data that it was trained on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from mmecg.adaptation.towers import OWN, TowerInput
from mmecg.config import parse_config
from mmecg.encoders.preprocessing import Preprocessing
from mmecg.encoders.registry import Reduction, SeenData


@dataclass(frozen=True)
class BackboneConfig:
    """What a backbone is, but for its weights.

    Attributes
    ----------
    encoder : str
        ``"mmecg"`` for our tower, or a name in :mod:`mmecg.encoders.registry`.
    hyperparameters : mapping
        JSON values: of :class:`~mmecg.modeling.ecg_encoder.EcgEncoderConfig`, or for ``EncoderSpec.build``.
    preprocessing : TowerInput or Preprocessing
        From a recording to the network's input; its leads are those of the input.
    feature_reduction : {"mean", "max", "min"}
        How features of segments become one vector.
    seen : tuple of SeenData
        What it was trained on, in order.
    """

    encoder: str
    hyperparameters: Mapping[str, Any]
    preprocessing: TowerInput | Preprocessing
    feature_reduction: Reduction = "mean"
    seen: tuple[SeenData, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "hyperparameters", json.loads(json.dumps(dict(self.hyperparameters))))


def parse_backbone(content: Mapping[str, Any]) -> BackboneConfig:
    """Return the configuration that ``config.json`` of a backbone holds.

    Raises
    ------
    KeyError, TypeError, ConfigError
        It is not one.
    """
    kind: type[TowerInput | Preprocessing] = TowerInput if content["encoder"] == OWN else Preprocessing
    preprocessing = parse_config(kind, content["preprocessing"], prefix="preprocessing.")
    seen = tuple(parse_config(SeenData, item, prefix="seen.") for item in content["seen"])
    reduction = cast("Reduction", content["feature_reduction"])
    return BackboneConfig(str(content["encoder"]), dict(content["hyperparameters"]), preprocessing, reduction, seen)


def fingerprint_of(config: BackboneConfig, weights: Path) -> str:
    """Return the fingerprint of a backbone with this file of weights: 64 hexadecimal digits."""
    content = {name: value for name, value in asdict(config).items() if name != "seen"}
    with weights.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return hashlib.sha256((json.dumps(content, sort_keys=True) + digest).encode()).hexdigest()
