"""The aligned model with our own ECG tower: encoding of domain objects on CPU or GPU.

Preprocessing of an ECG, stated once: resample to the tower's rate; recordings longer than 10 s are cut into 10 s
segments (the last one ends with the recording, so it may overlap the one before), features are averaged over segments;
shorter recordings are used whole, never padded or stretched. Missing leads are zeros.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mmecg.config import Precision
from mmecg.ecg import Ecg
from mmecg.modeling.ecg_encoder import EcgEncoder, EcgEncoderConfig
from mmecg.modeling.ecg_inference import EcgInference, resolve_dtype
from mmecg.modeling.joint_encoder import EcgProjection, JointEncoder, to_numpy
from mmecg.modeling.text_encoder import TextEncoder

SEGMENT_S = 10.0
BATCH_SIZE = 64


@dataclass(frozen=True)
class DualEncoderConfig:
    """Shape of the model.

    Attributes
    ----------
    ecg : EcgEncoderConfig
    projection_hidden : int
        Hidden width of the ECG projection.
    dropout : float
        Dropout before both layers of the projection.
    """

    ecg: EcgEncoderConfig = field(default_factory=EcgEncoderConfig)
    projection_hidden: int = 512
    dropout: float = 0.2


class DualEncoder(JointEncoder):
    """ECG, text and vitals towers into one unit sphere of 256 dimensions.

    Parameters
    ----------
    config : DualEncoderConfig
    text : TextEncoder
    fingerprint : str
        Names the embedding space; empty while training.
    """

    ecg: EcgEncoder
    ecg_encoder = "mmecg"

    def __init__(self, config: DualEncoderConfig, text: TextEncoder, *, fingerprint: str = "") -> None:
        tower = EcgEncoder(config.ecg)  # before the projection: a seed names the weights of both
        projection = EcgProjection(config.ecg.features, config.projection_hidden, config.dropout)
        super().__init__(tower, projection, text, fingerprint=fingerprint)
        self.config = config
        self._precision: Precision | None = None
        self._inference: EcgInference | None = None

    def random_like(self, *, seed: int = 0) -> DualEncoder:
        """Return an untrained model of the same shape: the random-encoder baseline.

        The text tower is shared (it has no random counterpart that reads words); batch norm runs on its initial
        statistics. It is prepared as this one is.
        """
        state = torch.random.get_rng_state()
        torch.manual_seed(seed)
        model = DualEncoder(self.config, self.text, fingerprint=f"random-{seed}")
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d) and module.affine:
                nn.init.ones_(module.weight)  # blocks start as identity for training; a baseline uses them
        torch.random.set_rng_state(state)
        return model.eval() if self._precision is None else model.prepare(self._precision)

    def prepare(self, precision: Precision = "auto") -> DualEncoder:
        """Go to evaluation mode with the ECG tower made fast for encoding; return the model.

        Call it once the weights are final: what changes them later is not seen. ``train()`` goes back to the plain
        tower in float32, and ``to(device)`` prepares again for that device. Features and embeddings of the precisions
        belong to one space, so the fingerprint does not depend on it.

        Parameters
        ----------
        precision : {"auto", "float32", "bfloat16"}
            See :func:`mmecg.modeling.ecg_inference.resolve_dtype`.
        """
        self.eval()
        self._precision = precision
        self._inference = EcgInference(self.ecg, resolve_dtype(precision, self._device))
        return self

    def train(self, mode: bool = True) -> DualEncoder:
        """Set training or evaluation mode; training forgets what :meth:`prepare` made."""
        super().train(mode)
        if mode:
            self._precision = self._inference = None
        return self

    def _apply(self, *args: Any, **options: Any) -> DualEncoder:
        super()._apply(*args, **options)  # type: ignore[no-untyped-call]
        return self if self._precision is None else self.prepare(self._precision)

    def ecg_features(self, ecgs: Sequence[Ecg]) -> NDArray[np.float32]:
        """Return float32, shape (batch, features): the raw output of the ECG tower, averaged over segments."""
        rate = self.config.ecg.sampling_rate_hz
        by_length: dict[int, list[tuple[int, NDArray[np.float32]]]] = defaultdict(list)
        counts = np.zeros(len(ecgs), np.int64)
        for row, ecg in enumerate(ecgs):
            for segment in _segments(ecg.resample(rate).signal, round(SEGMENT_S * rate)):
                by_length[segment.shape[1]].append((row, segment))
                counts[row] += 1
        total = np.zeros((len(ecgs), self.config.ecg.features), np.float32)
        for pairs in by_length.values():
            for start in range(0, len(pairs), BATCH_SIZE):
                chunk = pairs[start : start + BATCH_SIZE]
                features = self.features_of_array(np.stack([segment for _, segment in chunk]))
                np.add.at(total, [row for row, _ in chunk], features)
        total /= counts[:, None].astype(np.float32)
        return total

    def features_of_array(self, signals: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return ECG features of equally long signals that are already at the tower's rate.

        Parameters
        ----------
        signals : float32, shape (batch, leads=12, samples), mV

        Returns
        -------
        float32, shape (batch, features)
        """
        with torch.inference_mode():
            tower = self._inference or self.ecg
            return to_numpy(tower(torch.from_numpy(signals).to(self._device)))


def _segments(signal: NDArray[np.float32], samples: int) -> list[NDArray[np.float32]]:
    """Cut shape (leads, samples) into segments; the last one ends with the recording."""
    length = signal.shape[1]
    if length <= samples:
        return [signal]
    starts = [*range(0, length - samples, samples), length - samples]
    return [signal[:, start : start + samples] for start in starts]
