"""Label tables: CSV, Parquet and PTB-XL; splits by patient and fold."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from mmecg.adaptation.label_table import hash_folds, ptb_xl_label_table, read_label_table, split_folds
from mmecg.errors import InvalidInputError

from .conftest import make_table

SUBJECTS = {"a": "p1", "b": "p1", "c": "p2"}


def write(path, **columns):
    table = pl.DataFrame(columns)
    table.write_parquet(path) if path.suffix == ".parquet" else table.write_csv(path)
    return path


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_table_of_ones_own(tmp_path, suffix):
    path = write(
        tmp_path / f"labels{suffix}",
        study_id=["c", "a", "elsewhere"],
        AFIB=[1, 0, 1],
        LBBB=[None, 1.0, 0.0],
        paced=[True, None, None],
    )
    table = read_label_table(path, SUBJECTS, {"a": 4, "c": 7})
    assert (table.study_ids, table.subject_ids) == (("c", "a"), ("p2", "p1"))
    assert table.folds.tolist() == [7, 4]
    assert table.labels == ("AFIB", "LBBB", "paced")
    np.testing.assert_array_equal(table.values, np.array([[1, np.nan, 1], [0, 1, np.nan]], np.float32))
    assert dict(table.groups) == {"labels": (0, 1, 2)}


def test_folds_of_the_table_win_and_a_hash_stands_in(tmp_path):
    path = write(tmp_path / "x.csv", study_id=["a", "b", "c"], AFIB=[1, 0, 1], fold=[1, 1, 2])
    assert read_label_table(path, SUBJECTS, {"a": 9}).folds.tolist() == [1, 1, 2]
    path = write(tmp_path / "y.csv", study_id=["a", "b", "c"], AFIB=[1, 0, 1])
    hashed = read_label_table(path, SUBJECTS, {}).folds
    assert hashed.tolist() == hash_folds(["p1", "p1", "p2"]).tolist()
    assert hashed[0] == hashed[1]
    assert set(hash_folds([str(number) for number in range(200)]).tolist()) == set(range(1, 11))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"ecg": ["a"], "AFIB": [1]}, "expected study_id"),
        ({"study_id": ["a"]}, "one column a label"),
        ({"study_id": ["a", "a"], "AFIB": [1, 0]}, "names a study twice"),
        ({"study_id": ["a"], "AFIB": [0.3]}, "'AFIB' holds '0.3', expected 0, 1 or nothing"),
        ({"study_id": ["z"], "AFIB": [1]}, "none of the 1 study_id"),
        ({"study_id": ["a"], "AFIB": [1], "fold": [None]}, "column fold"),
    ],
)
def test_tables_that_cannot_be_used_are_refused(tmp_path, columns, message):
    with pytest.raises(InvalidInputError, match=message):
        read_label_table(write(tmp_path / "x.csv", **columns), SUBJECTS, {})


def test_a_file_that_is_no_table_is_refused(tmp_path):
    (tmp_path / "x.parquet").write_text("no")
    with pytest.raises(InvalidInputError, match=r"x\.parquet cannot be read"):
        read_label_table(tmp_path / "x.parquet", SUBJECTS, {})


def test_ptb_xl_has_superclasses_and_statements(tmp_path):
    (tmp_path / "scp_statements.csv").write_text(
        ",description,diagnostic,form,rhythm,diagnostic_class,diagnostic_subclass\n"
        "NORM,normal,1,,,NORM,NORM\nIMI,inferior,1,,,MI,IMI\nSR,sinus,,,1,,\n"
    )
    (tmp_path / "ptbxl_database.csv").write_text(
        "ecg_id,patient_id,scp_codes,report,strat_fold,filename_lr\n"
        "1,11.0,\"{'NORM': 100.0, 'SR': 0.0}\",x,1,a\n2,12.0,{'IMI': 50.0},x,2,b\n3,12.0,{'SR': 0.0},x,2,c\n"
    )
    table = ptb_xl_label_table(tmp_path)
    assert table.labels[:2] == ("superclass/NORM", "superclass/MI")
    assert table.labels[5:] == ("all/NORM", "all/IMI", "all/SR")
    assert (table.subject_ids, table.folds.tolist()) == (("11", "12", "12"), [1, 2, 2])
    np.testing.assert_array_equal(table.values[:, 5:], [[1, 0, 1], [0, 1, 0], [0, 0, 1]])
    np.testing.assert_array_equal(table.values[:2, :2], [[1, 0], [0, 1]])
    assert np.isnan(table.values[2, :5]).all()


def test_a_split_keeps_patients_and_later_folds_apart():
    table = make_table(np.zeros((400, 2)), [1 + (row // 2) % 5 for row in range(400)])
    split = split_folds(table, 4)
    assert set(table.folds[split.fit]) == {1, 2}
    assert (set(table.folds[split.choose]), set(table.folds[split.test])) == ({3}, {4})
    patients = [{table.subject_ids[row] for row in rows} for rows in (split.fit, split.choose, split.test)]
    assert not patients[0] & patients[1] | patients[0] & patients[2] | patients[1] & patients[2]


def test_a_fraction_is_of_patients_and_nested():
    table = make_table(np.zeros((400, 2)), [1 + (row // 2) % 4 for row in range(400)])
    small, large, other = (
        split_folds(table, 4, fraction=share, seed=seed) for share, seed in ((0.1, 0), (0.5, 0), (0.1, 1))
    )
    assert (len(small.fit), len(large.fit)) == (20, 100)
    assert set(small.fit) < set(large.fit)
    assert set(small.fit) != set(other.fit)
    assert len(small.choose) == len(split_folds(table, 4).choose)


def test_impossible_splits_are_refused():
    table = make_table(np.zeros((40, 2)), [1 + (row // 2) % 4 for row in range(40)])
    for fold, message in ((2, "to fit on"), (6, r"to choose on \(5\)"), (5, r"to evaluate \(5\)")):
        with pytest.raises(InvalidInputError, match=message):
            split_folds(table, fold)
    with pytest.raises(InvalidInputError, match="fraction is 0"):
        split_folds(table, 4, fraction=0)
    with pytest.raises(InvalidInputError, match="split by subject"):
        split_folds(make_table(np.zeros((8, 2)), [1, 2, 3, 4, 1, 2, 3, 4]), 4)


def test_a_selection_of_labels_keeps_its_groups():
    table = make_table([[1, 0, 1]], [1], labels=("a", "b", "c"), groups={"x": (0, 1), "y": (2,)})
    part = table.with_labels(["b", "a"])
    assert (part.values.tolist(), dict(part.groups)) == ([[0, 1]], {"x": (1, 0)})
    with pytest.raises(InvalidInputError, match="'d' is not in the table"):
        table.with_labels(["d"])
