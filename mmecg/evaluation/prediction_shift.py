"""Prediction from recordings unlike those the heads were fitted on: noise, swaps, missing leads, rates, LUDB, novelty.

Only the current ECG counts here: no cohort and no history, so that nothing makes up for the recording.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.special import expit

from mmecg.datasets.wfdb import read_wfdb
from mmecg.ecg import Ecg
from mmecg.embedding import Encoder
from mmecg.errors import InvalidInputError, MmecgError
from mmecg.evaluation.bootstrap import interval, patient_weights
from mmecg.evaluation.cohort import Progress
from mmecg.evaluation.label_metrics import Figure
from mmecg.evaluation.metrics import eligible
from mmecg.evaluation.prediction_cases import Cases, Part
from mmecg.evaluation.prediction_metrics import Aurocs, ece_of_labels
from mmecg.evaluation.prediction_signals import shifts, strangers
from mmecg.evaluation.results import Row

RECORDS = 600
"""Records of the shift and novelty tests, at most: a random choice of the fold."""

RESAMPLES = 300
"""Resamples of the intervals of the shift tests, at most."""

_CHUNK = 256


@dataclass(frozen=True)
class Readers:
    """What the shift tests put recordings through.

    Attributes
    ----------
    encoders : mapping of str to Encoder
        ``"bundle"``, and ``"random"`` if there is one.
    logits : callable
        From the bundle's features to calibrated log-odds of one ECG alone: float64, shape (n, labels).
    random_logits : callable, optional
        The same from the random encoder's features.
    novelty : callable, optional
        From features and recordings to the probability of being no ordinary ECG: float64, shape (n,).
    random_novelty : callable, optional
        From the random encoder's features to a distance from real ECGs.
    """

    encoders: dict[str, Encoder]
    logits: Callable[[NDArray[np.float32]], NDArray[np.float64]]
    random_logits: Callable[[NDArray[np.float32]], NDArray[np.float64]] | None = None
    novelty: Callable[[NDArray[np.float32], Sequence[Ecg]], NDArray[np.float64]] | None = None
    random_novelty: Callable[[NDArray[np.float32]], NDArray[np.float64]] | None = None

    def features(self, ecgs: Sequence[Ecg], encoder: str = "bundle") -> NDArray[np.float32]:
        """Encode recordings: float32, shape (n, features)."""
        parts = [self.encoders[encoder].ecg_features(ecgs[at : at + _CHUNK]) for at in range(0, len(ecgs), _CHUNK)]
        return np.concatenate(parts)

    def novelty_of(self, features: NDArray[np.float32], ecgs: Sequence[Ecg]) -> NDArray[np.float64] | None:
        """Return the probability of being no ordinary ECG; None without a detector."""
        return None if self.novelty is None else self.novelty(features, ecgs)


def shift_tests(cases: Cases, ecgs: Sequence[Ecg], readers: Readers, *, progress: Progress) -> Part:
    """Return AUROC, calibration error and novelty of every change, beside the same recordings unchanged.

    Parameters
    ----------
    cases : Cases
        Those of ``ecgs``; its systems are not used.
    ecgs : sequence of Ecg, length n
    readers : Readers
    progress : callable
    """
    part = cases.task("all")
    weights, kept = part.weights[:, :RESAMPLES], eligible(part.gold)
    if not kept.any():
        return Part((Row.missing("shift/clean", f"no label has 10 positives among {len(part)} studies"),))
    columns = np.flatnonzero(~cases.superclass)
    clean = _read(readers, ecgs, columns)
    reference = Aurocs.of(part.gold[:, kept], clean[0][:, kept], weights)
    baselines = {"prevalence": 0.5}
    if readers.random_logits is not None:
        logits = readers.random_logits(readers.features(ecgs, "random"))[:, columns]
        baselines["random_encoder"] = Aurocs.of(part.gold[:, kept], logits[:, kept], weights[:, :0]).macro().value
    rows = [reference.macro().row("shift/clean", len(part), baselines, n_labels=int(kept.sum()))]
    lines = [_shift_line("clean", part.gold, kept, clean, reference, reference)]
    everything = shifts()
    for at, (name, change) in enumerate(everything.items()):
        progress("shift tests", at, len(everything))
        rng = np.random.default_rng([cases.seed, at])
        found = _read(readers, [change(ecg, rng) for ecg in ecgs], columns)
        aurocs = Aurocs.of(part.gold[:, kept], found[0][:, kept], weights)
        line = _shift_line(name, part.gold, kept, found, aurocs, reference)
        lines.append(line)
        loss = aurocs.gain_over(reference)
        bounds = interval(loss.samples)
        rows.append(
            aurocs.macro().row(
                f"shift/{name}", len(part), {**baselines, "clean": reference.macro().value},
                n_labels=int(kept.sum()), change=loss.value, change_low=bounds.low, change_high=bounds.high,
                ece=line["ece"], novelty=line["novelty"],
            )
        )  # fmt: skip
    return Part(tuple(rows), {"shift": pl.DataFrame(lines, infer_schema_length=None)})


_Read = tuple[NDArray[np.float64], NDArray[np.float64] | None]


def _read(readers: Readers, ecgs: Sequence[Ecg], columns: NDArray[np.int64]) -> _Read:
    features = readers.features(ecgs)
    return readers.logits(features)[:, columns], readers.novelty_of(features, ecgs)


def _shift_line(
    name: str, gold: NDArray[np.bool_], kept: NDArray[np.bool_], found: _Read, aurocs: Aurocs, reference: Aurocs
) -> dict[str, object]:
    logits, novelty = found
    probability = expit(logits[:, kept])
    change = aurocs.gain_over(reference)
    bounds = interval(change.samples)
    return {
        "change": name,
        "auroc": aurocs.macro().value,
        "difference": change.value,
        "low": bounds.low,
        "high": bounds.high,
        "ece": float(ece_of_labels(gold[:, kept], probability).mean()),
        "expected_errors": float(np.minimum(probability, 1 - probability).mean()),
        "novelty": None if novelty is None else float(novelty.mean()),
        "novel_share": None if novelty is None else float((novelty >= 0.5).mean()),
    }


def out_of_distribution(cases: Cases, ecgs: Sequence[Ecg], readers: Readers, *, progress: Progress) -> Part:
    """Return the AUROC of telling what is no ordinary ECG from real ones: each kind, and the mean over kinds."""
    if readers.novelty is None:
        return Part((Row.missing("ood/auroc", "the bundle's heads have no novelty detector"),))
    kinds = strangers(ecgs, len(ecgs), seed=cases.seed)
    weights = cases.weights
    synthetic = patient_weights([str(at) for at in range(len(ecgs))], resamples=weights.shape[1], seed=cases.seed + 1)
    real = _novelty_scores(readers, ecgs)
    rows, values, samples = [], [], []
    others: dict[str, list[float]] = {}
    lines = [_score_table("real ECG", real["detector"])]
    for at, (kind, items) in enumerate(kinds.items()):
        progress("novelty", at, len(kinds))
        scores = _novelty_scores(readers, items)
        lines.append(_score_table(kind, scores["detector"]))
        heavy = np.concatenate([weights, weights if kind in ("limb_swap", "inverted") else synthetic])
        gold = np.concatenate([np.zeros(len(ecgs), np.bool_), np.ones(len(items), np.bool_)])[:, None]
        aurocs = {}
        for name, score in scores.items():
            drawn = heavy if name == "detector" else heavy[:, :0]
            aurocs[name] = Aurocs.of(gold, np.concatenate([real[name], score])[:, None], drawn)
        figure = aurocs.pop("detector").macro(np.ones(1, np.bool_))
        baselines = {"prevalence": 0.5, **{name: float(found.values[0]) for name, found in aurocs.items()}}
        for name, value in baselines.items():
            others.setdefault(name, []).append(value)
        extra = {"flagged": float((scores["detector"] >= 0.5).mean())}
        rows.append(figure.row(f"ood/auroc/{kind}", len(items), baselines, **extra))
        values.append(figure.value)
        samples.append(figure.samples)
    mean = Figure(float(np.mean(values)), np.asarray(np.mean(samples, axis=0), np.float64))
    extra = {"worst": float(min(values)), "real_flagged": float((real["detector"] >= 0.5).mean())}
    averages = {name: float(np.mean(found)) for name, found in others.items()}
    return Part((mean.row("ood/auroc", len(ecgs), averages, **extra), *rows), {"novelty": pl.concat(lines)})


def _novelty_scores(readers: Readers, ecgs: Sequence[Ecg]) -> dict[str, NDArray[np.float64]]:
    """Return the detector's score, and those of baselines: the head's own uncertainty, a random encoder's distance."""
    features = readers.features(ecgs)
    detected = readers.novelty_of(features, ecgs)
    probability = expit(readers.logits(features))
    found = {"uncertainty": np.minimum(probability, 1 - probability).mean(axis=1)}
    if detected is not None:
        found["detector"] = detected
    if readers.random_novelty is not None:
        found["random_encoder"] = readers.random_novelty(readers.features(ecgs, "random"))
    return found


