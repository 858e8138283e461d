from dataclasses import replace

import numpy as np
import pytest
from scipy.special import expit, logit
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from mmecg.errors import InvalidInputError
from mmecg.prediction import calibration
from mmecg.prediction.calibration import (
    BETA_POSITIVES,
    ISOTONIC_POSITIVES,
    VennAbers,
    fit_logit_map,
    fit_venn_abers,
    shift_prevalence,
)
from mmecg.prediction.store import load_heads, save_heads


def cases(n, labels=1, *, base=-2.0, seed=0, true=lambda z: z):
    """Return log-odds of a head, and labels drawn with what ``true`` makes of them."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(base, 2.0, (n, labels))
    return logits, rng.random((n, labels)) < expit(true(logits))


def log_loss(logits, gold):
    return np.mean(np.logaddexp(0, np.where(gold, -logits, logits)))


def recalibration_slope(logits, gold):
    return LogisticRegression(C=1e9).fit(logits.reshape(-1, 1), gold.ravel()).coef_.item()


def test_beta_is_logistic_regression_on_both_bends(monkeypatch):
    for prior in ("SLOPE_SPREAD", "OFFSET_SPREAD"):
        monkeypatch.setattr(calibration, prior, 1e4)

    def bent(z):
        return 0.6 * np.log(expit(z)) - 1.5 * np.log(expit(-z)) + 0.4

    logits, gold = cases(40_000, true=bent, base=-0.5)
    found = fit_logit_map(logits, gold)
    bends = np.stack([np.log(expit(logits[:, 0])), -np.log(expit(-logits[:, 0]))], axis=1)
    oracle = LogisticRegression(C=1e9, tol=1e-8).fit(bends, gold[:, 0])
    np.testing.assert_allclose([found.slope_low[0], found.slope_high[0]], oracle.coef_[0], atol=1e-3)
    np.testing.assert_allclose(found.offset, oracle.intercept_, atol=1e-3)


@pytest.mark.parametrize("n", [300, 3000, 10_000])
def test_overconfident_log_odds_become_honest(n):
    logits, gold = cases(n, 8, true=lambda z: 0.5 * z + 0.5, seed=1)
    fresh, truth = cases(10_000, 8, true=lambda z: 0.5 * z + 0.5, seed=2)
    calibrated = fit_logit_map(logits, gold).apply(fresh)
    assert recalibration_slope(fresh, truth) < 0.55
    assert recalibration_slope(calibrated, truth) == pytest.approx(1, abs=0.06)  # that of the true log-odds: 0.985
    assert np.abs(expit(calibrated) - expit(0.5 * fresh + 0.5)).mean() < {300: 0.03, 3000: 0.02, 10_000: 0.015}[n]


def test_isotonic_follows_what_no_sigmoid_can():
    def stairs(z):
        return np.where(z < -2, -4.0, np.where(z < 1, -1.0, 2.0))

    logits, gold = cases(30_000, true=stairs)
    fresh, truth = cases(30_000, true=stairs, seed=3)
    found = fit_logit_map(logits, gold)
    assert found.method == ("isotonic",)
    oracle = IsotonicRegression(out_of_bounds="clip").fit(logits[:, 0], gold[:, 0]).predict(fresh[:, 0])
    calibrated, beta = found.apply(fresh), replace(found, correction=0 * found.correction).apply(fresh)
    away, beta_away = (np.abs(expit(one[:, 0]) - oracle).mean() for one in (calibrated, beta))
    assert away < 0.03 < 0.06 < beta_away
    lost, beta_lost = (log_loss(one, truth) - log_loss(stairs(fresh), truth) for one in (calibrated, beta))
    assert lost < beta_lost / 3


@pytest.mark.parametrize(
    ("positives", "method"),
    [(0, "temperature"), (1, "temperature"), (9, "temperature"), (10, "beta"), (299, "beta"), (300, "isotonic")],
)
def test_method_follows_the_number_of_positives(positives, method):
    rng = np.random.default_rng(4)
    gold = np.zeros((4000, 2), np.bool_)
    gold[:positives, 0] = True
    gold[:, 1] = ~gold[:, 0]  # as few negatives
    logits = rng.normal(-4, 2, (4000, 2)) + 2 * gold
    found = fit_logit_map(logits, gold)
    assert (BETA_POSITIVES, ISOTONIC_POSITIVES) == (10, 300)
    assert found.method == (method, method)
    line = np.linspace(-60, 60, 4001)
    mapped = found.apply(np.stack([line, line], axis=1))
    assert np.isfinite(mapped).all()
    assert (np.diff(mapped, axis=0) > 0).all()  # so that AUROC stays


def test_few_positives_borrow_the_slope_of_other_labels():
    logits, gold = cases(4000, 12, true=lambda z: 0.5 * z, base=-3.0)
    gold[:, 0] = False
    gold[:4, 0] = True
    found = fit_logit_map(logits, gold)
    assert found.method[0] == "temperature"
    assert found.slope_low[0] == found.slope_high[0] == pytest.approx(0.5, abs=0.05)
    assert expit(found.apply(logits))[:, 0].mean() < expit(0.5 * logits)[:, 0].mean()


def test_more_data_does_not_change_what_is_right_already():
    logits, gold = cases(20_000, 6)
    calibrated = fit_logit_map(logits, gold).apply(logits)
    assert np.abs(expit(calibrated) - expit(logits)).mean() < 0.01


def test_a_study_is_calibrated_alike_alone_and_among_others():
    logits, gold = cases(3000, 3)
    found, intervals = fit_logit_map(logits, gold), fit_venn_abers(logits, gold)
    assert np.array_equal(found.apply(logits[:20])[7:8], found.apply(logits[7:8]))
    assert np.array_equal(intervals.interval(logits[:20])[1][7:8], intervals.interval(logits[7:8])[1])


@pytest.mark.parametrize("fit", [fit_logit_map, fit_venn_abers])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda z, y: (np.where(z == z[3, 1], np.nan, z), y), "not finite in column 1"),
        (lambda z, y: (np.where(z == z[3, 0], np.inf, z), y), "not finite in column 0"),
        (lambda z, y: (z, y.astype(float)), "gold is float64"),
        (lambda z, y: (z, y[1:]), "gold is bool of shape"),
        (lambda z, y: (z[:0], y[:0]), "at least one study"),
        (lambda z, y: (z[:, 0], y[:, 0]), "one column for every label"),
    ],
)
def test_what_cannot_be_fitted_is_refused(fit, change, message):
    with pytest.raises(InvalidInputError, match=message):
        fit(*change(*cases(20, 2)))


def test_what_cannot_be_calibrated_is_refused():
    logits, gold = cases(200, 2)
    for apply in (fit_logit_map(logits, gold).apply, fit_venn_abers(logits, gold).interval):
        with pytest.raises(InvalidInputError, match="not finite"):
            apply(np.array([[0.0, np.nan]]))
        with pytest.raises(InvalidInputError, match=r"expected \(n, 2\)"):
            apply(np.zeros((1, 3)))


def refitted(score, positive, at, label):
    """Return what isotonic regression gives a new study if it joins the calibration with a label: the definition."""
    joined = IsotonicRegression().fit(np.append(score, at), np.append(positive, label))
    return joined.predict([at])[0]


@pytest.mark.parametrize("seed", range(12))
def test_venn_abers_is_isotonic_regression_refitted_with_either_label(seed):
    rng = np.random.default_rng(seed)
    n = rng.integers(1, 25)
    step = (1 / 32, 0.5, 2.0)[seed % 3]  # few and many ties
    score = np.rint(rng.normal(size=(n, 2)) / step) * step
    positive = rng.random((n, 2)) < (0.0, 0.3, 0.7, 1.0)[seed % 4]
    asked = np.concatenate([score, np.rint(rng.normal(size=(6, 2)) * 32) / 32, [[-99, -99], [99, 99]]])
    low, high = fit_venn_abers(score, positive).interval(asked)
    for row, column in np.ndindex(asked.shape):
        for label, found in ((0, low), (1, high)):
            expected = refitted(score[:, column], positive[:, column], asked[row, column], label)
            assert found[row, column] == pytest.approx(expected, abs=1e-6)


def test_venn_abers_holds_the_rate_and_narrows():
    widths = []
    for n in (100, 10_000):
        logits, gold = cases(n, 20, true=lambda z: 1.5 * z, seed=5)
        fresh, truth = cases(4000, 20, true=lambda z: 1.5 * z, seed=6)
        low, high = fit_venn_abers(logits, gold).interval(fresh)
        assert (low <= high).all()
        for part in (fresh < -3, fresh >= -3, fresh > 0):
            assert low[part].mean() - 0.01 <= truth[part].mean() <= high[part].mean() + 0.01
        widths.append((high - low).mean())
    assert widths[1] < 0.02 < 0.03 < widths[0]


def test_venn_abers_without_positives_says_how_little_is_known():
    logits = np.linspace(-5, 0, 99)[:, None]
    low, high = fit_venn_abers(logits, np.zeros((99, 1), np.bool_)).interval(np.array([[-5.0], [-0.07], [9.0]]))
    assert low.ravel().tolist() == [0, 0, 0]
    np.testing.assert_allclose(high.ravel(), [1 / 100, 1 / 3, 1.0])


def test_calibration_survives_the_store(tmp_path):
    logits, gold = cases(4000, 3)
    for value in (fit_logit_map(logits, gold), fit_venn_abers(logits, gold)):
        save_heads(tmp_path / "heads.safetensors", value)
        loaded = load_heads(tmp_path / "heads.safetensors", type(value))
        ask = (lambda one: one.interval(logits)) if isinstance(value, VennAbers) else (lambda one: one.apply(logits))
        np.testing.assert_array_equal(ask(loaded), ask(value))


def test_shift_by_hand():
    shifted = shift_prevalence(logit([[0.5, 0.5, 0.2]]), np.array([0.1, 0.3, 0.0]), np.array([0.5, np.nan, np.nan]))
    np.testing.assert_allclose(expit(shifted), [[0.9, 0.5, 0.2]])  # odds 1 times (1 / 1) / (1 / 9)


def test_shift_makes_resampled_studies_calibrated():
    logits, gold = cases(200_000, base=-2.5)
    rng = np.random.default_rng(7)
    kept = gold[:, 0] | (rng.random(len(gold)) < 0.1)  # a site where the label is much more common
    trained, site = gold.mean(axis=0), gold[kept].mean(axis=0)
    shifted = shift_prevalence(logits[kept], trained, site)
    assert log_loss(shifted, gold[kept]) < log_loss(logits[kept], gold[kept]) - 0.05
    order = np.argsort(shifted[:, 0])
    for part in np.array_split(order, 15):
        assert expit(shifted[part]).mean() == pytest.approx(gold[kept][part].mean(), abs=0.025)


@pytest.mark.parametrize(("trained", "site", "name"), [(0.1, 0.0, "site"), (0.1, 1.0, "site"), (0.0, 0.1, "trained")])
def test_shift_refuses_certainty(trained, site, name):
    with pytest.raises(InvalidInputError, match=f"{name} prevalence"):
        shift_prevalence(np.zeros((1, 1)), np.array([trained]), np.array([site]))
