from __future__ import annotations

import polars as pl

from mmecg.evaluation.labels import label_tasks


def test_a_listed_statement_is_positive_even_at_likelihood_zero_and_records_without_superclass_are_left_out() -> None:
    statements = pl.DataFrame(
        {
            "label": ["NORM", "IMI", "AMI", "SR"],
            "superclass": ["NORM", "MI", "MI", None],
            "description": ["", "", "", ""],
        }
    )
    listed = [{"IMI": 0.0, "SR": 0.0}, {"SR": 100.0}, {"NORM": 80.0, "AMI": 15.0}, {"UNHEARD": 100.0}]
    table = pl.DataFrame(
        {"labels": [[{"label": name, "likelihood": value} for name, value in codes.items()] for codes in listed]}
    )
    tasks = label_tasks(table, statements)
    assert tasks["all"].values.astype(int).tolist() == [[0, 1, 0, 1], [0, 0, 0, 1], [1, 0, 1, 0], [0, 0, 0, 0]]
    assert tasks["all"].included.all()
    assert tasks["superclass"].values[:, :2].astype(int).tolist() == [[0, 1], [0, 0], [1, 1], [0, 0]]
    assert tasks["superclass"].included.tolist() == [True, False, True, False]
