"""Prediction cross-fitted over all folds, and by time: nothing has seen the study that it is tested on.

Two bundles trained on disjoint folds score each other's folds (:mod:`mmecg.evaluation.prediction_fitting`); what joins
scores, votes and histories is fitted on the other patients.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.special import expit

from mmecg.datasets.splits import subject_groups
from mmecg.evaluation.bootstrap import patient_weights
from mmecg.evaluation.label_metrics import ece
from mmecg.evaluation.prediction_cases import Part
from mmecg.evaluation.prediction_data import PredictionData
from mmecg.evaluation.prediction_fitting import GROUPS, Evidence, HonestScores, fit_embedding, fit_evidence, prevalence
from mmecg.evaluation.prediction_history import apply_count, fit_count
from mmecg.evaluation.prediction_metrics import Aurocs
from mmecg.evaluation.prediction_modalities import Bases, subset_systems
from mmecg.evaluation.prediction_random import RandomFeatures
from mmecg.evaluation.prediction_systems import Current, Logits, Tested, WithHistory, systems_of
from mmecg.evaluation.probe import fit_probe
from mmecg.evaluation.results import Row
from mmecg.neighbours import knn_scores
from mmecg.prediction.history import Prior, build_tokens

EARLY_SHARE = 0.7
"""Share of the recordings, by time, that the temporal split is fitted on."""

Parts = Sequence[tuple[PredictionData, Sequence[int]]]


@dataclass(frozen=True)
class CrossFit:
    """Evidence heads for groups of patients, each fitted on the other groups.

    Attributes
    ----------
    honest : HonestScores
    group : int64, shape (n,)
    evidence : tuple of Evidence
        One a group.
    """

    honest: HonestScores
    group: NDArray[np.int64]
    evidence: tuple[Evidence, ...]

    @classmethod
    def fit(cls, honest: HonestScores) -> CrossFit:
        """Fit :data:`~mmecg.evaluation.prediction_fitting.GROUPS` times."""
        group = subject_groups(honest.data.subject_ids, GROUPS)
        return cls(honest, group, tuple(fit_evidence(honest, np.flatnonzero(group != one)) for one in range(GROUPS)))

    def current(self) -> Current:
        """Return log-odds without history."""
        ecg = np.empty_like(self.honest.logits)
        single, current = np.empty_like(ecg), np.empty_like(ecg)
        for one, evidence in enumerate(self.evidence):
            rows = self.group == one
            ecg[rows] = evidence.calibration.apply(self.honest.logits[rows])
            votes = self.honest.votes[rows]
            single[rows] = evidence.cohort.apply(ecg[rows], votes)
            with_vitals = evidence.vitals.apply(ecg[rows], self.honest.data.vitals[rows])
            current[rows] = evidence.cohort.apply(with_vitals, votes)
        return Current(ecg, single, current)

    def finish(self, logits: Logits) -> Logits:
        """Join the superclasses with their statements, in log-odds of all records."""
        found = np.empty_like(logits)
        for one, evidence in enumerate(self.evidence):
            found[self.group == one] = evidence.superclass.apply(logits[self.group == one])
        return found

    def with_history(self, logits: Logits) -> WithHistory:
        """Return what adds histories to log-odds of all records."""

        def apply(rows: NDArray[np.int64], histories: Sequence[Sequence[Prior]]) -> Logits:
            found = np.array(logits[rows])
            for one, evidence in enumerate(self.evidence):
                at = np.flatnonzero(self.group[rows] == one)
                found[at] = add_history(
                    self.honest, evidence, rows[at], [histories[place] for place in at.tolist()], logits
                )
            return found

        return apply

    def subsets(self, *, seed: int) -> dict[str, Logits]:
        """Return the subsets of the evidence on every record; see :mod:`mmecg.evaluation.prediction_modalities`."""
        honest, current = self.honest, self.current()
        parts = {}
        for one, evidence in enumerate(self.evidence):
            rows = self.group == one
            here = Current(current.ecg[rows], current.single[rows], current.current[rows])
            parts[one] = Bases.of(here, honest.data.vitals[rows], evidence.vitals, prevalence(honest.data))
        whole = {name.name: np.empty_like(current.ecg) for name in fields(Bases)}
        for one, part in parts.items():
            for name, logits in whole.items():
                logits[self.group == one] = getattr(part, name)

        def add(base: Logits, records: PredictionData) -> WithHistory:
            return replace(self, honest=replace(honest, data=records)).with_history(base)

        return subset_systems(honest.data, Bases(**whole), add, self.finish, seed=seed)

    def tested(self, others: Mapping[str, Logits] | None = None, *, resamples: int, seed: int) -> Tested:
        """Return every system on every record; ``others`` are further ones, such as the random encoder's."""
        current, data = self.current(), self.honest.data
        counts = np.array([len(rows) for rows in self.honest.earlier], np.int64)
        counted = np.empty_like(current.current)
        for one in range(len(self.evidence)):
            rows = self.group == one
            weights = fit_count(current.current[~rows], counts[~rows], data.gold[~rows])
            counted[rows] = apply_count(current.current[rows], counts[rows], weights)
        return systems_of(
            data,
            current,
            self.with_history(current.current),
            add_to_ecg=self.with_history(current.ecg),
            finish=self.finish,
            counted=counted,
            others=others,
            resamples=resamples,
            seed=seed,
        )


