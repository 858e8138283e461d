"""The bundle: one directory with weights, configuration, text tower, model card and a manifest.

::

    bundle/
      MANIFEST.json        format version, fingerprint, SHA-256 of every other file
      config.json          model and preprocessing, training summary, vitals weight
      model.safetensors    ECG tower, projection, vitals tower, logit scale
      text/                text tower, loadable by SentenceTransformer(path)
      README.md            model card
      prediction/          heads, optional; see mmecg.prediction.heads

The fingerprint is the hash of ``config.json``'s model part, ``model.safetensors`` and ``text/``: what the embedding
space depends on. The card can be edited without changing it (but the manifest must then be written again).
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmecg.assets import DEFAULT_BUNDLE
from mmecg.config import Precision, parse_config
from mmecg.embedding import EMBEDDING_DIM
from mmecg.errors import BundleError, ConfigError

if TYPE_CHECKING:
    from mmecg.modeling.dual_encoder import DualEncoder, DualEncoderConfig
    from mmecg.training.config import TrainingConfig

FORMAT_VERSION = 1
_MANIFEST, _CONFIG, _WEIGHTS, _TEXT = "MANIFEST.json", "config.json", "model.safetensors", "text"
CARD = "README.md"
"""The model card."""


@dataclass(frozen=True)
class TrainingSummary:
    """What a bundle was trained on and how.

    Attributes
    ----------
    data : str
        Name of the data set.
    folds : tuple of int
        Its folds.
    studies : int
        Number of studies.
    supervision : str
        "labels" or "reports"; see :class:`mmecg.training.TrainingConfig`.
    epochs, seed : int
    """

    data: str
    folds: tuple[int, ...]
    studies: int
    supervision: str
    epochs: int
    seed: int

    @classmethod
    def from_config(cls, config: TrainingConfig, *, studies: int) -> TrainingSummary:
        """Summarise a recipe that was run on PTB-XL."""
        return cls("PTB-XL", config.folds, studies, config.supervision, config.epochs, config.seed)


@dataclass(frozen=True)
class BundleConfig:
    """What ``config.json`` holds.

    Attributes
    ----------
    model : DualEncoderConfig
        Shape of the model and, with it, the preprocessing (sampling rate).
    training : TrainingSummary
    vitals_weight : float
        Weight of the vitals beside an ECG of weight 1 in a fused query, chosen in training.
    """

    model: DualEncoderConfig
    training: TrainingSummary
    vitals_weight: float


@dataclass(frozen=True)
class Bundle:
    """A loaded bundle.

    Attributes
    ----------
    path : Path
    encoder : DualEncoder
        In evaluation mode, prepared (:meth:`DualEncoder.prepare`).
    config : BundleConfig
    fingerprint : str
        64 hexadecimal digits that name the embedding space.
    """

    path: Path
    encoder: DualEncoder
    config: BundleConfig
    fingerprint: str

    @property
    def card(self) -> str:
        """The model card, Markdown."""
        return (self.path / CARD).read_text(encoding="utf-8")


def load_bundle(path: str | Path | None = None, *, precision: Precision = "auto") -> Bundle:
    """Load a bundle and check every file against its manifest.

    Parameters
    ----------
    path : str or Path, optional
        Bundle directory; default the one that ships with mmecg.
    precision : {"auto", "float32", "bfloat16"}
        What the ECG tower computes in; "auto" is bfloat16 where the processor has instructions for it, float32
        elsewhere. See :mod:`mmecg.modeling.ecg_inference` for how much it changes.

    Raises
    ------
    BundleError
        A file is missing, truncated or changed, or the format version is unknown.
    """
    root = Path(path) if path is not None else DEFAULT_BUNDLE
    manifest = _check_files(root)
    config = _read_config(root)
    encoder = _load_encoder(root, config, manifest["fingerprint"]).prepare(precision)
    return Bundle(root, encoder, config, manifest["fingerprint"])


def read_fingerprint(path: str | Path | None = None) -> str:
    """Check every file of a bundle against its manifest, load none, and return the fingerprint.

    Raises
    ------
    BundleError
        See :func:`load_bundle`.
    """
    return str(_check_files(Path(path) if path is not None else DEFAULT_BUNDLE)["fingerprint"])


def save_bundle(path: Path, model: DualEncoder, config: BundleConfig, *, card: str | None = None) -> str:
    """Write a bundle aside and rename it into place; return its fingerprint. An older bundle at ``path`` is replaced.

    Parameters
    ----------
    path : Path
    model : DualEncoder
    config : BundleConfig
    card : str, optional
        Model card; default one without figures.
    """
    from safetensors.torch import save_file

    part = path.with_name(path.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    tensors = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("text.")}
    save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, part / _WEIGHTS)
    model.text.save(part / _TEXT)
    content = {"format_version": FORMAT_VERSION, "embedding_dim": EMBEDDING_DIM, **asdict(config)}
    (part / _CONFIG).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    (part / CARD).write_text(card or default_card(config), encoding="utf-8")
    name = write_manifest(part)
    shutil.rmtree(path, ignore_errors=True)
    part.rename(path)
    return name


def write_manifest(root: Path) -> str:
    """Write ``MANIFEST.json`` for the files that are there; return the fingerprint. Use it after editing the card."""
    files = [item for item in sorted(root.rglob("*")) if item.is_file() and item.name != _MANIFEST]
    manifest = {
        "format_version": FORMAT_VERSION,
        "fingerprint": _fingerprint(root),
        "files": {item.relative_to(root).as_posix(): _sha256(item) for item in files},
    }
    (root / _MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    return str(manifest["fingerprint"])


def default_card(config: BundleConfig) -> str:
    """Return a model card that states data, supervision, use and limits; figures are added after evaluation."""
    training = config.training
    return f"""# mmecg bundle

