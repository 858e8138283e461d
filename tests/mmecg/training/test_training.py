"""Training on a small PTB-XL-layout folder: deterministic, resumable, and the bundle it writes loads again."""

import dataclasses
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from mmecg.errors import BundleError, ConfigError
from mmecg.modeling.dual_encoder import DualEncoder, DualEncoderConfig
from mmecg.modeling.ecg_encoder import EcgEncoderConfig
from mmecg.modeling.text_encoder import TextEncoder, build_text_encoder, build_vocabulary
from mmecg.training.augment import augment, random_crops, random_lead_masks
from mmecg.training.config import TrainingConfig, load_training_config
from mmecg.training.data import BatchSampler, TrainingData, training_prompts
from mmecg.training.loop import TrainingRun
from mmecg.training.objective import NeighbourLoss, Objective
from mmecg.training.progress import one_cycle

SMALL = DualEncoderConfig(ecg=EcgEncoderConfig(stem_width=16, widths=(16, 32), kernels=(5, 3), strides=(2, 2)))
CONFIG = TrainingConfig(
    folds=(1,), epochs=2, batch_size=8, extra_reports=6, text_width=16, text_hidden=16, model=SMALL, seed=3
)
REPORTS = ["sinusrhythmus normales ekg", "vorhofflimmern", "sinus rhythm. left bundle branch block.", ""]
LABELS = ["NORM", "AFIB", "CLBBB", "SR", "NORM superclass", "MI", "STTC", "CD", "HYP"]


@pytest.fixture
def data() -> TrainingData:
    rng = np.random.default_rng(0)
    kind = np.arange(32) % 4
    labels = np.zeros((32, len(LABELS)), bool)
    labels[np.arange(32), kind] = True
    labels[kind == 0, 4] = True
    return TrainingData(
        signals=rng.integers(-900, 900, (32, 12, 1000)).astype(np.int16),
        reports=[REPORTS[each] for each in kind],
        report_group=np.where(kind == 3, -1, kind).astype(np.int64),
        labels=labels,
        label_prompts=[("normal ecg",), ("atrial fibrillation", "af"), ("left bundle branch block",), ("sinus rhythm",)]
        + [(name.lower(),) for name in LABELS[4:]],
        words=rng.random((32, 10)) < 0.3,
        vitals=torch.randn(32, 20, generator=torch.Generator().manual_seed(0)),
    )


def new_run(data: TrainingData, config: TrainingConfig = CONFIG) -> tuple[TrainingRun, BatchSampler]:
    torch.manual_seed(config.seed)
    vocabulary = build_vocabulary(data.texts(), ["a", "b"])
    text = TextEncoder(build_text_encoder(vocabulary, width=config.text_width, hidden=config.text_hidden))
    prevalence = torch.from_numpy(data.labels.mean(0).astype(np.float32))
    objective = Objective(DualEncoder(config.model, text), config, label_prevalence=prevalence, words=10)
    sampler = BatchSampler(data, config, text.tokenize)
    return TrainingRun(objective, config, steps=sampler.steps * config.epochs), sampler


def run_epoch(run: TrainingRun, sampler: BatchSampler, epoch: int) -> dict[str, float]:
    torch.manual_seed(epoch)
    return run.epoch(sampler, epoch, torch.device("cpu"))


def weights(run: TrainingRun) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in run.average.state_dict().items()}


