"""Prediction that knows the patient: calibrated, conditioned on earlier ECGs, able to abstain. See ``README.md``."""

from mmecg.prediction.measured import Comparison, LeadChange, MeasuredChange, Measurement
from mmecg.prediction.result import (
    LabelChange,
    LabelPrediction,
    NeighbourEvidence,
    Prediction,
    PredictionOptions,
    PriorEvidence,
    Uncertainty,
)

__all__ = [
    "Comparison", "LabelChange", "LabelPrediction", "LeadChange", "MeasuredChange", "Measurement", "NeighbourEvidence",
    "Prediction", "PredictionOptions", "PriorEvidence", "Uncertainty",
]  # fmt: skip
