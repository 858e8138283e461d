"""The metadata table under every kind of change, beside a dict."""

from __future__ import annotations

import shutil
import sqlite3
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from mmecg_index import table
from mmecg_index.corpus import Corpus
from mmecg_index.database import Database
from mmecg_index.erasure import find_remains
from mmecg_index.table import load_table, save_table
from mmecg_index.verify import verify
from mmecg_index.writer import Writer

from mmecg.errors import FingerprintMismatchError, IndexFormatError
from mmecg.search import METADATA_SCHEMA


def record(row: int, site: str) -> tuple[Any, ...]:
    return (row, f"s{row}", "p", None, 50.0, "female", site, None, ["NORM"], "sinus rhythm", [])


def test_it_is_what_a_dict_would_be(tmp_path: Path) -> None:
    Corpus.create(tmp_path / "corpus", "f" * 64, dim=8).close()
    database = Database(tmp_path / "corpus" / "corpus.sqlite")
    metadata = table.MetadataTable(tmp_path / "index", database, Writer(database, lambda written: None))
    model: dict[int, tuple[Any, ...]] = {}
    last = 0
    random = np.random.default_rng(0)
    for step in range(400):
        changes: dict[int, tuple[Any, ...] | None] = {}
        for _ in range(int(random.integers(1, 4))):
            if model and random.random() < 0.4:  # replaced, or gone
                row = int(random.choice(list(model)))
                changes[row] = None if random.random() < 0.5 else record(row, f"site {step}")
            else:
                last += int(random.integers(1, 3))  # rows are not without gaps
                changes[last] = record(last, f"site {step}")
        metadata.change(changes)
        model |= changes
        model = {row: kept for row, kept in model.items() if kept is not None}
        if step % 2:
            found = metadata.current()
            assert found.rows() == [model[row] for row in sorted(model)]
            assert dict(found.schema) == METADATA_SCHEMA
            assert found.n_chunks() <= table._MAX_CHUNKS
            assert metadata.current() is found
    database.close()


def test_additions_are_chunks_until_they_are_many() -> None:
    found = table._frame([record(1, "a")])
    counts = []
    for row in range(2, 200):
        found = table._changed(found, {row: record(row, "a")})
        counts.append(found.n_chunks())
    assert max(counts) == table._MAX_CHUNKS
    assert counts.count(1) == 198 // table._MAX_CHUNKS
    assert found["row"].to_list() == list(range(1, 200))


def odd_table() -> pl.DataFrame:
    """Everything missing, empty, long, not ASCII, or ending as the file ends a text."""
    time = datetime(2020, 2, 29, 23, 59, 59, 999999)
    return table._frame(
        [
            (1, "a", "p", None, None, None, None, None, [], "", []),
            (5, "é" * 40, "Ж", time, 101.5, "male", "", "cart\0", ["", "AFIB", "\0"], "sinus\0", ["flat", "noisy"]),
            (2**40, "b", "p", time, float("nan"), "female", "north", None, ["x" * 30], "st " * 50, []),
        ]
    )


@pytest.mark.parametrize("rows", [0, 3])
def test_what_is_loaded_is_what_was_saved(rows: int, tmp_path: Path) -> None:
    want = odd_table().head(rows)
    save_table(want, tmp_path / "one", fingerprint="f", sequence=9)
    found, sequence = load_table(tmp_path / "one", fingerprint="f")
    assert (found.schema, sequence) == (want.schema, 9)
    assert found.equals(want)
    assert found["age_years"].is_nan().to_list() == want["age_years"].is_nan().to_list()
    with pytest.raises(FingerprintMismatchError):
        load_table(tmp_path / "one", fingerprint="g")


def test_every_flipped_bit_is_found(tmp_path: Path) -> None:
    save_table(odd_table(), tmp_path / "one", fingerprint="f", sequence=9)
    for file in (tmp_path / "one").iterdir():
        good = file.read_bytes()
        for at in range(0, len(good), 7):
            file.write_bytes(good[:at] + bytes([good[at] ^ 4]) + good[at + 1 :])
            with pytest.raises(IndexFormatError):
                load_table(tmp_path / "one", fingerprint="f")
        file.write_bytes(good)
    assert load_table(tmp_path / "one", fingerprint="f")[0].equals(odd_table())


def test_nothing_of_a_row_that_is_gone_is_in_the_file(tmp_path: Path) -> None:
    """Polars cuts rows out of a table without copying the others; what is written is copied."""
    whole = table._frame([record(row, f"a long name of site number {row:04d}") for row in range(100)])
    save_table(table._changed(whole, {50: None}), tmp_path / "one", fingerprint="f", sequence=1)
    content = (tmp_path / "one" / "table.arrow").read_bytes()
    assert b"site number 0049\0" in content
    assert b"site number 0050" not in content


def test_an_old_snapshot_is_caught_up_without_reading_the_rest(filled: Path, study, embedding, tmp_path: Path) -> None:
    shutil.copytree(filled / "index", tmp_path / "old")
    with Corpus(filled) as corpus:
        corpus.upsert([study(3, site="new"), study(300, ecg=None)], [embedding(3), embedding(300)])
        corpus.delete(study(4).study_id)
        want = corpus.metadata()
    shutil.rmtree(filled / "index")
    shutil.copytree(tmp_path / "old", filled / "index")
    with sqlite3.connect(filled / "corpus.sqlite") as connection:  # read again, it would be refused
        connection.execute("UPDATE studies SET document = '{}' WHERE study_id = ?", (study(5).study_id,))
    connection.close()
    with Corpus(filled) as corpus:
        assert corpus.metadata().equals(want)


@pytest.mark.parametrize("change", ["site", "one less", "one more"])
def test_a_table_that_is_not_the_stores_is_told_by_verify(filled: Path, change: str) -> None:
    (path,) = (filled / "index").glob("metadata-*")
    fingerprint = "a" * 64
    found, sequence = load_table(path, fingerprint=fingerprint)
    changed = {
        "site": found.with_columns(site=pl.lit("elsewhere")),
        "one less": found.head(-1),
        "one more": pl.concat([found, table._frame([record(1000, "x")])]),
    }[change]
    shutil.rmtree(path)
    save_table(changed, path, fingerprint=fingerprint, sequence=sequence)
    (finding,) = verify(filled).findings
    assert path.name in finding
    with Corpus(filled) as corpus:  # a table of another length is not used; one that was forged under a seal is
        assert (corpus.metadata().equals(found)) == (change != "site")


def test_the_search_for_traces_reads_the_table(filled: Path, template: Path) -> None:
    """Its texts are in lower case, so it is looked for them, too."""
    shutil.copytree(next((filled / "index").glob("metadata-*")), filled / "index" / "kept")
    with Corpus(filled) as corpus:
        corpus.delete("study-0012-é")
        corpus.delete("study-0013-é")
        corpus.delete("study-0014-é")
        found = find_remains(filled, ["patient-0004"], known_from=template)
        kinds = {trace.kind for trace in found if trace.file == "index/kept/table.arrow"}
        assert kinds == {"id", "content"}
        assert corpus.erase_subject("patient-0004").studies == 0
        assert find_remains(filled, ["patient-0004"], known_from=template) == []
