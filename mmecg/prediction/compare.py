"""Which leads look different from an earlier recording of the same subject, and in which part of the beat.

The median beats of both recordings (:func:`mmecg.prediction.measure.median_beat`), each above its PQ segment, are laid
over each other twice: QRS where it fits best, and ST-T from J + 60 ms on, over a time that grows with the square root
of the RR interval (Bazett, Heart 7:353, 1920), so that another rate alone moves no T wave. A part of a lead counts as
changed if the root mean square of the difference is above a limit in mV and above a share of the greater of the two.
This points at leads for a reader; how often it does so where nothing has changed is told in the README.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mmecg.ecg import LEADS
from mmecg.prediction.beats import RATE_HZ
from mmecg.prediction.measure import J_PLUS_S, MedianBeat, Reading
from mmecg.prediction.measured import LeadChange, Part

MAX_SHIFT = 5
LIMITS: dict[Part, tuple[float, float]] = {"qrs": (0.16, 0.6), "st_t": (0.08, 0.8)}
"""Limit in mV, and share of the greater part. Chosen on folds 1 to 7 of PTB-XL so that of twelve leads half a one is
marked for each part between studies of a patient at most 7 days apart that were given the same statements."""

ST_T_S = 0.40
"""From J + 60 ms, at a rate of 60: ST-T with the end of T."""

RR_S = (0.4, 1.5)
"""Between which the RR interval stretches that time: 40 to 150 a minute."""

_POINTS = 40


def changed_leads(now: Reading, before: Reading) -> tuple[LeadChange, ...]:
    """Return the parts of leads that changed, greatest difference first; none where a recording has no trusted beat.

    Parameters
    ----------
    now, before : Reading
        Of :func:`mmecg.prediction.measure.read_beats`.
    """
    if now.beat is None or before.beat is None:
        return ()
    both = now.lead_mask & before.lead_mask
    parts: dict[Part, tuple[NDArray[np.floating], NDArray[np.floating]]] = {
        "qrs": _fit_qrs(now.beat, before.beat, both),
        "st_t": (_st_t(now.beat), _st_t(before.beat)),
    }
    found = []
    for part, (one, other) in parts.items():
        limit, share = LIMITS[part]
        difference, size = _rms(one - other), np.maximum(_rms(one), _rms(other))
        changed = both & (difference > limit) & (difference > share * size)
        found += [
            LeadChange(lead=LEADS[lead], part=part, difference_mv=float(difference[lead]))
            for lead in np.flatnonzero(changed)
        ]
    return tuple(sorted(found, key=lambda one: -one.difference_mv))


def _fit_qrs(
    now: MedianBeat, before: MedianBeat, both: NDArray[np.bool_]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return QRS of both, each shape (leads=12, samples), the earlier one shifted to where it fits best."""
    start = max(int(min(now.begin, before.begin)), MAX_SHIFT)
    stop = min(int(np.ceil(max(now.end, before.end))) + 1, now.signal.shape[1] - MAX_SHIFT)
    fixed = now.signal[:, start:stop]
    shifted = [before.signal[:, start + shift : stop + shift] for shift in range(-MAX_SHIFT, MAX_SHIFT + 1)]
    return fixed, min(shifted, key=lambda other: float(np.square((fixed - other)[both]).sum()))


def _st_t(beat: MedianBeat) -> NDArray[np.float64]:
    """Return ST-T at equal shares of its time: float64, shape (leads=12, points), mV."""
    start = beat.end + J_PLUS_S * RATE_HZ
    stop = start + ST_T_S * float(np.sqrt(np.clip(beat.rr_s, *RR_S))) * RATE_HZ
    at = np.linspace(start, min(stop, beat.signal.shape[1] - 1), _POINTS)
    samples = np.arange(beat.signal.shape[1])
    return np.stack([np.interp(at, samples, lead) for lead in beat.signal])


def _rms(signal: NDArray[np.floating]) -> NDArray[np.float64]:
    return np.asarray(np.sqrt(np.square(signal, dtype=np.float64).mean(axis=1)))
