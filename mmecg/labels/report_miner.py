"""One report in, everything it says out: assertions with probabilities, and labels in the code system asked for."""

from __future__ import annotations

import dataclasses
import re
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence

from mmecg.errors import InvalidInputError
from mmecg.labels.assertion import LabelAssertion, MinedLabel, MinedReport, value_of
from mmecg.labels.evidence import TextEvidence
from mmecg.labels.mining import LabelMiner
from mmecg.labels.report_rows import SUSPECTS, is_truncated
from mmecg.labels.rules import LANGUAGES
from mmecg.labels.vocabulary import Relation, load_vocabulary
from mmecg.labels.weights import load_text_evidence

_FLAGS = {"empty": r"\A\s*\Z", "encoding": "\ufffd", **SUSPECTS}

Resolve = Callable[[Sequence[LabelAssertion]], tuple[LabelAssertion, ...]]


class ReportMiner:
    """Mines one report at a time, from any thread.

    Parameters
    ----------
    evidence : TextEvidence, optional
        Where probabilities come from; default is what ships with mmecg.
    """

    def __init__(self, evidence: TextEvidence | None = None) -> None:
        self._evidence = load_text_evidence() if evidence is None else evidence
        self._vocabulary = load_vocabulary()
        self._miners = {"": LabelMiner()}
        self._lock = threading.Lock()  # guards the miners made so far

    def mine_report(
        self, text: str, *, language: str = "", vocabulary: str = "", resolve: Resolve = tuple
    ) -> MinedReport:
        """Return what a raw text says.

        Parameters
        ----------
        text : str
            As it was written; offsets refer to it.
        language : {"", "de", "en", "sv"}
            Empty: found out, sentence by sentence.
        vocabulary : str
            Code system of the labels (``ecg_fm`` or ``ecg-fm``); empty: the findings' own identifiers.
        resolve : callable
            Fills in what an earlier study says of serial statements, as :meth:`SerialResolver.resolve` does; the labels
            follow from it.

        Raises
        ------
        InvalidInputError
            The language or the vocabulary is unknown.
        ReportError
            The text is too long, or not plain text.
        """
        if language not in ("", *LANGUAGES):
            raise InvalidInputError(
                f"language is {language[:20]!r}, expected one of {', '.join(LANGUAGES)}, or none to have it found out",
                field="language",
            )
        if vocabulary.replace("-", "_") not in ("", *self._vocabulary.systems):
            systems = ", ".join(self._vocabulary.systems)
            raise InvalidInputError(
                f"vocabulary is {vocabulary[:20]!r}, expected one of {systems}, or none", field="vocabulary"
            )
        with self._lock:
            if language not in self._miners:
                self._miners[language] = LabelMiner((language,))
            miner = self._miners[language]
        found = miner.mine(text)
        assertions = resolve(
            [dataclasses.replace(one, probability=self._evidence.mention_probability(one)) for one in found]
        )
        return MinedReport(assertions, self._labels(assertions, vocabulary), _flags(text))

    def _labels(self, said: Sequence[LabelAssertion], vocabulary: str) -> tuple[MinedLabel, ...]:
        """Return one label a finding, or the codes that follow from the findings; the most certain says it."""
        mentions: dict[str, list[LabelAssertion]] = defaultdict(list)
        for assertion in said:
            mentions[assertion.finding].append(assertion)
        # Of the whole text; None for a finding without gold.
        probability = dict(zip(self._evidence.labels, self._evidence.probabilities([said])[0].tolist(), strict=True))
        labels = [
            MinedLabel(finding, finding, value_of(ones), probability.get(finding)) for finding, ones in mentions.items()
        ]
        if vocabulary:
            labels = [each for label in labels for each in self._translate(label, vocabulary)]
        best: dict[str, MinedLabel] = {}
        for label in labels:
            held = best.get(label.code)
            if held is None or _rank(label) > _rank(held):
                best[label.code] = label
        return tuple(best.values())

    def _translate(self, label: MinedLabel, vocabulary: str) -> list[MinedLabel]:
        """Return the codes of a system that share the label's fate; one that is denied denies its exact codes only."""
        rows = self._vocabulary.translate(label.finding, vocabulary)
        if label.value is False:
            rows = tuple(row for row in rows if row.relation is Relation.EXACT)
        return [dataclasses.replace(label, code=row.code) for row in rows]


def _flags(text: str) -> tuple[str, ...]:
    """Return the remarks that a row of a table with this text would get (:mod:`mmecg.labels.report_rows`)."""
    found = [name for name, pattern in _FLAGS.items() if re.search(pattern, text)]
    return tuple(sorted([*found, *(["truncated"] if is_truncated(text) else [])]))


def _rank(label: MinedLabel) -> tuple[bool, float, bool]:
    """Order labels of one code: what is stated before what is open before what is denied, then by probability."""
    return label.value is True, label.probability or 0.0, label.value is None
