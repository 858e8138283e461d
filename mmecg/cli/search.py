"""``mmecg search``: find studies by ECG, text, vitals, a study, or a mix."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmecg.embedding import MODALITIES

if TYPE_CHECKING:
    from mmecg.retriever import Query
    from mmecg.search import Hit, SearchResult
    from mmecg.study import Study

_EXAMPLES = """\
examples:
  mmecg search --text 'atrial fibrillation'                       in the demo corpus
  mmecg search --corpus corpus/ --ecg records/00001 --top-k 5 --plot hits.png
  mmecg search --corpus corpus/ --study-id 4711 --target text     reports that fit a study
  mmecg search --ecg r1 --text 'left bundle branch block' --weights ecg=1,text=0.5
  mmecg search --vitals age_years=63,sex=female --filter labels_any=AFIB,AFLT --filter age_min_years=50
  mmecg search --ecg records/00001 --subject-id 4711              without the patient's own studies
  mmecg search --server localhost:50051 --ecg records/00001 --json

filter fields:
  {fields}
"""
_PLOT_DPI = 110


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the command's arguments."""
    from mmecg.cli.inputs import add_ecg_arguments, filter_fields

    parser = subparsers.add_parser(
        "search",
        help="find similar studies by ECG, text, vitals, or a mix",
        description="Rank the studies of a corpus by their similarity to a query of any mix of modalities.",
        epilog=_EXAMPLES.format(fields="\n  ".join(filter_fields())),
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--corpus", type=Path, help="corpus folder; default the demo corpus")
    where.add_argument("--server", metavar="HOST:PORT", help="ask a running server, which has its own bundle")
    parser.add_argument("--timeout-s", type=float, default=30.0, metavar="S", help="time given to a server (30)")
    parser.add_argument("--token-file", type=Path, metavar="FILE", help="file with the server's token, and only that")
    parser.add_argument("--tls-ca", type=Path, metavar="FILE.pem", help="authority of the server's certificate")
    query = parser.add_argument_group("query (at least one)")
    query.add_argument("--ecg", type=Path, metavar="RECORD", help="WFDB record, or NumPy file")
    text = query.add_mutually_exclusive_group()
    text.add_argument("--text", help="report or phrase, English, German or Swedish")
    text.add_argument("--text-file", type=Path, metavar="FILE", help="the same from a UTF-8 file")
    query.add_argument("--vitals", metavar="NAME=VALUE,…", help="for example age_years=63,sex=female")
    query.add_argument("--study-id", metavar="ID", help="a study of the corpus; its patient is left out of the hits")
    query.add_argument("--subject-id", metavar="ID", help="the query's patient, who is left out of the hits")
    query.add_argument("--weights", metavar="NAME=W,…", help="weights of ecg, text, vitals, study (1 each)")
    parser.add_argument("--target", choices=MODALITIES, default="ecg", help="what hits are compared by (ecg)")
    parser.add_argument("--top-k", type=int, default=10, metavar="K", help="number of hits (10)")
    parser.add_argument(
        "--filter", action="append", default=[], metavar="FIELD=VALUE", help="which studies may be hits; repeatable"
    )
    parser.add_argument("--page-token", default="", metavar="TOKEN", help="of the page before, of the same query")
    parser.add_argument("--same-subject", action="store_true", help="let other studies of the query's patient be hits")
    parser.add_argument("--bundle", type=Path, help="model bundle; default the one that ships; not with --server")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw query and hits on ECG paper")
    parser.add_argument("--json", action="store_true", help="print the hits as JSON")
    add_ecg_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Search, print, and draw."""
    from mmecg.cli.inputs import parse_filter
    from mmecg.cli.output import note_quality, print_hits, print_json, quality_as_json, result_as_json
    from mmecg.search import check_top_k

    _check_options(args)
    query = _read_query(args)
    check_top_k(args.top_k)
    options: dict[str, Any] = {
        "target": args.target,
        "where": parse_filter(args.filter),
        "exclude_same_subject": not args.same_subject,
        "page_token": args.page_token,
        "with_signal": args.plot is not None,
    }
    result, queried = (_search_server if args.server else _search_corpus)(args, query, options)
    quality = quality_as_json(query.ecg) if query.ecg else []
    note_quality(f"the query's ECG {args.ecg}", quality)
    if args.json:
        print_json(result_as_json(result) | {"quality": quality})
    else:
        print_hits(result, title=f"Studies by {args.target}: {_describe_query(args, query)}")
    if args.plot is not None:
        _plot(args, query, queried, result)
    return 0


def _check_options(args: argparse.Namespace) -> None:
    from mmecg.cli.inputs import check_ecg_arguments
    from mmecg.cli.output import check_png
    from mmecg.errors import InvalidInputError

    if args.server and args.bundle:
        raise InvalidInputError("--bundle came with --server, expected one of them: a server has its own bundle")
    check_ecg_arguments(args, [args.ecg] if args.ecg else [])
    if args.plot is not None:
        check_png(args.plot)


def _read_query(args: argparse.Namespace) -> Query:
    from mmecg.cli.inputs import parse_vitals, parse_weights, read_recording, read_text_file
    from mmecg.errors import QueryError
    from mmecg.report import check_text
    from mmecg.retriever import Query

    if not any((args.ecg, args.text is not None, args.text_file, args.vitals, args.study_id)):
        raise QueryError("nothing to search for, expected --ecg, --text, --text-file, --vitals or --study-id")
    text = check_text(args.text, field="text") if args.text is not None else None
    query = Query(
        ecg=read_recording(args.ecg, args) if args.ecg else None,
        text=read_text_file(args.text_file) if args.text_file else text,
        vitals=parse_vitals(args.vitals) if args.vitals else None,
        study_id=args.study_id,
        subject_id=args.subject_id,
        weights=parse_weights(args.weights) if args.weights else None,
    )
    parts = {"ecg": query.ecg, "text": query.text, "vitals": query.vitals, "study": query.study_id}
    for name in query.weights or ():
        if name in parts and parts[name] is None:
            raise QueryError(f"weights name {name}, which the query lacks; leave it out, or give it", field="weights")
    return query


def _search_corpus(
    args: argparse.Namespace, query: Query, options: dict[str, Any]
) -> tuple[SearchResult, Study | None]:
    from mmecg.cli.inputs import open_retriever

    with open_retriever(args.corpus, args.bundle) as retriever:
        (result,) = retriever.search([query], args.top_k, **options)
        asked = retriever.corpus.get([query.study_id])[0] if query.study_id and args.plot else None
    return result, asked


def _search_server(
    args: argparse.Namespace, query: Query, options: dict[str, Any]
) -> tuple[SearchResult, Study | None]:
    from mmecg.client import ChannelOptions, Client

    token = None if args.token_file is None else args.token_file.read_text(encoding="ascii").strip()
    with Client(args.server, ChannelOptions(timeout_s=args.timeout_s, tls_ca=args.tls_ca, token=token)) as client:
        result = client.search(
            ecg=query.ecg,
            text=query.text,
            vitals=query.vitals,
            study_id=query.study_id,
            subject_id=query.subject_id,
            weights=query.weights,
            top_k=args.top_k,
            **options,
        )
        asked = client.get_study(query.study_id) if query.study_id and args.plot else None
    return result, asked


def _describe_query(args: argparse.Namespace, query: Query) -> str:
    from mmecg.cli.output import describe_vitals, shorten

    parts = [
        f"ECG {args.ecg.name}" if args.ecg else "",
        f"“{shorten(query.text, 60)}”" if query.text else "",
        describe_vitals(query.vitals) if query.vitals else "",
        f"study {query.study_id}" if query.study_id else "",
    ]
    weights = "".join(f", {name} x {weight:g}" for name, weight in (query.weights or {}).items())
    return " + ".join(filter(None, parts)) + weights


def _plot(args: argparse.Namespace, query: Query, queried: Study | None, result: SearchResult) -> None:
    from mmecg.cli.output import describe_vitals, note
    from mmecg.plotting import Panel, save_png, search_figure

    known = queried.report.text if queried and queried.report else ""
    facts = [_describe_query(args, query), describe_vitals(queried.vitals) if queried else ""]
    ecg = query.ecg or (queried.ecg if queried else None)
    asked = Panel("Query", facts=[fact for fact in facts if fact], text=query.text or known, ecg=ecg)
    hits = [_hit_panel(rank, hit) for rank, hit in enumerate(result.hits, 1)]
    footer = "Research software, not a medical device. True to scale at the PNG's resolution: 25 mm/s, 10 mm/mV."
    figure = search_figure([asked, *hits], title=f"{len(hits)} most similar studies", footer=footer)
    save_png(figure, args.plot, dpi=_PLOT_DPI)
    note(f"wrote {args.plot}")


def _hit_panel(rank: int, hit: Hit) -> Any:
    from mmecg.cli.output import describe_labels, describe_vitals
    from mmecg.plotting import Panel

    study = hit.study
    assert study is not None  # noqa: S101 - search was asked for studies
    when = f" · {study.acquired_at:%Y-%m-%d %H:%M}" if study.acquired_at else ""
    similarity = ", ".join(f"{name} {score:.2f}" for name, score in hit.modality_scores.items())
    facts = [
        f"study {study.study_id} · subject {study.subject_id}{when}",
        describe_vitals(study.vitals),
        describe_labels(study),
        f"similarity of its {similarity}",
    ]
    text = study.report.text if study.report else ""
    return Panel(str(rank), f"score {hit.score:.3f}", [fact for fact in facts if fact], text, study.ecg)
