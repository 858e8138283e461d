"""Retrieval rows within the test fold: ECG to ECG of other patients, ECG to report and back.

Intervals resample the patients of the *queries*; the corpus that is searched stays whole.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from mmecg.embedding import Encoder
from mmecg.evaluation.bootstrap import bootstrap_mean, interval
from mmecg.evaluation.metrics import (
    expected_ndcg,
    expected_precision,
    expected_recall,
    jaccard,
    ndcg_at_k,
    precision_at_k,
    recall_at_k,
)
from mmecg.evaluation.results import Row
from mmecg.evaluation.setting import Setting

TOP_K = 10
_TEXT_BATCH = 256


def ecg_to_ecg(setting: Setting) -> list[Row]:
    """Return the rows ``ecg_to_ecg/*``: how alike the ten nearest ECGs of *other* patients are.

    Records with a superclass search each other. ``precision_at_10`` counts a hit that shares a superclass,
    ``…_exact_set`` one with the same set, ``…_class_balanced`` is the mean over the superclasses of how many hits have
    the superclass that the query has. ``ndcg_at_10`` grades by the Jaccard index of the superclass sets,
    ``…_statements`` by that of all statements (all records take part).
    """
    rows = []
    task = setting.test.tasks["superclass"]
    labels, subjects = task.values[task.included], setting.test.subject_ids[task.included]
    weights = setting.weights[task.included]
    others = subjects[:, None] != subjects[None, :]
    scores = {name: _cosines(encoded.embedding[task.included]) for name, encoded in setting.test.encoded.items()}
    alike = jaccard(labels, labels)
    for key, relevant in (("precision_at_10", alike > 0), ("precision_at_10_exact_set", alike == 1)):
        values = {name: precision_at_k(found, relevant, TOP_K, allowed=others) for name, found in scores.items()}
        values["prevalence"] = expected_precision(relevant, others)
        rows.append(_row(setting, f"ecg_to_ecg/{key}", values, weights))
    rows.append(_class_balanced(setting, scores, labels, others, weights))
    values = {name: ndcg_at_k(found, alike, TOP_K, allowed=others) for name, found in scores.items()}
    values["prevalence"] = expected_ndcg(alike, TOP_K, allowed=others)
    rows.append(_row(setting, "ecg_to_ecg/ndcg_at_10", values, weights))
    return [*rows, _graded_by_statements(setting)]


def _graded_by_statements(setting: Setting) -> Row:
    statements, subjects = setting.test.tasks["all"].values, setting.test.subject_ids
    others = subjects[:, None] != subjects[None, :]
    alike = jaccard(statements, statements)
    values = {
        name: ndcg_at_k(_cosines(encoded.embedding), alike, TOP_K, allowed=others)
        for name, encoded in setting.test.encoded.items()
    }
    values["prevalence"] = expected_ndcg(alike, TOP_K, allowed=others)
    return _row(setting, "ecg_to_ecg/ndcg_at_10_statements", values, setting.weights)


def _class_balanced(
    setting: Setting,
    scores: Mapping[str, NDArray[np.float32]],
    labels: NDArray[np.bool_],
    others: NDArray[np.bool_],
    weights: NDArray[np.float32],
) -> Row:
    """Return the mean over superclasses of the precision of the queries that have the superclass."""
    present = [column for column in labels.T if column.any()]
    values: dict[str, list[NDArray[np.float64]]] = {}
    for column in present:
        relevant = np.broadcast_to(column, others.shape)
        found = {name: precision_at_k(matrix, relevant, TOP_K, allowed=others) for name, matrix in scores.items()}
        found["prevalence"] = expected_precision(relevant, others)
        for name, of_queries in found.items():
            values.setdefault(name, []).append(np.where(column, of_queries, np.nan))
    means = {name: _mean(np.array([_mean(item) for item in of_classes])) for name, of_classes in values.items()}
    samples = np.mean([bootstrap_mean(of_queries, weights) for of_queries in values["bundle"]], axis=0)
    bounds = interval(samples)
    return Row(
        "ecg_to_ecg/precision_at_10_class_balanced",
        means["bundle"],
        bounds.low,
        bounds.high,
        len(labels),
        {"random_encoder": means["random"], "prevalence": means["prevalence"]},
        {"supervision": setting.supervision},
    )


def text_retrieval(setting: Setting, encoders: Mapping[str, Encoder]) -> list[Row]:
    """Return the rows ``ecg_to_report/recall_at_10`` and ``report_to_ecg/recall_at_10``.

    Every record with a clean report that has a letter or digit is a query and an entry of the corpus. Any entry whose
    clean text is identical to the query's own counts as a hit; a tie counts against the system. ``value_unique_texts``
    is the figure when every distinct text is one entry (ECG to report) or one query (report to ECG).

    Parameters
    ----------
    setting : Setting
    encoders : mapping of str to Encoder
    """
    given = np.array([any(map(str.isalnum, text)) for text in setting.test.texts], np.bool_)
    if not given.any():
        reason = "no test record has a report"
        return [Row.missing(f"{name}/recall_at_10", reason) for name in ("ecg_to_report", "report_to_ecg")]
    texts = [text for text, kept in zip(setting.test.texts, given, strict=True) if kept]
    distinct = sorted(set(texts))
    number = {text: index for index, text in enumerate(distinct)}
    text_of = np.array([number[text] for text in texts], np.int64)
    first = np.unique(text_of, return_index=True)[1]
    same_text = text_of[:, None] == text_of[None, :]
    own_text = text_of[:, None] == np.arange(len(distinct))[None, :]
    forward: dict[str, NDArray[np.float64]] = {}
    backward: dict[str, NDArray[np.float64]] = {}
    for name, encoder in encoders.items():
        scores = setting.test.encoded[name].embedding[given] @ _embed_texts(encoder, distinct).T
        forward[name] = recall_at_k(scores[:, text_of], same_text, TOP_K)
        backward[name] = recall_at_k(np.ascontiguousarray(scores.T)[text_of], same_text, TOP_K)
        if name == "bundle":
            forward_unique = _mean(recall_at_k(scores, own_text, TOP_K))
            backward_unique = _mean(backward[name][first])
    chance = expected_recall(same_text.sum(axis=1), len(texts), TOP_K)
    rows = []
    for direction, values, unique in (
        ("ecg_to_report", forward, forward_unique),
        ("report_to_ecg", backward, backward_unique),
    ):
        extra = {"value_unique_texts": unique, "n_unique_texts": len(distinct), "n_empty_texts": int((~given).sum())}
        figures = {**values, "prevalence": chance}
        rows.append(_row(setting, f"{direction}/recall_at_10", figures, setting.weights[given], **extra))
    return rows


def _row(
    setting: Setting,
    key: str,
    values: Mapping[str, NDArray[np.float64]],
    weights: NDArray[np.float32],
    **extra: float | int,
) -> Row:
    """Return the row of a mean over queries, from the values of the bundle, the random encoder and chance."""
    bounds = interval(bootstrap_mean(values["bundle"], weights))
    baselines = {"random_encoder": _mean(values["random"]), "prevalence": _mean(values["prevalence"])}
    queries = int(np.isfinite(values["bundle"]).sum())
    details = {"supervision": setting.supervision, **extra}
    if not queries:
        return Row.missing(key, "no query has anything that it could find")
    return Row(key, _mean(values["bundle"]), bounds.low, bounds.high, queries, baselines, details)


def _cosines(embedding: NDArray[np.float32]) -> NDArray[np.float32]:
    return embedding @ embedding.T


def _mean(values: NDArray[np.float64]) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else float("nan")


def _embed_texts(encoder: Encoder, texts: list[str]) -> NDArray[np.float32]:
    batches = range(0, len(texts), _TEXT_BATCH)
    return np.concatenate([encoder.encode_text(texts[start : start + _TEXT_BATCH]) for start in batches])
