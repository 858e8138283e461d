"""The bundle: one directory with weights, configuration, text tower, model card and a manifest.

::

    bundle/
      MANIFEST.json        format version, fingerprint, SHA-256 of every other file
      config.json          model and preprocessing, training summary, vitals weight
      model.safetensors    ECG tower, projection, vitals tower, logit scale
      encoder/             a published encoder as ECG tower, if the bundle has one; loadable by load_encoder(path)
      text/                text tower, loadable by SentenceTransformer(path)
      README.md            model card
      prediction/          heads, optional; see mmecg.prediction.heads

The fingerprint is the hash of ``config.json``'s model part (which names the fingerprint of ``encoder/``),
``model.safetensors`` and ``text/``: what the embedding space depends on. The card can be edited without changing it
(but the manifest must then be written again).

A directory of ``mmecg import-encoder`` is loaded as a bundle, too: one that embeds ECGs only. Its fingerprint is the
encoder's.
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
from mmecg.embedding import EMBEDDING_DIM, BundleEncoder
from mmecg.errors import BundleError, ConfigError

if TYPE_CHECKING:
    from mmecg.encoders.published_files import PublishedConfig
    from mmecg.encoders.registry import SeenData
    from mmecg.modeling.aligned_encoder import AlignedEncoder, AlignedEncoderConfig
    from mmecg.modeling.dual_encoder import DualEncoder, DualEncoderConfig
    from mmecg.modeling.joint_encoder import JointEncoder
    from mmecg.modeling.text_encoder import TextEncoder
    from mmecg.training.config import TrainingConfig

FORMAT_VERSION = 1
_MANIFEST, _CONFIG, _WEIGHTS, _TEXT = "MANIFEST.json", "config.json", "model.safetensors", "text"
ENCODER = "encoder"
"""The folder of a published encoder."""
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
    model : DualEncoderConfig, AlignedEncoderConfig or PublishedConfig
        Shape of the model and its preprocessing (that of a published encoder is in its own folder); which of them says
        whether the ECG tower is ours, a published encoder with a trained projection, or a published encoder alone.
    training : TrainingSummary
    vitals_weight : float
        Weight of the vitals beside an ECG of weight 1 in a fused query, chosen in training.
    seen : tuple of SeenData
        What the ECG tower saw before: the contamination card of a published encoder.
    """

    model: DualEncoderConfig | AlignedEncoderConfig | PublishedConfig
    training: TrainingSummary
    vitals_weight: float
    seen: tuple[SeenData, ...] = ()


@dataclass(frozen=True)
class Bundle:
    """A loaded bundle.

    Attributes
    ----------
    path : Path
    encoder : DualEncoder, AlignedEncoder or UnalignedEncoder
        In evaluation mode, prepared (:meth:`DualEncoder.prepare`).
    config : BundleConfig
    fingerprint : str
        64 hexadecimal digits that name the embedding space.
    """

    path: Path
    encoder: BundleEncoder
    config: BundleConfig
    fingerprint: str

    @property
    def card(self) -> str:
        """The model card, Markdown."""
        path = self.path / CARD
        return path.read_text(encoding="utf-8") if path.is_file() else default_card(self.config)

    def contamination(self, data: str, *, fold: int | None = None) -> str:
        """Return what the reader of a figure must know about the training of the bundle and its ECG tower.

        Parameters
        ----------
        data : str
            Name of the data set; case, blanks, hyphens and underscores do not matter.
        fold : int, optional
            The fold that is evaluated.

        Returns
        -------
        str
            One sentence for each training that saw the data set; empty if none did.
        """
        from mmecg.encoders.registry import SeenData

        training = self.config.training
        own = SeenData(training.data, "training", "its model card", training.folds)
        seen = [(self.encoder.ecg_encoder, item) for item in self.config.seen] + [("The bundle", own)]
        return " ".join(item.sentence(title, fold) for title, item in seen if item.is_of(data))


def load_bundle(path: str | Path | None = None, *, precision: Precision = "auto") -> Bundle:
    """Load a bundle and check every file against its manifest.

    Parameters
    ----------
    path : str or Path, optional
        Bundle directory, or one of ``mmecg import-encoder``; default the bundle that ships with mmecg.
    precision : {"auto", "float32", "bfloat16"}
        What the ECG tower computes in; "auto" is bfloat16 where the processor has instructions for it, float32
        elsewhere. See :mod:`mmecg.modeling.ecg_inference` for how much it changes.

    Raises
    ------
    BundleError
        A file is missing, truncated or changed, or the format version is unknown.
    """
    root = Path(path) if path is not None else DEFAULT_BUNDLE
    if _is_imported(root):
        return _load_imported(root, precision)
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
    root = Path(path) if path is not None else DEFAULT_BUNDLE
    if _is_imported(root):
        from mmecg.encoders.published_files import read_config

        return read_config(root)[1]
    return str(_check_files(root)["fingerprint"])


