"""A map of the features in two dimensions, and how much of the recording device they hold."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mmecg.datasets.ptb_xl import SUPERCLASSES
from mmecg.errors import InvalidInputError
from mmecg.evaluation.label_metrics import Figure
from mmecg.evaluation.results import Row
from mmecg.experiments.bench import RANDOM, Bench
from mmecg.experiments.experiment import Experiment, Outcome
from mmecg.experiments.figures import (
    CHANCE,
    auroc_figure,
    difference,
    excludes_zero,
    fit_head,
    mean_figure,
    rows_beside,
    spoken,
    verdict,
)
from mmecg.experiments.scatter import draw_map

LEAST = 20
"""Recordings of the test fold that a device or site needs, there and in those fitted on."""

CASE_MIX = "case_mix"
"""Name of the baseline that knows what was diagnosed, age and sex, but no ECG."""

COMPONENTS = 50
NEIGHBOURS = 15
OTHER = "other"


def run(bench: Bench) -> Outcome:
    """Draw the map, and probe for device and site."""
    device, site = (_leakage(bench, what) for what in ("device", "site"))
    method, places = place(bench.features(bench.first)[bench.split.test], seed=bench.options.seed)
    first = device.auroc[bench.first]
    sentence = (
        f"A probe tells the device with AUROC {spoken(first)}, "
        f"{verdict(difference(first, device.auroc[CASE_MIX]))} over what diagnoses, age and sex tell, "
        f"{verdict(difference(first, device.auroc[RANDOM]))} over a random encoder; the map is by {method}."
    )
    colours = _colours(bench)
    table = pl.DataFrame({"x": places[:, 0], "y": places[:, 1], **colours})
    picture = draw_map(places, colours, f"Features of the {bench.first}, fold {bench.options.fold}, by {method}")
    headline = (f"{bench.first}/device/auroc", f"{bench.first}/device/accuracy")
    return Outcome(headline, (*device.rows, *site.rows), sentence, {"map": table}, {"latent-map": picture})


def place(features: NDArray[np.float32], *, seed: int = 0) -> tuple[str, NDArray[np.float32]]:
    """Return the method and a place in the plane for each recording, near where those with like features are.

    UMAP (McInnes et al. 2018, arXiv:1802.03426) of the leading principal components, where the package ``umap-learn``
    is installed; else t-SNE (van der Maaten and Hinton, JMLR 9, 2008).

    Parameters
    ----------
    features : float32, shape (n, features)
    seed : int

    Returns
    -------
    method : str
    places : float32, shape (n, 2)
    """
    from sklearn.decomposition import PCA

    standard = (features - features.mean(axis=0)) / (features.std(axis=0) + 1e-6)
    components = min(COMPONENTS, *standard.shape)
    reduced = PCA(components, random_state=seed).fit_transform(standard)
    neighbours = min(NEIGHBOURS, len(features) - 1)
    try:
        from umap import UMAP
    except ImportError:
        from sklearn.manifold import TSNE

        places = TSNE(2, perplexity=neighbours, init="pca", random_state=seed).fit_transform(reduced)
        return "t-SNE", places.astype(np.float32)
    places = UMAP(n_neighbors=neighbours, random_state=seed, n_jobs=1).fit_transform(reduced)
    return "UMAP", np.asarray(places, np.float32)


@dataclass(frozen=True)
class _Leakage:
    """What probes tell of device or site: macro-AUROC by encoder, and all rows."""

    auroc: dict[str, Figure]
    rows: list[Row]


def _leakage(bench: Bench, what: str) -> _Leakage:
    names, of_record = _groups(bench, what)
    truth = np.where(of_record[:, None] < 0, np.nan, of_record[:, None] == np.arange(len(names))).astype(np.float32)
    inputs = {name: bench.features(name) for name in bench.encoders} | {CASE_MIX: _case_mix(bench)}
    groups = of_record[bench.split.test]
    known = np.flatnonzero(groups >= 0)
    auroc, accuracy = {}, {}
    for name, features in inputs.items():
        scores = fit_head(features, truth, bench.split.fit, bench.split.choose).logits(features[bench.split.test])
        auroc[name] = auroc_figure(bench, truth, scores)
        right = (scores.argmax(axis=1) == groups)[known].astype(float)
        accuracy[name] = mean_figure(right, bench.weights[known])
    fitted = of_record[bench.split.fit]
    commonest = np.bincount(fitted[fitted >= 0]).argmax()
    constant = {"auroc": CHANCE, "accuracy": float((groups[known] == commonest).mean())}
    rows = []
    for key, figures in (("auroc", auroc), ("accuracy", accuracy)):
        rows += rows_beside(bench, f"{what}/{key}", figures, len(known), prevalence=constant[key], classes=names)
        over = difference(figures[bench.first], figures[CASE_MIX])
        nothing = {"random_encoder": difference(figures[RANDOM], figures[CASE_MIX]).value, "prevalence": 0.0}
        name = f"{bench.first}/{what}/{key}/over_{CASE_MIX}"
        rows.append(over.row(name, len(known), nothing, excludes_zero=excludes_zero(over)))
    return _Leakage(auroc, rows)


def _groups(bench: Bench, what: str) -> tuple[list[str], NDArray[np.int64]]:
    """Return the names of the groups, and the group of each recording, -1 for none."""
    column = bench.recordings.records[what].to_list()
    of_part = [Counter(column[row] for row in rows) for rows in (bench.split.test, bench.split.fit)]
    names = [
        name for name, count in of_part[0].most_common() if name is not None and min(count, of_part[1][name]) >= LEAST
    ]
    if len(names) < 2:
        raise InvalidInputError(
            f"{what} has {len(names)} values with {LEAST} recordings in the test fold and in those fitted on, expected "
            "at least 2; choose another fold, or a larger fraction",
            field=what,
        )
    number = {name: place for place, name in enumerate(names)}
    return names, np.array([number.get(name, -1) for name in column], np.int64)


def _case_mix(bench: Bench) -> NDArray[np.float32]:
    """Return all statements, age and sex; what is missing is 0 or the mean: float32, shape (n, statements + 2)."""
    recordings = bench.recordings
    age = recordings.records["age_years"].to_numpy().astype(np.float32)
    sex = (recordings.records["sex"] == "female").fill_null(False).to_numpy().astype(np.float32)
    truth = np.nan_to_num(recordings.truth(recordings.group("all")))
    return np.column_stack([truth, np.where(np.isfinite(age), age, np.nanmean(age)), sex]).astype(np.float32)


def _colours(bench: Bench) -> dict[str, list[str]]:
    """Return the groups of each test recording by label, device and site; small ones are "other"."""
    rows = bench.split.test
    truth = bench.recordings.truth(bench.recordings.group("superclass"))[rows] > 0
    label = [SUPERCLASSES[line.argmax()] if line.sum() == 1 else ("several" if line.any() else OTHER) for line in truth]
    found = {"superclass": label}
    for what in ("device", "site"):
        names, of_record = _groups(bench, what)
        found[what] = [names[group] if group >= 0 else OTHER for group in of_record[rows]]
    return found


EXPERIMENT = Experiment(
    name="latent-map",
    asked="What orders the space of features: the findings, or the device and the site?",
    protocol="Probes on frozen features that tell the device (and the site) of a recording, split by patient like all "
    f"others; devices with at least {LEAST} recordings in the test fold; macro-AUROC of one against all, and accuracy. "
    "Beside them the random encoder, the commonest device, and case_mix: the same probe on statements, age and sex, as "
    "devices stood where other patients came. The map: UMAP of the 50 leading principal components of the test fold.",
    run=run,
)
