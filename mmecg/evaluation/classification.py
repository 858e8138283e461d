"""Rows whose figure is a macro-AUROC: linear probe, zero-shot, kNN label transfer, and what leads and vitals change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mmecg.embedding import Encoder, fuse, normalise
from mmecg.evaluation.bootstrap import bootstrap_auroc, interval, mean_of_labels
from mmecg.evaluation.cohort import Cohort
from mmecg.evaluation.labels import TASKS, LabelTask
from mmecg.evaluation.metrics import MIN_POSITIVES, auprc, auroc, eligible, macro
from mmecg.evaluation.probe import fit_probe
from mmecg.evaluation.prompts import PromptEmbeddings
from mmecg.evaluation.results import Row
from mmecg.evaluation.setting import Setting
from mmecg.neighbours import knn_scores

CHANCE = 0.5
"""AUROC of the prevalence baseline: a constant score."""

EVERY_LABEL_ROWS = frozenset({"linear_probe/all", "linear_probe_embedding/all"})
"""Rows whose value is the mean over every statement that occurs in the fold, comparable with published figures."""


@dataclass(frozen=True)
class Classification:
    """A row, its labels one by one, and its value in every resample (for differences).

    Attributes
    ----------
    row : Row
    per_label : polars.DataFrame
    samples : float64, shape (resamples,)
    """

    row: Row
    per_label: pl.DataFrame
    samples: NDArray[np.float64] = field(repr=False)


def linear_probe(setting: Setting, train: Cohort, *, of: str) -> list[Classification]:
    """Return the rows ``linear_probe/*`` (``of="features"``) or ``linear_probe_embedding/*`` (``of="embedding"``)."""
    found = []
    for task in TASKS:
        fitted = {}
        for name, encoded in train.encoded.items():
            known = train.tasks[task]
            subjects = train.subject_ids[known.included]
            inputs = getattr(encoded, of)[known.included]
            fitted[name] = fit_probe(inputs, known.values[known.included], subjects, seed=setting.seed)
        scores = {name: probe.scores(getattr(setting.test.encoded[name], of)) for name, probe in fitted.items()}
        protocol = "linear_probe" if of == "features" else "linear_probe_embedding"
        extra = {"penalty": fitted["bundle"].penalty, "probe_supervision": "labels of the training folds"}
        found.append(classification(setting, f"{protocol}/{task}", scores, extra))
    return found


def knn(setting: Setting, train: Cohort) -> list[Classification]:
    """Return the rows ``knn50/*``."""
    extra = {"probe_supervision": "labels of the training folds"}
    return [
        classification(
            setting,
            f"knn50/{task}",
            {name: _transfer(train, name, task, setting.test.encoded[name].embedding) for name in setting.test.encoded},
            extra,
        )
        for task in TASKS
    ]


def zero_shot(setting: Setting, prompts: Mapping[str, Mapping[str, PromptEmbeddings]]) -> list[Classification]:
    """Return the rows ``zero_shot/*`` with their prompt sensitivity.

    Parameters
    ----------
    setting : Setting
    prompts : mapping of encoder name to mapping of task to PromptEmbeddings
    """
    found = []
    for task in TASKS:
        scores = {
            name: encoded.embedding @ prompts[name][task].ensemble.T for name, encoded in setting.test.encoded.items()
        }
        labels, included = _labels(setting, task)
        least = 1 if task == "superclass" else MIN_POSITIVES
        embedding = setting.test.encoded["bundle"].embedding[included]
        given = prompts["bundle"][task]
        *single, last = (
            macro(auroc(labels, embedding @ vectors.T), labels, min_positives=least)[0]
            for vectors in (*given.single, given.last)
        )
        extra = {"prompt_values": single, "prompt_std": float(np.std(single)), "value_last_prompts": last}
        found.append(classification(setting, f"zero_shot/{task}", scores, extra))
    return found


def lead_subsets(
    setting: Setting,
    prompts: Mapping[str, Mapping[str, PromptEmbeddings]],
    full: Mapping[str, Classification],
) -> list[Row]:
    """Return the rows ``lead_subset/*``: the share of the 12-lead zero-shot AUROC above chance that a subset keeps.

    ``lead_subset/<subset>`` is the mean of the shares for the two tasks, which have rows of their own. The random
    encoder's baseline is *its* AUROC above chance on the subset, as a share of the bundle's with 12 leads.

    Parameters
    ----------
    setting : Setting
    prompts : mapping of encoder name to mapping of task to PromptEmbeddings
    full : mapping of task to Classification
        The 12-lead rows of :func:`zero_shot`.
    """
    rows = []
    for subset in setting.test.encoded["bundle"].subsets:
        shares, samples = [], []
        for task in TASKS:
            scores = {
                name: encoded.subsets[subset] @ prompts[name][task].ensemble.T
                for name, encoded in setting.test.encoded.items()
            }
            part = classification(setting, f"zero_shot_{subset}/{task}", scores, {})
            above = full[task].row.value - CHANCE
            sampled = _share(part.samples - CHANCE, full[task].samples - CHANCE)
            share = _share(np.array(part.row.value - CHANCE), np.array(above)).item()
            random = _share(np.array(part.row.baselines["random_encoder"] - CHANCE), np.array(above)).item()
            bounds = interval(sampled)
            baselines = {"random_encoder": random, "prevalence": 0.0}
            extra = {
                "auroc": part.row.value,
                "auroc_12_leads": full[task].row.value,
                "supervision": setting.supervision,
            }
            key = f"lead_subset/{subset}/{task}"
            shares.append(Row(key, share, bounds.low, bounds.high, part.row.n, baselines, extra))
            samples.append(sampled)
        bounds = interval(np.mean(samples, axis=0))
        both = {name: float(np.mean([row.baselines[name] for row in shares])) for name in shares[0].baselines}
        value = float(np.mean([row.value for row in shares]))
        extra = {"mean_of": [row.key for row in shares], "supervision": setting.supervision}
        rows.append(Row(f"lead_subset/{subset}", value, bounds.low, bounds.high, len(setting.test), both, extra))
        rows += shares
    return rows


def vitals_gain(
    setting: Setting,
    train: Cohort,
    encoders: Mapping[str, Encoder],
    ecg_only: Mapping[str, Classification],
    *,
    weight: float,
) -> list[Row]:
    """Return the rows ``vitals_gain/*``: kNN AUROC of the fused query less that of the ECG alone, in pairs.

    The query is the ECG plus ``weight`` times the vitals, normalised; a record without vitals is queried by its ECG.
    ``vitals_gain/knn50_*`` searches the ECG embeddings of the corpus, as the service does;
    ``vitals_gain_fused_corpus/knn50_*`` searches a corpus that was fused in the same way. The baseline
    ``shuffled_vitals`` gives every query the vitals of another one.
    """
    queries = {name: _fused(setting.test, name, encoder, weight) for name, encoder in encoders.items()}
    shuffled = _fused(setting.test, "bundle", encoders["bundle"], weight, shuffle_seed=setting.seed)
    corpora = {
        "vitals_gain": {name: train.encoded[name].embedding for name in encoders},
        "vitals_gain_fused_corpus": {name: _fused(train, name, encoder, weight) for name, encoder in encoders.items()},
    }
    rows = []
    for protocol, corpus in corpora.items():
        for task in TASKS:
            before = ecg_only[task]
            scores = {name: _transfer(train, name, task, queries[name], corpus[name]) for name in encoders}
            after = classification(setting, f"knn50_vitals/{task}", scores, {})
            labels, included = _labels(setting, task)
            control = _transfer(train, "bundle", task, shuffled, corpus["bundle"])[included]
            control_value = macro(auroc(labels, control), labels, min_positives=_least_positives(after.row.key))[0]
            bounds = interval(after.samples - before.samples)
            baselines = {
                "random_encoder": after.row.baselines["random_encoder"] - before.row.baselines["random_encoder"],
                "prevalence": 0.0,
                "shuffled_vitals": control_value - before.row.value,
            }
            extra = {
                "auroc_ecg": before.row.value,
                "auroc_ecg_and_vitals": after.row.value,
                "vitals_weight": weight,
                "records_with_vitals": sum(not vitals.is_empty() for vitals in setting.test.vitals),
                "excludes_zero": bool(bounds.low > 0 or bounds.high < 0),
                "supervision": setting.supervision,
            }
            value = after.row.value - before.row.value
            key = f"{protocol}/knn50_{task}"
            rows.append(Row(key, value, bounds.low, bounds.high, after.row.n, baselines, extra))
    return rows


def classification(
    setting: Setting, key: str, scores: Mapping[str, NDArray[np.floating]], extra: Mapping[str, Any]
) -> Classification:
    """Score a task for the bundle and the random encoder.

    Parameters
    ----------
    setting : Setting
    key : str
        ``"<protocol>/<task>"``.
    scores : mapping of encoder name to floating, shape (n, labels)
        For all test records; those that the task leaves out are dropped here.
    extra : mapping
        More fields for the row.
    """
    protocol, task = key.rsplit("/", 1)
    labels, included = _labels(setting, task)
    found = {name: auroc(labels, values[included]) for name, values in scores.items()}
    samples = bootstrap_auroc(labels, scores["bundle"][included], setting.weights[included])
    per_label = _per_label(protocol, setting.test.tasks[task], labels, found, scores["bundle"][included], samples)
    least = _least_positives(key)
    reduced, reduced_count = macro(found["bundle"], labels, min_positives=MIN_POSITIVES)
    complete, complete_count = macro(found["bundle"], labels, min_positives=1)
    value, count = macro(found["bundle"], labels, min_positives=least)
    of_macro = mean_of_labels(samples, eligible(labels, min_positives=least))
    bounds = interval(of_macro)
    baselines = {"random_encoder": macro(found["random"], labels, min_positives=least)[0], "prevalence": CHANCE}
    precision = per_label.filter(pl.col("positives") >= least)["auprc"].mean()
    details = {
        "n_labels": count,
        "min_positives": least,
        "value_min_10_positives": reduced,
        "n_labels_min_10_positives": reduced_count,
        "value_all_labels": complete,
        "n_labels_all_labels": complete_count,
        "auprc": precision,
        "supervision": setting.supervision,
        **extra,
    }
    if not count:
        details["reason"] = f"no label has {least} positives and a negative in the fold"
    row = Row(key, value, bounds.low, bounds.high, int(included.sum()), baselines if count else {}, details)
    return Classification(row, per_label, of_macro)


def _least_positives(key: str) -> int:
    """Return the rule for the labels that enter a row's mean."""
    return 1 if key.endswith("/superclass") or key in EVERY_LABEL_ROWS else MIN_POSITIVES


def _labels(setting: Setting, task: str) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return the labels of the records that take part, and which those are."""
    known = setting.test.tasks[task]
    return known.values[known.included], known.included


def _per_label(
    protocol: str,
    task: LabelTask,
    labels: NDArray[np.bool_],
    found: Mapping[str, NDArray[np.float64]],
    scores: NDArray[np.floating],
    samples: NDArray[np.float64],
) -> pl.DataFrame:
    bounds = [interval(column) for column in samples.T]
    table = pl.DataFrame(
        {
            "protocol": [protocol] * len(task.labels),
            "task": [task.name] * len(task.labels),
            "label": list(task.labels),
            "positives": labels.sum(axis=0).astype(np.int64),
            "auroc": found["bundle"],
            "low": [bound.low for bound in bounds],
            "high": [bound.high for bound in bounds],
            "auprc": auprc(labels, scores),
            "random_encoder": found["random"],
        }
    )
    return table.with_columns(pl.col(pl.Float64).fill_nan(None))


def _transfer(
    train: Cohort,
    name: str,
    task: str,
    queries: NDArray[np.float32],
    corpus: NDArray[np.float32] | None = None,
) -> NDArray[np.float64]:
    """Return kNN scores from the training records that take part in a task."""
    known = train.tasks[task]
    vectors = train.encoded[name].embedding if corpus is None else corpus
    return knn_scores(queries, vectors[known.included], known.values[known.included])


def _fused(
    cohort: Cohort, name: str, encoder: Encoder, weight: float, *, shuffle_seed: int | None = None
) -> NDArray[np.float32]:
    """Return ECG embeddings fused with those of the vitals, where there are any."""
    rows = np.array([row for row, vitals in enumerate(cohort.vitals) if not vitals.is_empty()], np.int64)
    fused = cohort.encoded[name].embedding.copy()
    if not len(rows):
        return fused
    given = rows if shuffle_seed is None else np.random.default_rng(shuffle_seed).permutation(rows)
    vitals = normalise(encoder.encode_vitals([cohort.vitals[row] for row in given]))
    fused[rows] = fuse({"ecg": fused[rows], "vitals": vitals}, {"ecg": 1.0, "vitals": weight})
    return fused


def _share(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return ``part / whole``; NaN where the whole is not above chance, so that there is nothing to keep."""
    return np.asarray(np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=whole > 0))
