"""Embedding to files."""

import json

import numpy as np
import polars as pl
import pytest

from mmecg.bundle import load_bundle
from mmecg.datasets.synthetic import synthetic_ecg


@pytest.mark.parametrize("suffix", [".parquet", ".npz"])
def test_records_and_texts_have_the_encoders_embeddings(run, record, tmp_path, suffix):
    out = tmp_path / f"embeddings{suffix}"
    outcome = run("embed", record, "--text", "atrial fibrillation", "--out", out)
    assert outcome.code == 0, outcome.err
    if suffix == ".npz":
        with np.load(out) as file:
            found = {name: file[name] for name in file.files}
    else:
        table = pl.read_parquet(out)
        found = {name: table[name].to_numpy() for name in table.columns}
    bundle = load_bundle()
    assert list(found["modality"]) == ["text", "ecg"]
    assert list(found["id"]) == ["text 1", str(record)]
    assert set(np.atleast_1d(found["fingerprint"])) == {bundle.fingerprint}
    assert found["embedding"].shape == (2, 256)
    assert found["embedding"].dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found["embedding"], axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(found["embedding"][:1], bundle.encoder.encode_text(["atrial fibrillation"]), atol=1e-5)


def test_studies_give_one_row_a_modality(run, table, studies, tmp_path):
    assert run("embed", "--studies", table, "--out", tmp_path / "all.parquet").code == 0
    counts = pl.read_parquet(tmp_path / "all.parquet").group_by("modality").len()
    assert dict(counts.rows()) == dict.fromkeys(("ecg", "text", "vitals"), len(studies))


def test_broken_record_is_skipped_and_told_by_the_exit_code(run, record, tmp_path):
    outcome = run("embed", record, tmp_path / "nowhere", "--out", tmp_path / "some.parquet")
    assert outcome.code == 1
    assert "1 records skipped" in outcome.err
    assert pl.read_parquet(tmp_path / "some.parquet").height == 1


@pytest.mark.parametrize("arguments", [["nowhere"], []], ids=["broken", "none"])
def test_nothing_to_embed_writes_nothing(run, tmp_path, arguments):
    outcome = run("embed", *arguments, "--out", tmp_path / "none.parquet")
    assert outcome.code == 2
    assert list(tmp_path.iterdir()) == []


def test_unknown_suffix(run, record, tmp_path):
    outcome = run("embed", record, "--out", tmp_path / "embeddings.csv")
    assert outcome.code == 2
    assert "expected .parquet or .npz" in outcome.error


def test_quality_of_records_is_told(run, record, tmp_path):
    signal = synthetic_ecg(seed=4).signal.copy()
    signal[8, 300:700] = 0.4
    np.savez(tmp_path / "flat.npz", signal=signal, sampling_rate_hz=100.0)
    outcome = run("embed", record, tmp_path / "flat.npz", "--out", tmp_path / "ecgs.parquet", "--json")
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["quality"] == {str(tmp_path / "flat.npz"): [{"kind": "flat", "leads": ["V3"]}]}
    assert "flat in V3" in outcome.err
