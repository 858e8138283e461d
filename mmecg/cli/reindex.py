"""``mmecg reindex``: embed a corpus anew with another bundle."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmecg.administration import Reindexing

_EXAMPLES = """\
examples:
  mmecg reindex corpus/ --bundle bundles/next/    goes on where it was, if it was interrupted
  mmecg reindex corpus/ --status                  also beside a server
  mmecg reindex corpus/ --cancel                  give up, and delete what was made
"""


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the command's arguments."""
    parser = subparsers.add_parser(
        "reindex",
        help="embed a corpus anew with another bundle",
        description="Embed every study of a corpus with another bundle, beside the embeddings that it has, and switch "
        "it to the new ones in one step when they are complete; then delete the old ones. It may be interrupted at any "
        "time. A corpus that a server serves is given another bundle over gRPC (AdminService.Reindex).",
        epilog=_EXAMPLES,
    )
    parser.add_argument("corpus", type=Path, metavar="CORPUS", help="folder of the corpus")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--bundle", type=Path, metavar="DIR", help="model bundle")
    what.add_argument("--status", action="store_true", help="only say how far it is")
    what.add_argument("--cancel", action="store_true", help="give up, and delete what was made")
    parser.add_argument("--json", action="store_true", help="print the outcome as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Embed anew, give up, or say how far it is."""
    if args.bundle is not None:
        _reindex(args.corpus, args.bundle)
    elif args.cancel:
        _cancel(args.corpus)
    state = _read_state(args.corpus)
    if args.json:
        from mmecg.cli.output import print_json

        print_json({"corpus": str(args.corpus), **asdict(state)})
    elif state.done:
        print(f"{args.corpus}: {state.studies} studies, all with embeddings of bundle {state.fingerprint[:12]}")
    else:
        print(
            f"{args.corpus}: {state.studies} of {state.total} studies have embeddings of bundle "
            f"{state.fingerprint[:12]}; another one is searched until all have"
        )
    return 0


def _reindex(path: Path, bundle: Path) -> None:
    from mmecg_index.commands import entered
    from mmecg_index.corpus import Corpus
    from mmecg_index.reembed import Reembedding

    from mmecg.bundle import load_bundle
    from mmecg.cli.output import operator, progress
    from mmecg.ingester import INGEST_BATCH

    encoder = load_bundle(bundle).encoder
    with (
        entered(path, "cli.reindex", operator()) as command,
        Corpus(path.absolute()) as corpus,
        progress("embedding studies", corpus.count()) as advance,
    ):
        Reembedding(corpus, encoder, batch=INGEST_BATCH, rest=0, on_batch=advance).run()
        command.items = corpus.count()


def _cancel(path: Path) -> None:
    from mmecg_index.commands import entered
    from mmecg_index.corpus import Corpus
    from mmecg_index.progress import abandon

    from mmecg.cli.output import operator

    with entered(path, "cli.cancel_reindex", operator()), Corpus(path.absolute()) as corpus:
        abandon(corpus)


def _read_state(path: Path) -> Reindexing:
    from mmecg_index.progress import read_progress
    from mmecg_index.reading import reading

    from mmecg.administration import Reindexing

    with reading(path) as view:
        studies = view.count("studies")
        return read_progress(view.connection) or Reindexing(view.fingerprint, True, studies, studies)
