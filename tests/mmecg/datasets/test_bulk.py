from __future__ import annotations

import sys
import time

import pytest

from mmecg.datasets.bulk import BulkRead
from mmecg.errors import SignalError


def double(item: int) -> int:
    if item % 7 == 3:
        raise SignalError(f"record {item} is broken")
    if item == 11:
        raise KeyError("surprise")
    return 2 * item


@pytest.mark.parametrize("processes", [1, 2])
def test_order_and_failures(processes: int) -> None:
    bulk = BulkRead(double, range(300), processes=processes, name=lambda item: f"r{item}")
    results = list(bulk)
    assert results == [(item, 2 * item) for item in range(300) if item % 7 != 3 and item != 11]
    report = bulk.report
    assert report.read == len(results)
    assert report.failures.row(0) == ("r3", "record 3 is broken")
    assert report.failures.row(2) == ("r11", "KeyError: 'surprise'")
    assert len(results) + report.failures.height == len(bulk) == 300
    assert not report.ok


def test_it_streams() -> None:
    seen: list[int] = []
    for item, _ in BulkRead(seen.append, range(10**9), processes=1):
        if item == 4:
            break
    assert seen == [0, 1, 2, 3, 4]


def test_the_progress_bar_goes_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rich")
    assert len(list(BulkRead(time.sleep, [0, 0], processes=1, quiet=False))) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert "reading" in output.err
    list(BulkRead(time.sleep, [0], processes=1))
    assert capsys.readouterr().err == ""


def test_no_bar_without_rich(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "rich"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "rich.console", None)
    assert list(BulkRead(double, [1], quiet=False)) == [(1, 2)]
