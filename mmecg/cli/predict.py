"""``mmecg predict``: calibrated probabilities for an ECG, the subject's history and similar studies as evidence."""

from __future__ import annotations

import argparse
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mmecg.bundle import Bundle
    from mmecg.prediction.predictor import Predictor
    from mmecg.prediction.query import PredictionQuery
    from mmecg.prediction.result import Prediction, PredictionOptions, Saliency
    from mmecg.study import Study

_EXAMPLES = """\
examples:
  mmecg predict --ecg records/00001                               this ECG alone; nobody's history
  mmecg predict --corpus corpus/ --ecg records/00001 --subject-id 4711 --as-of 1990-05-01T12:00
  mmecg predict --corpus corpus/ --study-id 17 --labels superclass,AFIB,snomed:164889003 --level 0.95
  mmecg predict --corpus corpus/ --study-id 17 --plot now.png --explain AFIB
  mmecg predict --ecg r1 --note "known AF, on amiodarone"         what is stated counts like an earlier study
  mmecg predict --ecg r1 --prevalence AFIB=0.2,SR=0.7 --json       shifted to a site

Earlier studies are those of the corpus strictly before --as-of. Research software, not a medical device.
"""
_PLOT_DPI = 110


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the command's arguments."""
    from mmecg.cli.inputs import add_ecg_arguments, positive_int
    from mmecg.prediction.result import METHODS

    parser = subparsers.add_parser(
        "predict",
        help="predict labels of an ECG, knowing the patient's earlier ones",
        description="Predict calibrated probabilities of an ECG's labels from the ECG, its subject's earlier studies "
        "and similar studies of others, with intervals, conformal sets, changes and the evidence.",
        epilog=_EXAMPLES,
    )
    parser.add_argument("--corpus", type=Path, help="corpus folder; default the demo corpus")
    study = parser.add_mutually_exclusive_group(required=True)
    study.add_argument("--ecg", type=Path, metavar="RECORD", help="WFDB record, or NumPy file")
    study.add_argument("--study-id", metavar="ID", help="a study of the corpus, whose labels are not read")
    parser.add_argument("--subject", "--subject-id", dest="subject_id", metavar="ID", help="the patient")
    parser.add_argument("--as-of", metavar="TIME", help="ISO 8601; only earlier studies count (time of the study)")
    parser.add_argument("--vitals", metavar="NAME=VALUE,…", help="age, sex, height and weight count")
    parser.add_argument("--note", default="", metavar="TEXT", help="history or indication, written before the ECG")
    parser.add_argument("--labels", metavar="NAMES", help="all, superclass, statements, SYSTEM:CODE (all)")
    parser.add_argument("--level", type=float, default=0.9, help="coverage of the conformal sets, 0.5 to 0.99 (0.9)")
    parser.add_argument(
        "--abstain-share", type=float, default=0.1, metavar="S", help="abstain on the least certain share (0.1)"
    )
    parser.add_argument("--prevalence", metavar="NAME=P,…", help="prevalence at your site")
    parser.add_argument("--max-history", type=positive_int, default=16, metavar="N", help="earlier studies used (16)")
    parser.add_argument("--no-history", action="store_true", help="do not look at earlier studies and notes")
    parser.add_argument("--no-cohort", action="store_true", help="do not ask similar studies of others")
    parser.add_argument(
        "--cohort-before-as-of", action="store_true", help="ask only studies of others from before --as-of"
    )
    parser.add_argument("--explain", metavar="NAMES", help="labels to say where in the ECG they come from; 8 at most")
    parser.add_argument("--method", choices=METHODS, default=METHODS[0], help=f"how to explain ({METHODS[0]})")
    parser.add_argument("--bundle", type=Path, help="model bundle; default the one that ships")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the ECG over the earlier one")
    parser.add_argument("--json", action="store_true", help="print the prediction as JSON")
    add_ecg_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Predict, print, and draw."""
    from mmecg.bundle import load_bundle
    from mmecg.cli.inputs import check_ecg_arguments, open_retriever_of, parse_vitals, read_recording
    from mmecg.cli.output import check_png, note_quality, print_json, quality_as_json
    from mmecg.cli.prediction_output import prediction_as_json, print_prediction
    from mmecg.prediction.predictor import Predictor
    from mmecg.prediction.query import PredictionQuery

    check_ecg_arguments(args, [args.ecg] if args.ecg else [])
    if args.plot is not None:
        check_png(args.plot)
    options, as_of = _options(args), _parse_time(args.as_of) if args.as_of else None
    recording = read_recording(args.ecg, args) if args.ecg else None
    vitals = parse_vitals(args.vitals) if args.vitals else None
    bundle = load_bundle(args.bundle)
    with open_retriever_of(bundle, args.corpus) as retriever:
        predictor = Predictor(bundle, retriever.corpus)
        study = recording or retriever.corpus.get([args.study_id])[0]
        query = PredictionQuery(
            study=study, subject_id=args.subject_id, as_of=as_of, vitals=vitals, note=args.note, options=options
        )
        found = predictor.predict_many([query])[0]
        maps = _explain(args, predictor, query, found)
        before = _earlier_ecg(predictor, found) if args.plot is not None else None
    quality = quality_as_json(query.ecg) if query.ecg else []
    note_quality("the ECG", quality)
    if args.json:
        print_json(prediction_as_json(found, maps) | {"quality": quality})
    else:
        print_prediction(found, maps, everything=args.labels is not None)
    if args.plot is not None:
        _plot(args.plot, query, found, maps, before)
    return 0


def _options(args: argparse.Namespace) -> PredictionOptions:
    from mmecg.cli.inputs import parse_pairs
    from mmecg.errors import QueryError
    from mmecg.prediction.result import PredictionOptions

    prevalence = {}
    for name, value in parse_pairs(args.prevalence or "", "prevalence").items():
        try:
            prevalence[name] = float(value)
        except ValueError:
            raise QueryError(f"prevalence of {name[:40]} is not a number", field="options.prevalence") from None
    return PredictionOptions(
        labels=None if args.labels is None else _names(args.labels),
        level=args.level,
        abstain_share=args.abstain_share,
        prevalence=prevalence,
        use_history=not args.no_history,
        use_cohort=not args.no_cohort,
        cohort_before_as_of=args.cohort_before_as_of,
        max_history=args.max_history,
    )


def _parse_time(text: str) -> datetime:
    from mmecg.errors import QueryError

    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise QueryError(
            f"as-of is {text[:40]!r}, expected ISO 8601 such as 1990-05-01 or 1990-05-01T12:00:00+02:00", field="as_of"
        ) from None


def _names(text: str) -> tuple[str, ...]:
    return tuple(filter(None, (part.strip() for part in text.split(","))))


def _explain(
    args: argparse.Namespace, predictor: Predictor, query: PredictionQuery, found: Prediction
) -> list[Saliency]:
    """Return the saliency of the labels to explain; for a plot without any, that of the label that says most."""
    from mmecg.errors import QueryError
    from mmecg.prediction.explain import explain

    if args.explain and query.ecg is None:
        raise QueryError("study has no ECG, expected one to explain; leave --explain out", field="explain")
    labels = _names(args.explain) if args.explain else ((most_telling(found),) if args.plot is not None else ())
    if not labels or query.ecg is None:
        return []

    bundle: Bundle = predictor.bundle
    head, names = predictor.heads.single, predictor.heads.labels
    return explain(bundle.encoder, head, names, query.ecg, labels, method=args.method)


def most_telling(found: Prediction) -> str:
    """Return what is new and not normal, else the likeliest label that is not normal, else the likeliest."""
    from mmecg.prediction.result import SUPERCLASS_PREFIX

    dull = ("NORM", "SR", SUPERCLASS_PREFIX + "NORM")
    new = [one.label for one in found.changes if one.change == "new" and one.label not in dull]
    if new:
        return new[0]
    likely = sorted(found.labels, key=lambda one: -one.probability if one.probability >= 0 else 1.0)
    told = [one.label for one in likely if one.decision == "present" and one.label not in dull]
    return told[0] if told else likely[0].label


def _earlier_ecg(predictor: Predictor, found: Prediction) -> Study | None:
    """Return the latest earlier study of the corpus that has an ECG."""
    from mmecg.retriever import get_present

    if predictor.corpus is None:
        return None
    for prior in found.priors:
        for study in get_present(predictor.corpus, [prior.study_id], with_signal=True):
            if study.ecg is not None:
                return study
    return None


def _plot(
    path: Path, query: PredictionQuery, found: Prediction, maps: Sequence[Saliency], before: Study | None
) -> None:
    from mmecg.cli.output import note
    from mmecg.cli.prediction_output import panels
    from mmecg.plotting import save_png, search_figure

    shown = panels(query, found, maps, before)
    footer = "Research software, not a medical device. True to scale at the PNG's resolution: 25 mm/s, 10 mm/mV."
    title = "Prediction, over the earlier ECG" if before is not None else "Prediction"
    save_png(search_figure(shown, title=title, footer=footer), path, dpi=_PLOT_DPI)
    note(f"wrote {path}")
