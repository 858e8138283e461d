"""A published encoder with its weights and its preprocessing: one object. Its files: :mod:`.published_files`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from mmecg.config import Precision
from mmecg.ecg import Ecg
from mmecg.encoders.published_files import CONFIG as CONFIG
from mmecg.encoders.published_files import WEIGHTS as WEIGHTS
from mmecg.encoders.published_files import PublishedConfig as PublishedConfig
from mmecg.encoders.published_files import check_reduction, load_network, read_config
from mmecg.encoders.published_files import configure as configure
from mmecg.encoders.published_files import write_encoder as write_encoder
from mmecg.encoders.registry import NeuronLabel, Reduction, get_encoder
from mmecg.errors import InvalidInputError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

BATCH_SIZE = 16
"""Segments that pass the network at once."""

_REDUCE: dict[str, Callable[[NDArray[np.float32]], NDArray[np.float32]]] = {
    "mean": lambda values: values.mean(0),
    "max": lambda values: values.max(0),
    "min": lambda values: values.min(0),
}


def load_encoder(
    path: str | Path, *, device: str | torch.device = "cpu", precision: Precision = "float32"
) -> PublishedEncoder:
    """Load an encoder and check its files against its fingerprint.

    Parameters
    ----------
    path : str or Path
        Directory that :func:`write_encoder` or :meth:`PublishedEncoder.save` wrote.
    device : str or torch.device
    precision : {"float32", "bfloat16", "auto"}
        What matrix products and convolutions compute in; parity with the reference holds for float32. "auto" is
        bfloat16 where the processor has instructions for it. Over the golden recordings, the cosine between features in
        bfloat16 and in float32 is at least 0.9998; see the README of :mod:`mmecg.encoders`.

    Raises
    ------
    BundleError
        A file is missing or damaged, the format version is unknown, or the weights do not fit.
    InvalidInputError
        No encoder of this name is registered here.
    """
    root = Path(path)
    config, name = read_config(root)
    return PublishedEncoder(load_network(root, config), config, name, device=device, precision=precision)


@dataclass(frozen=True)
class Segments:
    """What the network says of the segments of one recording.

    Attributes
    ----------
    features : float32, shape (segments, dim)
    logits : float32, shape (segments, labels), or None
        None without a classifier.
    """

    features: NDArray[np.float32]
    logits: NDArray[np.float32] | None


class PublishedEncoder:
    """A network in evaluation mode with its preprocessing. Safe to call from many threads.

    Parameters
    ----------
    network : nn.Module
        As :attr:`EncoderSpec.build` describes it; put into evaluation mode.
    config : PublishedConfig
    fingerprint : str
        64 hexadecimal digits that name the feature space.
    device : str or torch.device
    precision : {"float32", "bfloat16", "auto"}
    """

    def __init__(
        self,
        network: nn.Module,
        config: PublishedConfig,
        fingerprint: str,
        *,
        device: str | torch.device = "cpu",
        precision: Precision = "float32",
    ) -> None:
        import torch

        from mmecg.modeling.ecg_inference import resolve_dtype

        self.config = config
        self.spec = get_encoder(config.encoder)
        self.fingerprint = fingerprint
        self.device = torch.device(device)
        self.network = network.to(self.device).eval()
        self.precision = precision
        self._dtype = resolve_dtype(precision, self.device)
        self._fast = network if self._dtype == torch.float32 else _halved(self.network, self._dtype)

    def __deepcopy__(self, memo: object) -> PublishedEncoder:
        """Return itself: nothing about it changes, so copies of a model that holds it may share it."""
        return self

    @property
    def labels(self) -> tuple[NeuronLabel, ...]:
        """What the columns of :meth:`logits` stand for."""
        return self.spec.labels

    def prepared(self, *, precision: Precision, device: str | torch.device) -> PublishedEncoder:
        """Return this encoder in a precision and on a device; both share the network."""
        return PublishedEncoder(self.network, self.config, self.fingerprint, device=device, precision=precision)

    def random_like(self, *, seed: int = 0) -> PublishedEncoder:
        """Return an encoder of the same network and preprocessing with fresh weights: the random-encoder baseline."""
        import torch

        with torch.random.fork_rng():
            torch.manual_seed(seed)
            network = self.spec.build(self.config.hyperparameters)
        return PublishedEncoder(network, self.config, f"random-{seed}", device=self.device, precision=self.precision)

    def features(self, ecgs: Sequence[Ecg]) -> NDArray[np.float32]:
        """Return one feature vector a recording: float32, shape (batch, dim).

        Recordings may differ in rate, length and leads. Features of segments are reduced as
        :attr:`PublishedConfig.feature_reduction` says.
        """
        reduce = _REDUCE[self.config.feature_reduction]
        rows = [reduce(item.features) for item in self.segments(ecgs)]
        return np.stack(rows) if rows else np.zeros((0, self.spec.feature_dim), np.float32)

    def logits(self, ecgs: Sequence[Ecg], reduction: Reduction | Literal["label"] = "label") -> NDArray[np.float32]:
        """Return the log-odds of each label: float32, shape (batch, labels).

        Parameters
        ----------
        ecgs : sequence of Ecg
        reduction : {"label", "mean", "max", "min"}
            How *probabilities* of segments are reduced: as :attr:`NeuronLabel.reduction` says, or all alike.

        Raises
        ------
        InvalidInputError
            The encoder has no classifier, or there is no such reduction.
        """
        check_reduction(reduction, ("label", *_REDUCE))
        modes = np.array([label.reduction if reduction == "label" else reduction for label in self.labels])
        rows = []
        for item in self.segments(ecgs):
            if item.logits is None:
                raise InvalidInputError(
                    f"these weights of {self.spec.title} have no classifier; import a finetuned file", field="encoder"
                )
            rows.append(reduce_logits(item.logits, modes))
        return np.stack(rows) if rows else np.zeros((0, len(self.labels)), np.float32)

    def probabilities(
        self, ecgs: Sequence[Ecg], reduction: Reduction | Literal["label"] = "label"
    ) -> NDArray[np.float32]:
        """Return the probability of each label, as published (not calibrated): float32, shape (batch, labels).

        See :meth:`logits`.
        """
        return (0.5 * (1 + np.tanh(0.5 * self.logits(ecgs, reduction).astype(np.float64)))).astype(np.float32)

    def segments(self, ecgs: Sequence[Ecg]) -> list[Segments]:
        """Return features and logits of every segment of every recording.

        Raises
        ------
        SignalError
            A recording has none of the leads that the encoder takes.
        """
        inputs = [self.config.preprocessing.apply(ecg) for ecg in ecgs]
        if not inputs:
            return []
        features, logits = self.run_network(np.concatenate(inputs))
        ends = np.cumsum([len(item) for item in inputs])[:-1]
        split_logits = [None] * len(inputs) if logits is None else np.split(logits, ends)
        return [Segments(*pair) for pair in zip(np.split(features, ends), split_logits, strict=True)]

    def save(self, path: str | Path) -> str:
        """Write the encoder (see :func:`write_encoder`); return the fingerprint."""
        return write_encoder(path, self.config, self.network.state_dict())

    def run_network(self, signal: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Return features and logits of inputs that are ready.

        Parameters
        ----------
        signal : float32, shape (batch, leads, samples)
            As :meth:`Preprocessing.apply` makes it; in parts of :data:`BATCH_SIZE` through the network.

        Returns
        -------
        features : float32, shape (batch, dim)
        logits : float32, shape (batch, labels), or None
            None without a classifier.
        """
        import torch

        parts = torch.split(torch.from_numpy(signal), BATCH_SIZE)
        half = self._dtype != torch.float32
        with torch.inference_mode(), torch.autocast(self.device.type, self._dtype, enabled=half):
            outputs = [[_to_numpy(output) for output in self._fast(part.to(self.device))] for part in parts]
        features, logits = zip(*outputs, strict=True)
        return np.concatenate(features), None if logits[0] is None else np.concatenate(logits)


