"""``mmecg evaluate-prediction``: every figure of prediction on one fold of a PTB-XL folder, and a report to read."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mmecg.cli.inputs import positive_int

_EXAMPLES = """\
examples:
  mmecg evaluate-prediction --data ptb-xl/ --fold 9 --out results/
  mmecg evaluate-prediction --data ptb-xl/ --fold 9 --out results/ --ludb ludb/ --cross-fit half-a/ half-b/
  mmecg evaluate-prediction --data fold10/ --train-data ptb-xl/ --fold 10 --out results/

The heads are those in the bundle; nothing is fitted on the fold. Neighbours, the random encoder's probe and the
temporal split come from the folds, other than the one named, that the bundle was trained on. --cross-fit names two
bundles trained on disjoint folds, so that the rows of history can rest on all folds. Written are report.html (one
page, nothing loaded from elsewhere), metrics.json, run.json, per_label.*, report.md, tables/ and plots/. The exit code
is 1 if a row could not be computed or a record could not be read; both are named.
"""


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the command's arguments."""
    parser = subparsers.add_parser(
        "evaluate-prediction",
        help="compute every figure of prediction on one fold of a PTB-XL folder",
        description="Discrimination, calibration, conformal coverage, abstention, decision curves, gain from history "
        "with its controls, subgroups, temporal split, shift tests and novelty, with patient-clustered 95 % intervals.",
        epilog=_EXAMPLES,
    )
    parser.add_argument("--data", type=Path, required=True, help="PTB-XL folder (records100/ or records500/)")
    parser.add_argument("--fold", type=int, required=True, help="value of strat_fold to test on")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results; made if missing")
    parser.add_argument("--bundle", type=Path, help="model bundle with heads; default the one that ships with mmecg")
    parser.add_argument("--train-data", type=Path, help="PTB-XL folder with the training folds; default --data")
    parser.add_argument("--ludb", type=Path, help="LUDB folder (ludb.csv and data/), an outside set")
    parser.add_argument("--cross-fit", type=Path, nargs=2, metavar="BUNDLE", help="two bundles of disjoint folds")
    parser.add_argument("--cache", type=Path, help="folder that keeps the encodings of the cross-fit for the next run")
    parser.add_argument("--resamples", type=positive_int, default=1000, help="bootstrap resamples (1000)")
    parser.add_argument("--seed", type=int, default=0, help="of resampling, controls, subsets and noise (0)")
    parser.add_argument("--json", action="store_true", help="print the content of metrics.json")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Evaluate and write the results."""
    from mmecg.bundle import load_bundle
    from mmecg.cli.evaluate import print_figures, progress_bar
    from mmecg.cli.output import check_parent
    from mmecg.evaluation.prediction_protocols import PredictionEvaluationOptions, evaluate_prediction
    from mmecg.evaluation.prediction_report import save_prediction_evaluation

    check_parent(args.out, "results folder")
    options = PredictionEvaluationOptions(
        data=args.data,
        fold=args.fold,
        train_data=args.train_data,
        ludb=args.ludb,
        cross_fit=tuple(args.cross_fit or ()),
        cache=args.cache,
        resamples=args.resamples,
        seed=args.seed,
    )
    with progress_bar() as progress:
        found = evaluate_prediction(options, load_bundle(args.bundle), progress=progress)
    save_prediction_evaluation(found, args.out)
    print_figures(args, found.evaluation)
    return 0 if found.evaluation.complete else 1
