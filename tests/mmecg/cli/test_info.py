"""What ``mmecg info`` tells."""

import json

import mmecg
from mmecg.bundle import load_bundle


def test_json_has_versions_bundle_and_corpus(run, corpus, studies):
    answer = json.loads(run("info", "--corpus", corpus, "--json").out)
    bundle = load_bundle()
    assert answer["versions"]["mmecg"] == mmecg.__version__
    assert answer["bundle"]["fingerprint"] == answer["corpus"]["fingerprint"] == bundle.fingerprint
    assert answer["corpus"]["studies"] == len(studies)
    assert answer["card"] == bundle.card


def test_tables_for_people(run):
    outcome = run("info")
    assert outcome.code == 0
    assert load_bundle().fingerprint in outcome.out
    assert "Not a medical device" in outcome.out


def test_each_index_is_described(run, corpus, studies):
    indexes = json.loads(run("info", "--corpus", corpus, "--json").out)["indexes"]
    assert indexes.keys() == {"ecg", "text", "vitals"}
    ecg = indexes["ecg"]
    assert (ecg["engine"], ecg["rows"], ecg["tombstones"]) == ("exact", len(studies), 0)
    assert (ecg["effort"], ecg["recall"], ecg["memory_mapped"]) == (None, None, False)
    assert ecg["snapshot_bytes"] > 1024 * len(studies)
    table = run("info", "--corpus", corpus).out
    assert "writes behind the store" in table
    assert "recall@10 at build" in table