def save_bundle(path: Path, model: JointEncoder, config: BundleConfig, *, card: str | None = None) -> str:
    """Write a bundle aside and rename it into place; return its fingerprint. An older bundle at ``path`` is replaced.

    Parameters
    ----------
    path : Path
    model : JointEncoder
    config : BundleConfig
    card : str, optional
        Model card; default one without figures.
    """
    from safetensors.torch import save_file

    from mmecg.modeling.aligned_encoder import AlignedEncoder

    part = path.with_name(path.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    tensors = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("text.")}
    save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, part / _WEIGHTS)
    model.text.save(part / _TEXT)
    if isinstance(model, AlignedEncoder):
        model.tower.save(part / ENCODER)
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
    tower, training, own = _tower(config), config.training, getattr(config.model, "ecg", None)
    tower_input = f"10 s at {own.sampling_rate_hz:g} Hz" if own else f"the ECG tower is {tower}, frozen"
    seen = "".join(f"- {item.sentence(tower)}\n" for item in config.seen)
    if not training.folds:
        return (
            f"# mmecg bundle: {tower}, not aligned\n\nEmbeds ECGs with a published encoder; it was never aligned with "
            f"text or vitals, so only ECGs can be searched, by ECGs. **Not a medical device.**\n\n{seen}"
        )
    return f"""# mmecg bundle

Embeds 12-lead ECGs, their reports and vital signs in one {EMBEDDING_DIM}-dimensional space. **Not a medical device.**

- Data: {training.data}, folds {", ".join(map(str, training.folds))}: {training.studies} studies (CC BY 4.0).
- Supervision: {training.supervision}. Epochs: {training.epochs}. Seed: {training.seed}.
- Intended use: research on retrieval and labelling of ECG archives.
{seen}- Limits: one European data set of 1984-2001; adults; {tower_input}. Of the vitals
  only age, sex, height and weight were seen in training; the others have no effect. The text tower reads words, not
  their order, so it does not understand negation.
"""


def _tower(config: BundleConfig) -> str:
    return str(getattr(config.model, "encoder", "mmecg"))


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
    from mmecg.encoders.registry import SeenData
    from mmecg.modeling.aligned_encoder import AlignedEncoderConfig
    from mmecg.modeling.dual_encoder import DualEncoderConfig

    content = json.loads((root / _CONFIG).read_text(encoding="utf-8"))
    try:
        is_aligned = "encoder_fingerprint" in content["model"]
        model: DualEncoderConfig | AlignedEncoderConfig = (
            parse_config(AlignedEncoderConfig, content["model"], prefix="model.")
            if is_aligned
            else parse_config(DualEncoderConfig, content["model"], prefix="model.")
        )
        return BundleConfig(
            model,
            parse_config(TrainingSummary, content["training"], prefix="training."),
            float(content["vitals_weight"]),
            tuple(parse_config(SeenData, item, prefix="seen.") for item in content.get("seen", ())),
        )
    except (KeyError, TypeError, ValueError, ConfigError) as error:
        raise BundleError(f"bundle {root}: {_CONFIG} is not usable ({error})") from None


def _load_encoder(root: Path, config: BundleConfig, name: str) -> DualEncoder | AlignedEncoder:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from mmecg.modeling.text_encoder import TextEncoder

    encoder = _new_encoder(root, config, TextEncoder.load(root / _TEXT), name)
    try:
        result = encoder.load_state_dict(load_file(root / _WEIGHTS), strict=False)
    except (SafetensorError, RuntimeError) as error:
        raise BundleError(f"bundle {root}: {_WEIGHTS} does not fit {_CONFIG} ({type(error).__name__})") from None
    wrong = [key for key in result.missing_keys if not key.startswith("text.")] + list(result.unexpected_keys)
    if wrong:
        raise BundleError(f"bundle {root}: {_WEIGHTS} lacks or has unknown tensors ({', '.join(wrong[:3])}, …)")
    return encoder


def _new_encoder(root: Path, config: BundleConfig, text: TextEncoder, name: str) -> DualEncoder | AlignedEncoder:
    from mmecg.encoders.published import load_encoder
    from mmecg.modeling.aligned_encoder import AlignedEncoder, AlignedEncoderConfig
    from mmecg.modeling.dual_encoder import DualEncoder, DualEncoderConfig

    if isinstance(config.model, DualEncoderConfig):
        return DualEncoder(config.model, text, fingerprint=name)
    tower, model = load_encoder(root / ENCODER), config.model
    if not isinstance(model, AlignedEncoderConfig) or tower.fingerprint != model.encoder_fingerprint:
        raise BundleError(f"bundle {root}: {ENCODER} is not the encoder it was aligned with; restore the bundle")
    return AlignedEncoder(model, tower, text, fingerprint=name)


def _is_imported(root: Path) -> bool:
    """Return whether a directory is a published encoder and no bundle."""
    if (root / _MANIFEST).exists() or not (root / _CONFIG).is_file():
        return False
    from mmecg.encoders.published_files import is_encoder

    return is_encoder(root)


def _load_imported(root: Path, precision: Precision) -> Bundle:
    from mmecg.encoders.published import load_encoder
    from mmecg.modeling.aligned_encoder import UnalignedEncoder

    tower = load_encoder(root, precision=precision)
    config = BundleConfig(tower.config, TrainingSummary("none", (), 0, "none", 0, 0), 0.0, tower.spec.seen)
    return Bundle(root, UnalignedEncoder(tower), config, tower.fingerprint)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


__all__ = [
    "Bundle", "BundleConfig", "TrainingSummary", "default_card", "load_bundle", "read_fingerprint", "save_bundle",
    "write_manifest",
]  # fmt: skip
