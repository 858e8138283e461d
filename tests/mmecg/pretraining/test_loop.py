"""Pretraining learns on synthetic ECGs, resumes exactly, and writes a backbone that loads again."""

import json
import os
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import distributed, multiprocessing

from mmecg.adaptation.backbone import Backbone, load_backbone
from mmecg.config import parse_config
from mmecg.datasets.synthetic import synthetic_ecg
from mmecg.encoders.ecg_fm import EcgFmConfig
from mmecg.errors import AlreadyExistsError, BundleError, ConfigError
from mmecg.pretraining.config import PretrainingConfig, SegmentConfig, load_pretraining_config
from mmecg.pretraining.data import PairSampler
from mmecg.pretraining.loop import _Run, pretrain, run, start_backbone
from mmecg.pretraining.objective import Objective
from mmecg.pretraining.pretext import ConvolutionalPretext, TransformerPretext
from mmecg.pretraining.recordings import Recordings, prepare_signals
from mmecg.training.distributed import average_gradients, initialise

CPU = torch.device("cpu")
ECG_FM = {
    "convolutions": [[16, 2, 2]] * 4, "width": 32, "layers": 2, "heads": 4, "feed_forward": 64,
    "position_kernel": 16, "position_groups": 4,
}  # fmt: skip


def new_run(backbone: Backbone, config: PretrainingConfig, data: Recordings) -> tuple[_Run, PairSampler]:
    torch.manual_seed(config.seed)
    samples = round(config.segments.seconds * backbone.sampling_rate_hz)
    objective = Objective(backbone, config, samples=samples)
    sampler = PairSampler(data, config, samples=samples, steps=objective.steps, sampling_rate_hz=100)
    return _Run(objective, config, steps=sampler.batches * config.epochs), sampler


