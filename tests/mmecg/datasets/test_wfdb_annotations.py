"""Marked waves: what the wfdb package writes is read, and what is damaged is refused."""

import warnings
from pathlib import Path

import numpy as np
import pytest

from mmecg.datasets.wfdb_annotations import Wave, read_waves
from mmecg.errors import SignalError

MARKS = [(90, "("), (100, "N"), (110, ")"), (300, "p"), (90_000, "t"), (90_020, ")")]


@pytest.fixture
def record(tmp_path: Path) -> Path:
    """A record whose lead ii was annotated by the wfdb package, with a long gap, notes and numbers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import wfdb

        samples, symbols = zip(*MARKS, strict=True)
        wfdb.wrann(
            "one", "ii", np.array(samples), list(symbols), aux_note=["", "odd", "", "even", "", ""],
            num=np.array([0, 2, 0, 0, 1, 0]), fs=500, write_dir=str(tmp_path),
        )  # fmt: skip
    return tmp_path / "one"


def test_waves_are_read_with_their_ends(record: Path) -> None:
    assert read_waves(record, "ii") == (
        Wave("QRS", 90, 100, 110),
        Wave("P", 300, 300, 300),
        Wave("T", 90_000, 90_000, 90_020),
    )


def test_a_missing_or_damaged_file_is_refused(record: Path) -> None:
    with pytest.raises(SignalError, match=r"one\.v1 cannot be read"):
        read_waves(record, "v1")
    file = record.with_name("one.ii")
    content = file.read_bytes()
    for length in range(len(content) - 2):
        file.write_bytes(content[:length])
        with pytest.raises(SignalError, match=r"one\.ii cannot be read"):
            read_waves(record, "ii")
