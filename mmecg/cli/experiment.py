"""``mmecg experiment``: one of the experiments that papers on ECG encoders ask for."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mmecg.cli.inputs import positive_int

_EXAMPLES = """\
examples:
  mmecg experiment --list
  mmecg experiment linear-probe --data ptb-xl/ --fold 9 --out results/probe/
  mmecg experiment linear-probe --data ptb-xl/ --encoder pretrained/backbone --out results/probe/ --cache cache/
  mmecg experiment transfer --data ptb-xl/ --encoder pretrained/backbone --fraction 0.5 --out results/transfer/

The fold before --fold is chosen on, all before that are fitted on. Written are metrics.json, run.json, report.md,
row.md (the line of docs/experiments.md), tables and pictures. The exit code is 1 if a row could not be computed or a
recording could not be read; both are named.
"""


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the command's arguments."""
    parser = subparsers.add_parser(
        "experiment",
        help="run an experiment on encoders, with intervals and baselines",
        description="Run one of the experiments that papers on ECG encoders ask for, on a PTB-XL folder.",
        epilog=_EXAMPLES,
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="the experiment; --list shows them")
    parser.add_argument("--list", action="store_true", help="show the experiments and what they ask")
    parser.add_argument("--data", type=Path, help="PTB-XL folder (records100/ or records500/)")
    parser.add_argument("--fold", type=int, default=9, help="value of strat_fold to report (9)")
    parser.add_argument(
        "--encoder", type=Path, action="append", default=[], metavar="SOURCE",
        help="bundle, or directory of import-encoder, pretrain or finetune; repeat it to compare with the first; "
        "default the bundle that ships with mmecg",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, help="folder for the results; made if missing")
    parser.add_argument("--cache", type=Path, help="folder that keeps signals and features; default OUT/cache")
    parser.add_argument("--fraction", type=float, default=1.0, help="share of the patients to fit on (1)")
    parser.add_argument("--resamples", type=positive_int, default=1000, help="bootstrap resamples (1000)")
    parser.add_argument("--seed", type=int, default=0, help="of fresh weights, draws and resampling (0)")
    parser.add_argument("--json", action="store_true", help="print the content of metrics.json")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run an experiment and write the results, or show which there are."""
    from mmecg.cli.evaluate import progress_bar
    from mmecg.cli.output import check_parent
    from mmecg.errors import InvalidInputError
    from mmecg.experiments.experiment import Options
    from mmecg.experiments.runner import run_experiment, save

    if args.list:
        _list(json=args.json)
        return 0
    missing = [name for name in ("name", "data", "out") if getattr(args, name) is None]
    if missing:
        what = ", ".join("NAME" if name == "name" else f"--{name}" for name in missing)
        raise InvalidInputError(f"{what} not given; expected mmecg experiment NAME --data DIR --out OUT, or --list")
    check_parent(args.out, "results folder")
    options = Options(
        data=args.data,
        cache=args.cache or args.out / "cache",
        fold=args.fold,
        encoders=tuple(args.encoder),
        fraction=args.fraction,
        seed=args.seed,
        resamples=args.resamples,
    )
    with progress_bar() as progress:
        finished = run_experiment(args.name, options, progress)
    save(finished, args.out)
    _print(args, finished)
    return 0 if finished.complete else 1


def _print(args: argparse.Namespace, finished: Any) -> None:
    from mmecg.cli.output import note, print_json, print_table
    from mmecg.evaluation.results import table_cells

    for message in (*finished.run["notes"], finished.run["supervision"]):
        note(message)
    if finished.run["skipped"]:
        note(f"{len(finished.run['skipped'])} recordings could not be read; run.json names them")
    if args.json:
        print_json(finished.metrics())
        return
    columns = ["row", "value>", "95 % interval>", "n>", "random encoder>", "prevalence>"]
    print_table(f"{args.name}, fold {args.fold}, results in {args.out}", columns, table_cells(finished.outcome.rows))
    note(finished.outcome.sentence)


def _list(*, json: bool) -> None:
    from mmecg.cli.output import print_json, print_table
    from mmecg.experiments.catalogue import NAMES, experiment

    found = [experiment(name) for name in NAMES]
    if json:
        print_json([{"name": one.name, "asked": one.asked, "protocol": one.protocol} for one in found])
        return
    print_table("Experiments", ["name", "what is asked"], [[one.name, one.asked] for one in found])
