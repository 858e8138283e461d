"""A study as the corpus stores it: a JSON document, and the signal as compressed bytes. Both ways lose nothing."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmecg.ecg import LEADS, Ecg
from mmecg.errors import IndexFormatError
from mmecg.quality import QualityFinding, assess_quality
from mmecg.report import Report
from mmecg.search import without_zone
from mmecg.study import ClinicalNote, Study
from mmecg.vitals import Vitals

_GAINS = (1000.0, 200.0, 204.8, 205.0, 400.0, 500.0, 1024.0, 100.0, 4000.0, 2000.0)
"""Usual gains of recorders and public databases, counts per millivolt."""

DOCUMENT_VERSION = 2
"""Of what :func:`encode_study` writes; a document without a number is of version 1, which has no ``count planes``."""


_CANONICAL = json.JSONEncoder(sort_keys=True)
_COMPACT = json.JSONEncoder(separators=(",", ":"))


def content_hash(study: Study, secret: bytes, described: dict[str, Any] | None = None) -> bytes:
    """Return a keyed hash (16 bytes) over all that a study says but its id; how it is encoded has no part in it.

    Parameters
    ----------
    study : Study
    secret : bytes
        The key.
    described : dict, optional
        What :func:`describe` says of the study.
    """
    content = {"subject_id": study.subject_id} | (described or describe(study))
    if study.ecg is not None:
        content |= {"rate": study.ecg.sampling_rate_hz, "leads": study.ecg.lead_mask.tolist()}
    digest = hashlib.blake2b(_CANONICAL.encode(content).encode(), key=secret, digest_size=16)
    if study.ecg is not None:
        digest.update(np.ascontiguousarray(study.ecg.signal, "<f4").tobytes())
    return digest.digest()


def encode_study(study: Study) -> tuple[str, bytes | None]:
    """Return the document and the signal's bytes (None without an ECG)."""
    content, signal = describe_study(study)
    return encode_document(content), signal


def encode_document(content: dict[str, Any]) -> str:
    """Return the document of what :func:`describe_study` says."""
    return _COMPACT.encode(content)


def describe_study(
    study: Study, described: dict[str, Any] | None = None, findings: Sequence[QualityFinding] | None = None
) -> tuple[dict[str, Any], bytes | None]:
    """Return what stands in the document, and the signal's bytes.

    Parameters
    ----------
    study : Study
    described : dict, optional
        See :func:`content_hash`.
    findings : sequence of QualityFinding, optional
        What was found of its ECG, if that is known.
    """
    signal = None
    document = {"version": DOCUMENT_VERSION} | (described or describe(study)) | {"quality": []}
    if study.ecg is not None:
        encoding, signal = encode_signal(study.ecg.signal)
        document["ecg"] = encoding | {
            "sampling_rate_hz": study.ecg.sampling_rate_hz,
            "lead_mask": study.ecg.lead_mask.astype(int).tolist(),
            "crc": zlib.crc32(signal),
        }
        findings = assess_quality(study.ecg) if findings is None else findings
        document["quality"] = sorted({finding.kind for finding in findings})
    return document, signal


def decode_study(study_id: str, subject_id: str, document: str, signal: bytes | None) -> Study:
    """Return the study; without its ECG if ``signal`` is None.

    Raises
    ------
    IndexFormatError
        The document or the signal is damaged, or the document was written by a later release.
    """
    try:
        stored = json.loads(document)
        if stored.get("version", 1) > DOCUMENT_VERSION:
            raise IndexFormatError(
                f"a stored study has format version {stored['version']}, expected at most {DOCUMENT_VERSION}; "
                "open the corpus with the release of mmecg that wrote it, or a later one"
            )
        report = stored["report"]
        return Study(
            study_id=study_id,
            subject_id=subject_id,
            acquired_at=_parse_time(stored["acquired_at"]),
            ecg=None if signal is None else _decode_ecg(stored["ecg"], signal),
            report=Report(**report) if report else None,
            notes=tuple(ClinicalNote(text, kind, _parse_time(time)) for text, kind, time in stored["notes"]),
            vitals=Vitals(**stored["vitals"]),
            labels=stored["labels"],
            site=stored["site"],
            device=stored["device"],
            attributes=stored["attributes"],
        )
    except (AttributeError, KeyError, TypeError, ValueError, zlib.error) as error:
        raise IndexFormatError(
            f"a stored study is damaged ({type(error).__name__}); restore the corpus from a backup"
        ) from error


def metadata_record(row: int, study_id: str, subject_id: str, document: str) -> tuple[Any, ...]:
    """Return a row of the metadata table, in the order of :data:`mmecg.search.METADATA_SCHEMA`."""
    return metadata_of(row, study_id, subject_id, json.loads(document))


def metadata_of(row: int, study_id: str, subject_id: str, stored: dict[str, Any]) -> tuple[Any, ...]:
    """Return :func:`metadata_record` of a document that is decoded."""
    acquired_at = _parse_time(stored["acquired_at"])
    report = stored["report"]
    return (
        row,
        study_id,
        subject_id,
        None if acquired_at is None else without_zone(acquired_at),
        stored["vitals"].get("age_years"),
        stored["vitals"].get("sex"),
        stored["site"],
        stored["device"],
        list(stored["labels"]),
        report["text"].lower() if report else "",
        stored["quality"],
    )


