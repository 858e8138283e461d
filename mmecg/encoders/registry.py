"""What an encoder is, and which are there.

Encoders are found through the entry-point group :data:`GROUP`: a distribution that declares ::

    [project.entry-points."mmecg.encoders"]
    my-encoder = "my_package.my_module:SPEC"

adds one without a change here; ``SPEC`` is an :class:`EncoderSpec` of the same name. Ours are declared the same way.
"""

from __future__ import annotations

import csv
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from mmecg.encoders.preprocessing import Preprocessing
from mmecg.errors import ConfigError, InvalidInputError

if TYPE_CHECKING:
    from torch import Tensor, nn

GROUP = "mmecg.encoders"
"""Name of the entry-point group."""

Reduction = Literal["mean", "max", "min"]
"""How values of the segments of a recording become one."""


@dataclass(frozen=True)
class NeuronLabel:
    """What an output neuron of a published classifier stands for.

    Attributes
    ----------
    index : int
        Column of the logits.
    name : str
        As its authors write it.
    finding : str
        Id in :mod:`mmecg.labels.vocabulary`; empty if it has none.
    relation : str
        What the neuron is, seen from the finding: "exact", "broader", "narrower"; empty without a finding.
    serial : bool
        It compares with an earlier ECG, so that one ECG cannot decide it.
    reduction : {"mean", "max", "min"}
        How its authors reduce probabilities of segments to one of the recording.
    """

    index: int
    name: str
    finding: str = ""
    relation: str = ""
    serial: bool = False
    reduction: Reduction = "mean"


@dataclass(frozen=True)
class SeenData:
    """A public data set that an encoder saw in training: figures on it say little about new patients.

    Attributes
    ----------
    name : str
        As :mod:`mmecg.datasets` and its papers spell it, such as ``"PTB-XL"``.
    stage : str
        "pretraining", "finetuning", or both, separated by a comma.
    source : str
        Where that is stated.
    folds : tuple of int
        Its folds, if only these were seen; empty if it may have seen all.
    """

    name: str
    stage: str
    source: str
    folds: tuple[int, ...] = ()

    def is_of(self, data: str) -> bool:
        """Return whether this is the data set of a name; case, blanks, hyphens and underscores do not matter."""
        return _plain(self.name) == _plain(data)

    def sentence(self, title: str, fold: int | None = None) -> str:
        """Return what the reader of a figure on this data set, or on a fold of it, must know about an encoder."""
        if self.folds and fold is not None and fold not in self.folds:
            folds = ", ".join(map(str, self.folds))
            return f"{title} saw folds {folds} of {self.name} in {self.stage} ({self.source}), not fold {fold}."
        return (
            f"{title} saw {self.name} in {self.stage} ({self.source}): "
            f"its figures on {self.name} are not figures on unseen patients."
        )


@dataclass(frozen=True)
class PublishedWeights:
    """What a published file holds, in our terms.

    Attributes
    ----------
    hyperparameters : mapping
        For :attr:`EncoderSpec.build`; JSON values.
    tensors : mapping of str to tensor
        State of the network, keys as the network names them.
    unused : tuple of str
        Keys of the file that inference does not need, as the file names them.
    """

    hyperparameters: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    unused: tuple[str, ...] = ()


