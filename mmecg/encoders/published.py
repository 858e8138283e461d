"""A published encoder with its weights and its preprocessing: one object, one directory, one fingerprint.

::

    encoder/
      config.json          format version, fingerprint, encoder, hyper-parameters, preprocessing, reduction, source
      model.safetensors    the network's state

The fingerprint is the hash of what features depend on: all of ``config.json`` but ``source``, with the SHA-256 of
``model.safetensors`` in it. So the same weights with another preprocessing are another encoder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from mmecg.config import Precision, parse_config
from mmecg.ecg import Ecg
from mmecg.encoders.preprocessing import Preprocessing
from mmecg.encoders.registry import EncoderSpec, NeuronLabel, Reduction, get_encoder
from mmecg.errors import AlreadyExistsError, BundleError, ConfigError, InvalidInputError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

FORMAT_VERSION = 1
CONFIG, WEIGHTS = "config.json", "model.safetensors"
BATCH_SIZE = 16
"""Segments that pass the network at once."""

_REDUCE: dict[str, Callable[[NDArray[np.float32]], NDArray[np.float32]]] = {
    "mean": lambda values: values.mean(0),
    "max": lambda values: values.max(0),
    "min": lambda values: values.min(0),
}


@dataclass(frozen=True)
class PublishedConfig:
    """What ``config.json`` holds beside format version and fingerprint.

    Attributes
    ----------
    encoder : str
        Name in the registry.
    variant : str
        Name of the preprocessing variant.
    preprocessing : Preprocessing
        What the variant was when the directory was written; it is used as it stands here.
    hyperparameters : mapping
        For :attr:`EncoderSpec.build`.
    feature_reduction : {"mean", "max", "min"}
        How the features of the segments of a recording become one vector, element by element.
    source : str
        Where the weights came from, for people: name and SHA-256 of the file. Not in the fingerprint.
    """

    encoder: str
    variant: str
    preprocessing: Preprocessing
    hyperparameters: Mapping[str, Any]
    feature_reduction: Reduction = "mean"
    source: str = ""


def configure(
    spec: EncoderSpec,
    hyperparameters: Mapping[str, Any],
    *,
    variant: str | None = None,
    feature_reduction: Reduction = "mean",
    source: str = "",
) -> PublishedConfig:
    """Return the configuration of an encoder.

    Parameters
    ----------
    variant : str, optional
        Name of a preprocessing; default the encoder's first.

    Raises
    ------
    InvalidInputError
        The encoder has no such preprocessing variant, or the reduction is none of mean, max, min.
    """
    chosen = variant or spec.default_variant
    if chosen not in spec.preprocessing:
        known = ", ".join(spec.preprocessing)
        raise InvalidInputError(
            f"{spec.name} has no preprocessing {chosen!r}, expected one of {known}", field="variant"
        )
    _check_reduction(feature_reduction, _REDUCE)
    return PublishedConfig(
        spec.name, chosen, spec.preprocessing[chosen], dict(hyperparameters), feature_reduction, source
    )


def write_encoder(path: str | Path, config: PublishedConfig, tensors: Mapping[str, Tensor]) -> str:
    """Write the directory of an encoder; return its fingerprint. The caller has checked that the tensors fit.

    Parameters
    ----------
    path : str or Path
        Made; its parent is there.
    config : PublishedConfig
    tensors : mapping of str to tensor
        State of the network.

    Raises
    ------
    AlreadyExistsError
        Something is at ``path``.
    """
    from safetensors.torch import save_file

    root = Path(path)
    if root.exists():
        raise AlreadyExistsError(f"encoder {root} exists already; remove it, or give another path")
    root.mkdir()
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, root / WEIGHTS)
    name = _fingerprint(config, root)
    content = {"format_version": FORMAT_VERSION, "fingerprint": name, **asdict(config)}
    (root / CONFIG).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return name


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
        What matrix products and convolutions compute in; parity with the reference holds for float32.

    Raises
    ------
    BundleError
        A file is missing or damaged, the format version is unknown, or the weights do not fit.
    InvalidInputError
        No encoder of this name is registered here.
    """
    root = Path(path)
    config, name = _read_config(root)
    return PublishedEncoder(_load_network(root, config), config, name, device=device, precision=precision)


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
        self._dtype = resolve_dtype(precision, self.device)

    @property
    def labels(self) -> tuple[NeuronLabel, ...]:
        """What the columns of :meth:`logits` stand for."""
        return self.spec.labels

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
        _check_reduction(reduction, ("label", *_REDUCE))
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
        features, logits = self._run(np.concatenate(inputs))
        ends = np.cumsum([len(item) for item in inputs])[:-1]
        split_logits = [None] * len(inputs) if logits is None else np.split(logits, ends)
        return [Segments(*pair) for pair in zip(np.split(features, ends), split_logits, strict=True)]

    def save(self, path: str | Path) -> str:
        """Write the encoder (see :func:`write_encoder`); return the fingerprint."""
        return write_encoder(path, self.config, self.network.state_dict())

    def _run(self, signal: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        import torch

        parts = torch.split(torch.from_numpy(signal), BATCH_SIZE)
        half = self._dtype != torch.float32
        with torch.inference_mode(), torch.autocast(self.device.type, self._dtype, enabled=half):
            outputs = [[_to_numpy(output) for output in self.network(part.to(self.device))] for part in parts]
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


def _check_reduction(reduction: str, known: Collection[str]) -> None:
    if reduction not in known:
        raise InvalidInputError(f"reduction is {reduction!r}, expected one of {', '.join(known)}", field="reduction")


def _to_numpy(output: Tensor | None) -> Any:
    return None if output is None else output.float().cpu().numpy()


def _fingerprint(config: PublishedConfig, root: Path) -> str:
    with (root / WEIGHTS).open("rb") as file:
        weights = hashlib.file_digest(file, "sha256").hexdigest()
    content = {name: value for name, value in asdict(config).items() if name != "source"}
    return hashlib.sha256((json.dumps(content, sort_keys=True) + weights).encode()).hexdigest()


def _read_config(root: Path) -> tuple[PublishedConfig, str]:
    try:
        content = json.loads((root / CONFIG).read_text(encoding="utf-8"))
        version, name = content.pop("format_version"), str(content.pop("fingerprint"))
    except OSError:
        raise BundleError(
            f"encoder {root} has no {CONFIG}; give a directory that `mmecg import-encoder` wrote"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise BundleError(f"encoder {root}: {CONFIG} is damaged; import the encoder again") from None
    if version != FORMAT_VERSION:
        raise BundleError(f"encoder {root} has format version {version}, expected {FORMAT_VERSION}; update mmecg")
    try:
        spec = get_encoder(content["encoder"])
        kind = type(next(iter(spec.preprocessing.values())))
        content["preprocessing"] = parse_config(kind, content["preprocessing"], prefix="preprocessing.")
        config = PublishedConfig(**content)
    except (KeyError, TypeError, ConfigError) as error:
        raise BundleError(f"encoder {root}: {CONFIG} is not usable ({error}); import the encoder again") from None
    if not (root / WEIGHTS).is_file():
        raise BundleError(f"encoder {root} lacks {WEIGHTS}; import the encoder again")
    if _fingerprint(config, root) != name:
        raise BundleError(f"encoder {root}: {CONFIG} and {WEIGHTS} do not fit the fingerprint; import it again")
    return config, name


def _load_network(root: Path, config: PublishedConfig) -> nn.Module:
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    with torch.device("meta"):  # no memory and no random numbers for weights that are replaced at once
        network = get_encoder(config.encoder).build(config.hyperparameters)
    try:
        network.load_state_dict(load_file(root / WEIGHTS), assign=True)
    except (SafetensorError, RuntimeError) as error:
        raise BundleError(f"encoder {root}: {WEIGHTS} does not fit {CONFIG} ({type(error).__name__})") from None
    return network
