"""The two label tasks of PTB-XL, by the rules of the official benchmark.

A statement that a record lists is positive whatever its likelihood (0 means *unknown*, not absent); one that it does
not list counts as negative, although it is only unlabelled. A superclass is positive if a listed statement belongs to
it. Records without any superclass are left out of the superclass task.
Rules as in Strodthoff et al., IEEE JBHI 25(5), 2021.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mmecg.datasets.ptb_xl import SUPERCLASSES, label_matrix, superclass_matrix

TASKS: tuple[str, ...] = ("superclass", "all")


@dataclass(frozen=True)
class LabelTask:
    """One multi-label task over the records of a cohort.

    Attributes
    ----------
    name : {"superclass", "all"}
    labels : tuple of str
    values : bool, shape (n, labels)
    included : bool, shape (n,)
        Records that take part in the task.
    """

    name: str
    labels: tuple[str, ...]
    values: NDArray[np.bool_]
    included: NDArray[np.bool_]


def label_tasks(table: pl.DataFrame, statements: pl.DataFrame) -> dict[str, LabelTask]:
    """Return both tasks by name.

    Parameters
    ----------
    table : polars.DataFrame
        Of :func:`mmecg.datasets.ptb_xl.read_ptb_xl_table`.
    statements : polars.DataFrame
        Of :func:`mmecg.datasets.ptb_xl.read_scp_statements`; its rows are the labels of the task ``all``.
    """
    superclass = superclass_matrix(table, statements)
    labels = tuple(statements["label"].to_list())
    everyone = np.ones(table.height, np.bool_)
    return {
        "superclass": LabelTask("superclass", SUPERCLASSES, superclass, np.asarray(superclass.any(axis=1))),
        "all": LabelTask("all", labels, label_matrix(table, labels), everyone),
    }
