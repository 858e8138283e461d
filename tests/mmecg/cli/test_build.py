"""Building a corpus: every source, skipped records, and nothing half-built."""

import json

import numpy as np
import pytest
from mmecg_index.corpus import Corpus

from mmecg.bundle import load_bundle
from mmecg.cli.inputs import open_studies
from mmecg.datasets.synthetic import synthetic_ecg


def stored(path):
    with Corpus.open(path, load_bundle().fingerprint) as corpus:
        ids, _ = corpus.list_studies()
        return set(ids), corpus.stats()


def test_parquet_table_becomes_a_corpus_with_all_modalities(corpus, studies):
    ids, stats = stored(corpus)
    assert ids == {study.study_id for study in studies}
    assert stats.embeddings == {"ecg": len(studies), "text": len(studies), "vitals": len(studies)}
    assert stats.subjects == len(studies) // 2


def test_folder_of_wfdb_records(run, records, tmp_path):
    outcome = run("build", "--data", records, "--out", tmp_path / "corpus")
    assert outcome.code == 0, outcome.err
    ids, stats = stored(tmp_path / "corpus")
    assert ids == {"r1", "more/r2", "more/r3"}
    assert stats.embeddings["ecg"] == 3
    assert stats.embeddings.get("text", 0) == 0


def test_broken_record_is_skipped_listed_and_told_by_the_exit_code(run, records, tmp_path):
    (records / "more" / "r2.dat").write_bytes(b"short")
    outcome = run("build", "--data", records, "--out", tmp_path / "corpus")
    assert outcome.code == 1
    assert "1 records skipped" in outcome.err
    assert "more/r2" in outcome.err
    assert "truncated" in outcome.err
    assert stored(tmp_path / "corpus")[0] == {"r1", "more/r3"}


def test_outcome_as_json(run, records, tmp_path):
    (records / "r1.hea").write_text("nonsense")
    outcome = run("build", "--data", records, "--out", tmp_path / "corpus", "--json")
    assert outcome.code == 1
    answer = json.loads(outcome.out)
    assert answer["read"] == answer["studies"] == 2
    assert [item["record"] for item in answer["skipped"]] == ["r1"]


def test_nothing_is_left_when_no_record_can_be_read(run, records, tmp_path):
    for file in records.rglob("*.dat"):
        file.write_bytes(b"")
    outcome = run("build", "--data", records, "--out", tmp_path / "corpus")
    assert outcome.code == 2
    assert "none of the 3 records" in outcome.err
    assert [path.name for path in tmp_path.iterdir()] == ["records"]


def test_append_adds_and_replaces(run, records, table, tmp_path):
    assert run("build", "--data", records, "--out", tmp_path / "corpus").code == 0
    assert run("build", "--data", records, "--out", tmp_path / "corpus", "--append").code == 0
    assert stored(tmp_path / "corpus")[1].studies == 3
    assert run("build", "--data", table, "--out", tmp_path / "corpus", "--append").code == 0
    assert stored(tmp_path / "corpus")[1].studies == 27


def test_append_needs_a_corpus(run, records, tmp_path):
    outcome = run("build", "--data", records, "--out", tmp_path / "corpus", "--append")
    assert outcome.code == 1
    assert "holds no corpus" in outcome.error
    assert not (tmp_path / "corpus").exists()


@pytest.mark.parametrize("kind", ["ptb_xl", "mimic_iv_ecg"])
def test_folders_are_recognised_by_their_table(kind, tmp_path):
    from mmecg.errors import InvalidInputError

    name = {"ptb_xl": "ptbxl_database.csv", "mimic_iv_ecg": "machine_measurements.csv"}[kind]
    (tmp_path / name).write_text("wrong\n1\n")
    with pytest.raises(InvalidInputError) as refused:
        open_studies(tmp_path)
    assert "holds no studies" not in str(refused.value), "the reader of this layout was not chosen"


def test_wfdb_records_keep_their_rate_and_length(records):
    by_id = {study.study_id: study for study in open_studies(records)}
    assert by_id["more/r3"].ecg.sampling_rate_hz == 250
    expected = synthetic_ecg(seed=1).signal
    assert abs(by_id["r1"].ecg.signal - expected).max() <= 0.00051


def build_arrays(folder):
    signal = np.stack([synthetic_ecg(seed=seed).signal for seed in range(3)])
    signal[1, 8, 300:700] = 0.4
    np.save(folder / "ecgs.npy", signal)
    np.savez(folder / "ecgs.npz", signal=signal, sampling_rate_hz=100.0, study_id=["a", "b", "c"])
    return folder


def test_numpy_files(run, tmp_path):
    build_arrays(tmp_path)
    assert run("build", "--data", tmp_path / "ecgs.npz", "--out", tmp_path / "named").code == 0
    assert stored(tmp_path / "named")[0] == {"a", "b", "c"}
    options = ("--data", tmp_path / "ecgs.npy", "--sampling-rate-hz", 100)
    assert run("build", *options, "--out", tmp_path / "numbered").code == 0
    assert stored(tmp_path / "numbered")[0] == {"ecgs-0", "ecgs-1", "ecgs-2"}
    options = ("--studies", tmp_path / "ecgs.npy", "--sampling-rate-hz", 100)
    assert run("embed", *options, "--out", tmp_path / "ecgs.parquet").code == 0


def test_quality_findings_are_counted(run, tmp_path):
    build_arrays(tmp_path)
    build = ("build", "--data", tmp_path / "ecgs.npz", "--out")
    assert json.loads(run(*build, tmp_path / "one", "--json").out)["quality"] == {"flat": 1}
    assert "quality finding flat" in run(*build, tmp_path / "two").out


def test_the_index_that_was_asked_for_is_built(run, table, tmp_path):
    assert run("build", "--data", table, "--out", tmp_path / "corpus", "--factory", "HNSW8").code == 0
    with Corpus.open(tmp_path / "corpus", load_bundle().fingerprint, factory="HNSW8") as corpus:
        query = load_bundle().encoder.encode_text(["sinus rhythm"])
        assert "HNSW" in corpus.search(query, 3).plan.engine
    answer = run("search", "--corpus", tmp_path / "corpus", "--text", "sinus rhythm", "--top-k", 3, "--json")
    assert "HNSW" in json.loads(answer.out)["plan"]["engine"]


def test_the_corpus_is_compacted(run, table, tmp_path, monkeypatch):
    compacted = []
    monkeypatch.setattr(Corpus, "compact", lambda corpus: compacted.append(corpus.stats().studies))
    assert run("build", "--data", table, "--out", tmp_path / "corpus").code == 0
    assert compacted == [24]


def test_too_few_studies_for_the_index_leave_it_exact(run, table, tmp_path):
    outcome = run("build", "--data", table, "--out", tmp_path / "corpus", "--factory", "IVF64,Flat")
    assert outcome.code == 0, outcome.err
    assert "searched exactly" in outcome.err
    assert stored(tmp_path / "corpus")[1].studies == 24


def test_unknown_factory_builds_nothing(run, table, tmp_path):
    outcome = run("build", "--data", table, "--out", tmp_path / "corpus", "--factory", "nonsense")
    assert outcome.code == 2
    assert "FAISS cannot make an index" in outcome.error
    assert list(tmp_path.iterdir()) == []
