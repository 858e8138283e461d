"""What is known of an earlier study: labels before report before nothing."""

import numpy as np
import pytest

from mmecg.labels.report_miner import ReportMiner
from mmecg.labels.weights import load_text_evidence
from mmecg.prediction.known import KnownLabels, by_digest
from mmecg.report import Report
from mmecg.study import Study

LABELS = (
    *load_text_evidence().labels,
    *(f"superclass/{name}" for name in ("NORM", "MI", "STTC", "CD", "HYP")),
)


@pytest.fixture(scope="module")
def known() -> KnownLabels:
    return KnownLabels(LABELS, ReportMiner())


def said(known: KnownLabels, **parts) -> tuple[str, dict[str, float]]:
    report = parts.pop("report", None)
    study = Study(study_id="s", subject_id="p", report=Report.from_text(report) if report else None, **parts)
    source, values = known.of(study)
    assert values.dtype == np.float32
    finite = {label: value for label, value in zip(LABELS, values.tolist(), strict=True) if np.isfinite(value)}
    return source, finite


def test_listed_is_there_at_any_likelihood_and_what_is_not_listed_is_absent(known: KnownLabels) -> None:
    source, values = said(known, labels={"IMI": 0.0, "SR": 100.0}, report="atrial fibrillation")
    assert source == "labels"
    assert len(values) == len(LABELS)
    assert {label for label, value in values.items() if value == 1} == {"IMI", "SR", "superclass/MI"}
    assert set(values.values()) == {0.0, 1.0}


def test_labels_of_another_kind_say_nothing_of_the_rest(known: KnownLabels) -> None:
    assert said(known, labels={"MI": 100.0}) == ("labels", {"superclass/MI": 1.0})
    assert said(known, labels={"snomed:164889003": 100.0}) == ("labels", {"AFIB": 1.0})
    assert said(known, labels={"anything": 100.0}) == ("ecg", {})
    source, values = said(known, labels={"MI": 100.0}, report="atrial fibrillation")
    assert (source, values["superclass/MI"]) == ("labels", 1.0)
    assert values["AFIB"] > 0.8


def test_report_speaks_where_no_label_does(known: KnownLabels) -> None:
    source, values = said(known, report="Sinus rhythm. Old inferior infarct. No left bundle branch block.")
    assert source == "report"
    assert values["SR"] > 0.9
    assert values["superclass/MI"] >= values["IMI"] > 0.5
    assert values["AFIB"] < 0.05
    assert values["CLBBB"] < 0.2
    assert len(values) == len(LABELS), "silence has a probability too"


def test_doubt_lies_between(known: KnownLabels) -> None:
    texts = ("no atrial fibrillation", "possible atrial fibrillation", "atrial fibrillation")
    denied, doubted, stated = (said(known, report=text)[1]["AFIB"] for text in texts)
    assert denied < doubted < stated


def test_normal_ecg_leaves_little_else(known: KnownLabels) -> None:
    _, values = said(known, report="sinus rhythm. normal ecg")
    assert values["superclass/NORM"] > 0.8
    assert all(values[f"superclass/{name}"] < 0.3 for name in ("MI", "STTC", "CD", "HYP"))


@pytest.mark.parametrize("report", [None, "-", "x" * 25_000], ids=["none", "empty", "too long"])
def test_silence_leaves_the_ecg(known: KnownLabels, report: str | None) -> None:
    study = Study(study_id="s", subject_id="p", report=Report(report, report) if report else None)
    source, values = known.of(study)
    assert source == "ecg"
    assert np.isnan(values).all()


def test_a_text_gives_every_label_a_probability(known: KnownLabels) -> None:
    logits = known.text_logits("atrial fibrillation. inferior infarct.")
    assert logits is not None
    place = {label: index for index, label in enumerate(LABELS)}
    assert logits.shape == (len(LABELS),)
    assert np.isfinite(logits).all()
    assert logits[place["AFIB"]] > 2
    assert logits[place["superclass/MI"]] > logits[place["IMI"]] > 0
    assert logits[place["SR"]] < -2
    assert known.text_logits("cough") is None


def test_what_was_worked_out_is_remembered_without_the_text() -> None:
    asked: list[str] = []

    def work_out(text: str) -> np.ndarray | None:
        asked.append(text)
        return None if text == "nothing" else np.array([float(len(text))])

    remembered = by_digest(work_out)
    for text in ("atrial fibrillation", "nothing", "atrial fibrillation", "nothing"):
        found = remembered(text)
        assert (found is None) == (text == "nothing")
    assert asked == ["atrial fibrillation", "nothing"]
    held = next(cell.cell_contents for cell in remembered.__closure__ if isinstance(cell.cell_contents, dict))
    assert len(held) == 2
    assert all(isinstance(key, bytes) and b"fibrillation" not in key for key in held)
    for number in range(5000):
        remembered(f"text {number}")
    assert len(held) == 4096
    remembered("text 4999")
    assert asked.count("text 4999") == 1
