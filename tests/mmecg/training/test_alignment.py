"""Alignment of a published encoder: features once, towers untouched, the same seed the same projection."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from mmecg.adaptation.backbone import load_backbone, save_backbone, small_backbone
from mmecg.bundle import load_bundle
from mmecg.cli.align import load_tower
from mmecg.datasets.bulk import BulkReport
from mmecg.datasets.ptb_xl import PtbXlSignals
from mmecg.datasets.synthetic import synthetic_ecg
from mmecg.encoders import ecg_founder
from mmecg.encoders.published import PublishedEncoder, configure, write_encoder
from mmecg.errors import InvalidInputError
from mmecg.modeling.aligned_encoder import AlignedEncoder
from mmecg.modeling.joint_encoder import JointEncoder
from mmecg.training import alignment
from mmecg.training.alignment import align, compute_features, fit_projection
from mmecg.training.config import TrainingConfig
from mmecg.training.data import TrainingData

TOY = {"stem_width": 16, "widths": [16, 32], "blocks": [1, 1], "classes": 150}
CONFIG = TrainingConfig(folds=(1,), epochs=3, batch_size=16, extra_reports=6)
REPORTS = ["sinusrhythmus", "vorhofflimmern"]
STUDIES = 32


@pytest.fixture(scope="module")
def tower() -> PublishedEncoder:
    torch.manual_seed(0)
    return PublishedEncoder(ecg_founder.build(TOY), configure(ecg_founder.SPEC, TOY, variant="eval"), "toy")


@pytest.fixture(scope="module")
def base() -> JointEncoder:
    encoder = load_bundle(precision="float32").encoder
    assert isinstance(encoder, JointEncoder)
    return encoder


@pytest.fixture
def data() -> TrainingData:
    kind = np.arange(STUDIES) % 2
    return TrainingData(
        signals=np.zeros((0, 0, 0), np.int16),
        reports=[REPORTS[each] for each in kind],
        report_group=kind.astype(np.int64),
        labels=np.stack([kind == 0, kind == 1, *(np.zeros(STUDIES, bool),) * 5], axis=1),
        label_prompts=[("sinus rhythm",), ("atrial fibrillation",), *((name,) for name in "abcde")],
        words=np.zeros((STUDIES, 0), bool),
        vitals=torch.zeros(STUDIES, 20),
    )


def features() -> np.ndarray:
    """Return features that say the label, in large units, as those of a foreign network may be."""
    drawn = np.random.default_rng(0).normal(0, 30, (STUDIES, 24))
    drawn[:, 0] += 100 * (np.arange(STUDIES) % 2)
    return drawn.astype(np.float32)


def test_only_the_projection_is_trained_and_a_seed_names_it(tower, base: JointEncoder, data: TrainingData) -> None:
    text, vitals = ({k: v.clone() for k, v in m.state_dict().items()} for m in (base.text, base.vitals))
    first, again = (fit_projection(tower, base, data, features(), CONFIG, quiet=True) for _ in range(2))
    other = fit_projection(tower, base, data, features(), replace(CONFIG, seed=1), quiet=True)
    for name, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert not torch.equal(first.projection.linear.weight, other.projection.linear.weight)
    for before, *models in ((text, base.text, first.text), (vitals, base.vitals, first.vitals)):
        for model in models:
            assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in base.text.parameters())
    assert first.tower is tower


def test_text_finds_the_ecgs_that_it_describes(tower, base: JointEncoder, data: TrainingData) -> None:
    model = fit_projection(tower, base, data, features(), replace(CONFIG, epochs=30), quiet=True)
    assert isinstance(model, AlignedEncoder)
    scores = model.embed_features(features()) @ model.encode_text(["sinus rhythm", "atrial fibrillation"]).T
    found = scores.argmax(1) == np.arange(STUDIES) % 2
    assert found.mean() > 0.9


def test_features_are_computed_once(tower, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    signals = np.stack([np.rint(1000 * synthetic_ecg(seed=seed).signal) for seed in range(6)]).astype(np.int16)
    table = pl.DataFrame({"study_id": [str(row) for row in range(6)]})
    failures = pl.DataFrame(schema={"record": pl.String(), "reason": pl.String()})

    def read(folder: Path, part: pl.DataFrame, *, sampling_rate_hz: int, quiet: bool) -> PtbXlSignals:
        assert sampling_rate_hz == 100
        rows = [int(name) for name in part["study_id"]]
        return PtbXlSignals(signals[rows], part, BulkReport(len(rows), failures))

    monkeypatch.setattr(alignment, "read_ptb_xl_signals", read)
    monkeypatch.setattr(alignment, "CHUNK_RECORDS", 4)
    found, kept = compute_features(tower, tmp_path, table, tmp_path / "cache", quiet=True)
    assert found.shape == (6, 32)
    assert kept.equals(table)
    files = sorted((tmp_path / "cache").iterdir())
    assert len(files) == 2

    monkeypatch.setattr(PublishedEncoder, "features", lambda self, ecgs: pytest.fail("computed again"))
    again, _ = compute_features(tower, tmp_path, table, tmp_path / "cache", quiet=True)
    np.testing.assert_array_equal(again, found)

    monkeypatch.undo()
    monkeypatch.setattr(alignment, "read_ptb_xl_signals", read)
    monkeypatch.setattr(alignment, "CHUNK_RECORDS", 4)
    files[0].write_bytes(files[0].read_bytes()[:50])  # torn by a crash
    again, _ = compute_features(tower, tmp_path, table, tmp_path / "cache", quiet=True)
    np.testing.assert_array_equal(again, found)


def test_an_adapted_encoder_can_be_aligned_and_our_own_tower_not(tmp_path: Path, monkeypatch) -> None:
    spec = replace(ecg_founder.SPEC, build=lambda given: ecg_founder.build({**TOY, **given}))
    monkeypatch.setattr(ecg_founder, "SPEC", spec)
    torch.manual_seed(0)
    config = configure(spec, {"leads": 12}, variant="eval")
    write_encoder(tmp_path / "imported", config, spec.build({}).state_dict())
    backbone = load_backbone(tmp_path / "imported")
    with torch.no_grad():
        backbone.network.first_conv.conv.bias += 0.1
    save_backbone(tmp_path / "adapted", backbone)
    ecg = synthetic_ecg(seed=1)
    imported, seen = load_tower(tmp_path / "imported", precision="float32")
    adapted, seen_too = load_tower(tmp_path / "adapted", precision="float32")
    assert imported.fingerprint != adapted.fingerprint
    assert [item.name for item in seen] == [item.name for item in seen_too] == ["HEEDB"]
    np.testing.assert_allclose(adapted.features([ecg]), backbone.features([ecg]), atol=1e-5)
    assert not np.allclose(adapted.features([ecg]), imported.features([ecg]), atol=1e-3)
    save_backbone(tmp_path / "own", small_backbone())
    with pytest.raises(InvalidInputError, match="our own tower"):
        load_tower(tmp_path / "own", precision="float32")
    with pytest.raises(InvalidInputError, match="no text tower"):
        align(imported, load_bundle(tmp_path / "imported"), tmp_path, tmp_path / "out", cache=tmp_path / "cache")
