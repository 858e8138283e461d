"""The model card says what the prediction heads are for, and keeps the rest of itself."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from mmecg.assets import DEFAULT_BUNDLE
from mmecg.bundle import CARD, Bundle, default_card, load_bundle
from mmecg.prediction.card import prediction_card, with_section
from mmecg.prediction.heads import PredictionHeads, write_heads


def test_the_section_states_use_fitting_calibration_figures_and_limits(bundle: Bundle, heads: PredictionHeads) -> None:
    section = prediction_card(heads, bundle.config, "| row |")
    for part in ("Intended use", "Fitted on", "Calibration", "Figures", "Limits", "Not for decisions", "| row |"):
        assert part in section
    assert "71 SCP-ECG statements" in section
    assert all(len(line) <= 125 for line in section.splitlines())


def test_a_section_is_replaced_and_the_rest_stays(bundle: Bundle, heads: PredictionHeads) -> None:
    plain = default_card(bundle.config) + "\n## Figures\n\n| a |\n"
    once = with_section(plain, prediction_card(heads, bundle.config, "old figures"))
    twice = with_section(once, prediction_card(heads, bundle.config, "new figures"))
    assert once.startswith(plain)
    assert twice.startswith(plain)
    assert "new figures" in twice
    assert "old figures" not in twice
    assert twice.count("## Prediction heads") == 1
    moved = with_section("# b\n\n## Prediction heads\n\nold\n\n## Figures\n\n| a |\n", "\n## Prediction heads\n")
    assert moved == "# b\n\n## Figures\n\n| a |\n\n## Prediction heads\n"


def test_heads_come_with_their_section(bundle: Bundle, heads: PredictionHeads, tmp_path: Path) -> None:
    shutil.copytree(DEFAULT_BUNDLE, tmp_path / "bundle")
    write_heads(replace(bundle, path=tmp_path / "bundle"), heads)
    card = (tmp_path / "bundle" / CARD).read_text("utf-8")
    assert "## Figures" in card
    assert card.count("## Prediction heads") == 1
    assert load_bundle(tmp_path / "bundle").fingerprint == bundle.fingerprint


def test_the_shipped_card_has_the_section() -> None:
    if not (DEFAULT_BUNDLE / "prediction").is_dir():
        pytest.skip("the shipped bundle has no prediction heads")
    assert "## Prediction heads" in (DEFAULT_BUNDLE / CARD).read_text("utf-8")
