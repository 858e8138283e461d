from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import sparse
from sklearn.linear_model import LogisticRegression

from mmecg.errors import ConfigError, InvalidInputError
from mmecg.labels.assertion import LabelAssertion, Status
from mmecg.labels.evidence import fit_text_evidence, mention_rates, mention_scores, mentioned, report_features
from mmecg.labels.logistic import expected_f1_thresholds, expit, f1_thresholds, fit_logistic
from mmecg.labels.weights import load_text_evidence, read_text_evidence, save_text_evidence

LABELS = ("IMI", "LVH")


def say(finding: str, status: Status = Status.PRESENT, cue: str = "") -> LabelAssertion:
    return LabelAssertion(finding, status, 0, 5, f"en/{finding}/0", cue, language="en")


def corpus(count: int = 400):
    """Half of the reports state IMI (gold in all), a quarter call it possible (gold in half), a quarter say nothing."""
    rng = np.random.default_rng(0)
    reports, gold = [], np.zeros((count, 2), np.bool_)
    for row in range(count):
        kind = row % 4
        if kind < 2:
            reports.append((say("IMI"),))
            gold[row, 0] = True
        elif kind == 2:
            reports.append((say("IMI", Status.POSSIBLE, "en/possible"),))
            gold[row, 0] = rng.random() < 0.5
        else:
            reports.append(())
        gold[row, 1] = rng.random() < 0.2
    return reports, gold, np.arange(count) % 3


def test_the_solver_agrees_with_scikit_learn() -> None:
    rng = np.random.default_rng(1)
    inputs = (rng.random((300, 6)) < 0.4).astype(np.float32)
    labels = rng.random((300, 3)) < expit(inputs @ rng.normal(size=(6, 3)) - 0.5)
    weight, bias = fit_logistic(sparse.csr_matrix(inputs), labels, penalty=2.0)
    for column in range(3):
        oracle = LogisticRegression(C=0.5, tol=1e-8, max_iter=1000).fit(inputs, labels[:, column])
        np.testing.assert_allclose(weight[:, column], oracle.coef_[0], atol=5e-3)
        np.testing.assert_allclose(bias[column], oracle.intercept_[0], atol=5e-3)


def test_a_probability_is_what_the_words_meant_on_gold() -> None:
    reports, gold, groups = corpus()
    evidence = fit_text_evidence(reports, gold, LABELS, groups, penalty=0.5).evidence
    stated, possible, nothing = evidence.probabilities([reports[0], reports[2], ()])[:, 0]
    assert stated > 0.95
    assert 0.35 < possible < 0.65
    assert nothing < 0.05


def test_held_out_scores_do_not_know_the_record() -> None:
    reports, gold, groups = corpus()
    reports = [(say("IMI"), say(f"ONLY_IN_{group}")) for group in groups]
    gold[:, 0] = groups == 1  # what one group alone says cannot be learnt from the others
    fitted = fit_text_evidence(reports, gold, LABELS, groups)
    assert fitted.held_out[groups == 1, 0].max() < 0
    assert fitted.evidence.log_odds(reports)[groups == 1, 0].min() > 0


def test_a_rare_way_of_speaking_is_drawn_to_its_parent() -> None:
    often = [(say("IMI", Status.POSSIBLE, "en/possible"),)] * 100
    rare = [(say("IMI", Status.POSSIBLE, "en/perhaps"),)]
    rates = mention_rates(often + rare, np.repeat([[False, False], [True, False]], [80, 21], axis=0), LABELS)
    parent, child = rates["possible|IMI"], rates["possible|IMI|en/perhaps"]
    assert child == pytest.approx((1 + 10 * parent) / 11)
    assert parent < 0.25


def test_a_finding_without_gold_has_no_probability_a_new_way_of_speaking_that_of_all() -> None:
    reports, gold, groups = corpus()
    evidence = fit_text_evidence(reports, gold, LABELS, groups).evidence
    assert evidence.mention_probability(say("AXIS_LEFT")) is None
    assert evidence.mention_probability(say("IMI", Status.HISTORICAL)) == evidence.mentions[""]


def test_features_say_nothing_of_raw_words_and_an_empty_report_has_its_own() -> None:
    assert report_features(()) == {"nothing found"}
    assert report_features([say("IMI")]) == {"language=en", "IMI", "IMI present", "IMI present en", "rule en/IMI/0"}


def test_one_group_is_refused() -> None:
    reports, gold, groups = corpus(40)
    with pytest.raises(InvalidInputError, match="1 group of records, expected at least 2"):
        fit_text_evidence(reports, gold, LABELS, groups * 0)


def test_thresholds_find_the_best_f1() -> None:
    scores = np.linspace(-3, 3, 301)[:, None]
    assert f1_thresholds(scores, scores > 1.0)[0] == pytest.approx(1.0, abs=0.05)
    assert np.isinf(f1_thresholds(scores, np.zeros_like(scores, np.bool_)))[0]
    certain = np.repeat([[5.0], [-5.0]], [30, 70], axis=0)
    assert -5 < expected_f1_thresholds(certain)[0] <= 5


def test_weights_survive_the_file_and_a_damaged_file_is_named(tmp_path: Path) -> None:
    reports, gold, groups = corpus()
    evidence = fit_text_evidence(reports, gold, LABELS, groups).evidence
    path = tmp_path / "w.safetensors"
    save_text_evidence(evidence, path)
    again = read_text_evidence(path)
    np.testing.assert_allclose(again.log_odds(reports), evidence.log_odds(reports), atol=2e-2)  # half precision
    assert again.mentions.keys() == evidence.mentions.keys()
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ConfigError, match=r"label weights .* cannot be used .* run scripts/train-labels"):
        read_text_evidence(path)


def test_the_shipped_weights_tell_certain_from_possible_words() -> None:
    evidence = load_text_evidence()
    column = evidence.labels.index("AFIB")
    stated = LabelAssertion("AFIB", Status.PRESENT, 0, 5, "en/AFIB/0", language="en")
    said, silent = evidence.probabilities([(stated,), ()])[:, column]
    assert said > 0.9
    assert silent < 0.1
    assert evidence.mention_probability(stated) > 0.8


def test_a_denied_finding_is_not_mentioned() -> None:
    reports = [(say("IMI"), say("LVH", Status.NEGATED)), (say("LVH", Status.POSSIBLE, "en/possible"), say("OTHER")), ()]
    assert mentioned(reports, LABELS).tolist() == [[True, False], [False, True], [False, False]]
    assert mention_scores(reports, LABELS)["denied"].tolist() == [[0, 1], [0, 0], [0, 0]]