def add_history(
    honest: HonestScores,
    evidence: Evidence,
    rows: NDArray[np.int64],
    histories: Sequence[Sequence[Prior]],
    logits: Logits,
) -> Logits:
    """Return log-odds of some rows with their histories; embeddings are read as the row's bundle reads them."""
    data, found = honest.data, np.array(logits[rows])
    for part, reader in enumerate(honest.readers):
        at = np.flatnonzero(honest.part[rows] == part)
        if len(at):
            chosen = [histories[place] for place in at.tolist()]
            tokens = build_tokens(
                logits[rows[at]],
                data.embedding[rows[at]],
                chosen,
                [len(one) for one in chosen],
                reader,
                prevalence(data),
            )
            found[at] = evidence.history.apply(logits[rows[at]], tokens).logits
    return found


def early_records(honest: HonestScores) -> tuple[NDArray[np.bool_], float]:
    """Return which records the temporal split is fitted on, and the day since 1970 that ends them."""
    cut = float(np.nanquantile(honest.data.days, EARLY_SHARE))
    return honest.data.days < cut, cut


def temporal(
    parts: Parts,
    honest: HonestScores,
    official: CrossFit,
    random: RandomFeatures | None = None,
    *,
    resamples: int,
    seed: int,
) -> Part:
    """Return figures on the later recordings by heads fitted on the earlier ones, beside heads fitted on any.

    Parameters
    ----------
    parts : sequence of (PredictionData, folds)
        All records, encoded by each bundle, and the folds that it was trained on.
    honest : HonestScores
        Of the parts.
    official : CrossFit
        Fitted on patients whatever the time.
    random : RandomFeatures, optional
        Of the later recordings, and of some earlier ones.
    resamples, seed : int
    """
    early, cut = early_records(honest)
    late = np.flatnonzero(honest.data.days >= cut)
    by_time = _early_scores(parts, honest, early)
    evidence = fit_evidence(by_time, np.flatnonzero(early))
    full = {"temporal": _apply(by_time, evidence, late), "official": _apply_groups(official, late)}
    weights = patient_weights(honest.data.subject_ids[late], resamples=resamples, seed=seed)
    gold = honest.data.gold[late]
    untrained = None if random is None else random.by_time(early)[late]
    date = str(np.datetime64(round(cut), "D"))
    rows, lines = [], []
    for task, columns in (("all", slice(None, -5)), ("superclass", slice(-5, None))):
        inside = gold[:, columns].any(axis=1) if task == "superclass" else np.ones(len(late), np.bool_)
        truth, drawn = gold[inside, columns], weights[inside]
        aurocs = {name: Aurocs.of(truth, logits[inside, columns], drawn) for name, logits in full.items()}
        kept = aurocs["temporal"].enough
        if not kept.any():
            rows.append(Row.missing(f"temporal/{task}", f"no label has 10 positives among {len(truth)} later studies"))
            continue
        errors = {
            name: ece(truth[:, kept], expit(logits[inside, columns][:, kept]), drawn) for name, logits in full.items()
        }
        change = aurocs["temporal"].gain_over(aurocs["official"])
        extra = {"n_labels": int(kept.sum()), "cut": date, "change_from_official": change.value,
                 "ece": errors["temporal"].value, "ece_official": errors["official"].value,
                 "fitted_on": int(early.sum())}  # fmt: skip
        others = {"prevalence": 0.5, "official": aurocs["official"].macro().value}
        if untrained is not None:
            scored = Aurocs.of(truth, untrained[inside, columns], drawn[:, :0])
            others["random_encoder"] = scored.macro(kept).value
        rows.append(aurocs["temporal"].macro().row(f"temporal/{task}", len(truth), others, **extra))
        lines += [
            {"split": name, "task": task, "studies": len(truth), "labels": int(kept.sum()),
             "auroc": aurocs[name].macro().value, "ece": errors[name].value, "cut": date}
            for name in full
        ]  # fmt: skip
    return Part(tuple(rows), {"temporal": pl.DataFrame(lines)} if lines else {})


def _early_scores(parts: Parts, honest: HonestScores, early: NDArray[np.bool_]) -> HonestScores:
    """Return the honest scores of all records by linear heads fitted on earlier records alone, earlier ones voting."""
    logits, votes = np.empty_like(honest.logits), np.empty_like(honest.votes)
    readers = []
    for part, (data, folds) in enumerate(parts):
        known = data.take(np.isin(data.folds, list(folds)) & early)
        rows = np.flatnonzero(honest.part == part)
        logits[rows] = fit_probe(known.features, known.gold, known.subject_ids).scores(data.features[rows])
        votes[rows] = knn_scores(data.embedding[rows], known.embedding, known.gold)
        readers.append(fit_embedding(known))
    return HonestScores(honest.data, logits, votes, honest.age_error, honest.part, tuple(readers))


def _apply(honest: HonestScores, evidence: Evidence, rows: NDArray[np.int64]) -> Logits:
    return evidence.apply(honest, rows)[1]


def _apply_groups(official: CrossFit, rows: NDArray[np.int64]) -> Logits:
    found = np.empty((len(rows), official.honest.logits.shape[1]))
    for one, evidence in enumerate(official.evidence):
        at = np.flatnonzero(official.group[rows] == one)
        found[at] = _apply(official.honest, evidence, rows[at])
    return found
