"""Linear probe: L2-regularised logistic regression on frozen features, all labels in one L-BFGS fit.

The loss is the sum over labels of the mean cross-entropy plus ``penalty`` times the squared weights (the bias is free),
so the labels are independent regressions that share their matrix products. The penalty is chosen once per task by
macro-AUROC on an inner split of the *training* patients, then the probe is fitted again on all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import binary_cross_entropy_with_logits

from mmecg.evaluation.metrics import auroc, macro

PENALTIES: tuple[float, ...] = (1e-1, 1e-2, 1e-3, 1e-4)
"""Candidates, strong to weak: each fit starts from the one before."""

INNER_SHARE = 0.15
MAX_ITERATIONS = 60


@dataclass(frozen=True)
class Probe:
    """A fitted probe.

    Attributes
    ----------
    mean, scale : float32, shape (features,)
        Standardisation, from the training records.
    weight : float32, shape (features, labels)
    bias : float32, shape (labels,)
    penalty : float
    """

    mean: NDArray[np.float32]
    scale: NDArray[np.float32]
    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    penalty: float

    def scores(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the log-odds of every label: float32, shape (n, labels)."""
        return np.asarray(((features - self.mean) / self.scale) @ self.weight + self.bias, np.float32)


def fit_probe(
    features: NDArray[np.float32],
    labels: NDArray[np.bool_],
    subject_ids: Sequence[str] | NDArray[np.generic],
    *,
    penalties: Sequence[float] = PENALTIES,
    seed: int = 0,
) -> Probe:
    """Choose the penalty on an inner split by patient, then fit on every record. One penalty needs no choice.

    Parameters
    ----------
    features : float32, shape (n, features)
    labels : bool, shape (n, labels)
    subject_ids : sequence of str, length n
    penalties : sequence of float
    seed : int
        Of the inner split.
    """
    mean, scale = features.mean(axis=0), features.std(axis=0) + np.float32(1e-6)
    inputs = torch.from_numpy(np.ascontiguousarray((features - mean) / scale, np.float32))
    targets = torch.from_numpy(labels.astype(np.float32))
    held_out = inner_split(subject_ids, seed=seed)
    fitted = torch.from_numpy(np.flatnonzero(~held_out))
    start = torch.zeros(inputs.shape[1] + 1, labels.shape[1])
    best_penalty, best_score, best_start = penalties[0], -np.inf, start
    for penalty in penalties if len(penalties) > 1 else ():
        start = _fit(inputs[fitted], targets[fitted], penalty, start)
        logits = (inputs[torch.from_numpy(held_out)] @ start[:-1] + start[-1]).numpy()
        score, _ = macro(auroc(labels[held_out], logits), labels[held_out], min_positives=1)
        if score > best_score:
            best_penalty, best_score, best_start = penalty, score, start
    solution = _fit(inputs, targets, best_penalty, best_start).numpy()
    return Probe(mean, scale, solution[:-1], solution[-1], best_penalty)


def inner_split(subject_ids: Sequence[str] | NDArray[np.generic], *, seed: int = 0) -> NDArray[np.bool_]:
    """Mark the records of a random :data:`INNER_SHARE` of the patients (at least one patient): bool, shape (n,)."""
    patients, patient_of = np.unique(np.asarray(subject_ids), return_inverse=True)
    chosen = np.random.default_rng(seed).permutation(len(patients))[: max(1, round(INNER_SHARE * len(patients)))]
    return np.isin(patient_of, chosen)


def _fit(inputs: torch.Tensor, targets: torch.Tensor, penalty: float, start: torch.Tensor) -> torch.Tensor:
    parameters = start.clone().requires_grad_(True)  # (features + 1, labels); the last row is the bias
    optimiser = torch.optim.LBFGS(
        [parameters], max_iter=MAX_ITERATIONS, history_size=10, tolerance_change=1e-7, line_search_fn="strong_wolfe"
    )

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        logits = inputs @ parameters[:-1] + parameters[-1]  # (n, labels)
        loss = binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(dim=0).sum()
        loss = loss + penalty * parameters[:-1].square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    return parameters.detach()