def log_of(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_losses_fall_within_a_few_steps(backbone, config, train):
    config = replace(config, epochs=10, rlm=0.0)
    state, sampler = new_run(backbone, config, train)
    losses = [state.epoch(sampler, epoch, CPU) for epoch in range(10)]
    assert losses[-1]["segments"] < 0.8 * losses[0]["segments"]
    assert losses[-1]["masked"] < losses[0]["masked"]
    assert losses[-1]["segments_top_1"] > losses[0]["segments_top_1"]
    assert losses[-1]["masked_accuracy"] > 1.5 / 11  # chance is one in eleven


@pytest.mark.parametrize(
    ("changes", "terms"),
    [
        ({"masked": False}, {"segments", "segments_top_1"}),
        ({"cmsc": "off"}, {"masked", "diversity", "penalty", "masked_accuracy", "codes"}),
        ({"cmsc": "patient", "augment": True, "masked": False}, {"segments", "segments_top_1"}),
    ],
)
def test_each_recipe_is_a_switch(backbone, config, train, changes, terms):
    state, sampler = new_run(backbone, replace(config, **changes), train)
    before = {name: value.clone() for name, value in state.average.state_dict().items()}
    assert set(state.epoch(sampler, 0, CPU)) == terms
    assert any(not torch.equal(before[name], value) for name, value in state.average.named_parameters())


def test_projection_is_trained_and_thrown_away(backbone, config, train, held_out, tmp_path):
    config = replace(config, epochs=1, masked=False, segments=SegmentConfig(seconds=4.0, projection=8))
    state, sampler = new_run(backbone, config, train)
    state.epoch(sampler, 0, CPU)
    assert all(parameter.grad.abs().sum() > 0 for parameter in state.objective.projection.parameters())
    run(config, backbone, train, held_out, tmp_path, quiet=True)
    assert load_backbone(tmp_path / "backbone").feature_dim == backbone.feature_dim


def test_masked_prediction_reaches_every_part(backbone, config, train):
    state, sampler = new_run(backbone, replace(config, cmsc="off"), train)
    state.epoch(sampler, 0, CPU)
    silent = {name for name, parameter in state.objective.named_parameters() if not (parameter.grad.abs().sum() > 0)}
    assert silent == set()
    assert isinstance(state.objective.pretext, ConvolutionalPretext)


def test_hidden_steps_are_hidden(backbone, config, train):
    """What the context network says of a hidden step does not depend on what was there."""
    state, sampler = new_run(backbone, config, train)
    pretext = state.objective.pretext.eval()
    batch = next(sampler.epoch(0))
    tokens = torch.randn(len(batch.mask), batch.mask.shape[1], config.masking.context_width)
    other = torch.where(batch.mask[..., None], torch.randn_like(tokens), tokens)
    torch.testing.assert_close(pretext.hide(tokens, batch.mask), pretext.hide(other, batch.mask))
    assert not torch.equal(tokens, other)


def test_interrupted_run_ends_as_the_uninterrupted_one(backbone, config, train, held_out, tmp_path):
    start = {name: value.clone() for name, value in backbone.state_dict().items()}
    whole = run(config, backbone, train, held_out, tmp_path / "whole", quiet=True)

    backbone.load_state_dict(start)
    (tmp_path / "parts").mkdir()
    state, sampler = new_run(backbone, config, train)
    torch.manual_seed(config.seed * 10_000_000)
    state.epoch(sampler, 0, CPU)
    state.save(tmp_path / "parts", 1)
    backbone.load_state_dict(start)
    parts = run(config, backbone, train, held_out, tmp_path / "parts", quiet=True)

    assert parts.fingerprint == whole.fingerprint
    assert parts.after == pytest.approx(whole.after)
    assert [record["epoch"] for record in log_of(tmp_path / "whole")] == [0, 1, 2]
    assert [record["epoch"] for record in log_of(tmp_path / "parts")] == [2]


def test_checkpoint_of_another_recipe_is_refused(backbone, config, train, held_out, tmp_path):
    new_run(backbone, config, train)[0].save(tmp_path, 1)
    with pytest.raises(BundleError, match="another recipe"):
        run(replace(config, rlm=0.25), backbone, train, held_out, tmp_path, quiet=True)


def test_a_folder_is_pretrained_on_and_the_backbone_loads(folder, config, tmp_path):
    config = replace(config, probe_every=1, epochs=1, batch_size=12, masked=False)
    done = pretrain(config, folder, tmp_path, quiet=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["backbone", "curves.png", "log.jsonl"]
    loaded = load_backbone(done.path)
    assert loaded.fingerprint == done.fingerprint
    assert loaded.features([synthetic_ecg()]).shape == (1, loaded.feature_dim)
    assert [seen.folds for seen in loaded.config.seen] == [(1, 2)]
    assert "pretraining" in loaded.contamination("PTB-XL", fold=9)
    for measures in (done.before, done.after):
        assert set(measures) == {"val_segments", "val_segments_top_1", "probe_auroc"}
        assert 0 <= measures["probe_auroc"] <= 1
    with pytest.raises(AlreadyExistsError, match="another --out"):
        pretrain(config, folder, tmp_path, quiet=True)


def test_training_goes_on_from_a_backbone(backbone, config, train, held_out, tmp_path):
    first = run(replace(config, epochs=1), backbone, train, held_out, tmp_path / "first", quiet=True)
    again = replace(config, encoder=str(first.path))
    held = load_backbone(first.path).state_dict()
    assert all(torch.equal(held[name], value) for name, value in start_backbone(again).state_dict().items())
    fresh = start_backbone(replace(again, fresh=True))
    assert fresh.config.hyperparameters == backbone.config.hyperparameters
    assert not all(torch.equal(held[name], value) for name, value in fresh.named_parameters())


def test_ecg_fm_is_pretrained_as_its_authors_do(config, held_out, tmp_path):
    shape = parse_config(EcgFmConfig, ECG_FM)
    config = replace(config, encoder="ecg-fm", ecg_fm=shape, epochs=1, segments=SegmentConfig())
    backbone = start_backbone(config)
    signals = np.rint(held_out.signals.astype(np.float32) * 1000).astype(np.int16)
    data = replace(held_out, signals=prepare_signals(backbone, signals, 100))
    assert data.signals.shape == (12, 12, 5000)
    state, sampler = new_run(backbone, config, data)
    assert isinstance(state.objective.pretext, TransformerPretext)
    assert state.objective.steps == 156
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    found = state.epoch(sampler, 0, CPU)
    assert np.isfinite(list(found.values())).all()
    assert not torch.equal(before["network.encoder.layers.0.fc1.weight"], backbone.network.encoder.layers[0].fc1.weight)
    done = run(config, backbone, data, data, tmp_path, quiet=True)
    loaded = load_backbone(done.path)
    assert loaded.name == "ecg-fm"
    assert loaded.features([synthetic_ecg()]).shape == (1, 32)


def test_too_few_steps_to_mask_are_refused(backbone, config):
    with pytest.raises(ConfigError, match="take longer segments"):
        Objective(backbone, config, samples=64)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"folds": (1, 9)}, "fold 9 is kept for evaluation"),
        ({"choose_fold": 10}, "fold 10 is kept for evaluation"),
        ({"folds": (7, 8)}, "do not hold the fold to choose on"),
        ({"masked": False, "cmsc": "off"}, "nothing is learnt"),
        ({"rlm": 1.5}, "rlm is 1.5"),
        ({"batch_size": 1}, "at least 1 and 2"),
        ({"masking": {"probabilty": 0.5}}, "did you mean masking.probability"),
        ({"masking": {"dim": 9}}, "not divisible"),
        ({"segments": {"temperature": 0.001}}, "at least 0.01"),
        ({"cmsc": "patients"}, "expected one of"),
        ({"epocs": 3}, "did you mean epochs"),
    ],
)
def test_bad_recipe_is_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        load_pretraining_config(**given)


