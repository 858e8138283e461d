"""``mmecg review-labels``: where report and ECG disagree, most doubtful first, as a table and a page to read."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmecg.cli.inputs import positive_int

if TYPE_CHECKING:
    import polars as pl

    from mmecg.bundle import Bundle
    from mmecg.cli.inputs import StudySource
    from mmecg.ecg import Ecg
    from mmecg.evaluation.cohort import Encoded
    from mmecg.labels.assertion import LabelAssertion
    from mmecg.study import Study

_BATCH = 256
_DPI = 80
_EXAMPLES = """\
examples:
  mmecg review-labels --studies ptb-xl/ --fold 9 --out review/
  mmecg review-labels --studies studies.parquet --labels AFIB,LVH,PVC --top 50 --out review/

Most doubtful first; where all words of a report amount to what the ECG says (a habit of coding), last.
Written are queue.parquet and queue.csv (every disagreement) and review.html (the first of them, with the words of the
report marked beside the ECG; one file, which loads nothing). The page and the table hold report text and study ids.
"""


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the command's arguments."""
    parser = subparsers.add_parser(
        "review-labels",
        help="rank the labels on which report and ECG disagree, for review",
        description="Mine the reports, ask the ECGs, and rank the labels on which the two disagree.",
        epilog=_EXAMPLES,
    )
    parser.add_argument("--studies", type=Path, required=True, help="PTB-XL folder, or table of studies with ECGs")
    parser.add_argument("--fold", type=int, help="of a PTB-XL folder, the fold to read; default all")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results; made if missing")
    parser.add_argument("--labels", metavar="A,B,…", help="labels to compare; default the 20 most frequent")
    parser.add_argument("--top", type=positive_int, default=100, metavar="K", help="disagreements on the page (100)")
    parser.add_argument("--bundle", type=Path, help="the bundle that the weights belong to; default the shipped one")
    parser.add_argument("--json", action="store_true", help="print counts and paths as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Build the queue and write it."""
    from mmecg.bundle import load_bundle
    from mmecg.cli.output import check_parent, note, print_json, print_skipped
    from mmecg.labels.weights import load_agreement

    check_parent(args.out, "results folder")
    labels = _labels(args.labels)
    source = _open(args)
    bundle = load_bundle(args.bundle)
    load_agreement().reader.check(bundle.fingerprint)
    read = _read(source, bundle)
    queue = _queue(read, labels)
    args.out.mkdir(parents=True, exist_ok=True)
    queue.write_parquet(args.out / "queue.parquet")
    queue.write_csv(args.out / "queue.csv", float_precision=4)
    page = args.out / "review.html"
    page.write_text(_page(queue.head(args.top), read, _open(args)), encoding="utf-8")
    skipped = source.report.failures
    if args.json:
        counts = {"studies": len(read.study_ids), "disagreements": queue.height, "page": str(page)}
        print_json({**counts, "skipped": skipped.to_dicts()})
    else:
        if not skipped.is_empty():
            print_skipped(skipped)
        note(f"{queue.height} disagreements in {len(read.study_ids)} studies; open {page}")
    return 0 if skipped.is_empty() else 1


@dataclass(frozen=True)
class _Read:
    """What was read, without signals."""

    study_ids: list[str]
    texts: list[str]
    reports: list[tuple[LabelAssertion, ...]]
    encoded: Encoded


def _open(args: argparse.Namespace) -> StudySource:
    from mmecg.cli.sources import open_source
    from mmecg.datasets.ptb_xl import read_ptb_xl
    from mmecg.errors import InvalidInputError

    if args.fold is None:
        return open_source(args.studies)
    if not (args.studies / "ptbxl_database.csv").is_file():
        raise InvalidInputError(f"--fold does not apply to {args.studies}, expected a PTB-XL folder; leave it out")
    return read_ptb_xl(args.studies, folds=[args.fold])


def _labels(text: str | None) -> tuple[str, ...]:
    from mmecg.errors import InvalidInputError
    from mmecg.evaluation.label_data import LABELS_20
    from mmecg.labels.weights import load_agreement

    if text is None:
        return LABELS_20
    known = load_agreement().reader.labels
    chosen = tuple(name.strip() for name in text.split(","))
    if unknown := [name for name in chosen if name not in known]:
        raise InvalidInputError(f"label {unknown[0]!r} is unknown, expected some of {', '.join(known)}", field="labels")
    return chosen


def _read(source: StudySource, bundle: Bundle) -> _Read:
    from mmecg.cli.output import progress
    from mmecg.errors import InvalidInputError
    from mmecg.evaluation.cohort import concatenate, encode_ecgs
    from mmecg.labels.mining import LabelMiner

    miner = LabelMiner()
    ids, texts, reports, parts = [], [], [], []
    with progress("reading studies", len(source)) as advance:
        for batch in _batches(source):
            ecgs = [study.ecg for study in batch if study.ecg is not None]
            raws = [study.report.raw for study in batch if study.report is not None]
            ids += [study.study_id for study in batch]
            texts += raws
            reports += [miner.mine(raw) for raw in raws]
            parts.append(encode_ecgs(bundle.encoder, ecgs, {}))
            advance(len(batch))
    if not parts:
        raise InvalidInputError("no study has both a report and an ECG, expected some; give studies with both")
    return _Read(ids, texts, reports, concatenate(parts))


def _batches(source: StudySource) -> Iterator[list[Study]]:
    both = _with_both(source)
    while batch := list(islice(both, _BATCH)):
        yield batch


def _with_both(source: StudySource) -> Iterator[Study]:
    """Yield the studies that have both a report and an ECG."""
    return (study for study in source if study.ecg is not None and study.report is not None)


def _queue(read: _Read, labels: Sequence[str]) -> pl.DataFrame:
    from mmecg.labels.evidence import mentioned
    from mmecg.labels.logistic import expit
    from mmecg.labels.review import disagreement_queue
    from mmecg.labels.weights import load_agreement, load_text_evidence

    evidence, agreement = load_text_evidence(), load_agreement()
    columns = [evidence.labels.index(label) for label in labels]
    text = evidence.log_odds(read.reports)
    words = text >= evidence.thresholds
    channels = agreement.reader.scores(read.encoded.features, read.encoded.embedding)
    ecg = agreement.ecg.log_odds(channels)
    both = agreement.text_ecg.log_odds({"text": text, **channels})
    return disagreement_queue(
        read.study_ids,
        labels,
        text=mentioned(read.reports, labels),
        words=words[:, columns],
        ecg=(ecg >= agreement.ecg.thresholds)[:, columns],
        text_probability=expit(text[:, columns]),
        ecg_probability=expit(ecg[:, columns]),
        probability=expit(both[:, columns]),
    )


def _page(shown: pl.DataFrame, read: _Read, source: StudySource) -> str:
    from mmecg.labels.review import Case, render_page
    from mmecg.labels.vocabulary import load_vocabulary

    wanted = set(shown["row"].to_list())  # a study id may occur twice
    pictures = {row: _draw(study.ecg) for row, study in enumerate(_with_both(source)) if row in wanted and study.ecg}
    cases = [
        Case(entry, read.texts[entry["row"]], read.reports[entry["row"]], pictures[entry["row"]])
        for entry in shown.iter_rows(named=True)
    ]
    names = {finding.id: finding.name for finding in load_vocabulary().findings}
    return render_page(cases, title="Where report and ECG disagree", names=names)


def _draw(ecg: Ecg) -> bytes:
    from mmecg.plotting import ecg_figure, png_bytes

    return png_bytes(ecg_figure(ecg), dpi=_DPI)
