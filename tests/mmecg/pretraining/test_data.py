"""Pairs are of one recording or one patient, never across folds; leads are masked; ranks share a batch."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mmecg.datasets.synthetic import synthetic_ecg
from mmecg.errors import ConfigError, InvalidInputError
from mmecg.pretraining.data import PairSampler
from mmecg.pretraining.recordings import Recordings, ptb_xl_recordings, study_recordings
from mmecg.study import Study

SAMPLES = 400


def numbered(subject_ids: list[str]) -> Recordings:
    """Every sample says which recording it is of, and where: thousands and units are exact in half precision."""
    count = len(subject_ids)
    signals = np.zeros((count, 12, 1000), np.float16)
    signals[:, 0] = np.arange(count)[:, None] + 1
    signals[:, 1] = np.arange(1000)
    signals[:, 2:] = 1
    return Recordings(signals, subject_ids, np.zeros((count, 5), bool))


def sampler(data, config, **changes):
    return PairSampler(
        data, replace(config, **{"rlm": 0.0, **changes}), samples=SAMPLES, steps=25, sampling_rate_hz=100
    )


def pairs(found):
    """Return recording and first sample of the two segments of all pairs of an epoch."""
    first, second = zip(*(batch.signal.chunk(2) for batch in found.epoch(0)), strict=True)
    sides = [torch.cat(each) for each in (first, second)]
    return [(side[:, 0, 0].int() - 1).tolist() for side in sides], [side[:, 1, 0].int().tolist() for side in sides]


def test_segments_of_a_pair_are_adjacent_in_their_recording(config):
    data = numbered([str(row) for row in range(64)])
    (rows, others), starts = pairs(sampler(data, config))
    assert rows == others
    assert sorted(rows) == list(range(64))  # each recording once an epoch
    steps = np.subtract(*starts)
    assert set(np.abs(steps)) == {SAMPLES}
    assert 0.3 < (steps > 0).mean() < 0.7
    assert len(set(starts[0])) > 20


def test_whole_segments_are_cut(config):
    batch = next(sampler(numbered(["a"] * 16), config).epoch(0))
    assert batch.signal.shape == (16, 12, SAMPLES)
    assert (batch.signal[:, 1].diff() == 1).all()
    assert (batch.signal[:, 0].diff() == 0).all()


def test_patient_pairs_are_of_one_patient_and_of_several_recordings(config):
    patients = [str(row // 4) for row in range(64)]
    (rows, others), _ = pairs(sampler(numbered(patients), config, cmsc="patient"))
    assert [patients[row] for row in rows] == [patients[row] for row in others]
    different = np.mean([row != other for row, other in zip(rows, others, strict=True)])
    assert different == pytest.approx(0.75, abs=0.15)


def test_groups_are_recordings_or_patients(config):
    data = numbered([str(row // 4) for row in range(64)])
    for batch in sampler(data, config).epoch(0):
        assert len(set(batch.groups.tolist())) == len(batch.groups)
    for batch in sampler(data, config, cmsc="patient").epoch(0):
        rows = batch.signal.chunk(2)[0][:, 0, 0].int() - 1
        same = (rows[:, None] // 4) == (rows[None] // 4)
        assert torch.equal(batch.groups[:, None] == batch.groups[None], same)


def test_leads_are_masked_in_each_segment_by_itself(config, train):
    found = [batch.signal for batch in sampler(train, config, rlm=0.5).epoch(0)]
    silent = torch.cat([(signal == 0).all(-1) for signal in found])
    assert silent.float().mean() == pytest.approx(0.5, abs=0.07)
    assert not silent.all(1).any()
    first, second = found[0].chunk(2)
    assert not torch.equal((first == 0).all(-1), (second == 0).all(-1))


def test_the_same_seed_draws_the_same_batches(config, train):
    for batch, again in zip(sampler(train, config).epoch(3), sampler(train, config).epoch(3), strict=True):
        torch.testing.assert_close(batch.signal, again.signal)
        assert torch.equal(batch.mask, again.mask)
    other = next(iter(sampler(train, config, seed=1).epoch(3)))
    assert not torch.equal(next(iter(sampler(train, config).epoch(3))).signal, other.signal)


def test_ranks_share_what_one_process_draws(config, train):
    build = {"samples": SAMPLES, "steps": 25, "sampling_rate_hz": 100}
    whole = next(PairSampler(train, config, **build).epoch(0))
    shares = [next(PairSampler(train, config, **build, rank=rank, world_size=2).epoch(0)) for rank in (0, 1)]
    for name in ("signal", "mask"):
        halves = [getattr(share, name).unflatten(0, (2, -1)) for share in shares]
        together = torch.stack(halves, dim=2).flatten(1, 2).flatten(0, 1)
        assert torch.equal(together, getattr(whole, name)), name
    assert torch.equal(torch.stack([share.groups for share in shares], 1).flatten(), whole.groups)


def test_only_the_folds_are_read_and_their_patients_are_nowhere_else(folder, backbone, config):
    train = ptb_xl_recordings(folder, backbone, [1, 2])
    held_out = ptb_xl_recordings(folder, backbone, [3])
    assert train.signals.shape == (24, 12, 1000)
    assert train.signals.dtype == np.float16
    assert len(held_out) == 12
    assert not set(train.subject_ids) & set(held_out.subject_ids)
    with pytest.raises(InvalidInputError, match="no record is in fold 7"):
        ptb_xl_recordings(folder, backbone, [7])


def test_a_patient_on_two_sides_is_refused(folder, backbone, config, tmp_path):
    for name in ("scp_statements.csv", "ptbxl_database.csv"):
        (tmp_path / name).write_text((folder / name).read_text())
    lines = (tmp_path / "ptbxl_database.csv").read_text().splitlines()
    lines[1] = lines[1].replace(",1,records100", ",9,records100")
    (tmp_path / "ptbxl_database.csv").write_text("\n".join(lines))
    with pytest.raises(InvalidInputError, match="inside and outside"):
        ptb_xl_recordings(tmp_path, backbone, [1])


def test_what_does_not_fit_is_refused(config, train):
    with pytest.raises(ConfigError, match="at most half of a recording of 10 s"):
        PairSampler(train, config, samples=501, steps=25, sampling_rate_hz=100)
    with pytest.raises(ConfigError, match="expected at most 32 recordings"):
        sampler(train, config, batch_size=33)


def test_other_studies_have_folds_by_subject(backbone):
    def study(number, **changes):
        return Study(study_id=f"s{number}", subject_id=f"p{number // 2}", ecg=synthetic_ecg(seed=number, **changes))

    studies = [study(number) for number in range(60)]
    train, held_out = study_recordings(studies, backbone, [range(1, 8), [8]])
    assert train.signals.shape[1:] == (12, 1000)
    assert len(train) > len(held_out) > 0
    assert not set(train.subject_ids) & set(held_out.subject_ids)
    assert all(train.subject_ids.count(subject) == 2 for subject in train.subject_ids)
    short = [study(number, duration_s=9.9) for number in range(60)]
    longer = [study(number, duration_s=12.0, sampling_rate_hz=250) for number in range(60)]
    (both,) = study_recordings([*short, *longer], backbone, [range(1, 8)])
    assert both.signals.shape == train.signals.shape
    with pytest.raises(InvalidInputError, match="no recording of 10 s or more is in fold 1"):
        study_recordings(short, backbone, [[1]])
