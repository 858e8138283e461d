"""What every aligned model has, whatever its ECG tower: projection, text and vitals towers, and encoding with them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mmecg.ecg import Ecg
from mmecg.embedding import EMBEDDING_DIM
from mmecg.errors import VitalsError
from mmecg.modeling.text_encoder import TextEncoder
from mmecg.modeling.vitals_encoder import VitalsEncoder, vitals_matrix
from mmecg.vitals import Vitals


class EcgProjection(nn.Module):
    """From ECG features to the shared space: standardise them, then a linear map plus a two-layer perceptron.

    Standardising keeps features of small variance in play, and the linear path carries them into the embedding; without
    both, embeddings of a perceptron alone filled some 20 of the 256 dimensions.

    Parameters
    ----------
    width : int
        Length of the features.
    hidden : int
        Hidden width.
    dropout : float
        Before both layers.
    """

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.standardise = nn.BatchNorm1d(width, affine=False)
        self.linear = nn.Linear(width, EMBEDDING_DIM)
        self.perceptron = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(width, hidden),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, EMBEDDING_DIM),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Map float, shape (batch, features), to float, shape (batch, dim)."""
        x: Tensor = self.standardise(features)
        out: Tensor = self.linear(x) + self.perceptron(x)
        return out


class JointEncoder(nn.Module, ABC):
    """ECG, text and vitals into one unit sphere of 256 dimensions; a subclass makes the ECG features.

    Parameters
    ----------
    ecg : nn.Module
        From a training batch to features.
    projection : EcgProjection
    text : TextEncoder
    fingerprint : str
        Names the embedding space; empty while training.
    """

    def __init__(self, ecg: nn.Module, projection: EcgProjection, text: TextEncoder, *, fingerprint: str = "") -> None:
        super().__init__()
        self.fingerprint = fingerprint
        self.ecg = ecg
        self.projection = projection
        self.vitals = VitalsEncoder()
        self.text = text
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))  # Radford et al. 2021, arXiv:2103.00020

    @property
    @abstractmethod
    def ecg_encoder(self) -> str:
        """Name of the ECG tower: ``"mmecg"``, or a name in :mod:`mmecg.encoders.registry`."""

    @abstractmethod
    def random_like(self, *, seed: int = 0) -> Self:
        """Return a model of the same shape with an untrained ECG tower and projection: the random-encoder baseline.

        The text tower is shared: it has no random counterpart that reads words.
        """

    @abstractmethod
    def ecg_features(self, ecgs: Sequence[Ecg]) -> NDArray[np.float32]:
        """Return float32, shape (batch, features): the raw output of the ECG tower, averaged over segments."""

    def project_ecg(self, features: Tensor) -> Tensor:
        """Map ECG features, shape (batch, features), to float, shape (batch, dim), unit norm."""
        return nn.functional.normalize(self.projection(features), dim=-1)

    def encode_ecg(self, ecgs: Sequence[Ecg]) -> NDArray[np.float32]:
        """Return float32, shape (batch, dim), unit norm; any rate, length and lead subset, mixed freely."""
        return self.embed_features(self.ecg_features(ecgs))

    def embed_features(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the embeddings, float32, shape (batch, dim), unit norm, of what :meth:`ecg_features` returned."""
        with torch.inference_mode():
            return to_numpy(self.project_ecg(torch.from_numpy(features).to(self._device)))

    def encode_text(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return float32, shape (batch, dim), unit norm; long texts in chunks. Raises ``ReportError`` if empty."""
        with torch.inference_mode():
            return to_numpy(self.text(texts))

    def encode_vitals(self, vitals: Sequence[Vitals]) -> NDArray[np.float32]:
        """Return float32, shape (batch, dim), unit norm.

        Raises
        ------
        VitalsError
            One is empty, or holds only vitals that training never saw: it has no direction.
        """
        with torch.inference_mode():
            matrix = vitals_matrix(vitals).to(self._device)
            if not self.vitals.knows(matrix).all():
                raise VitalsError(
                    "vitals are empty, or hold only what the bundle was not trained on; expected one of those that its "
                    "model card names; leave the vitals out",
                    field="vitals",
                )
            return to_numpy(self.vitals(matrix))

    @property
    def _device(self) -> torch.device:
        return self.logit_scale.device


def to_numpy(tensor: Tensor) -> NDArray[np.float32]:
    """Return a tensor of any device and precision as float32 in memory."""
    array: NDArray[np.float32] = tensor.float().cpu().numpy()
    return array
