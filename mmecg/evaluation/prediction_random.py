"""What the same protocol gives with an untrained encoder: probes, conformal sets, and both cross-fitted and by time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmecg.datasets.ptb_xl import read_scp_statements
from mmecg.datasets.splits import subject_groups
from mmecg.embedding import Encoder
from mmecg.evaluation.cohort import Progress, read_cohort
from mmecg.evaluation.prediction_data import PredictionData
from mmecg.evaluation.prediction_fitting import GROUPS, HonestScores
from mmecg.evaluation.probe import Probe, fit_probe
from mmecg.prediction.conformal import fit_conformal

PENALTIES = (1e-2,)
"""Of the probes; not chosen, for little depends on it."""

Logits = NDArray[np.float64]


@dataclass(frozen=True)
class RandomSystem:
    """Probe and conformal sets on the features of an untrained encoder.

    Attributes
    ----------
    probe : Probe
    sets : callable
        From log-odds of records without history and a level to sets: bool, shape (n, labels, 2).
    """

    probe: Probe
    sets: Callable[[Logits, float], NDArray[np.bool_]]

    @classmethod
    def fit(cls, data: PredictionData, features: NDArray[np.float32], *, seed: int) -> RandomSystem:
        """Fit the probe on all records, the sets on scores of probes that had not seen the patients."""
        held_out = np.empty(data.gold.shape)
        group = subject_groups(data.subject_ids, GROUPS)
        for one in range(GROUPS):
            known = group != one
            probe = _probe(features[known], data.gold[known], data.subject_ids[known], seed)
            held_out[~known] = probe.scores(features[~known])
        conformal = fit_conformal(held_out, data.gold, np.zeros(data.gold.shape, np.int8))

        def sets(logits: Logits, level: float) -> NDArray[np.bool_]:
            return conformal.sets(logits, np.zeros(logits.shape, np.int8), level)

        return cls(_probe(features, data.gold, data.subject_ids, seed), sets)


@dataclass(frozen=True)
class RandomFeatures:
    """Features of an untrained encoder, of some of the records of a cross-fit.

    Attributes
    ----------
    honest : HonestScores
        The cross-fit's n records.
    rows : int64, shape (m,)
        Which of them.
    features : float32, shape (m, features)
    drawn : bool, shape (m,)
        The random choice that probes are fitted on.
    seed : int
    """

    honest: HonestScores
    rows: NDArray[np.int64]
    features: NDArray[np.float32]
    drawn: NDArray[np.bool_]
    seed: int

    @classmethod
    def read(
        cls,
        folder: Path,
        honest: HonestScores,
        encoder: Encoder,
        asked: NDArray[np.int64],
        *,
        records: int,
        progress: Progress,
        seed: int,
    ) -> RandomFeatures:
        """Encode the records that are asked for, and a random choice of at most ``records``."""
        data = honest.data
        drawn = np.random.default_rng(seed).permutation(len(data))[:records]
        wanted = np.union1d(drawn, asked)
        read = read_cohort(
            folder, data.table[wanted], read_scp_statements(folder), {"random": encoder}, subsets={},
            progress=progress, what="random encoder",
        )  # fmt: skip
        place = {study: row for row, study in enumerate(data.study_ids.tolist())}
        rows = np.array([place[study] for study in read.study_ids.tolist()], np.int64)
        return cls(honest, rows, read.encoded["random"].features, np.isin(rows, drawn), seed)

    def cross_fitted(self) -> Logits:
        """Return log-odds by probes of the other bundle's side: shape (n, labels), NaN where nothing was read."""
        part = self.honest.part[self.rows]
        found = np.full(self.honest.data.gold.shape, np.nan)
        for one in np.unique(self.honest.part):
            found[self.rows[part == one]] = self._fit(self.drawn & (part != one)).scores(self.features[part == one])
        return found

    def by_time(self, early: NDArray[np.bool_]) -> Logits:
        """Return log-odds by a probe fitted on earlier records: shape (n, labels), NaN where nothing was read.

        Parameters
        ----------
        early : bool, shape (n,)
        """
        found = np.full(self.honest.data.gold.shape, np.nan)
        found[self.rows] = self._fit(self.drawn & early[self.rows]).scores(self.features)
        return found

    def _fit(self, chosen: NDArray[np.bool_]) -> Probe:
        data, rows = self.honest.data, self.rows[chosen]
        return _probe(self.features[chosen], data.gold[rows], data.subject_ids[rows], self.seed)


def _probe(features: NDArray[np.float32], gold: NDArray[np.bool_], subjects: NDArray[np.str_], seed: int) -> Probe:
    return fit_probe(features, gold, subjects, penalties=PENALTIES, seed=seed)
