import pytest

from mmecg.errors import InvalidInputError
from mmecg.experiments import positive_unlabelled


def test_too_few_positives_are_refused(bench):
    with pytest.raises(InvalidInputError, match="no statement keeps 30 positives"):
        positive_unlabelled.run(bench)


def test_every_method_stands_beside_naive_and_oracle(bench, monkeypatch):
    monkeypatch.setattr(positive_unlabelled, "HIDDEN", (0.05, 0.3))
    monkeypatch.setattr(positive_unlabelled, "MIN_MENTIONED", 14)
    outcome = positive_unlabelled.run(bench)
    rows = {row.key: row for row in outcome.rows}
    assert set(outcome.headline) <= set(rows)
    row = rows["toy/0.3/elkan_noto/f1"]
    assert set(row.baselines) == {"random_encoder", "prevalence", "naive", "oracle"}
    gap = rows["toy/0.3/elkan_noto/f1_over_naive"]
    assert gap.value == pytest.approx(row.value - row.baselines["naive"])
    assert 0.4 < rows["toy/0.05/naive/auroc"].value <= 1
