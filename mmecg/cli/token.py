"""``mmecg token``: make a bearer token for a caller of the server."""

from __future__ import annotations

import argparse
import json
import os
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from mmecg.errors import InvalidInputError

MAX_DAYS = 3650

_EXAMPLES = """\
examples:
  mmecg token new ward-3 --role reader --out principals.toml
  mmecg token new loader --role ingester --role reader --site north --days 30

The entry is added to FILE, the one that auth.principals of the server's configuration names, and the token is shown,
once. Without --out the entry goes to standard output and the token to standard error. The entry holds a SHA-256 of the
token and not the token itself; a running server reads the file again when it changes.
"""


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the command's arguments."""
    parser = subparsers.add_parser(
        "token",
        help="make a bearer token for a caller of the server",
        description="Make a bearer token, and the entry of the server's file of principals that accepts it.",
        epilog=_EXAMPLES,
    )
    parser.add_argument("action", choices=["new"], help="new: make one")
    parser.add_argument("name", help="who will use it; the audit trail shows it")
    parser.add_argument(
        "--role",
        action="append",
        required=True,
        choices=("reader", "ingester", "predictor", "admin"),
        help="what it may do; give it once or more",
    )
    parser.add_argument("--days", type=float, default=365.0, help=f"days until it expires, up to {MAX_DAYS} (365)")
    parser.add_argument("--site", action="append", help="only studies of this site; give it once or more")
    parser.add_argument("--subject", action="append", help="only studies of this subject; give it once or more")
    parser.add_argument("--out", type=Path, metavar="FILE", help="file of principals to add the entry to")
    parser.add_argument("--json", action="store_true", help="print token and entry as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the entry, and the token beside it."""
    from mmecg_server.principals import new_token

    if not 0 < args.days <= MAX_DAYS:
        raise InvalidInputError(f"--days is {args.days:g}, expected more than 0 and up to {MAX_DAYS}", field="days")
    expires = datetime.now(UTC) + timedelta(days=args.days)
    token, entry = new_token(args.name, args.role, expires=expires, sites=args.site, subjects=args.subject)
    if args.out is not None:
        descriptor = os.open(args.out, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        with os.fdopen(descriptor, "a", encoding="utf-8") as file:
            file.write(f"\n{entry}")
    if args.json:
        print(json.dumps({"name": args.name, "token": token, "entry": entry}))
    elif args.out is not None:
        print(token)
    else:
        print(entry, flush=True)
        print(token, file=sys.stderr)
    return 0
