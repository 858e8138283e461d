"""``mmecg probe``: a linear probe of an encoder on a label table, beside the same network untrained."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmecg.cli.inputs import parse_pairs, positive_int
from mmecg.errors import InvalidInputError

if TYPE_CHECKING:
    from mmecg.adaptation.backbone import Backbone
    from mmecg.adaptation.examples import Examples
    from mmecg.adaptation.scores import ScoreTable
    from mmecg.evaluation.results import Evaluation

_EXAMPLES = """\
examples:
  mmecg probe encoders/ecg-fm/ --data ptb-xl/ --fold 9 --out results/
  mmecg probe my-bundle/ --data ptb-xl/ --fold 9 --fraction 0.01 --out results/    1 % of the patients' labels
  mmecg probe encoders/ecg-fm/ --data studies.parquet --labels mine.csv --fold 10 --out results/

The encoder is a bundle, or a directory that import-encoder, pretrain or finetune wrote. All folds before the one before
--fold are fitted on; the strength of the penalty is chosen on the one before. A label table is CSV or Parquet:
study_id, one column a label with 0, 1 or nothing (unknown), and fold if you like; without it, studies that are not
PTB-XL's have folds 1 to 10 by a hash of the subject. Written are metrics.json, run.json, per_label.parquet,
per_label.csv and report.md. Attention pooling on a frozen encoder: mmecg finetune --method attention.
"""


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the command's arguments."""
    parser = subparsers.add_parser(
        "probe",
        help="fit a linear probe on an encoder's frozen features",
        description="Regularised logistic regression on frozen features: macro-AUROC and macro-AUPRC with "
        "patient-clustered 95 % intervals, beside the untrained network and the prevalence.",
        epilog=_EXAMPLES,
    )
    add_data_arguments(parser)
    parser.add_argument("--random", action="store_true", help="fresh weights instead of the encoder's own")
    parser.set_defaults(run=run)


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what commands that fit an encoder to labels share."""
    parser.add_argument("source", type=Path, metavar="SOURCE", help="bundle or encoder directory")
    parser.add_argument("--data", type=Path, required=True, help="PTB-XL folder, or other studies with --labels")
    parser.add_argument("--labels", type=Path, metavar="TABLE", help="CSV or Parquet; default PTB-XL's own labels")
    parser.add_argument("--sampling-rate-hz", type=int, help="of PTB-XL: 100 or 500 (what is there, for the encoder)")
    parser.add_argument("--fold", type=int, required=True, help="fold to evaluate")
    parser.add_argument("--fraction", type=float, default=1.0, help="share of the patients to fit on (1)")
    parser.add_argument(
        "--incomplete",
        default="known",
        choices=("known", "naive", "weighted", "asymmetric", "pu"),
        help="what is not labelled 1: known (0 absent, empty unknown), naive (absent), pu (unlabelled), … (known)",
    )
    parser.add_argument("--prior", default="", metavar="LABEL=SHARE,…", help="known priors, for pu and weighted")
    parser.add_argument("--resamples", type=positive_int, default=1000, help="bootstrap resamples (1000)")
    parser.add_argument("--seed", type=int, default=0, help="of everything that is drawn (0)")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results; made if missing")
    parser.add_argument("--json", action="store_true", help="print the content of metrics.json")


def run(args: argparse.Namespace) -> int:
    """Probe, print the table, write the results."""
    import torch

    from mmecg.adaptation.backbone import load_backbone
    from mmecg.adaptation.probe import ProbeConfig, probe, render_scores
    from mmecg.cli.output import check_parent
    from mmecg.evaluation.results import save_evaluation

    check_parent(args.out, "results folder")
    backbone = load_backbone(args.source, random=args.random, seed=args.seed)
    backbone = backbone.to("cuda" if torch.cuda.is_available() else "cpu")
    config = ProbeConfig(args.fold, args.fraction, args.incomplete, parse_priors(args.prior), args.resamples, args.seed)
    result = probe(backbone, read_examples(args, backbone), config)
    title = f"Linear probe on fold {args.fold}"
    save_evaluation(result.evaluation, args.out, render=lambda done: render_scores(title, result.scores, done.run))
    print_scores(args, f"{title}, results in {args.out}", result.scores, result.evaluation)
    return 0 if not result.evaluation.run["skipped"] else 1


def read_examples(args: argparse.Namespace, backbone: Backbone) -> Examples:
    """Read recordings and labels of the folds up to the one evaluated.

    Raises
    ------
    InvalidInputError
        The data or the table cannot be used.
    """
    from mmecg.adaptation.examples import ptb_xl_examples, study_examples
    from mmecg.cli.sources import open_source

    if (args.data / "ptbxl_database.csv").is_file():
        wants_more = backbone.sampling_rate_hz > 100 and (args.data / "records500").is_dir()
        rate = args.sampling_rate_hz or (500 if wants_more else 100)
        return ptb_xl_examples(args.data, labels=args.labels, folds=range(args.fold + 1), sampling_rate_hz=rate)
    if args.labels is None:
        raise InvalidInputError(f"{args.data} is no PTB-XL folder, so it brings no labels; give --labels TABLE")
    studies = open_source(args.data, sampling_rate_hz=args.sampling_rate_hz)
    return study_examples(studies, args.labels, skipped=lambda: studies.report.failures)


def parse_priors(text: str) -> dict[str, float]:
    """Parse ``AFIB=0.07,LBBB=0.03``. Raises ``InvalidInputError``."""
    found = {}
    for name, value in parse_pairs(text, "prior").items():
        try:
            found[name] = float(value)
        except ValueError:
            raise InvalidInputError(f"prior of {name[:40]} is not a number, expected between 0 and 1") from None
    return found


def print_scores(args: argparse.Namespace, title: str, scores: ScoreTable, evaluation: Evaluation) -> None:
    """Print remarks and the table, or ``metrics.json``."""
    from mmecg.adaptation.scores import COLUMNS
    from mmecg.cli.evaluate import print_remarks
    from mmecg.cli.output import print_json, print_table

    print_remarks(evaluation)
    if args.json:
        print_json(evaluation.metrics())
        return
    print_table(title, [*COLUMNS[:2], *(f"{name}>" for name in COLUMNS[2:])], scores.cells())
