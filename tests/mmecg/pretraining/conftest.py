"""Small networks, and synthetic recordings that differ between patients."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mmecg.adaptation.backbone import Backbone, randomised, small_backbone
from mmecg.datasets.synthetic import synthetic_ecg
from mmecg.pretraining.config import MaskedConfig, PretrainingConfig, SegmentConfig
from mmecg.pretraining.recordings import Recordings

TINY = {"stem_width": 8, "widths": [8, 16], "kernels": [5, 3], "strides": [2, 4]}


@pytest.fixture
def backbone() -> Backbone:
    """Our tower, tiny: 16 steps a second divided by 2 * 2 * 4."""
    small = small_backbone(0)
    hyperparameters = {**small.config.hyperparameters, **TINY}
    config = replace(small.config, hyperparameters=hyperparameters)
    return randomised(Backbone(config, small.network, ""), seed=0)


@pytest.fixture
def config() -> PretrainingConfig:
    return PretrainingConfig(
        folds=(1, 2),
        choose_fold=3,
        epochs=2,
        batch_size=8,
        learning_rate=5e-3,
        probe_every=0,
        precision="float32",
        masking=MaskedConfig(negatives=10, codes=8, dim=16, context_width=16, length=4),
        segments=SegmentConfig(seconds=4.0),
    )


def recordings(subjects: int, *, each: int = 2, seed: int = 0) -> Recordings:
    """Two recordings a patient; rate, amplitude and rhythm are the patient's."""
    signals, ids = [], []
    for subject in range(subjects):
        rng = np.random.default_rng([seed, subject])
        rate, size = rng.uniform(45, 120), rng.uniform(0.5, 1.6)
        for number in range(each):
            ecg = synthetic_ecg(
                heart_rate_bpm=rate,
                amplitude=size,
                rhythm="atrial_fibrillation" if subject % 2 else "sinus",
                seed=1000 * seed + 10 * subject + number,
            )
            signals.append(ecg.signal.astype(np.float16))
            ids.append(f"{seed}-{subject}")
    superclass = np.zeros((len(ids), 5), bool)
    superclass[np.arange(len(ids)), np.arange(len(ids)) // each % 2] = True
    return Recordings(np.stack(signals), ids, superclass)


@pytest.fixture(scope="session")
def train() -> Recordings:
    return recordings(16)


@pytest.fixture(scope="session")
def held_out() -> Recordings:
    return recordings(6, seed=1)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in PTB-XL layout, 100 Hz only: two recordings a patient in each of folds 1, 2, 3 and 9."""
    root = tmp_path_factory.mktemp("pretraining") / "ptb-xl"
    (root / "records100").mkdir(parents=True)
    with (root / "scp_statements.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["", "description", "diagnostic", "form", "rhythm", "diagnostic_class", "diagnostic_subclass"])
        writer.writerows([["NORM", "normal ECG", 1.0, "", "", "NORM", "NORM"], ["IMI", "", 1.0, "", "", "MI", "IMI"]])
    with (root / "ptbxl_database.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["ecg_id", "patient_id", "scp_codes", "report", "strat_fold", "filename_lr", "filename_hr"])
        for number in range(48):
            patient = number // 2
            name = f"records100/{number:05d}_lr"
            _write_record(root / name, seed=number, rate=50 + 3 * patient)
            codes = {"NORM" if patient // 4 % 2 else "IMI": 100.0}
            writer.writerow([number, float(patient), codes, "", (1, 2, 3, 9)[patient % 4], name, ""])
    return root


def _write_record(path: Path, *, seed: int, rate: float) -> None:
    counts = np.rint(synthetic_ecg(heart_rate_bpm=rate, seed=seed).signal * 1000).astype("<i2")
    path.with_name(f"{path.name}.dat").write_bytes(counts.T.tobytes())
    leads = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
    lines = [f"{path.name} 12 100 {counts.shape[1]}"]
    lines += [
        f"{path.name}.dat 16 1000/mV 16 0 {row[0]} {int(row.sum(dtype=np.int64).astype(np.int16))} 0 {lead}"
        for lead, row in zip(leads, counts, strict=True)
    ]
    path.with_name(f"{path.name}.hea").write_text("\n".join(lines) + "\n")
