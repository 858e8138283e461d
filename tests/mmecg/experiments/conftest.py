"""A small folder in PTB-XL layout with synthetic ECGs whose findings can be seen, and an encoder to try on it."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mmecg.adaptation.backbone import save_backbone, small_backbone
from mmecg.datasets.synthetic import synthetic_ecg
from mmecg.ecg import LEADS
from mmecg.experiments.bench import Bench, open_bench
from mmecg.experiments.experiment import Options

FOLDS = (6, 7, 8, 9)
RECORDS = 128
STATEMENTS = {"NORM": "NORM", "LVH": "HYP", "IMI": "MI", "AFIB": "", "SBRAD": "", "STACH": "", "PVC": ""}


def quiet(what: str, done: int, total: int) -> None:
    """Show no progress."""


def _record(path: Path, fibrillation: bool, tall: bool, slow: bool, seed: int) -> None:
    ecg = synthetic_ecg(
        heart_rate_bpm=50 if slow else 95,
        amplitude=2.0 if tall else 1.0,
        rhythm="atrial_fibrillation" if fibrillation else "sinus",
        seed=seed,
    )
    counts = np.rint(ecg.signal * 1000).astype("<i2")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_name(path.name + ".dat").write_bytes(counts.T.tobytes())
    lines = [f"{path.name} {len(LEADS)} 100 {counts.shape[1]}"]
    lines += [
        f"{path.name}.dat 16 1000.0(0)/mV 16 0 {row[0]} {int(row.sum(dtype=np.int64)) % 65536} 0 {lead}"
        for lead, row in zip(LEADS, counts, strict=True)
    ]
    path.with_name(path.name + ".hea").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two recordings a patient; every second one fibrillates; form and rate change by powers of two: all balanced."""
    root = tmp_path_factory.mktemp("experiments") / "ptbxl"
    root.mkdir()
    with (root / "scp_statements.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["", "description", "diagnostic", "form", "rhythm", "diagnostic_class", "diagnostic_subclass"])
        for code, superclass in STATEMENTS.items():
            diagnostic = 1.0 if superclass else ""
            writer.writerow([code, code, diagnostic, "", "" if superclass else 1.0, superclass, ""])
    columns = ["ecg_id", "patient_id", "age", "sex", "height", "weight", "recording_date", "report", "scp_codes",
               "strat_fold", "filename_lr", "filename_hr", "device", "site"]  # fmt: skip
    with (root / "ptbxl_database.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for record in range(RECORDS):
            patient = record // 2
            fold = FOLDS[patient % len(FOLDS)]
            kind = patient // len(FOLDS)
            fibrillation, tall, slow = record % 2 == 1, kind % 2 == 1, kind // 2 % 2 == 1
            name = f"records100/00000/{record:05d}_lr"
            _record(root / name, fibrillation, tall, slow, record)
            codes = {"LVH" if tall else "NORM": 100.0, "SBRAD" if slow else "STACH": 0.0}
            codes |= {"AFIB": 0.0} if fibrillation else {}
            codes |= {"IMI": 100.0} if kind % 4 == 3 else {}
            row = [record, float(patient), 50 + kind, record % 2, "", "", "1990-01-01 10:00:00", "sinus", codes]
            writer.writerow([*row, fold, name, name.replace("lr", "hr"), f"CS-{kind // 4 % 2}", kind % 2])
    return root


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with an encoder."""
    path = tmp_path_factory.mktemp("encoder") / "toy"
    save_backbone(path, small_backbone(3))
    return path


@pytest.fixture(scope="session")
def options(folder: Path, encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Options:
    """Options whose cache serves all tests."""
    return Options(data=folder, cache=tmp_path_factory.mktemp("cache"), encoders=(encoder,), resamples=50)


@pytest.fixture(scope="session")
def bench(options: Options) -> Bench:
    """The bench of all tests, except those that change something."""
    return open_bench(options, quiet)


@pytest.fixture
def fresh_bench(options: Options) -> Callable[..., Bench]:
    """Return what opens a bench with other options."""
    return lambda **changes: open_bench(replace(options, **changes), quiet)
