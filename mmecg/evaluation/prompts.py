"""English prompts for zero-shot classification, and their embeddings.

The bank is ``prompts.toml`` beside this module: our own words, two to five short prompts a label. A label's embedding
is the normalised mean of its prompts' unit embeddings; its zero-shot score for an ECG is the cosine of the two.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray

from mmecg.embedding import Encoder, normalise
from mmecg.errors import ConfigError


@dataclass(frozen=True)
class PromptBank:
    """Prompts of every label of a task: mapping of label to its prompts, the plain description first."""

    superclass: Mapping[str, tuple[str, ...]]
    statement: Mapping[str, tuple[str, ...]]

    def of_task(self, task: str, labels: Sequence[str], descriptions: Mapping[str, str]) -> list[tuple[str, ...]]:
        """Return the prompts of the labels of a task; a label that the bank lacks falls back on its description.

        Parameters
        ----------
        task : {"superclass", "all"}
        labels : sequence of str
        descriptions : mapping of label to str
            Plain description of a statement that the bank may lack.

        Raises
        ------
        ConfigError
            A label has neither prompts nor a description.
        """
        bank = self.superclass if task == "superclass" else self.statement
        found = [bank.get(label) or _fallback(descriptions.get(label)) for label in labels]
        missing = [label for label, prompts in zip(labels, found, strict=True) if not prompts]
        if missing:
            raise ConfigError(
                f"label {missing[0]!r} has neither a prompt nor a description, expected one; "
                "describe it in scp_statements.csv"
            )
        return found


def _fallback(description: str | None) -> tuple[str, ...]:
    return (description.lower(),) if description else ()


def load_prompts() -> PromptBank:
    """Read the prompt bank that ships with mmecg."""
    text = files("mmecg.evaluation").joinpath("prompts.toml").read_text("utf-8")
    tables = tomllib.loads(text)
    return PromptBank(
        superclass={label: tuple(prompts) for label, prompts in tables["superclass"].items()},
        statement={label: tuple(prompts) for label, prompts in tables["statement"].items()},
    )


@dataclass(frozen=True)
class PromptEmbeddings:
    """Embeddings of a task's labels.

    Attributes
    ----------
    ensemble : float32, shape (labels, dim), unit norm
        Mean over the prompts of a label, normalised again.
    single : tuple of float32, shape (labels, dim), unit norm
        One set per position in the bank; a label with fewer prompts repeats from its first.
    last : float32, shape (labels, dim), unit norm
        The last prompt of each label, which training does not show where a label has three or more.
    """

    ensemble: NDArray[np.float32]
    single: tuple[NDArray[np.float32], ...]
    last: NDArray[np.float32]


def embed_prompts(encoder: Encoder, prompts: Sequence[Sequence[str]]) -> PromptEmbeddings:
    """Embed the prompts of a task's labels, each distinct prompt once.

    Parameters
    ----------
    encoder : Encoder
    prompts : sequence of sequence of str, length labels
    """
    distinct = sorted({prompt for of_label in prompts for prompt in of_label})
    row = {prompt: index for index, prompt in enumerate(distinct)}
    vectors = encoder.encode_text(distinct)
    ensemble = np.stack([vectors[[row[prompt] for prompt in of_label]].mean(axis=0) for of_label in prompts])
    sets = max(len(of_label) for of_label in prompts)
    single = tuple(vectors[[row[of_label[index % len(of_label)]] for of_label in prompts]] for index in range(sets))
    last = vectors[[row[of_label[-1]] for of_label in prompts]]
    return PromptEmbeddings(normalise(ensemble), single, last)
