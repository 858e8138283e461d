"""Shift tests, novelty and LUDB on readers whose answers are known."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from mmecg.ecg import Ecg
from mmecg.errors import InvalidInputError
from mmecg.evaluation.bootstrap import patient_weights
from mmecg.evaluation.prediction_cases import Cases
from mmecg.evaluation.prediction_shift import (
    LUDB_LABELS,
    Readers,
    out_of_distribution,
    outside_set,
    read_ludb,
    shift_tests,
)

LUDB = Path(__file__).parents[4] / "shared" / "data" / "ludb"
LABELS = ("SR", "AFIB", "LVH")


class Spread:
    """Encodes a recording as the standard deviation of its leads."""

    fingerprint = "spread"

    def ecg_features(self, ecgs: Sequence[Ecg]) -> NDArray[np.float32]:
        return np.stack([ecg.signal.std(axis=1) for ecg in ecgs]).astype(np.float32)


def quiet(what: str, done: int, total: int) -> None:
    """Tell nobody."""


@pytest.fixture(scope="module")
def recordings() -> tuple[Cases, list[Ecg]]:
    """Recordings in which a label makes one chest lead large."""
    rng = np.random.default_rng(0)
    gold = rng.random((80, 3)) < 0.4
    ecgs = []
    for listed in gold:
        size = np.full(12, 0.2)
        size[6:9] += 0.6 * listed
        wave = np.sin(np.arange(1000) / 7 + rng.uniform(0, 6))
        ecgs.append(Ecg.from_array(size[:, None] * wave + rng.normal(0, 0.02, (12, 1000)), sampling_rate_hz=100))
    subjects = np.arange(80).astype(str)
    nobody = np.zeros(80, np.int64)
    weights = patient_weights(subjects, resamples=20)
    table = pl.DataFrame({"subject_id": subjects})
    return Cases(table, LABELS, gold, weights, nobody, np.full(80, np.nan)), ecgs


@pytest.fixture(scope="module")
def readers() -> Readers:
    return Readers(
        {"bundle": Spread(), "random": Spread()},  # type: ignore[dict-item]
        logits=lambda features: 20 * (features[:, 6:9].astype(float) - 0.35),
        random_logits=lambda features: features[:, :3].astype(float),
        novelty=lambda features, ecgs: np.array([float(abs(ecg.signal[0].mean()) > 0.2) for ecg in ecgs]),
        random_novelty=lambda features: features.mean(axis=1).astype(float),
    )


def test_shifts_are_compared_with_the_same_recordings_unchanged(
    recordings: tuple[Cases, list[Ecg]], readers: Readers
) -> None:
    part = shift_tests(*recordings, readers, progress=quiet)
    rows = {row.key: row for row in part.rows}
    assert rows["shift/clean"].value == 1.0
    assert rows["shift/swap/RA_LA"].extra["change"] == 0.0  # the chest leads stay
    assert rows["shift/leads/limb"].value == 0.5  # nothing is left to tell the labels by
    assert rows["shift/swap/V_reversed"].value < 0.7
    noise = [rows[f"shift/muscle/{snr}dB"].value for snr in (24, 12, 6, 0, -6)]
    assert noise[0] > 0.99
    assert rows["shift/muscle/-6dB"].baselines["clean"] == 1.0
    assert part.tables["shift"].height == len(part.rows) == 30


def test_novelty_is_an_auroc_of_each_kind_against_real_recordings(
    recordings: tuple[Cases, list[Ecg]], readers: Readers
) -> None:
    part = out_of_distribution(*recordings, readers, progress=quiet)
    rows = {row.key: row for row in part.rows}
    kinds = [row.value for key, row in rows.items() if key != "ood/auroc"]
    assert len(kinds) == 4
    assert rows["ood/auroc"].value == pytest.approx(np.mean(kinds))
    assert rows["ood/auroc/inverted"].value == 0.5  # the toy detector cannot tell
    assert rows["ood/auroc"].baselines.keys() == {"prevalence", "uncertainty", "random_encoder"}


def test_without_a_detector_novelty_says_so(recordings: tuple[Cases, list[Ecg]]) -> None:
    blind = Readers({"bundle": Spread()}, logits=lambda features: features)  # type: ignore[dict-item, arg-type, return-value]
    (row,) = out_of_distribution(*recordings, blind, progress=quiet).rows
    assert "no novelty detector" in row.extra["reason"]


@pytest.mark.skipif(not LUDB.is_dir(), reason="LUDB is not beside the repository")
def test_ludb_findings_become_labels() -> None:
    ecgs, gold, skipped = read_ludb(LUDB, tuple(LUDB_LABELS))
    count = dict(zip(LUDB_LABELS, gold.sum(axis=0).tolist(), strict=True))
    assert skipped.is_empty()
    assert len(ecgs) == 100
    assert (count["SR"], count["AFIB"], count["IRBBB"], count["LAFB"], count["LVH"]) == (72, 9, 20, 11, 64)
    assert count["CRBBB"] == 2  # not the incomplete ones
    assert count["1AVB"] == 6


@pytest.mark.skipif(not LUDB.is_dir(), reason="LUDB is not beside the repository")
def test_the_outside_set_has_both_means_and_baselines(readers: Readers) -> None:
    part = outside_set(LUDB, LABELS, readers, resamples=20, seed=0)
    (row,) = part.rows
    assert row.n == 100
    assert (row.extra["n_labels"], row.extra["n_labels_all_labels"]) == (2, 3)
    assert row.extra["n_labels_without_voltage"] == 1
    assert row.extra["einthoven_residual"] > 0.2  # each lead has a scale of its own
    assert row.baselines.keys() == {"prevalence", "random_encoder"}
    assert part.tables["ludb_labels"]["label"].to_list() == list(LABELS)


def test_a_folder_without_ludb_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"no ludb\.csv"):
        read_ludb(tmp_path, LABELS)
