"""A superclass follows from its statements, and is never less likely than one of them."""

import numpy as np

from mmecg.bundle import Bundle
from mmecg.datasets.synthetic import synthetic_ecg
from mmecg.evaluation.history_fitting import fit_superclass
from mmecg.evaluation.metrics import auroc
from mmecg.labels.weights import load_text_evidence
from mmecg.prediction.calibration import probability_of
from mmecg.prediction.heads import PredictionHeads
from mmecg.prediction.predictor import Predictor
from mmecg.prediction.result import PredictionOptions
from mmecg.prediction.superclass import SuperclassHead, channels, superclasses_of

LABELS = ("IMI", "AMI", "AFIB", "LVH", "superclass/MI", "superclass/HYP", "superclass/CD")


def test_which_statements_a_superclass_holds() -> None:
    columns, holds = superclasses_of(LABELS)
    assert columns.tolist() == [4, 5], "CD has no statement among these labels"
    assert [[LABELS[at] for at in np.flatnonzero(row)] for row in holds] == [["IMI", "AMI"], ["LVH"]]
    every = (*load_text_evidence().labels, *(f"superclass/{name}" for name in ("NORM", "MI", "STTC", "CD", "HYP")))
    assert superclasses_of(every)[1].sum(axis=1).tolist() == [1, 14, 13, 11, 5]


def test_channels_are_own_likeliest_and_any() -> None:
    logits = np.array([[-1.0, 0.5, 3.0, -40.0, 0.2, 0.1, 0.0], [60.0, 50.0, 0.0, 40.0, 0.0, 0.0, 0.0]])
    found = channels(logits, *superclasses_of(LABELS))
    np.testing.assert_array_equal(found[:, 0], logits[:, [4, 5]])
    np.testing.assert_array_equal(found[:, 1], [[0.5, -40.0], [60.0, 40.0]])
    chance = 1 - np.prod(1 - probability_of(logits[0, :2]))
    assert np.isfinite(channels(np.full((1, 7), -1e4), *superclasses_of(LABELS))).all()
    np.testing.assert_allclose(found[:, 2], [[np.log(chance / (1 - chance)), -40], [110, 40]], rtol=1e-6)


def test_the_superclass_is_raised_and_nothing_else_moves() -> None:
    columns, holds = superclasses_of(LABELS)
    head = SuperclassHead(columns, holds, np.array([[1, 1], [0, 0], [0, 0]], np.float32), np.zeros(2, np.float32))
    logits = np.random.default_rng(0).normal(size=(50, len(LABELS)))
    found = head.apply(logits)
    np.testing.assert_array_equal(found[:, [0, 1, 2, 3, 6]], logits[:, [0, 1, 2, 3, 6]])
    np.testing.assert_array_equal(found[:, 4], logits[:, [0, 1, 4]].max(axis=1))
    np.testing.assert_array_equal(found[:, 5], logits[:, [3, 5]].max(axis=1))
    np.testing.assert_array_equal(head.at_least(found), found)


def test_sharp_statements_sharpen_a_blurred_superclass() -> None:
    random = np.random.default_rng(1)
    there = random.random((6000, 3)) < 0.15
    gold = np.column_stack([there, there.any(axis=1)])
    rate, sharpness = gold.mean(axis=0), np.array([9.0, 9.0, 9.0, 2.0])
    prior = np.log(rate / (1 - rate))
    logits = prior + sharpness * (gold - 0.5) + np.sqrt(sharpness) * random.normal(size=gold.shape)  # calibrated
    labels = ("LVH", "RVH", "SEHYP", "superclass/HYP")
    half = np.arange(6000) % 2 == 0
    head = fit_superclass(logits[half], gold[half], labels)
    found, truth = head.apply(logits[~half])[:, 3], gold[~half, 3]
    assert auroc(truth[:, None], found[:, None])[0] > auroc(truth[:, None], logits[~half, 3:])[0] + 0.05
    assert abs(probability_of(found).mean() - truth.mean()) < 0.04
    bare = fit_superclass(logits, gold, (*labels[:3], "superclass/MI"))
    np.testing.assert_array_equal(bare.apply(logits), logits, err_msg="nothing to follow from")


def test_answers_are_coherent_also_at_another_prevalence(bundle: Bundle, heads: PredictionHeads) -> None:
    predictor = Predictor(bundle, heads=heads)
    for prevalence in ({}, {"LVH": 0.9, "superclass/HYP": 0.01}):
        found = predictor.predict(synthetic_ecg(seed=3), options=PredictionOptions(prevalence=prevalence))
        by_name = {one.label: one for one in found.labels}
        labels = tuple(by_name)
        for column, held in zip(*superclasses_of(labels), strict=True):
            above = by_name[labels[column]]
            for below in (by_name[labels[at]] for at in np.flatnonzero(held)):
                assert above.probability >= below.probability
                assert above.single >= below.single
                assert above.low <= above.probability <= above.high
