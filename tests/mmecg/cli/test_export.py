"""``mmecg export`` and ``import``."""

import json

import numpy as np
import pytest
from mmecg_index.corpus import Corpus

from mmecg.cli import import_


def stored(path):
    with Corpus(path) as corpus:
        ids = corpus.list_studies()[0]
        studies = corpus.get(ids)
        vectors = corpus.embeddings(corpus.rows(ids))
    return [(each.study_id, each.report, each.ecg.signal.tobytes()) for each in studies], vectors


def test_there_and_back(run, corpus, studies, tmp_path):
    made = run("export", corpus, tmp_path / "export", "--embeddings", "--json")
    assert made.code == 0, made.err
    answer = json.loads(made.out)
    assert answer["studies"] == len(studies)
    assert answer["records"] + answer["float32_signals"] == len(studies)
    outcome = run("import", tmp_path / "export", tmp_path / "corpus", "--json")
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["studies"] == len(studies)
    (before, vectors), (after, imported) = stored(corpus), stored(tmp_path / "corpus")
    assert after == before
    for one, other in zip(vectors, imported, strict=True):
        assert {name: vector.tobytes() for name, vector in one.items()} == {
            name: vector.tobytes() for name, vector in other.items()
        }
    sequence = json.loads(outcome.out)["sequence"]
    again = run("import", tmp_path / "export", tmp_path / "corpus", "--json")
    assert json.loads(again.out)["sequence"] == sequence, "what is there is not written again"


def test_without_embeddings_the_studies_are_embedded(run, corpus, tmp_path):
    assert run("export", corpus, tmp_path / "export").code == 0
    outcome = run("import", tmp_path / "export", tmp_path / "corpus")
    assert outcome.code == 0, outcome.err
    (before, vectors), (after, imported) = stored(corpus), stored(tmp_path / "corpus")
    assert after == before
    for one, other in zip(vectors, imported, strict=True):
        for name in one:
            np.testing.assert_allclose(other[name], one[name], atol=1e-2)


def test_an_import_that_was_interrupted_goes_on(run, corpus, studies, tmp_path, monkeypatch):
    monkeypatch.setattr(import_, "_BATCH", 5)
    assert run("export", corpus, tmp_path / "export", "--embeddings").code == 0
    record = next((tmp_path / "export").rglob("*.dat"), None)
    table = next((tmp_path / "export").glob("*.parquet"))
    victim = record or table
    content = victim.read_bytes()
    victim.write_bytes(content[:-100])
    assert run("import", tmp_path / "export", tmp_path / "corpus").code == 1
    victim.write_bytes(content)
    outcome = run("import", tmp_path / "export", tmp_path / "corpus", "--json")
    assert json.loads(outcome.out)["studies"] == len(studies)
    assert stored(tmp_path / "corpus")[0] == stored(corpus)[0]


@pytest.mark.parametrize("version", [2, 99])
def test_a_newer_export_is_refused(run, corpus, tmp_path, version):
    assert run("export", corpus, tmp_path / "export").code == 0
    manifest = tmp_path / "export" / "MANIFEST.json"
    manifest.write_text(manifest.read_text().replace('"version": 1', f'"version": {version}'))
    outcome = run("import", tmp_path / "export", tmp_path / "corpus")
    assert outcome.code == 1
    assert "import it with a later release" in outcome.error
    assert not (tmp_path / "corpus").exists()


def test_a_folder_that_is_no_export(run, tmp_path):
    outcome = run("import", tmp_path, tmp_path / "corpus")
    assert outcome.code == 1
    assert "is no export" in outcome.error
