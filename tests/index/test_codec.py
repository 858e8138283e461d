from __future__ import annotations

import zlib
from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from mmecg_index.codec import decode_signal, decode_study, decode_vector, encode_signal, encode_study, encode_vector

from mmecg.ecg import Ecg
from mmecg.errors import IndexFormatError
from mmecg.report import Report
from mmecg.study import ClinicalNote, Study
from mmecg.vitals import Vitals


def bits(array: np.ndarray) -> bytes:
    return np.ascontiguousarray(array, "<f4").tobytes()


@settings(deadline=None, max_examples=60)
@given(hnp.arrays(np.float32, (12, 40), elements=st.floats(-15, 15, width=32)))
def test_any_signal_comes_back_bit_by_bit(signal: np.ndarray) -> None:
    described, data = encode_signal(signal)
    assert bits(decode_signal(described, data)) == bits(signal)


@settings(deadline=None, max_examples=60)
@given(hnp.arrays(np.int16, (12, 40)), st.sampled_from([1000.0, 200.0, 204.8, 1024.0, 400.0]))
def test_a_recorders_counts_are_found_and_come_back(counts: np.ndarray, gain: float) -> None:
    signal = (counts / gain).astype(np.float32)
    described, data = encode_signal(signal)
    assert described["encoding"] == "count planes"
    assert bits(decode_signal(described, data)) == bits(signal)


def test_what_documents_of_version_1_hold_is_read() -> None:
    counts = np.random.default_rng(0).integers(-900, 900, (12, 200)).astype(np.int16)
    steps = np.diff(counts, axis=1, prepend=np.int16(0)).astype("<i2")
    described = {"samples": 200, "encoding": "counts", "gain": 1000.0}
    assert bits(decode_signal(described, zlib.compress(steps.tobytes(), 3))) == bits(counts / 1000)


def test_negative_zero_survives() -> None:
    signal = np.zeros((12, 100), np.float32)
    signal[3, 7] = -0.0
    described, data = encode_signal(signal)
    assert bits(decode_signal(described, data)) == bits(signal)


def test_counts_are_much_smaller_than_floats() -> None:
    wave = np.sin(np.linspace(0, 60, 5000)) + np.random.default_rng(0).normal(0, 0.01, (12, 5000))
    exact, rounded = wave.astype(np.float32), ((wave * 1000).astype(np.int16) / 1000).astype(np.float32)
    assert len(encode_signal(rounded)[1]) < 0.5 * rounded.nbytes
    assert len(encode_signal(rounded)[1]) < 0.5 * len(encode_signal(exact)[1])


def full_study() -> Study:
    random = np.random.default_rng(0)
    signal = np.rint(random.standard_normal((3, 500)) * 400) / 1000
    return Study(
        study_id="s1",
        subject_id="p ü1",
        acquired_at=datetime(2021, 3, 4, 5, 6, 7, 89, tzinfo=UTC),
        ecg=Ecg.from_array(signal, sampling_rate_hz=250.5, leads=["V3", "II", "aVF"]),
        report=Report("Sinusrhythmus  —  Größe\nEdit: x", "sinusrhythmus größe"),
        notes=(
            ClinicalNote("chest pain 🫀", "triage", datetime(2021, 3, 4, 4)),
            ClinicalNote("later", "discharge", None),
        ),
        vitals=Vitals(age_years=0.1 + 0.2, sex="female", heart_rate_bpm=71, spo2_percent=97.5),
        labels={"AFIB": 100.0, "SR": 0.0, "X": 1 / 3},
        site="north",
        device="CS-12 E",
        attributes={"fold": "3", "quote": "\"'\\"},
    )


def test_every_field_of_a_study_comes_back() -> None:
    study = full_study()
    document, signal = encode_study(study)
    again = decode_study(study.study_id, study.subject_id, document, signal)
    for name in ("study_id", "subject_id", "acquired_at", "report", "notes", "vitals", "labels", "site", "device"):
        assert getattr(again, name) == getattr(study, name), name
    assert again.attributes == study.attributes
    assert list(again.labels) == list(study.labels)
    assert again.acquired_at is not None
    assert again.acquired_at.tzinfo is not None
    assert study.ecg is not None
    assert again.ecg is not None
    assert bits(again.ecg.signal) == bits(study.ecg.signal)
    assert again.ecg.sampling_rate_hz == 250.5
    assert again.ecg.leads == ("II", "aVF", "V3")
    assert again.ecg.lead_mask.dtype == np.bool_


def test_a_study_with_nothing_comes_back() -> None:
    study = Study(study_id="s", subject_id="p")
    document, signal = encode_study(study)
    assert signal is None
    assert decode_study("s", "p", document, signal) == study


@pytest.mark.parametrize("at", [0, 10, -1])
def test_a_damaged_signal_is_refused(at: int) -> None:
    document, signal = encode_study(full_study())
    assert signal is not None
    damaged = bytearray(signal)
    damaged[at] ^= 4
    for data in (bytes(damaged), signal[:-3], b""):
        with pytest.raises(IndexFormatError):
            decode_study("s1", "p", document, data)


def test_a_damaged_document_or_vector_is_refused() -> None:
    document, signal = encode_study(full_study())
    for text in (document[:-1], "{}", "[]", document.replace('"report"', '"rapport"')):
        with pytest.raises(IndexFormatError):
            decode_study("s1", "p", text, signal)
    row, *key, data, crc = encode_vector(7, "ecg", "f", np.arange(4, dtype=np.float32))
    assert decode_vector(row, *key, data, crc).tolist() == [0, 1, 2, 3]
    with pytest.raises(IndexFormatError):
        decode_vector(row, *key, data[:-1] + b"\1", crc)
    with pytest.raises(IndexFormatError, match="checksum"):
        decode_vector(row + 1, *key, data, crc)


def test_a_document_of_a_later_release_is_refused() -> None:
    document, signal = encode_study(full_study())
    assert document.startswith('{"version":2,')
    with pytest.raises(IndexFormatError, match="format version 3, expected at most 2; open the corpus with"):
        decode_study("s1", "p", document.replace('"version":2', '"version":3'), signal)
    without = document.replace('"version":2,', "")
    assert decode_study("s1", "p", without, signal).report == full_study().report
