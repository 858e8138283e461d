"""What goes wrong with recordings, done to good ones on purpose: exchanged electrodes, inverted leads, added noise.

Exchanged electrodes are computed on electrode potentials. Against Wilson's terminal W = (RA + LA + LL) / 3 these are
RA = -(I + II) / 3, LA = (2 I - II) / 3, LL = (2 II - I) / 3 and the chest leads themselves; so Einthoven's and
Goldberger's laws hold afterwards, and the chest leads stay as they are while the same three electrodes make up W. The
right leg's potential is not recorded; it is taken to be the left leg's, as both legs are wires to the trunk's foot end:
an arm exchanged with the right leg then gives the flat limb lead that is seen in practice, and W moves (Kligfield et
al., Circulation 115:1306, 2007; Batchvarov, Malik and Camm, Europace 9:1081, 2007).

Noise is added at the electrodes. The signal-to-noise ratio is that of the variances of the leads, summed over the
recorded leads, in dB; the MIT-BIH noise stress test (Moody et al., Comput. Cardiol. 11:381, 1984) takes the QRS
amplitude in place of the variance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from mmecg.datasets.other_signals import OTHER_SIGNALS, band_noise, coloured_noise, leads_of_electrodes, other_signal
from mmecg.ecg import LEADS, Ecg, lead_index
from mmecg.errors import SignalError

ELECTRODES: tuple[str, ...] = ("RA", "LA", "LL", "V1", "V2", "V3", "V4", "V5", "V6", "RL")
NOISES: tuple[str, ...] = ("baseline_wander", "powerline", "muscle", "white")
WANDER_HZ = (0.05, 0.5)
POWERLINE_HZ = 50.0
LEG_RESIDUAL_MV = 0.005
"""Standard deviation of what the legs differ by: a lead between the legs is flat, but not dead."""


def electrode_potentials(ecg: Ecg) -> NDArray[np.float64]:
    """Return RA, LA, LL, V1 to V6 against Wilson's terminal: float64, shape (electrodes=9, samples), mV.

    Raises
    ------
    SignalError
        Leads I and II were not both recorded.
    """
    if not ecg.lead_mask[:2].all():
        raise SignalError("limb electrodes need leads I and II, which were not recorded", field="ecg.leads")
    i, ii = ecg.signal[:2].astype(np.float64)
    return np.concatenate([[-(i + ii) / 3, (2 * i - ii) / 3, (2 * ii - i) / 3], ecg.signal[6:]])


def permute_electrodes(ecg: Ecg, found: dict[str, str], *, rng: np.random.Generator | None = None) -> Ecg:
    """Return the recording with electrodes at other places.

    Parameters
    ----------
    ecg : Ecg
        With leads I and II.
    found : dict of str to str
        Electrode to the place at which it was attached: ``{"RA": "LA", "LA": "RA"}`` exchanges the arms.
    rng : numpy.random.Generator, optional
        For the small residual between the legs; default one of seed 0.

    Raises
    ------
    SignalError
        An electrode is unknown, or not every place is taken once, or leads I and II were not both recorded.
    """
    if set(found) != set(found.values()) or not set(found) <= set(ELECTRODES):
        raise SignalError(f"exchange {found} is none, expected the same electrodes on both sides, of {ELECTRODES}")
    here = electrode_potentials(ecg)
    rng = np.random.default_rng(0) if rng is None else rng
    leg = here[2] + rng.normal(0, LEG_RESIDUAL_MV, here.shape[1])
    places = dict(zip(ELECTRODES, (*here, leg), strict=True))
    moved = np.stack([places[found.get(electrode, electrode)] for electrode in ELECTRODES[:9]])
    return _like(ecg, leads_of_electrodes(moved))


def swap_electrodes(ecg: Ecg, first: str, second: str, *, rng: np.random.Generator | None = None) -> Ecg:
    """Return the recording with two electrodes exchanged; see :func:`permute_electrodes`."""
    return permute_electrodes(ecg, {first: second, second: first}, rng=rng)


def invert(ecg: Ecg, leads: Sequence[str] = LEADS) -> Ecg:
    """Return the recording with some leads upside down, default all."""
    sign = np.ones((len(LEADS), 1), np.float32)
    sign[[lead_index(lead) for lead in leads]] = -1
    return _like(ecg, ecg.signal * sign)


def add_noise(ecg: Ecg, kind: str, snr_db: float, rng: np.random.Generator) -> Ecg:
    """Return the recording with noise at a signal-to-noise ratio.

    Parameters
    ----------
    ecg : Ecg
    kind : {"baseline_wander", "powerline", "muscle", "white"}
        Wander: 0.05 to 0.5 Hz, of its own at every electrode. Mains: 50 Hz, of one phase, of random size at the
        electrodes; at rates that cannot hold it, 0.45 of the rate stands in. Muscle: 20 to 150 Hz, as far as the rate
        holds it, of its own at every electrode, swelling and fading.
    snr_db : float
        Variance of the recorded leads over that of what is added, in dB.
    rng : numpy.random.Generator

    Raises
    ------
    SignalError
        The kind is unknown, or the recording does not move at all.
    """
    samples, rate = ecg.signal.shape[1], ecg.sampling_rate_hz
    if kind == "baseline_wander":
        source = band_noise(9, samples, rate, WANDER_HZ, rng)
    elif kind == "powerline":
        phase = 2 * np.pi * min(POWERLINE_HZ, 0.45 * rate) * np.arange(samples) / rate
        source = np.sin(phase + rng.uniform(0, 2 * np.pi)) * rng.standard_normal((9, 1))
    elif kind == "muscle":
        envelope = np.exp(0.5 * coloured_noise(9, samples, 2, rng))
        source = envelope * band_noise(9, samples, rate, (20.0, 150.0), rng)
    elif kind == "white":
        source = rng.standard_normal((9, samples))
    else:
        raise SignalError(f"noise {kind[:20]!r} is unknown, expected one of {', '.join(NOISES)}")
    noise = leads_of_electrodes(source)
    recorded = ecg.lead_mask
    power, added = float(ecg.signal[recorded].var(axis=1).sum()), float(noise[recorded].var(axis=1).sum())
    if power == 0:
        raise SignalError("signal is constant, a signal-to-noise ratio has no meaning", field="ecg.signal")
    return _like(ecg, ecg.signal + np.sqrt(power / added * 10 ** (-snr_db / 10)) * noise)


def _like(ecg: Ecg, signal: NDArray[np.floating]) -> Ecg:
    """Return a recording of the same leads and rate."""
    kept = np.where(ecg.lead_mask[:, None], signal, 0)
    return Ecg(np.ascontiguousarray(kept, np.float32), ecg.sampling_rate_hz, ecg.lead_mask.copy())


Corruption = Callable[[Ecg, np.random.Generator], Ecg]


def _swap(**found: str) -> Corruption:
    return lambda ecg, rng: permute_electrodes(ecg, found, rng=rng)


def _inverted(*choices: Sequence[str]) -> Corruption:
    return lambda ecg, rng: invert(ecg, choices[rng.integers(len(choices))])


def _other(kind: str) -> Corruption:
    return lambda ecg, rng: other_signal(
        kind, duration_s=ecg.duration_s, sampling_rate_hz=ecg.sampling_rate_hz, rng=rng
    )


CORRUPTIONS: dict[str, dict[str, Corruption]] = {
    "noise": {name: _other(name) for name in OTHER_SIGNALS if name.endswith("_noise")},
    "limb_swap": {
        "RA-LA": _swap(RA="LA", LA="RA"),
        "RA-LL": _swap(RA="LL", LL="RA"),
        "LA-LL": _swap(LA="LL", LL="LA"),
        "RA-RL": _swap(RA="RL", RL="RA"),
        "LA-RL": _swap(LA="RL", RL="LA"),
        "arms-legs": _swap(RA="RL", RL="RA", LA="LL", LL="LA"),
        "clockwise": _swap(RA="LA", LA="LL", LL="RA"),
        "counterclockwise": _swap(RA="LL", LL="LA", LA="RA"),
    },
    "chest_swap": {
        "V1-V6 reversed": _swap(V1="V6", V2="V5", V3="V4", V4="V3", V5="V2", V6="V1"),
        "V1-V3": _swap(V1="V3", V3="V1"),
        "V2-V5": _swap(V2="V5", V5="V2"),
    },
    "inverted": {
        "all leads": _inverted(LEADS),
        "limb leads": _inverted(LEADS[:6]),
        "chest leads": _inverted(LEADS[6:]),
    },
    "lead_mismatch": {"one limb lead inverted": _inverted(("I",), ("II",), ("III",))},
    "not_ecg": {name: _other(name) for name in OTHER_SIGNALS if not name.endswith("_noise")},
}
"""Corruptions of an ECG by kind and name: ``CORRUPTIONS["limb_swap"]["RA-LA"](ecg, rng)``.

Noise and signals that are no ECG take over length and rate alone.
"""
