"""The fitted weights that ship with mmecg, and their files (safetensors, with names as metadata)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmecg.errors import ConfigError
from mmecg.labels.agreement import EcgReader, Stack
from mmecg.labels.evidence import TextEvidence

TEXT_FILE = "text_evidence.safetensors"
AGREEMENT_FILE = "agreement.safetensors"

_STACK_TENSORS = ("weight", "bias", "thresholds")
_READER_TENSORS = (
    "probe_weight", "probe_bias", "prompts", "prompt_mean", "prompt_scale", "corpus", "corpus_labels",
)  # fmt: skip


@dataclass(frozen=True)
class Agreement:
    """What belongs to one bundle: the reader of its ECGs, and the stacks.

    Attributes
    ----------
    reader : EcgReader
    text_ecg : Stack
        Over all channels.
    ecg : Stack
        Over the channels of the ECG alone, for disagreements with the text.
    """

    reader: EcgReader
    text_ecg: Stack
    ecg: Stack


@cache
def load_text_evidence() -> TextEvidence:
    """Return the text weights that ship with mmecg, fitted on PTB-XL folds 1-8."""
    return read_text_evidence(_shipped(TEXT_FILE))


@cache
def load_agreement() -> Agreement:
    """Return the reader and the stacks of the shipped bundle, fitted on PTB-XL folds 1-8."""
    return read_agreement(_shipped(AGREEMENT_FILE))


def save_text_evidence(evidence: TextEvidence, path: Path) -> None:
    """Write text weights."""
    ways = sorted(evidence.mentions)
    rates = np.array([evidence.mentions[way] for way in ways], np.float32)
    tensors: dict[str, NDArray[Any]] = {
        "weight": evidence.weight.astype(np.float16),
        "bias": evidence.bias,
        "thresholds": evidence.thresholds,
        "mentions": rates,
    }
    _save(path, tensors, {"labels": evidence.labels, "features": evidence.features, "mentions": ways})


def read_text_evidence(path: Path) -> TextEvidence:
    """Read what :func:`save_text_evidence` wrote.

    Raises
    ------
    ConfigError
        The file is missing or damaged.
    """
    tensors, names = _read(path, ("weight", "bias", "thresholds", "mentions"), ("labels", "features", "mentions"))
    return TextEvidence(
        labels=tuple(names["labels"]),
        features=tuple(names["features"]),
        weight=tensors["weight"].astype(np.float32),
        bias=tensors["bias"],
        thresholds=tensors["thresholds"],
        mentions=dict(zip(names["mentions"], tensors["mentions"].tolist(), strict=True)),
    )


def save_agreement(agreement: Agreement, path: Path) -> None:
    """Write a reader and its stacks."""
    reader = agreement.reader
    tensors = {f"reader/{name}": getattr(reader, name) for name in _READER_TENSORS}
    tensors["reader/corpus_labels"] = np.packbits(reader.corpus_labels, axis=1)
    for name in ("text_ecg", "ecg"):
        tensors |= {f"{name}/{part}": getattr(getattr(agreement, name), part) for part in _STACK_TENSORS}
    names = {
        "labels": reader.labels,
        "fingerprint": [reader.fingerprint],
        "text_ecg": agreement.text_ecg.channels,
        "ecg": agreement.ecg.channels,
    }
    _save(path, tensors, names)


def read_agreement(path: Path) -> Agreement:
    """Read what :func:`save_agreement` wrote.

    Raises
    ------
    ConfigError
        The file is missing or damaged.
    """
    wanted = [f"reader/{name}" for name in _READER_TENSORS]
    wanted += [f"{name}/{part}" for name in ("text_ecg", "ecg") for part in _STACK_TENSORS]
    tensors, names = _read(path, wanted, ("labels", "fingerprint", "text_ecg", "ecg"))
    labels = tuple(names["labels"])
    parts: dict[str, Any] = {name: tensors[f"reader/{name}"] for name in _READER_TENSORS}
    parts["corpus_labels"] = np.unpackbits(parts["corpus_labels"], axis=1, count=len(labels)).astype(np.bool_)
    stacks = [
        Stack(labels, tuple(names[name]), *(tensors[f"{name}/{part}"] for part in _STACK_TENSORS))
        for name in ("text_ecg", "ecg")
    ]
    return Agreement(EcgReader(fingerprint=names["fingerprint"][0], labels=labels, **parts), *stacks)


def _shipped(name: str) -> Path:
    return Path(str(files("mmecg.assets").joinpath("labels", name)))


def _save(path: Path, tensors: Mapping[str, NDArray[Any]], names: Mapping[str, Sequence[str]]) -> None:
    from safetensors.numpy import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {name: json.dumps(values, ensure_ascii=False) for name, values in names.items()}
    save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, path, metadata)


def _read(
    path: Path, tensors: Sequence[str], names: Sequence[str]
) -> tuple[dict[str, NDArray[Any]], dict[str, list[str]]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
            return {name: file.get_tensor(name) for name in tensors}, {
                name: json.loads(metadata[name]) for name in names
            }
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ConfigError(f"label weights {path} cannot be used ({reason}); run scripts/train-labels") from None
