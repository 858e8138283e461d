"""Fitting of age from the tower's features."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mmecg.evaluation.prediction_data import PredictionData
from mmecg.prediction.heads import AgeHead

AGE_PENALTY = 1e-2
QUANTILES = np.linspace(0, 1, 1001)


def ages(data: PredictionData) -> NDArray[np.float64]:
    """Return ages, NaN where unknown or only known to be above 89: float64, shape (n,), years."""
    age = data.table["age_years"].cast(float).to_numpy().astype(np.float64)
    return np.where(data.table["age_note"].is_null().to_numpy(), age, np.nan)


def fit_age(data: PredictionData, errors: NDArray[np.float64] | None = None) -> AgeHead:
    """Fit age by ridge regression on standardised features.

    Parameters
    ----------
    data : PredictionData
    errors : float64, shape (m,), years, optional
        Absolute errors of honest predictions, NaN ignored; default none, with an interval of no width.
    """
    age = ages(data)
    known = np.isfinite(age)
    features, age = data.features[known].astype(np.float64), age[known]
    mean, scale = features.mean(axis=0), features.std(axis=0) + 1e-6
    inputs = (features - mean) / scale
    middle = age.mean()
    gram = inputs.T @ inputs / len(inputs) + AGE_PENALTY * np.eye(inputs.shape[1])
    weight = np.linalg.solve(gram, inputs.T @ (age - middle) / len(inputs)) / scale
    honest = np.zeros(1) if errors is None else errors[np.isfinite(errors)]
    level = np.minimum(QUANTILES * (len(honest) + 1) / len(honest), 1)
    residuals = np.quantile(honest, level, method="higher").astype(np.float32)
    return AgeHead(weight.astype(np.float32), float(middle - mean @ weight), residuals)