def reduce_logits(logits: NDArray[np.float32], reduction: NDArray[np.str_]) -> NDArray[np.float32]:
    """Reduce the probabilities of segments to one a label and return its log-odds.

    Computed in log space, so that nothing saturates and a single segment keeps its logits.

    Parameters
    ----------
    logits : float32, shape (segments, labels)
    reduction : str, shape (labels,)
        "mean", "max" or "min".

    Returns
    -------
    float32, shape (labels,)
    """
    wide = logits.astype(np.float64)
    yes = np.logaddexp.reduce(-np.logaddexp(0, -wide), axis=0)  # log of the sum of probabilities
    no = np.logaddexp.reduce(-np.logaddexp(0, wide), axis=0)
    extreme = np.where(reduction == "max", wide.max(0), wide.min(0))
    reduced: NDArray[np.float64] = np.where(reduction == "mean", yes - no, extreme)
    return reduced.astype(np.float32)


def _halved(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Return a copy whose matrices and kernels are of another type, for ``autocast``, which else converts every call.

    What ``autocast`` keeps in float32, such as norms, stays so, and shares its memory with the network.
    """
    from torch import nn

    shared = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    copied = copy.deepcopy(network, shared)
    for module in copied.modules():
        if isinstance(module, nn.Linear | nn.Conv1d):
            for name, tensor in list(module.named_parameters(recurse=False)):
                setattr(module, name, nn.Parameter(tensor.detach().to(dtype), requires_grad=False))
    return copied


def _to_numpy(output: Tensor | None) -> Any:
    return None if output is None else output.float().cpu().numpy()
