"""``mmecg align``: a published encoder with the text and vitals towers of a bundle: a bundle that all commands take."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmecg.encoders.published import PublishedEncoder
    from mmecg.encoders.registry import SeenData

_EXAMPLES = """\
examples:
  mmecg align encoders/ecg-fm/ --data ptb-xl/ --out bundles/ecg-fm/
  mmecg align encoders/ecg-fm/ --data ptb-xl/ --out bundles/ecg-fm/ --config recipe.toml
  mmecg build --encoder bundles/ecg-fm/ --data ptb-xl/ --out corpus/

The encoder and both towers stay as they are; a projection is trained. Features are computed once and kept in --cache,
so that an interrupted run goes on. recipe.toml has keys of mmecg.training.TrainingConfig, such as epochs, folds, seed.
"""


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the command's arguments."""
    parser = subparsers.add_parser(
        "align",
        help="align a published encoder with text and vitals, and write a bundle",
        description="Train a projection from the features of a frozen published encoder to the text and vitals towers "
        "of a bundle, and write the bundle that has both. Without it, an imported encoder can be asked by ECG only.",
        epilog=_EXAMPLES,
    )
    parser.add_argument("encoder", type=Path, metavar="ENCODER", help="directory of import-encoder, or of finetune")
    parser.add_argument("--data", type=Path, required=True, help="PTB-XL folder")
    parser.add_argument("--out", type=Path, required=True, metavar="BUNDLE", help="directory to write; must be new")
    parser.add_argument("--bundle", type=Path, help="whose text and vitals towers; default the one that ships")
    parser.add_argument("--config", type=Path, metavar="FILE.toml", help="recipe; default 20 epochs on folds 1-8")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="folder of the features; default BUNDLE.features")
    parser.add_argument(
        "--precision", choices=("auto", "float32", "bfloat16"), default="auto", help="what the encoder computes in"
    )
    parser.add_argument("--quiet", action="store_true", help="print no progress")
    parser.add_argument("--json", action="store_true", help="print what was written as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Align, and say where the bundle is."""
    from mmecg.bundle import load_bundle
    from mmecg.cli.output import check_new, note, print_json
    from mmecg.config import load_config
    from mmecg.training.alignment import DEFAULT_CONFIG, align
    from mmecg.training.config import TrainingConfig

    check_new(args.out, "bundle")
    config = load_config(TrainingConfig, args.config) if args.config else DEFAULT_CONFIG
    tower, seen = load_tower(args.encoder, precision=args.precision)
    fingerprint = align(
        tower,
        load_bundle(args.bundle, precision="float32"),
        args.data,
        args.out,
        config=config,
        cache=args.cache or args.out.with_name(f"{args.out.name}.features"),
        seen=seen,
        quiet=args.quiet or args.json,
    )
    if args.json:
        print_json({"bundle": str(args.out), "encoder": tower.spec.name, "fingerprint": fingerprint})
    else:
        note(f"wrote {args.out}, fingerprint {fingerprint}")
    return 0


def load_tower(path: Path, *, precision: Any) -> tuple[PublishedEncoder, tuple[SeenData, ...]]:
    """Load a published encoder, as it was imported or as it was adapted, with what it saw in training.

    Raises
    ------
    InvalidInputError
        It is our own tower: a bundle with another one is made by ``mmecg train``.
    BundleError
        It is no directory of an encoder, or a file of it is damaged.
    """
    from mmecg.adaptation.backbone import load_backbone
    from mmecg.adaptation.towers import OWN
    from mmecg.encoders.preprocessing import Preprocessing
    from mmecg.encoders.published import PublishedConfig, load_encoder, write_encoder
    from mmecg.encoders.published_files import is_encoder
    from mmecg.errors import InvalidInputError

    if is_encoder(path):
        tower = load_encoder(path, precision=precision)
        return tower, tower.spec.seen
    backbone = load_backbone(path)
    own = backbone.config
    if backbone.name == OWN or not isinstance(own.preprocessing, Preprocessing):
        raise InvalidInputError(f"{path} holds our own tower, expected a published encoder; align one of those")
    source = f"adapted, fingerprint {backbone.fingerprint}"
    config = PublishedConfig(
        backbone.name, "adapted", own.preprocessing, own.hyperparameters, own.feature_reduction, source
    )
    with tempfile.TemporaryDirectory() as folder:
        adapted = Path(folder) / "encoder"
        write_encoder(adapted, config, backbone.network.state_dict())
        return load_encoder(adapted, precision=precision), own.seen
