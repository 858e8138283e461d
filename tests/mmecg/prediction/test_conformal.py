from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from scipy.special import expit

from mmecg.errors import InvalidInputError, QueryError
from mmecg.prediction import conformal
from mmecg.prediction.conformal import LabelConformal, fit_conformal
from mmecg.prediction.store import load_heads, save_heads

LEVELS = (0.5, 0.8, 0.9, 0.95, 0.99)


def cases(n, labels=6, *, base=-2.0, seed=0):
    """Return log-odds, labels drawn with them, and a history that often says what is true."""
    rng = np.random.default_rng(seed)
    burden = rng.normal(0, 1.5, (n, 1))  # with much the matter, every label scores higher
    logits = rng.normal(base, 1.5, (n, labels)) + burden
    gold = rng.random((n, labels)) < expit(logits)
    told = np.where(rng.random((n, labels)) < 0.8, gold, ~gold)
    category = np.where(rng.random((n, 1)) < 0.5, 0, 1 + told).astype(np.int8)
    return logits + np.where(category == 0, 0, 2.8 * told - 1.4), gold, category


def covered(sets, gold):
    return np.where(gold, sets[..., 1], sets[..., 0])


@pytest.mark.parametrize("level", LEVELS)
def test_each_value_of_each_label_in_each_category_is_covered(level):
    found = fit_conformal(*cases(20_000))
    logits, gold, category = cases(20_000, seed=1)
    hit = covered(found.sets(logits, category, level), gold)
    assert hit.mean() == pytest.approx(level, abs=0.01)
    for label, kind, value in np.ndindex(6, 3, 2):
        chosen = (category[:, label] == kind) & (gold[:, label] == value)
        share, tolerance = hit[chosen, label].mean(), 4 * np.sqrt(level * (1 - level) * 2 / chosen.sum())
        assert level - tolerance < share < level + tolerance + 10 / chosen.sum()


def test_coverage_without_the_history_breaks_for_labels_that_came_or_went():
    logits, gold, category = cases(20_000)
    blind = covered(fit_conformal(logits, gold, 0 * category).sets(logits, 0 * category, 0.9), gold)
    personal = covered(fit_conformal(logits, gold, category).sets(logits, category, 0.9), gold)
    went, came = (category == 2) & ~gold, (category == 1) & gold
    assert blind[went].mean() < 0.8
    assert blind[came].mean() < 0.8
    assert personal[went].mean() == pytest.approx(0.9, abs=0.02)
    assert personal[came].mean() == pytest.approx(0.9, abs=0.02)


def test_those_with_much_the_matter_are_covered_too(monkeypatch):
    calibration, (logits, gold, category) = cases(20_000, 40), cases(5000, 40, seed=1)
    heavy = logits.mean(axis=1) > np.quantile(logits.mean(axis=1), 0.9)
    hit = covered(fit_conformal(*calibration).sets(logits, category, 0.9), gold)
    monkeypatch.setattr(conformal, "STRATA", 1)
    plain = covered(fit_conformal(*calibration).sets(logits, category, 0.9), gold)
    assert plain[heavy][~gold[heavy]].mean() < 0.65
    assert hit[heavy][~gold[heavy]].mean() > 0.85


def slowly(logits, gold, category, asked, asked_category, level):
    """Return the sets by p-values, counted one by one, without strata."""
    sets = np.zeros((*asked.shape, 2), np.bool_)
    for row, label, value in np.ndindex(sets.shape):
        alike = (gold[:, label] == value) & (category[:, label] == asked_category[row, label])
        sign = -1 if value else 1
        as_strange = int((sign * logits[alike, label] >= sign * asked[row, label]).sum())
        sets[row, label, value] = Fraction(as_strange + 1, int(alike.sum()) + 1) > 1 - Fraction(str(level))
    return sets


@pytest.mark.parametrize("level", LEVELS)
def test_sets_are_those_of_the_p_values(monkeypatch, level):
    monkeypatch.setattr(conformal, "STRATA", 1)
    calibration, (asked, _, category) = cases(800, 2, base=0.0), cases(60, 2, base=0.0, seed=1)
    calibration = (calibration[0].astype(np.float32), *calibration[1:])
    asked = asked.astype(np.float32)
    sets = fit_conformal(*calibration).sets(asked, category, level)
    assert np.array_equal(sets, slowly(*calibration, asked, category, level))


