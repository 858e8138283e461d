"""Requests to arguments and results to responses: the half of the translation that only a server needs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar, cast

import numpy as np
from google.protobuf.field_mask_pb2 import FieldMask
from mmecg_pb.v1 import (
    admin_service_pb2,
    corpus_service_pb2,
    ecg_pb2,
    embedding_service_pb2,
    info_service_pb2,
    query_pb2,
    search_service_pb2,
    study_pb2,
)
from numpy.typing import NDArray

import mmecg
from mmecg.client.messages import (
    check_known,
    parse_ecg,
    parse_embedding,
    parse_filter,
    parse_vitals,
    render_embedding,
    render_study,
)
from mmecg.client.prediction_messages import MAX_EXTRA_HISTORY
from mmecg.ecg import MAX_DURATION_S, MAX_SAMPLING_RATE_HZ, MIN_DURATION_S, MIN_SAMPLING_RATE_HZ, Ecg
from mmecg.embedding import EMBEDDING_DIM
from mmecg.errors import InvalidInputError, QueryError, ReportError
from mmecg.quality import assess_quality
from mmecg.report import MAX_TEXT_CHARS, check_text
from mmecg.retriever import Query
from mmecg.search import MAX_PAGE_SIZE, MAX_TOP_K, CorpusStats, Filter, Hit, SearchResult, Target
from mmecg.study import Study, check_id
from mmecg_server.call import stage
from mmecg_server.config import LimitsConfig

Item = TypeVar("Item")
Parsed = TypeVar("Parsed")

DEFAULT_TOP_K = 10
DEFAULT_PAGE_SIZE = 100
INTENDED_USE = "Research and evaluation. Not a medical device; not for diagnosis or treatment."

STUDY_FIELDS = frozenset(field.name for field in study_pb2.Study.DESCRIPTOR.fields)
WITHOUT_SIGNAL = STUDY_FIELDS - {"ecg"}

_TARGETS: dict[int, Target] = {
    query_pb2.MODALITY_UNSPECIFIED: "ecg",
    query_pb2.MODALITY_ECG: "ecg",
    query_pb2.MODALITY_TEXT: "text",
    query_pb2.MODALITY_VITALS: "vitals",
}


@dataclasses.dataclass(frozen=True)
class Search:
    """A checked SearchRequest.

    Attributes
    ----------
    query : Query
    options : mapping of str to value
        Keyword arguments of :meth:`mmecg.retriever.Retriever.search`.
    fields : frozenset of str
        Fields of Study that the hits carry.
    """

    query: Query
    options: dict[str, Any]
    fields: frozenset[str]


@stage("decode")
def parse_search(request: search_service_pb2.SearchRequest) -> Search:
    """Check a search request.

    Raises
    ------
    InvalidInputError
        Of the class that fits the part that cannot be used.
    """
    check_known(request, "request")
    if request.target not in _TARGETS:
        raise QueryError(f"target is {request.target}, expected MODALITY_ECG, _TEXT or _VITALS", field="target")
    fields = parse_mask(request.read_mask, default=WITHOUT_SIGNAL)
    options: dict[str, Any] = {
        "top_k": request.top_k if request.HasField("top_k") else DEFAULT_TOP_K,
        "target": _TARGETS[request.target],
        "where": parse_filter(request.filter) if request.HasField("filter") else Filter(),
        "exclude_same_subject": request.exclude_same_subject if request.HasField("exclude_same_subject") else True,
        "page_token": request.page_token,
        "with_studies": bool(fields - {"study_id"}),
        "with_signal": "ecg" in fields,
        "min_sequence": request.min_sequence,
    }
    return Search(parse_query(request.query), options, fields)


@stage("decode")
def parse_query(message: query_pb2.Query) -> Query:
    """Check a query.

    Raises
    ------
    InvalidInputError
        Of the class that fits the part that cannot be used.
    """
    check_known(message, "query")
    embedding = message.embedding if message.HasField("embedding") else None
    if embedding is not None and not embedding.fingerprint:
        raise QueryError(
            "embedding has no fingerprint, expected that of the bundle that made it; see GetServerInfo",
            field="query.embedding.fingerprint",
        )
    weights = {field.name: value for field, value in message.weights.ListFields()}
    return Query(
        ecg=parse_ecg(message.ecg) if message.HasField("ecg") else None,
        text=parse_text(message.text, "query.text") if message.HasField("text") else None,
        vitals=parse_vitals(message.vitals) if message.HasField("vitals") else None,
        study_id=check_id(message.study_id, "query.study_id") if message.HasField("study_id") else None,
        embedding=None if embedding is None else parse_embedding(embedding),
        fingerprint=None if embedding is None else embedding.fingerprint,
        weights=weights if message.HasField("weights") else None,
        subject_id=check_id(message.subject_id, "query.subject_id") if message.HasField("subject_id") else None,
    )


@stage("decode")
def parse_each(parse: Callable[[Item], Parsed], items: Iterable[Item], name: str) -> list[Parsed]:
    """Parse the items of a batch; an error names the place of the item, for example ``ecgs[3].leads``.

    Raises
    ------
    InvalidInputError
        What ``parse`` raises, with the place in its message and its field.
    """
    parsed = []
    for position, item in enumerate(items):
        try:
            parsed.append(parse(item))
        except InvalidInputError as error:
            place = f"{name}[{position}]"
            inner = (error.field or "").partition(".")[2]
            raise type(error)(f"{place}: {error}", field=f"{place}.{inner}" if inner else place) from None
    return parsed


def parse_text(text: str, field: str = "text") -> str:
    """Return a text that is there and that a tower may read.

    Raises
    ------
    ReportError
        Empty, too long, or with control characters.
    """
    if not check_text(text, field=field).strip():
        raise ReportError("text is empty, expected words", field=field)
    return text


def parse_mask(mask: FieldMask, *, default: frozenset[str]) -> frozenset[str]:
    """Return the fields of Study that a read mask names.

    Raises
    ------
    QueryError
        A path that is no top-level field of Study.
    """
    if not mask.paths:
        return default
    fields = STUDY_FIELDS if "*" in mask.paths else frozenset(mask.paths)
    unknown = sorted(fields - STUDY_FIELDS)
    if unknown:
        raise QueryError(
            f"read_mask names {unknown[0][:40]!r}, expected top-level fields of Study: "
            f"{', '.join(sorted(STUDY_FIELDS))}, or *",
            field="read_mask",
        )
    return fields


def parse_page_size(request: corpus_service_pb2.ListStudiesRequest | admin_service_pb2.ListAuditRequest) -> int:
    """Return the page size of a list request.

    Raises
    ------
    QueryError
        Outside 1 to 1000.
    """
    size = request.page_size if request.HasField("page_size") else DEFAULT_PAGE_SIZE
    if not 1 <= size <= MAX_PAGE_SIZE:
        raise QueryError(f"page_size is {size}, expected 1 to {MAX_PAGE_SIZE}", field="page_size")
    return size


def check_batch(items: Sequence[object], name: str, limits: LimitsConfig) -> None:
    """Refuse an empty batch and one that is too large.

    Raises
    ------
    InvalidInputError
        See above.
    """
    if not 1 <= len(items) <= limits.max_batch:
        raise InvalidInputError(
            f"{name} has {len(items)} items, expected 1 to {limits.max_batch}; use EmbedStream for more", field=name
        )


def render_masked(study: Study, fields: frozenset[str]) -> study_pb2.Study:
    """Render the fields of a study that a read mask names."""
    if study.ecg is not None and "ecg" not in fields:
        study = dataclasses.replace(study, ecg=None)
    message = render_study(study)
    for name in STUDY_FIELDS - fields:
        message.ClearField(name)  # type: ignore[arg-type]
    return message


def render_result(
    result: SearchResult, fields: frozenset[str], fingerprint: str, sequence: int
) -> search_service_pb2.SearchResponse:
    """Render the answer to a search that saw everything up to a commit."""
    plan = result.plan
    return search_service_pb2.SearchResponse(
        hits=[_render_hit(hit, fields) for hit in result.hits],
        plan=search_service_pb2.SearchPlan(
            engine=plan.engine, exact=plan.exact, rows_total=plan.rows_total, rows_passing=plan.rows_passing
        ),
        next_page_token=result.next_page_token,
        fingerprint=fingerprint,
        sequence=sequence,
    )


def render_embeddings(vectors: NDArray[np.float32], fingerprint: str) -> list[query_pb2.Embedding]:
    """Render float32 vectors of shape (batch, dim)."""
    return [render_embedding(vector, fingerprint) for vector in vectors]


def render_quality(ecg: Ecg) -> embedding_service_pb2.EcgQuality:
    """Assess a recording and render the findings."""
    findings = [
        ecg_pb2.QualityFinding(kind=finding.kind, leads=finding.leads, detail=finding.detail)
        for finding in assess_quality(ecg)
    ]
    return embedding_service_pb2.EcgQuality(findings=findings)


def render_stats(stats: CorpusStats) -> corpus_service_pb2.GetStatsResponse:
    """Render what a corpus holds."""
    return corpus_service_pb2.GetStatsResponse(
        studies=stats.studies,
        subjects=stats.subjects,
        ecg_embeddings=stats.embeddings.get("ecg", 0),
        text_embeddings=stats.embeddings.get("text", 0),
        vitals_embeddings=stats.embeddings.get("vitals", 0),
        fingerprint=stats.fingerprint,
        sequence=stats.sequence,
    )


def render_info(fingerprint: str, ecg_encoder: str, limits: LimitsConfig) -> info_service_pb2.GetServerInfoResponse:
    """Render version, model and limits."""
    return info_service_pb2.GetServerInfoResponse(
        version=mmecg.__version__,
        fingerprint=fingerprint,
        ecg_encoder=ecg_encoder,
        embedding_dim=EMBEDDING_DIM,
        intended_use=INTENDED_USE,
        limits=info_service_pb2.Limits(
            max_message_bytes=limits.max_message_bytes,
            max_top_k=MAX_TOP_K,
            max_batch=limits.max_batch,
            max_text_chars=MAX_TEXT_CHARS,
            min_duration_s=MIN_DURATION_S,
            max_duration_s=MAX_DURATION_S,
            min_sampling_rate_hz=MIN_SAMPLING_RATE_HZ,
            max_sampling_rate_hz=MAX_SAMPLING_RATE_HZ,
            max_in_flight=limits.max_in_flight,
            max_streams=limits.max_streams,
            default_deadline_s=limits.default_deadline_s,
            max_extra_history=MAX_EXTRA_HISTORY,
            max_page_size=MAX_PAGE_SIZE,
            rate_per_s=limits.rate_per_s,
            burst=limits.burst,
            max_in_flight_per_principal=limits.max_in_flight_per_principal,
            stream_idle_s=limits.stream_idle_s,
            max_stream_s=limits.max_stream_s,
        ),
    )


def _render_hit(hit: Hit, fields: frozenset[str]) -> search_service_pb2.Hit:
    return search_service_pb2.Hit(
        study_id=hit.study_id,
        score=hit.score,
        modality_scores=search_service_pb2.ModalityScores(**cast(Any, dict(hit.modality_scores))),
        study=None if hit.study is None else render_masked(hit.study, fields),
    )
