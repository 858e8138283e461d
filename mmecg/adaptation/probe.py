"""Linear probe: how much of a label table a frozen encoder makes linearly readable, beside an untrained encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmecg.adaptation.backbone import Backbone, randomised
from mmecg.adaptation.examples import Examples
from mmecg.adaptation.incomplete import NEEDS_PRIOR, Incomplete, estimate_prior, label_loss
from mmecg.adaptation.label_table import LabelTable, Split, split_folds
from mmecg.adaptation.linear import LinearHead, fit_linear
from mmecg.adaptation.scores import COLUMNS, ScoreTable, score_systems
from mmecg.errors import InvalidInputError
from mmecg.evaluation.results import Evaluation

ENCODER, RANDOM = "encoder", "random encoder"
"""Names of the systems in tables."""


@dataclass(frozen=True)
class ProbeConfig:
    """What is fitted.

    Attributes
    ----------
    fold : int
        The fold evaluated; strength is chosen on the one before it, and all folds before that are fitted on.
    fraction : float
        Share of the patients to fit on.
    incomplete : str
        How labels that are not 1 are taken; see :mod:`mmecg.adaptation.incomplete`.
    prior : mapping of str to float
        How often a label is true, where that is known.
    resamples, seed : int
    """

    fold: int
    fraction: float = 1.0
    incomplete: Incomplete = "known"
    prior: Mapping[str, float] = field(default_factory=dict)
    resamples: int = 1000
    seed: int = 0


@dataclass(frozen=True)
class ProbeResult:
    """What a probe found.

    Attributes
    ----------
    head : LinearHead
        Of the encoder.
    scores : ScoreTable
    evaluation : Evaluation
        For :func:`mmecg.evaluation.results.save_evaluation`.
    """

    head: LinearHead
    scores: ScoreTable
    evaluation: Evaluation


def probe(backbone: Backbone, examples: Examples, config: ProbeConfig) -> ProbeResult:
    """Probe an encoder and, beside it, the same network with fresh weights.

    Parameters
    ----------
    backbone : Backbone
        An untrained one has no other row beside it.
    examples : Examples
    config : ProbeConfig

    Raises
    ------
    InvalidInputError
        Folds, fraction, kind of labels or priors are impossible.
    """
    split = split_folds(examples.table, config.fold, fraction=config.fraction, seed=config.seed)
    inputs = backbone.prepare(examples.ecgs)
    encoders = (
        {RANDOM: backbone}
        if backbone.untrained
        else {ENCODER: backbone, RANDOM: randomised(backbone, seed=config.seed)}
    )
    features = {name: encoder.features_of_inputs(inputs) for name, encoder in encoders.items()}
    heads = {name: probe_features(values, examples.table, split, config) for name, values in features.items()}
    logits = {name: heads[name].logits(features[name][split.test]) for name in heads}
    scores = score_systems(logits, examples.table.take(split.test), resamples=config.resamples, seed=config.seed)
    first = next(iter(heads))
    run = run_facts(backbone, examples, split, asdict(config))
    rows = scores.rows("linear_probe", fraction=config.fraction, incomplete=config.incomplete, seed=config.seed)
    return ProbeResult(heads[first], scores, Evaluation(tuple(rows), scores.per_label, run))


def probe_features(features: NDArray[np.float32], table: LabelTable, split: Split, config: ProbeConfig) -> LinearHead:
    """Fit a linear head on features that are there already.

    Parameters
    ----------
    features : float32, shape (n, features)
        Of the rows of ``table``.
    table : LabelTable
    split : Split
    config : ProbeConfig
    """
    values = table.values[split.fit]
    prior = priors_of(features, table, split, config.incomplete, config.prior, seed=config.seed)
    loss = label_loss(config.incomplete, values, prior=prior)
    choose = table.take(split.choose).values
    if config.incomplete != "known":
        choose = np.nan_to_num(choose)  # AUROC of labelled against the rest: the same order of systems
    return fit_linear(features[split.fit], values, loss, (features[split.choose], choose), table.groups)


def priors_of(
    features: NDArray[np.float32],
    table: LabelTable,
    split: Split,
    incomplete: Incomplete,
    given: Mapping[str, float],
    *,
    seed: int,
) -> NDArray[np.float64] | None:
    """Return the prior of every label, if the kind of loss needs one.

    Raises
    ------
    InvalidInputError
        A given prior is of no label of the table, or there is no use for it.
    """
    if incomplete not in NEEDS_PRIOR:
        if given:
            raise InvalidInputError(
                f"priors are given, but {incomplete} labels need none; leave them out", field="prior"
            )
        return None
    if unknown := [name for name in given if name not in table.labels]:
        raise InvalidInputError(f"prior of {unknown[0]!r} is given, which is no label of the table", field="prior")
    known = {table.labels.index(name): value for name, value in given.items()}
    subjects = [table.subject_ids[row] for row in split.fit]
    return estimate_prior(features[split.fit], table.values[split.fit], subjects, given=known, seed=seed)


def run_facts(backbone: Backbone, examples: Examples, split: Split, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what ``run.json`` and the report say of a run: configuration, encoder, counts, notes, skipped records."""
    table, notes = examples.table, []
    if sentence := backbone.contamination(examples.data, fold=config["fold"]):
        notes.append(sentence)
    folds = sorted(set(table.folds[split.fit].tolist()))
    return {
        **config,
        "encoder": backbone.name,
        "fingerprint": backbone.fingerprint,
        "data": examples.data,
        "fit_folds": folds,
        "choose_fold": config["fold"] - 1,
        "records": {name: len(rows) for name, rows in vars(split).items()},
        "patients": {name: len({table.subject_ids[row] for row in rows}) for name, rows in vars(split).items()},
        "notes": notes,
        "skipped": [] if examples.skipped is None else examples.skipped.to_dicts(),
    }


def render_scores(title: str, scores: ScoreTable, run: Mapping[str, Any]) -> str:
    """Return ``report.md``."""
    records, patients = run["records"], run["patients"]
    folds = ", ".join(map(str, run["fit_folds"]))
    lines = [
        f"# {title}",
        "",
        f"Encoder `{run['encoder']}` (`{str(run['fingerprint'])[:12]}`), seed {run['seed']}; "
        f"{100 * run['fraction']:g} % of the patients of folds {folds}: {records['fit']} records of {patients['fit']} "
        f"patients; chosen on fold {run['choose_fold']} ({records['choose']} records), evaluated on fold {run['fold']} "
        f"({records['test']} records). Intervals: 95 %, {run['resamples']} patient-clustered resamples.",
        "",
        *(f"**Note:** {note}\n" for note in run["notes"]),
        *table_lines(COLUMNS, scores.cells()),
    ]
    return "\n".join(lines) + "\n"


def table_lines(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a Markdown table, line by line."""
    return ["| " + " | ".join(cells) + " |" for cells in (columns, ["---"] * len(columns), *rows)]
