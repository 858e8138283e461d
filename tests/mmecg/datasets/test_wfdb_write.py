from __future__ import annotations

from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import wfdb
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mmecg.datasets.wfdb import read_wfdb, read_wfdb_header
from mmecg.datasets.wfdb_write import COMMON_GAINS, write_wfdb
from mmecg.ecg import Ecg


def bits(ecg: Ecg) -> tuple:
    return ecg.signal.tobytes(), ecg.lead_mask.tobytes(), ecg.sampling_rate_hz


@settings(deadline=None, max_examples=60)
@given(
    hnp.arrays(np.int16, (12, 100), elements=st.integers(-3000, 3000)),
    st.sampled_from([*COMMON_GAINS, 250.0, 333.0]),
    st.sampled_from([100.0, 250.5, 499.99]),
)
def test_a_recorders_counts_come_back_bit_by_bit(tmp_path_factory, counts, gain, rate) -> None:
    counts[:, :2] = 0, 1  # neighbours: an unusual gain is told from the finest step
    ecg = Ecg((counts / gain).astype(np.float32)[:, :100], rate, np.ones(12, np.bool_))
    record = tmp_path_factory.mktemp("wfdb") / "r_1"
    assert write_wfdb(record, ecg)
    stored = wfdb.rdrecord(str(record), physical=False)
    assert stored.fs == rate
    np.testing.assert_array_equal((stored.d_signal.T / np.array(stored.adc_gain)[:, None]).astype("f4"), ecg.signal)


def test_only_the_leads_that_exist_are_written(tmp_path: Path) -> None:
    ecg = Ecg.from_array(
        np.random.default_rng(0).integers(-500, 500, (3, 300)) / 200, sampling_rate_hz=250, leads=["V3", "II", "aVF"]
    )
    assert write_wfdb(tmp_path / "r", ecg, acquired_at=datetime(2021, 3, 4, 5, 6, 7, 89))
    assert [signal.description for signal in read_wfdb_header(tmp_path / "r").signals] == ["II", "aVF", "V3"]
    assert bits(read_wfdb(tmp_path / "r")) == bits(ecg)
    assert wfdb.rdheader(str(tmp_path / "r")).base_datetime == datetime(2021, 3, 4, 5, 6, 7, 89)


@pytest.mark.parametrize("kind", ["noise", "negative zero", "too large", "missing-sample code"])
def test_what_lies_on_no_grid_is_not_written(tmp_path: Path, kind: str) -> None:
    signal = np.random.default_rng(0).integers(-500, 500, (12, 300)) / 1000
    if kind == "noise":
        signal[4] += np.random.default_rng(1).normal(0, 0.01, 300)
    elif kind == "negative zero":
        signal[4, 7] = -0.0
    elif kind == "too large":
        signal[4, :2] = 40.001, 0.0001
    else:
        signal[4, :2] = -32.768, 0.001
    assert not write_wfdb(tmp_path / "r", Ecg.from_array(signal, sampling_rate_hz=100))
    assert list(tmp_path.iterdir()) == []
