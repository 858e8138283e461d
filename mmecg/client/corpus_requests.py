"""Writes to the corpus as requests, each under a name of its own, so that a retry after a lost answer does no harm."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields

import numpy as np
from google.protobuf.field_mask_pb2 import FieldMask
from mmecg_pb.v1 import corpus_service_pb2, query_pb2
from numpy.typing import NDArray

from mmecg.client.messages import render_embedding, render_study
from mmecg.errors import QueryError
from mmecg.study import Study

_MODALITIES = {"ecg": query_pb2.MODALITY_ECG, "text": query_pb2.MODALITY_TEXT, "vitals": query_pb2.MODALITY_VITALS}
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


def upsert_request(study: Study | EmbeddedStudy, request_id: str) -> corpus_service_pb2.UpsertStudiesRequest:
    """Render a study that is to be stored.

    Raises
    ------
    QueryError
        An embedding of an unknown modality.
    """
    if isinstance(study, Study):
        return corpus_service_pb2.UpsertStudiesRequest(study=render_study(study), request_id=request_id)
    unknown = sorted(study.embeddings.keys() - _MODALITIES.keys())
    if unknown:
        raise QueryError(
            f"embeddings are of modality {str(unknown[0])[:20]!r}, expected {', '.join(_MODALITIES)}",
            field="embeddings",
        )
    embeddings = [
        corpus_service_pb2.ReadyEmbedding(
            modality=_MODALITIES[name], embedding=render_embedding(np.asarray(vector), study.fingerprint)
        )
        for name, vector in study.embeddings.items()
    ]
    return corpus_service_pb2.UpsertStudiesRequest(
        study=render_study(study.study), request_id=request_id, embeddings=embeddings
    )


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
