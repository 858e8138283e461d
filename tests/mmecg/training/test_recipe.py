"""The shipped bundle is the shipped recipe's, and the log of a run that was interrupted names each epoch once."""

import json
from pathlib import Path

from mmecg.bundle import load_bundle
from mmecg.training.config import load_training_config
from mmecg.training.progress import trim_log


def test_shipped_bundle_is_of_the_shipped_recipe() -> None:
    bundle, recipe = load_bundle().config, load_training_config()
    assert bundle.model == recipe.model
    trained = bundle.training
    assert tuple(trained.folds) == recipe.folds
    assert (trained.epochs, trained.seed, trained.supervision) == (recipe.epochs, recipe.seed, recipe.supervision)


def test_epochs_that_were_logged_but_not_saved_are_dropped(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    lines = [json.dumps({"epoch": epoch, "reports": 1.5}) for epoch in (1, 2, 3)]
    log.write_text("\n".join([*lines, lines[0][:9]]))
    trim_log(tmp_path, 2)
    assert log.read_text() == "\n".join(lines[:2]) + "\n"
    trim_log(tmp_path, 0)
    assert log.read_text() == ""
    assert [path.name for path in tmp_path.iterdir()] == ["log.jsonl"]


def test_there_may_be_no_log(tmp_path: Path) -> None:
    trim_log(tmp_path, 0)
    assert list(tmp_path.iterdir()) == []
