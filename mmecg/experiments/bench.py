"""The bench of an experiment: recordings, labels, split and encoders, with what the encoders make of the recordings.

Signals and features are kept in a folder (:attr:`Options.cache`), under a name that holds the hash of all they depend
on: the studies, and for features the encoder's weights and preprocessing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from mmecg.adaptation.backbone import Backbone, load_backbone, randomised
from mmecg.adaptation.label_table import LabelTable, Split, ptb_xl_label_table, split_folds
from mmecg.assets import DEFAULT_BUNDLE
from mmecg.datasets.ptb_xl import read_ptb_xl_signals, read_ptb_xl_table
from mmecg.ecg import LEADS, Ecg
from mmecg.errors import InvalidInputError
from mmecg.evaluation.bootstrap import patient_weights
from mmecg.evaluation.cohort import sampling_rate_of
from mmecg.experiments.experiment import Options, Progress
from mmecg.modeling.ecg_encoder import EcgEncoder
from mmecg.modeling.ecg_inference import EcgInference, resolve_dtype

DATA = "PTB-XL"
RANDOM = "random"
"""Name of the encoder with fresh weights."""

_CHUNK, _BATCH = 256, 64


@dataclass(frozen=True, eq=False)
class Recordings:
    """Recordings in memory (or mapped from a file), their table and their labels; one row each, in one order.

    Attributes
    ----------
    signals : int16, shape (n, leads=12, samples), µV
    rate : int
        Of the signals, Hz.
    records : polars.DataFrame
        Of :func:`mmecg.datasets.ptb_xl.read_ptb_xl_table`.
    labels : LabelTable
    split : Split
    skipped : polars.DataFrame
        Columns ``record`` and ``reason``.
    """

    signals: NDArray[np.int16]
    rate: int
    records: pl.DataFrame
    labels: LabelTable
    split: Split
    skipped: pl.DataFrame

    def __len__(self) -> int:
        return len(self.signals)

    @cached_property
    def subjects(self) -> NDArray[np.str_]:
        """Patient of each recording."""
        return np.asarray(self.labels.subject_ids, np.str_)

    def ecg(self, row: int) -> Ecg:
        """Return one recording."""
        signal = self.signals[row].astype(np.float32) / np.float32(1000)
        return Ecg(signal, self.rate, np.ones(len(LEADS), np.bool_))

    def truth(self, labels: Sequence[str]) -> NDArray[np.float32]:
        """Return the values of some labels, such as ``"all/AFIB"``: float32, shape (n, labels), NaN where unknown."""
        return self.labels.with_labels(labels).values

    def group(self, name: str) -> tuple[str, ...]:
        """Return the labels of a group: ``"superclass"`` or ``"all"``."""
        return tuple(self.labels.labels[column] for column in self.labels.groups[name])


@dataclass(frozen=True)
class View:
    """What an encoder is shown of a recording.

    Attributes
    ----------
    name : str
        Says all that it does: features are kept under this name.
    parts : callable
        From a recording and its row to what is encoded, as many parts for every recording.
    several : bool
        Whether there is more than one part.
    """

    name: str
    parts: Callable[[Ecg, int], Sequence[Ecg]]
    several: bool = False


WHOLE = View("whole", lambda ecg, row: (ecg,))


def segments(seconds: float) -> View:
    """Return the view of adjacent segments of some seconds; a remainder is dropped."""

    def parts(ecg: Ecg, row: int) -> list[Ecg]:
        count = int(ecg.duration_s / seconds + 1e-6)
        return [ecg.crop(number * seconds, seconds) for number in range(count)]

    return View(f"segments of {seconds:g} s", parts, several=True)


def only(leads: Sequence[str]) -> View:
    """Return the view of some leads; the others are missing."""
    return View(f"leads {', '.join(leads)}", lambda ecg, row: (ecg.select_leads(leads),))


@dataclass(eq=False)
class Bench:
    """What an experiment works with.

    Attributes
    ----------
    options : Options
    recordings : Recordings
    encoders : mapping of str to Backbone
        The ones asked for by name, then :data:`RANDOM`: the first one's network with fresh weights.
    progress : callable
    """

    options: Options
    recordings: Recordings
    encoders: Mapping[str, Backbone]
    progress: Progress
    _held: dict[Path, NDArray[np.float32]] = field(default_factory=dict, repr=False)

    @property
    def first(self) -> str:
        """Name of the encoder that sentences speak of."""
        return next(iter(self.encoders))

    @property
    def split(self) -> Split:
        """Rows to fit on, to choose on, and to report."""
        return self.recordings.split

    @cached_property
    def weights(self) -> NDArray[np.float32]:
        """Bootstrap weights of the test recordings: float32, shape (n, resamples)."""
        subjects = self.recordings.subjects[self.split.test]
        return patient_weights(subjects, resamples=self.options.resamples, seed=self.options.seed)

    @cached_property
    def supervision(self) -> str:
        """What the first encoder saw of the data, in a sentence."""
        found = self.encoders[self.first].contamination(DATA, fold=self.options.fold)
        return found or f"{self.first}: not known to have seen {DATA}."

    def features(
        self, name: str, view: View | None = None, rows: NDArray[np.int64] | None = None
    ) -> NDArray[np.float32]:
        """Return what an encoder makes of every recording.

        Parameters
        ----------
        name : str
            Of the encoder.
        view : View, optional
            What it is shown of a recording; default all.
        rows : int64, optional
            Recordings that are needed; default all. The others have zeros.

        Returns
        -------
        float32, shape (n, feature_dim), or (n, parts, feature_dim) for a view of several parts
        """
        view = view or WHOLE
        what = {
            "studies": self.recordings.labels.study_ids,
            "rate": self.recordings.rate,
            "encoder": identity(self.encoders[name]),
            "view": view.name,
            **({} if rows is None else {"rows": rows.tolist()}),
        }
        path = self.options.cache / f"features-{_digest(what)}.npy"
        if path not in self._held:
            if not path.is_file():
                needed = np.arange(len(self.recordings)) if rows is None else rows
                _save(path, self._encode(name, view, needed))
            self._held[path] = np.load(path)
        found = self._held[path]
        return found if view.several else found[:, 0]

    def _encode(self, name: str, view: View, needed: NDArray[np.int64]) -> NDArray[np.float32]:
        encode, recordings = fast_features(self.encoders[name]), self.recordings
        parts = []
        for start in range(0, len(needed), _CHUNK):
            rows = needed[start : start + _CHUNK].tolist()
            parts.append(encode([ecg for row in rows for ecg in view.parts(recordings.ecg(row), row)]))
            self.progress(f"encoding {view.name} with {name}", start + len(rows), len(needed))
        encoded = np.concatenate(parts)
        encoded = encoded.reshape(len(needed), -1, encoded.shape[1])
        found = np.zeros((len(recordings), *encoded.shape[1:]), np.float32)
        found[needed] = encoded
        return found


def open_bench(options: Options, progress: Progress) -> Bench:
    """Load what an experiment works with.

    Raises
    ------
    InvalidInputError
        The folder cannot be used, two encoders have one name, or there is no fold to fit or choose on.
    BundleError
        An encoder cannot be loaded.
    """
    encoders: dict[str, Backbone] = {}
    for source in options.encoders or (DEFAULT_BUNDLE,):
        name = "bundle" if source == DEFAULT_BUNDLE else source.resolve().name
        if name in (*encoders, RANDOM):
            raise InvalidInputError(f"two encoders are called {name}; give directories of different names")
        encoders[name] = load_backbone(source)
    encoders[RANDOM] = randomised(next(iter(encoders.values())), seed=options.seed)
    return Bench(options, read_recordings(options, progress), encoders, progress)


def read_recordings(options: Options, progress: Progress) -> Recordings:
    """Read the recordings of all folds; the split says which take part.

    Raises
    ------
    InvalidInputError
        The folder cannot be used, or there is no fold to fit or choose on.
    """
    labels = ptb_xl_label_table(options.data)
    split_folds(labels, options.fold)  # refuses a fold that cannot be used before signals are read
    table = read_ptb_xl_table(options.data)
    table = table.filter(pl.col("study_id").is_in(list(labels.study_ids)))
    rate = sampling_rate_of(options.data, table)
    name = _digest({"studies": table["study_id"].to_list(), "rate": rate, "data": str(options.data.resolve())})
    path, index = (options.cache / f"signals-{name}{suffix}" for suffix in (".npy", ".parquet"))
    if not (path.is_file() and index.is_file()):
        progress("reading signals", 0, table.height)
        read = read_ptb_xl_signals(options.data, table, sampling_rate_hz=rate)
        _save(path, read.signals)
        read.table.select("study_id").write_parquet(index)
    kept = pl.read_parquet(index)["study_id"].to_list()
    table = pl.DataFrame({"study_id": kept}).join(table, on="study_id", how="left", maintain_order="left")
    row_of = {study: row for row, study in enumerate(labels.study_ids)}
    reasons = sorted(set(labels.study_ids) - set(kept))
    skipped = pl.DataFrame({"record": reasons, "reason": ["the signal cannot be read"] * len(reasons)})
    labels = labels.take(np.array([row_of[study] for study in kept], np.int64))
    split = split_folds(labels, options.fold, fraction=options.fraction, seed=options.seed)
    return Recordings(np.load(path, mmap_mode="r"), rate, table, labels, split, skipped)


def fast_features(encoder: Backbone) -> Callable[[Sequence[Ecg]], NDArray[np.float32]]:
    """Return what :meth:`Backbone.features` returns, the fast way if there is one.

    Our own tower is prepared as for inference: in bfloat16 where the processor computes in it (see
    :mod:`mmecg.modeling.ecg_inference`); the cosine with the features in float32 is at least 0.9999.
    """
    tower = encoder.network
    if not isinstance(tower, EcgEncoder) or len(encoder.leads) != len(LEADS):
        return encoder.features
    network = EcgInference(tower.eval(), resolve_dtype("auto", encoder.device))

    def features(ecgs: Sequence[Ecg]) -> NDArray[np.float32]:
        inputs = encoder.prepare(ecgs)
        if len({item.shape for item in inputs}) > 1:
            return encoder.features_of_inputs(inputs)
        signal = torch.from_numpy(np.concatenate(inputs))
        found = torch.cat([network(part.to(encoder.device)).cpu() for part in torch.split(signal, _BATCH)]).numpy()
        return np.asarray(found.reshape(len(inputs), -1, found.shape[1]).mean(axis=1), np.float32)

    return features


def identity(encoder: Backbone) -> str:
    """Return a hash of an encoder's configuration and weights as they are now, trained or not: 32 digits."""
    digest = hashlib.sha256(json.dumps(asdict(encoder.config), sort_keys=True).encode())
    for name, tensor in encoder.network.state_dict().items():
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(tensor.detach().cpu().float().numpy()).tobytes())
    return digest.hexdigest()[:32]


def _digest(what: object) -> str:
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]


def _save(path: Path, values: NDArray[np.generic]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        np.save(file, values)
    partial.replace(path)
