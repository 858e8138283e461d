"""Alignment of a frozen published encoder: a projection of its features is trained to meet text and vitals towers.

The towers are those of a bundle of ours and stay as they are, so that text means the same in both. The features are
computed once and kept on disk; a batch holds features in the place of signals, and the objective is that of the
bundle's own training (:mod:`mmecg.training.objective`), without the terms that only a tower learns from.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from mmecg.bundle import Bundle, BundleConfig, TrainingSummary, save_bundle
from mmecg.datasets.ptb_xl import read_ptb_xl_signals
from mmecg.ecg import Ecg
from mmecg.encoders.published import PublishedEncoder
from mmecg.encoders.registry import SeenData
from mmecg.errors import InvalidInputError, SignalError
from mmecg.modeling.aligned_encoder import AlignedEncoder, AlignedEncoderConfig
from mmecg.modeling.joint_encoder import JointEncoder
from mmecg.training.config import TrainingConfig
from mmecg.training.data import BatchSampler, Tokenize, TrainingData, training_data, training_table
from mmecg.training.loop import TrainingRun
from mmecg.training.objective import Objective

CHUNK_RECORDS = 256
"""Records whose features are one file of the cache."""

DEFAULT_CONFIG = TrainingConfig(epochs=20)
"""The recipe: as a bundle's own training, but shorter, since only the projection is trained."""


def align(
    tower: PublishedEncoder,
    base: Bundle,
    data: Path,
    out: Path,
    *,
    config: TrainingConfig = DEFAULT_CONFIG,
    cache: Path,
    seen: tuple[SeenData, ...] | None = None,
    quiet: bool = False,
) -> str:
    """Train a projection and write the aligned bundle; return its fingerprint.

    Parameters
    ----------
    tower : PublishedEncoder
        Stays as it is.
    base : Bundle
        Its text and vitals towers, and its weight of vitals in a query, are taken over.
    data : Path
        PTB-XL folder; its 500 Hz files are read if they are there and the encoder takes more than 100 Hz.
    out : Path
        The bundle's directory; an older bundle there is replaced.
    config : TrainingConfig
        Keys about crops, lead masks, the ECG tower's and the text tower's shape, and ``choose_fold`` have no effect. A
        batch is at most the data.
    cache : Path
        Folder of the features; a run that was interrupted, or another one, goes on with what is there.
    seen : tuple of SeenData, optional
        What the encoder was trained on; default what its entry in the registry says.
    quiet : bool
        No progress on standard error.

    Raises
    ------
    InvalidInputError
        The base has no text tower, or the folder has no record of the folds.
    """
    if not isinstance(base.encoder, JointEncoder):
        raise InvalidInputError(f"bundle {base.path} has no text tower, expected an aligned bundle as base")
    table = training_table(data, config.folds)
    features, table = compute_features(tower, data, table, cache, quiet=quiet)
    loaded = training_data(data, table, np.zeros((0, 0, 0), np.int16))
    model = fit_projection(tower, base.encoder, loaded, features, config, quiet=quiet)
    labelled = "labels" in (config.supervision, base.config.training.supervision)
    summary = replace(
        TrainingSummary.from_config(config, studies=len(loaded)),
        folds=tuple(sorted({*config.folds, *base.config.training.folds})),
        supervision="labels" if labelled else "reports",
    )
    saved = BundleConfig(model.config, summary, base.config.vitals_weight, tower.spec.seen if seen is None else seen)
    return save_bundle(out, model, saved)


def compute_features(
    tower: PublishedEncoder, folder: Path, table: pl.DataFrame, cache: Path, *, quiet: bool = False
) -> tuple[NDArray[np.float32], pl.DataFrame]:
    """Return the features of records, and the table without those that cannot be read; each part is computed once.

    Parameters
    ----------
    tower : PublishedEncoder
    folder : Path
        PTB-XL folder.
    table : polars.DataFrame
        Records of it.
    cache : Path
        Folder of safetensors files, made if missing. A file's name is the hash of encoder, precision and signals.
    quiet : bool

    Returns
    -------
    features : float32, shape (studies, features)
    table : polars.DataFrame

    Raises
    ------
    InvalidInputError
        No record can be read.
    """
    cache.mkdir(parents=True, exist_ok=True)
    rate = _rate(tower, folder, table)
    parts, kept, reason = [], [], ""
    for start in range(0, table.height, CHUNK_RECORDS):
        read = read_ptb_xl_signals(folder, table[start : start + CHUNK_RECORDS], sampling_rate_hz=rate, quiet=True)
        ecgs, rows = _usable(read.signals, rate)
        reason = reason or next(iter(read.report.failures["reason"]), "")
        if rows:
            parts.append(_features(tower, ecgs, cache))
            kept.append(read.table[rows])
        if not quiet:
            done = min(start + CHUNK_RECORDS, table.height)
            print(f"features of {done} of {table.height} records", file=sys.stderr, flush=True)
    if not parts:
        raise InvalidInputError(f"none of the {table.height} records can be read; the first: {reason or 'no ECG'}")
    return np.concatenate(parts), pl.concat(kept)


