"""The real bundle and real files in a temporary folder; only the heart is synthetic."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from mmecg.assets import DEFAULT_BUNDLE
from mmecg.cli import main
from mmecg.datasets.parquet import write_studies
from mmecg.datasets.synthetic import synthetic_ecg
from mmecg.ecg import Ecg
from mmecg.report import Report
from mmecg.study import Study
from mmecg.vitals import Vitals

STUDIES = 24


@dataclass(frozen=True)
class Outcome:
    """What a command left: its exit code, and what it printed."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line of an error."""
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        assert lines[0].startswith("mmecg: error: "), self.err
        return lines[0].removeprefix("mmecg: error: ")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Run a command in this process."""

    def run_command(*arguments: object) -> Outcome:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return Outcome(code, printed.out, printed.err)

    return run_command


def build_study(number: int) -> Study:
    fibrillates = number % 2 == 1
    return Study(
        study_id=f"study-{number}",
        subject_id=f"subject-{number // 2}",
        acquired_at=datetime(1990, 1, 1) + timedelta(days=number),
        ecg=synthetic_ecg(rhythm="atrial_fibrillation" if fibrillates else "sinus", seed=number),
        report=Report.from_text("atrial fibrillation" if fibrillates else "sinus rhythm"),
        vitals=Vitals(age_years=40 + number, sex="female" if number % 3 else "male"),
        labels={"AFIB" if fibrillates else "SR": 100.0},
        site="0",
    )


def write_record(folder: Path, name: str, ecg: Ecg) -> Path:
    """Write a WFDB record (format 16) the plain way; returns its path without suffix."""
    counts = np.rint(ecg.signal * 1000).astype("<i2")
    (folder / f"{name}.dat").write_bytes(counts.T.tobytes())
    lines = [f"{name} {len(ecg.leads)} {ecg.sampling_rate_hz:g} {counts.shape[1]}"]
    for lead, row in zip(ecg.leads, counts, strict=True):
        checksum = int(np.int64(row.sum()).astype(np.int16))
        lines.append(f"{name}.dat 16 1000/mV 16 0 {row[0]} {checksum} 0 {lead}")
    (folder / f"{name}.hea").write_text("\n".join(lines) + "\n")
    return folder / name


@pytest.fixture(scope="session")
def studies() -> Sequence[Study]:
    return [build_study(number) for number in range(STUDIES)]


@pytest.fixture(scope="session")
def table(studies: Sequence[Study], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Parquet table of the studies."""
    path = tmp_path_factory.mktemp("table") / "studies.parquet"
    write_studies(studies, path)
    return path


@pytest.fixture(scope="session")
def corpus(table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of the studies, built by the command itself. Tests must not change it."""
    if not DEFAULT_BUNDLE.is_dir():
        pytest.fail("the bundle is not in mmecg/assets/bundle")
    path = tmp_path_factory.mktemp("built") / "corpus"
    assert main(["build", "--data", str(table), "--out", str(path), "--json"]) == 0
    return path


@pytest.fixture(scope="session")
def record(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A WFDB record with atrial fibrillation."""
    return write_record(tmp_path_factory.mktemp("record"), "af", synthetic_ecg(rhythm="atrial_fibrillation", seed=99))


@pytest.fixture
def records(tmp_path: Path) -> Path:
    """A folder of three WFDB records, two of them below a folder of their own."""
    folder = tmp_path / "records"
    (folder / "more").mkdir(parents=True)
    write_record(folder, "r1", synthetic_ecg(seed=1))
    write_record(folder / "more", "r2", synthetic_ecg(seed=2))
    write_record(folder / "more", "r3", synthetic_ecg(seed=3, duration_s=4, sampling_rate_hz=250))
    return folder
