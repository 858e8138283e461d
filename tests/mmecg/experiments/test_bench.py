import numpy as np
import pytest

from mmecg.adaptation.backbone import small_backbone
from mmecg.errors import InvalidInputError
from mmecg.experiments.bench import RANDOM, identity, only, segments


def close(found, expected):
    """Check that features are the same but for bfloat16."""
    cosine = (found * expected).sum(axis=1) / np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1)
    assert cosine.min() > 0.9999


def test_the_fold_before_is_chosen_on_and_no_patient_is_on_two_sides(bench):
    folds, subjects, split = bench.recordings.labels.folds, bench.recordings.subjects, bench.split
    assert {*folds[split.fit]} == {6, 7}
    assert {*folds[split.choose]} == {8}
    assert {*folds[split.test]} == {9}
    sides = [{*subjects[rows].tolist()} for rows in (split.fit, split.choose, split.test)]
    assert not sides[0] & sides[1] | sides[0] & sides[2] | sides[1] & sides[2]


def test_a_fraction_is_of_the_patients_fitted_on(bench, fresh_bench):
    half = fresh_bench(fraction=0.5)
    assert len(half.split.fit) == len(bench.split.fit) / 2
    assert half.split.test.tolist() == bench.split.test.tolist()


def test_rows_of_signals_table_and_labels_are_of_one_study(bench):
    recordings = bench.recordings
    assert recordings.records["study_id"].to_list() == list(recordings.labels.study_ids)
    tall = recordings.truth(["all/LVH"])[:, 0] > 0
    size = np.ptp(recordings.signals[:, 1], axis=1)
    assert size[tall].min() > size[~tall].max()


def test_features_are_those_of_the_encoder_and_are_kept(bench):
    name = bench.first
    found = bench.features(name)
    again = bench.encoders[name].features([bench.recordings.ecg(row) for row in (5, 77)])
    close(found[[5, 77]], again)
    assert len(list(bench.options.cache.glob("features-*.npy"))) >= 1


def test_views_show_parts_and_leads(bench):
    found = bench.features(bench.first, segments(5.0))
    ecg = bench.recordings.ecg(3)
    expected = bench.encoders[bench.first].features([ecg.crop(0, 5), ecg.crop(5, 5)])
    assert found.shape[1] == 2
    close(found[3], expected)
    lead = bench.features(bench.first, only(["I"]))
    close(lead[[3]], bench.encoders[bench.first].features([ecg.select_leads(["I"])]))


def test_only_the_rows_asked_for_are_encoded(bench):
    rows = bench.split.test[:3]
    found = bench.features(bench.first, segments(2.5), rows)
    assert np.flatnonzero(np.abs(found).sum(axis=(1, 2))).tolist() == rows.tolist()
    close(found[rows].reshape(12, -1), bench.features(bench.first, segments(2.5))[rows].reshape(12, -1))


def test_an_encoder_that_was_trained_is_another_one():
    encoder = small_backbone(1)
    before = identity(encoder)
    assert identity(small_backbone(1)) == before
    next(encoder.parameters()).data.mul_(1.01)
    assert identity(encoder) != before


def test_encoders_have_names_of_their_own(options, fresh_bench):
    with pytest.raises(InvalidInputError, match="two encoders are called toy"):
        fresh_bench(encoders=(*options.encoders, *options.encoders))


def test_a_fold_without_folds_before_it_is_refused(fresh_bench):
    with pytest.raises(InvalidInputError, match="fold"):
        fresh_bench(fold=6)


def test_the_random_encoder_has_the_shape_of_the_first(bench):
    first, random = bench.encoders[bench.first], bench.encoders[RANDOM]
    assert random.feature_dim == first.feature_dim
    assert identity(random) != identity(first)