def encode_signal(signal: NDArray[np.float32]) -> tuple[dict[str, Any], bytes]:
    """Return how a signal is encoded, and the bytes: int16 counts if it lies exactly on a recorder's grid, or float32.

    Parameters
    ----------
    signal : float32, shape (leads=12, samples), mV
    """
    described: dict[str, Any] = {"samples": signal.shape[1]}
    low, high = float(signal.min()), float(signal.max())
    for gain in _GAINS:
        if low * gain < -32768.25 or high * gain > 32767.25:
            continue
        # In float32 a product is off by less than 0.01, and a count that it misses would be none.
        whole = np.rint(signal * np.float32(gain)).astype(np.int16)
        if _same_bits(_to_millivolt(whole, gain), signal):
            # Differences of neighbouring samples compress far better; int16 wraps around, so nothing is lost.
            steps = whole.copy()
            steps[:, 1:] -= whole[:, :-1]
            return described | {"encoding": "count planes", "gain": gain}, _compress(_planes(steps.view(np.uint16)))
    return described | {"encoding": "float32"}, _compress(_planes(np.ascontiguousarray(signal).view(np.uint32)))


def decode_signal(described: dict[str, Any], data: bytes) -> NDArray[np.float32]:
    """Return the signal that :func:`encode_signal` encoded, bit by bit."""
    raw = zlib.decompress(data)
    shape = (len(LEADS), int(described["samples"]))
    if described["encoding"] in ("counts", "count planes"):
        together = raw if described["encoding"] == "counts" else _joined(raw, 2)
        steps = np.frombuffer(together, "<i2").reshape(shape)
        return _to_millivolt(np.cumsum(steps, axis=1, dtype=np.int16), float(described["gain"]))
    return np.frombuffer(_joined(raw, 4), "<f4").reshape(shape).astype(np.float32)


def study_checksum(study_id: str, subject_id: str, document: str) -> int:
    """Return the CRC-32 that stands beside a stored study: of whose it is, and what it says."""
    return zlib.crc32(f"{study_id}\0{subject_id}\0{document}".encode())


def check_study(study_id: str, subject_id: str, document: str, crc: int) -> None:
    """Raise ``IndexFormatError`` if a stored study is not what was stored under this id for this subject."""
    if study_checksum(study_id, subject_id, document) != crc:
        raise IndexFormatError("a stored study is damaged (checksum); restore the corpus from a backup")


def vector_checksum(row: int, modality: str, fingerprint: str, data: bytes) -> int:
    """Return the CRC-32 that stands beside a stored embedding: of which it is, and its values."""
    return zlib.crc32(data, zlib.crc32(f"{row} {modality} {fingerprint}".encode()))


def encode_vector(
    row: int, modality: str, fingerprint: str, vector: NDArray[np.float32]
) -> tuple[int, str, str, bytes, int]:
    """Return an embedding as a row of the table ``embeddings``."""
    data = np.asarray(vector, "<f4").tobytes()
    return row, modality, fingerprint, data, vector_checksum(row, modality, fingerprint, data)


def decode_vector(row: int, modality: str, fingerprint: str, data: bytes, crc: int) -> NDArray[np.float32]:
    """Return the embedding in a row of the table ``embeddings``.

    Raises
    ------
    IndexFormatError
        The bytes are not those that were stored there.
    """
    if vector_checksum(row, modality, fingerprint, data) != crc:
        raise IndexFormatError("a stored embedding is damaged (checksum); restore the corpus from a backup")
    return np.frombuffer(data, "<f4").astype(np.float32)


def describe(study: Study) -> dict[str, Any]:
    """Return what a study says beside its ids and its signal."""
    return {
        "acquired_at": _render_time(study.acquired_at),
        "report": dict(vars(study.report)) if study.report else None,
        "notes": [[note.text, note.kind, _render_time(note.written_at)] for note in study.notes],
        "vitals": {name: value for name, value in vars(study.vitals).items() if value is not None},
        "labels": dict(study.labels),
        "site": study.site,
        "device": study.device,
        "attributes": dict(study.attributes),
    }


def _decode_ecg(described: dict[str, Any], data: bytes) -> Ecg:
    if zlib.crc32(data) != described["crc"]:
        raise ValueError("checksum")
    signal = decode_signal(described, data)
    return Ecg(signal, float(described["sampling_rate_hz"]), np.array(described["lead_mask"], np.bool_))


def _to_millivolt(counts: NDArray[np.int16], gain: float) -> NDArray[np.float32]:
    """Return the nearest float32 to each quotient of float64."""
    if float(np.float32(gain)) == gain:  # rounding twice gives the same: float64 has twice the digits and two more
        return counts.astype(np.float32) / np.float32(gain)
    return (counts.astype(np.float64) / gain).astype(np.float32)


def _planes(values: NDArray[np.unsignedinteger]) -> bytes:
    """Return the lowest bytes of all values, then the second ones, and so on: like stands beside like."""
    return b"".join(
        (values >> np.uint8(shift)).astype(np.uint8).tobytes() for shift in range(0, 8 * values.itemsize, 8)
    )


def _joined(planes: bytes, itemsize: int) -> bytes:
    return np.frombuffer(planes, np.uint8).reshape(itemsize, -1).T.tobytes()


def _compress(data: bytes) -> bytes:
    """Compress by Huffman codes and runs; looking for longer repeats takes twice the time, and finds none."""
    compressor = zlib.compressobj(1, strategy=zlib.Z_RLE)
    return compressor.compress(data) + compressor.flush()


def _same_bits(one: NDArray[np.float32], other: NDArray[np.float32]) -> bool:
    return np.array_equal(one.view(np.int32), np.ascontiguousarray(other).view(np.int32))


def _render_time(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()


def _parse_time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
