"""A corpus seen through a scope: for whoever holds the view, nothing outside of it is there.

The restriction lies below the queries, not after them. Every connection that a view reads from has a temporary view
``studies`` (and ``embeddings``) in front of the table of that name, which SQLite finds first; so each statement of a
read, whatever it joins, counts or pages through, sees the rows inside and no others, and a statement that is written
tomorrow does too. A vector search gets the rows inside as those that pass. A write is checked in its own transaction.
"""

from __future__ import annotations

import queue
import sqlite3
import threading
from collections import OrderedDict
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mmecg.embedding import MODALITIES
from mmecg.search import CorpusStats, Filter, IndexResult, Scope, Target
from mmecg_index.database import Database
from mmecg_index.passing import PassingRows
from mmecg_index.space import SpaceView
from mmecg_index.writes import StudyWrites

if TYPE_CHECKING:
    from mmecg_index.corpus import Corpus

MAX_VIEWS = 64
"""Scopes whose views are kept; that of one more is made anew when it is asked for."""

_MAX_IDLE = 2
"""Connections that a view keeps: scopes may be many, and file handles are not."""


class ScopedDatabase(Database):
    """The connections of a database that read, limited to a scope; there is none that writes.

    Parameters
    ----------
    database : Database
    scope : Scope
    """

    def __init__(self, database: Database, scope: Scope) -> None:
        # Not the constructor of Database, which opens the file to write.
        self._database = database
        self._scope = scope
        self.path = database.path
        self._closed = False
        self._idle: queue.LifoQueue[sqlite3.Connection] = queue.LifoQueue(_MAX_IDLE)

    def __getattr__(self, name: str) -> Any:
        """Return what is not about connections: fingerprint, dim, settings."""
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._database, name)

    def close(self) -> None:
        """Close every connection that is idle; one in use is closed when it is given back."""
        self._closed = True
        with suppress(queue.Empty):
            while True:
                self._idle.get_nowait().close()

    def _open_reader(self) -> sqlite3.Connection:
        connection = super()._open_reader()
        try:
            connection.execute("PRAGMA query_only = OFF")  # for what is temporary
            connection.execute("PRAGMA temp_store = MEMORY")
            connection.executescript(_limits(self._scope))
            for table, values in (("scope_site", self._scope.sites), ("scope_subject", self._scope.subject_ids)):
                if values is not None:
                    connection.executemany(f"INSERT INTO temp.{table} VALUES (?)", [(value,) for value in values])  # noqa: S608
            connection.execute("PRAGMA query_only = ON")
        except BaseException:
            connection.close()
            raise
        return connection

    def _give_back(self, connection: sqlite3.Connection) -> None:
        if not self._closed:
            with suppress(queue.Full):
                self._idle.put_nowait(connection)
                return
        connection.close()

    def check_open(self) -> None:
        """Raise ``NotReadyError`` if the corpus is closed."""
        self._database.check_open()


