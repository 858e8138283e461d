"""Embeddings: the unit sphere that the three towers share, and the fingerprint that names it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mmecg.ecg import Ecg
from mmecg.errors import QueryError
from mmecg.vitals import Vitals

EMBEDDING_DIM = 256
MODALITIES: tuple[str, ...] = ("ecg", "text", "vitals")


class Encoder(Protocol):
    """What retrieval and evaluation need of a model: three towers into one space. Safe to call from many threads."""

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the bundle (see :func:`fingerprint`)."""

    @property
    def ecg_encoder(self) -> str:
        """Name of the ECG tower: ``"mmecg"``, or a name in :mod:`mmecg.encoders.registry`."""

    def encode_ecg(self, ecgs: Sequence[Ecg]) -> NDArray[np.float32]:
        """Return float32, shape (batch, dim), unit norm; any rate, length and lead subset, mixed freely."""

    def encode_text(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return float32, shape (batch, dim), unit norm; long texts in chunks. Raises ``ReportError`` if empty."""

    def encode_vitals(self, vitals: Sequence[Vitals]) -> NDArray[np.float32]:
        """Return float32, shape (batch, dim), unit norm. Raises ``VitalsError`` if one is empty."""

    def ecg_features(self, ecgs: Sequence[Ecg]) -> NDArray[np.float32]:
        """Return float32, shape (batch, features): raw ECG tower output, for probes."""


class BundleEncoder(Encoder, Protocol):
    """What the encoder of every bundle can do beside."""

    def embed_features(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the embeddings, float32, shape (batch, dim), unit norm, of what ``ecg_features`` returned."""

    def random_like(self, *, seed: int = 0) -> BundleEncoder:
        """Return one of the same shape with an untrained ECG tower: the random-encoder baseline."""


def normalise(vectors: NDArray[np.floating]) -> NDArray[np.float32]:
    """Scale to unit L2 norm along the last axis.

    Parameters
    ----------
    vectors : floating, shape (..., dim)

    Raises
    ------
    QueryError
        A vector is zero or not finite: it has no direction.
    """
    norm = np.linalg.norm(vectors, axis=-1, keepdims=True)
    if not np.isfinite(norm).all() or (norm == 0).any():
        raise QueryError("embedding is zero or not finite, expected a direction", field="embedding")
    return np.ascontiguousarray(vectors / norm, np.float32)


def fuse(
    embeddings: Mapping[str, NDArray[np.float32]], weights: Mapping[str, float] | None = None
) -> NDArray[np.float32]:
    """Mix unit embeddings of several modalities into one unit embedding: the normalised weighted sum.

    Parameters
    ----------
    embeddings : mapping of modality to float32, shape (..., dim)
        Unit vectors of one space.
    weights : mapping of modality to float, optional
        Non-negative, at least one positive; default 1 for each.

    Raises
    ------
    QueryError
        No modality, a weight that is negative or not finite, no positive weight, or modalities that cancel out.
    """
    if not embeddings:
        raise QueryError("query has no modality, expected an ECG, a text, vitals, or a mix", field="query")
    chosen = {name: 1.0 if weights is None else float(weights.get(name, 1.0)) for name in embeddings}
    if any(not np.isfinite(weight) or weight < 0 for weight in chosen.values()) or not any(chosen.values()):
        raise QueryError(
            "weights are negative, not finite or all zero, expected non-negative with one positive", field="weights"
        )
    total = sum(weight * embeddings[name] for name, weight in chosen.items())
    return normalise(np.asarray(total))


def fingerprint(files: Sequence[Path], *, root: Path) -> str:
    """Return the hash that names an embedding space: SHA-256 over names and contents of the files that define it.

    Parameters
    ----------
    files : sequence of Path
        Any order; they are hashed in the order of their path below ``root``.
    root : Path
        The bundle directory.

    Returns
    -------
    str
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for path in sorted(files, key=lambda item: item.relative_to(root).as_posix()):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root).as_posix()}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()
