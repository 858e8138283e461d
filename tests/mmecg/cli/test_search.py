"""Searching: every kind of query, filters, JSON, the plot, and the same answer from a server."""

import json
import threading

import pytest
from mmecg_server.__main__ import open_bundle, open_corpus
from mmecg_server.config import ServerConfig
from mmecg_server.server import Server

from mmecg.cli.inputs import filter_fields, parse_filter, parse_vitals
from mmecg.ecg import LEADS
from mmecg.retriever import Retriever
from mmecg.search import Filter

QUERIES = {
    "ecg": ["--ecg", "RECORD"],
    "text": ["--text", "atrial fibrillation"],
    "vitals": ["--vitals", "age_years=50,sex=male"],
    "study": ["--study-id", "study-3"],
    "mix": ["--ecg", "RECORD", "--text", "sinus rhythm", "--vitals", "age_years=50", "--weights", "ecg=1,text=0.2"],
}


def arguments(query, record):
    return [record if part == "RECORD" else part for part in query]


def hits(outcome):
    assert outcome.code == 0, outcome.err
    return json.loads(outcome.out)["hits"]


@pytest.mark.parametrize("target", ["ecg", "text", "vitals"])
@pytest.mark.parametrize("query", QUERIES.values(), ids=QUERIES)
def test_every_query_finds_every_target_best_first(run, corpus, record, query, target):
    outcome = run("search", "--corpus", corpus, *arguments(query, record), "--target", target, "--top-k", 6, "--json")
    found = hits(outcome)
    assert len({hit["study_id"] for hit in found}) == 6
    scores = [hit["score"] for hit in found]
    assert scores == sorted(scores, reverse=True)
    assert all(hit["modality_scores"][target] == pytest.approx(hit["score"], abs=1e-4) for hit in found)


def test_a_studys_own_record_is_its_best_hit(run, corpus, studies, tmp_path):
    import numpy as np

    np.savez(tmp_path / "ecg.npz", signal=studies[7].ecg.signal, sampling_rate_hz=100.0, leads=LEADS)
    best = hits(run("search", "--corpus", corpus, "--ecg", tmp_path / "ecg.npz", "--json"))[0]
    assert best["study_id"] == "study-7"
    assert best["score"] == pytest.approx(1, abs=1e-3)
    assert best["study"]["report"] == "atrial fibrillation"
    assert best["study"]["vitals"] == {"age_years": 47, "sex": "female"}


def test_patient_of_the_study_is_left_out_unless_wanted(run, corpus):
    search = ("search", "--corpus", corpus, "--study-id", "study-3", "--top-k", 100, "--json")
    others = {hit["study_id"] for hit in hits(run(*search))}
    assert not others & {"study-2", "study-3"}
    assert len(others) == 22
    assert {hit["study_id"] for hit in hits(run(*search, "--same-subject"))} == others | {"study-2"}


def test_filters_hold_and_fill_the_answer(run, corpus, studies):
    options = ["--filter", "sex=male", "--filter", "age_min_years=45", "--filter", "labels_any=AFIB,PACE"]
    found = hits(run("search", "--corpus", corpus, "--text", "sinus rhythm", *options, "--top-k", 50, "--json"))
    expected = {
        study.study_id
        for study in studies
        if study.vitals.sex == "male" and study.vitals.age_years >= 45 and "AFIB" in study.labels
    }
    assert expected
    assert {hit["study_id"] for hit in found} == expected


def test_table_shows_rank_score_report_and_plan(run, corpus):
    outcome = run("search", "--corpus", corpus, "--text", "[bold]sinus[/bold] rhythm", "--top-k", 3)
    assert outcome.code == 0
    assert "[bold]sinus[/bold]" in outcome.out, "text must not be read as markup"
    assert "subject-" in outcome.out
    assert "rhythm" in outcome.out
    assert "of 24 studies passed the filter" in outcome.err


def test_plot_is_a_png_with_query_and_hits(run, corpus, record, tmp_path):
    plot = tmp_path / "hits.png"
    outcome = run("search", "--corpus", corpus, "--ecg", record, "--top-k", 2, "--plot", plot, "--json")
    assert len(hits(outcome)) == 2
    content = plot.read_bytes()
    assert content.startswith(b"\x89PNG")
    assert int.from_bytes(content[20:24], "big") > int.from_bytes(content[16:20], "big") * 0.9, "three panels are tall"
    assert [path.name for path in tmp_path.iterdir()] == ["hits.png"]


