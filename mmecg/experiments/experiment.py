"""What an experiment is: a question, a protocol, options, and an outcome."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from mmecg.evaluation.bootstrap import DEFAULT_RESAMPLES
from mmecg.evaluation.results import Row

if TYPE_CHECKING:
    from mmecg.experiments.bench import Bench
    from mmecg.experiments.scatter import Picture

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much is done, and how much there is."""


@dataclass(frozen=True)
class Options:
    """What an experiment is run on.

    Attributes
    ----------
    data : Path
        PTB-XL folder.
    fold : int
        Fold that figures are of. The one before it is chosen on, all before that are fitted on.
    encoders : tuple of Path
        What :func:`mmecg.adaptation.backbone.load_backbone` takes; the first is the one that sentences speak of. None:
        the bundle that ships with mmecg.
    cache : Path
        Folder of signals and features, for the next experiment.
    fraction : float
        Share of the patients that are fitted on.
    seed, resamples : int
    """

    data: Path
    cache: Path
    fold: int = 9
    encoders: tuple[Path, ...] = ()
    fraction: float = 1.0
    seed: int = 0
    resamples: int = DEFAULT_RESAMPLES


@dataclass(frozen=True)
class Outcome:
    """What an experiment found.

    Attributes
    ----------
    headline : tuple of str
        Keys of the rows that stand for all.
    rows : tuple of Row
    sentence : str
        What they say, in one honest sentence.
    tables : mapping of str to polars.DataFrame
        More figures, by file name without suffix.
    pictures : mapping of str to matplotlib figure
        By file name without suffix.
    notes : tuple of str
        What a reader must know.
    """

    headline: tuple[str, ...]
    rows: tuple[Row, ...]
    sentence: str
    tables: Mapping[str, pl.DataFrame] = field(default_factory=dict)
    pictures: Mapping[str, Picture] = field(default_factory=dict)
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Experiment:
    """An experiment.

    Attributes
    ----------
    name : str
        Of the command line: lower case, with hyphens.
    asked : str
        The question.
    protocol : str
        How it is answered.
    run : callable
        From the bench to the outcome.
    """

    name: str
    asked: str
    protocol: str
    run: Callable[[Bench], Outcome]