class ScopedCorpus(StudyWrites):
    """A :class:`~mmecg.search.CorpusStore` that holds what is inside a scope; made by ``Corpus.within``.

    Parameters
    ----------
    corpus : Corpus
    scope : Scope
    """

    def __init__(self, corpus: Corpus, scope: Scope) -> None:
        self.scope = scope
        self._corpus = corpus
        self._database = ScopedDatabase(corpus._database, scope)
        self._writer = corpus._writer
        self._lock = threading.Lock()
        self._passing = PassingRows(pl.DataFrame())
        self._whole: pl.DataFrame | None = None

    def metadata(self) -> pl.DataFrame:
        """Return the metadata of what is inside; the same object until something changes."""
        return self._current().table

    def search(
        self,
        queries: NDArray[np.float32],
        top_k: int,
        *,
        target: Target = "ecg",
        where: Filter | None = None,
        fingerprint: str | None = None,
    ) -> IndexResult:
        """Search what is inside, under a filter; see :meth:`mmecg_index.corpus.Corpus.search`."""
        index = self._corpus.index_of(target, fingerprint)
        rest, excluded = self._split(where)
        current = self._current()
        found = index.search(queries, top_k, rows=current.of(rest, excluded))
        inside = current.table["row"].to_numpy()
        total = sum(len(block.positions(inside)) for block in index.state.blocks)
        return replace(found, plan=replace(found.plan, rows_total=total))

    def stats(self) -> CorpusStats:
        """Return what is inside; the sequence number is that of the corpus."""
        table = self.metadata()
        return CorpusStats(
            studies=len(table),
            subjects=table["subject_id"].n_unique(),
            embeddings={modality: self._count_embeddings(modality) for modality in MODALITIES},
            fingerprint=self.fingerprint,
            sequence=self.sequence,
        )

    def within(self, scope: Scope) -> ScopedCorpus:
        """Return the view of what is inside both scopes."""
        return self._corpus.within(self.scope.and_within(scope))

    def in_space(self, fingerprint: str) -> SpaceView:
        """Return a view for those who work with the bundle of this fingerprint; see :class:`SpaceView`."""
        return SpaceView(self, fingerprint)

    def close(self) -> None:
        """Close the connections of the view; the corpus stays open."""
        self._database.close()

    def _current(self) -> PassingRows:
        whole = self._corpus.metadata()
        with self._lock:
            if self._whole is not whole:
                self._passing = PassingRows(whole.filter(_inside(self.scope)))
                self._whole = whole
            return self._passing

    def _count_embeddings(self, modality: str) -> int:
        with self._database.reading() as connection:
            found = connection.execute(
                "SELECT count(*) FROM embeddings WHERE modality = ? AND fingerprint = ?", (modality, self.fingerprint)
            )
            return int(found.fetchone()[0])


class Views:
    """The views of a corpus that are in use, one a scope. Safe to ask from many threads.

    Parameters
    ----------
    corpus : Corpus
    """

    def __init__(self, corpus: Corpus) -> None:
        self._corpus = corpus
        self._lock = threading.Lock()
        self._views: OrderedDict[Scope, ScopedCorpus] = OrderedDict()

    def of(self, scope: Scope) -> ScopedCorpus:
        """Return the view of a scope."""
        with self._lock:
            view = self._views.get(scope)
            if view is None:
                self._views[scope] = view = ScopedCorpus(self._corpus, scope)
            self._views.move_to_end(scope)
            while len(self._views) > MAX_VIEWS:
                self._views.popitem(last=False)[1].close()
            return view

    def close(self) -> None:
        """Close every view."""
        with self._lock:
            for view in self._views.values():
                view.close()
            self._views.clear()


def _limits(scope: Scope) -> str:
    """Return the statements that put views with a condition in front of the tables."""
    conditions = []
    tables = ""
    for column, table, values in (
        ("site", "scope_site", scope.sites),
        ("subject_id", "scope_subject", scope.subject_ids),
    ):
        if values is not None:
            tables += f"CREATE TEMP TABLE {table} (value TEXT PRIMARY KEY) STRICT, WITHOUT ROWID;"
            conditions.append(f"{column} IN (SELECT value FROM temp.{table})")  # noqa: S608
    inside = " AND ".join(conditions) or "TRUE"
    return f"""
        {tables}
        CREATE TEMP VIEW studies AS SELECT * FROM main.studies WHERE {inside};
        CREATE TEMP VIEW embeddings AS SELECT * FROM main.embeddings AS one WHERE EXISTS (
            SELECT 1 FROM main.studies WHERE main.studies.row = one.row AND {inside});
    """  # noqa: S608


def _inside(scope: Scope) -> pl.Expr:
    """Return the scope as a condition on the metadata table."""
    where = Filter(sites=scope.sites, subject_ids=scope.subject_ids)
    return pl.all_horizontal(pl.lit(True), *where.conditions()).fill_null(False)
