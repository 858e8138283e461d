"""``mmecg predict`` with the real tower, heads drawn at random, and a corpus in which Anna has a history."""

import json
import shutil
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from mmecg_index.corpus import Corpus

from mmecg.assets import DEFAULT_BUNDLE
from mmecg.bundle import Bundle, load_bundle
from mmecg.cli import main
from mmecg.cli.predict import most_telling
from mmecg.cli.prediction_output import panels
from mmecg.datasets.synthetic import synthetic_ecg
from mmecg.ecg import LEADS
from mmecg.prediction.heads import PredictionHeads, write_heads
from mmecg.prediction.predictor import Predictor
from mmecg.prediction.query import PredictionQuery
from mmecg.prediction.result import LabelChange
from mmecg.report import Report
from mmecg.retriever import Retriever
from mmecg.study import Study
from mmecg.vitals import Vitals

START = datetime(2000, 1, 1)


@pytest.fixture(scope="module")
def folder(bundle: Bundle, heads: PredictionHeads, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with heads, a corpus, and a recording that is in neither."""
    root = tmp_path_factory.mktemp("predict")
    shutil.copytree(DEFAULT_BUNDLE, root / "bundle")
    write_heads(replace(bundle, path=root / "bundle"), heads)
    studies = [
        Study(
            study_id=f"s{number}",
            subject_id="anna" if number < 3 else f"p{number}",
            acquired_at=START + timedelta(days=number),
            ecg=synthetic_ecg(seed=number, rhythm="atrial_fibrillation" if number % 2 else "sinus"),
            labels={"AFIB": 100.0} if number % 2 else {"SR": 0.0, "NORM": 80.0},
            vitals=Vitals(age_years=60),
        )
        for number in range(30)
    ]
    words = Report.from_text("atrial fibrillation")
    studies.append(replace(studies[2], study_id="words", ecg=None, labels={}, report=words))
    with Corpus.create(root / "corpus", bundle.fingerprint) as corpus:
        Retriever(bundle.encoder, corpus).ingest(studies)
    np.savez(root / "now.npz", signal=synthetic_ecg(seed=77).signal, sampling_rate_hz=100.0, leads=LEADS)
    return root


@pytest.fixture(scope="module")
def loaded(folder: Path) -> Bundle:
    return load_bundle(folder / "bundle")


@pytest.fixture
def predict(folder: Path, loaded: Bundle, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """Run the command; the bundle that it names is loaded once for all."""
    monkeypatch.setattr("mmecg.bundle.load_bundle", {folder / "bundle": loaded}.__getitem__)

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        where = ["--bundle", folder / "bundle", "--corpus", folder / "corpus"]
        code = main(["predict", *(str(one) for one in [*where, *arguments])])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


def test_json_of_a_bare_ecg_with_a_history(predict, folder: Path) -> None:
    now = ("--ecg", folder / "now.npz", "--subject", "anna", "--as-of", "2000-01-02T12:00")
    code, out, err = predict(*now, "--labels", "superclass,AFIB", "--explain", "AFIB", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert [one["label"] for one in found["labels"]][-1] == "AFIB"
    assert len(found["labels"]) == 6
    assert [one["study_id"] for one in found["priors"]] == ["s1", "s0"]
    assert found["as_of"] == "2000-01-02T12:00:00"
    assert len(found["neighbours"]) == 10
    (saliency,) = found["saliency"]
    assert sum(saliency["lead_shares"].values()) == pytest.approx(1, abs=1e-4)


def test_table_of_a_study_of_the_corpus(predict) -> None:
    code, out, err = predict("--study-id", "s2", "--labels", "all")
    assert code == 0, err
    for word in (
        "Prediction as of 2000-01-03",
        "atrial fibrillation",
        "Earlier studies that were used (2 of 2)",
        "vote",
    ):
        assert word in out
    assert "age_years" in out
    assert "heart_rate_bpm" in out
    assert "beside study" in err
    code, out, err = predict("--study-id", "s9", "--no-cohort")
    assert code == 0
    assert "no_history: the subject has no study before as_of" in err
    assert "Earlier studies" not in out
    assert "labels are absent or below 10%" in err


def test_codes_have_words_and_what_is_undecided_says_why(predict, folder: Path) -> None:
    now = ("--ecg", folder / "now.npz", "--labels", "snomed:164889003,all")
    code, out, err = predict(*now)
    assert code == 0, err
    (line,) = [line for line in out.splitlines() if "snomed:164889003" in line]
    assert "fibrillation" in line.lower()
    assert "both fit" in out or "neither fits" in out or "is less likely" in out


def test_a_note_counts_and_is_shown_by_its_place_alone(predict, folder: Path) -> None:
    now = ("--ecg", folder / "now.npz", "--labels", "AFIB", "--note", "known AF, on amiodarone")
    code, out, err = predict(*now)
    assert code == 0, err
    assert "notes say AFIB historical (--note, 6-8); moved" in err
    assert "amiodarone" not in out + err
    code, out, err = predict(*now, "--json")
    found = json.loads(out)
    assert found["notes"]["said"] == [{"note": -1, "start": 6, "end": 8, "finding": "AFIB", "status": "historical"}]
    assert found["labels"][0]["probability"] != found["labels"][0]["single"]


def test_plot_shows_both_ecgs(predict, folder: Path, tmp_path: Path) -> None:
    code, _, err = predict("--study-id", "s2", "--plot", tmp_path / "now.png", "--labels", "AFIB")
    assert code == 0, err
    assert (tmp_path / "now.png").read_bytes().startswith(b"\x89PNG")
    code, out, _ = predict("--ecg", folder / "now.npz", "--plot", tmp_path / "alone.png", "--json", "--no-history")
    assert code == 0
    assert len(json.loads(out)["saliency"]) == 1
    assert (tmp_path / "alone.png").stat().st_size < (tmp_path / "now.png").stat().st_size


def test_a_long_summary_of_changes_is_not_drawn_over_the_heading(loaded: Bundle) -> None:
    query = PredictionQuery(study=synthetic_ecg())
    found = Predictor(loaded).predict_many([query])[0]
    changes = tuple(
        LabelChange(label=label, change="gone", prior_study_id="p", days_before=1, source="labels", probability=0.1)
        for label in ("superclass/STTC", "superclass/CD", "LAFB")
    )
    (panel,) = panels(query, replace(found, changes=changes), [], None)
    assert (panel.heading, panel.score) == ("Now", "")
    assert panel.facts[0] == "gone: superclass/STTC, superclass/CD, LAFB"
    assert "gone" not in panels(query, found, [], None)[0].facts[0]


def test_the_plot_explains_what_is_new_and_not_normal(loaded: Bundle) -> None:
    found = Predictor(loaded).predict(synthetic_ecg())
    changes = tuple(
        LabelChange(label=label, change="new", prior_study_id="p", days_before=1, source="labels", probability=0.9)
        for label in ("SR", "NORM", "ASMI")
    )
    assert most_telling(replace(found, changes=changes)) == "ASMI"


def test_a_study_of_words_and_a_single_lead(predict, folder: Path, tmp_path: Path) -> None:
    code, out, err = predict("--study-id", "words", "--plot", tmp_path / "words.png", "--labels", "AFIB", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["saliency"] == []
    assert found["labels"][0]["single"] > 0.8
    assert "no_ecg" in found["flags"]
    np.savez(tmp_path / "one.npz", signal=synthetic_ecg().signal[1:2], sampling_rate_hz=100.0, leads=["II"])
    code, out, err = predict(
        "--ecg", tmp_path / "one.npz", "--plot", tmp_path / "one.png", "--labels", "NORM", "--json"
    )
    assert code == 0, err
    found = json.loads(out)
    assert found["labels"][0]["probability"] is None
    assert found["labels"][0]["decision"] == "not_supported"
    assert (tmp_path / "one.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--labels", "AFBI"], "no trained head"),
        (["--as-of", "tomorrow"], "ISO 8601"),
        (["--as-of", "0001-01-01T00:00+02:00"], "years 1 to 9999"),
        (["--level", "0.3"], "level"),
        (["--prevalence", "AFIB=often"], "not a number"),
        (["--prevalence", "AFIB=2"], "above 0 and below 1"),
        (["--plot", "plot.txt"], "expected .png"),
        (["--explain", "nothing"], "no trained head"),
    ],
)
def test_bad_input_is_one_line(predict, folder: Path, arguments: list[str], message: str) -> None:
    code, out, err = predict("--ecg", folder / "now.npz", *arguments)
    assert (code, out) == (2, "")
    assert message in err.splitlines()[-1]


def test_words_cannot_be_explained_as_an_ecg(predict) -> None:
    code, out, err = predict("--study-id", "words", "--explain", "AFIB")
    assert (code, out) == (2, "")
    assert "no ECG, expected one to explain" in err


def test_subject_of_another_study_is_refused(predict) -> None:
    code, _, err = predict("--study-id", "s2", "--subject", "bert")
    assert code == 2
    assert "not the subject" in err
