"""Models whose ECG tower is a published encoder: aligned by a trained projection, or not aligned at all.

:class:`AlignedEncoder` has the text and vitals towers of a bundle of ours and a projection that was trained to meet
them (:mod:`mmecg.training.alignment`). :class:`UnalignedEncoder` has none of these: it embeds ECGs, and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mmecg.config import Precision
from mmecg.ecg import Ecg
from mmecg.embedding import EMBEDDING_DIM, normalise
from mmecg.encoders.published import PublishedEncoder
from mmecg.errors import NotAlignedError
from mmecg.modeling.joint_encoder import EcgProjection, JointEncoder
from mmecg.modeling.text_encoder import TextEncoder
from mmecg.vitals import Vitals


@dataclass(frozen=True)
class AlignedEncoderConfig:
    """Shape of an aligned model, and what it was made of.

    Attributes
    ----------
    encoder : str
        Name of the published encoder in :mod:`mmecg.encoders.registry`.
    encoder_fingerprint : str
        Of its weights and preprocessing.
    features : int
        Length of its feature vector.
    base_fingerprint : str
        Of the bundle that the text and vitals towers come from.
    projection_hidden : int
        Hidden width of the ECG projection.
    dropout : float
        Dropout before both layers of the projection.
    """

    encoder: str
    encoder_fingerprint: str
    features: int
    base_fingerprint: str
    projection_hidden: int = 512
    dropout: float = 0.2


class AlignedEncoder(JointEncoder):
    """A frozen published encoder with a trained projection, beside text and vitals towers of ours.

    The published network is no submodule: it is not trained, and its state is kept apart (``tower.save``). What a
    training batch holds are its features.

    Parameters
    ----------
    config : AlignedEncoderConfig
    tower : PublishedEncoder
    text : TextEncoder
    fingerprint : str
        Names the embedding space; empty while training.
    """

    def __init__(
        self, config: AlignedEncoderConfig, tower: PublishedEncoder, text: TextEncoder, *, fingerprint: str = ""
    ) -> None:
        projection = EcgProjection(config.features, config.projection_hidden, config.dropout)
        super().__init__(nn.Identity(), projection, text, fingerprint=fingerprint)
        self.config = config
        self.tower = tower

    @property
    def ecg_encoder(self) -> str:
        """Name of the published encoder."""
        return self.config.encoder

    def random_like(self, *, seed: int = 0) -> AlignedEncoder:
        """Return a model with fresh weights in the published network and the projection: the random baseline."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = AlignedEncoder(self.config, self.tower.random_like(seed=seed), self.text)
        model.fingerprint = f"random-{seed}"
        return model.to(self._device).eval()

    def prepare(self, precision: Precision = "auto") -> AlignedEncoder:
        """Go to evaluation mode with the ECG tower in a precision; return the model.

        Parameters
        ----------
        precision : {"auto", "float32", "bfloat16"}
            See :class:`mmecg.encoders.published.PublishedEncoder`.
        """
        self.eval()
        self.tower = self.tower.prepared(precision=precision, device=self._device)
        return self

    def _apply(self, *args: Any, **options: Any) -> AlignedEncoder:
        super()._apply(*args, **options)  # type: ignore[no-untyped-call]
        if self.tower.device != self._device:
            self.tower = self.tower.prepared(precision=self.tower.precision, device=self._device)
        return self

    def ecg_features(self, ecgs: Sequence[Ecg]) -> NDArray[np.float32]:
        """Return float32, shape (batch, features): see :meth:`PublishedEncoder.features`."""
        return self.tower.features(ecgs)


class UnalignedEncoder:
    """A published encoder alone: ECGs by ECGs can be searched, and text or vitals are refused.

    The embedding is the features, multiplied by a fixed random matrix of :data:`EMBEDDING_DIM` columns and normalised:
    it keeps the cosine between features up to about 1 / sqrt(256) = 0.06 (Johnson and Lindenstrauss 1984,
    doi:10.1090/conm/026/737400), needs no data, and says nothing about text.

    Parameters
    ----------
    tower : PublishedEncoder
    """

    def __init__(self, tower: PublishedEncoder) -> None:
        self.tower = tower

    @property
    def fingerprint(self) -> str:
        """The encoder's: nothing in the embedding is chosen beside it."""
        return self.tower.fingerprint

    @property
    def ecg_encoder(self) -> str:
        """Name of the published encoder."""
        return self.tower.config.encoder

    def random_like(self, *, seed: int = 0) -> UnalignedEncoder:
        """Return one with fresh weights in the network: the random-encoder baseline."""
        return UnalignedEncoder(self.tower.random_like(seed=seed))

    def ecg_features(self, ecgs: Sequence[Ecg]) -> NDArray[np.float32]:
        """Return float32, shape (batch, features): see :meth:`PublishedEncoder.features`."""
        return self.tower.features(ecgs)

    def embed_features(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the embeddings, float32, shape (batch, dim), unit norm, of what :meth:`ecg_features` returned."""
        matrix = np.random.default_rng(0).standard_normal((features.shape[1], EMBEDDING_DIM), np.float32)
        return normalise(features @ matrix)

    def encode_ecg(self, ecgs: Sequence[Ecg]) -> NDArray[np.float32]:
        """Return float32, shape (batch, dim), unit norm; any rate, length and lead subset, mixed freely."""
        return self.embed_features(self.ecg_features(ecgs))

    def encode_text(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Raise ``NotAlignedError``."""
        self._refuse("text")

    def encode_vitals(self, vitals: Sequence[Vitals]) -> NDArray[np.float32]:
        """Raise ``NotAlignedError``."""
        self._refuse("vitals")

    def _refuse(self, what: str) -> NoReturn:
        raise NotAlignedError(
            f"{self.tower.spec.title} is not aligned with {what}, so it can be asked with ECGs only; search by ECG, or "
            "make an aligned bundle with `mmecg align`",
            field=what,
        )
