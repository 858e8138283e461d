"""``mmecg verify``: read a corpus or a backup as a whole and say what is damaged."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

_EXAMPLES = """\
examples:
  mmecg verify corpus/
  mmecg verify backups/2026-03-01/ --json
"""


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the command's arguments."""
    parser = subparsers.add_parser(
        "verify",
        help="read a corpus or a backup as a whole and say what is damaged",
        description="Check the database's structure, every study, signal and embedding, the index snapshots against "
        "the store, and the audit trail; of a backup also every byte of every file. A server may use the corpus "
        "meanwhile. The exit code is 1 if anything is damaged.",
        epilog=_EXAMPLES,
    )
    parser.add_argument("path", type=Path, metavar="PATH", help="folder of a corpus or of a backup")
    parser.add_argument("--json", action="store_true", help="print what was found as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print what was read, and what is damaged."""
    from mmecg_index.verify import verify

    from mmecg.cli.output import note, print_json, print_table

    found = verify(args.path)
    if args.json:
        print_json({"path": str(args.path), "ok": found.ok, **asdict(found)})
    else:
        counts = {name: value for name, value in asdict(found).items() if name != "findings"}
        print_table(f"{args.path}: read", ["what", "value"], [[name, str(value)] for name, value in counts.items()])
        for finding in found.findings:
            note(finding)
        print("nothing is damaged" if found.ok else f"damaged: {len(found.findings)} findings; restore a backup")
    return 0 if found.ok else 1
