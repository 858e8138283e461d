"""``mmecg train``: train a bundle on a PTB-XL folder."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

_EXAMPLES = """\
examples:
  mmecg train --data ptb-xl/ --out bundle/                          the recipe of the shipped bundle
  mmecg train --data ptb-xl/ --out bundle/ --config recipe.toml     keys: mmecg.training.TrainingConfig
  torchrun --nproc-per-node 4 -m mmecg train --data ptb-xl/ --out bundle/
"""


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the command's arguments."""
    parser = subparsers.add_parser(
        "train",
        help="train a model bundle",
        description="Train a bundle on a PTB-XL folder. A run that was interrupted goes on where it stopped.",
        epilog=_EXAMPLES,
    )
    parser.add_argument("--data", type=Path, required=True, help="PTB-XL folder")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run: bundle, log, curves, checkpoints")
    parser.add_argument("--config", type=Path, metavar="FILE.toml", help="recipe; default that of the shipped bundle")
    parser.add_argument("--quiet", action="store_true", help="print no progress")
    parser.add_argument("--json", action="store_true", help="print where the bundle is as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Train, and say where the bundle is."""
    from mmecg.cli.output import note, print_json
    from mmecg.training import load_training_config, train

    bundle = train(load_training_config(args.config), args.data, args.out, quiet=args.quiet or args.json)
    if args.json:
        print_json({"bundle": str(bundle)})
    else:
        note(f"wrote {bundle}")
    return 0
