"""An :class:`mmecg.ecg.Ecg` as a WFDB record of format 16, if it lies exactly on a recorder's grid.

Format 16 holds whole counts. A lead whose millivolt values are whole counts divided by a gain comes back bit by bit;
another would be rounded, so :func:`write_wfdb` does not write it.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmecg.ecg import Ecg

COMMON_GAINS = (1000.0, 200.0, 204.8, 205.0, 400.0, 500.0, 1024.0, 100.0, 4000.0, 2000.0)
"""Usual gains of recorders and public databases, counts per millivolt."""

_MAX_COUNTS_PER_MV = 1_000_000
_LOWEST = -32767
"""The value below it means "no sample" in format 16."""


def write_wfdb(path: Path, ecg: Ecg, *, acquired_at: datetime | None = None) -> bool:
    """Write ``path.hea`` and ``path.dat`` with the leads that exist, and return True if that loses nothing.

    Parameters
    ----------
    path : Path
        The record; its name is letters, digits and underscores.
    ecg : Ecg
    acquired_at : datetime, optional
        Written to the header as date and time, without a zone.

    Returns
    -------
    bool
        False, and nothing is written, if a lead lies on no grid.
    """
    signal = ecg.signal[ecg.lead_mask]
    gains = [_gain(lead) for lead in signal]
    if None in gains:
        return False
    counts = np.stack([_counts(lead, gain) for lead, gain in zip(signal, gains, strict=True) if gain is not None])
    when = "" if acquired_at is None else f" {acquired_at:%H:%M:%S}.{acquired_at:%f} {acquired_at:%d/%m/%Y}"
    lines = [f"{path.name} {len(counts)} {ecg.sampling_rate_hz!r} {counts.shape[1]}{when}"]
    for lead, gain, row in zip(ecg.leads, gains, counts, strict=True):
        checksum = int(row.sum(dtype=np.int64)) % 65536
        signed = checksum - 65536 if checksum > 32767 else checksum
        lines.append(f"{path.name}.dat 16 {gain!r}(0)/mV 16 0 {int(row[0])} {signed} 0 {lead}")
    path.with_name(path.name + ".dat").write_bytes(counts.T.astype("<i2").tobytes())
    path.with_name(path.name + ".hea").write_text("\n".join(lines) + "\n", encoding="ascii")
    return True


def _gain(lead: NDArray[np.float32]) -> float | None:
    """Return a gain by which every value of a lead is a whole count, to the bit; None if there is none."""
    steps = np.diff(np.unique(lead))
    finest = float(np.rint(1 / steps.min())) if len(steps) and steps.min() > 1 / _MAX_COUNTS_PER_MV else 0.0
    for gain in (*COMMON_GAINS, finest):
        if gain >= 1 and float(np.abs(lead).max()) * gain <= -_LOWEST:
            again = (_counts(lead, gain) / np.float64(gain)).astype(np.float32)
            if np.array_equal(again.view(np.int32), np.ascontiguousarray(lead).view(np.int32)):
                return gain
    return None


def _counts(lead: NDArray[np.float32], gain: float) -> NDArray[np.int16]:
    return np.rint(lead * np.float64(gain)).astype(np.int16)
