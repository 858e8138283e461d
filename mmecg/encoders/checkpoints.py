"""From a published checkpoint to a directory of ours: every key is accounted for.

The file is read by :mod:`mmecg.encoders.torch_file`, which runs nothing in it; what is written is safetensors, which
holds no program. Tensors stay mapped from the file until they are written, so that the peak of memory is near the size
of the weights, however large an optimiser's state lies beside them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from mmecg.encoders.published import PublishedConfig, configure, write_encoder
from mmecg.encoders.registry import EncoderSpec, Reduction
from mmecg.encoders.torch_file import read_torch_file
from mmecg.errors import AlreadyExistsError, BundleError

_SHOWN = 5
"""Keys that a message names of each kind; it counts the others."""


@dataclass(frozen=True)
class ImportedEncoder:
    """What an import wrote.

    Attributes
    ----------
    config : PublishedConfig
    fingerprint : str
        64 hexadecimal digits that name the feature space.
    parameters : int
        Number of values in the tensors that were written.
    unused : tuple of str
        Keys of the file that features and logits do not need.
    """

    config: PublishedConfig
    fingerprint: str
    parameters: int
    unused: tuple[str, ...]


def import_encoder(
    spec: EncoderSpec,
    path: str | Path,
    out: str | Path,
    *,
    variant: str | None = None,
    feature_reduction: Reduction = "mean",
) -> ImportedEncoder:
    """Convert a published checkpoint into a directory for :func:`mmecg.encoders.published.load_encoder`.

    Parameters
    ----------
    spec : EncoderSpec
        The encoder that the file is expected to hold.
    path : str or Path
        File as its authors published it.
    out : str or Path
        Directory to write; nothing is there if the import fails.
    variant : str, optional
        Preprocessing; default the encoder's first.
    feature_reduction : {"mean", "max", "min"}
        See :class:`mmecg.encoders.published.PublishedConfig`.

    Raises
    ------
    ArtifactError
        The file is damaged, calls for code, is another model's, or has other hyper-parameters.
    AlreadyExistsError
        Something is at ``out``.
    InvalidInputError
        The encoder has no such preprocessing variant.
    """
    path, out = Path(path), Path(out)
    if out.exists():
        raise AlreadyExistsError(f"encoder {out} exists already; remove it, or give another path")
    configure(spec, {}, variant=variant, feature_reduction=feature_reduction)
    content = read_torch_file(path)
    try:
        if not isinstance(content, Mapping):
            raise BundleError(f"file holds a {type(content).__name__}, expected a dict; give a checkpoint as published")
        weights = spec.read_checkpoint(content)
        with torch.device("meta"):  # only names and shapes are needed
            network = spec.build(weights.hyperparameters)
        check_tensors(weights.tensors, network, title=spec.title)
    except BundleError as error:
        raise BundleError(f"{path}: {error}") from None
    with path.open("rb") as file:
        source = f"{path.name}, SHA-256 {hashlib.file_digest(file, 'sha256').hexdigest()}"
    config = configure(
        spec, weights.hyperparameters, variant=variant, feature_reduction=feature_reduction, source=source
    )
    tensors = {key: _as_float32(weights.tensors[key]) for key in network.state_dict()}
    fingerprint = write_encoder(out, config, tensors)
    return ImportedEncoder(config, fingerprint, sum(tensor.numel() for tensor in tensors.values()), weights.unused)


def check_tensors(tensors: Mapping[str, Tensor], network: nn.Module, *, title: str) -> None:
    """Check that tensors are a network's state: every key, every shape, only finite numbers.

    Parameters
    ----------
    tensors : mapping of str to tensor
    network : nn.Module
        May be on the meta device.
    title : str
        Of the model, for messages.

    Raises
    ------
    BundleError
        The message lists keys that are missing, unexpected, or of another shape.
    """
    state = network.state_dict()
    shared = [key for key in state if key in tensors]
    if not shared:
        raise BundleError(
            f"file has none of the {len(state)} tensors of {title}, but {_some(list(tensors))}; it is another model's"
        )
    problems = {
        "missing": [key for key in state if key not in tensors],
        "unexpected": [key for key in tensors if key not in state],
        "of another shape": [
            f"{key} {tuple(tensors[key].shape)}, expected {tuple(state[key].shape)}"
            for key in shared
            if tensors[key].shape != state[key].shape
        ],
    }
    if found := [f"{len(keys)} tensors {what}: {_some(keys)}" for what, keys in problems.items() if keys]:
        raise BundleError(
            f"file does not fit {title}: {'; '.join(found)}; it is another model's or has other hyper-parameters"
        )
    if broken := [key for key in shared if not _is_finite(tensors[key])]:
        raise BundleError(f"file holds NaN or infinite weights in {_some(broken)}; get it again")


def _is_finite(tensor: Tensor) -> bool:
    """Look at the extremes, which NaN is one of; ``isfinite`` would make two copies of the tensor."""
    return not tensor.numel() or bool(torch.stack(tensor.aminmax()).isfinite().all())


def _as_float32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


def _some(keys: Sequence[str]) -> str:
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return ", ".join(key[:120] for key in keys[:_SHOWN]) + more
