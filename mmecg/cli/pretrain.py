"""``mmecg pretrain``: train an ECG encoder on signals alone."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmecg.errors import InvalidInputError

if TYPE_CHECKING:
    from mmecg.pretraining.loop import Pretrained

_EXAMPLES = """\
examples:
  mmecg pretrain --data ptb-xl/ --out pretrained/                               our tower at toy width
  mmecg pretrain --data ptb-xl/ --out pretrained/ --no-masked --cmsc patient
  mmecg pretrain --data mimic-iv-ecg/ --out pretrained/ --encoder ecg-fm --config recipe.toml
  torchrun --nproc-per-node 4 -m mmecg pretrain --data ptb-xl/ --out pretrained/ --encoder encoders/ecg-fm/
"""


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the command's arguments."""
    parser = subparsers.add_parser(
        "pretrain",
        help="train an ECG encoder on signals alone",
        description="Train an encoder by predicting what is masked, by contrasting segments (CMSC), with leads masked "
        "at random (RLM). No label is learnt from; those of the fold to choose on are read for a linear probe. A run "
        "that was interrupted goes on where it stopped. The result is a directory for mmecg probe, finetune and build.",
        epilog=_EXAMPLES,
    )
    parser.add_argument("--data", type=Path, required=True, help="PTB-XL folder, or what mmecg build takes")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run: backbone, log, curves, checkpoint")
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE.toml",
        help="recipe; keys: mmecg.pretraining.PretrainingConfig. What is given below wins over it",
    )
    parser.add_argument(
        "--encoder",
        metavar="small|ecg-fm|DIR",
        help="our tower at toy width, the network of ECG-FM, or an encoder's directory (default small)",
    )
    parser.add_argument(
        "--fresh",
        action=argparse.BooleanOptionalAction,
        help="random weights for the network of an encoder's directory",
    )
    parser.add_argument("--masked", action=argparse.BooleanOptionalAction, help="masked prediction (default on)")
    parser.add_argument("--cmsc", choices=("recording", "patient", "off"), help="contrast segments (default recording)")
    parser.add_argument("--rlm", type=float, metavar="P", help="probability of masking each lead (default 0.5)")
    parser.add_argument("--folds", metavar="1-7", help="folds to train on: numbers and ranges, as 1-5,7 (default 1-7)")
    parser.add_argument("--choose-fold", type=int, metavar="K", help="fold that progress is measured on (default 8)")
    parser.add_argument(
        "--include-test-folds", action=argparse.BooleanOptionalAction, help="allow folds 9 and 10; refused otherwise"
    )
    parser.add_argument("--epochs", type=int, metavar="N")
    parser.add_argument("--batch-size", type=int, metavar="N", help="segment pairs, over all processes")
    parser.add_argument("--seed", type=int, metavar="N")
    parser.add_argument("--quiet", action="store_true", help="print no progress")
    parser.add_argument("--json", action="store_true", help="print what was written as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Pretrain, and print what was measured before and after."""
    from mmecg.cli.output import note, print_json, print_table
    from mmecg.cli.sources import open_source
    from mmecg.pretraining import load_pretraining_config, pretrain

    names = ("encoder", "fresh", "masked", "cmsc", "rlm", "choose_fold", "include_test_folds", "epochs", "batch_size")
    given = {name: getattr(args, name) for name in (*names, "seed")}
    folds = None if args.folds is None else parse_folds(args.folds)
    config = load_pretraining_config(args.config, folds=folds, **given)
    ptb_xl = (args.data / "ptbxl_database.csv").is_file()
    data, name = (args.data, "PTB-XL") if ptb_xl else (open_source(args.data), args.data.resolve().stem)
    done = pretrain(config, data, args.out, name=name, quiet=args.quiet or args.json)
    if done is None:  # a process of torchrun that is not the first
        return 0
    if args.json:
        print_json(_written(done) | {"seed": config.seed})
        return 0
    title = f"fold {config.choose_fold}, seed {config.seed}"
    rows = [
        [name.removeprefix("val_"), _shown(done.before.get(name)), f"{value:.4f}"] for name, value in done.after.items()
    ]
    print_table(title, ["what", "before>", "after>"], rows)
    note(f"wrote {done.path} (fingerprint {done.fingerprint[:12]})")
    return 0


def parse_folds(text: str) -> tuple[int, ...]:
    """Return the folds that a list of numbers and ranges names, such as ``1-5,7``.

    Raises
    ------
    InvalidInputError
        It is no such list.
    """
    folds: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.partition("-")
        try:
            folds |= set(range(int(first), int(last if dash else first) + 1))
        except ValueError:
            raise InvalidInputError(f"--folds is {text!r}, expected numbers and ranges such as 1-5,7") from None
    return tuple(sorted(folds))


def _written(done: Pretrained) -> dict[str, Any]:
    return {
        "path": str(done.path),
        "fingerprint": done.fingerprint,
        "before": dict(done.before),
        "after": dict(done.after),
    }


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
