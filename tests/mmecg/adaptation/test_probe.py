"""The linear probe: reads what is there, beats chance, is reproducible, and says what the encoder saw."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from mmecg.adaptation.backbone import load_backbone, small_backbone
from mmecg.adaptation.examples import array_examples
from mmecg.adaptation.incomplete import label_loss
from mmecg.adaptation.linear import fit_linear
from mmecg.adaptation.probe import ENCODER, RANDOM, ProbeConfig, probe, render_scores
from mmecg.assets import DEFAULT_BUNDLE
from mmecg.errors import InvalidInputError
from mmecg.evaluation.results import save_evaluation

from .conftest import make_table


def test_a_trained_encoder_beats_the_untrained_one_and_chance(examples, tmp_path):
    result = probe(load_backbone(DEFAULT_BUNDLE), examples, ProbeConfig(4, resamples=200))
    score, random = (result.scores.value("rhythm", name) for name in (ENCODER, RANDOM))
    assert score.value > 0.97
    assert score.low > 0.6
    assert score.value >= random.value
    run = result.evaluation.run
    assert run["records"] == {"fit": 80, "choose": 40, "test": 40}
    assert run["fit_folds"] == [1, 2]
    save_evaluation(
        result.evaluation, tmp_path / "out", render=lambda done: render_scores("Probe", result.scores, done.run)
    )
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["linear_probe/rhythm/auroc"]["value"] == pytest.approx(score.value, abs=1e-6)
    assert "| rhythm | random encoder |" in (tmp_path / "out" / "report.md").read_text("utf-8")


def test_a_probe_is_reproducible_and_needs_no_second_random_row(examples):
    runs = [probe(small_backbone(1), examples, ProbeConfig(4, 0.5, resamples=20, seed=2)) for _ in range(2)]
    assert runs[0].evaluation.metrics() == runs[1].evaluation.metrics()
    assert {score.system for score in runs[0].scores.scores} == {RANDOM, "prevalence"}


def test_labels_that_say_nothing_give_chance(examples):
    rng = np.random.default_rng(0)
    values = (rng.random(examples.table.values.shape) < 0.5).astype(np.float32)
    shuffled = examples.with_table(examples.table.with_values(values))
    score = probe(small_backbone(), shuffled, ProbeConfig(4, resamples=50)).scores.value("rhythm", RANDOM)
    assert 0.25 < score.value < 0.75


def test_the_note_names_what_the_encoder_saw(examples):
    named = replace(examples, data="PTB-XL")
    run = probe(load_backbone(DEFAULT_BUNDLE), named, ProbeConfig(4, 0.2, resamples=10)).evaluation.run
    assert "figures on PTB-XL are not figures on unseen patients" in run["notes"][0]


def test_priors_without_use_are_refused(examples):
    for config, message in (
        (ProbeConfig(4, prior={"fast": 0.2}), "known labels need none"),
        (ProbeConfig(4, incomplete="pu", prior={"slow": 0.2}), "'slow' is given"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            probe(small_backbone(), examples, config)


def test_the_penalty_is_chosen_for_each_group():
    rng = np.random.default_rng(0)
    features = rng.standard_normal((600, 40)).astype(np.float32)
    clear = features[:, 0] > 0
    noisy = features[:, 1] + 1.5 * rng.standard_normal(600) > 0
    values = np.stack([clear, noisy], axis=1).astype(np.float32)
    head = fit_linear(
        features[:80],
        values[:80],
        label_loss("known", values[:80]),
        (features[80:], values[80:]),
        {"clear": (0,), "noisy": (1,)},
    )
    assert head.penalty[0] < head.penalty[1]
    logits = head.logits(features)
    assert logits.shape == (600, 2)
    assert ((logits[80:, 0] > 0) == clear[80:]).mean() > 0.85


def test_arrays_stand_for_recordings():
    table = make_table([[1, 0]], [1])
    examples = array_examples(np.full((1, 12, 1000), 500, np.int16), table)
    assert examples.ecgs[0].signal[3, 7] == np.float32(0.5)
    with pytest.raises(InvalidInputError, match="2 signals and 1 rows"):
        array_examples(np.zeros((2, 12, 1000), np.int16), table)
