from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from mmecg_index.corpus import Corpus
from mmecg_index.transfer import MANIFEST, Export, export_corpus

from mmecg.datasets.parquet import read_studies
from mmecg.datasets.wfdb import read_wfdb
from mmecg.errors import AlreadyExistsError, IndexFormatError

Content = Callable[[Path], dict]


@pytest.fixture
def exported(filled: Path, tmp_path: Path) -> Path:
    export_corpus(filled, tmp_path / "export", with_embeddings=True)
    return tmp_path / "export"


def imported(export: Path, target: Path, times: int = 1) -> Path:
    with Corpus.create(target, Export(export).fingerprint, dim=Export(export).dim) as corpus:
        for _ in range(times):
            for study, embeddings in Export(export):
                corpus.upsert([study], [embeddings])
    return target


def test_an_imported_corpus_is_the_exported_one(exported: Path, filled: Path, tmp_path: Path, content: Content) -> None:
    assert content(imported(exported, tmp_path / "imported", times=2)) == content(filled)


def test_what_is_where(filled: Path, tmp_path: Path) -> None:
    made = export_corpus(filled, tmp_path / "export")
    with_signal = [i for i in range(30) if i % 7 != 6]
    off_grid = [i for i in with_signal if i % 5 == 4]
    assert (made.studies, made.records, made.float32_signals) == (30, len(with_signal) - len(off_grid), len(off_grid))
    assert made.fingerprint == ""
    assert len(list((tmp_path / "export" / "records").rglob("*.hea"))) == made.records
    (table,) = (tmp_path / "export").glob("*.parquet")
    rows = pl.read_parquet(table)
    assert rows["schema_version"].unique().to_list() == [1]
    assert rows["embedding_ecg"].null_count() == 30


def test_other_readers_read_it(exported: Path, study, filled: Path) -> None:
    (table,) = exported.glob("*.parquet")
    first, *_ = read_studies(table)
    assert (first.study_id, first.report, first.labels) == ("study-0000-é", study(0).report, study(0).labels)
    assert first.ecg is None
    record = exported / pl.read_parquet(table)["record"][0]
    assert read_wfdb(record).signal.tobytes() == study(0).ecg.signal.tobytes()

    with warnings.catch_warnings():  # of its dependencies, when it is imported
        warnings.simplefilter("ignore")
        import wfdb  # the reference reader

    reference = wfdb.rdrecord(str(record))
    assert reference.sig_name[:2] == ["I", "II"]
    assert reference.base_datetime == study(0).acquired_at
    counts = wfdb.rdrecord(str(record), physical=False).d_signal
    assert [each % 65536 for each in reference.checksum] == (counts.sum(axis=0, dtype=np.int64) % 65536).tolist()
    np.testing.assert_array_equal(reference.p_signal.T.astype(np.float32), study(0).ecg.signal)


def test_export_of_a_corpus_in_use(filled: Path, tmp_path: Path, content: Content) -> None:
    with Corpus(filled):
        export_corpus(filled, tmp_path / "export", with_embeddings=True)
    assert content(imported(tmp_path / "export", tmp_path / "imported")) == content(filled)


def test_tables_are_cut_to_parts(filled: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("mmecg_index.transfer.PART_STUDIES", 8)
    assert export_corpus(filled, tmp_path / "export").studies == 30
    assert len(list((tmp_path / "export").glob("*.parquet"))) == 4
    assert [study.study_id for study, _ in Export(tmp_path / "export")] == [f"study-{i:04d}-é" for i in range(30)]


@pytest.mark.parametrize("damage", ["table", "record", "no record", "manifest", "no manifest", "other program"])
def test_damage_is_refused(exported: Path, damage: str) -> None:
    table, record = next(exported.glob("*.parquet")), next(exported.rglob("*.dat"))
    if damage == "table":
        table.write_bytes(table.read_bytes()[:-10])
    elif damage == "record":
        values = bytearray(record.read_bytes())
        values[100], values[102] = values[102] ^ 1, values[100] ^ 1
        record.write_bytes(values)
    elif damage == "no record":
        record.unlink()
    elif damage == "manifest":
        (exported / MANIFEST).write_text((exported / MANIFEST).read_text()[:-10])
    elif damage == "no manifest":
        (exported / MANIFEST).unlink()
    else:
        (exported / MANIFEST).write_text('{"format": "other", "version": 1}')
    with pytest.raises(IndexFormatError):
        list(Export(exported))


def test_newer_export_is_refused(exported: Path) -> None:
    manifest = json.loads((exported / MANIFEST).read_text())
    (exported / MANIFEST).write_text(json.dumps(manifest | {"version": 2}))
    with pytest.raises(IndexFormatError, match="format version 2, expected at most 1; import it with a later release"):
        Export(exported)


def test_nothing_is_overwritten_and_nothing_is_left_of_a_failure(filled: Path, tmp_path: Path, monkeypatch) -> None:
    export_corpus(filled, tmp_path / "export")
    with pytest.raises(AlreadyExistsError):
        export_corpus(filled, tmp_path / "export")
    monkeypatch.setattr("mmecg_index.transfer.write_wfdb", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export_corpus(filled, tmp_path / "other")
    assert not (tmp_path / "other").exists()
