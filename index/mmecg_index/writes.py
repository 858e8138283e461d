"""What changes the studies of a corpus, or of a part of it: store and delete, each one operation of the writer.

A study that is stored as it is given is not written again. ``content_hash`` tells: a keyed hash over everything that a
study says, whoever encoded it. Its embeddings are compared as well, unless the caller says by name how they were made
(``recipe``): then those of the same content, recipe and bundle are the same.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from mmecg.errors import ModelChangedError, QueryError
from mmecg.search import Embeddings, WriteRequest
from mmecg.study import Scope, Study
from mmecg_index.calls import entered
from mmecg_index.codec import content_hash
from mmecg_index.database import next_sequence
from mmecg_index.items import Item, change_asked_for, check_embeddings, find_all, outside, store_items
from mmecg_index.queries import StudyQueries, not_found
from mmecg_index.requests import Answered, remember, trim_now_and_then
from mmecg_index.writer import Written

Value = TypeVar("Value")


class StudyWrites(StudyQueries):
    """The writes of a corpus, or of a part of it, beside its reads. Safe to call from many threads."""

    scope = Scope()
    """Whose studies may be written."""

    @property
    def sequence(self) -> int:
        """Number of the last write that is on the disk and searchable."""
        return self._writer.sequence

    @property
    def writable(self) -> bool:
        """False after a failure of the disk: reads go on, writes are refused until the corpus is opened again."""
        return self._writer.fault is None

    def upsert(self, studies: Sequence[Study], embeddings: Sequence[Embeddings]) -> int:
        """Store studies with embeddings that came from anywhere; return the sequence number. See :meth:`store`."""
        return max(self.store(studies, embeddings), default=self.sequence)

    def unchanged(self, studies: Sequence[Study], recipes: Sequence[str]) -> list[bool]:
        """Return which studies are stored just so, with embeddings that were made in this way: they need no others."""
        with self._database.reading() as connection:
            there = find_all(connection, [study.study_id for study in studies])
        secret = self._database.secret
        return [
            (found := there.get(study.study_id)) is not None
            and found.recipe == recipe
            and found.content_hash == content_hash(study, secret)
            for study, recipe in zip(studies, recipes, strict=True)
        ]

    def store(
        self,
        studies: Sequence[Study],
        embeddings: Sequence[Embeddings | None],
        *,
        recipes: Sequence[str | None] | None = None,
        etags: Sequence[str | None] | None = None,
        requests: Sequence[WriteRequest | None] | None = None,
        fingerprint: str | None = None,
    ) -> list[int]:
        """Store studies durably, all or none, replacing those whose id is there; return the sequence number of each.

        Of a repeated id the last counts. See :meth:`mmecg.search.CorpusStore.store`; ``fingerprint`` is that of the
        bundle that made the embeddings, default the corpus's of this moment.

        Raises
        ------
        QueryError
            An embedding is not of this corpus's kind, a list is not of one entry a study, or a request id is too long.
        AlreadyExistsError, ConflictError, PermissionDeniedError
            See :meth:`mmecg.search.CorpusStore.store`.
        ModelChangedError
            The corpus holds embeddings of another bundle.
        NotReadyError, OverloadedError
            See :meth:`mmecg_index.writer.Writer.write`.
        """
        fingerprint = fingerprint or self.fingerprint
        items = [
            Item(self._database.secret, fingerprint, *each)
            for each in zip(
                studies,
                _one_each(embeddings, studies, "embeddings"),
                _one_each(recipes, studies, "recipes"),
                _one_each(etags, studies, "etags"),
                _one_each(requests, studies, "requests"),
                strict=True,
            )
        ]
        check_embeddings(embeddings, self._database.dim)
        if not all(self.scope.allows(study.subject_id, study.site) for study in studies):
            raise outside()
        self._writer.check()
        with self._database.reading() as connection:
            there = find_all(connection, [study.study_id for study in studies])
            new = [item for item in items if not item.is_stored(connection, there.get(item.study.study_id))]
        Item.encode(new)
        numbers: list[int] = []

        def operation(connection: sqlite3.Connection) -> Written:
            if fingerprint != self.fingerprint:  # it changes between two transactions only
                raise ModelChangedError
            numbers.clear()
            return store_items(connection, items, self.scope, numbers)

        self._writer.write(entered(operation, self._database.secret))
        return numbers

    def answered(self, study_id: str, request: WriteRequest) -> int | None:
        """Return the number that a change of a study was answered with; see :meth:`mmecg.search.CorpusStore.answered`.

        Raises
        ------
        AlreadyExistsError
            The request id stands for something else.
        """
        asked = Answered(self._database.secret, request, change_asked_for(study_id, request.content or b""))
        with self._database.reading() as connection:
            return asked.find(connection)

    def delete(self, study_id: str, *, request: WriteRequest | None = None) -> int:
        """Delete a study; return the committed sequence number.

        Raises
        ------
        StudyNotFoundError
            It is not there, or outside the scope; but a request that deleted it returns the number it got then.
        """
        answered = request and Answered(self._database.secret, request, b"delete\0" + study_id.encode())

        def operation(connection: sqlite3.Connection) -> Written:
            if answered and (number := answered.find(connection)) is not None:
                return Written(number)
            found = find_all(connection, [study_id]).get(study_id)
            if found is None or not self.scope.allows(found.subject_id, found.site):
                raise not_found(study_id)
            written = replace(remove_rows(connection, [found.row]), touched=((found.subject_id, study_id),))
            if answered:
                remember(connection, {answered.key: answered.answer(written.sequence, found.subject_id)})
                trim_now_and_then(connection, written.sequence)
            return written

        return self._writer.write(entered(operation, self._database.secret), grows=False).sequence


def remove_rows(connection: sqlite3.Connection, rows: Sequence[int]) -> Written:
    """Delete the studies of rows, as one write."""
    sequence = next_sequence(connection)
    connection.executemany("DELETE FROM studies WHERE row = ?", [(row,) for row in rows])
    connection.executemany("INSERT INTO deletions VALUES (?, ?)", [(row, sequence) for row in rows])
    return Written(sequence, dict.fromkeys(rows))


def _one_each(values: Sequence[Value] | None, studies: Sequence[Study], what: str) -> Sequence[Value | None]:
    if values is None:
        return [None] * len(studies)
    if len(values) != len(studies):
        raise QueryError(f"got {len(studies)} studies and {len(values)} {what}, expected one each")
    return values
