"""Fine-tuning: every method learns, a run is reproducible and goes on where it stopped, and what is saved answers."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from mmecg.adaptation import finetune as module
from mmecg.adaptation.backbone import load_backbone, small_backbone
from mmecg.adaptation.classifier import CLASSIFIER, Classifier, fit_calibration, load_classifier, stack
from mmecg.adaptation.finetune import FinetuneConfig, finetune
from mmecg.datasets.synthetic import synthetic_ecg
from mmecg.encoders.ecg_fm import SPEC
from mmecg.encoders.published import configure, write_encoder
from mmecg.errors import AlreadyExistsError, BundleError, InvalidInputError

from .conftest import make_examples

QUICK = FinetuneConfig(4, epochs=2, batch_size=32, resamples=20)


@pytest.fixture(scope="module")
def quick():
    return make_examples(96, seconds=3.0)


@pytest.mark.parametrize("method", ["full", "lora", "attention", "linear"])
def test_every_method_learns_and_what_is_saved_answers(method, quick, tmp_path):
    backbone = small_backbone(1)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    result = finetune(backbone, quick, replace(QUICK, method=method), tmp_path / "out", quiet=True)
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    history = result.evaluation.run["history"]
    assert [item["epoch"] for item in history] == ([0] if method == "linear" else [0, 1, 2])
    best = history[result.evaluation.run["best_epoch"]]["choosing_auroc"]
    assert best == max(item["choosing_auroc"] for item in history) >= 0.8
    assert not (tmp_path / "out" / "checkpoint.safetensors").exists()

    loaded = load_classifier(tmp_path / "out")
    assert (loaded.labels, loaded.method) == (("fibrillation", "fast"), method)
    ecgs = quick.ecgs[:6]
    np.testing.assert_allclose(loaded.logits(ecgs), result.classifier.logits(ecgs), atol=1e-5)
    chances = loaded.probabilities(ecgs)
    assert ((chances > 0) & (chances < 1)).all()
    adapted = load_backbone(tmp_path / "out")
    assert adapted.fingerprint == loaded.fingerprint
    assert adapted.config.seen[-1].folds == (1, 2, 3)
    kept = np.allclose(adapted.features(ecgs), backbone.features(ecgs))
    assert kept == (method != "full" and (method != "lora" or result.evaluation.run["best_epoch"] == 0))
    if method != "linear":
        assert history[2]["loss"] < history[1]["loss"]


def test_a_run_is_reproducible_and_goes_on_where_it_stopped(quick, tmp_path, monkeypatch):
    config = replace(QUICK, method="lora", epochs=3, seed=5)
    whole = finetune(small_backbone(1), quick, config, tmp_path / "whole", quiet=True)
    again = finetune(small_backbone(1), quick, config, tmp_path / "again", quiet=True)
    assert again.evaluation.metrics() == whole.evaluation.metrics()
    assert load_backbone(tmp_path / "again").fingerprint == load_backbone(tmp_path / "whole").fingerprint

    save, calls = module.save_checkpoint, []

    def save_then_stop(*arguments, **named):
        save(*arguments, **named)
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(module, "save_checkpoint", save_then_stop)
    with pytest.raises(KeyboardInterrupt):
        finetune(small_backbone(1), quick, config, tmp_path / "stopped", quiet=True)
    with pytest.raises(BundleError, match="another recipe or encoder"):
        finetune(small_backbone(1), quick, replace(config, seed=6), tmp_path / "stopped", quiet=True)
    resumed = finetune(small_backbone(1), quick, config, tmp_path / "stopped", quiet=True)
    assert len(calls) == 3
    assert resumed.evaluation.run["history"] == whole.evaluation.run["history"]
    assert load_backbone(tmp_path / "stopped").fingerprint == load_backbone(tmp_path / "whole").fingerprint


def test_training_stops_when_the_choosing_fold_gets_no_better(quick, tmp_path):
    config = replace(QUICK, epochs=9, patience=2, learning_rate=1e-12)
    run = finetune(small_backbone(), quick, config, tmp_path / "out", quiet=True).evaluation.run
    assert run["epochs_done"] - run["best_epoch"] == 2
    assert run["epochs_done"] < 9


def test_a_published_encoder_with_several_segments(quick, tmp_path):
    shape = {"width": 16, "layers": 1, "heads": 2, "feed_forward": 32, "convolutions": [[8, 4, 4]] * 4}
    torch.manual_seed(0)
    write_encoder(tmp_path / "fm", configure(SPEC, shape), SPEC.build(shape).state_dict())
    few = quick.take(np.arange(48))
    config = replace(QUICK, method="lora", epochs=1, batch_size=12)
    result = finetune(load_backbone(tmp_path / "fm"), few, config, tmp_path / "out", quiet=True)
    long = synthetic_ecg(duration_s=12)
    classifier = load_classifier(tmp_path / "out")
    network, inputs = classifier.network, classifier.network.backbone.prepare([long])
    assert len(inputs[0]) == 2
    by_segment = network.backbone.features([long])
    expected = torch.from_numpy((by_segment - network.mean.numpy()) / network.scale.numpy())
    with torch.inference_mode():
        np.testing.assert_allclose(network.logits(inputs), network.head(expected).numpy(), atol=1e-4)
    assert {score.system for score in result.scores.scores} == {
        "lora", "linear probe of the encoder", "random encoder", "prevalence"
    }  # fmt: skip


def test_one_lead_with_turned_axes(quick, tmp_path):
    config = replace(QUICK, lead="I", axis_augmentation=True)
    result = finetune(small_backbone(), quick, config, tmp_path / "out", quiet=True)
    classifier = load_classifier(tmp_path / "out")
    ecg = quick.ecgs[0]
    assert classifier.network.backbone.leads == ("I",)
    np.testing.assert_array_equal(classifier.logits([ecg]), classifier.logits([ecg.select_leads(["I"])]))
    plain = finetune(small_backbone(), quick, replace(config, axis_augmentation=False), tmp_path / "plain", quiet=True)
    losses = [item.evaluation.run["history"][1]["loss"] for item in (result, plain)]
    assert losses[0] != losses[1]


def test_incomplete_labels_are_not_calibrated(quick, tmp_path):
    config = replace(QUICK, incomplete="pu", prior={"fibrillation": 0.5, "fast": 0.4}, epochs=1)
    result = finetune(small_backbone(), quick, config, tmp_path / "out", quiet=True)
    assert result.classifier.calibration is None
    assert load_classifier(tmp_path / "out").calibration is None
    history = result.evaluation.run["history"]
    assert max(item["choosing_auroc"] for item in history) > 0.8
    assert abs(history[1]["loss"]) < 10


def test_calibration_rests_on_what_is_known():
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((500, 3)) * 3
    truth = (rng.random((500, 3)) < 1 / (1 + np.exp(-logits / 3 + 1))).astype(np.float32)
    values = truth.copy()
    values[:200, 1], values[:, 2] = np.nan, np.nan
    found = fit_calibration(logits, values)
    calibrated = found.apply(logits)
    for label in (0, 1):
        chances = 1 / (1 + np.exp(-calibrated[:, label]))
        assert abs(chances.mean() - truth[:, label].mean()) < 0.06
    np.testing.assert_allclose(calibrated[:, 2], logits[:, 2], atol=1e-9)


def test_segments_of_a_recording_are_reduced_to_one():
    network = Classifier(small_backbone(), 2, attention=True, trains_backbone=False).eval()
    rng = np.random.default_rng(0)
    inputs = [rng.standard_normal((count, 12, 200)).astype(np.float32) for count in (1, 3)]
    with torch.inference_mode():
        together = network(*stack(inputs, [0, 1], torch.device("cpu")))
        alone = network(*stack(inputs, [1], torch.device("cpu")))
    torch.testing.assert_close(together[1:], alone, atol=1e-5, rtol=1e-4)


def test_what_cannot_be_is_refused(quick, tmp_path):
    for arguments, message in (
        ({"method": "magic"}, "expected one of full"),
        ({"epochs": -1}, "epochs is -1"),
        ({"axis_augmentation": True}, "say which"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            FinetuneConfig(4, **arguments)
    config = replace(QUICK, method="linear")
    finetune(small_backbone(), quick, config, tmp_path / "out", quiet=True)
    with pytest.raises(AlreadyExistsError):
        finetune(small_backbone(), quick, config, tmp_path / "out", quiet=True)
    content = json.loads((tmp_path / "out" / CLASSIFIER).read_text("utf-8"))
    (tmp_path / "out" / CLASSIFIER).write_text(json.dumps(content | {"fingerprint": "x"}), "utf-8")
    with pytest.raises(BundleError, match="belongs to another backbone"):
        load_classifier(tmp_path / "out")
    (tmp_path / "out" / CLASSIFIER).unlink()
    with pytest.raises(BundleError, match="no usable classifier"):
        load_classifier(tmp_path / "out")
