"""The directory of a published encoder: configuration, weights, and one fingerprint over both.

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
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from mmecg.config import parse_config
from mmecg.encoders.preprocessing import Preprocessing
from mmecg.encoders.registry import EncoderSpec, Reduction, get_encoder
from mmecg.errors import AlreadyExistsError, BundleError, ConfigError, InvalidInputError

if TYPE_CHECKING:
    from torch import Tensor, nn

FORMAT_VERSION = 1
CONFIG, WEIGHTS = "config.json", "model.safetensors"


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
    check_reduction(feature_reduction, get_args(Reduction))
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


def check_reduction(reduction: str, known: Collection[str]) -> None:
    """Raise ``InvalidInputError`` unless a reduction of segments is a known one."""
    if reduction not in known:
        raise InvalidInputError(f"reduction is {reduction!r}, expected one of {', '.join(known)}", field="reduction")


def _fingerprint(config: PublishedConfig, root: Path) -> str:
    with (root / WEIGHTS).open("rb") as file:
        weights = hashlib.file_digest(file, "sha256").hexdigest()
    content = {name: value for name, value in asdict(config).items() if name != "source"}
    return hashlib.sha256((json.dumps(content, sort_keys=True) + weights).encode()).hexdigest()


def is_encoder(path: str | Path) -> bool:
    """Return whether a directory looks like one of ``mmecg import-encoder``; nothing in it is checked."""
    try:
        content = json.loads((Path(path) / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and "preprocessing" in content and "kind" not in content


def read_config(root: Path) -> tuple[PublishedConfig, str]:
    """Return configuration and fingerprint of an encoder's directory, checked against its weights.

    Raises
    ------
    BundleError
        See :func:`load_encoder`.
    """
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


def load_network(root: Path, config: PublishedConfig) -> nn.Module:
    """Build the network of a configuration and give it the weights of a directory."""
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
