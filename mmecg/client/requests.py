"""What a caller hands to a client, as requests; and responses, as domain objects. No transport here."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypedDict, TypeVar

import numpy as np
from google.protobuf.field_mask_pb2 import FieldMask
from google.rpc import status_pb2
from mmecg_pb.v1 import (
    corpus_service_pb2,
    embedding_service_pb2,
    info_service_pb2,
    label_mining_service_pb2,
    query_pb2,
    search_service_pb2,
    study_pb2,
)
from numpy.typing import NDArray

from mmecg.client.label_messages import parse_mined_report
from mmecg.client.messages import (
    EcgEncoding,
    parse_study,
    render_ecg,
    render_embedding,
    render_filter,
    render_vitals,
)
from mmecg.client.status import parse_status
from mmecg.ecg import Ecg
from mmecg.errors import QueryError, ReportError, SignalError
from mmecg.labels.assertion import MinedReport
from mmecg.retriever import Query
from mmecg.search import CorpusStats, Filter, Hit, SearchPlan, SearchResult, Target
from mmecg.vitals import Vitals

EcgLike = Ecg | NDArray[Any] | str | Path
T = TypeVar("T")

_TARGETS: dict[str, query_pb2.Modality.ValueType] = {
    "ecg": query_pb2.MODALITY_ECG,
    "text": query_pb2.MODALITY_TEXT,
    "vitals": query_pb2.MODALITY_VITALS,
}
_OTHER_NAMES = {"filter": "where", "k": "top_k", "limit": "top_k"}
"""What an argument of a search is often called elsewhere."""
_WITH_SIGNAL = FieldMask(paths=["*"])
_IDS_ONLY = FieldMask(paths=["study_id"])


@dataclass(frozen=True)
class Outcome(Generic[T]):
    """What became of one item of a bulk call.

    Attributes
    ----------
    item : int
        Position of the item among those given, from 0.
    value : T, optional
        The answer.
    error : Exception, optional
        Why there is none: a :class:`mmecg.errors.MmecgError`.
    """

    item: int
    value: T | None = None
    error: Exception | None = None


@dataclass(frozen=True)
class ServerInfo:
    """What a server is and accepts.

    Attributes
    ----------
    version, fingerprint, intended_use : str
    ecg_encoder : str
        ``"mmecg"``, or the name of a published encoder; empty from an older server.
    embedding_dim : int
    limits : dict of str to int or float
        The fields of ``mmecg.v1.Limits``.
    """

    version: str
    fingerprint: str
    intended_use: str
    ecg_encoder: str
    embedding_dim: int
    limits: dict[str, int | float]


class SearchOptions(TypedDict, total=False):
    """How to search; see :meth:`mmecg.retriever.Retriever.search`."""

    top_k: int
    target: Target
    where: Filter | None
    exclude_same_subject: bool
    page_token: str
    with_studies: bool
    with_signal: bool
    min_sequence: int


class SearchArguments(SearchOptions, total=False):
    """What to search for, and how; see :class:`mmecg.retriever.Query` and :func:`as_ecg`."""

    ecg: EcgLike | None
    leads: Sequence[str] | None
    sampling_rate_hz: float | None
    unit: str
    text: str | None
    vitals: Vitals | None
    study_id: str | None
    embedding: NDArray[np.float32] | None
    fingerprint: str | None
    weights: Mapping[str, float] | None
    subject_id: str | None


def as_ecg(
    source: EcgLike, *, leads: Sequence[str] | None = None, sampling_rate_hz: float | None = None, unit: str = "mV"
) -> Ecg:
    """Return an ECG from what a caller has.

    Parameters
    ----------
    source : Ecg, array_like of shape (n_leads, samples), str or Path
        An array needs ``sampling_rate_hz`` and, unless it has 12 rows in standard order, ``leads``. A path names a
        WFDB record, with or without suffix.
    leads : sequence of str, optional
    sampling_rate_hz : float, optional
    unit : {"mV", "uV", "µV", "V"}
        Unit of an array.

    Raises
    ------
    SignalError
        The recording cannot be used, or an array comes without sampling rate.
    """
    if isinstance(source, Ecg):
        return source
    if isinstance(source, str | Path):
        from mmecg.datasets.wfdb import read_wfdb

        return read_wfdb(source)
    if sampling_rate_hz is None:
        raise SignalError(
            "an array was given without sampling_rate_hz; say how many samples a second has",
            field="ecg.sampling_rate_hz",
        )
    return Ecg.from_array(source, sampling_rate_hz=sampling_rate_hz, leads=leads, unit=unit)


def render_query(query: Query, *, encoding: EcgEncoding = "int16") -> query_pb2.Query:
    """Render a query.

    Raises
    ------
    QueryError
        An embedding without fingerprint, or a weight of an unknown part.
    """
    message = query_pb2.Query(text=query.text, study_id=query.study_id, subject_id=query.subject_id)
    if query.ecg is not None:
        message.ecg.CopyFrom(render_ecg(query.ecg, encoding=encoding))
    if query.vitals is not None:
        message.vitals.CopyFrom(render_vitals(query.vitals))
    if query.embedding is not None:
        if not query.fingerprint:
            raise QueryError(
                "embedding comes without fingerprint; give that of the bundle that made it (see Client.info)",
                field="query.embedding.fingerprint",
            )
        message.embedding.CopyFrom(render_embedding(np.asarray(query.embedding), query.fingerprint))
    if query.weights is not None:
        unknown = sorted(set(query.weights) - {field.name for field in query_pb2.QueryWeights.DESCRIPTOR.fields})
        if unknown:
            raise QueryError(f"weight {unknown[0][:20]!r} is unknown", field="weights")
        message.weights.CopyFrom(query_pb2.QueryWeights(**query.weights))
    return message


def query_of(arguments: SearchArguments) -> Query:
    """Return the query part of the arguments of a search.

    Raises
    ------
    SignalError
        See :func:`as_ecg`.
    TypeError
        An argument is unknown.
    """
    check_names(arguments, SearchOptions.__optional_keys__ | SearchArguments.__optional_keys__, "search")
    ecg = arguments.get("ecg")
    if ecg is not None:
        ecg = as_ecg(
            ecg,
            leads=arguments.get("leads"),
            sampling_rate_hz=arguments.get("sampling_rate_hz"),
            unit=arguments.get("unit", "mV"),
        )
    return Query(
        ecg=ecg,
        text=arguments.get("text"),
        vitals=arguments.get("vitals"),
        study_id=arguments.get("study_id"),
        embedding=arguments.get("embedding"),
        fingerprint=arguments.get("fingerprint"),
        weights=arguments.get("weights"),
        subject_id=arguments.get("subject_id"),
    )


def check_options(options: SearchOptions) -> SearchOptions:
    """Return the options of a bulk search. Raises ``TypeError`` for an unknown one: ignored, it would widen it."""
    check_names(options, SearchOptions.__optional_keys__, "search")
    return options


def search_request(query: Query, options: SearchOptions) -> search_service_pb2.SearchRequest:
    """Render a search.

    Raises
    ------
    QueryError
        See :func:`render_query`; also for an unknown target.
    """
    target = options.get("target", "ecg")
    if target not in _TARGETS:
        raise QueryError(f"target is {str(target)[:20]!r}, expected one of {', '.join(_TARGETS)}", field="target")
    where = options.get("where")
    with_studies = options.get("with_studies", True)
    return search_service_pb2.SearchRequest(
        query=render_query(query),
        filter=None if where is None else render_filter(where),
        top_k=options.get("top_k", 10),
        target=_TARGETS[target],
        exclude_same_subject=options.get("exclude_same_subject", True),
        page_token=options.get("page_token", ""),
        read_mask=signal_mask(options.get("with_signal", False)) if with_studies else _IDS_ONLY,
        min_sequence=options.get("min_sequence"),
    )


def signal_mask(with_signal: bool) -> FieldMask | None:
    """Return the read mask of whole studies, or of studies without signal."""
    if with_signal:
        return _WITH_SIGNAL
    return FieldMask(paths=[field.name for field in study_pb2.Study.DESCRIPTOR.fields if field.name != "ecg"])


def list_request(subject_id: str | None, page_size: int, with_signal: bool) -> corpus_service_pb2.ListStudiesRequest:
    """Render the request of the first page of a list."""
    return corpus_service_pb2.ListStudiesRequest(
        subject_id=subject_id, page_size=page_size, read_mask=signal_mask(with_signal)
    )


def mine_request(
    text: str | None, study_id: str | None, language: str, vocabulary: str
) -> label_mining_service_pb2.MineLabelsRequest:
    """Render a request to mine a text, or the report of a study.

    Raises
    ------
    QueryError
        Neither or both are given.
    ReportError
        The text cannot be written as UTF-8.
    """
    if (text is None) == (study_id is None):
        raise QueryError("expected either text or study_id; give one of them", field="text")
    source = {"study_id": study_id or ""} if text is None else {"text": text}
    try:
        return label_mining_service_pb2.MineLabelsRequest(**source, language=language, vocabulary=vocabulary)
    except UnicodeEncodeError:
        raise ReportError("text has surrogate characters; send plain text", field="text") from None


def parse_search(response: search_service_pb2.SearchResponse) -> SearchResult:
    """Return the hits, the plan and the next page's token."""
    plan = response.plan
    return SearchResult(
        tuple(_parse_hit(hit) for hit in response.hits),
        SearchPlan(plan.engine, plan.exact, plan.rows_total, plan.rows_passing),
        response.next_page_token,
    )


