"""Writes to the corpus as requests, each under a name of its own, so that a retry after a lost answer does no harm."""

from __future__ import annotations

import itertools
import uuid
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
from google.protobuf.field_mask_pb2 import FieldMask
from mmecg_pb.v1 import corpus_service_pb2, query_pb2
from numpy.typing import NDArray

from mmecg.client.messages import render_study
from mmecg.client.requests import Outcome, parse_upsert_outcome
from mmecg.errors import QueryError
from mmecg.study import Study

_MODALITIES = {"ecg": query_pb2.MODALITY_ECG, "text": query_pb2.MODALITY_TEXT, "vitals": query_pb2.MODALITY_VITALS}
Answer = corpus_service_pb2.UpsertStudiesResponse | corpus_service_pb2.UpsertOutcome
_FIELDS = {
    field.name: {"labels": "label_likelihoods_percent"}.get(field.name, field.name)
    for field in fields(Study)
    if field.name not in ("study_id", "subject_id")
}


@dataclass(frozen=True, kw_only=True, eq=False)
class EmbeddedStudy:
    """A study with embeddings that were made already; the server makes the others.

    Attributes
    ----------
    study : Study
    embeddings : mapping of {"ecg", "text", "vitals"} to float32, shape (dim,), unit norm
    fingerprint : str
        Of the bundle that made them; the server refuses those of another one than its own.
    """

    study: Study
    embeddings: Mapping[str, NDArray[np.float32]]
    fingerprint: str


class WriteNames:
    """Names of writes: unique, and in the order in which they were asked for."""

    def __init__(self) -> None:
        self._prefix = uuid.uuid4().hex
        self._numbers = itertools.count()

    def next(self) -> str:
        """Return a name that nobody else gives."""
        return f"{self._prefix}-{next(self._numbers)}"


class UpsertStream:
    """The items of one UpsertStudies, several in a message, and what became of each.

    Parameters
    ----------
    names : WriteNames
    """

    def __init__(self, names: WriteNames) -> None:
        self._names = names
        self._sent: deque[int] = deque()
        self._answered = 0

    def item(self, study: Study | EmbeddedStudy) -> corpus_service_pb2.UpsertItem:
        """Return the item of a study, under a name of its own."""
        return upsert_item(study, self._names.next())

    def render(self, items: Sequence[corpus_service_pb2.UpsertItem]) -> corpus_service_pb2.UpsertStudiesRequest:
        """Return the message of some items."""
        self._sent.append(len(items))
        return upsert_message(items)

    def parse(self, _: int, response: corpus_service_pb2.UpsertStudiesResponse) -> list[Outcome[int]]:
        """Return what became of the items of a message; the answers come in the order of the messages."""
        count, first = self._sent.popleft(), self._answered
        self._answered += count
        # A server that does not know messages of several items refuses all of it.
        answers: Sequence[Answer] = response.outcomes or [response] * count
        return [parse_upsert_outcome(first + place, answer) for place, answer in enumerate(answers)]


def upsert_message(items: Sequence[corpus_service_pb2.UpsertItem]) -> corpus_service_pb2.UpsertStudiesRequest:
    """Return the message of some items; one alone goes as any server knows it."""
    if len(items) > 1:
        return corpus_service_pb2.UpsertStudiesRequest(items=items)
    (item,) = items
    return corpus_service_pb2.UpsertStudiesRequest(
        study=item.study, request_id=item.request_id, embeddings=item.embeddings
    )


def upsert_request(study: Study | EmbeddedStudy, request_id: str) -> corpus_service_pb2.UpsertStudiesRequest:
    """Render a study that is to be stored as a message of its own; see :func:`upsert_item`."""
    return upsert_message([upsert_item(study, request_id)])


def upsert_item(study: Study | EmbeddedStudy, request_id: str) -> corpus_service_pb2.UpsertItem:
    """Render a study that is to be stored.

    Raises
    ------
    QueryError
        An embedding of an unknown modality.
    """
    if isinstance(study, Study):
        return corpus_service_pb2.UpsertItem(study=render_study(study), request_id=request_id)
    unknown = sorted(study.embeddings.keys() - _MODALITIES.keys())
    if unknown:
        raise QueryError(
            f"embeddings are of modality {str(unknown[0])[:20]!r}, expected {', '.join(_MODALITIES)}",
            field="embeddings",
        )
    item = corpus_service_pb2.UpsertItem(study=render_study(study.study), request_id=request_id)
    for name, vector in study.embeddings.items():
        ready = item.embeddings.add(modality=_MODALITIES[name])
        ready.embedding.float32_values = np.asarray(vector, "<f4").tobytes()
        ready.embedding.fingerprint = study.fingerprint
    return item


def update_request(
    study: Study, changed: Collection[str], etag: str, request_id: str
) -> corpus_service_pb2.UpdateStudyRequest:
    """Render a change of some fields of a study.

    Raises
    ------
    QueryError
        A field that a study does not have, or that cannot be changed.
    """
    unknown = sorted(set(changed) - _FIELDS.keys())
    if unknown or not changed:
        what = repr(str(unknown[0])[:40]) if unknown else "nothing"
        raise QueryError(f"fields names {what}, expected some of {', '.join(_FIELDS)}", field="fields")
    message = render_study(study)
    paths = [_FIELDS[name] for name in changed]
    for name in set(_FIELDS.values()) - set(paths):
        message.ClearField(name)  # type: ignore[arg-type]
    return corpus_service_pb2.UpdateStudyRequest(
        study=message, update_mask=FieldMask(paths=paths), etag=etag, request_id=request_id
    )
