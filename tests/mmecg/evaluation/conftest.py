"""A tiny folder in PTB-XL layout, and two encoders: one that can tell its findings apart, and one that cannot."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from mmecg.ecg import LEADS, Ecg
from mmecg.embedding import normalise
from mmecg.vitals import Vitals

DIM = 16
STATEMENTS = [
    ("NORM", "normal ECG", "NORM"),
    ("IMI", "inferior myocardial infarction", "MI"),
    ("NDT", "non-diagnostic T abnormalities", "STTC"),
    ("LAFB", "left anterior fascicular block", "CD"),
    ("LVH", "left ventricular hypertrophy", "HYP"),
    ("SR", "sinus rhythm", ""),
]
WORDS = (
    ("normal", "within"),
    ("infarct", "scar"),
    ("t wave", "t abnorm", "st/t", "st-t", "st segment"),
    ("block", "conduction", "hemiblock", "lafb"),
    ("hypertrophy", "voltage", "enlarge"),
    ("sinus", "rhythm"),
)
REPORTS = ("normal ecg", "old infarct", "t wave changes", "fascicular block", "hypertrophy")


class ToyEncoder:
    """Reads the finding from the lead that the toy signals put it on; words from a list; age from the vitals."""

    def __init__(self, *, seed: int, sighted: bool) -> None:
        rng = np.random.default_rng(seed)
        self._directions = np.linalg.qr(rng.normal(size=(DIM, DIM)))[0][: len(WORDS)]
        self._noise = rng.normal(size=(len(LEADS), DIM))
        self._sighted = sighted
        self.fingerprint = f"toy-{seed}"

    def ecg_features(self, ecgs: Sequence[Ecg]) -> NDArray[np.float32]:
        return np.stack([ecg.signal.std(axis=1) for ecg in ecgs]).astype(np.float32)

    def encode_ecg(self, ecgs: Sequence[Ecg]) -> NDArray[np.float32]:
        features = self.ecg_features(ecgs)
        if not self._sighted:
            return normalise(features @ self._noise)
        return normalise(features[:, 1 : 1 + len(WORDS)] @ self._directions + 0.01 * features @ self._noise)

    def encode_text(self, texts: Sequence[str]) -> NDArray[np.float32]:
        found = np.array([[any(word in text for word in words) for words in WORDS] for text in texts], float)
        return normalise(found @ self._directions + 1e-3 * self._noise[0])

    def encode_vitals(self, vitals: Sequence[Vitals]) -> NDArray[np.float32]:
        age = np.array([[vital.age_years or 50.0] for vital in vitals]) / 100
        return normalise(age * self._directions[1] + (1 - age) * self._directions[0])


@pytest.fixture(scope="session")
def encoders() -> dict[str, ToyEncoder]:
    return {"bundle": ToyEncoder(seed=1, sighted=True), "random": ToyEncoder(seed=2, sighted=False)}


def write_record(folder: Path, name: str, finding: int, rng: np.random.Generator) -> None:
    """Write a WFDB record of format 16: 10 s at 100 Hz; the finding is loud on lead ``1 + finding``."""
    signal = rng.normal(0, 0.05, (12, 1000))
    signal[1 + finding] += np.sin(np.arange(1000) / 5)
    counts = np.rint(signal * 1000).astype("<i2")
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_name(path.name + ".dat").write_bytes(counts.T.tobytes())
    lines = [f"{path.name} 12 100 1000"]
    lines += [
        f"{path.name}.dat 16 1000.0(0)/mV 16 0 {row[0]} {int(row.sum(dtype=np.int64)) % 65536} 0 {lead}"
        for lead, row in zip(LEADS, counts, strict=True)
    ]
    path.with_name(path.name + ".hea").write_text("\n".join(lines) + "\n")


def write_ptb_xl(folder: Path, *, records: int = 240, folds: Sequence[int] = (1, 2, 9)) -> Path:
    """Write a folder in PTB-XL layout: two records a patient, five findings in turn, every seventh without a report."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "scp_statements.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["", "description", "diagnostic", "form", "rhythm", "diagnostic_class", "diagnostic_subclass"])
        for code, description, superclass in STATEMENTS:
            writer.writerow(
                [code, description, 1.0 if superclass else "", "", "" if superclass else 1.0, superclass, ""]
            )
    columns = ["ecg_id", "patient_id", "age", "sex", "height", "weight", "recording_date", "report", "scp_codes",
               "strat_fold", "filename_lr", "filename_hr"]  # fmt: skip
    with (folder / "ptbxl_database.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for record in range(records):
            finding, patient = record % 5, record // 2
            name = f"records100/00000/{record:05d}_lr"
            write_record(folder, name, finding, rng)
            codes = {STATEMENTS[finding][0]: 100.0, "SR": 0.0}
            report = "" if record % 7 == 0 else REPORTS[finding]
            age = "" if record % 11 == 0 else 40 + finding
            row = [record, float(patient), age, record % 2, "", "", "1990-01-01 10:00:00", report, codes]
            writer.writerow([*row, folds[patient % len(folds)], name, name.replace("lr", "hr")])
    return folder


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_ptb_xl(tmp_path_factory.mktemp("toy") / "ptbxl")
