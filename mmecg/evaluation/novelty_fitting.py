"""Fitting of the novelty detector: ordinary recordings, and the same corrupted on purpose.

Ordinary are the real recordings as they are, and versions of them that are still ordinary ECGs: fewer leads, a few
seconds, another gain, mild noise, leads a little late. The subjects of a fifth of the recordings are held out, with all
that is made of their recordings; the temperature and the two thresholds come from them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy

from mmecg.datasets.corruptions import CORRUPTIONS, NOISES, Corruption, add_noise
from mmecg.datasets.splits import subject_groups
from mmecg.ecg import LEADS, LIMB_LEADS, Ecg
from mmecg.errors import InvalidInputError
from mmecg.evaluation.cohort import Progress
from mmecg.prediction.novelty import INPUT_LIMIT, ORDINARY, NoveltyDetector, inputs_of, standardise
from mmecg.prediction.waveform import points_right, summarise

Encode = Callable[[Sequence[Ecg]], NDArray[np.float32]]

FALSE_ALARMS = 0.015
"""Share of held-out ordinary recordings that the network may put at 0.5 or above."""

FAR_FALSE_ALARMS = 0.003
"""The same for the distance, on top. Most of these are rare ECGs: at 0.5 % a tenth of the paced ones on fold 8 are."""

VERSION_FALSE_ALARMS = 0.02
"""The same for the distance of versions of ordinary recordings: some of a single lead, or a few seconds."""

FAR_SLOPE = 6.0
SHRINKAGE = 0.1
HIDDEN, EPOCHS, RATE, DECAY = 128, 12, 2e-3, 1e-2
BATCH, STEPS = 512, 50
ASYNCHRONY_S = 0.03
"""Most that a lead is late or early where leads were not sampled together, as those of LUDB seem to be."""

RIGHT_AXIS_TIMES = 10
"""How often the network sees an ordinary recording whose axis points to the right: rare, and like exchanged arms."""

TEMPERATURES = np.geomspace(0.5, 4.0, 25)
HELD_OUT = 5

_SHARES = {
    "noise": 0.05,
    "limb_swap": 0.1,
    "chest_swap": 0.1,
    "inverted": 0.1,
    "lead_mismatch": 0.1,
    "not_ecg": 0.05,
    ORDINARY: 0.1,
}
_SHARE_OF = {"RA-LA": 0.2, "RA-LL": 0.2, "LA-LL": 0.2, "fewer_leads": 0.25}
_SUBSETS: tuple[tuple[str, ...], ...] = (
    LIMB_LEADS, ("I",), ("II",), ("I", "II", "III"), ("II", "V1"), LEADS[6:], LEADS[:9], ("I", "II", *LEADS[6:])
)  # fmt: skip


@dataclass(frozen=True)
class NoveltyData:
    """Recordings of known kinds, as the detector sees them.

    Attributes
    ----------
    features : float32, shape (n, features)
    summary : float32, shape (n, summary)
    name : str, shape (n,)
        ``"ordinary"``, or ``"kind/name"`` of the corruption; ordinary versions are ``"ordinary/crop"`` and so on.
    source : int64, shape (n,)
        Recording that it was made of, as a row.
    """

    features: NDArray[np.float32]
    summary: NDArray[np.float32]
    name: NDArray[np.str_]
    source: NDArray[np.int64]

    def take(self, rows: NDArray[np.bool_]) -> NoveltyData:
        """Return some of the recordings."""
        return NoveltyData(self.features[rows], self.summary[rows], self.name[rows], self.source[rows])


def _fewer_leads(ecg: Ecg, rng: np.random.Generator) -> Ecg:
    chosen = _SUBSETS[rng.integers(len(_SUBSETS))]
    if rng.random() < 0.3:
        chosen = tuple(lead for lead in LEADS if rng.random() < 0.75) or ("II",)
    kept = [lead for lead in chosen if lead in ecg.leads]
    return ecg.select_leads(kept) if kept else ecg


def _crop(ecg: Ecg, rng: np.random.Generator) -> Ecg:
    duration = min(rng.uniform(2.5, 8.0), ecg.duration_s)
    return ecg.crop(rng.uniform(0, ecg.duration_s - duration), duration)


def _gain(ecg: Ecg, rng: np.random.Generator) -> Ecg:
    factor = np.float32(np.exp(rng.uniform(-0.7, 0.7)))
    return Ecg(ecg.signal * factor, ecg.sampling_rate_hz, ecg.lead_mask.copy())


def _mild_noise(ecg: Ecg, rng: np.random.Generator) -> Ecg:
    return add_noise(ecg, NOISES[rng.integers(len(NOISES))], rng.uniform(8, 24), rng)


def _asynchronous(ecg: Ecg, rng: np.random.Generator) -> Ecg:
    steps = np.rint(rng.uniform(-ASYNCHRONY_S, ASYNCHRONY_S, len(LEADS)) * ecg.sampling_rate_hz).astype(np.int64)
    signal = np.stack([np.roll(lead, step) for lead, step in zip(ecg.signal, steps, strict=True)])
    return Ecg(signal, ecg.sampling_rate_hz, ecg.lead_mask.copy())


ORDINARY_VERSIONS: dict[str, Corruption] = {
    "fewer_leads": _fewer_leads,
    "crop": _crop,
    "gain": _gain,
    "mild_noise": _mild_noise,
    "asynchronous": _asynchronous,
}
"""Versions of an ordinary ECG that are ordinary still."""


def novelty_data(
    ecgs: Sequence[Ecg],
    encode: Encode,
    *,
    features: NDArray[np.float32] | None = None,
    seed: int = 0,
    share: float = 0.6,
    progress: Progress | None = None,
) -> NoveltyData:
    """Return recordings as they are, and corrupted.

    Parameters
    ----------
    ecgs : sequence of Ecg
        With leads I and II, and not constant.
    encode : callable
        Features of recordings: float32, shape (n, features).
    features : float32, shape (n, features), optional
        Of the recordings as they are, if at hand.
    seed : int
    share : float
        Factor on how many changed recordings there are; at 1 some three for each that is as it is.
    progress : callable, optional
    """
    rng = np.random.default_rng(seed)
    jobs = [
        (kind, name, change)
        for kind, changes in (*CORRUPTIONS.items(), (ORDINARY, ORDINARY_VERSIONS))
        for name, change in changes.items()
    ]
    parts = [_data(ecgs, _encode(ecgs, encode) if features is None else features, ORDINARY, np.arange(len(ecgs)))]
    for done, (kind, name, change) in enumerate(jobs):
        if progress:
            progress("corrupting recordings", done, len(jobs))
        count = max(round(_SHARE_OF.get(name, _SHARES[kind]) * share * len(ecgs)), 1)
        source = rng.choice(len(ecgs), count, replace=False)
        changed = [change(ecgs[row], rng) for row in source]
        parts.append(_data(changed, _encode(changed, encode), f"{kind}/{name}", source))
    return NoveltyData(
        np.concatenate([part.features for part in parts]),
        np.concatenate([part.summary for part in parts]),
        np.concatenate([part.name for part in parts]),
        np.concatenate([part.source for part in parts]),
    )


def _encode(ecgs: Sequence[Ecg], encode: Encode) -> NDArray[np.float32]:
    return np.concatenate([encode(ecgs[start : start + 64]) for start in range(0, len(ecgs), 64)])


def _data(ecgs: Sequence[Ecg], features: NDArray[np.float32], name: str, source: NDArray[np.int64]) -> NoveltyData:
    return NoveltyData(features, np.stack([summarise(ecg) for ecg in ecgs]), np.full(len(ecgs), name, "U40"), source)


def fit_novelty(
    ecgs: Sequence[Ecg],
    subject_ids: Sequence[str] | NDArray[np.generic],
    encode: Encode,
    *,
    features: NDArray[np.float32] | None = None,
    seed: int = 0,
    share: float = 0.6,
    progress: Progress | None = None,
) -> NoveltyDetector:
    """Corrupt recordings and fit the detector on them.

    Parameters
    ----------
    ecgs : sequence of Ecg
        Real ones, n of them; those that are constant or lack lead I or II are left out.
    subject_ids : sequence of str, length n
    encode : callable
        Features of recordings, such as :meth:`mmecg.modeling.dual_encoder.DualEncoder.ecg_features`.
    features : float32, shape (n, features), optional
        Of the recordings as they are, if at hand.
    seed : int
    share : float
        See :func:`novelty_data`.
    progress : callable, optional
    """
    usable = [row for row, ecg in enumerate(ecgs) if ecg.lead_mask[:2].all() and ecg.signal.std(axis=1).any()]
    groups = subject_groups(np.asarray(subject_ids)[usable], HELD_OUT, seed=seed)
    known = None if features is None else features[usable]
    data = novelty_data(
        [ecgs[row] for row in usable], encode, features=known, seed=seed, share=share, progress=progress
    )
    return fit_detector(data, groups[data.source] == 0, seed=seed, progress=progress)


def fit_detector(
    data: NoveltyData, held_out: NDArray[np.bool_], *, seed: int = 0, progress: Progress | None = None
) -> NoveltyDetector:
    """Fit on some recordings, and set temperature and thresholds on those held out: bool, shape (n,)."""
    training, validation = data.take(~held_out), data.take(held_out)
    classes = (ORDINARY, *sorted({name for name in data.name.tolist() if not name.startswith(ORDINARY)}))
    inputs = inputs_of(training.features, training.summary)
    mean = np.nanmean(inputs, axis=0).astype(np.float32)
    scale = (np.nanstd(inputs, axis=0) + 1e-3).astype(np.float32)
    centre, whitening = _fit_distance(training, mean, scale)
    right = np.char.startswith(training.name, ORDINARY) & points_right(training.summary)
    shown = np.repeat(np.arange(len(right)), np.where(right, RIGHT_AXIS_TIMES, 1))
    hidden_weight, hidden_bias, weight, bias = _fit_network(
        standardise(inputs, mean, scale)[shown], _targets(training, classes)[shown], len(classes), seed, progress
    )
    detector = NoveltyDetector(
        mean, scale, hidden_weight, hidden_bias, weight, bias, classes, centre, whitening, 0.0, FAR_SLOPE
    )
    ordinary = validation.name == ORDINARY
    if not ordinary.any():
        raise InvalidInputError(
            "no ordinary recording is held out, expected some for the thresholds; take more subjects"
        )
    detector = _tempered(detector, validation, _targets(validation, classes))
    distance = detector.log_distance(validation.summary)
    versions = np.char.startswith(validation.name, ORDINARY) & ~ordinary
    far_at = max(
        float(np.quantile(distance[rows], 1 - share))
        for rows, share in ((ordinary, FAR_FALSE_ALARMS), (versions, VERSION_FALSE_ALARMS))
        if rows.any()
    )
    logits = detector.logits(validation.features[ordinary], validation.summary[ordinary])
    novel = np.logaddexp.reduce(logits[:, 1:], axis=1) - logits[:, 0]
    bias = detector.bias.copy()
    bias[0] += np.quantile(novel, 1 - FALSE_ALARMS)
    return replace(detector, bias=bias, far_at=far_at)


def _targets(data: NoveltyData, classes: tuple[str, ...]) -> NDArray[np.int64]:
    place = {name: at for at, name in enumerate(classes)}
    return np.array([place.get(name, 0) for name in data.name.tolist()], np.int64)


def _fit_distance(
    data: NoveltyData, mean: NDArray[np.float32], scale: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return centre and whitening of the summaries of ordinary recordings and their versions."""
    first = len(mean) - data.summary.shape[1]
    summary = data.summary[np.char.startswith(data.name, ORDINARY)]
    inputs = standardise(summary, mean[first:], scale[first:], limit=2 * INPUT_LIMIT).astype(np.float64)
    centre = inputs.mean(axis=0)
    covariance = np.cov(inputs, rowvar=False)
    covariance = (1 - SHRINKAGE) * covariance + SHRINKAGE * np.diag(np.diag(covariance) + 1e-6)
    values, vectors = np.linalg.eigh(covariance)
    return centre.astype(np.float32), (vectors / np.sqrt(values)).astype(np.float32)


