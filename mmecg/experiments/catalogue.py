"""The experiments by name, in the order of ``docs/experiments.md``."""

from __future__ import annotations

from difflib import get_close_matches
from importlib import import_module

from mmecg.errors import InvalidInputError
from mmecg.experiments.experiment import Experiment

NAMES: tuple[str, ...] = (
    "linear-probe",
    "segment-aggregation",
    "random-lead-masking",
    "pair-validity",
    "label-efficiency",
    "transfer",
    "single-lead",
    "positive-unlabelled",
    "latent-map",
    "saliency",
    "cost",
)


def experiment(name: str) -> Experiment:
    """Return an experiment.

    Raises
    ------
    InvalidInputError
        There is none of this name.
    """
    if name not in NAMES:
        near = get_close_matches(name, NAMES, n=1)
        advice = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(NAMES)}"
        raise InvalidInputError(f"experiment {name[:40]!r} is unknown; {advice}", field="name")
    found: Experiment = import_module(f"mmecg.experiments.{name.replace('-', '_')}").EXPERIMENT
    return found