def test_a_higher_level_never_takes_a_value_away():
    found = fit_conformal(*cases(3000))
    logits, _, category = cases(500, seed=1)
    sets = [found.sets(logits, category, level) for level in np.linspace(0.5, 0.99, 99)]
    assert all((lower <= higher).all() for lower, higher in pairwise(sets))
    assert sets[0].sum() < sets[-1].sum()
    assert np.array_equal(found.sets(logits, category, 0.905), found.sets(logits, category, 0.91))


@pytest.mark.parametrize("positives", range(10))
def test_few_positives_share_a_limit(positives):
    logits, gold, category = cases(6000, 12)
    logits[:, :4] -= 3  # labels that no score reaches as high
    for label in range(4):
        has = np.flatnonzero(gold[:, label])
        gold[has, label] = False
        gold[has[:positives], label] = True
    found = fit_conformal(logits, gold, 0 * category)
    fresh, truth, _ = cases(6000, 12, seed=1)
    fresh[:, :4] -= 3
    sets = found.sets(fresh, np.zeros(fresh.shape, np.int8), 0.9)
    present = sets[:, :4, 1]
    if 4 * positives < 9:  # ceil((n + 1) 0.9) > n: nothing can be excluded
        assert present.all()
    else:
        assert present.mean() < 0.9
        assert present[truth[:, :4]].mean() > 0.75


def test_a_label_that_is_always_present_has_absent_in_its_set():
    logits, gold, category = cases(500, 2)
    gold[:, 0] = True
    sets = fit_conformal(logits, gold, category).sets(logits, category, 0.9)
    assert sets[:, 0, 0].all()


def test_one_study_is_enough_to_exclude_nothing():
    logits, gold, category = cases(1, 3)
    assert fit_conformal(logits, gold, category).sets(*cases(5, 3, seed=1)[::2], 0.99).all()


def test_conformal_survives_the_store(tmp_path):
    logits, gold, category = cases(500)
    found = fit_conformal(logits, gold, category)
    save_heads(tmp_path / "heads.safetensors", found)
    loaded = load_heads(tmp_path / "heads.safetensors", LabelConformal)
    assert np.array_equal(loaded.sets(logits, category, 0.9), found.sets(logits, category, 0.9))
    assert np.array_equal(loaded.sets(logits[3:4], category[3:4], 0.9), found.sets(logits, category, 0.9)[3:4])


@pytest.mark.parametrize("level", [0.499, 0.991, np.nan, 0.0, 90])
def test_levels_that_cannot_be_promised_are_refused(level):
    logits, gold, category = cases(50)
    with pytest.raises(QueryError, match=r"expected 0\.5 to 0\.99"):
        fit_conformal(logits, gold, category).sets(logits, category, level)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda z, y, c: (np.where(z == z[3, 1], np.nan, z), y, c), "not finite in column 1"),
        (lambda z, y, c: (z, y.astype(int), c), "gold is int64"),
        (lambda z, y, c: (z, y, c + 1), "values 0, 1 or 2"),
        (lambda z, y, c: (z, y, c - 1), "values 0, 1 or 2"),
        (lambda z, y, c: (z, y, c[1:]), r"expected \(50, 6\)"),
        (lambda z, y, c: (z[:0], y[:0], c[:0]), "at least one study"),
    ],
)
def test_what_cannot_be_fitted_is_refused(change, message):
    with pytest.raises(InvalidInputError, match=message):
        fit_conformal(*change(*cases(50)))


def test_what_has_no_set_is_refused():
    logits, gold, category = cases(50)
    found = fit_conformal(logits, gold, category)
    with pytest.raises(InvalidInputError, match="not finite"):
        found.sets(np.full((1, 6), np.nan), np.zeros((1, 6), np.int8), 0.9)
    with pytest.raises(InvalidInputError, match=r"expected \(n, 6\)"):
        found.sets(np.zeros((1, 5)), np.zeros((1, 5), np.int8), 0.9)
