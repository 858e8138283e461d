from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from mmecg_index.faiss_index import FaissIndex
from mmecg_index.manifest import MANIFEST
from mmecg_index.snapshot import load_index, save_index

from mmecg.embedding import normalise
from mmecg.errors import AlreadyExistsError, FingerprintMismatchError, IndexFormatError, OverloadedError

DIM = 8
FINGERPRINT = "a" * 64
FACTORIES = [None, "HNSW8", "IVF4,Flat", "IVF4,SQ8", "HNSW8_SQ8"]


def make(factory: str | None) -> FaissIndex:
    """An index with a segment, a tail, and something removed from each."""
    data = normalise(np.random.default_rng(0).standard_normal((400, DIM)))
    index = FaissIndex(DIM, FINGERPRINT, factory=factory)
    index.upsert(np.arange(300), data[:300])
    index.compact()
    index.upsert(np.arange(290, 390), data[300:])
    index.remove(np.array([3, 4, 350]))
    return index


@pytest.mark.parametrize("factory", FACTORIES)
def test_what_is_loaded_answers_as_what_was_saved(factory: str | None, tmp_path: Path) -> None:
    index = make(factory)
    save_index(index, tmp_path / "snapshot", sequence=17)
    loaded, sequence = load_index(tmp_path / "snapshot", fingerprint=FINGERPRINT)
    assert sequence == 17
    assert len(loaded) == len(index) == 387
    assert loaded.factory == factory
    queries = normalise(np.random.default_rng(1).standard_normal((7, DIM)))
    for rows in (None, np.arange(0, 390, 3)):
        before, after = (each.search(queries, 20, rows=rows) for each in (index, loaded))
        np.testing.assert_array_equal(before.rows, after.rows)
        np.testing.assert_array_equal(before.scores, after.scores)
        assert before.plan == after.plan
    # And it goes on living.
    loaded.upsert(np.array([1000]), queries[:1])
    loaded.compact()
    assert loaded.search(queries[:1], 1).rows.tolist() == [[1000]]


def test_the_manifest_says_what_there_is(tmp_path: Path) -> None:
    save_index(make("HNSW8"), tmp_path / "snapshot", sequence=5)
    manifest = json.loads((tmp_path / "snapshot" / MANIFEST).read_text())
    assert (manifest["format"], manifest["version"], manifest["fingerprint"]) == ("mmecg-index", 1, FINGERPRINT)
    assert (manifest["count"], manifest["sequence"], manifest["dim"]) == (387, 5, DIM)
    assert manifest["ann"]["factory"] == "HNSW8"
    assert 0.9 < manifest["ann"]["measured_recall"] <= 1
    files = {path.name for path in (tmp_path / "snapshot").iterdir()} - {MANIFEST}
    assert set(manifest["files"]) == files
    assert not any(name.endswith((".pkl", ".pickle")) for name in files)


@pytest.mark.parametrize("factory", FACTORIES)
@pytest.mark.parametrize("damage", ["flip", "truncate", "zero tail", "append", "remove"])
def test_a_damaged_file_is_refused(factory: str | None, damage: str, tmp_path: Path) -> None:
    save_index(make(factory), tmp_path / "good")
    random = np.random.default_rng(0)
    for name in sorted(path.name for path in (tmp_path / "good").iterdir()):
        size = (tmp_path / "good" / name).stat().st_size
        for at in (0, size - 1, *random.integers(0, size, 6).tolist()) if damage == "flip" else (size // 2,):
            copy = tmp_path / "bad"
            shutil.copytree(tmp_path / "good", copy)
            content = bytearray((copy / name).read_bytes())
            if damage == "flip":
                content[at] ^= 1 << int(random.integers(8))
            elif damage == "zero tail":
                content[-16:] = bytes(16)
            elif damage == "append":
                content += b" "
            else:
                del content[at:]
            (copy / name).write_bytes(content)
            if damage == "remove":
                (copy / name).unlink()
            with pytest.raises(IndexFormatError):
                load_index(copy, fingerprint=FINGERPRINT)
            shutil.rmtree(copy)


def test_every_bit_of_the_manifest_counts(tmp_path: Path) -> None:
    save_index(make(None), tmp_path / "snapshot")
    manifest = tmp_path / "snapshot" / MANIFEST
    good = manifest.read_bytes()
    for at in range(len(good)):
        manifest.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        with pytest.raises(IndexFormatError):
            load_index(tmp_path / "snapshot", fingerprint=FINGERPRINT)


def test_another_fingerprint_is_refused(tmp_path: Path) -> None:
    save_index(make(None), tmp_path / "snapshot")
    with pytest.raises(FingerprintMismatchError, match="aaaaaaaaaaaa"):
        load_index(tmp_path / "snapshot", fingerprint="b" * 64)


def test_foreign_directories_are_refused(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    for content in (None, b"", b"[]", b"{}", b'{"format": "other", "seal": "x"}', b"\xff\xfe"):
        if content is not None:
            (tmp_path / "other" / MANIFEST).write_bytes(content)
        with pytest.raises(IndexFormatError):
            load_index(tmp_path / "other", fingerprint=FINGERPRINT)


def test_a_snapshot_is_never_overwritten(tmp_path: Path) -> None:
    save_index(make(None), tmp_path / "snapshot", sequence=1)
    with pytest.raises(AlreadyExistsError):
        save_index(make(None), tmp_path / "snapshot", sequence=2)
    assert load_index(tmp_path / "snapshot", fingerprint=FINGERPRINT)[1] == 1


def test_a_save_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise RuntimeError("write error: No space left on device")  # FAISS has no other kind

    monkeypatch.setattr("mmecg_index.snapshot.faiss.write_index", full)
    with pytest.raises(OverloadedError, match="the disk is full"):
        save_index(make("HNSW8"), tmp_path / "snapshot")
    assert list(tmp_path.iterdir()) == []
