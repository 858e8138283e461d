"""``mmecg import-encoder``: turn a published checkpoint into a directory that mmecg loads."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

_EXAMPLES = """\
examples:
  mmecg import-encoder ecg-fm mimic_iv_ecg_finetuned.pt --out encoders/ecg-fm/
  mmecg import-encoder ecg-founder 12_lead_ECGFounder.pth --out encoders/founder/ --preprocessing eval
  mmecg import-encoder ecg-founder-1-lead 1_lead_ECGFounder.pth --out encoders/lead-i/
"""


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the command's arguments."""
    parser = subparsers.add_parser(
        "import-encoder",
        help="turn a published checkpoint into a directory that mmecg loads",
        description="Convert the checkpoint of a published encoder, once. Nothing in the file is run: it may hold "
        "tensors and plain containers only. Every key has to be one of the network's, in its shape, and with the "
        "published hyper-parameters; else the import fails and says which are not. The preprocessing is written beside "
        "the weights and is part of the fingerprint.",
        epilog=_EXAMPLES,
    )
    parser.add_argument("encoder", help="ecg-fm, ecg-founder, ecg-founder-1-lead; all of them: mmecg encoders")
    parser.add_argument("file", type=Path, metavar="FILE", help="checkpoint as its authors published it")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="directory to write")
    parser.add_argument(
        "--preprocessing", metavar="NAME", help="variant, see mmecg encoders NAME; default the encoder's first"
    )
    parser.add_argument(
        "--segments",
        choices=("mean", "max", "min"),
        default="mean",
        help="how the features of a long recording's segments become one vector",
    )
    parser.add_argument("--json", action="store_true", help="print what was written as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Convert the file and print what was written."""
    from mmecg.cli.output import check_new, print_json, print_table
    from mmecg.encoders.checkpoints import import_encoder
    from mmecg.encoders.registry import get_encoder

    spec = get_encoder(args.encoder)
    check_new(args.out, "encoder")
    done = import_encoder(spec, args.file, args.out, variant=args.preprocessing, feature_reduction=args.segments)
    written: dict[str, Any] = {
        "path": str(args.out),
        "encoder": spec.name,
        "fingerprint": done.fingerprint,
        "preprocessing": done.config.variant,
        "hyperparameters": dict(done.config.hyperparameters),
        "parameters": done.parameters,
        "source": done.config.source,
        "keys_not_needed": list(done.unused),
        "seen_in_training": [item.name for item in spec.seen],
    }
    if args.json:
        print_json(written)
        return 0
    shown = {name: _plain(value) for name, value in written.items()}
    print_table(spec.title, ["what", "value"], [list(item) for item in shown.items()])
    return 0


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {item}" for name, item in value.items()) or "as published"
    if isinstance(value, list):
        return f"{len(value)}: {', '.join(value[:6])}{' …' * (len(value) > 6)}" if value else "none"
    return f"{value:,}" if isinstance(value, int) else str(value)
