"""``mmecg evaluate-labels``: every figure of label mining on one fold of a PTB-XL folder."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mmecg.cli.inputs import positive_int

_EXAMPLES = """\
examples:
  mmecg evaluate-labels --data ptb-xl/ --fold 9 --out results/
  mmecg evaluate-labels --data fold10/ --fold 10 --out results/ --json     without the training folds

The weights are those that ship with mmecg; nothing is fitted on the fold. Without signals only the rows of the text are
computed. Written are metrics.json, run.json, per_label.parquet, per_label.csv and report.md. The exit code is 1 if a
row could not be computed or a record could not be read; both are named.
"""


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the command's arguments."""
    parser = subparsers.add_parser(
        "evaluate-labels",
        help="compute every figure of label mining on one fold of a PTB-XL folder",
        description="F1, calibration, few-gold mode, disagreements and positive-unlabelled training, with "
        "patient-clustered 95 % intervals, beside raw rules, the prevalence and a supervised text model.",
        epilog=_EXAMPLES,
    )
    parser.add_argument("--data", type=Path, required=True, help="PTB-XL folder; its signals may be missing")
    parser.add_argument("--fold", type=int, required=True, help="value of strat_fold to test on")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results; made if missing")
    parser.add_argument("--bundle", type=Path, help="the bundle that the weights belong to; default the shipped one")
    parser.add_argument("--resamples", type=positive_int, default=1000, help="bootstrap resamples (1000)")
    parser.add_argument("--seed", type=int, default=0, help="of resampling, draws and flips (0)")
    parser.add_argument("--json", action="store_true", help="print the content of metrics.json")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Evaluate and write the results."""
    from mmecg.bundle import load_bundle
    from mmecg.cli.evaluate import print_figures, progress_bar
    from mmecg.cli.output import check_parent
    from mmecg.evaluation.label_mining import LabelOptions, evaluate_labels
    from mmecg.evaluation.label_report import save_label_evaluation

    check_parent(args.out, "results folder")
    options = LabelOptions(args.data, args.fold, resamples=args.resamples, seed=args.seed)
    with progress_bar() as progress:
        evaluation = evaluate_labels(options, lambda: load_bundle(args.bundle), progress=progress)
    save_label_evaluation(evaluation, args.out)
    print_figures(args, evaluation)
    return 0 if evaluation.complete else 1
