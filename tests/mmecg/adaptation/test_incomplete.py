"""Losses for incomplete labels: what each takes a missing label for, and that PU learning survives hidden positives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

from mmecg.adaptation.incomplete import estimate_prior, label_loss
from mmecg.adaptation.linear import fit_linear
from mmecg.errors import InvalidInputError
from mmecg.evaluation.metrics import auroc

NAN = float("nan")
VALUES = np.array([[1, 0], [0, NAN], [NAN, 1], [1, 1]], np.float32)
LOGITS = torch.tensor([[2.0, -1.0], [0.5, 3.0], [-1.0, 0.2], [0.1, 0.3]])


def entropy(column, rows, targets, weight=None):
    loss = binary_cross_entropy_with_logits(
        LOGITS[rows, column], torch.tensor(targets), reduction="none", pos_weight=weight
    )
    return loss.mean().item()


def test_known_leaves_unknown_labels_out():
    loss = label_loss("known", VALUES).per_label(LOGITS, torch.from_numpy(VALUES))
    assert loss[0].item() == pytest.approx(entropy(0, [0, 1, 3], [1.0, 0, 1]))
    assert loss[1].item() == pytest.approx(entropy(1, [0, 2, 3], [0.0, 1, 1]))


def test_naive_takes_them_for_negatives():
    loss = label_loss("naive", VALUES).per_label(LOGITS, torch.from_numpy(VALUES))
    assert loss[1].item() == pytest.approx(entropy(1, [0, 1, 2, 3], [0.0, 0, 1, 1]))


def test_class_weights_are_the_root_of_negatives_per_positive():
    values = np.array([[1], [0], [0], [0], [0]], np.float32)
    loss = label_loss("known", values, class_weights=True)
    assert loss.positive_weight.tolist() == [2.0]


def test_weighted_negatives_count_their_share():
    prior = np.array([0.75, 0.5])
    loss = label_loss("weighted", VALUES, prior=prior).per_label(LOGITS, torch.from_numpy(VALUES))
    expected = softplus(-LOGITS[[0, 3], 0]).sum() + 0.25 / 0.5 * softplus(LOGITS[[1, 2], 0]).sum()
    assert loss[0].item() == pytest.approx(expected.item() / 4)


def test_asymmetric_forgets_easy_negatives():
    loss = label_loss("asymmetric", VALUES)
    easy = loss.per_label(torch.tensor([[-3.0, -3.0]]), torch.tensor([[0.0, NAN]]))
    assert easy.tolist() == [0.0, 0.0]
    hard = loss.per_label(torch.tensor([[3.0, -3.0]]), torch.tensor([[0.0, 1.0]]))
    assert hard[0] > 0.5
    assert hard[1].item() == pytest.approx(softplus(torch.tensor(3.0)).item())


def test_the_pu_risk_is_the_formula_and_steps_back_below_zero():
    prior = np.array([0.6, 0.8])
    loss = label_loss("pu", VALUES, prior=prior)
    values = torch.from_numpy(VALUES)
    labelled = LOGITS[[0, 3], 0]
    positive = 0.6 * softplus(-labelled).mean()
    negative = softplus(LOGITS[:, 0]).mean() - 0.6 * softplus(labelled).mean()
    assert negative > 0
    for batch in (True, False):
        assert loss.per_label(LOGITS, values, batch=batch)[0].item() == pytest.approx((positive + negative).item())
    sure = torch.where(values == 1, 5.0, -5.0)
    assert loss.per_label(sure, values)[0].item() == pytest.approx(
        (0.6 * softplus(torch.tensor(5.0)) - (softplus(torch.tensor(5.0)) + softplus(torch.tensor(-5.0))) / 2).item()
    )
    kept = loss.per_label(sure, values, batch=False)[0].item()
    assert kept == pytest.approx((0.6 * softplus(torch.tensor(-5.0))).item())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "guess"}, "expected one of known"),
        ({"kind": "pu"}, "needs the prior"),
        ({"kind": "pu", "prior": np.ones(2), "class_weights": True}, "not with pu"),
    ],
)
def test_impossible_losses_are_refused(arguments, message):
    kind = arguments.pop("kind")
    with pytest.raises(InvalidInputError, match=message):
        label_loss(kind, VALUES, **arguments)


@pytest.fixture(scope="module")
def hidden():
    """Two labels that features tell well apart; 60 % of the positives are hidden where models are fitted."""
    rng = np.random.default_rng(0)
    features = rng.standard_normal((4000, 8)).astype(np.float32)
    truth = features[:, :2] * 4 + 0.5 * rng.standard_normal((4000, 2)) > np.array([1.5, 3.0])
    seen = truth & (rng.random(truth.shape) < 0.4)
    return features, truth, seen, [f"p{row}" for row in range(4000)]


def test_the_prior_is_estimated_or_given(hidden):
    features, truth, seen, subjects = hidden
    values = seen[:2000].astype(np.float32)
    prior = estimate_prior(features[:2000], values, subjects[:2000])
    np.testing.assert_allclose(prior, truth[:2000].mean(axis=0), rtol=0.15)
    assert estimate_prior(features[:2000], values, subjects[:2000], given={1: 0.25})[1] == 0.25
    few = np.zeros_like(values)
    few[:5] = 1
    np.testing.assert_allclose(estimate_prior(features[:2000], few, subjects[:2000]), 5 / 2000)
    with pytest.raises(InvalidInputError, match="prior of label 1 is 2"):
        estimate_prior(features[:2000], values, subjects[:2000], given={1: 2})


def test_hidden_positives_hurt_naive_labels_more(hidden):
    features, truth, seen, subjects = hidden
    fit, choose, test = slice(0, 2000), slice(2000, 3000), slice(3000, 4000)
    values = seen.astype(np.float32)
    prior = estimate_prior(features[fit], values[fit], subjects[fit])
    missed, surprise, area = {}, {}, {}
    given = {"oracle": truth.astype(np.float32), "naive": values, "pu": values}
    for name, targets in given.items():
        kind = "known" if name == "oracle" else name
        loss = label_loss(kind, targets[fit], prior=prior)
        head = fit_linear(features[fit], targets[fit], loss, (features[choose], targets[choose]), {"x": (0, 1)})
        logits = head.logits(features[test])
        missed[name] = float((logits[truth[test]] < 0).mean())
        surprise[name] = float(
            binary_cross_entropy_with_logits(torch.from_numpy(logits), torch.from_numpy(truth[test].astype(np.float32)))
        )
        area[name] = float(auroc(truth[test], logits).mean())
    assert missed["oracle"] < 0.15
    assert missed["pu"] < missed["oracle"] + 0.15 < missed["naive"] - 0.2
    assert surprise["pu"] < surprise["oracle"] + 0.15 < surprise["naive"]
    assert area["pu"] > area["oracle"] - 0.01
