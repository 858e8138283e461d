"""Several processes give what one gives, in the same order."""

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from mmecg.labels import parallel
from mmecg.labels.mining import LabelMiner
from mmecg.labels.parallel import mine_in_parallel

TEXTS = ["possible LVH. no infarct", "vorhofflimmern", None, "sinus rhythm\x00", "infrct", "no longer AFIB", "LVH"]
TABLE = pl.DataFrame({"id": ["a", "b", "c", "d", "e", "f", "a"], "report": TEXTS})
TYPOS = {b"infrct": b"infarct"}


def certain(assertion: object) -> float:
    return 1.0


def refuse_probability(assertion: object) -> float:
    raise ArithmeticError("no probability")


@pytest.mark.parametrize(("jobs", "batch_rows"), [(2, 2), (3, 1), (1, 2), (2, 100)])
def test_as_one_process(jobs: int, batch_rows: int) -> None:
    options = {"id_column": "id", "probability": certain, "batch_rows": batch_rows}
    expected = list(LabelMiner(typos=TYPOS).mine_batches(TABLE, **options))
    found = list(mine_in_parallel(TABLE.lazy(), **options, typos=TYPOS, jobs=jobs))
    assert len(found) == len(expected)
    for some, others in zip(found, expected, strict=True):
        for frame, other in zip(some, others, strict=True):
            assert_frame_equal(frame, other)
    assertions, rows = (pl.concat(part) for part in zip(*found, strict=True))
    assert rows["study_id"].to_list() == TABLE["id"].to_list()
    assert assertions["study_id"].to_list() == ["a", "a", "b", "e", "f", "a"]


def test_workers_start_for_large_tables_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> int:
        raise AssertionError("asked for cores")

    monkeypatch.setattr(parallel, "available_cores", refuse)
    assert len(list(mine_in_parallel(TABLE, batch_rows=3))) == 3
    with pytest.raises(AssertionError, match="asked for cores"):
        list(mine_in_parallel(TABLE, batch_rows=2))


def test_an_error_of_a_worker_is_raised_here() -> None:
    with pytest.raises(ArithmeticError, match="no probability"):
        list(mine_in_parallel(TABLE, probability=refuse_probability, jobs=2))