def _score_table(kind: str, scores: NDArray[np.float64]) -> pl.DataFrame:
    return pl.DataFrame({"kind": [kind] * len(scores), "novelty": scores})


# Finding of LUDB in lower case, or how it begins -> label. LUDB counts a finding that is not listed as absent.
LUDB_LABELS: dict[str, tuple[str, ...]] = {
    "SR": ("sinus rhythm",),
    "SBRAD": ("sinus bradycardia",),
    "STACH": ("sinus tachycardia",),
    "SARRH": ("sinus arrhythmia", "irregular sinus rhythm"),
    "AFIB": ("atrial fibrillation",),
    "AFLT": ("atrial flutter",),
    "1AVB": ("i degree av block", "i degree av-block"),
    "3AVB": ("iii degree av-block", "iii degree av block"),
    "IRBBB": ("incomplete right bundle branch block",),
    "CRBBB": ("complete right bundle branch block",),
    "ILBBB": ("incomplete left bundle branch block",),
    "CLBBB": ("complete left bundle branch block",),
    "LAFB": ("left anterior hemiblock",),
    "IVCD": ("non-specific intravintricular conduction delay", "non-specific intraventricular conduction delay"),
    "LVH": ("left ventricular hypertrophy",),
    "RVH": ("right ventricular hypertrophy",),
    "LAO/LAE": ("left atrial hypertrophy", "left atrial overload"),
    "RAO/RAE": ("right atrial hypertrophy", "right atrial overload"),
    "PAC": ("atrial extrasystole",),
    "PVC": ("ventricular extrasystole",),
    "PACE": ("pacemaker presence", "unipolar", "bipolar", "biventricular"),
    "superclass/HYP": ("left ventricular", "right ventricular", "left atrial", "right atrial"),
    "superclass/CD": (
        "i degree", "iii degree", "incomplete", "complete", "left anterior hemiblock", "non-specific intra",
    ),
    "superclass/MI": ("scar formation", "stemi"),
    "superclass/STTC": ("ischemia", "non-specific repolarization"),
}  # fmt: skip


