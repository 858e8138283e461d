"""Measurements beside what cardiologists marked: heart rate, beats, QRS and QT time, amplitudes, on LUDB.

LUDB marks every wave in each of the 12 leads by itself, except in the first and the last beats. What is compared:

* **Beats**: a beat is where at least half of the leads have a QRS peak; found if a beat of ours lies within 150 ms
  (ANSI/AAMI EC57), counted between the first and the last marked one.
* **Heart rate**: 60 s over the mean interval of the marked beats; ours is over the whole recording.
* **QRS and QT time**: median over beats, then over leads, of each lead's own begin and end. The constants of
  :mod:`mmecg.prediction.measure` were chosen on records with odd numbers; the figures are of those with even ones.
* **Amplitudes**: median over beats, in each lead, of the signal at 500 Hz between or at the marks, above PQ.

The baseline, ``prevalence`` as in all rows, is one value for everybody: the mean of the marked ones, for durations that
of the odd records, for amplitudes that of the lead; for beats a metronome at the mean rate.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mmecg.datasets.wfdb import read_wfdb
from mmecg.datasets.wfdb_annotations import Wave, read_waves
from mmecg.ecg import LEADS, Ecg
from mmecg.errors import InvalidInputError, MmecgError
from mmecg.evaluation.bootstrap import bootstrap_mean, interval, patient_weights
from mmecg.evaluation.prediction_cases import Part
from mmecg.evaluation.results import Row
from mmecg.prediction.beats import RATE_HZ, TOLERANCE_S, beat_leads, find_beats
from mmecg.prediction.measure import J_PLUS_S, LEVEL_S, read_beats

SAME_BEAT_S = 0.1
"""Longest time between the QRS peaks of one beat in two leads."""

WITHIN_BPM = 5.0
TIMES = ("qrs_duration_ms", "qt_ms")
Values = Mapping[tuple[str, str], float]
AMPLITUDES = ("qrs_amplitude_mv", "st_level_mv", "t_amplitude_mv")


@dataclass(frozen=True)
class Marked:
    """One record with its marks.

    Attributes
    ----------
    record : str
    ecg : Ecg
    waves : mapping of str to tuple of Wave
        By lead.
    """

    record: str
    ecg: Ecg
    waves: Mapping[str, tuple[Wave, ...]]

    @property
    def beats_s(self) -> NDArray[np.float64]:
        """Times of the beats that at least half of the leads show, the median of their peaks: seconds."""
        peaks = np.sort([wave.peak for waves in self.waves.values() for wave in waves if wave.kind == "QRS"])
        groups = np.split(peaks, np.flatnonzero(np.diff(peaks) > SAME_BEAT_S * self.ecg.sampling_rate_hz) + 1)
        half = len(self.waves) / 2
        return np.array([np.median(group) for group in groups if len(group) >= half]) / self.ecg.sampling_rate_hz

    @property
    def values(self) -> dict[tuple[str, str], float]:
        """What the marks say, by name and lead, as :attr:`mmecg.prediction.measure.Reading.values`."""
        found = {("heart_rate_bpm", ""): 60 / float(np.diff(self.beats_s).mean())}
        times: dict[str, list[float]] = {name: [] for name in TIMES}
        for lead, waves in self.waves.items():
            values = _of_lead(self.ecg.signal[LEADS.index(lead)], waves, self.ecg.sampling_rate_hz)
            for name, each in values.items():
                if name in times:
                    times[name] += [float(np.median(each))]
                else:
                    found[name, lead] = float(np.median(each))
        return found | {(name, ""): float(np.median(each)) for name, each in times.items() if each}


def _of_lead(signal: NDArray[np.float32], waves: tuple[Wave, ...], rate: float) -> dict[str, list[float]]:
    """Return every beat's times (ms) and amplitudes (mV) in one lead, of the beats whose QRS begins and ends."""
    found: dict[str, list[float]] = {}

    def add(name: str, value: float) -> None:
        found.setdefault(name, []).append(value)

    for at, qrs in enumerate(waves):
        from_, to = (max(round(qrs.begin - before * rate), place) for place, before in enumerate(LEVEL_S))
        j_60 = round(qrs.end + J_PLUS_S * rate)
        if qrs.kind != "QRS" or not qrs.begin < qrs.peak < qrs.end or j_60 >= len(signal):
            continue
        level = float(np.median(signal[from_:to]))
        add("qrs_duration_ms", (qrs.end - qrs.begin) * 1000 / rate)
        add("qrs_amplitude_mv", float(np.ptp(signal[qrs.begin : qrs.end + 1])))
        add("st_level_mv", float(signal[j_60]) - level)
        if at + 1 < len(waves) and waves[at + 1].kind == "T":
            add("t_amplitude_mv", float(signal[waves[at + 1].peak]) - level)
            add("qt_ms", (waves[at + 1].end - qrs.begin) * 1000 / rate)
    return found


def read_marked(folder: Path) -> list[Marked]:
    """Read the records of LUDB whose signal and marks there are.

    Raises
    ------
    InvalidInputError
        The table is missing, or no record has marks.
    """
    try:
        with (folder / "ludb.csv").open(newline="", encoding="utf-8") as file:
            names = [(line.get("ID") or "").strip() for line in csv.DictReader(file)]
    except OSError:
        raise InvalidInputError(f"{folder} has no ludb.csv, expected the LUDB folder; name it", field="ludb") from None
    found = []
    for name in names:
        path = folder / "data" / name
        try:
            one = Marked(name, read_wfdb(path), {lead: read_waves(path, lead.lower()) for lead in LEADS})
        except (MmecgError, OSError):
            continue
        if len(one.beats_s) > 1:
            found.append(one)
    if not found:
        raise InvalidInputError(f"no record of {folder} has marked beats, expected some", field="ludb")
    return found


