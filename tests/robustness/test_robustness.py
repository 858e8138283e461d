"""The short forms of the three runs; the long ones are scripts. See README.md beside this file."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent


def run(module: str, tmp_path: Path, *options: str) -> Any:
    """Run a module as its script does; return its summary."""
    summary = tmp_path / "summary.json"
    command = [sys.executable, str(HERE / f"{module}.py"), *options, "--json", str(summary)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900, env=environment)
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-3000:]
    return json.loads(summary.read_text())


def test_a_killed_server_loses_nothing(tmp_path: Path) -> None:
    total = run("crash", tmp_path, "--rounds", "10", "--seed", "3")["total"]
    assert total["rounds"] == 10
    assert total["writes"] > 0
    assert not any(total[name] for name in ("lost", "back", "wrong", "index", "audit", "opens that failed"))


def test_the_check_finds_what_is_lost_and_what_is_back(tmp_path: Path) -> None:
    found = run("sabotage", tmp_path)
    assert found.pop("nothing") == []
    assert {name: "lost" in promises for name, promises in found.items() if "deleted" in name} == {
        "a study is deleted": True,
        "a study is deleted in the file": True,
    }
    assert "back" in found["an erased study is put back"]
    assert "back" in found["a word of somebody erased is left in a file"]
    assert all(found.values())


@pytest.mark.skipif(shutil.which("cc") is None and shutil.which("gcc") is None, reason="there is no C compiler")
def test_a_disk_that_fails_is_told_of_and_loses_nothing(tmp_path: Path) -> None:
    summary = run("faults", tmp_path, "--each", "1", "--power-cuts", "10", "--flips", "30", "--seed", "4")
    assert {row["opens again"] for row in summary["faults"].values()} == {1, 10}
    struck = [row["struck"] for row in summary["faults"].values()]
    assert sum(map(bool, struck)) > len(struck) / 2  # not each is met in so short a work
    flips = summary["flips"]["index files"]
    assert flips["found by verify"] == flips["answers as before"] == flips["flips"] == 30
    assert summary["failures"] == []


def test_malformed_requests_do_no_harm(tmp_path: Path) -> None:
    off, on = run("fuzz", tmp_path, "--count", "2000", "--program-share", "0", "--seed", "5")
    assert off["faults"] == on["faults"] == []
    assert off["sent"] + on["sent"] > 1900
    assert set(on["codes"]["no token"]) <= {"UNAUTHENTICATED", "left", "not sent"}
    assert off["codes"]["anybody"]["OK"] > 0  # some get through, so that there is something to break
