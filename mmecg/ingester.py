"""Into the corpus: studies are embedded, unless they are there already, and stored. Joins an encoder and a corpus."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from mmecg.embedding import Encoder
from mmecg.errors import (
    ConflictError,
    FingerprintMismatchError,
    NotAlignedError,
    OverloadedError,
    QueryError,
    StudyNotFoundError,
    VitalsError,
)
from mmecg.search import CorpusStore, WriteRequest
from mmecg.study import Study

INGEST_BATCH = 64
_ALL_NOTES = "all notes"
_UPDATE_ATTEMPTS = 8
"""Of an update without an etag that meets other writers."""

Vector = NDArray[np.float32]
Item = TypeVar("Item")


class Prepared(NamedTuple):
    """Studies on their way into a corpus.

    Attributes
    ----------
    recipes : list of str
        How the embeddings of each were made.
    embeddings : list of mapping of modality to float32, shape (dim,), unit norm
        None for a study that is stored just so.
    """

    recipes: list[str]
    embeddings: list[Mapping[str, Vector] | None]


class Ingester:
    """Fills a corpus. Safe to call from many threads.

    Parameters
    ----------
    encoder : Encoder
    corpus : CorpusStore

    Raises
    ------
    FingerprintMismatchError
        The corpus holds embeddings of another bundle.
    """

    def __init__(self, encoder: Encoder, corpus: CorpusStore) -> None:
        if encoder.fingerprint != corpus.fingerprint:
            raise FingerprintMismatchError(got=corpus.fingerprint, expected=encoder.fingerprint, what="corpus")
        self.encoder = encoder
        self.corpus = corpus

    def ingest(self, studies: Iterable[Study], *, include_later_notes: bool = False) -> int:
        """Embed studies and store them durably, batch by batch; return the last committed sequence number.

        The text embedding covers the clean report and the notes that were certainly written before the ECG.

        Parameters
        ----------
        studies : iterable of Study
            Read lazily; a study whose id is there is replaced.
        include_later_notes : bool
            Embed all notes. A later note may give the answer away: never do so for evaluation or prediction.
        """
        sequence = self.corpus.sequence
        waiting = iter(studies)
        while batch := list(itertools.islice(waiting, INGEST_BATCH)):
            sequence = max(sequence, *self.store(batch, include_later_notes=include_later_notes))
        return sequence

    def store(
        self,
        studies: Sequence[Study],
        *,
        given: Sequence[Mapping[str, Vector]] | None = None,
        include_later_notes: bool = False,
        etags: Sequence[str | None] | None = None,
        requests: Sequence[WriteRequest | None] | None = None,
        prepared: Prepared | None = None,
    ) -> list[int]:
        """Embed studies that are not stored just so already, and store them durably in one commit, or none of them.

        Parameters
        ----------
        studies : sequence of Study
            At most some hundred: all are in memory, and others wait for their commit.
        given : sequence of mapping of modality to float32, shape (dim,), unit norm, optional
            Embeddings that the caller made with the bundle; the encoder makes the others.
        include_later_notes : bool
            See :meth:`ingest`.
        etags, requests
            See :meth:`mmecg.search.CorpusStore.store`, also for what is raised.
        prepared : Prepared, optional
            What :meth:`prepare` made of the same studies.

        Returns
        -------
        list of int
            Sequence number of each study's last change.
        """
        prepared = prepared or self.prepare(studies, given=given, include_later_notes=include_later_notes)
        while True:
            recipes, embeddings = prepared
            try:
                return self.corpus.store(studies, embeddings, recipes=recipes, etags=etags, requests=requests)
            except ConflictError:  # perhaps others changed meanwhile what was known
                before = [one is None for one in embeddings]
                prepared = self.prepare(studies, given=given, include_later_notes=include_later_notes)
                if [one is None for one in prepared.embeddings] == before:
                    raise

    def prepare(
        self,
        studies: Sequence[Study],
        *,
        given: Sequence[Mapping[str, Vector]] | None = None,
        include_later_notes: bool = False,
    ) -> Prepared:
        """Embed studies that are not stored just so already; the slow part of :meth:`store`, which may come earlier."""
        given = given or [{}] * len(studies)
        recipes = [_recipe(one, include_later_notes=include_later_notes) for one in given]
        known = [False] * len(studies)
        asked = [
            place
            for place, (study, one) in enumerate(zip(studies, given, strict=True))
            if not _is_complete(study, one, include_later_notes=include_later_notes)
        ]
        found = self.corpus.unchanged([studies[place] for place in asked], [recipes[place] for place in asked])
        for place, is_known in zip(asked, found, strict=True):
            known[place] = is_known
        new = [(study, one) for study, one, same in zip(studies, given, known, strict=True) if not same]
        made = iter(
            embed_studies(
                self.encoder, [study for study, _ in new], [include_later_notes] * len(new), [one for _, one in new]
            )
        )
        return Prepared(recipes, [None if same else next(made) for same in known])

    def update(
        self,
        study_id: str,
        change: Callable[[Study], Study],
        *,
        etag: str | None = None,
        include_later_notes: bool = False,
        request: WriteRequest | None = None,
    ) -> int:
        """Replace a study by what a function makes of it (a report comes after the ECG); return the number.

        No write of others is lost: if one comes between reading and writing, the function is asked again.

        Parameters
        ----------
        study_id : str
        change : callable
            Returns the new study, of the same id.
        etag : str, optional
            What :meth:`mmecg.search.CorpusStore.tagged` said; if the study is no longer that one, nothing is done.
        include_later_notes : bool
            See :meth:`ingest`.
        request : WriteRequest, optional
            With its ``content``: what is asked for.

        Raises
        ------
        StudyNotFoundError
        ConflictError
            The study is not the one that ``etag`` names.
        OverloadedError
            Others change the study all the time.
        """
        for _ in range(_UPDATE_ATTEMPTS):
            try:
                ((study, tag),) = self.corpus.tagged([study_id])
            except StudyNotFoundError:
                answered = None if request is None else self.corpus.answered(study_id, request)
                if answered is None:
                    raise
                return answered  # a request that comes again, after the study was deleted
            changed = change(study)
            if changed.study_id != study_id:
                raise QueryError(
                    "the update gives the study another id; store it anew, and delete this one", field="study_id"
                )
            try:
                (sequence,) = self.store(
                    [changed], etags=[etag or tag], requests=[request], include_later_notes=include_later_notes
                )
            except ConflictError:
                if etag is not None:
                    raise
            else:
                return sequence
        raise OverloadedError(f"others changed the study {_UPDATE_ATTEMPTS} times meanwhile; send it again")


def embed_studies(
    encoder: Encoder,
    studies: Sequence[Study],
    include_later_notes: Sequence[bool],
    given: Sequence[Mapping[str, Vector]] | None = None,
) -> list[Mapping[str, Vector]]:
    """Return the embedding of each modality that each study has and the model knows, those that are given as they are.

    See :meth:`Ingester.ingest`.
    """
    parts: list[dict[str, Vector]] = [dict(one) for one in given] if given else [{} for _ in studies]
    texts = [
        None if "text" in part else study_text(study, include_later_notes=later) or None
        for study, later, part in zip(studies, include_later_notes, parts, strict=True)
    ]
    pairs = list(zip(studies, parts, strict=True))
    vitals = [None if "vitals" in part or study.vitals.is_empty() else study.vitals for study, part in pairs]
    encode_into("ecg", encoder.encode_ecg, [None if "ecg" in part else study.ecg for study, part in pairs], parts)
    with contextlib.suppress(NotAlignedError):  # the model embeds ECGs only
        encode_into("text", encoder.encode_text, texts, parts)
    try:
        with contextlib.suppress(NotAlignedError):
            encode_into("vitals", encoder.encode_vitals, vitals, parts)
    except VitalsError:  # some hold nothing that the model knows: those have no embedding
        for one, part in zip(vitals, parts, strict=True):
            with contextlib.suppress(VitalsError):
                encode_into("vitals", encoder.encode_vitals, [one], [part])
    return list(parts)


def study_text(study: Study, *, include_later_notes: bool = False) -> str:
    """Return what the text tower reads of a study: the clean report, then its notes, one a line; may be empty.

    A report or note without any letter or digit ("-") says nothing and is left out.
    """
    notes = study.notes if include_later_notes else study.notes_before_ecg()
    texts = [study.report.text if study.report else "", *(note.text.strip() for note in notes)]
    return "\n".join(text for text in texts if any(char.isalnum() for char in text))


def includes_later_notes(recipe: str | None) -> bool:
    """Return whether embeddings that were made in this way cover notes that may be later than the ECG."""
    return recipe is not None and recipe.startswith(_ALL_NOTES)


def _is_complete(study: Study, given: Mapping[str, Vector], *, include_later_notes: bool) -> bool:
    """Return whether nothing is left for the encoder to do."""
    return (
        (study.ecg is None or "ecg" in given)
        and ("text" in given or not study_text(study, include_later_notes=include_later_notes))
        and ("vitals" in given or study.vitals.is_empty())
    )


def _recipe(given: Mapping[str, Vector], *, include_later_notes: bool) -> str:
    """Return how the embeddings of a study are made, as the corpus remembers it."""
    recipe = _ALL_NOTES if include_later_notes else "earlier notes"
    for name, vector in sorted(given.items()):
        digest = hashlib.blake2b(np.asarray(vector, "<f4").tobytes(), digest_size=8)
        recipe += f", {name} given {digest.hexdigest()}"
    return recipe


def encode_into(
    name: str,
    encode: Callable[[Sequence[Item]], Vector],
    items: Sequence[Item | None],
    parts: Sequence[dict[str, Vector]],
) -> None:
    """Encode the items that exist in one batch, and put each embedding under ``name`` into its part."""
    there = [(item, part) for item, part in zip(items, parts, strict=True) if item is not None]
    if there:
        for (_, part), vector in zip(there, encode([item for item, _ in there]), strict=True):
            part[name] = vector
