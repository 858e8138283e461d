"""Retrieval: a query of any mix of modalities in, studies out. Joins an encoder and a corpus, and owns neither."""

from __future__ import annotations

import base64
import hashlib
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from mmecg.ecg import Ecg
from mmecg.embedding import EMBEDDING_DIM, MODALITIES, fuse, normalise
from mmecg.errors import (
    FingerprintMismatchError,
    NotReadyError,
    QueryError,
    StudyNotFoundError,
)
from mmecg.ingester import INGEST_BATCH as INGEST_BATCH
from mmecg.ingester import Ingester, encode_into
from mmecg.ingester import study_text as study_text
from mmecg.search import MAX_TOP_K, CorpusStore, Filter, Hit, SearchResult, Target, check_top_k
from mmecg.study import Study
from mmecg.vitals import Vitals

_QUERY_PARTS = (*MODALITIES, "study", "embedding")
_TOKEN = struct.Struct(">16sH")
"""A page token: the digest of the query and the filter, and the hits on the pages before."""

Vector = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, eq=False)
class Query:
    """What is looked for: at least one part; several are fused into one direction.

    Attributes
    ----------
    ecg : Ecg, optional
    text : str, optional
        A report, or a phrase.
    vitals : Vitals, optional
    study_id : str, optional
        A study of the corpus; its embedding of the target modality is used, or else of its ECG, text or vitals.
        The study itself is never a hit.
    embedding : float32, shape (dim,), optional
        Any length but zero; it is normalised.
    weights : mapping of str to float, optional
        Weight of ``ecg``, ``text``, ``vitals``, ``study``, ``embedding``; 1 where left out.
    subject_id : str, optional
        Whom the query is about; left out of the hits by default, as is the subject of ``study_id``.
    fingerprint : str, optional
        Fingerprint of the bundle that made ``embedding``.
    """

    ecg: Ecg | None = None
    text: str | None = None
    vitals: Vitals | None = None
    study_id: str | None = None
    embedding: NDArray[np.float32] | None = None
    weights: Mapping[str, float] | None = None
    subject_id: str | None = None
    fingerprint: str | None = None


