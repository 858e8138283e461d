"""``mmecg embed``: embeddings of recordings, texts or studies as a Parquet or NPZ file."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import polars as pl
    from numpy.typing import NDArray

    from mmecg.embedding import Encoder

    Row = tuple[str, str, NDArray[np.float32]]

_EXAMPLES = """\
examples:
  mmecg embed records/00001 records/00002 --out ecgs.parquet
  mmecg embed --text 'atrial fibrillation' --text 'sinus rhythm' --out texts.npz
  mmecg embed --studies ptb-xl/ --out ptb-xl.parquet        every modality of every study

The Parquet table has the columns id, modality, embedding (float32, 256, unit length) and fingerprint; the NPZ file
has the arrays of the same names. Compare embeddings of one fingerprint only; the dot product is the cosine.
"""
_BATCH = 64
_NOTED_RECORDS = 50


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the command's arguments."""
    from mmecg.cli.inputs import add_ecg_arguments

    parser = subparsers.add_parser(
        "embed",
        help="write embeddings of recordings, texts or studies to a file",
        description="Embed WFDB records, texts or data sets. Records that cannot be read are skipped and listed; "
        "the exit code is 1 then.",
        epilog=_EXAMPLES,
    )
    parser.add_argument("records", type=Path, nargs="*", metavar="RECORD", help="WFDB record, or NumPy file")
    parser.add_argument("--text", action="append", default=[], help="text to embed; repeatable")
    parser.add_argument("--text-file", type=Path, action="append", default=[], metavar="FILE", help="UTF-8 text file")
    parser.add_argument("--studies", type=Path, metavar="DATA", help="what `mmecg build --data` takes")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help=".parquet or .npz file to write")
    parser.add_argument("--bundle", type=Path, help="model bundle; default the one that ships with mmecg")
    parser.add_argument("--json", action="store_true", help="print the outcome as JSON")
    add_ecg_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Embed and write; the file appears whole or not at all."""
    import polars as pl

    from mmecg.bundle import load_bundle
    from mmecg.cli.inputs import check_ecg_arguments
    from mmecg.cli.output import check_parent, note, print_json, print_skipped
    from mmecg.errors import InvalidInputError

    check_parent(args.out, "output")
    if args.out.suffix not in (".parquet", ".npz"):
        raise InvalidInputError(f"output {args.out} has suffix {args.out.suffix!r}, expected .parquet or .npz")
    if not (args.records or args.text or args.text_file or args.studies):
        raise InvalidInputError("nothing to embed, expected records, --text, --text-file or --studies")
    rate_only = args.leads is None and args.unit is None
    check_ecg_arguments(args, [*args.records, *([args.studies] if args.studies and rate_only else [])])
    failures: list[pl.DataFrame] = []
    quality: dict[str, list[dict[str, Any]]] = {}
    encoder = load_bundle(args.bundle).encoder
    rows = [
        *_embed_texts(args, encoder),
        *_embed_records(args, encoder, failures, quality),
        *_embed_studies(args, encoder, failures),
    ]
    skipped = pl.concat(failures)
    if not rows:
        why = f"the first reason: {skipped['reason'][0]}" if skipped.height else "there are no records"
        raise InvalidInputError(f"nothing could be embedded; {why}")
    _write(args.out, rows, encoder.fingerprint)
    _note_qualities(quality)
    if args.json:
        found = {"skipped": skipped.to_dicts(), "quality": quality}
        print_json({"out": str(args.out), "embeddings": len(rows), **found})
    else:
        if not skipped.is_empty():
            print_skipped(skipped)
        note(f"wrote {len(rows)} embeddings to {args.out}")
    return 0 if skipped.is_empty() else 1


def _embed_texts(args: argparse.Namespace, encoder: Encoder) -> Iterator[Row]:
    from mmecg.cli.inputs import read_text_file
    from mmecg.report import check_text

    named = [(f"text {number}", check_text(text)) for number, text in enumerate(args.text, 1)]
    named += [(str(path), read_text_file(path)) for path in args.text_file]
    for batch in _batches(named):
        yield from _encode("text", batch, encoder.encode_text)


def _note_qualities(quality: Mapping[str, Sequence[dict[str, Any]]]) -> None:
    from mmecg.cli.output import note, note_quality

    for name, findings in islice(quality.items(), _NOTED_RECORDS):
        note_quality(name, findings)
    if len(quality) > _NOTED_RECORDS:
        note(f"quality findings of {len(quality) - _NOTED_RECORDS} more records; --json lists them all")


def _embed_records(
    args: argparse.Namespace,
    encoder: Encoder,
    failures: list[pl.DataFrame],
    quality: dict[str, list[dict[str, Any]]],
) -> Iterator[Row]:
    from mmecg.cli.inputs import read_recording
    from mmecg.cli.output import progress, quality_as_json
    from mmecg.datasets.bulk import BulkRead

    bulk = BulkRead(partial(read_recording, args=args), args.records)
    with progress("embedding records", len(args.records)) as advance:
        for batch in _batches((str(path), ecg) for path, ecg in bulk):
            yield from _encode("ecg", batch, encoder.encode_ecg)
            quality.update({name: findings for name, ecg in batch if (findings := quality_as_json(ecg))})
            advance(len(batch))
    failures.append(bulk.report.failures)


def _embed_studies(args: argparse.Namespace, encoder: Encoder, failures: list[pl.DataFrame]) -> Iterator[Row]:
    from mmecg.cli.inputs import is_numpy
    from mmecg.cli.output import progress
    from mmecg.cli.sources import open_source
    from mmecg.retriever import study_text

    if args.studies is None:
        return
    source = open_source(args.studies, sampling_rate_hz=args.sampling_rate_hz if is_numpy(args.studies) else None)
    with progress("embedding studies", len(source)) as advance:
        for batch in _batches(source):
            ecgs = [(study.study_id, study.ecg) for study in batch if study.ecg is not None]
            texts = [(study.study_id, study_text(study)) for study in batch if study_text(study)]
            vitals = [(study.study_id, study.vitals) for study in batch if not study.vitals.is_empty()]
            yield from _encode("ecg", ecgs, encoder.encode_ecg)
            yield from _encode("text", texts, encoder.encode_text)
            yield from _encode("vitals", vitals, encoder.encode_vitals)
            advance(len(batch))
    failures.append(source.report.failures)


def _batches(items: Iterable[Any]) -> Iterator[list[Any]]:
    waiting = iter(items)
    while batch := list(islice(waiting, _BATCH)):
        yield batch


def _encode(
    modality: str, named: list[tuple[str, Any]], encode: Callable[[list[Any]], NDArray[np.float32]]
) -> Iterator[Row]:
    if named:
        for (name, _), vector in zip(named, encode([item for _, item in named]), strict=True):
            yield name, modality, vector


def _write(path: Path, rows: list[Row], fingerprint: str) -> None:
    import numpy as np
    import polars as pl

    ids, modalities = [row[0] for row in rows], [row[1] for row in rows]
    embedding = np.stack([row[2] for row in rows])
    partial = path.with_name(f".{path.name}.partial")
    try:
        if path.suffix == ".npz":
            with partial.open("wb") as file:
                np.savez(file, id=ids, modality=modalities, embedding=embedding, fingerprint=fingerprint)
        else:
            table = pl.DataFrame({"id": ids, "modality": modalities, "embedding": embedding})
            table.with_columns(pl.lit(fingerprint).alias("fingerprint")).write_parquet(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
