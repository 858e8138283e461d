from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mmecg.embedding import fingerprint, fuse, normalise
from mmecg.errors import QueryError

A = np.array([1.0, 0.0], np.float32)
B = np.array([0.0, 1.0], np.float32)


@given(arrays(np.float32, (3, 8), elements=st.floats(0.5, 100, width=32)))
def test_normalise(vectors: np.ndarray) -> None:
    got = normalise(vectors)
    assert got.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("bad", [[0.0, 0.0], [np.nan, 1.0], [np.inf, 1.0]])
def test_vectors_without_direction(bad: list[float]) -> None:
    with pytest.raises(QueryError, match="direction"):
        normalise(np.array(bad))


def test_fuse() -> None:
    np.testing.assert_allclose(fuse({"ecg": A, "text": B}), [0.5**0.5] * 2, atol=1e-6)
    np.testing.assert_allclose(fuse({"ecg": A, "text": B}, {"text": 0}), A, atol=1e-6)
    np.testing.assert_allclose(fuse({"ecg": A, "text": B}, {"ecg": 3, "text": 4}), [0.6, 0.8], atol=1e-6)


@pytest.mark.parametrize("weights", [{"ecg": -1}, {"ecg": float("nan")}, {"ecg": 0, "text": 0}])
def test_unusable_weights(weights: dict[str, float]) -> None:
    with pytest.raises(QueryError, match="weights"):
        fuse({"ecg": A, "text": B}, weights)


def test_nothing_to_fuse() -> None:
    with pytest.raises(QueryError, match="no modality"):
        fuse({})
    with pytest.raises(QueryError, match="direction"):
        fuse({"ecg": A, "text": -A})


def test_fingerprint(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "sub" / "two"
    two.parent.mkdir()
    one.write_bytes(b"12")
    two.write_bytes(b"3")
    first = fingerprint([one, two], root=tmp_path)
    assert len(first) == 64
    assert fingerprint([two, one], root=tmp_path) == first
    one.write_bytes(b"1")
    two.write_bytes(b"23")
    assert fingerprint([one, two], root=tmp_path) != first
    assert fingerprint([one], root=tmp_path) != fingerprint([two], root=tmp_path)
