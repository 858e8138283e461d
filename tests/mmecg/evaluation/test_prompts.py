from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mmecg.datasets.ptb_xl import SUPERCLASSES, read_scp_statements
from mmecg.errors import ConfigError
from mmecg.evaluation.prompts import embed_prompts, load_prompts

SHARED = Path(__file__).parents[4] / "shared" / "data" / "ptbxl"


def test_every_label_has_two_to_five_distinct_lower_case_prompts() -> None:
    bank = load_prompts()
    assert set(bank.superclass) == set(SUPERCLASSES)
    assert len(bank.statement) == 71
    for label, prompts in [*bank.superclass.items(), *bank.statement.items()]:
        assert 2 <= len(prompts) <= 5, label
        assert len(set(prompts)) == len(prompts), label
        assert all(prompt == prompt.lower().strip() and len(prompt) <= 100 for prompt in prompts), label


@pytest.mark.data
@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data/ptbxl is missing")
def test_the_first_prompt_is_the_official_description() -> None:
    statements = read_scp_statements(SHARED)
    bank = load_prompts()
    assert set(statements["label"]) == set(bank.statement)
    for label, description in statements.select("label", "description").iter_rows():
        assert bank.statement[label][0] == description.lower()


def test_a_label_outside_the_bank_falls_back_on_its_description() -> None:
    bank = load_prompts()
    assert bank.of_task("all", ["NEW"], {"NEW": "Brand new Finding"}) == [("brand new finding",)]
    with pytest.raises(ConfigError, match="'NEW' has neither a prompt nor a description"):
        bank.of_task("all", ["NEW"], {})


def test_the_ensemble_is_the_normalised_mean_and_single_sets_cycle(encoders) -> None:
    encoder = encoders["bundle"]
    prompts = [("normal ecg", "sinus rhythm"), ("old infarct",)]
    found = embed_prompts(encoder, prompts)
    vectors = encoder.encode_text(["normal ecg", "sinus rhythm", "old infarct"])
    mean = vectors[:2].mean(axis=0)
    np.testing.assert_allclose(found.ensemble[0], mean / np.linalg.norm(mean), atol=1e-6)
    np.testing.assert_allclose(found.ensemble[1], vectors[2], atol=1e-6)
    assert len(found.single) == 2
    np.testing.assert_array_equal(found.single[1], vectors[[1, 2]])
    np.testing.assert_array_equal(found.last, vectors[[1, 2]])
