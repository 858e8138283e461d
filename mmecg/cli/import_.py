"""``mmecg import``: read what ``mmecg export`` wrote into a corpus."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmecg_index.corpus import Corpus
    from mmecg_index.transfer import Export

    from mmecg.embedding import Encoder

_BATCH = 256
_EXAMPLES = """\
examples:
  mmecg import export/ corpus/                           a new corpus, or more studies for one that is there
  mmecg import export/ corpus/ --bundle other-bundle/    embedded anew
"""


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the command's arguments."""
    parser = subparsers.add_parser(
        "import",
        help="read what `mmecg export` wrote into a corpus",
        description="Store the studies of an export in a corpus. Embeddings that were exported are used if they are of "
        "the corpus's bundle; else the studies are embedded. An import that was interrupted is run again: what is "
        "there just so is not written a second time.",
        epilog=_EXAMPLES,
    )
    parser.add_argument("export", type=Path, metavar="EXPORT", help="folder that `mmecg export` wrote")
    parser.add_argument("corpus", type=Path, metavar="CORPUS", help="folder of the corpus; made if it is not there")
    parser.add_argument("--bundle", type=Path, help="model bundle; default the one that ships with mmecg")
    parser.add_argument("--json", action="store_true", help="print the outcome as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Store the studies."""
    from mmecg_index.calls import CallTrail
    from mmecg_index.commands import Command
    from mmecg_index.transfer import Export

    from mmecg.cli.output import operator, print_json, progress

    export = Export(args.export)
    corpus, encoder = _open(export, args)
    acting = CallTrail(corpus).acting(Command(operator(), "cli.import"))  # an entry in each transaction
    with closing(corpus), acting, progress("importing studies", len(export)) as advance:
        for count in _store(export, corpus, encoder):
            advance(count)
        stats = corpus.stats()
    if args.json:
        print_json({"corpus": str(args.corpus), "read": len(export), **asdict(stats)})
    else:
        print(f"{args.corpus}: {len(export)} studies read, {stats.studies} in the corpus")
    return 0


def _open(export: Export, args: argparse.Namespace) -> tuple[Corpus, Encoder | None]:
    """Return the corpus, and an encoder unless the export's embeddings fit."""
    from mmecg_index.corpus import Corpus
    from mmecg_index.reading import FILE, reading

    from mmecg.bundle import load_bundle

    path = args.corpus.absolute()
    there = (path / FILE).is_file()
    if args.bundle is None and export.fingerprint:
        if not there:
            return Corpus.create(path, export.fingerprint, dim=export.dim), None
        with reading(path) as view:
            fits = view.fingerprint == export.fingerprint
        if fits:
            return Corpus.open(path, export.fingerprint), None
    encoder = load_bundle(args.bundle).encoder
    return (Corpus.open if there else Corpus.create)(path, encoder.fingerprint), encoder


def _store(export: Export, corpus: Corpus, encoder: Encoder | None) -> Iterator[int]:
    """Store batch by batch, and yield how many studies each had."""
    from mmecg.retriever import Retriever

    waiting = iter(export)
    while batch := list(islice(waiting, _BATCH)):
        studies, embeddings = [study for study, _ in batch], [vectors for _, vectors in batch]
        if encoder is None:
            corpus.upsert(studies, embeddings)
        else:
            Retriever(encoder, corpus).ingest(studies)
        yield len(batch)
