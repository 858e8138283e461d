"""Any ECG encoder as one object that can be trained further: network, preprocessing and where it comes from.

A :class:`Backbone` is made by :func:`load_backbone` from a bundle of ours, a directory of ``mmecg import-encoder``,
or a directory that :func:`save_backbone` wrote ::

    backbone/
      config.json          format version, fingerprint, encoder, hyper-parameters, preprocessing, what it saw
      model.safetensors    the network's state

The fingerprint is the hash of what features depend on: network, hyper-parameters, preprocessing and weights.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mmecg.adaptation.backbone_config import BackboneConfig, fingerprint_of, parse_backbone
from mmecg.adaptation.towers import OWN, TowerInput, build_network, freeze_unused, last_maps, pool_last_maps
from mmecg.bundle import ENCODER, load_bundle
from mmecg.ecg import LEADS, Ecg, lead_index
from mmecg.encoders.published import load_encoder
from mmecg.encoders.registry import SeenData, get_encoder
from mmecg.errors import AlreadyExistsError, BundleError, ConfigError, InvalidInputError
from mmecg.modeling.dual_encoder import DualEncoder
from mmecg.modeling.ecg_encoder import EcgEncoderConfig

FORMAT_VERSION = 1
KIND = "backbone"
CONFIG, WEIGHTS = "config.json", "model.safetensors"
BATCH_SIZE = 64
UNTRAINED = "random-"
"""What the fingerprint of fresh weights begins with; the seed follows."""


class Backbone(nn.Module):
    """An ECG encoder that can be trained further. Make it with :func:`load_backbone` or :func:`small_backbone`.

    Parameters
    ----------
    config : BackboneConfig
    network : nn.Module
        As :func:`mmecg.adaptation.towers.build_network` makes it.
    fingerprint : str
        Of the weights as they were loaded; training does not change it, saving writes a new one.
    """

    def __init__(self, config: BackboneConfig, network: nn.Module, fingerprint: str) -> None:
        super().__init__()
        self.config = config
        self.network = network
        self.fingerprint = fingerprint
        self.feature_dim = self._measure_features()

    @property
    def name(self) -> str:
        """``"mmecg"``, or the encoder's name in the registry."""
        return self.config.encoder

    @property
    def untrained(self) -> bool:
        """Whether its weights were fresh when it was made."""
        return self.fingerprint.startswith(UNTRAINED)

    @property
    def leads(self) -> tuple[str, ...]:
        """Leads of the network's input, in its order."""
        return self.config.preprocessing.leads

    @property
    def sampling_rate_hz(self) -> float:
        """Sampling rate of the network's input."""
        return self.config.preprocessing.sampling_rate_hz

    @property
    def samples(self) -> int:
        """Length of one input window."""
        return self.config.preprocessing.samples

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return next(self.parameters()).device

    def prepare(self, ecgs: Sequence[Ecg]) -> list[NDArray[np.float32]]:
        """Return the network's input for each recording: float32, shape (segments, leads, samples).

        Our tower takes a recording shorter than :attr:`samples` as it is; every other input has that length.

        Raises
        ------
        SignalError
            A recording has none of the leads that the encoder takes.
        """
        return [self.config.preprocessing.apply(ecg) for ecg in ecgs]

    def maps(self, signal: Tensor) -> Tensor:
        """Return the last maps before pooling: float, shape (batch, width, steps).

        Parameters
        ----------
        signal : float, shape (batch, leads, samples)
            As :meth:`prepare` makes it.
        """
        return last_maps(self.network, signal)

    def pool(self, maps: Tensor) -> Tensor:
        """Return features, as the encoder itself pools: float, shape (batch, feature_dim)."""
        return pool_last_maps(self.network, maps)

    def forward(self, signal: Tensor) -> Tensor:
        """Map (batch, leads, samples) to features: float, shape (batch, feature_dim)."""
        return self.pool(self.maps(signal))

    def features(self, ecgs: Sequence[Ecg], *, batch: int = BATCH_SIZE) -> NDArray[np.float32]:
        """Return one feature vector a recording, in evaluation mode: float32, shape (batch, feature_dim).

        Parameters
        ----------
        ecgs : sequence of Ecg
            Any rates, lengths and leads.
        batch : int
            Segments that pass the network at once.
        """
        return self.features_of_inputs(self.prepare(ecgs), batch=batch)

    def features_of_inputs(
        self, inputs: Sequence[NDArray[np.float32]], *, batch: int = BATCH_SIZE
    ) -> NDArray[np.float32]:
        """Return one feature vector for each entry that :meth:`prepare` made: float32, shape (batch, feature_dim)."""
        found = np.zeros((len(inputs), self.feature_dim), np.float32)
        reduce = getattr(np, self.config.feature_reduction)
        with _evaluating(self), torch.inference_mode():
            for length in {item.shape[-1] for item in inputs}:
                rows = [row for row, item in enumerate(inputs) if item.shape[-1] == length]
                for part in _parts(rows, inputs, batch):
                    signal = torch.from_numpy(np.concatenate([inputs[row] for row in part]))
                    values = self(signal.to(self.device)).float().cpu().numpy()
                    ends = np.cumsum([len(inputs[row]) for row in part])[:-1]
                    for row, segments in zip(part, np.split(values, ends), strict=True):
                        found[row] = reduce(segments, axis=0)
        return found

    def contamination(self, data: str, *, fold: int | None = None) -> str:
        """Return what the encoder saw of a data set, one sentence a training; empty if nothing is known.

        Parameters
        ----------
        data : str
            Name of the data set; case, blanks, hyphens and underscores do not matter.
        fold : int, optional
            The fold that is evaluated.
        """
        title = self.name if self.name == OWN else get_encoder(self.name).title
        sentences = [item.sentence(title, fold) for item in self.config.seen if item.is_of(data)]
        return " ".join(dict.fromkeys(sentences))

    def _measure_features(self) -> int:
        with _evaluating(self), torch.inference_mode():
            zeros = torch.zeros(1, len(self.leads), self.samples, device=self.device)
            return int(self(zeros).shape[1])


