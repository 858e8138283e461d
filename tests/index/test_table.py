"""The metadata table under every kind of change, beside a dict."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from mmecg_index import table
from mmecg_index.corpus import Corpus
from mmecg_index.database import Database
from mmecg_index.writer import Writer

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