def test_loss_falls_on_what_can_be_learnt(data: TrainingData) -> None:
    # Make the signal say the label, so that every term has something to learn.
    signals = (data.signals // 8).copy()
    for row in range(32):
        signals[row, row % 4] += 800 * (np.arange(1000) % 50 < 5).astype(np.int16)
    config = dataclasses.replace(CONFIG, epochs=12, lead_mask_probability=0.0)
    run, sampler = new_run(dataclasses.replace(data, signals=signals), config)
    losses = [run_epoch(run, sampler, epoch) for epoch in range(12)]
    assert losses[-1]["statements"] < 0.8 * losses[0]["statements"]
    assert losses[-1]["prompts"] < 0.95 * losses[0]["prompts"]  # its floor is not zero: claims have several positives


def test_interrupted_run_ends_as_the_uninterrupted_one(data: TrainingData, tmp_path: Path) -> None:
    whole, sampler = new_run(data)
    for epoch in range(2):
        run_epoch(whole, sampler, epoch)

    first, sampler = new_run(data)
    run_epoch(first, sampler, 0)
    first.save(tmp_path, 1)
    second, sampler = new_run(data)
    assert second.resume(tmp_path) == 1
    run_epoch(second, sampler, 1)

    for name, expected in weights(whole).items():
        torch.testing.assert_close(weights(second)[name], expected, msg=name)


def test_checkpoint_of_another_recipe_is_refused(data: TrainingData, tmp_path: Path) -> None:
    run, _ = new_run(data)
    run.save(tmp_path, 1)
    other, _ = new_run(data, dataclasses.replace(CONFIG, learning_rate=1e-4))
    with pytest.raises(BundleError, match="another recipe"):
        other.resume(tmp_path)


def test_damaged_checkpoint_is_refused(data: TrainingData, tmp_path: Path) -> None:
    run, _ = new_run(data)
    run.save(tmp_path, 1)
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(BundleError, match="cannot be resumed"):
        run.resume(tmp_path)


def test_report_supervision_uses_no_label(data: TrainingData) -> None:
    config = dataclasses.replace(CONFIG, supervision="reports")
    results = []
    for labels in (data.labels, ~data.labels):
        run, sampler = new_run(dataclasses.replace(data, labels=labels), config)
        losses = run_epoch(run, sampler, 0)
        assert losses["statements"] == losses["prompts"] == losses["neighbours"] == 0
        results.append(weights(run))
    for name, expected in results[0].items():
        torch.testing.assert_close(results[1][name], expected, msg=name)


def test_batches_are_reproducible_and_claims_are_true(data: TrainingData) -> None:
    _, sampler = new_run(data)
    for batch, again in zip(sampler.epoch(1), sampler.epoch(1), strict=True):
        torch.testing.assert_close(batch.signal, again.signal)
        assert batch.prompt_tokens == again.prompt_tokens
        assert (batch.prompt_labels <= batch.labels).all()
        assert len(batch.extra_tokens) == len(batch.extra_log_count)
        own = {tuple(tokens) for tokens in batch.report_tokens}
        assert not own & {tuple(tokens) for tokens in batch.extra_tokens}


def test_ranks_share_a_batch_without_overlap(data: TrainingData) -> None:
    run, _ = new_run(data)
    tokenize = run.objective.model.text.tokenize
    shares = [next(BatchSampler(data, CONFIG, tokenize, rank=rank, world_size=2).epoch(0)) for rank in (0, 1)]
    whole = next(BatchSampler(data, CONFIG, tokenize).epoch(0))
    vitals = torch.cat([share.vitals for share in shares])
    assert len(vitals) == len(whole.vitals)
    torch.testing.assert_close(vitals.sort(0).values, whole.vitals.sort(0).values)


def test_last_prompt_stays_unseen() -> None:
    from mmecg.evaluation.prompts import load_prompts

    bank = load_prompts()
    statements = pl.DataFrame({"label": ["LVH"], "description": ["left ventricular hypertrophy"]})
    prompts = training_prompts(bank, statements)
    assert prompts[0] == bank.statement["LVH"][:-1]
    assert len(prompts) == 6


def test_neighbour_loss_prefers_shared_rare_labels() -> None:
    torch.manual_seed(0)
    loss = NeighbourLoss(torch.tensor([0.9, 0.01]), size=4)
    directions = torch.nn.functional.normalize(torch.randn(4, 256), dim=-1)
    memory_labels = torch.tensor([[1.0, 1.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    assert loss(directions, memory_labels) == 0  # the memory is empty
    loss.remember(directions, memory_labels)
    rare = torch.tensor([[1.0, 1.0]])
    near_rare, near_common = loss(directions[:1], rare), loss(directions[1:2], rare)
    assert near_rare < near_common


def test_crops_and_masks() -> None:
    rng = np.random.default_rng(0)
    signals = rng.integers(-2000, 2000, (5, 12, 1000)).astype(np.int16)
    crops = random_crops(signals, np.array([3, 1]), 250, rng)
    assert crops.shape == (2, 12, 250)
    windows = np.lib.stride_tricks.sliding_window_view(signals[3], 250, axis=1)
    assert (np.isclose(windows, crops[0][:, None] * 1000).all(axis=(0, 2))).sum() == 1
    assert augment(crops, 100, rng).dtype == np.float32
    masks = random_lead_masks(2000, 0.5, rng)
    kept = masks[:, :, 0].sum(1)
    assert kept.min() >= 1
    assert 0.45 < (kept == 12).mean() < 0.56
    lead_one = (kept == 1) & (masks[:, 0, 0] == 1)
    assert 0.1 < lead_one.mean() < 0.2


def test_one_cycle_rises_then_falls_to_zero() -> None:
    rates = [one_cycle(step / 100, CONFIG) for step in range(101)]
    assert rates[0] == pytest.approx(CONFIG.learning_rate / 25)
    assert max(rates) == pytest.approx(CONFIG.learning_rate)
    assert rates[100] == pytest.approx(0)
    assert int(np.argmax(rates)) == 15


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("folds = [1, 2]\nchoose_fold = 2", "do not"),
        ("epohs = 3", "did you mean epochs"),
        ('supervision = "gold"', "expected one of"),
        ("folds = 3", "expected a list"),
        ("[weights]\nwordz = 1.0", "did you mean weights.words"),
        ("batch_size = 1", "at least 1 and 2"),
    ],
)
def test_bad_recipe_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_training_config(path)


def test_shipped_recipe_loads_and_leaves_folds_9_and_10_alone() -> None:
    assert not {9, 10} & set(load_training_config().folds)
