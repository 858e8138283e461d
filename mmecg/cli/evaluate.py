"""``mmecg evaluate``: every figure of a bundle on one fold of a PTB-XL folder, with intervals and baselines."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmecg.cli.inputs import positive_int

if TYPE_CHECKING:
    from mmecg.bundle import Bundle
    from mmecg.evaluation.cohort import Progress
    from mmecg.evaluation.protocols import EvaluationOptions
    from mmecg.evaluation.results import Evaluation

_EXAMPLES = """\
examples:
  mmecg evaluate --data ptb-xl/ --fold 9 --out results/
  mmecg evaluate --data ptb-xl/ --fold 10 --bundle my-bundle/ --out results/ --json
  mmecg evaluate --data fold10/ --train-data ptb-xl/ --fold 10 --out results/   training folds lie elsewhere

Probes and neighbours are fitted on the folds, other than the one named, that the bundle was trained on. Written are
metrics.json, run.json, per_label.parquet, per_label.csv, report.md and plots. The exit code is 1 if a row could not be
computed or a record could not be read; both are named.
"""


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the command's arguments."""
    parser = subparsers.add_parser(
        "evaluate",
        help="compute every figure of a bundle on one fold of a PTB-XL folder",
        description="Linear probe, zero-shot, neighbours, retrieval, lead subsets and the gain from vitals, with "
        "patient-clustered 95 % intervals, each beside a random encoder and the prevalence.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, required=True, help="PTB-XL folder (records100/ or records500/)")
    parser.add_argument("--fold", type=int, required=True, help="value of strat_fold to test on")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results; made if missing")
    parser.add_argument("--bundle", type=Path, help="model bundle; default the one that ships with mmecg")
    parser.add_argument("--train-data", type=Path, help="PTB-XL folder with the training folds; default --data")
    parser.add_argument("--resamples", type=positive_int, default=1000, help="bootstrap resamples (1000)")
    parser.add_argument("--seed", type=int, default=0, help="of resampling, inner split and random encoder (0)")
    parser.add_argument("--json", action="store_true", help="print the content of metrics.json")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Evaluate a bundle and write the results."""
    from mmecg.bundle import load_bundle
    from mmecg.cli.output import check_parent
    from mmecg.evaluation.plots import save_plots
    from mmecg.evaluation.protocols import evaluate
    from mmecg.evaluation.results import save_evaluation

    check_parent(args.out, "results folder")
    bundle = load_bundle(args.bundle)
    encoders = {"bundle": bundle.encoder, "random": bundle.encoder.random_like(seed=args.seed)}
    with progress_bar() as progress:
        evaluation = evaluate(_options(args, bundle), encoders, progress=progress)
    save_evaluation(evaluation, args.out)
    save_plots(evaluation, args.out)
    _print(args, evaluation)
    return 0 if evaluation.complete else 1


def _options(args: argparse.Namespace, bundle: Bundle) -> EvaluationOptions:
    from mmecg.evaluation.protocols import EvaluationOptions

    training = bundle.config.training
    return EvaluationOptions(
        data=args.data,
        fold=args.fold,
        bundle_folds=tuple(training.folds),
        train_data=args.train_data,
        vitals_weight=bundle.config.vitals_weight,
        resamples=args.resamples,
        seed=args.seed,
        contamination=bundle.contamination("PTB-XL", fold=args.fold),
        supervision=f"{training.supervision} of {training.data} folds {', '.join(map(str, training.folds))}",
    )


def _print(args: argparse.Namespace, evaluation: Evaluation) -> None:
    from mmecg.cli.output import print_json, print_table
    from mmecg.evaluation.results import table_cells

    print_remarks(evaluation)
    if args.json:
        print_json(evaluation.metrics())
        return
    columns = ["row", "value>", "95 % interval>", "n>", "random encoder>", "prevalence>"]
    print_table(f"fold {args.fold}, results in {args.out}", columns, table_cells(evaluation.rows))


def print_remarks(evaluation: Evaluation) -> None:
    """Print what a reader of the figures must know, and which records were skipped."""
    import polars as pl

    from mmecg.cli.output import note, print_skipped

    for message in evaluation.run["notes"]:
        note(message)
    if evaluation.run["skipped"]:
        print_skipped(pl.DataFrame(evaluation.run["skipped"]))


def print_figures(args: argparse.Namespace, evaluation: Evaluation) -> None:
    """Print remarks and every row that was computed, then why the others were not; or ``metrics.json``."""
    from mmecg.cli.output import note, print_json, print_table
    from mmecg.evaluation.label_report import COLUMNS, label_cells

    print_remarks(evaluation)
    if args.json:
        print_json(evaluation.metrics())
        return
    columns = [COLUMNS[0], *(f"{name}>" for name in COLUMNS[1:])]
    computed = [row for row in evaluation.rows if math.isfinite(row.value)]
    print_table(f"fold {args.fold}, results in {args.out}", columns, label_cells(computed))
    missing: dict[str, list[str]] = {}
    for row in evaluation.rows:
        if not math.isfinite(row.value):
            missing.setdefault(str(row.extra.get("reason", "undefined")), []).append(row.key)
    for reason, keys in missing.items():
        note(f"not computed: {', '.join(keys)}: {reason}")


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """Yield a function that shows what is being done, on standard error."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("starting", total=None)
        yield lambda what, done, total: bar.update(task, description=what, completed=done, total=total)
