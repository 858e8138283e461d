from mmecg.experiments import transfer
from mmecg.experiments.training import Recipe


def test_every_share_stands_beside_fresh_weights_that_were_trained_alike(bench, monkeypatch):
    monkeypatch.setattr(transfer, "STEPS", {0.25: 2, 1.0: 12})
    monkeypatch.setattr(transfer, "RECIPE", Recipe(batch=16))
    outcome = transfer.run(bench)
    rows = {row.key: row for row in outcome.rows}
    assert set(outcome.headline) <= set(rows)
    assert [rows[f"toy/superclass/{share}"].extra["recordings"] for share in ("0.25", "1")] == [16, 64]
    assert rows["toy/superclass/1"].baselines["random_encoder"] > 0.6  # it was trained, too: the amplitude tells LVH
    assert {"AFIB", "superclass", "all"} == set(outcome.tables["curve"]["group"])
