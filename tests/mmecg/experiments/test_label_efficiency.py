import numpy as np

from mmecg.experiments import label_efficiency
from mmecg.experiments.label_efficiency import DRAWS, _draws


def test_draws_are_of_patients_among_those_fitted_on(bench):
    fit, subjects = bench.split.fit, bench.recordings.subjects
    draws = _draws(bench, 0.25)
    assert len(draws) == DRAWS
    assert len({tuple(rows.tolist()) for rows in draws}) > 1
    for rows in draws:
        assert np.isin(rows, fit).all()
        assert len(rows) == len(fit) / 4
        assert len(set(subjects[rows])) == len(rows) / 2  # both recordings of each patient


def test_the_curve_has_every_share(bench, monkeypatch):
    monkeypatch.setattr(label_efficiency, "SHARES", (0.2, 0.5, 1.0))
    monkeypatch.setattr(label_efficiency, "DRAWS", 1)
    outcome = label_efficiency.run(bench)
    rows = {row.key: row for row in outcome.rows}
    assert set(outcome.headline) <= set(rows)
    assert [rows[f"toy/superclass/{share}"].extra["recordings"] for share in ("0.2", "0.5", "1")] == [12, 32, 64]
    assert rows["toy/superclass/last_doubling"].value == np.float64(
        rows["toy/superclass/1"].value - rows["toy/superclass/0.5"].value
    )
