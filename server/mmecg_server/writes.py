"""Requests that change the corpus: checked, and handed to it in as few commits as their order allows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from google.protobuf.field_mask_pb2 import FieldMask
from mmecg_pb.v1 import corpus_service_pb2, query_pb2, study_pb2
from numpy.typing import NDArray

from mmecg.client.messages import check_known, parse_embedding, parse_study
from mmecg.embedding import MODALITIES
from mmecg.errors import FingerprintMismatchError, InvalidInputError, QueryError
from mmecg.retriever import Retriever
from mmecg.study import Study, WriteRequest, check_id
from mmecg_server.auth import current_principal
from mmecg_server.call import stage
from mmecg_server.convert import STUDY_FIELDS
from mmecg_server.upserts import Item, check_single

_MODALITIES = {query_pb2.MODALITY_ECG: "ecg", query_pb2.MODALITY_TEXT: "text", query_pb2.MODALITY_VITALS: "vitals"}
_FIXED = frozenset({"study_id", "subject_id"})
_ATTRIBUTES = {name: name for name in STUDY_FIELDS - _FIXED} | {"label_likelihoods_percent": "labels"}
"""Field of the message to attribute of :class:`Study`."""


@dataclass(frozen=True)
class NewStudy:
    """A checked UpsertStudiesRequest.

    Attributes
    ----------
    study : Study
    given : mapping of modality to float32, shape (dim,), unit norm
        Embeddings that the caller made.
    request : WriteRequest, optional
    """

    study: Study
    given: Mapping[str, NDArray[np.float32]]
    request: WriteRequest | None


@dataclass(frozen=True)
class Update:
    """A checked UpdateStudyRequest: arguments of :meth:`mmecg.ingester.Ingester.update`."""

    study_id: str
    change: Callable[[Study], Study]
    etag: str | None
    request: WriteRequest | None


@stage("decode")
def parse_upsert(message: Item, fingerprint: str) -> NewStudy:
    """Check a study that is to be stored.

    Raises
    ------
    InvalidInputError
        The study cannot be used or has nothing to find it by, or an embedding is of a modality that it lacks.
    FingerprintMismatchError
        An embedding was made by another bundle.
    """
    check_known(message, "request")
    check_single(message)
    study = check_content(parse_study(message.study))
    there = {"ecg": study.ecg is not None, "text": _has_text(study), "vitals": not study.vitals.is_empty()}
    given: dict[str, NDArray[np.float32]] = {}
    for place, one in enumerate(message.embeddings):
        name = _MODALITIES.get(one.modality, "")
        field = f"embeddings[{place}]"
        if name in given or not there.get(name):
            raise QueryError(
                f"{field} is of no modality that the study has, or of one that came before, expected one of "
                f"{', '.join(modality for modality in MODALITIES if there[modality])}, once",
                field=field,
            )
        if one.embedding.fingerprint != fingerprint:
            raise FingerprintMismatchError(got=one.embedding.fingerprint, expected=fingerprint, what="embedding")
        given[name] = parse_embedding(one.embedding)
    return NewStudy(study, given, write_request(message.request_id))


@stage("decode")
def parse_update(message: corpus_service_pb2.UpdateStudyRequest) -> Update:
    """Check a change of a study.

    Raises
    ------
    InvalidInputError
        A path of the mask is no field that can be changed, or the new value of one cannot be used.
    """
    check_known(message, "request")
    names = _parse_update_mask(message.update_mask)
    given = study_pb2.Study()
    given.CopyFrom(message.study)
    given.subject_id = given.study_id  # not changed, so not asked for
    new = parse_study(given)

    def change(study: Study) -> Study:
        values = {_ATTRIBUTES[name]: getattr(new, _ATTRIBUTES[name]) for name in names}
        return check_content(dataclasses.replace(study, **values))

    content = b"".join(name.encode() + b"\0" for name in sorted(names)) + given.SerializeToString(deterministic=True)
    etag = message.etag or None
    return Update(new.study_id, change, etag, write_request(message.request_id, content + (etag or "").encode()))


def write_request(request_id: str, content: bytes | None = None) -> WriteRequest | None:
    """Return the caller's name for a write; None without one."""
    if not request_id:
        return None
    return WriteRequest(
        request_id=check_id(request_id, "request_id"), principal=current_principal().name, content=content
    )


def check_content(study: Study) -> Study:
    """Return a study that has something to find it by.

    Raises
    ------
    InvalidInputError
        It has nothing of the kind.
    """
    if study.ecg is None and not _has_text(study) and study.vitals.is_empty():
        raise InvalidInputError(
            "study is empty, expected at least one of ECG, report, notes and vitals; add one, or leave the study out",
            field="study",
        )
    return study


def store_all(retriever: Retriever, items: Sequence[NewStudy]) -> list[int]:
    """Store studies in their order, in as few commits as keep the last of two versions of one study last."""
    return begin_to_store(retriever, items)()


def begin_to_store(retriever: Retriever, items: Sequence[NewStudy]) -> Callable[[], list[int]]:
    """Embed studies; return what stores them, see :func:`store_all`."""
    begun = []
    for batch in _without_repeats(items):
        studies, given = [item.study for item in batch], [item.given for item in batch]
        begun.append((batch, studies, given, retriever.prepare(studies, given=given)))

    def finish() -> list[int]:
        numbers: list[int] = []
        for batch, studies, given, prepared in begun:
            requests = [item.request for item in batch]
            numbers += retriever.store(studies, given=given, requests=requests, prepared=prepared)
        return numbers

    return finish


def _without_repeats(items: Sequence[NewStudy]) -> Iterator[list[NewStudy]]:
    batch: dict[str, NewStudy] = {}
    for item in items:
        if item.study.study_id in batch:
            yield list(batch.values())
            batch = {}
        batch[item.study.study_id] = item
    yield list(batch.values())


def _has_text(study: Study) -> bool:
    report = study.report.raw if study.report else ""
    return any(text.strip() for text in (report, *(note.text for note in study.notes)))


def _parse_update_mask(mask: FieldMask) -> frozenset[str]:
    names = frozenset(mask.paths)
    unknown = sorted(names - _ATTRIBUTES.keys())
    if unknown or not names:
        what = repr(unknown[0][:40]) if unknown else "nothing"
        raise QueryError(
            f"update_mask names {what}, expected top-level fields of Study that can be changed: "
            f"{', '.join(sorted(_ATTRIBUTES))}",
            field="update_mask",
        )
    return names
