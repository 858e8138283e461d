"""``mmecg audit``: who did what to which study."""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmecg_index.audit import AuditRecord
    from mmecg_index.reading import View

_PAGE = 1000
_COLUMNS = ("entry", "time", "principal", "method", "outcome", "request_id", "items", "subject_id", "study_id")
_EXAMPLES = """\
examples:
  mmecg audit corpus/ --subject 4711
  mmecg audit corpus/ --principal ward-3 --since 2026-03-01 --json    JSON Lines
  mmecg audit corpus/ --csv
"""


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the command's arguments."""
    parser = subparsers.add_parser(
        "audit",
        help="show who did what to which study",
        description="Print the audit trail of a corpus, oldest first, also while a server serves it. Subjects and "
        "studies that are no longer in the corpus have no name; their digests stay the same. `mmecg verify` checks "
        "the seals.",
        epilog=_EXAMPLES,
    )
    parser.add_argument("corpus", type=Path, metavar="CORPUS", help="folder of the corpus, or of a backup")
    parser.add_argument("--subject", metavar="ID", help="only what touched this subject")
    parser.add_argument("--principal", metavar="NAME", help="only what this principal did")
    parser.add_argument("--request", metavar="ID", help="only what belongs to this request id")
    parser.add_argument(
        "--since", type=_time, metavar="TIME", help="only of this time or later (ISO 8601; without a zone UTC)"
    )
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument("--json", action="store_true", help="print JSON Lines, one entry a line")
    shape.add_argument("--csv", action="store_true", help="print CSV, one line a study that was touched")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the entries that were asked for."""
    from mmecg_index.reading import reading

    from mmecg.cli.output import print_table

    with reading(args.corpus) as view:
        records = _records(view, args)
        if args.json:
            for record in records:
                print(json.dumps({**asdict(record), "time": record.time.isoformat()}, ensure_ascii=False))
        elif args.csv:
            writer = csv.writer(sys.stdout)
            writer.writerow([*_COLUMNS, "subject_digest", "study_digest"])
            for record in records:
                writer.writerows(_lines(record))
        else:
            rows = [line[: len(_COLUMNS)] for record in records for line in _lines(record)]
            print_table(f"{args.corpus}: audit trail", list(_COLUMNS), rows)
    return 0


def _records(view: View, args: argparse.Namespace) -> Iterator[AuditRecord]:
    """Yield the entries, page by page."""
    from mmecg_index import audit

    after = 0
    while page := audit.select(
        view.connection,
        view.secret,
        subject_id=args.subject,
        principal=args.principal,
        request_id=args.request,
        since=args.since,
        after=after,
        limit=_PAGE,
    ):
        yield from page
        after = page[-1].entry


def _lines(record: AuditRecord) -> Iterator[list[str]]:
    """Yield a line a study that was touched, or one without."""
    head = [str(record.entry), record.time.isoformat(), record.principal, record.method, record.outcome]
    head += [record.request_id, str(record.items)]
    for each in record.touched:
        yield [*head, each.subject_id, each.study_id, each.subject_digest, each.study_digest]
    if not record.touched:
        yield [*head, "", "", "", ""]


def _time(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no time, expected ISO 8601 such as 2026-03-01T12:00") from None