VOLTAGE_LABELS: tuple[str, ...] = ("LVH", "RVH", "LAO/LAE", "RAO/RAE", "superclass/HYP")
"""Labels that rest on voltages: LUDB stores each lead at a scale of its own, so that II is not I + III."""


def read_ludb(folder: Path, labels: Sequence[str]) -> tuple[list[Ecg], NDArray[np.bool_], pl.DataFrame]:
    """Read the LUDB records that there are, with the labels that its findings can be mapped to.

    Parameters
    ----------
    folder : Path
        With ``ludb.csv`` and ``data/``.
    labels : sequence of str

    Returns
    -------
    ecgs : list of Ecg, length n
    gold : bool, shape (n, labels)
        False for labels that LUDB does not know; see :data:`LUDB_LABELS`.
    skipped : polars.DataFrame
        Columns ``record`` and ``reason``.

    Raises
    ------
    InvalidInputError
        The table is missing, or no record can be read.
    """
    try:
        with (folder / "ludb.csv").open(newline="", encoding="utf-8") as file:
            lines = list(csv.DictReader(file))
    except OSError:
        raise InvalidInputError(f"{folder} has no ludb.csv, expected the LUDB folder; name it", field="ludb") from None
    ecgs, gold, skipped = [], [], []
    for line in lines:
        record = (line.get("ID") or "").strip()
        said = [part.strip().lower() for name, text in line.items() if name not in ("ID", "Sex", "Age")
                for part in (text or "").splitlines() if part.strip()]  # fmt: skip
        try:
            ecgs.append(read_wfdb(folder / "data" / record))
        except (MmecgError, OSError) as error:
            skipped.append((f"ludb {record}", str(error)))
            continue
        gold.append([any(text.startswith(LUDB_LABELS.get(label, ())) for text in said) for label in labels])
    if not ecgs:
        raise InvalidInputError(
            f"none of the {len(lines)} records of {folder} can be read, expected some", field="ludb"
        )
    schema = {"record": pl.String(), "reason": pl.String()}
    return ecgs, np.array(gold, np.bool_), pl.DataFrame(skipped, schema=schema, orient="row")


