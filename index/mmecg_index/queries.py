"""What a corpus answers from its database alone: studies by id, by subject, page by page, and their embeddings.

Each method is one statement, or a few, over the connections of ``_database``. So a corpus that is seen through a scope
(:mod:`mmecg_index.scope`) answers with the same methods, through connections that see less.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mmecg.errors import QueryError, StudyNotFoundError, SubjectNotFoundError
from mmecg.search import MAX_PAGE_SIZE, Embeddings, Filter
from mmecg.study import Study
from mmecg_index import database
from mmecg_index.codec import check_study, content_hash, decode_study, decode_vector
from mmecg_index.paging import parse_token, render_token
from mmecg_index.passing import PassingRows
from mmecg_index.witness import Answer, confirmed, lists_all
from mmecg_index.writer import Writer


class StudyQueries:
    """The reads of a corpus, or of a part of it. Safe to call from many threads."""

    _database: database.Database
    _writer: Writer

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the bundle whose embeddings it holds."""
        return self._database.fingerprint

    @property
    def readable(self) -> bool:
        """False once its database was found damaged: nothing is answered from it any more."""
        return not self._database.is_damaged

    def get(self, study_ids: Sequence[str], *, with_signal: bool = True) -> list[Study]:
        """Return studies in the order asked for; without ``with_signal`` their ``ecg`` is None.

        Raises
        ------
        StudyNotFoundError
            One is not there.
        IndexFormatError
            What is stored is damaged.
        """
        return [study for study, *_ in self._stored(study_ids, with_signal=with_signal)]

    def tagged(self, study_ids: Sequence[str], *, with_signal: bool = True) -> list[tuple[Study, str]]:
        """Return what :meth:`get` does, each study with the tag that changes whenever its content does."""
        found = []
        for study, content, _ in self._stored(study_ids, with_signal=with_signal):
            if content is None:  # written by a release that kept none
                ((whole, content, _),) = self._stored([study.study_id], with_signal=True)
                content = content or content_hash(whole, self._database.secret)
                study = whole if with_signal else replace(whole, ecg=None)
            found.append((study, content.hex()))
        return found

    def list_studies(
        self, *, subject_id: str | None = None, page_size: int = 100, page_token: str = ""
    ) -> tuple[list[str], str]:
        """Return study ids in the order they were first stored, or those of a subject oldest first.

        Studies that are added or deleted between two pages neither repeat nor hide others.

        Returns
        -------
        list of str
        str
            Token of the next page; empty on the last.

        Raises
        ------
        QueryError
            ``page_size`` is not 1 to 1000, or the token belongs to another list.
        SubjectNotFoundError
            The subject has no study.
        """
        if not 1 <= page_size <= MAX_PAGE_SIZE:
            raise QueryError(f"page_size is {page_size}, expected 1 to {MAX_PAGE_SIZE}", field="page_size")
        secret = self._database.secret
        after = parse_token(secret, page_token, subject_id)
        found = (
            self._page(after[0] if after else -1, page_size + 1)
            if subject_id is None
            else self._page_of(subject_id, after or ("", ""), page_size + 1)
        )
        token = render_token(secret, subject_id, found[page_size - 1][1:]) if len(found) > page_size else ""
        return [study_id for study_id, *_ in found[:page_size]], token

    def earlier(
        self, subject_id: str, before: datetime, *, limit: int, exclude: Collection[str] = ()
    ) -> tuple[list[str], int]:
        """Return a subject's last studies strictly before a time, latest first, and how many there are without a limit.

        Raises ``SubjectNotFoundError``. Excluded ids are not counted, nor studies without a time.
        """
        sort_time = database.sort_time(before)
        return self._of_subject(
            subject_id, lambda connection: database.select_earlier(connection, subject_id, sort_time, limit, exclude)
        )

    def embeddings(self, rows: NDArray[np.int64], *, fingerprint: str | None = None) -> list[Embeddings]:
        """Return the embeddings of rows, by default of the corpus's bundle; nothing for a row that is not there."""
        wanted, space = rows.tolist(), fingerprint or self.fingerprint
        found: dict[int, dict[str, NDArray[np.float32]]] = {row: {} for row in wanted}
        with self._database.reading() as connection:
            query = "SELECT row, modality, fingerprint, vector, crc FROM embeddings"
            for row, modality, made_by, data, crc in database.select_in(connection, query, "row", wanted):
                if made_by == space:
                    found[row][modality] = decode_vector(row, modality, made_by, data, crc)
        return [found[row] for row in wanted]

    def rows(self, study_ids: Sequence[str]) -> NDArray[np.int64]:
        """Return the rows of studies. Raises ``StudyNotFoundError``."""
        rows = dict(self._select("SELECT study_id, row FROM studies", study_ids))
        return np.array([rows[study_id] for study_id in study_ids], np.int64)

    def subjects_of(self, study_ids: Sequence[str]) -> dict[str, str]:
        """Return the subject of each study that is there."""
        with self._database.reading() as connection:
            query = "SELECT study_id, subject_id FROM studies"
            return dict(database.select_in(connection, query, "study_id", study_ids))

    def _stored(self, study_ids: Sequence[str], *, with_signal: bool) -> list[tuple[Study, bytes | None, int]]:
        """Return studies with their content hash and the number of the write that stored them."""
        signal = "signal" if with_signal else "NULL"
        query = f"SELECT study_id, crc, content_hash, sequence, subject_id, document, {signal} FROM studies"  # noqa: S608
        stored: dict[str, tuple[Any, ...]] = {}
        for study_id, crc, *content in self._select(query, study_ids):
            check_study(study_id, content[2], content[3], crc)
            stored[study_id] = tuple(content)
        return [(decode_study(one, *stored[one][2:]), *stored[one][:2]) for one in study_ids]

    def study_ids(self, rows: NDArray[np.int64]) -> list[str | None]:
        """Return the id of each row; None for a row that is not there."""
        with self._database.reading() as connection:
            found = dict(database.select_in(connection, "SELECT row, study_id FROM studies", "row", rows.tolist()))
        return [found.get(row) for row in rows.tolist()]

    def count(self, where: Filter | None = None) -> int:
        """Return how many studies pass a filter."""
        rest, excluded = self._split(where)
        return len(self._current().of(rest, excluded))

    def _select(self, query: str, study_ids: Sequence[str]) -> list[tuple[Any, ...]]:
        """Return what a query, whose first column is the study id, says of studies that must all be there."""

        def ask() -> tuple[list[tuple[Any, ...]], str | None]:
            with self._database.reading() as connection:
                found = list(database.select_in(connection, query, "study_id", study_ids))
            there = {study_id for study_id, *_ in found}
            return found, next((study_id for study_id in study_ids if study_id not in there), None)

        def fits(answer: tuple[list[tuple[Any, ...]], str | None]) -> bool:
            return answer[1] is None or not (self.metadata()["study_id"] == answer[1]).any()

        found, missing = confirmed(ask, fits, self._database, self._writer)
        if missing is not None:
            raise not_found(missing)
        return found

    def _page(self, after: int, limit: int) -> list[tuple[str, int]]:
        """Return the ids and rows that follow a row."""

        def ask() -> list[tuple[str, int]]:
            with self._database.reading() as connection:
                query = "SELECT study_id, row FROM studies WHERE row > ? ORDER BY row LIMIT ?"
                return connection.execute(query, (after, limit)).fetchall()

        return confirmed(
            ask,
            lambda answer: lists_all([row for _, row in answer], self.metadata(), after, limit),
            self._database,
            self._writer,
        )

    def _page_of(self, subject_id: str, after: Sequence[str], limit: int) -> list[tuple[str, str, str]]:
        """Return the ids and sort keys of a subject that follow a sort key."""
        query = (
            "SELECT study_id, sort_time, study_id FROM studies WHERE subject_id = ? "
            "AND (sort_time, study_id) > (?, ?) ORDER BY sort_time, study_id LIMIT ?"
        )
        return self._of_subject(
            subject_id, lambda connection: connection.execute(query, (subject_id, *after, limit)).fetchall()
        )

    def _of_subject(self, subject_id: str, read: Callable[[sqlite3.Connection], Answer]) -> Answer:
        """Return what is read of a subject that must be there, none of whose studies is left out."""

        def ask() -> tuple[int, Answer]:
            with self._database.reading() as connection:
                return database.count_of(connection, subject_id), read(connection)

        def fits(found: tuple[int, Answer]) -> bool:
            return found[0] >= int((self.metadata()["subject_id"] == subject_id).sum())

        count, answer = confirmed(ask, fits, self._database, self._writer)
        if not count:
            raise SubjectNotFoundError(f"subject {subject_id!r} has no study in the corpus")
        return answer

    def metadata(self) -> pl.DataFrame:
        """Return the metadata table (:data:`mmecg.search.METADATA_SCHEMA`), ascending by row; an immutable snapshot."""
        raise NotImplementedError

    def _current(self) -> PassingRows:
        """Return filters over the metadata as it is now."""
        raise NotImplementedError

    def _split(self, where: Filter | None) -> tuple[Filter, NDArray[np.int64]]:
        """Return a filter without whom it excludes, and their rows."""
        where = where or Filter()
        excluded = self._rows_of(where.exclude_subject_ids, where.exclude_study_ids)
        return replace(where, exclude_subject_ids=frozenset(), exclude_study_ids=frozenset()), excluded

    def _rows_of(self, subject_ids: frozenset[str], study_ids: frozenset[str]) -> NDArray[np.int64]:
        """Return the rows of subjects and of studies; who is not there is passed over."""
        with self._database.reading() as connection:
            found = [
                row
                for column, values in (("subject_id", subject_ids), ("study_id", study_ids))
                for value in values
                for (row,) in connection.execute(f"SELECT row FROM studies WHERE {column} = ?", (value,))  # noqa: S608
            ]
        return np.array(found, np.int64)


def not_found(study_id: str) -> StudyNotFoundError:
    """Return the error; the same whether a study is nowhere or outside the scope."""
    return StudyNotFoundError(f"study {study_id!r} is not in the corpus; list the studies it holds")
