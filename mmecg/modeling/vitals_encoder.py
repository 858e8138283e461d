"""The vitals tower: a perceptron over standardised vitals and a mask of what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from mmecg.embedding import EMBEDDING_DIM
from mmecg.vitals import VITAL_DEFINITIONS, Vitals

CENTRE_AND_SPREAD: dict[str, tuple[float, float]] = {
    "age_years": (60, 17),
    "height_cm": (167, 11),
    "weight_kg": (71, 16),
    "heart_rate_bpm": (75, 20),
    "systolic_bp_mmhg": (130, 22),
    "diastolic_bp_mmhg": (75, 14),
    "respiratory_rate_bpm": (17, 4),
    "spo2_percent": (97, 3),
    "temperature_c": (36.8, 0.6),
}
"""Mean and standard deviation for scaling, rounded: age, height and weight of PTB-XL folds 1-8, the others of the
MIMIC-IV-ED demo triage table. They are part of the model: changing one changes the embedding space."""

_SEX_COLUMN = len(VITAL_DEFINITIONS)
_INPUTS = 2 * (len(VITAL_DEFINITIONS) + 1)


def vitals_matrix(vitals: Sequence[Vitals]) -> Tensor:
    """Return float32, shape (batch, 20): standardised values (missing is 0), then 1 where measured.

    Values are clipped to 4 spreads; sex is +1 female, -1 male.
    """
    raw = np.stack([vital.to_array() for vital in vitals])  # (batch, 10)
    scaled = np.empty_like(raw)
    for column, vital in enumerate(VITAL_DEFINITIONS):
        centre, spread = CENTRE_AND_SPREAD[vital.name]
        scaled[:, column] = np.clip((raw[:, column] - centre) / spread, -4, 4)
    scaled[:, _SEX_COLUMN] = 2 * raw[:, _SEX_COLUMN] - 1
    measured = np.isfinite(raw)
    return torch.from_numpy(np.concatenate([np.where(measured, scaled, 0), measured], axis=1).astype(np.float32))


class VitalsEncoder(nn.Module):
    """Two-layer perceptron from :func:`vitals_matrix` to a unit-norm embedding."""

    def __init__(self, hidden: int = 128) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(_INPUTS, hidden), nn.GELU(), nn.Linear(hidden, EMBEDDING_DIM))

    @torch.no_grad()
    def forget_unseen(self, seen: Tensor) -> None:
        """Make inputs that training never held a value for have no effect: zero their weights.

        Parameters
        ----------
        seen : bool, shape (20,)
            Columns of :func:`vitals_matrix` that were ever other than zero.
        """
        self._first.weight[:, ~seen] = 0

    def knows(self, matrix: Tensor) -> Tensor:
        """Return bool, shape (batch,): whether anything was measured that has an effect."""
        return ((matrix != 0) & (self._first.weight != 0).any(0)).any(1)

    @property
    def _first(self) -> nn.Linear:
        return cast("nn.Linear", self.network[0])

    def forward(self, matrix: Tensor) -> Tensor:
        """Map float, shape (batch, 20), to float, shape (batch, dim), unit norm."""
        return nn.functional.normalize(self.network(matrix), dim=-1)
