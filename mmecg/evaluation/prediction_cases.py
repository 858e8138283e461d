"""What every protocol of the prediction evaluation shares: the studies, their gold, the resamples, the systems."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.special import expit, logit

from mmecg.evaluation.label_metrics import Figure
from mmecg.evaluation.labels import TASKS
from mmecg.evaluation.metrics import auroc
from mmecg.evaluation.prediction_metrics import Aurocs
from mmecg.evaluation.results import Row
from mmecg.prediction.result import SUPERCLASS_PREFIX

DAY_S = 86400.0
BASELINES: tuple[str, ...] = ("random_encoder", "prevalence")


@dataclass(frozen=True)
class Cases:
    """Studies with gold and resamples, and what each system says of them.

    Attributes
    ----------
    table : polars.DataFrame
        Rows of :func:`mmecg.datasets.ptb_xl.read_ptb_xl_table`, one a study.
    labels : tuple of str
        Statements, then ``superclass/…``.
    gold : bool, shape (n, labels)
    weights : float32, shape (n, resamples)
        Bootstrap weights by patient.
    priors : int64, shape (n,)
        Earlier studies of the subject.
    gap_days : float64, shape (n,)
        Since the latest of them; NaN if there is none.
    systems : mapping of str to float64, shape (n, labels)
        Log-odds by system: ``"history"`` (everything), ``"current"`` (this ECG, the vitals, the cohort), ``"single"``
        (this ECG and the cohort), ``"ecg"`` (this ECG alone), ``"random_encoder"``, and the controls.
    seed : int
    """

    table: pl.DataFrame
    labels: tuple[str, ...]
    gold: NDArray[np.bool_]
    weights: NDArray[np.float32]
    priors: NDArray[np.int64]
    gap_days: NDArray[np.float64]
    systems: Mapping[str, NDArray[np.floating]] = field(default_factory=dict)
    seed: int = 0

    def __len__(self) -> int:
        return len(self.gold)

    @property
    def superclass(self) -> NDArray[np.bool_]:
        """Which labels are superclasses: bool, shape (labels,)."""
        return np.array([label.startswith(SUPERCLASS_PREFIX) for label in self.labels])

    def take(self, rows: NDArray[Any]) -> Cases:
        """Return some of the studies (a mask or positions), with the same resamples of their patients."""
        kept = np.flatnonzero(rows) if rows.dtype == np.bool_ else rows
        return Cases(
            self.table[kept],
            self.labels,
            self.gold[kept],
            self.weights[kept],
            self.priors[kept],
            self.gap_days[kept],
            {name: logits[kept] for name, logits in self.systems.items()},
            self.seed,
        )

    def task(self, name: str) -> Cases:
        """Return the task ``"all"`` (the statements) or ``"superclass"`` (of the studies that have one)."""
        columns = np.flatnonzero(self.superclass == (name == "superclass"))
        some: NDArray[np.bool_] = np.asarray(self.gold[:, columns].any(axis=1))
        rows = some if name == "superclass" else np.ones(len(self), np.bool_)
        part = self.take(rows)
        return Cases(
            part.table,
            tuple(self.labels[column] for column in columns),
            part.gold[:, columns],
            part.weights,
            part.priors,
            part.gap_days,
            {system: logits[:, columns] for system, logits in part.systems.items()},
            self.seed,
        )

    def tasks(self) -> dict[str, Cases]:
        """Return both tasks by name."""
        return {name: self.task(name) for name in TASKS}

    def probability(self, system: str) -> NDArray[np.float64]:
        """Return the probabilities of a system; ``"prevalence"`` gives every study the rate of the label."""
        if system == "prevalence":
            return np.broadcast_to(self.gold.mean(axis=0), self.gold.shape)
        return np.asarray(expit(self.systems[system]), np.float64)

    def aurocs(self, system: str) -> Aurocs:
        """Return the AUROC of every label by a system."""
        return Aurocs.of(self.gold, self.systems[system], self.weights)

    def aurocs_without_resamples(self, system: str) -> NDArray[np.float64]:
        """Return the AUROC of every label by a system; NaN if there is no such system."""
        if system not in self.systems:
            return np.full(len(self.labels), np.nan)
        return auroc(self.gold, self.systems[system])

    def macro_baselines(self, kept: NDArray[np.bool_]) -> dict[str, float]:
        """Return macro-AUROC of the baselines over the kept labels; a constant score has 0.5."""
        found = {"prevalence": 0.5}
        if "random_encoder" in self.systems and kept.any():
            found["random_encoder"] = float(self.aurocs_without_resamples("random_encoder")[kept].mean())
        return found


@dataclass(frozen=True)
class Part:
    """One section of the evaluation: rows for ``metrics.json`` and the tables that its plots are drawn from.

    Attributes
    ----------
    rows : tuple of Row
    tables : mapping of str to polars.DataFrame
        Written as CSV under their name.
    """

    rows: tuple[Row, ...]
    tables: Mapping[str, pl.DataFrame] = field(default_factory=dict)


def join(parts: Sequence[Part]) -> Part:
    """Return the rows and tables of all parts."""
    tables = {name: table for part in parts for name, table in part.tables.items()}
    return Part(tuple(row for part in parts for row in part.rows), tables)


def macro_row(key: str, part: Cases, found: Figure, kept: NDArray[np.bool_], **extra: object) -> Row:
    """Return a row on a mean over the kept labels, with the baselines of AUROC."""
    return found.row(key, len(part), part.macro_baselines(kept), n_labels=int(kept.sum()), **extra)


def subject_rates(gold: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the log-odds of each label's rate, half a case added on either side: float64, shape (labels,)."""
    return np.asarray(logit((gold.sum(axis=0) + 0.5) / (len(gold) + 1)), np.float64)