Embeds 12-lead ECGs, their reports and vital signs in one {EMBEDDING_DIM}-dimensional space. **Not a medical device.**

- Data: {training.data}, folds {", ".join(map(str, training.folds))}: {training.studies} studies (CC BY 4.0).
- Supervision: {training.supervision}. Epochs: {training.epochs}. Seed: {training.seed}.
- Intended use: research on retrieval and labelling of ECG archives.
- Limits: one European data set of 1984-2001; adults; 10 s at {config.model.ecg.sampling_rate_hz:g} Hz. Of the vitals
  only age, sex, height and weight were seen in training; the others have no effect. The text tower reads words, not
  their order, so it does not understand negation.
"""


def _fingerprint(root: Path) -> str:
    from mmecg.embedding import fingerprint

    model = json.loads((root / _CONFIG).read_text(encoding="utf-8"))["model"]
    weights = [root / _WEIGHTS, *(item for item in (root / _TEXT).rglob("*") if item.is_file())]
    return hashlib.sha256((json.dumps(model, sort_keys=True) + fingerprint(weights, root=root)).encode()).hexdigest()


def _check_files(root: Path) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads((root / _MANIFEST).read_text(encoding="utf-8"))
        version, files = manifest["format_version"], dict(manifest["files"])
        str(manifest["fingerprint"])
    except OSError:
        raise BundleError(f"bundle {root} has no {_MANIFEST}; give the directory of a bundle") from None
    except (ValueError, KeyError, TypeError):
        raise BundleError(f"bundle {root}: {_MANIFEST} is damaged; restore the bundle or train it again") from None
    if version != FORMAT_VERSION:
        raise BundleError(f"bundle {root} has format version {version}, expected {FORMAT_VERSION}; update mmecg")
    for name, digest in files.items():
        file = root / name
        if not file.is_file():
            raise BundleError(f"bundle {root} lacks {name}; restore the bundle or train it again")
        if _sha256(file) != digest:
            raise BundleError(f"bundle {root}: {name} is damaged (checksum); restore the bundle or train it again")
    missing = {_CONFIG, _WEIGHTS, f"{_TEXT}/modules.json"} - files.keys()
    if missing or _fingerprint(root) != manifest["fingerprint"]:
        raise BundleError(f"bundle {root}: {_MANIFEST} does not fit its files; restore the bundle or train it again")
    return manifest


def _read_config(root: Path) -> BundleConfig:
    from mmecg.modeling.dual_encoder import DualEncoderConfig

    content = json.loads((root / _CONFIG).read_text(encoding="utf-8"))
    try:
        return BundleConfig(
            parse_config(DualEncoderConfig, content["model"], prefix="model."),
            parse_config(TrainingSummary, content["training"], prefix="training."),
            float(content["vitals_weight"]),
        )
    except (KeyError, TypeError, ValueError, ConfigError) as error:
        raise BundleError(f"bundle {root}: {_CONFIG} is not usable ({error})") from None


def _load_encoder(root: Path, config: BundleConfig, name: str) -> DualEncoder:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from mmecg.modeling.dual_encoder import DualEncoder
    from mmecg.modeling.text_encoder import TextEncoder

    encoder = DualEncoder(config.model, TextEncoder.load(root / _TEXT), fingerprint=name)
    try:
        result = encoder.load_state_dict(load_file(root / _WEIGHTS), strict=False)
    except (SafetensorError, RuntimeError) as error:
        raise BundleError(f"bundle {root}: {_WEIGHTS} does not fit {_CONFIG} ({type(error).__name__})") from None
    wrong = [key for key in result.missing_keys if not key.startswith("text.")] + list(result.unexpected_keys)
    if wrong:
        raise BundleError(f"bundle {root}: {_WEIGHTS} lacks or has unknown tensors ({', '.join(wrong[:3])}, …)")
    return encoder


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


__all__ = [
    "Bundle", "BundleConfig", "TrainingSummary", "default_card", "load_bundle", "read_fingerprint", "save_bundle",
    "write_manifest",
]  # fmt: skip