def test_test_folds_are_used_if_asked_for_in_words():
    assert load_pretraining_config(folds=(1, 9), include_test_folds=True).folds == (1, 9)


def test_recipe_is_read_from_toml_and_arguments_win(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text('cmsc = "patient"\nepochs = 3\n[masking]\nlength = 4\n[ecg_fm]\nlayers = 2\n')
    config = load_pretraining_config(path, epochs=5, rlm=None)
    assert (config.cmsc, config.epochs, config.rlm) == ("patient", 5, 0.5)
    assert (config.masking.length, config.ecg_fm.layers) == (4, 2)
    assert parse_config(PretrainingConfig, asdict(config)) == config


def test_the_recipe_of_the_readme_is_one(tmp_path):
    readme = Path(start_backbone.__code__.co_filename).with_name("README.md").read_text(encoding="utf-8")
    path = tmp_path / "recipe.toml"
    path.write_text(readme.partition("```toml\n")[2].partition("```")[0])
    config = load_pretraining_config(path)
    assert (config.masked, config.segments.projection, config.rlm) == (False, 128, 0.5)


def work(rank: int, port: int, folder: str, config: PretrainingConfig, backbone: Backbone, train: Recordings) -> None:
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": "0"
    }  # fmt: skip
    _, world, _ = initialise()
    gradients = gradients_of(backbone, config, train, rank=rank, world=world)
    torch.save(gradients, Path(folder) / f"{rank}.pt")
    distributed.destroy_process_group()


def gradients_of(backbone, config, train, *, rank=0, world=1):
    torch.manual_seed(0)
    objective = Objective(backbone, config, samples=400).train()
    for module in objective.modules():  # statistics of a batch are each process's own
        if isinstance(module, torch.nn.BatchNorm1d):
            module.eval()
    sampler = PairSampler(
        train, config, samples=400, steps=objective.steps, sampling_rate_hz=100, rank=rank, world_size=world
    )
    objective(next(sampler.epoch(0)))[0].backward()
    average_gradients(list(objective.parameters()))
    return {name: parameter.grad for name, parameter in objective.named_parameters()}


@pytest.mark.slow
def test_two_processes_give_the_gradient_of_one(backbone, config, train, tmp_path):
    import socket

    config = replace(config, masked=False)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = int(server.getsockname()[1])
    multiprocessing.spawn(work, (port, str(tmp_path), config, backbone, train), nprocs=2)
    expected = gradients_of(backbone, config, train)
    for rank in (0, 1):
        for name, gradient in torch.load(tmp_path / f"{rank}.pt", weights_only=True).items():
            torch.testing.assert_close(gradient, expected[name], msg=name)


@pytest.mark.slow
def test_torchrun_writes_one_backbone(folder, tmp_path):
    import subprocess
    import sys

    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "mmecg"]
    recipe = ["--folds", "1-2", "--choose-fold", "3", "--epochs", "1", "--batch-size", "8", "--quiet"]
    done = subprocess.run(
        [*command, "pretrain", "--data", str(folder), "--out", str(tmp_path / "out"), *recipe],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert load_backbone(tmp_path / "out" / "backbone").config.seen[0].folds == (1, 2)
    assert [record["epoch"] for record in log_of(tmp_path / "out")] == [0, 1]