def parse_embeddings(embeddings: Iterable[query_pb2.Embedding]) -> NDArray[np.float32]:
    """Return float32, shape (batch, dim)."""
    return np.array([embedding.values for embedding in embeddings], np.float32)


def parse_info(response: info_service_pb2.GetServerInfoResponse) -> ServerInfo:
    """Return version, model and limits."""
    limits = {field.name: getattr(response.limits, field.name) for field in response.limits.DESCRIPTOR.fields}
    return ServerInfo(
        response.version,
        response.fingerprint,
        response.intended_use,
        response.ecg_encoder,
        response.embedding_dim,
        limits,
    )


def parse_stats(response: corpus_service_pb2.GetStatsResponse) -> CorpusStats:
    """Return what a corpus holds."""
    embeddings = {
        "ecg": response.ecg_embeddings,
        "text": response.text_embeddings,
        "vitals": response.vitals_embeddings,
    }
    return CorpusStats(response.studies, response.subjects, embeddings, response.fingerprint, response.sequence)


def parse_embed_outcome(item: int, response: embedding_service_pb2.EmbedStreamResponse) -> Outcome[NDArray[np.float32]]:
    """Return the outcome of one item of EmbedStream."""
    error = error_of(response)
    return Outcome(item, None if error else np.asarray(response.embedding.values, np.float32), error)


