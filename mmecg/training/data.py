"""Training data in memory (signals, reports, labels, prompts, vitals), and the batches drawn from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmecg.datasets.ptb_xl import (
    SUPERCLASSES,
    label_matrix,
    read_ptb_xl_signals,
    read_ptb_xl_table,
    read_scp_statements,
    study_of_row,
    superclass_matrix,
)
from mmecg.errors import InvalidInputError
from mmecg.evaluation.prompts import PromptBank, load_prompts
from mmecg.modeling.vitals_encoder import vitals_matrix
from mmecg.training.augment import augment, random_crops, random_lead_masks
from mmecg.training.config import TrainingConfig

Tokenize = Callable[[Sequence[str]], list[list[int]]]

MIN_WORD_REPORTS = 30
"""A word or word pair is predicted from the ECG if at least so many training reports hold it."""


@dataclass(frozen=True)
class TrainingData:
    """Studies of the training folds.

    Attributes
    ----------
    signals : int16, shape (studies, leads=12, samples), µV
    reports : list of str
        Clean text; may be empty.
    report_group : int64, shape (studies,)
        Equal for identical reports; -1 for an empty one.
    labels : bool, shape (studies, labels)
        The statements, then the superclasses.
    label_prompts : list of tuple of str
        Training prompts of each label.
    words : bool, shape (studies, words)
        Words and word pairs of the report.
    vitals : float32 tensor, shape (studies, 20)
    """

    signals: NDArray[np.int16]
    reports: list[str]
    report_group: NDArray[np.int64]
    labels: NDArray[np.bool_]
    label_prompts: list[tuple[str, ...]]
    words: NDArray[np.bool_]
    vitals: Tensor

    def __len__(self) -> int:
        return len(self.reports)

    def texts(self) -> list[str]:
        """Return every text that training may show the text tower, prompts included; for the vocabulary."""
        prompts = [prompt for prompts in self.label_prompts for prompt in prompts]
        return [*self.reports, *(prompts * MIN_WORD_REPORTS)]


def load_training_data(folder: Path, config: TrainingConfig, *, quiet: bool = False) -> TrainingData:
    """Read the training folds of a PTB-XL folder.

    Raises
    ------
    InvalidInputError
        The folder has no record of these folds.
    """
    read = read_ptb_xl_signals(folder, training_table(folder, config.folds), quiet=quiet)
    data = training_data(folder, read.table, read.signals)
    return replace(data, words=_words(data.reports))


def training_table(folder: Path, folds: Sequence[int]) -> pl.DataFrame:
    """Return the records of some folds.

    Raises
    ------
    InvalidInputError
        The folder has no record of these folds.
    """
    table = read_ptb_xl_table(folder).filter(pl.col("strat_fold").is_in(list(folds)))
    if table.is_empty():
        raise InvalidInputError(f"folder has no record of folds {folds}; give a PTB-XL folder", field="data")
    return table


def training_data(folder: Path, table: pl.DataFrame, signals: NDArray[np.int16]) -> TrainingData:
    """Return what training needs of records, beside their signals; without words to predict.

    Parameters
    ----------
    folder : Path
        PTB-XL folder.
    table : polars.DataFrame
        Its records, as :func:`mmecg.datasets.ptb_xl.read_ptb_xl_table` returns them.
    signals : int16, shape (studies, leads=12, samples), µV
    """
    statements = read_scp_statements(folder)
    reports = table["report_text"].to_list()
    return TrainingData(
        signals=signals,
        reports=reports,
        report_group=_groups(reports),
        labels=np.concatenate(
            [label_matrix(table, statements["label"].to_list()), superclass_matrix(table, statements)], axis=1
        ),
        label_prompts=training_prompts(load_prompts(), statements),
        words=np.zeros((len(reports), 0), np.bool_),
        vitals=vitals_matrix([study_of_row(row).vitals for row in table.iter_rows(named=True)]),
    )


def training_prompts(bank: PromptBank, statements: pl.DataFrame) -> list[tuple[str, ...]]:
    """Return the prompts of each label that training may see: all but the last, where there are three or more.

    The last prompt of each label stays unseen, so that evaluation can tell how far zero-shot scores depend on wording
    that training saw.
    """
    descriptions = dict(zip(statements["label"], statements["description"], strict=True))
    prompts = [
        *bank.of_task("all", statements["label"].to_list(), descriptions),
        *bank.of_task("superclass", SUPERCLASSES, {}),
    ]
    return [each[:-1] if len(each) > 2 else each for each in prompts]


@dataclass(frozen=True)
class Batch:
    """One training batch; axes as in :class:`TrainingData`, ``extra`` are reports of other studies.

    Attributes
    ----------
    signal : float32, shape (batch, leads=12, samples), mV
    report_tokens, prompt_tokens, extra_tokens : list of token id lists
    report_group : int64, shape (batch,)
    extra_log_count : float32, shape (extra,)
        Logarithm of how often an extra report was drawn.
    labels, prompt_labels : float32, shape (batch, labels)
        What is true of each study, and what each prompt claims.
    words : float32, shape (batch, words)
    vitals : float32, shape (batch, 20)
    """

    signal: Tensor
    report_tokens: list[list[int]]
    report_group: Tensor
    extra_tokens: list[list[int]]
    extra_log_count: Tensor
    prompt_tokens: list[list[int]]
    prompt_labels: Tensor
    labels: Tensor
    words: Tensor
    vitals: Tensor


class BatchSampler:
    """Draw the batches of an epoch; the same seed, epoch and rank draw the same batches.

    Parameters
    ----------
    data : TrainingData
    config : TrainingConfig
    tokenize : callable
        Maps texts to token id lists.
    rank, world_size : int
        This process and how many there are; each draws its own share of every batch.
    """

    def __init__(
        self, data: TrainingData, config: TrainingConfig, tokenize: Tokenize, *, rank: int = 0, world_size: int = 1
    ) -> None:
        self.data, self.config = data, config
        self._rank, self._world = rank, world_size
        self._report_tokens: list[list[int]] = tokenize([text or "[UNK]" for text in data.reports])
        self._prompt_tokens: list[list[list[int]]] = [tokenize(list(prompts)) for prompts in data.label_prompts]
        (self._stop,) = tokenize(["."])
        self._rarity = np.maximum(data.labels.sum(0), 1.0) ** -config.rarity_exponent
        self._first_of_group = dict(zip(data.report_group[::-1].tolist(), range(len(data))[::-1], strict=True))

    @property
    def steps(self) -> int:
        """Batches in an epoch."""
        return len(self.data) // self.config.batch_size

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """Yield the batches of one epoch."""
        order = np.random.default_rng([self.config.seed, epoch]).permutation(len(self.data))
        # Two streams, so that what is drawn from labels never decides anything else.
        rng, prompt_rng = (np.random.default_rng([self.config.seed, epoch, self._rank, stream]) for stream in (1, 2))
        size = self.config.batch_size
        for step in range(self.steps):
            yield self._batch(order[step * size : (step + 1) * size][self._rank :: self._world], rng, prompt_rng)

    def _batch(self, rows: NDArray[np.int64], rng: np.random.Generator, prompt_rng: np.random.Generator) -> Batch:
        data = self.data
        signal = self._signal(rows, rng)
        extra_tokens, extra_log_count = self._extra_reports(rows, rng)
        prompts = [self._prompt(row, prompt_rng) for row in rows]
        claimed = np.zeros((len(rows), data.labels.shape[1]), np.float32)
        for index, (labels, _) in enumerate(prompts):
            claimed[index, labels] = 1
        return Batch(
            signal=torch.from_numpy(signal),
            report_tokens=[self._report_tokens[row] for row in rows],
            report_group=torch.from_numpy(data.report_group[rows]),
            extra_tokens=extra_tokens,
            extra_log_count=extra_log_count,
            prompt_tokens=[tokens for _, tokens in prompts],
            prompt_labels=torch.from_numpy(claimed),
            labels=torch.from_numpy(data.labels[rows].astype(np.float32)),
            words=torch.from_numpy(data.words[rows].astype(np.float32)),
            vitals=data.vitals[rows],
        )

    def _signal(self, rows: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.float32]:
        """Return augmented crops, some without some leads: float32, shape (batch, leads=12, samples), mV."""
        config, rate = self.config, self.config.model.ecg.sampling_rate_hz
        crops = augment(random_crops(self.data.signals, rows, round(config.crop_s * rate), rng), rate, rng)
        return crops * random_lead_masks(len(rows), config.lead_mask_probability, rng)

    def _extra_reports(self, rows: NDArray[np.int64], rng: np.random.Generator) -> tuple[list[list[int]], Tensor]:
        """Draw reports of random studies; identical ones once, with the logarithm of their number."""
        drawn = rng.integers(0, len(self.data), self.config.extra_reports)
        groups, counts = np.unique(self.data.report_group[drawn], return_counts=True)
        other = ~np.isin(groups, [-1, *self.data.report_group[rows]])
        tokens = [self._report_tokens[self._first_of_group[group]] for group in groups[other].tolist()]
        return tokens, torch.from_numpy(np.log(counts[other]).astype(np.float32))

    def _prompt(self, row: int, rng: np.random.Generator) -> tuple[NDArray[np.int64], list[int]]:
        """Draw a true claim about a study: one label (rare ones more often), some, all statements, or superclasses."""
        true = np.flatnonzero(self.data.labels[row])
        statements = self.data.labels.shape[1] - len(SUPERCLASSES)
        classes, codes = true[true >= statements], true[true < statements]
        kind = rng.random()
        if not len(true):
            chosen = true
        elif kind < 0.2 and len(classes):
            chosen = rng.permutation(classes)[: rng.integers(1, len(classes) + 1)]
        elif kind < 0.5:
            chosen = rng.choice(true, 1, p=self._rarity[true] / self._rarity[true].sum())
        elif kind < 0.75:
            chosen = rng.permutation(true)[: rng.integers(1, len(true) + 1)]
        else:
            chosen = rng.permutation(codes if len(codes) else true)
        tokens: list[int] = []
        for label in chosen:
            options = self._prompt_tokens[label]
            # Half of the time the plain description, so that it stays the anchor of its label.
            tokens += options[0 if rng.random() < 0.5 else rng.integers(len(options))] + self._stop
        return chosen, tokens or self._stop


def _groups(reports: Sequence[str]) -> NDArray[np.int64]:
    seen: dict[str, int] = {}
    return np.array([seen.setdefault(text, len(seen)) if text else -1 for text in reports], np.int64)


def _words(reports: Sequence[str]) -> NDArray[np.bool_]:
    from sklearn.feature_extraction.text import CountVectorizer

    vectorizer = CountVectorizer(binary=True, ngram_range=(1, 2), min_df=min(MIN_WORD_REPORTS, len(reports)))
    return np.asarray(vectorizer.fit_transform(reports).toarray(), np.bool_)