class Retriever(Ingester):
    """Searches a corpus by ECG, text, vitals, study, embedding or a mix, and fills it. Safe to call from many threads.

    Parameters
    ----------
    encoder : Encoder
    corpus : CorpusStore

    Raises
    ------
    FingerprintMismatchError
        The corpus holds embeddings of another bundle.
    """

    def search(
        self,
        queries: Sequence[Query],
        top_k: int = 10,
        *,
        target: Target = "ecg",
        where: Filter | None = None,
        exclude_same_subject: bool = True,
        page_token: str = "",
        with_studies: bool = True,
        with_signal: bool = False,
        min_sequence: int = 0,
    ) -> list[SearchResult]:
        """Return the best hits of each query.

        Parameters
        ----------
        queries : sequence of Query
            Encoded in one batch.
        top_k : int
            Hits a page; all pages together hold at most :data:`~mmecg.search.MAX_TOP_K`.
        target : {"ecg", "text", "vitals"}
            Modality whose embeddings are searched; a study without one is never a hit.
        where : Filter, optional
            Which studies may be hits.
        exclude_same_subject : bool
            Leave out studies of the subject that the query is about.
        page_token : str
            Token of the page before, of the same single query, target and filter. A page is cut from the ranking at
            the moment of the call, so a corpus that changes between pages may repeat or skip a hit.
        with_studies, with_signal : bool
            Put the study, and its signal, into each hit.
        min_sequence : int
            Answer only if this write is searchable.

        Raises
        ------
        QueryError
            No part, a bad weight, ``top_k``, embedding, target or page token.
        StudyNotFoundError
            The corpus has no study of the query's ``study_id``.
        FingerprintMismatchError
            A query's embedding was made by another bundle.
        NotReadyError
            The corpus is behind ``min_sequence``.
        """
        _check_sequence(self.corpus, min_sequence)
        _check_request(len(queries), top_k, target, page_token)
        digests = [_digest(query, target, where, exclude_same_subject) for query in queries]
        offset = _parse_token(page_token, digests[0]) if page_token else 0
        conditions = [self._filter(query, where, exclude_same_subject) for query in queries]
        vectors = self.embed(queries, target=target)
        results = self._page(vectors, conditions, target, offset, min(offset + top_k, MAX_TOP_K), digests)
        return [self._with_studies(result, with_signal=with_signal) for result in results] if with_studies else results

    def _page(
        self,
        vectors: Vector,
        conditions: Sequence[Filter],
        target: Target,
        offset: int,
        end: int,
        digests: Sequence[bytes],
    ) -> list[SearchResult]:
        """Return the hits of each vector from ``offset`` to ``end``; those under one filter are searched together."""
        groups: dict[Filter, list[int]] = {}
        for index, condition in enumerate(conditions):
            groups.setdefault(condition, []).append(index)
        results: dict[int, SearchResult] = {}
        for condition, group in groups.items():
            # One hit more than the page shows whether another page follows.
            found = self.corpus.search(vectors[group], min(end + 1, MAX_TOP_K), target=target, where=condition)
            for index, rows, scores in zip(group, found.rows, found.scores, strict=True):
                hits = self._hits(vectors[index], rows[offset:end], scores[offset:end])
                more = end < len(rows) and rows[end] >= 0
                token = _render_token(digests[index], end) if more else ""
                results[index] = SearchResult(tuple(hits), found.plan, token)
        return [results[index] for index in range(len(vectors))]

    def embed(self, queries: Sequence[Query], *, target: Target = "ecg") -> Vector:
        """Return the fused embedding of each query: float32, shape (queries, dim), unit norm."""
        parts: list[dict[str, Vector]] = [{} for _ in queries]
        encode_into("ecg", self.encoder.encode_ecg, [query.ecg for query in queries], parts)
        encode_into("text", self.encoder.encode_text, [query.text for query in queries], parts)
        encode_into("vitals", self.encoder.encode_vitals, [query.vitals for query in queries], parts)
        for part, query in zip(parts, queries, strict=True):
            if query.study_id is not None:
                part["study"] = self._study_embedding(query.study_id, target)
            if query.embedding is not None:
                part["embedding"] = self._given_embedding(query)
        fused = [fuse(part, _check_weights(query.weights)) for part, query in zip(parts, queries, strict=True)]
        return np.array(fused, np.float32).reshape(-1, EMBEDDING_DIM)

    def _filter(self, query: Query, where: Filter | None, exclude_same_subject: bool) -> Filter:
        condition = where or Filter()
        subjects = set() if query.subject_id is None else {query.subject_id}
        if query.study_id is not None:
            subjects.add(self.corpus.get([query.study_id], with_signal=False)[0].subject_id)
            condition = replace(condition, exclude_study_ids=condition.exclude_study_ids | {query.study_id})
        if exclude_same_subject and subjects:
            condition = replace(condition, exclude_subject_ids=condition.exclude_subject_ids | subjects)
        return condition

    def _study_embedding(self, study_id: str, target: Target) -> Vector:
        stored = self.corpus.embeddings(self.corpus.rows([study_id]))[0]
        for modality in (target, *MODALITIES):
            if modality in stored:
                return stored[modality]
        raise QueryError("the study has no embedding, expected an ECG, a text or vitals", field="query.study_id")

    def _given_embedding(self, query: Query) -> Vector:
        if query.fingerprint is not None and query.fingerprint != self.corpus.fingerprint:
            raise FingerprintMismatchError(got=query.fingerprint, expected=self.corpus.fingerprint, what="query")
        vector = np.asarray(query.embedding)
        if vector.shape != (EMBEDDING_DIM,) or vector.dtype.kind not in "iuf":
            raise QueryError(
                f"embedding has shape {vector.shape} and dtype {vector.dtype}, expected float32 ({EMBEDDING_DIM},)",
                field="query.embedding",
            )
        return normalise(vector.astype(np.float32))

    def _hits(self, vector: Vector, rows: NDArray[np.int64], scores: Vector) -> list[Hit]:
        rows = rows[rows >= 0]
        hits = []
        for study_id, score, stored in zip(
            self.corpus.study_ids(rows), scores.tolist(), self.corpus.embeddings(rows), strict=False
        ):
            if study_id is not None:  # else it was deleted since the search
                cosines = {modality: float(vector @ embedding) for modality, embedding in stored.items()}
                hits.append(Hit(study_id, score, cosines))
        return hits

    def _with_studies(self, result: SearchResult, *, with_signal: bool) -> SearchResult:
        """Put the studies into the hits; a hit whose study was deleted since the search is left out."""
        ids = [hit.study_id for hit in result.hits]
        studies = {study.study_id: study for study in get_present(self.corpus, ids, with_signal=with_signal)}
        hits = [
            Hit(hit.study_id, hit.score, hit.modality_scores, studies[hit.study_id])
            for hit in result.hits
            if hit.study_id in studies
        ]
        return replace(result, hits=tuple(hits))


