"""``mmecg erase-subject``: erase subjects from a corpus for good, and look for what is left."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

_EXAMPLES = """\
examples:
  mmecg erase-subject corpus/ 4711
  mmecg erase-subject corpus/ 4711 --check                                     only look for what is left
  mmecg erase-subject corpus/ 4711 --check --known-from backups/2026-03-01/    of what an older backup knows
"""


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the command's arguments."""
    parser = subparsers.add_parser(
        "erase-subject",
        help="erase subjects from a corpus for good, and look for what is left",
        description="Erase all studies of subjects: rows, signals, vectors, index snapshots, log and free pages. Then "
        "read every byte of every file and look for their ids, texts, vectors and signals; the exit code is 1 if "
        "anything is found. Backups and exports are other copies: see `mmecg restore --apply-erasures`. A corpus that "
        "a server serves is erased from over gRPC (AdminService.EraseSubject); --check works beside a server.",
        epilog=_EXAMPLES,
    )
    parser.add_argument("corpus", type=Path, metavar="CORPUS", help="folder of the corpus")
    parser.add_argument("subjects", nargs="+", metavar="SUBJECT", help="subject id")
    parser.add_argument("--check", action="store_true", help="erase nothing, only look for what is left")
    parser.add_argument(
        "--known-from",
        type=Path,
        metavar="BACKUP",
        help="with --check: backup from before the erasure, which says what texts, vectors and signals to look for "
        "(default: ids only)",
    )
    parser.add_argument("--json", action="store_true", help="print the outcome as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Erase, or look."""
    from mmecg_index.corpus import Corpus
    from mmecg_index.erasure import Erasure, find_remains

    from mmecg.cli.output import note, operator, print_json
    from mmecg.errors import InvalidInputError

    if args.known_from is not None and not args.check:
        raise InvalidInputError("--known-from goes with --check; an erasure knows itself what to look for")
    if args.check:
        traces = tuple(find_remains(args.corpus, args.subjects, known_from=args.known_from))
        outcome = Erasure(0, -1, traces)
    else:
        with Corpus(args.corpus.absolute()) as corpus:
            outcome = corpus.eraser.erase(args.subjects, check=True, principal=operator())
        traces = outcome.traces or ()
    if args.json:
        found = [asdict(trace) for trace in traces]
        print_json({"corpus": str(args.corpus), "studies": outcome.studies, "traces": found})
    else:
        for trace in traces:
            note(f"{trace.kind} in {trace.file} at byte {trace.offset}")
        erased = "" if args.check else f"{outcome.studies} studies erased; "
        print(f"{args.corpus}: {erased}{len(traces) or 'no'} traces left")
    return 1 if traces else 0
