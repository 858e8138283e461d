from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mmecg.datasets.numpy_arrays import read_numpy
from mmecg.datasets.synthetic import synthetic_ecg
from mmecg.errors import InvalidInputError, SignalError

SIGNAL = np.stack([synthetic_ecg(seed=seed).signal for seed in range(3)])


def test_npy(tmp_path: Path) -> None:
    np.save(tmp_path / "many.npy", SIGNAL)
    studies = list(read_numpy(tmp_path / "many.npy", sampling_rate_hz=100))
    assert [study.study_id for study in studies] == ["many-0", "many-1", "many-2"]
    for study, signal in zip(studies, SIGNAL, strict=True):
        np.testing.assert_array_equal(study.ecg.signal, signal)  # type: ignore[union-attr]
    np.save(tmp_path / "one.npy", SIGNAL[0, [1, 0]] * 1000)
    (study,) = read_numpy(tmp_path / "one.npy", sampling_rate_hz=100, leads=["II", "I"], unit="uV")
    assert study.ecg is not None
    assert study.ecg.leads == ("I", "II")
    np.testing.assert_allclose(study.ecg.signal[:2], SIGNAL[0, :2], atol=1e-6)


def test_npz(tmp_path: Path) -> None:
    np.savez(
        tmp_path / "a.npz",
        signal=SIGNAL[:2, :3],
        sampling_rate_hz=100,
        leads=["I", "II", "III"],
        unit="mV",
        study_id=["x", "y"],
        subject_id=["p", "p"],
        report=["Sinus  rhythm", ""],
    )
    first, second = read_numpy(tmp_path / "a.npz")
    assert (first.study_id, first.subject_id, second.study_id) == ("x", "p", "y")
    assert first.report is not None
    assert first.report.text == "Sinus rhythm"
    assert second.report is None
    assert first.ecg is not None
    assert first.ecg.leads == ("I", "II", "III")


def test_unusable_files(tmp_path: Path) -> None:
    file = tmp_path / "a.npy"
    np.save(file, SIGNAL)
    with pytest.raises(SignalError, match="sampling rate is not given"):
        list(read_numpy(file))
    np.save(file, SIGNAL * 1000)
    with pytest.raises(SignalError, match="microvolt"):
        list(read_numpy(file, sampling_rate_hz=100))
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(SignalError, match="cannot be read"):
        list(read_numpy(file, sampling_rate_hz=100))
    np.save(file, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(SignalError, match="cannot be read"):
        list(read_numpy(file, sampling_rate_hz=100))
    np.save(file, SIGNAL[0, 0])
    with pytest.raises(SignalError, match="has 1 axes"):
        list(read_numpy(file, sampling_rate_hz=100))
    with pytest.raises(SignalError, match="cannot be read"):
        list(read_numpy(tmp_path / "nothing.npz", sampling_rate_hz=100))
    np.savez(tmp_path / "b.npz", other=SIGNAL)
    with pytest.raises(SignalError, match="no array named signal"):
        list(read_numpy(tmp_path / "b.npz", sampling_rate_hz=100))
    np.savez(tmp_path / "b.npz", signal=SIGNAL, study_id=["a"])
    with pytest.raises(InvalidInputError, match="1 values for 3 records"):
        list(read_numpy(tmp_path / "b.npz", sampling_rate_hz=100))