def get_present(corpus: CorpusStore, study_ids: Sequence[str], *, with_signal: bool) -> list[Study]:
    """Return studies in the order asked for, without those that were deleted since they were found."""
    try:
        return list(corpus.get(study_ids, with_signal=with_signal))
    except StudyNotFoundError:
        if len(study_ids) == 1:
            return []
    return [study for one in study_ids for study in get_present(corpus, [one], with_signal=with_signal)]


def _check_sequence(corpus: CorpusStore, wanted: int) -> None:
    if wanted > corpus.sequence:
        raise NotReadyError(
            f"min_sequence is {wanted}, but the corpus is at {corpus.sequence}; search again later, or ask the server "
            "that acknowledged the write"
        )


def _check_request(queries: int, top_k: int, target: str, page_token: str) -> None:
    check_top_k(top_k)
    if target not in MODALITIES:
        raise QueryError(f"target is {str(target)[:20]!r}, expected one of {', '.join(MODALITIES)}", field="target")
    if page_token and queries != 1:
        raise QueryError(f"page_token came with {queries} queries, expected one", field="page_token")


def _check_weights(weights: Mapping[str, float] | None) -> Mapping[str, float] | None:
    for name in weights or ():
        if name not in _QUERY_PARTS:
            raise QueryError(
                f"weight {str(name)[:20]!r} is unknown, expected one of {', '.join(_QUERY_PARTS)}", field="weights"
            )
    return weights


def _digest(query: Query, target: Target, where: Filter | None, exclude_same_subject: bool) -> bytes:
    """Return the digest that binds a page token to its query and filter."""
    digest = hashlib.blake2b(digest_size=16)
    if query.ecg is not None:
        digest.update(query.ecg.signal.tobytes())
    if query.embedding is not None:
        digest.update(np.asarray(query.embedding).tobytes())
    ecg = None if query.ecg is None else (query.ecg.sampling_rate_hz, query.ecg.leads)
    weights = sorted((query.weights or {}).items())
    conditions = [_canonical(getattr(where, item.name)) for item in fields(where)] if where else []
    words = (ecg, query.text, query.vitals, query.study_id, query.subject_id, weights)
    digest.update(repr((words, target, conditions, exclude_same_subject)).encode())
    return digest.digest()


def _canonical(value: object) -> object:
    return sorted(value) if isinstance(value, frozenset) else value


def _render_token(digest: bytes, offset: int) -> str:
    return base64.urlsafe_b64encode(_TOKEN.pack(digest, offset)).decode()


def _parse_token(token: str, digest: bytes) -> int:
    try:
        bound_to, offset = _TOKEN.unpack(base64.b64decode(token.encode("ascii"), altchars=b"-_", validate=True))
    except (ValueError, struct.error):
        raise QueryError(
            "page_token is damaged; send the token of the page before unchanged", field="page_token"
        ) from None
    if bound_to != digest:
        raise QueryError(
            "page_token belongs to another query, target or filter; send the same request with it", field="page_token"
        )
    return int(offset)
