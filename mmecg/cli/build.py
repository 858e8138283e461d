"""``mmecg build``: embed studies and store them as a corpus."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmecg_index.corpus import Corpus

    from mmecg.datasets.bulk import BulkReport
    from mmecg.search import CorpusStats
    from mmecg.study import Study

_EXAMPLES = """\
examples:
  mmecg build --data ptb-xl/ --out corpus/             a PTB-XL folder
  mmecg build --data studies.parquet --out corpus/     a table of studies
  mmecg build --data ecgs.npz --out corpus/            NumPy recordings; ids are study_id, or the file's name and row
  mmecg build --data records/ --out corpus/ --append   more WFDB records into the same corpus
  mmecg build --encoder encoders/ecg-fm/ --data ptb-xl/ --sampling-rate-hz 500 --out corpus/
                                                       with an imported encoder; give it as --bundle to search and serve
"""


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the command's arguments."""
    from mmecg.cli.sources import KINDS

    parser = subparsers.add_parser(
        "build",
        help="embed studies and store them as a corpus",
        description="Read studies, embed their ECG, text and vitals, and store both as a corpus that search and serve "
        "open. Records that cannot be read are skipped and listed; the exit code is 1 then.",
        epilog=_EXAMPLES,
    )
    parser.add_argument(
        "--data",
        type=Path,
        required=True,
        help=KINDS,
    )
    parser.add_argument("--out", type=Path, required=True, metavar="CORPUS", help="folder to write; must be new")
    parser.add_argument("--append", action="store_true", help="add to the corpus that is there; replaces equal ids")
    parser.add_argument(
        "--bundle",
        "--encoder",
        type=Path,
        metavar="BUNDLE",
        help="model bundle; default the one that ships with mmecg. Or a directory of import-encoder, which embeds ECGs "
        "only, unless mmecg align made a bundle of it",
    )
    parser.add_argument(
        "--sampling-rate-hz",
        type=float,
        metavar="HZ",
        help="which copy of PTB-XL to read, 100 or 500 (100); or samples per second of a NumPy file that does not say",
    )
    parser.add_argument(
        "--factory", metavar="NAME", help="FAISS factory string, for example HNSW32; default by the size of the corpus"
    )
    parser.add_argument("--json", action="store_true", help="print the outcome as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Build a corpus, or add to one."""
    from mmecg_index.corpus import Corpus

    from mmecg.bundle import load_bundle
    from mmecg.cli.output import check_new, progress
    from mmecg.cli.sources import open_source
    from mmecg.errors import InvalidInputError
    from mmecg.retriever import Retriever

    if not args.append:
        check_new(args.out, "corpus")
    source = open_source(args.data, sampling_rate_hz=args.sampling_rate_hz)
    encoder = load_bundle(args.bundle).encoder
    with nullcontext(args.out) if args.append else _new_folder(args.out) as folder:
        enter = Corpus.open if args.append else Corpus.create
        with closing(enter(folder, encoder.fingerprint, factory=args.factory)) as corpus:
            with progress("embedding studies", len(source)) as advance:
                Retriever(encoder, corpus).ingest(_counted(source, advance))
            _compact(corpus)
            stats, quality = corpus.stats(), _count_quality(corpus)
        if source.report.read == 0:
            _print_outcome(args, source.report, stats, quality)
            raise InvalidInputError(
                f"none of the {len(source)} records of {args.data} could be read; nothing was built"
            )
    _print_outcome(args, source.report, stats, quality)
    return 0 if source.report.ok else 1


@contextmanager
def _new_folder(path: Path) -> Iterator[Path]:
    """Yield a folder beside ``path`` that takes its place at the end, or vanishes after an error."""
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        yield partial
        partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _counted(studies: Iterable[Study], advance: Callable[[int], None]) -> Iterator[Study]:
    for study in studies:
        yield study
        advance(1)


def _compact(corpus: Corpus) -> None:
    """Build the approximate indexes now, so that who opens the corpus need not; too few vectors leave it exact."""
    from mmecg.cli.output import note
    from mmecg.errors import ConfigError

    try:
        corpus.compact()
    except ConfigError as error:
        note(f"the corpus is searched exactly: {error}")


def _count_quality(corpus: Corpus) -> dict[str, int]:
    """Return how many studies of the corpus have each kind of quality finding."""
    from mmecg.quality import QUALITY_KINDS

    found = corpus.metadata()["quality"].explode()
    counts = {kind: int((found == kind).sum()) for kind in QUALITY_KINDS}
    return {kind: count for kind, count in counts.items() if count}


def _print_outcome(
    args: argparse.Namespace, report: BulkReport, stats: CorpusStats, quality: Mapping[str, int]
) -> None:
    from mmecg.cli.output import print_json, print_skipped, print_table

    if args.json:
        skipped = report.failures.to_dicts()
        print_json(
            {"corpus": str(args.out), "read": report.read, "skipped": skipped, "quality": quality, **asdict(stats)}
        )
        return
    if not report.ok:
        print_skipped(report.failures)
    counts = [[name, str(count)] for name, count in stats.embeddings.items()]
    rows = [["studies", str(stats.studies)], ["subjects", str(stats.subjects)], *counts]
    rows += [[f"quality finding {kind}", str(count)] for kind, count in quality.items()]
    print_table(f"{args.out}: {report.read} records read", ["holds", "count>"], rows)
