"""A published encoder as an object and as a directory: preprocessing and weights in one fingerprint."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from mmecg.ecg import LEADS, Ecg
from mmecg.encoders.ecg_fm import SPEC, build
from mmecg.encoders.published import (
    CONFIG,
    WEIGHTS,
    PublishedEncoder,
    configure,
    load_encoder,
    reduce_logits,
    write_encoder,
)
from mmecg.errors import AlreadyExistsError, BundleError, InvalidInputError, SignalError

TOY = {"width": 32, "layers": 2, "heads": 4, "feed_forward": 64, "convolutions": [[16, 2, 2]] * 4, "labels": 17}


def ecg(seconds=10.0, rate=500.0, seed=0, leads=LEADS):
    signal = np.random.default_rng(seed).standard_normal((len(leads), int(seconds * rate)))
    return Ecg.from_array(signal, sampling_rate_hz=rate, leads=leads)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return build(TOY)


@pytest.fixture
def written(tmp_path, network):
    path = tmp_path / "encoder"
    write_encoder(path, configure(SPEC, TOY, source="toy"), network.state_dict())
    return path


def test_what_was_saved_gives_the_same_features(tmp_path, network, written):
    encoder = load_encoder(written)
    direct = PublishedEncoder(network, configure(SPEC, TOY), "x")
    np.testing.assert_array_equal(encoder.features([ecg()]), direct.features([ecg()]))
    again = tmp_path / "again"
    assert encoder.save(again) == encoder.fingerprint == load_encoder(again).fingerprint
    assert encoder.config.source == "toy"
    assert len(encoder.labels) == 17


def test_recordings_of_any_rate_length_and_leads_go_together(written):
    encoder = load_encoder(written)
    mixed = [ecg(), ecg(31, 250, 1), ecg(2, 1000, 2), ecg(10, 500, 3, ("II", "V2"))]
    features = encoder.features(mixed)
    assert (features.shape, features.dtype) == ((4, 32), np.float32)
    alone = np.concatenate([encoder.features([item]) for item in mixed])
    np.testing.assert_allclose(features, alone, atol=1e-5)
    assert [len(item.features) for item in encoder.segments(mixed)] == [2, 6, 1, 2]
    assert encoder.features([]).shape == (0, 768)
    assert encoder.logits([]).shape == (0, 17)


@pytest.mark.parametrize("reduction", ["mean", "max", "min"])
def test_features_of_segments_are_reduced_as_configured(network, reduction):
    encoder = PublishedEncoder(network, configure(SPEC, TOY, feature_reduction=reduction), "x")
    (segments,) = encoder.segments([ecg(15)])
    np.testing.assert_array_equal(encoder.features([ecg(15)])[0], getattr(segments.features, reduction)(0))


def test_probabilities_of_segments_are_reduced_by_label(written):
    encoder = load_encoder(written)
    (segments,) = encoder.segments([ecg(15)])
    by_segment = 1 / (1 + np.exp(-segments.logits.astype(np.float64)))
    expected = [getattr(by_segment[:, label.index], label.reduction)() for label in encoder.labels]
    np.testing.assert_allclose(encoder.probabilities([ecg(15)])[0], expected, atol=1e-6)
    np.testing.assert_allclose(encoder.probabilities([ecg(15)], "max")[0], by_segment.max(0), atol=1e-6)


def test_logits_of_segments_do_not_saturate():
    logits = np.array([[60.0, -60.0, 1.0], [60.0, -60.0, -1.0]], np.float32)
    np.testing.assert_allclose(reduce_logits(logits, np.array(["mean"] * 3)), [60, -60, 0], atol=1e-5)
    np.testing.assert_array_equal(reduce_logits(logits, np.array(["max", "min", "min"])), [60, -60, -1])
    single = np.array([[3.25, -40.5, 0.0]], np.float32)
    np.testing.assert_array_equal(reduce_logits(single, np.array(["mean"] * 3)), single[0])


def test_the_fingerprint_covers_weights_and_preprocessing_but_not_where_they_came_from(tmp_path, network):
    state = network.state_dict()
    other = {name: tensor + (name == "layer_norm.bias") for name, tensor in state.items()}
    names = [
        write_encoder(tmp_path / "a", configure(SPEC, TOY), state),
        write_encoder(tmp_path / "b", configure(SPEC, TOY, source="elsewhere"), state),
        write_encoder(tmp_path / "c", configure(SPEC, TOY, variant="notebook"), state),
        write_encoder(tmp_path / "d", configure(SPEC, TOY, feature_reduction="max"), state),
        write_encoder(tmp_path / "e", configure(SPEC, TOY), other),
    ]
    assert names[0] == names[1]
    assert len(set(names)) == 4


def test_preprocessing_is_read_from_the_directory_not_from_the_code(tmp_path, network):
    config = configure(SPEC, TOY)
    changed = replace(config, preprocessing=replace(config.preprocessing, epsilon=0.5))
    write_encoder(tmp_path / "a", changed, network.state_dict())
    assert load_encoder(tmp_path / "a").config == changed


def test_a_network_without_classifier_has_no_logits(network):
    options = TOY | {"labels": 0}
    encoder = PublishedEncoder(build(options), configure(SPEC, options), "x")
    with pytest.raises(InvalidInputError, match="have no classifier"):
        encoder.logits([ecg()])


def test_bfloat16_changes_features_little(written):
    exact, fast = (load_encoder(written, precision=precision) for precision in ("float32", "bfloat16"))
    features, close = exact.features([ecg()])[0], fast.features([ecg()])[0]
    assert close.dtype == np.float32
    assert features @ close / np.linalg.norm(features) / np.linalg.norm(close) > 0.999


def change(path, **values):
    content = json.loads((path / CONFIG).read_text("utf-8")) | values
    (path / CONFIG).write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda path: (path / CONFIG).unlink(), "has no config.json"),
        (lambda path: (path / CONFIG).write_text("{", encoding="utf-8"), "damaged"),
        (lambda path: (path / CONFIG).write_text("[]", encoding="utf-8"), "damaged"),
        (lambda path: change(path, format_version=2), "format version 2, expected 1"),
        (lambda path: change(path, colour="red"), "not usable"),
        (lambda path: change(path, preprocessing={"speed": 1}), "not usable .*preprocessing.speed"),
        (lambda path: change(path, variant="notebook"), "do not fit the fingerprint"),
        (lambda path: (path / WEIGHTS).unlink(), "lacks model.safetensors"),
        (lambda path: (path / WEIGHTS).write_bytes((path / WEIGHTS).read_bytes()[:-8]), "do not fit the fingerprint"),
    ],
)
def test_damage_is_found(written, damage, told):
    damage(written)
    with pytest.raises(BundleError, match=told):
        load_encoder(written)


def test_weights_of_another_shape_are_found(tmp_path, network):
    write_encoder(tmp_path / "a", configure(SPEC, TOY | {"layers": 3}), network.state_dict())
    with pytest.raises(BundleError, match="does not fit"):
        load_encoder(tmp_path / "a")


def test_wrong_calls_are_refused(written):
    with pytest.raises(InvalidInputError, match="no preprocessing 'quick', expected one of published, notebook"):
        configure(SPEC, TOY, variant="quick")
    with pytest.raises(InvalidInputError, match="reduction is 'sum'"):
        configure(SPEC, TOY, feature_reduction="sum")
    with pytest.raises(AlreadyExistsError, match="exists already"):
        write_encoder(written, configure(SPEC, TOY), {})
    encoder = load_encoder(written)
    with pytest.raises(InvalidInputError, match="reduction is 'sum'"):
        encoder.logits([ecg()], "sum")
    one_lead = replace(encoder.config, preprocessing=replace(encoder.config.preprocessing, leads=("I",)))
    with pytest.raises(SignalError, match="at least one of I"):
        PublishedEncoder(encoder.network, one_lead, "x").features([ecg(leads=("V1",))])


def test_bfloat16_is_close_and_leaves_the_float32_weights_alone(network):
    exact = PublishedEncoder(network, configure(SPEC, TOY), "x")
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    rough = exact.prepared(precision="bfloat16", device="cpu")
    a, b = (encoder.features([ecg()])[0] for encoder in (exact, rough))
    assert a @ b > 0.999 * np.linalg.norm(a) * np.linalg.norm(b)
    assert not np.array_equal(a, b)
    for name, tensor in network.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, before[name])


def test_a_random_encoder_is_of_the_same_shape_and_reproducible(network):
    encoder = PublishedEncoder(network, configure(SPEC, TOY), "x")
    first, again, other = (encoder.random_like(seed=seed).features([ecg()]) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert first.shape == encoder.features([ecg()]).shape
    assert not np.allclose(first, other)
