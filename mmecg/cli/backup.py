"""``mmecg backup``: copy a corpus while it is in use."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

_EXAMPLES = """\
examples:
  mmecg backup corpus/ backups/2026-03-01/
  mmecg backup corpus/ backups/2026-03-01/ --no-indexes    smaller; a restored corpus builds its indexes itself
"""


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the command's arguments."""
    parser = subparsers.add_parser(
        "backup",
        help="copy a corpus while it is in use",
        description="Write a consistent copy of a corpus, of one moment, also while a server serves it and writes to "
        "it. The copy appears under its name only when it is whole and on the disk. Check it with `mmecg verify`.",
        epilog=_EXAMPLES,
    )
    parser.add_argument("corpus", type=Path, metavar="CORPUS", help="folder of the corpus")
    parser.add_argument("backup", type=Path, metavar="BACKUP", help="folder to write; must be new")
    parser.add_argument("--no-indexes", action="store_true", help="leave out the index snapshots")
    parser.add_argument("--json", action="store_true", help="print the outcome as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write the backup."""
    from mmecg_index.backup import back_up
    from mmecg_index.commands import entered

    from mmecg.cli.output import operator, print_json

    with entered(args.corpus, "cli.backup", operator()) as command:
        made = back_up(args.corpus, args.backup, with_indexes=not args.no_indexes)
        command.items = made.studies
    if args.json:
        print_json({"backup": str(args.backup), **asdict(made)})
    else:
        print(
            f"{args.backup}: {made.studies} studies, {made.size_bytes / 1e6:.1f} MB, "
            f"complete up to sequence number {made.sequence}"
        )
    return 0
