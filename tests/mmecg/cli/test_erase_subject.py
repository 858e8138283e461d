import json
import shutil

import pytest
from mmecg_index.corpus import Corpus


@pytest.fixture
def copy(corpus, tmp_path):
    return shutil.copytree(corpus, tmp_path / "corpus")


def test_erased_studies_are_gone_and_nothing_is_left(run, copy, corpus, studies):
    erased = run("erase-subject", copy, "subject-3", "subject-4", "--json")
    assert erased.code == 0, erased.err
    assert json.loads(erased.out) == {"corpus": str(copy), "studies": 4, "traces": []}
    with Corpus(copy) as opened:
        assert opened.stats().studies == len(studies) - 4
    assert run("erase-subject", copy, "subject-3", "--check", "--known-from", corpus).code == 0
    again = run("erase-subject", copy, "subject-3")
    assert again.code == 0
    assert "0 studies erased; no traces left" in again.out


def test_what_is_left_of_a_deleted_subject_is_found(run, copy, corpus):
    with Corpus(copy) as opened:
        for study_id in ("study-6", "study-7"):
            opened.delete(study_id)
        check = run("erase-subject", copy, "subject-3", "--check", "--known-from", corpus, "--json")
    assert check.code == 1
    traces = json.loads(check.out)["traces"]
    assert {trace["kind"] for trace in traces} >= {"content"}
    assert any(trace["file"].startswith("index/") for trace in traces)


def test_a_check_refuses_a_subject_who_was_not_erased(run, copy):
    outcome = run("erase-subject", copy, "subject-3", "--check")
    assert outcome.code == 2
    assert "erase them first" in outcome.error
    assert "--known-from goes with --check" in run("erase-subject", copy, "x", "--known-from", copy).error


def test_a_corpus_in_use_is_refused(run, copy):
    with Corpus(copy):
        outcome = run("erase-subject", copy, "subject-3")
    assert outcome.code == 1
    assert "in use by process" in outcome.error
