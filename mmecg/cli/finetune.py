"""``mmecg finetune``: adapt an encoder to a label table and save a calibrated classifier."""

from __future__ import annotations

import argparse
from typing import Any

from mmecg.cli.inputs import positive_int
from mmecg.cli.probe import add_data_arguments, parse_priors, print_scores, read_examples

_EXAMPLES = """\
examples:
  mmecg finetune encoders/ecg-fm/ --data ptb-xl/ --fold 9 --method lora --out adapted/
  mmecg finetune my-bundle/ --data ptb-xl/ --fold 9 --method full --fraction 0.1 --epochs 30 --out adapted/
  mmecg finetune my-bundle/ --data ptb-xl/ --fold 9 --lead I --axis-augmentation --out lead-one/
  torchrun --nproc-per-node 4 -m mmecg finetune encoders/ecg-fm/ --data ptb-xl/ --fold 9 --out adapted/

Encoder, folds and label tables are those of mmecg probe. Training begins with the linear probe and keeps the epoch that
is best on the fold before --fold; on it, outputs are calibrated, too. OUT is read by probe, finetune and pretrain as an
encoder, and by mmecg.adaptation.classifier.load_classifier as a classifier. A run that was interrupted goes on.
"""


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the command's arguments."""
    parser = subparsers.add_parser(
        "finetune",
        help="fine-tune an encoder on a label table",
        description="All weights, LoRA, attention pooling or the linear head alone; the table beside the linear probe, "
        "the untrained network and the prevalence.",
        epilog=_EXAMPLES,
    )
    add_data_arguments(parser)
    parser.add_argument("--random", action="store_true", help="from fresh weights instead of the encoder's own")
    parser.add_argument(
        "--method", choices=("full", "lora", "attention", "linear"), default="full", help="what is trained (full)"
    )
    parser.add_argument("--epochs", type=int, default=20, help="at most so many (20)")
    parser.add_argument("--patience", type=positive_int, default=6, help="epochs without a better choosing fold (6)")
    parser.add_argument("--batch-size", type=positive_int, default=64, help="studies a step, over all processes (64)")
    parser.add_argument("--learning-rate", type=float, help="peak, for the encoder (depends on the method)")
    parser.add_argument("--rank", type=positive_int, default=8, help="of LoRA (8)")
    parser.add_argument("--class-weights", action="store_true", help="weigh the positives of rare labels")
    parser.add_argument("--lead", metavar="NAME", help="adapt a network of this lead alone")
    parser.add_argument("--axis-augmentation", action="store_true", help="turn that lead's axis at random in training")
    parser.add_argument("--quiet", action="store_true", help="print no progress")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Fine-tune, print the table, write classifier and results."""
    from mmecg.adaptation.backbone import check_free, load_backbone
    from mmecg.adaptation.finetune import FinetuneConfig, finetune
    from mmecg.adaptation.probe import render_scores
    from mmecg.cli.output import check_parent
    from mmecg.evaluation.results import save_evaluation

    check_free(check_parent(args.out, "classifier"))
    backbone = load_backbone(args.source, random=args.random, seed=args.seed)
    config = FinetuneConfig(
        args.fold,
        args.method,
        args.fraction,
        epochs=args.epochs,
        batch_size=args.batch_size,
        patience=args.patience,
        learning_rate=args.learning_rate,
        class_weights=args.class_weights,
        incomplete=args.incomplete,
        prior=parse_priors(args.prior),
        rank=args.rank,
        lead=args.lead,
        axis_augmentation=args.axis_augmentation,
        resamples=args.resamples,
        seed=args.seed,
    )
    result = finetune(backbone, read_examples(args, backbone), config, args.out, quiet=args.quiet or args.json)
    if result is None:  # not the first of several processes
        return 0
    title = f"Fine-tuning ({args.method}), fold {args.fold}"
    save_evaluation(result.evaluation, args.out, render=lambda done: render_scores(title, result.scores, done.run))
    print_scores(args, f"{title}, classifier and results in {args.out}", result.scores, result.evaluation)
    return 0 if not result.evaluation.run["skipped"] else 1
