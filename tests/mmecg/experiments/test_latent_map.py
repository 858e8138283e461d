import sys

import numpy as np
import pytest

from mmecg.errors import InvalidInputError
from mmecg.experiments import latent_map
from mmecg.experiments.latent_map import place


@pytest.fixture
def no_umap(monkeypatch):
    """UMAP compiles for half a minute when it is loaded."""
    monkeypatch.setitem(sys.modules, "umap", None)


def test_like_features_lie_near_each_other(no_umap):
    rng = np.random.default_rng(0)
    group = np.repeat([0, 1], 30)
    features = (10 * group[:, None] + rng.normal(size=(60, 8))).astype(np.float32)
    method, places = place(features)
    assert method == "t-SNE"
    distance = np.linalg.norm(places[:, None] - places[None], axis=2)
    nearest = np.argsort(distance, axis=1)[:, 1:6]
    assert (group[nearest] == group[:, None]).mean() > 0.95


def test_device_and_site_stand_beside_what_diagnoses_tell(bench, no_umap, monkeypatch):
    monkeypatch.setattr(latent_map, "LEAST", 8)
    outcome = latent_map.run(bench)
    rows = {row.key: row for row in outcome.rows}
    assert set(outcome.headline) <= set(rows)
    site = rows["toy/site/accuracy"]
    assert site.extra["classes"] == ["0", "1"]
    assert site.baselines["prevalence"] == 0.5
    assert site.baselines["case_mix"] == 1.0  # in this folder the site is the parity of LVH
    assert outcome.tables["map"].height == len(bench.split.test)
    assert len(outcome.pictures["latent-map"].axes) == 3


def test_one_device_alone_is_refused(bench, no_umap):
    with pytest.raises(InvalidInputError, match="device has 0 values"):
        latent_map.run(bench)
