"""A backbone: the same features as what it was loaded from, directories that load again, fresh weights, fewer leads."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from mmecg.adaptation.backbone import (
    CONFIG,
    WEIGHTS,
    load_backbone,
    save_backbone,
    small_backbone,
    with_leads,
)
from mmecg.assets import DEFAULT_BUNDLE
from mmecg.bundle import load_bundle
from mmecg.datasets.synthetic import synthetic_ecg
from mmecg.encoders.ecg_fm import SPEC as ECG_FM
from mmecg.encoders.ecg_founder import SPEC as ECG_FOUNDER
from mmecg.encoders.published import configure, load_encoder, write_encoder
from mmecg.encoders.registry import SeenData
from mmecg.errors import AlreadyExistsError, BundleError, InvalidInputError, SignalError

TOYS = {
    "ecg-fm": (
        ECG_FM,
        {"width": 32, "layers": 1, "heads": 4, "feed_forward": 64, "convolutions": [[16, 2, 2]] * 4, "labels": 17},
    ),
    "ecg-founder": (ECG_FOUNDER, {"stem_width": 16, "widths": [16, 32], "blocks": [1, 1], "classes": 150}),
}


@pytest.fixture(params=TOYS)
def published(request, tmp_path):
    """The directory of a published encoder of toy size."""
    spec, shape = TOYS[request.param]
    torch.manual_seed(0)
    write_encoder(tmp_path / "encoder", configure(spec, shape), spec.build(shape).state_dict())
    return tmp_path / "encoder"


def recordings():
    return [
        synthetic_ecg(seed=1),
        synthetic_ecg(seed=2, duration_s=23, sampling_rate_hz=250),
        synthetic_ecg(seed=3, duration_s=4),
        synthetic_ecg(seed=4, sampling_rate_hz=500).select_leads(["I", "V2"]),
    ]


def test_a_bundle_gives_its_own_features():
    backbone = load_backbone(DEFAULT_BUNDLE)
    bundle = load_bundle(DEFAULT_BUNDLE, precision="float32")
    expected = bundle.encoder.ecg_features(recordings())
    np.testing.assert_allclose(backbone.features(recordings(), batch=2), expected, atol=2e-5)
    assert backbone.fingerprint == bundle.fingerprint
    assert (backbone.name, backbone.sampling_rate_hz, backbone.samples) == ("mmecg", 100, 1000)
    assert backbone.feature_dim == expected.shape[1]


def test_a_published_encoder_gives_its_own_features(published):
    backbone, encoder = load_backbone(published), load_encoder(published)
    np.testing.assert_allclose(backbone.features(recordings()), encoder.features(recordings()), atol=1e-5)
    assert (backbone.fingerprint, backbone.name) == (encoder.fingerprint, encoder.spec.name)
    assert (backbone.samples, backbone.sampling_rate_hz) == (encoder.spec.samples, 500)
    held = {name for name, parameter in backbone.named_parameters() if not parameter.requires_grad}
    assert held == {f"network.{head}.{part}" for head in ("proj", "dense") for part in ("weight", "bias")} & {
        name for name, _ in backbone.named_parameters()
    }


def test_pooling_the_maps_is_the_forward_pass(published):
    for backbone in (load_backbone(published), small_backbone()):
        signal = torch.from_numpy(np.concatenate(backbone.prepare([recordings()[0]])))
        maps = backbone.maps(signal)
        assert maps.shape[0] == len(signal)
        assert maps.shape[2] > 1
        assert torch.equal(backbone.pool(maps), backbone(signal))


def test_what_is_saved_loads_again(tmp_path, published):
    for name, backbone in (("a", load_backbone(published)), ("b", small_backbone(3)), ("c", load_backbone(published))):
        with torch.no_grad():
            next(backbone.parameters()).add_(0.01)
        seen = SeenData("PTB-XL", "finetuning", "mmecg finetune", (1, 2))
        fingerprint = save_backbone(tmp_path / name, backbone, seen=[seen], training={"seed": 1})
        again = load_backbone(tmp_path / name)
        assert again.fingerprint == fingerprint != backbone.fingerprint
        np.testing.assert_array_equal(again.features(recordings()), backbone.features(recordings()))
        assert again.config == replace(backbone.config, seen=(*backbone.config.seen, seen))
        assert not again.training
    assert load_backbone(tmp_path / "a").fingerprint == load_backbone(tmp_path / "c").fingerprint
    with pytest.raises(AlreadyExistsError):
        save_backbone(tmp_path / "a", backbone)


def test_fresh_weights_have_the_same_shape_and_depend_on_the_seed(published):
    trained, first, second = (load_backbone(published, random=seed > 0, seed=seed) for seed in (0, 1, 2))
    again = load_backbone(published, random=True, seed=1)
    ecgs = recordings()
    np.testing.assert_array_equal(first.features(ecgs), again.features(ecgs))
    assert not np.allclose(first.features(ecgs), second.features(ecgs))
    assert first.feature_dim == trained.feature_dim
    assert first.contamination("MIMIC-IV-ECG") == ""


def test_features_do_not_depend_on_the_batch_and_leave_the_mode():
    backbone = small_backbone().train()
    alone = np.concatenate([backbone.features([ecg]) for ecg in recordings()])
    np.testing.assert_allclose(backbone.features(recordings(), batch=2), alone, atol=1e-5)
    assert backbone.training
    assert backbone.features([]).shape == (0, backbone.feature_dim)


def test_contamination_names_the_folds():
    backbone = load_backbone(DEFAULT_BUNDLE)
    folds = backbone.config.seen[0].folds
    assert "not figures on unseen patients" in backbone.contamination("ptb_xl", fold=folds[0])
    assert "not fold 11" in backbone.contamination("PTB-XL", fold=11)
    assert backbone.contamination("CODE-15") == ""


def test_a_network_of_one_lead_starts_from_what_it_knows(tmp_path, published):
    for index, backbone in enumerate((load_backbone(published), small_backbone())):
        single = with_leads(backbone, ["I"])
        assert single.prepare([recordings()[0]])[0].shape[1:] == (1, backbone.samples)
        assert single.untrained == backbone.untrained
        if not backbone.untrained:  # so that a checkpoint of another encoder is refused
            others = with_leads(backbone, ["II"]), with_leads(with_leads(backbone, ["I", "II"]), ["I"])
            assert len({backbone.fingerprint, single.fingerprint, *(other.fingerprint for other in others)}) == 4
        save_backbone(tmp_path / str(index), single)
        np.testing.assert_array_equal(
            load_backbone(tmp_path / str(index)).features(recordings()), single.features(recordings())
        )
        ecg = recordings()[0]
        np.testing.assert_array_equal(single.features([ecg]), single.features([ecg.select_leads(["I"])]))
        with pytest.raises(SignalError, match="at least one of I"):
            single.features([ecg.select_leads(["V1"])])
        with pytest.raises(InvalidInputError, match="expected some of I"):
            with_leads(single, ["II"])


def test_damaged_directories_are_refused(tmp_path):
    root = tmp_path / "x"
    with pytest.raises(BundleError, match=r"neither MANIFEST\.json nor config\.json"):
        load_backbone(root)
    save_backbone(root, small_backbone())
    config = json.loads((root / CONFIG).read_text("utf-8"))
    for change, message in (
        ({"format_version": 9}, "format version 9"),
        ({"feature_reduction": "max"}, "do not fit the fingerprint"),
        ({"preprocessing": {"rate": 1}}, "not usable"),
        ({"seen": None}, "not usable"),
    ):
        (root / CONFIG).write_text(json.dumps(config | change), "utf-8")
        with pytest.raises(BundleError, match=message):
            load_backbone(root)
    (root / CONFIG).write_text("{", "utf-8")
    with pytest.raises(BundleError, match="damaged"):
        load_backbone(root)
    (root / CONFIG).write_text(json.dumps(config), "utf-8")
    (root / WEIGHTS).unlink()
    with pytest.raises(BundleError, match="lacks model"):
        load_backbone(root)