def load_backbone(source: str | Path, *, random: bool = False, seed: int = 0) -> Backbone:
    """Load an encoder to train it further or to read its features.

    Parameters
    ----------
    source : str or Path
        A bundle of ours, a directory of ``mmecg import-encoder``, or one of ``mmecg pretrain`` or ``mmecg finetune``.
    random : bool
        The same network and preprocessing with fresh weights: the baseline of every table.
    seed : int
        Of the fresh weights.

    Raises
    ------
    BundleError
        It is none of these directories, or a file of it is missing or damaged.
    InvalidInputError
        No encoder of its name is registered here.
    """
    root = Path(source)
    if (root / "MANIFEST.json").is_file():
        backbone = _from_bundle(root)
    elif _content(root).get("kind") == KIND:
        backbone = _from_saved(root)
    else:
        backbone = _from_published(root)
    return randomised(backbone, seed=seed) if random else backbone.eval()


def small_backbone(seed: int = 0) -> Backbone:
    """Return our tower at a width for experiments on two cores (100 Hz, 10 s), with fresh weights.

    Parameters
    ----------
    seed : int
    """
    shape = EcgEncoderConfig(stem_width=32, widths=(32, 48, 64, 96, 128))
    config = BackboneConfig(OWN, asdict(shape), TowerInput(LEADS, shape.sampling_rate_hz))
    return _fresh(config, seed)


def randomised(backbone: Backbone, *, seed: int = 0) -> Backbone:
    """Return a backbone of the same network and preprocessing with fresh weights."""
    return _fresh(replace(backbone.config, seen=()), seed).to(backbone.device)


def save_backbone(
    path: str | Path, backbone: Backbone, *, seen: Sequence[SeenData] = (), training: Mapping[str, Any] | None = None
) -> str:
    """Write a backbone; return its fingerprint.

    Parameters
    ----------
    path : str or Path
        Made if missing; its parent is there.
    backbone : Backbone
    seen : sequence of SeenData
        What it was trained on since it was loaded; added to what it saw before.
    training : mapping, optional
        How, for people: JSON values. Not in the fingerprint.

    Raises
    ------
    AlreadyExistsError
        An encoder is at ``path``.
    """
    root = check_free(path)
    root.mkdir(exist_ok=True)
    config = replace(backbone.config, seen=(*backbone.config.seen, *seen))
    save_file({name: tensor.contiguous() for name, tensor in backbone.network.state_dict().items()}, root / WEIGHTS)
    name = fingerprint_of(config, root / WEIGHTS)
    content = {"kind": KIND, "format_version": FORMAT_VERSION, "fingerprint": name, **asdict(config)}
    content["training"] = dict(training or {})
    (root / CONFIG).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return name


def check_free(path: str | Path) -> Path:
    """Return the path of a folder that holds no encoder, or is not there yet. Raises ``AlreadyExistsError``."""
    root = Path(path)
    if any((root / name).exists() for name in (CONFIG, WEIGHTS, "MANIFEST.json")):
        raise AlreadyExistsError(f"{root} holds an encoder already; remove it, or give another path")
    return root


