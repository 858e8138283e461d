"""Fitting of the heads that join evidence: vitals, neighbours' votes, earlier studies, superclasses and statements."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import binary_cross_entropy_with_logits, silu, softplus

from mmecg.errors import InvalidInputError
from mmecg.neighbours import NEIGHBOURS, vote_logits
from mmecg.prediction.cohort import CohortHead
from mmecg.prediction.history import CHANNELS, HistoryHead, HistoryTokens
from mmecg.prediction.superclass import SuperclassHead, channels, superclasses_of

MINIMUM_STUDIES = 100
_LIMIT = 30.0


@dataclass(frozen=True, kw_only=True)
class HistoryRecipe:
    """How the history head is fitted; chosen cross-fitted on folds 1-8, with figures in ``mmecg/prediction/README.md``.

    Attributes
    ----------
    steps, batch, hidden : int
    learning_rate, weight_decay : float
    departure_penalty, cross_penalty : float
        On the squares of a label's own terms and of the terms between labels.
    wrong : float
        Histories of other patients in a batch, for each right one: what teaches the head to doubt.
    seed : int
    """

    steps: int = 600
    batch: int = 256
    hidden: int = 24
    learning_rate: float = 5e-3
    weight_decay: float = 1e-2
    departure_penalty: float = 0.1
    cross_penalty: float = 0.1
    wrong: float = 0.5
    seed: int = 0


@dataclass(frozen=True)
class HistoryPart:
    """Records with earlier studies, their own or of other patients.

    Attributes
    ----------
    tokens : HistoryTokens
    logits : float64, shape (n, labels)
    gold : bool, shape (n, labels)
    own : bool
        Whether the histories are the patients' own.
    """

    tokens: HistoryTokens
    logits: NDArray[np.float64]
    gold: NDArray[np.bool_]
    own: bool


def fit_history(parts: Sequence[HistoryPart], recipe: HistoryRecipe | None = None) -> HistoryHead:
    """Fit attention over earlier studies.

    Parameters
    ----------
    parts : sequence of HistoryPart
        Each record weighs the same within the own histories, and within the others'.
    recipe : HistoryRecipe, optional

    Raises
    ------
    InvalidInputError
        There is no record with an earlier study of the same patient.
    """
    if not any(part.own for part in parts):
        raise InvalidInputError("no record has an earlier study of the same patient, expected some to fit history on")
    recipe = recipe or HistoryRecipe()
    net = _HistoryNet(parts[0].gold.shape[1], recipe)
    batches = _Batches(parts)
    is_own = np.repeat([part.own for part in parts], [len(part.gold) for part in parts])
    own, other = (torch.from_numpy(np.flatnonzero(which)) for which in (is_own, ~is_own))
    tables = [net.decay, net.departure, net.cross]
    network = [parameter for parameter in net.parameters() if all(parameter is not table for table in tables)]
    optimiser = torch.optim.AdamW(
        [{"params": network, "weight_decay": recipe.weight_decay}, {"params": tables, "weight_decay": 0.0}],
        lr=recipe.learning_rate,
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, recipe.learning_rate, recipe.steps)
    random = torch.Generator().manual_seed(recipe.seed)
    wrongs = round(recipe.wrong * recipe.batch) if len(other) else 0
    for _ in range(recipe.steps):
        rows = own[torch.randint(len(own), (recipe.batch,), generator=random)]
        if wrongs:
            rows = torch.cat([rows, other[torch.randint(len(other), (wrongs,), generator=random)]])
        part, base, truth = batches.take(rows)
        added = net(*part)
        loss = binary_cross_entropy_with_logits(base + added, truth, reduction="none").mean(dim=0).sum()
        loss = loss + recipe.departure_penalty * net.departure.square().sum()
        loss = loss + recipe.cross_penalty * net.cross.square().sum()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
    return net.head()


class _Batches:
    """Tokens of many records without the padding: most records have one earlier study, few have many."""

    def __init__(self, parts: Sequence[HistoryPart]) -> None:
        def joined(values: Iterable[NDArray[np.generic]]) -> torch.Tensor:
            return torch.from_numpy(np.concatenate([np.asarray(value, np.float32) for value in values]))

        self._channels = joined(part.tokens.channels[part.tokens.mask] for part in parts)
        self._surprise = joined(part.tokens.surprise[part.tokens.mask] for part in parts)
        self._log_days = joined(part.tokens.log_days[part.tokens.mask] for part in parts)
        self._current = joined(part.tokens.current for part in parts)
        self._logits = joined(part.logits for part in parts)
        self._gold = joined(part.gold for part in parts)
        self._count = torch.from_numpy(np.concatenate([part.tokens.mask.sum(axis=1) for part in parts]))
        self._start = self._count.cumsum(0) - self._count

    def take(self, rows: torch.Tensor) -> tuple[tuple[torch.Tensor, ...], torch.Tensor, torch.Tensor]:
        """Return what the net takes, the log-odds and the gold of some records."""
        count = self._count[rows]
        owner = torch.repeat_interleave(torch.arange(len(rows)), count)
        place = torch.arange(len(owner)) - (count.cumsum(0) - count)[owner] + self._start[rows][owner]
        part = (self._channels[place], self._surprise[place], self._log_days[place], self._current[rows], owner)
        return part, self._logits[rows], self._gold[rows]


class _HistoryNet(torch.nn.Module):
    """The head of :mod:`mmecg.prediction.history`, to be fitted."""

    def __init__(self, labels: int, recipe: HistoryRecipe) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(recipe.seed)
        hidden, channels = recipe.hidden, len(CHANNELS)

        def uniform(rows: int, columns: int) -> torch.nn.Parameter:
            return torch.nn.Parameter((2 * torch.rand(rows, columns, generator=random) - 1) * rows**-0.5)

        def zeros(*shape: int) -> torch.nn.Parameter:
            return torch.nn.Parameter(torch.zeros(*shape))

        self.first_weight, self.first_bias = uniform(channels, hidden), zeros(hidden)
        self.second_weight, self.second_bias = uniform(hidden, hidden), zeros(hidden)
        self.out_weight, self.out_bias = zeros(hidden, 2), zeros(2)
        self.decay = torch.nn.Parameter(torch.full((labels,), -2.0))
        self.departure, self.cross = zeros(3, labels), zeros(labels, labels)

    def forward(
        self,
        channels: torch.Tensor,  # (priors, labels, channels)
        surprise: torch.Tensor,  # (priors, labels)
        log_days: torch.Tensor,  # (priors,)
        current: torch.Tensor,  # (batch, labels)
        owner: torch.Tensor,  # (priors,)
    ) -> torch.Tensor:
        """Return the log-odds that the histories add: (batch, labels)."""
        hidden = silu(channels @ self.first_weight + self.first_bias)
        hidden = silu(hidden @ self.second_weight + self.second_bias)
        value, attention = (hidden @ self.out_weight + self.out_bias).unbind(-1)
        attention = (attention - softplus(self.decay) * log_days[:, None]).clamp(-_LIMIT, _LIMIT).exp()
        share = attention / torch.zeros_like(current).index_add(0, owner, attention)[owner]
        value = value + self.departure[0] + self.departure[1] * channels[..., 0]
        value = value + self.departure[2] * current[owner] + surprise @ self.cross
        return torch.zeros_like(current).index_add(0, owner, share * value)

    def head(self) -> HistoryHead:
        """Return what was fitted, for inference without torch."""
        values = {field.name: getattr(self, field.name).detach() for field in fields(HistoryHead)}
        values["decay"] = softplus(values["decay"])
        return HistoryHead(**{name: np.ascontiguousarray(value.numpy(), np.float32) for name, value in values.items()})


def fit_vitals(
    logits: NDArray[np.float64], channels: NDArray[np.float32], gold: NDArray[np.bool_], *, penalty: float = 1e-3
) -> NDArray[np.float32]:
    """Fit what vitals add to log-odds: float32, shape (channels, labels).

    Parameters
    ----------
    logits : float64, shape (n, labels)
        Calibrated, of the ECGs alone, from heads that were not fitted on them.
    channels : float32, shape (n, channels)
        Of :func:`mmecg.prediction.vitals_head.vitals_channels`.
    gold : bool, shape (n, labels)
    penalty : float
        On the squares of the weights. Of 1e-2, 1e-3, 1e-4, the log loss of folds 7 and 8 was least at the last two.
    """
    inputs, offset = torch.from_numpy(channels), torch.from_numpy(logits.astype(np.float32))
    targets = torch.from_numpy(gold.astype(np.float32))
    weight = torch.zeros(channels.shape[1], gold.shape[1], requires_grad=True)
    optimiser = torch.optim.LBFGS([weight], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        loss = binary_cross_entropy_with_logits(offset + inputs @ weight, targets, reduction="none").mean(dim=0).sum()
        loss = loss + penalty * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    found: NDArray[np.float32] = weight.detach().numpy()
    return found


def fit_cohort(
    logits: NDArray[np.float64],
    votes: NDArray[np.floating],
    gold: NDArray[np.bool_],
    *,
    penalty: float = 1e-2,
) -> CohortHead:
    """Fit how much the neighbours' vote counts: one regression, in which a label departs from the others at a cost.

    Parameters
    ----------
    logits : float64, shape (n, labels)
        Calibrated, of the ECGs alone, from heads that were not fitted on them.
    votes : floating, shape (n, labels)
        Of neighbours that are none of the same patients.
    gold : bool, shape (n, labels)
    penalty : float
        On the squares of a label's departures.
    """
    inputs = torch.from_numpy(np.stack([logits, vote_logits(votes)]).astype(np.float32))  # (2, n, labels)
    targets = torch.from_numpy(gold.astype(np.float32))
    shared = torch.tensor([1.0, 0.0]).requires_grad_(True)
    own = torch.zeros(2, gold.shape[1], requires_grad=True)
    bias = torch.zeros(gold.shape[1], requires_grad=True)
    optimiser = torch.optim.LBFGS([shared, own, bias], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        joined = (inputs * (shared[:, None, None] + own[:, None])).sum(dim=0) + bias
        loss = binary_cross_entropy_with_logits(joined, targets, reduction="none").mean(dim=0).sum()
        loss = loss + penalty * own.square().sum() + 1e-4 * bias.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    weight = (shared[:, None] + own).detach().numpy()
    return CohortHead(weight.astype(np.float32), bias.detach().numpy(), NEIGHBOURS, float(MINIMUM_STUDIES))


def fit_superclass(
    logits: NDArray[np.float64], gold: NDArray[np.bool_], labels: Sequence[str], *, penalty: float = 1e-3
) -> SuperclassHead:
    """Fit how a superclass follows from its own score and its statements'.

    Parameters
    ----------
    logits : float64, shape (n, labels)
        Calibrated, with whatever else is known.
    gold : bool, shape (n, labels)
    labels : sequence of str
    penalty : float
        On the squares of the departures from the superclass's own score.
    """
    columns, holds = superclasses_of(labels)
    inputs = torch.from_numpy(channels(logits, columns, holds).astype(np.float32))
    targets = torch.from_numpy(gold[:, columns].astype(np.float32))
    own = torch.tensor([1.0, 0.0, 0.0])[:, None].expand(3, len(columns))
    departure = torch.zeros(3, len(columns), requires_grad=True)
    bias = torch.zeros(len(columns), requires_grad=True)
    optimiser = torch.optim.LBFGS([departure, bias], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        joined = (inputs * (own + departure)).sum(dim=1) + bias
        loss = binary_cross_entropy_with_logits(joined, targets, reduction="none").mean(dim=0).sum()
        loss = loss + penalty * departure.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    if len(columns):
        optimiser.step(closure)  # type: ignore[no-untyped-call]
    return SuperclassHead(columns, holds, (own + departure).detach().numpy(), bias.detach().numpy())
