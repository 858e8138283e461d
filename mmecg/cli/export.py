"""``mmecg export``: write a corpus as Parquet and WFDB."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

_EXAMPLES = """\
examples:
  mmecg export corpus/ export/
  mmecg export corpus/ export/ --embeddings    so that an import with the same bundle need not compute them
"""


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the command's arguments."""
    parser = subparsers.add_parser(
        "export",
        help="write a corpus as Parquet and WFDB, which other programs read",
        description="Write the studies of a corpus as Parquet tables and their signals as WFDB records (a signal that "
        "those would round stands in the table as float32). Nothing is lost; `mmecg import` reads it back. A server "
        "may use the corpus meanwhile.",
        epilog=_EXAMPLES,
    )
    parser.add_argument("corpus", type=Path, metavar="CORPUS", help="folder of the corpus, or of a backup")
    parser.add_argument("export", type=Path, metavar="EXPORT", help="folder to write; must be new")
    parser.add_argument("--embeddings", action="store_true", help="write the embeddings too")
    parser.add_argument("--json", action="store_true", help="print the outcome as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write the export."""
    from mmecg_index.commands import entered
    from mmecg_index.transfer import export_corpus

    from mmecg.cli.output import operator, print_json

    with entered(args.corpus, "cli.export", operator()) as command:
        made = export_corpus(args.corpus, args.export, with_embeddings=args.embeddings)
        command.items = made.studies
    if args.json:
        print_json({"export": str(args.export), **asdict(made)})
    else:
        print(
            f"{args.export}: {made.studies} studies, {made.records} signals as WFDB records, "
            f"{made.float32_signals} as float32"
        )
    return 0