def with_leads(backbone: Backbone, leads: Sequence[str]) -> Backbone:
    """Return a copy whose network takes these leads only, with what it knows of them.

    The kernels of the leads that stay keep their shape and are scaled so that their joint norm is that of all before.

    Parameters
    ----------
    backbone : Backbone
    leads : sequence of str
        Some of the leads it takes now.

    Raises
    ------
    InvalidInputError
        It does not take one of them.
    """
    names = tuple(LEADS[lead_index(lead)] for lead in leads)
    if not names or not set(names) <= set(backbone.leads):
        raise InvalidInputError(
            f"leads are {', '.join(names) or 'none'}, expected some of {', '.join(backbone.leads)}", field="leads"
        )
    rows = [backbone.leads.index(name) for name in names]
    config = replace(backbone.config, preprocessing=replace(backbone.config.preprocessing, leads=names))
    network = build_network(config.encoder, config.hyperparameters, leads=len(names))
    state = {}
    for key, own in network.state_dict().items():
        held = backbone.network.state_dict()[key]
        if held.shape != own.shape:  # the first convolution
            kept = held[:, rows]
            held = kept * (held.norm() / kept.norm().clamp(min=1e-12))
        state[key] = held.clone()
    network.load_state_dict(state)
    name = backbone.fingerprint
    if not backbone.untrained:
        name = hashlib.sha256(f"{name} {' '.join(names)}".encode()).hexdigest()
    return Backbone(config, network.to(backbone.device), name).train(backbone.training)


def _fresh(config: BackboneConfig, seed: int) -> Backbone:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = build_network(config.encoder, config.hyperparameters, leads=len(config.preprocessing.leads))
    return Backbone(config, network, f"{UNTRAINED}{seed}").eval()


def _from_bundle(root: Path) -> Backbone:
    bundle = load_bundle(root, precision="float32")
    if not isinstance(bundle.encoder, DualEncoder):
        return _from_published(root / ENCODER, seen=bundle.config.seen)
    tower, training = bundle.encoder.ecg, bundle.config.training
    seen = SeenData(training.data, f"training with {training.supervision}", "the bundle's card", training.folds)
    preprocessing = TowerInput(LEADS, tower.config.sampling_rate_hz)
    return Backbone(
        BackboneConfig(OWN, asdict(tower.config), preprocessing, seen=(seen,)), tower.train(), bundle.fingerprint
    )


def _from_published(root: Path, *, seen: tuple[SeenData, ...] | None = None) -> Backbone:
    encoder = load_encoder(root)
    own, seen = encoder.config, encoder.spec.seen if seen is None else seen
    config = BackboneConfig(own.encoder, own.hyperparameters, own.preprocessing, own.feature_reduction, seen)
    return Backbone(config, freeze_unused(encoder.network), encoder.fingerprint)


def _from_saved(root: Path) -> Backbone:
    content = _content(root)
    try:
        version, name = content["format_version"], str(content["fingerprint"])
        if version != FORMAT_VERSION:
            raise BundleError(f"{root} has format version {version}, expected {FORMAT_VERSION}; update mmecg")
        config = parse_backbone(content)
    except (KeyError, TypeError, ValueError, ConfigError) as error:
        raise BundleError(f"{root}: {CONFIG} is not usable ({error}); train it again") from None
    if not (root / WEIGHTS).is_file():
        raise BundleError(f"{root} lacks {WEIGHTS}; train it again")
    if fingerprint_of(config, root / WEIGHTS) != name:
        raise BundleError(f"{root}: {CONFIG} and {WEIGHTS} do not fit the fingerprint; train it again")
    network = build_network(config.encoder, config.hyperparameters, leads=len(config.preprocessing.leads))
    try:
        network.load_state_dict(load_file(root / WEIGHTS))
    except (SafetensorError, RuntimeError) as error:
        raise BundleError(f"{root}: {WEIGHTS} does not fit {CONFIG} ({type(error).__name__})") from None
    return Backbone(config, network, name)


def _content(root: Path) -> Mapping[str, Any]:
    try:
        content = json.loads((root / CONFIG).read_text(encoding="utf-8"))
    except OSError:
        raise BundleError(
            f"{root} has neither MANIFEST.json nor {CONFIG}; give a bundle, or a directory that import-encoder, "
            "pretrain or finetune wrote"
        ) from None
    except ValueError:
        raise BundleError(f"{root}: {CONFIG} is damaged; write the directory again") from None
    return content if isinstance(content, Mapping) else {}


def _parts(rows: Sequence[int], inputs: Sequence[NDArray[np.float32]], batch: int) -> Iterator[list[int]]:
    """Group recordings so that a group has at most ``batch`` segments, or is one recording."""
    part: list[int] = []
    for row in rows:
        if part and sum(len(inputs[item]) for item in [*part, row]) > batch:
            yield part
            part = []
        part.append(row)
    if part:
        yield part


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Go to evaluation mode, and back to the mode that it was in."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)


__all__ = [
    "Backbone", "BackboneConfig", "check_free", "load_backbone", "randomised", "save_backbone", "small_backbone",
    "with_leads",
]  # fmt: skip
