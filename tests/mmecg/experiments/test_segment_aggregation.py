import numpy as np
import pytest

from mmecg.experiments import segment_aggregation
from mmecg.experiments.segment_aggregation import REDUCTIONS, WHOLE, _scores


def test_reductions_are_of_the_segments_of_one_recording(bench):
    scores = _scores(bench, bench.first, bench.recordings.truth(["all/AFIB"]))
    assert set(scores) == {WHOLE, *REDUCTIONS}
    assert all(values.shape == (len(bench.split.test), 1) for values in scores.values())
    assert (scores["max"] >= scores["mean"]).all()
    assert (scores["mean"] >= scores["min"]).all()
    np.testing.assert_allclose(scores["mean"], (scores["max"] + scores["min"]) / 2, atol=1e-6)  # two segments


def test_every_group_with_positives_has_rows(bench):
    outcome = segment_aggregation.run(bench)
    rows = {row.key: row for row in outcome.rows}
    assert rows["toy/throughout/mean"].extra["labels"] == ["all/AFIB", "all/SBRAD", "all/STACH"]
    assert "toy/intermittent/mean" not in rows  # no ectopic beat in the folder
    gap = rows["toy/throughout/max_over_mean"]
    assert gap.value == pytest.approx(rows["toy/throughout/max"].value - rows["toy/throughout/mean"].value)
    assert set(outcome.headline) <= set(rows)