@dataclass(frozen=True)
class EncoderSpec:
    """A published encoder.

    Attributes
    ----------
    name : str
        Of the entry point and in commands: lower case, with hyphens.
    title : str
        As its paper writes it.
    paper : str
        arXiv number or DOI.
    code_licence, weights_licence : str
    samples : int
        Length of the network's input.
    feature_dim : int
        Length of the feature vector.
    parameters : int
        Number of parameters of the published network, its classifier included.
    preprocessing : mapping of str to Preprocessing
        Variants by name; the first is the default.
    build : callable
        From hyper-parameters (JSON values; none: the published ones) to the network: an ``nn.Module`` that maps
        float32, shape (batch, leads, samples), to features, float32, shape (batch, feature_dim), and logits, float32,
        shape (batch, labels), or None without a classifier. It is built on the meta device and then given its state,
        so all its tensors are parameters or persistent buffers.
    read_checkpoint : callable
        From the content of a published file (plain containers and tensors) to :class:`PublishedWeights`. Raises
        ``BundleError`` for the file of another model or other hyper-parameters.
    labels : tuple of NeuronLabel
        In the order of the classifier's neurons.
    seen : tuple of SeenData
        The contamination card.
    """

    name: str
    title: str
    paper: str
    code_licence: str
    weights_licence: str
    samples: int
    feature_dim: int
    parameters: int
    preprocessing: Mapping[str, Preprocessing]
    build: Callable[[Mapping[str, Any]], nn.Module] = field(repr=False)
    read_checkpoint: Callable[[Mapping[str, Any]], PublishedWeights] = field(repr=False)
    labels: tuple[NeuronLabel, ...] = field(default=(), repr=False)
    seen: tuple[SeenData, ...] = ()

    @property
    def default_variant(self) -> str:
        """Name of the preprocessing that is used if none is asked for."""
        return next(iter(self.preprocessing))

    @property
    def leads(self) -> tuple[str, ...]:
        """Leads of the network's input, in its order."""
        return self.preprocessing[self.default_variant].leads

    @property
    def sampling_rate_hz(self) -> float:
        """Sampling rate of the network's input."""
        return self.preprocessing[self.default_variant].sampling_rate_hz

    def contamination(self, data: str) -> str:
        """Return one sentence for the reader of a figure measured on a data set; empty if the encoder did not see it.

        Parameters
        ----------
        data : str
            Name of the data set; case, blanks, hyphens and underscores do not matter.
        """
        return next((item.sentence(self.title) for item in self.seen if item.is_of(data)), "")


def available() -> dict[str, EncoderSpec]:
    """Return the registered encoders by name; one that cannot be loaded is left out with a warning.

    Raises
    ------
    ConfigError
        Two distributions register the same name.
    """
    found = {}
    for name, entry in _entries().items():
        try:
            found[name] = _load(entry)
        except Exception as error:  # a third party's module may raise anything; the other encoders work without it
            warnings.warn(f"encoder {name} ({entry.value}) cannot be loaded: {error}", RuntimeWarning, stacklevel=2)
    return found


def get_encoder(name: str) -> EncoderSpec:
    """Return a registered encoder.

    Raises
    ------
    InvalidInputError
        None has this name.
    ConfigError
        Its entry point does not lead to an :class:`EncoderSpec` of this name, or two distributions register it.
    """
    entries = _entries()
    if name not in entries:
        known = ", ".join(entries) or "none; install mmecg again, so that its entry points are registered"
        raise InvalidInputError(f"no encoder {name!r}; registered: {known}", field="encoder")
    return _load(entries[name])


def read_labels(package: str, *path: str) -> tuple[NeuronLabel, ...]:
    """Read a label list: CSV with the columns ``index,name,finding,relation,serial,reduction``, in neuron order.

    Parameters
    ----------
    package : str
        The package that ships it, such as ``"mmecg.encoders"``.
    *path : str
        Path in it.

    Raises
    ------
    ConfigError
        Rows are not in the order of their index.
    """
    rows = csv.DictReader(files(package).joinpath(*path).read_text("utf-8").splitlines())
    labels = tuple(
        NeuronLabel(
            int(row["index"]), row["name"], row["finding"], row["relation"], row["serial"] == "true", _reduction(row)
        )
        for row in rows
    )
    if [label.index for label in labels] != list(range(len(labels))):
        raise ConfigError(f"{path[-1]} is not in the order of its index, expected 0 to {len(labels) - 1}; sort it")
    return labels


def _reduction(row: Mapping[str, str]) -> Reduction:
    for reduction in get_args(Reduction):
        if row["reduction"] == reduction:
            return cast("Reduction", reduction)
    raise ConfigError(f"reduction of {row['name']!r} is {row['reduction']!r}, expected mean, max or min")


def _entries() -> dict[str, EntryPoint]:
    entries: dict[str, EntryPoint] = {}
    for entry in sorted(entry_points(group=GROUP), key=lambda item: item.name):
        other = entries.setdefault(entry.name, entry)
        if other.value != entry.value:
            raise ConfigError(
                f"encoder {entry.name} is registered twice ({other.value}, {entry.value}); uninstall one of the two"
            )
    return entries


def _load(entry: EntryPoint) -> EncoderSpec:
    spec = entry.load()
    if not isinstance(spec, EncoderSpec) or spec.name != entry.name:
        got = f"an encoder named {spec.name}" if isinstance(spec, EncoderSpec) else f"a {type(spec).__name__}"
        raise ConfigError(f"entry point {entry.value} is {got}, expected an EncoderSpec named {entry.name}")
    return spec


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())
