"""What SQLite leaves of a table's rows in the unused part of its pages, looked for in the raw file.

``secure_delete`` overwrites every row that is deleted and every page that is given back, but when rows are moved
between neighbouring pages, a page may keep copies of what it held between its list of cells and its first cell. That is
rare (one page in tens of thousands of writes), so that it pays to look before the whole database is written anew. Only
pages of tables hold more than ids; the indexes that hold ids are built anew by each erasure.

A page is taken for one of a table by its first byte, 13 (https://www.sqlite.org/fileformat2.html, section 1.6). The
other pages begin with the number of a page, or zero: no number begins with that byte in a file below 800 GB, and beyond
it a page may be taken for one of a table, and for one with leftovers, at worst.

``python -m mmecg_index.leftovers FILE`` prints how many pages hold something. It needs NumPy only, and may read beside
those that write: what stands in an unused part stays where it is until it is overwritten.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmecg_index.aside import step_aside

LEFTOVERS = __name__
"""Module that a process of its own runs."""

_TABLE_LEAF = 13
_HEADER_BYTES = 8
_PAGES = 1024
_RUN = 4
_CONTROL = 0x10
"""What is left of lists of cells and of free places is numbers of two bytes below a page's size: one of each two is at
most this. So four bytes above it are content: text is, and of 16 bytes of a vector or a signal some four are."""


def count_leftovers(file: Path) -> int:
    """Return how many pages of tables hold content in their unused part."""
    with file.open("rb") as stream:
        size = int.from_bytes(stream.read(18)[16:], "big")
        size = 65536 if size == 1 else size
        stream.seek(size)  # the first page holds the schema
        count = 0
        while block := stream.read(_PAGES * size):
            pages = np.frombuffer(block[: len(block) // size * size], np.uint8).reshape(-1, size)
            count += _count(pages[pages[:, 0] == _TABLE_LEAF])
        return count


def _count(pages: NDArray[np.uint8]) -> int:
    """Return how many pages of tables, uint8, shape (pages, bytes), hold content in their unused part."""
    cells, content = (pages[:, at].astype(np.int64) << 8 | pages[:, at + 1] for at in (3, 5))
    start = _HEADER_BYTES + 2 * cells
    content[content == 0] = 65536
    is_page = (start < content) & (content <= pages.shape[1])
    is_full = start == content
    count = int(np.sum(~is_page & ~is_full))
    pages, start, content = pages[is_page], start[is_page], content[is_page]
    if len(pages):
        first = np.arange(len(pages)) * pages.shape[1]
        bounds = np.stack([first + start, first + content], axis=1).reshape(-1)
        bounds = bounds[:-1] if bounds[-1] == pages.size else bounds
        highest = np.maximum.reduceat(pages.reshape(-1), bounds)[::2]
        for at in np.flatnonzero(highest > _CONTROL):
            count += _has_run(pages[at, start[at] : content[at]] > _CONTROL)
    return count


def _has_run(marked: NDArray[np.bool_]) -> bool:
    ends = len(marked) - _RUN + 1
    return ends > 0 and bool(np.logical_and.reduce([marked[place : place + ends] for place in range(_RUN)]).any())


def _main() -> None:
    step_aside()
    print(count_leftovers(Path(sys.argv[1])))


if __name__ == "__main__":
    _main()