def outside_set(folder: Path, labels: tuple[str, ...], readers: Readers, *, resamples: int, seed: int) -> Part:
    """Return macro-AUROC, calibration error and the table of labels on LUDB, whose patients and recorder are new."""
    ecgs, gold, _ = read_ludb(folder, labels)
    known = np.array([label in LUDB_LABELS for label in labels])
    columns = np.flatnonzero(known & gold.any(axis=0))
    weights = patient_weights([str(at) for at in range(len(ecgs))], resamples=resamples, seed=seed)
    logits = readers.logits(readers.features(ecgs))[:, columns]
    found = Aurocs.of(gold[:, columns], logits, weights)
    baselines, random = {"prevalence": 0.5}, np.full(len(columns), math.nan)
    if readers.random_logits is not None:
        other = readers.random_logits(readers.features(ecgs, "random"))[:, columns]
        random = Aurocs.of(gold[:, columns], other, weights[:, :0]).values
        baselines["random_encoder"] = float(random[found.enough].mean())
    everything = found.macro(found.some)
    readable = found.enough & [labels[at] not in VOLTAGE_LABELS for at in columns]
    row = found.macro().row(
        "ludb/macro_auroc", len(ecgs), baselines, n_labels=int(found.enough.sum()), value_all_labels=everything.value,
        n_labels_all_labels=int(found.some.sum()), value_without_voltage=found.macro(readable).value,
        n_labels_without_voltage=int(readable.sum()), einthoven_residual=_einthoven_residual(ecgs),
        ece=float(ece_of_labels(gold[:, columns], expit(logits)).mean()),
    )  # fmt: skip
    bounds = [interval(found.samples[:, at]) for at in range(len(columns))]
    table = pl.DataFrame(
        {
            "label": [labels[at] for at in columns],
            "positives": gold[:, columns].sum(axis=0),
            "auroc": found.values,
            "low": [bound.low for bound in bounds],
            "high": [bound.high for bound in bounds],
            "random_encoder": random,
            "prevalence": gold[:, columns].mean(axis=0),
            "mean_probability": expit(logits).mean(axis=0),
        }
    ).with_columns(pl.col(pl.Float64).fill_nan(None))
    return Part((row,), {"ludb_labels": table})


def _einthoven_residual(ecgs: Sequence[Ecg]) -> float:
    """Return the size of II - I - III as a share of the size of II, mean over recordings; 0 where the leads fit."""
    shares = []
    for ecg in ecgs:
        i, ii, iii = ecg.signal[:3] - np.median(ecg.signal[:3], axis=1, keepdims=True)
        shares.append(float(np.abs(ii - i - iii).mean() / max(np.abs(ii).mean(), 1e-6)))
    return float(np.mean(shares))