def flat_lead(folder):
    import numpy as np

    from mmecg.datasets.synthetic import synthetic_ecg

    signal = synthetic_ecg(seed=4).signal.copy()
    signal[8, 300:700] = 0.4
    np.savez(folder / "flat.npz", signal=signal, sampling_rate_hz=100.0, leads=LEADS)
    return folder / "flat.npz"


def test_quality_of_the_query_is_told(run, corpus, record, tmp_path):
    outcome = run("search", "--corpus", corpus, "--ecg", flat_lead(tmp_path), "--json")
    assert json.loads(outcome.out)["quality"] == [{"kind": "flat", "leads": ["V3"]}]
    assert "flat in V3" in outcome.err
    outcome = run("search", "--corpus", corpus, "--ecg", record, "--json")
    assert json.loads(outcome.out)["quality"] == []
    assert "quality" not in outcome.err


def test_pages_follow_one_another(run, corpus):
    search = ("search", "--corpus", corpus, "--text", "sinus rhythm")
    whole = [hit["study_id"] for hit in hits(run(*search, "--top-k", 24, "--json"))]
    paged, token = [], ""
    for _ in range(3):
        answer = json.loads(run(*search, "--top-k", 8, "--page-token", token, "--json").out)
        paged += [hit["study_id"] for hit in answer["hits"]]
        token = answer["next_page_token"]
    assert paged == whole
    assert token == ""
    assert "--page-token " in run(*search, "--top-k", 8).err
    assert run(*search, "--page-token", "nonsense").code == 2


def check_that_subject_3_is_left_out(run, record, *where):
    search = ("search", *where, "--ecg", record, "--subject-id", "subject-3", "--top-k", 100, "--json")
    found = {hit["study_id"] for hit in hits(run(*search))}
    assert len(found) == 22
    assert not found & {"study-6", "study-7"}


def test_patient_of_an_ecg_is_left_out_when_named(run, corpus, record):
    check_that_subject_3_is_left_out(run, record, "--corpus", corpus)


@pytest.fixture(scope="module")
def address(corpus):
    config = ServerConfig(corpus=corpus, port=0)
    bundle = open_bundle(config)
    with Server(config) as server, open_corpus(config, bundle.fingerprint) as corpus:
        server.serve(Retriever(bundle.encoder, corpus))
        yield f"127.0.0.1:{server.port}"
        stopping = threading.Thread(target=server.stop)
        stopping.start()
        stopping.join(30)
        assert not stopping.is_alive()


@pytest.mark.parametrize("query", QUERIES.values(), ids=QUERIES)
def test_server_gives_the_same_answer(run, address, query, record, table, tmp_path):
    # A corpus is open in one process at a time, so the twin is built anew.
    assert run("build", "--data", table, "--out", tmp_path / "twin").code == 0
    options = [*arguments(query, record), "--top-k", 5, "--filter", "age_min_years=45", "--json"]
    there, here = run("search", "--server", address, *options), run("search", "--corpus", tmp_path / "twin", *options)
    assert [hit["study_id"] for hit in hits(there)] == [hit["study_id"] for hit in hits(here)]
    scores = [[hit["score"] for hit in hits(outcome)] for outcome in (there, here)]
    assert scores[0] == pytest.approx(scores[1], abs=2e-3)


def test_server_leaves_the_named_patient_out(run, address, record):
    check_that_subject_3_is_left_out(run, record, "--server", address)


def test_server_that_is_not_there(run):
    outcome = run("search", "--server", "127.0.0.1:1", "--text", "sinus rhythm", "--timeout-s", "0.5")
    assert outcome.code == 1
    assert outcome.error


def test_filter_has_a_parser_for_every_field():
    examples = {"acquired_from": "1990-01-01", "acquired_before": "1991-01-01T10:00", "sex": "female"}
    examples["exclude_quality"] = "noise,flat"
    for name in filter_fields():
        value = "60" if name.startswith("age") else examples.get(name, "a,b")
        assert getattr(parse_filter([f"{name}={value}"]), name) not in (None, frozenset())


def test_sets_of_a_filter_add_up():
    assert parse_filter(["labels_any=A", "labels_any=B,C"]) == Filter(labels_any=frozenset("ABC"))
    assert parse_filter([]) is None


def test_vitals_are_parsed_by_name():
    vitals = parse_vitals(" age_years=63, sex=female,spo2_percent=97.5")
    assert (vitals.age_years, vitals.sex, vitals.spo2_percent, vitals.weight_kg) == (63, "female", 97.5, None)