def measures(folder: Path, *, resamples: int, seed: int) -> Part:
    """Return how far measurements are from the marks of LUDB, each with its interval by patient and a baseline."""
    marked = read_marked(folder)
    weights = patient_weights([one.record for one in marked], resamples=resamples, seed=seed)
    gold = [one.values for one in marked]
    ours = [read_beats(one.ecg).values for one in marked]
    odd = np.array([int(one.record) % 2 == 1 for one in marked])
    rows = [*_rate_rows(gold, ours, weights), *_beat_rows(marked, weights)]
    for name in TIMES:
        was, is_ = _column(gold, name), _column(ours, name)
        fixed = np.abs(was - np.nanmean(was[odd]))
        rows.append(_mean_row(f"measure/{name}_error", np.abs(is_ - was)[~odd], fixed[~odd], weights[~odd], is_[~odd]))
    for name in AMPLITUDES:
        was, is_ = (np.stack([_column(one, name, lead) for lead in LEADS], axis=1) for one in (gold, ours))
        error, fixed = np.abs(is_ - was), np.abs(was - np.nanmean(was, axis=0))
        each, base = np.nanmean(error, axis=1), np.nanmean(fixed, axis=1)
        bias = float(np.nanmean(is_ - was))
        rows.append(_mean_row(f"measure/{name}_error", each, base, weights, each, bias=bias))
    names = ("heart_rate_bpm", *TIMES)
    table = pl.DataFrame(
        {"record": [one.record for one in marked]}
        | {f"{name}_{what}": _column(values, name) for name in names for what, values in (("marked", gold), ("", ours))}
    ).with_columns(pl.col(pl.Float64).fill_nan(None))
    return Part(tuple(rows), {"measures": table})


def _column(values: Sequence[Values], name: str, lead: str = "") -> NDArray[np.float64]:
    return np.array([one.get((name, lead), np.nan) for one in values], np.float64)


def _rate_rows(gold: Sequence[Values], ours: Sequence[Values], weights: NDArray[np.float32]) -> list[Row]:
    was, is_ = _column(gold, "heart_rate_bpm"), _column(ours, "heart_rate_bpm")
    error, fixed = np.abs(is_ - was), np.abs(was - was.mean())
    within = np.where(np.isnan(error), np.nan, error <= WITHIN_BPM)
    return [
        _mean_row("measure/heart_rate_bpm_error", error, fixed, weights, is_, largest=float(np.nanmax(error))),
        _mean_row("measure/heart_rate_within_5", within, (fixed <= WITHIN_BPM).astype(float), weights, is_),
    ]


def _beat_rows(marked: Sequence[Marked], weights: NDArray[np.float32]) -> list[Row]:
    """Return which share of the marked beats are found, and which share of those found are marked."""
    step = float(np.mean([np.diff(one.beats_s).mean() for one in marked]))
    signals = [one.ecg.resample(RATE_HZ).signal[beat_leads(one.ecg.lead_mask)] for one in marked]
    counts = np.array(
        [_count(one.beats_s, find_beats(leads) / RATE_HZ) for one, leads in zip(marked, signals, strict=True)]
    )
    chance = np.array([_count(one.beats_s, np.arange(0, one.ecg.duration_s, step)) for one in marked]).sum(axis=0)
    total, whole = weights.T.astype(np.float64) @ counts, counts.sum(axis=0)
    rows = []
    for column, name in enumerate(("sensitivity", "ppv")):
        bounds = interval(total[:, 2] / total[:, column])
        value, base = whole[2] / whole[column], chance[2] / chance[column]
        more = {"beats": int(whole[column])}
        rows.append(
            Row(
                f"measure/beats_{name}",
                float(value),
                bounds.low,
                bounds.high,
                len(marked),
                {"prevalence": float(base)},
                more,
            )
        )
    return rows


def _count(was: NDArray[np.float64], found: NDArray[np.float64]) -> tuple[int, int, int]:
    """Return how many beats are marked, how many were found between the first and the last of them, and in both."""
    found = found[(found >= was[0] - TOLERANCE_S) & (found <= was[-1] + TOLERANCE_S)]
    near = np.abs(was[:, None] - found) <= TOLERANCE_S
    return len(was), len(found), int(min(near.any(axis=0).sum(), near.any(axis=1).sum()))


def _mean_row(
    key: str,
    values: NDArray[np.float64],
    fixed: NDArray[np.float64],
    weights: NDArray[np.float32],
    measured: NDArray[np.float64],
    **extra: float,
) -> Row:
    """Return the mean over records that could be measured, beside that of one value for everybody on the same."""
    kept = np.isfinite(values) & np.isfinite(measured)
    if not kept.any():
        return Row.missing(key, "no record was marked and could be measured")
    bounds = interval(bootstrap_mean(np.where(kept, values, np.nan), weights))
    more = {"median": float(np.median(values[kept])), "not_measured": int((~kept).sum()), **extra}
    baselines = {"prevalence": float(fixed[kept].mean())}
    return Row(key, float(values[kept].mean()), bounds.low, bounds.high, int(kept.sum()), baselines, more)