def _fit_network(
    inputs: NDArray[np.float32], targets: NDArray[np.int64], classes: int, seed: int, progress: Progress | None
) -> tuple[NDArray[np.float32], ...]:
    """Return weight and bias of the hidden layer, then of the classes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = torch.nn.Sequential(
            torch.nn.Dropout(0.1), torch.nn.Linear(inputs.shape[1], HIDDEN), torch.nn.ReLU(),
            torch.nn.Dropout(0.2), torch.nn.Linear(HIDDEN, classes),
        )  # fmt: skip
        optimiser = torch.optim.AdamW(network.parameters(), RATE, weight_decay=DECAY)
        batch = min(BATCH, -(-len(inputs) // STEPS))  # of few recordings small ones, so that there are enough steps
        steps = -(-len(inputs) // batch)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=EPOCHS * steps)
        x, y = torch.from_numpy(inputs), torch.from_numpy(targets)
        for epoch in range(EPOCHS):
            if progress:
                progress("fitting the novelty detector", epoch, EPOCHS)
            for rows in torch.split(torch.randperm(len(x)), batch):
                loss = cross_entropy(network(x[rows]), y[rows])
                optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                schedule.step()
    layers = [layer for layer in network if isinstance(layer, torch.nn.Linear)]
    return tuple(
        np.ascontiguousarray(value.detach().numpy()) for layer in layers for value in (layer.weight.T, layer.bias)
    )


def _tempered(detector: NoveltyDetector, data: NoveltyData, targets: NDArray[np.int64]) -> NoveltyDetector:
    """Return the detector at the temperature of the lowest log loss (Guo et al., ICML 2017)."""
    logits = detector.logits(data.features, data.summary)
    rows = np.arange(len(targets))
    losses = []
    for temperature in TEMPERATURES:
        scaled = logits / temperature
        losses.append(float(np.mean(np.logaddexp.reduce(scaled, axis=1) - scaled[rows, targets])))
    best = np.float32(TEMPERATURES[int(np.argmin(losses))])
    return replace(detector, weight=detector.weight / best, bias=detector.bias / best)
