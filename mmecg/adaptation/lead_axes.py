r"""Cardiac-axis augmentation: leads at angles between the standard ones, for models of a single lead.

A network of one lead that is to work for lead I of any wearer sees, in training, the lead of any axis. Frontal plane
(angles clockwise from the left arm, as cardiologists count): in Einthoven's triangle a lead at angle :math:`\theta` is
the projection of a heart vector, :math:`v(\theta) = X \cos\theta + Y \sin\theta`. Lead I lies at 0 and lead II at 60
degrees, so :math:`X = I` and :math:`Y = (2 II - I) / \sqrt 3`. Goldberger's augmented leads are smaller by
:math:`\sqrt 3 / 2`: aVF = (II + III) / 2 = (\sqrt 3 / 2) Y. So with aVF recorded, :math:`Y = 2 aVF / \sqrt 3`, and

=====  =========  =====================
lead   angle      amplitude
=====  =========  =====================
I      0          v(0)
II     60         v(60)
III    120        v(120)
aVF    90         sqrt(3)/2 v(90)
aVL    -30        sqrt(3)/2 v(-30)
aVR    -150       sqrt(3)/2 v(-150)
=====  =========  =====================

Horizontal plane: chest leads are not projections of one vector (the electrodes lie close to the heart), so between two
of them the signal is interpolated by angle, at the directions of :data:`CHEST_ANGLES_DEG`.

Sources: Malmivuo and Plonsey, Bioelectromagnetism (1995), chapter 15 (hexaxial system, Einthoven and Goldberger); the
use of rotated leads to train single-lead models follows what is told of ECGFounder (Li et al. 2024, arXiv:2410.04133).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mmecg.ecg import Ecg, lead_index
from mmecg.errors import InvalidInputError, SignalError

GOLDBERGER = np.sqrt(3) / 2
"""Amplitude of an augmented lead, as a share of the projection on its axis."""

FRONTAL_ANGLES_DEG = {"I": 0.0, "II": 60.0, "III": 120.0, "aVR": -150.0, "aVL": -30.0, "aVF": 90.0}
CHEST_ANGLES_DEG = {"V1": 115.0, "V2": 94.0, "V3": 75.0, "V4": 58.0, "V5": 30.0, "V6": 5.0}
"""Directions of the chest electrodes seen from above: 0 points left, 90 to the front."""

SPREAD_DEG = 45.0
"""Standard deviation of a random axis around that of the lead that it stands for."""


def frontal_lead(ecg: Ecg, angle_deg: float) -> NDArray[np.float32]:
    """Return the frontal lead at an angle, at the amplitude of Einthoven's leads: float32, shape (samples,), mV.

    Parameters
    ----------
    ecg : Ecg
        With lead I, and II or aVF.
    angle_deg : float
        0 is lead I, 60 lead II, 90 the axis of aVF.

    Raises
    ------
    SignalError
        These leads were not recorded.
    """
    lead = {name: ecg.signal[lead_index(name)] for name in ("I", "II", "aVF") if ecg.lead_mask[lead_index(name)]}
    if "I" not in lead or len(lead) < 2:
        raise SignalError(
            f"recording has {', '.join(ecg.leads)}, expected I beside II or aVF to derive a frontal lead",
            field="ecg.leads",
        )
    x = lead["I"].astype(np.float64)
    y = lead["aVF"] / GOLDBERGER if "aVF" in lead else (2 * lead["II"].astype(np.float64) - x) / np.sqrt(3)
    angle = np.deg2rad(angle_deg)
    return np.asarray(np.cos(angle) * x + np.sin(angle) * y, np.float32)


def horizontal_lead(ecg: Ecg, angle_deg: float) -> NDArray[np.float32]:
    """Return a chest lead between V1 and V6, interpolated by angle: float32, shape (samples,), mV.

    Parameters
    ----------
    ecg : Ecg
        With the two recorded chest leads on both sides of the angle.
    angle_deg : float
        5 (V6) to 115 (V1).

    Raises
    ------
    InvalidInputError
        The angle lies outside.
    SignalError
        No chest lead was recorded on one side.
    """
    recorded = {name: at for name, at in CHEST_ANGLES_DEG.items() if ecg.lead_mask[lead_index(name)]}
    ends = min(CHEST_ANGLES_DEG.values()), max(CHEST_ANGLES_DEG.values())
    if not ends[0] <= angle_deg <= ends[1]:
        raise InvalidInputError(f"angle is {angle_deg:g}, expected {ends[0]:g} (V6) to {ends[1]:g} (V1) degrees")
    above = [name for name, at in recorded.items() if at >= angle_deg]
    below = [name for name, at in recorded.items() if at <= angle_deg]
    if not above or not below:
        raise SignalError(
            f"recording has {', '.join(ecg.leads)}, expected chest leads on both sides of {angle_deg:g} degrees",
            field="ecg.leads",
        )
    first, second = above[-1], below[0]  # V1 to V6 have falling angles
    span = CHEST_ANGLES_DEG[first] - CHEST_ANGLES_DEG[second]
    part = (CHEST_ANGLES_DEG[first] - angle_deg) / span if span else 0.0
    signals = (ecg.signal[lead_index(name)] for name in (first, second))
    return np.asarray((1 - part) * next(signals) + part * next(signals), np.float32)


def random_axis(ecg: Ecg, lead: str, rng: np.random.Generator) -> Ecg:
    """Return a recording of one lead, whose axis is drawn around that of ``lead``: what an ill-placed electrode sees.

    A frontal lead turns by a normal deviate of :data:`SPREAD_DEG`, and keeps the amplitude of its kind; a chest lead
    moves along the chest between V1 and V6.

    Parameters
    ----------
    ecg : Ecg
    lead : str
        The lead that it stands for; it takes its place in the result.
    rng : numpy.random.Generator

    Raises
    ------
    SignalError
        The leads that it is derived from were not recorded.
    """
    row = lead_index(lead)
    name = (*FRONTAL_ANGLES_DEG, *CHEST_ANGLES_DEG)[row]
    turn = SPREAD_DEG * rng.standard_normal()
    if name in FRONTAL_ANGLES_DEG:
        scale = GOLDBERGER if name.startswith("aV") else 1.0
        drawn = scale * frontal_lead(ecg, FRONTAL_ANGLES_DEG[name] + turn)
    else:
        chest = CHEST_ANGLES_DEG.values()
        drawn = horizontal_lead(ecg, float(np.clip(CHEST_ANGLES_DEG[name] + turn, min(chest), max(chest))))
    signal, mask = np.zeros_like(ecg.signal), np.zeros_like(ecg.lead_mask)
    signal[row], mask[row] = drawn, True
    return Ecg(signal, ecg.sampling_rate_hz, mask)


__all__ = ["CHEST_ANGLES_DEG", "FRONTAL_ANGLES_DEG", "frontal_lead", "horizontal_lead", "random_axis"]
