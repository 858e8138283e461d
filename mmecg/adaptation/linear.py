"""A linear head on frozen features: regularised logistic regression of all labels in one L-BFGS fit.

The loss is the sum over labels of their loss (:mod:`mmecg.adaptation.incomplete`) plus ``penalty`` times the squared
weights on standardised features; the bias is free. So labels are independent regressions that share matrix products.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from mmecg.adaptation.incomplete import LabelLoss
from mmecg.adaptation.scores import label_auroc

PENALTIES: tuple[float, ...] = (10.0, 1.0, 1e-1, 1e-2, 1e-3, 1e-4)
"""Candidates, strong to weak: each fit starts from the one before."""

LEAST_SCALE = 1e-2
"""Least standard deviation that a feature is divided by, as a share of their median."""

MAX_ITERATIONS = 60
_BIAS_PENALTY = 1e-6  # keeps the bias of a label without positives finite


@dataclass(frozen=True)
class LinearHead:
    """A fitted head.

    Attributes
    ----------
    mean, scale : float32, shape (features,)
        Standardisation, from the records that it was fitted on.
    weight : float32, shape (features, labels)
    bias : float32, shape (labels,)
    penalty : float64, shape (labels,)
    """

    mean: NDArray[np.float32]
    scale: NDArray[np.float32]
    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    penalty: NDArray[np.float64]

    def logits(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the log-odds of every label: float32, shape (n, labels)."""
        return np.asarray(((features - self.mean) / self.scale) @ self.weight + self.bias, np.float32)


def fit_linear(
    features: NDArray[np.float32],
    values: NDArray[np.float32],
    loss: LabelLoss,
    choose: tuple[NDArray[np.float32], NDArray[np.float32]],
    groups: Mapping[str, Sequence[int]],
    *,
    penalties: Sequence[float] = PENALTIES,
) -> LinearHead:
    """Fit with every penalty, and keep for each label group the one with the best macro-AUROC on other records.

    Parameters
    ----------
    features : float32, shape (n, features)
    values : float32, shape (n, labels)
    loss : LabelLoss
    choose : features and values of the records to choose on
    groups : mapping of str to sequence of int
        Columns of each label group.
    penalties : sequence of float
        Strong to weak.
    """
    mean, scale = features.mean(axis=0), _scale(features)
    inputs = torch.from_numpy(np.ascontiguousarray((features - mean) / scale, np.float32))
    others = torch.from_numpy(np.ascontiguousarray((choose[0] - mean) / scale, np.float32))
    targets = torch.from_numpy(values)
    solution = torch.zeros(inputs.shape[1] + 1, values.shape[1])
    share = loss.prior.clamp(1e-4, 1 - 1e-4)
    solution[-1] = torch.log(share / (1 - share))
    best, penalty = solution.clone(), np.full(values.shape[1], penalties[0])
    reached = dict.fromkeys(groups, -np.inf)
    for candidate in penalties:
        solution = _fit(inputs, targets, loss, candidate, solution)
        auroc = label_auroc(choose[1], (others @ solution[:-1] + solution[-1]).numpy())
        for name, columns in groups.items():
            held = auroc[list(columns)]
            score = float(held[np.isfinite(held)].mean()) if np.isfinite(held).any() else -np.inf
            if score > reached[name]:
                reached[name] = score
                best[:, list(columns)], penalty[list(columns)] = solution[:, list(columns)], candidate
    return LinearHead(mean, scale, best[:-1].numpy(), best[-1].numpy(), penalty)


def _scale(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return standard deviations, but of features that hardly vary a floor: fine-tuning would blow them up."""
    deviation = features.std(axis=0)
    floor = LEAST_SCALE * np.median(deviation[deviation > 0]) if deviation.any() else 1.0
    return np.asarray(np.maximum(deviation, floor), np.float32)


def _fit(
    inputs: torch.Tensor, targets: torch.Tensor, loss: LabelLoss, penalty: float, start: torch.Tensor
) -> torch.Tensor:
    """Return weights and, as the last row, biases: float32, shape (features + 1, labels)."""
    parameters = start.clone().requires_grad_(True)
    optimiser = torch.optim.LBFGS(
        [parameters], max_iter=MAX_ITERATIONS, history_size=10, tolerance_change=1e-7, line_search_fn="strong_wolfe"
    )

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        logits = inputs @ parameters[:-1] + parameters[-1]  # (n, labels)
        value = loss.per_label(logits, targets, batch=False).sum() + penalty * parameters[:-1].square().sum()
        value = value + _BIAS_PENALTY * parameters[-1].square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    return parameters.detach()