def fit_projection(
    tower: PublishedEncoder,
    base: JointEncoder,
    data: TrainingData,
    features: NDArray[np.float32],
    config: TrainingConfig,
    *,
    quiet: bool = False,
) -> AlignedEncoder:
    """Train the projection; return the model in evaluation mode. The same seed gives the same weights.

    Parameters
    ----------
    tower : PublishedEncoder
    base : JointEncoder
        Gives text and vitals towers.
    data : TrainingData
        Its signals are not used.
    features : float32, shape (studies, features)
        Of the same studies.
    config : TrainingConfig
        See :func:`align`.
    """
    torch.manual_seed(config.seed)
    config = replace(
        config,
        batch_size=min(config.batch_size, len(data)),
        weights=replace(config.weights, statements=0.0),
        mixed_precision=False,
    )
    model = _new_model(tower, base, features.shape[1], config)
    prevalence = torch.from_numpy(data.labels.mean(0).astype(np.float32))
    objective = Objective(model, config, label_prevalence=prevalence, words=data.words.shape[1])
    sampler = _FeatureSampler(data, features, config, model.text.tokenize)
    run = TrainingRun(objective, config, steps=sampler.steps * config.epochs)
    for epoch in range(config.epochs):
        torch.manual_seed(config.seed * 10_000 + epoch)
        losses = run.epoch(sampler, epoch, torch.device("cpu"))
        if not quiet:
            shown = "  ".join(f"{name} {losses[name]:.4g}" for name in ("reports", "prompts", "vitals", "neighbours"))
            print(f"epoch {epoch + 1}/{config.epochs}  {shown}", file=sys.stderr, flush=True)
    return cast("AlignedEncoder", run.average).eval()


class _FeatureSampler(BatchSampler):
    """Batches whose signal is the features of the frozen encoder."""

    def __init__(
        self, data: TrainingData, features: NDArray[np.float32], config: TrainingConfig, tokenize: Tokenize
    ) -> None:
        super().__init__(data, config, tokenize)
        self._features = features

    def _signal(self, rows: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.float32]:
        """Return float32, shape (batch, features)."""
        return self._features[rows]


def _new_model(tower: PublishedEncoder, base: JointEncoder, width: int, config: TrainingConfig) -> AlignedEncoder:
    """Return a model with the towers of the base, frozen, and a new projection."""
    shape = AlignedEncoderConfig(
        encoder=tower.config.encoder,
        encoder_fingerprint=tower.fingerprint,
        features=width,
        base_fingerprint=base.fingerprint,
        projection_hidden=config.model.projection_hidden,
        dropout=config.model.dropout,
    )
    model = AlignedEncoder(shape, tower, copy.deepcopy(base.text))
    model.vitals.load_state_dict(base.vitals.state_dict())
    model.logit_scale.data.copy_(base.logit_scale.data)
    model.text.requires_grad_(False)
    model.vitals.requires_grad_(False)
    return model


def _usable(signals: NDArray[np.int16], rate: int) -> tuple[list[Ecg], list[int]]:
    """Return the recordings that are ECGs, and their rows."""
    ecgs, rows = [], []
    for row, signal in enumerate(signals):
        with contextlib.suppress(SignalError):
            ecgs.append(Ecg.from_array(signal, sampling_rate_hz=rate, unit="uV"))
            rows.append(row)
    return ecgs, rows


def _features(tower: PublishedEncoder, ecgs: Sequence[Ecg], cache: Path) -> NDArray[np.float32]:
    """Return the features of recordings, from the cache if they are there."""
    digest = hashlib.sha256(f"{tower.fingerprint} {tower.precision}".encode())
    for ecg in ecgs:
        digest.update(f"{ecg.sampling_rate_hz} {ecg.signal.shape}".encode())
        digest.update(ecg.signal.tobytes())
    path = cache / f"{digest.hexdigest()[:32]}.safetensors"
    try:
        return load_file(path)["features"]
    except (OSError, SafetensorError, KeyError):  # not there, or torn
        pass
    features = tower.features(ecgs)
    part = path.with_suffix(".part")
    save_file({"features": features}, part)
    part.replace(path)
    return features


def _rate(tower: PublishedEncoder, folder: Path, table: pl.DataFrame) -> int:
    """Return 500 if the encoder takes more than 100 Hz and the first record has such a file, else 100."""
    name = table["filename_hr"][0] if "filename_hr" in table.columns else None
    fine = tower.config.preprocessing.sampling_rate_hz > 100 and name and (folder / f"{name}.hea").is_file()
    return 500 if fine else 100
