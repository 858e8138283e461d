"""``mmecg restore``: make a corpus of a backup."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

_EXAMPLES = """\
examples:
  mmecg restore backups/2026-03-01/ corpus-2/
  mmecg restore backups/2026-03-01/ corpus-2/ --apply-erasures corpus/    and erase who was erased from it since
"""


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the command's arguments."""
    parser = subparsers.add_parser(
        "restore",
        help="make a corpus of a backup",
        description="Read a backup as a whole, and make a new corpus of it if nothing in it is damaged. Who was erased "
        "after the backup was made is in it again: erase them anew, or name the corpus they were erased from.",
        epilog=_EXAMPLES,
    )
    parser.add_argument("backup", type=Path, metavar="BACKUP", help="folder of the backup")
    parser.add_argument("corpus", type=Path, metavar="CORPUS", help="folder to write; must be new")
    parser.add_argument(
        "--apply-erasures",
        type=Path,
        metavar="FROM",
        help="corpus that the backup was made of, or a later backup of it: erase whom it has erased since",
    )
    parser.add_argument("--json", action="store_true", help="print the outcome as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Make the corpus."""
    from mmecg_index.backup import restore
    from mmecg_index.commands import entered

    from mmecg.cli.output import note, operator, print_json

    with entered(args.corpus, "cli.restore", operator()) as command:
        made = restore(args.backup, args.corpus, erasures_from=args.apply_erasures)
        command.items = made.studies
    if args.apply_erasures is None:
        note("who was erased after this backup is in it again; see --apply-erasures and `mmecg erase-subject`")
    if args.json:
        print_json({"corpus": str(args.corpus), **asdict(made)})
    else:
        print(f"{args.corpus}: {made.studies} studies, sequence number {made.sequence}, {made.erased} erased anew")
    return 0