def parse_search_outcome(item: int, response: search_service_pb2.SearchStreamResponse) -> Outcome[SearchResult]:
    """Return the outcome of one item of SearchStream."""
    error = error_of(response)
    return Outcome(item, None if error else parse_search(response.response), error)


def parse_upsert_outcome(
    item: int, response: corpus_service_pb2.UpsertStudiesResponse | corpus_service_pb2.UpsertOutcome
) -> Outcome[int]:
    """Return the outcome of one item of UpsertStudies: the sequence number of its commit."""
    error = error_of(response)
    return Outcome(item, None if error else response.sequence, error)


def parse_mine_outcome(item: int, response: label_mining_service_pb2.MineLabelsStreamResponse) -> Outcome[MinedReport]:
    """Return the outcome of one item of MineLabelsStream."""
    error = error_of(response)
    return Outcome(item, None if error else parse_mined_report(response.response), error)


def check_names(given: Mapping[str, object], known: frozenset[str], method: str) -> None:
    """Refuse an argument that a method does not know. Raises ``TypeError``."""
    for name in given:
        if name not in known:
            other = _OTHER_NAMES.get(name)
            near = [other] if other in known else difflib.get_close_matches(name, known, n=1)
            advice = f"did you mean {near[0]}?" if near else f"expected some of {', '.join(sorted(known))}"
            raise TypeError(f"{method} got an unknown argument {name[:40]!r}; {advice}")


def error_of(response: Any) -> Exception | None:
    """Return the error of one answer of a stream; None if it has a result."""
    status: status_pb2.Status = response.status
    return parse_status(status) if response.WhichOneof("result") == "status" else None


def _parse_hit(hit: search_service_pb2.Hit) -> Hit:
    scores = {field.name: value for field, value in hit.modality_scores.ListFields()}
    has_study = hit.HasField("study") and bool(hit.study.subject_id)
    return Hit(hit.study_id, hit.score, scores, parse_study(hit.study) if has_study else None)
