from __future__ import annotations

import re
from html.parser import HTMLParser

import numpy as np
import pytest
from cleanlab.rank import get_self_confidence_for_each_label

from mmecg.errors import InvalidInputError
from mmecg.labels.assertion import LabelAssertion, Status
from mmecg.labels.review import (
    TEXT_YES,
    Case,
    confident_errors,
    disagreement_queue,
    highlight,
    queue_scores,
    render_page,
    suspicion,
)

HOSTILE = "AF <script>alert('x')</script> & \"possible\" LVH"


def flipped(count: int = 600):
    """Sure probabilities, and labels of which one in twenty was flipped."""
    rng = np.random.default_rng(0)
    truth = rng.random((count, 3)) < 0.4
    probability = np.where(truth, 0.9, 0.1) + rng.uniform(-0.08, 0.08, truth.shape)
    wrong = rng.random(truth.shape) < 0.05
    return truth ^ wrong, probability, wrong


def test_flipped_labels_come_first() -> None:
    given, probability, wrong = flipped()
    order = np.argsort(-suspicion(given, probability), axis=None)[: wrong.sum()]
    assert wrong.ravel()[order].all()
    found = confident_errors(given, probability)
    assert wrong[found].all()
    assert found.sum() > 0.5 * wrong.sum()


def test_suspicion_is_what_cleanlab_calls_low_self_confidence() -> None:
    given, probability, _ = flipped()
    for column in range(3):
        both = np.stack([1 - probability[:, column], probability[:, column]], axis=1)
        oracle = get_self_confidence_for_each_label(given[:, column].astype(int), both)
        np.testing.assert_allclose(suspicion(given, probability)[:, column], 1 - oracle, atol=1e-12)


def test_a_label_that_all_have_is_never_an_error() -> None:
    assert not confident_errors(np.ones((10, 1), np.bool_), np.full((10, 1), 0.01)).any()


def test_shapes_must_match() -> None:
    with pytest.raises(InvalidInputError, match=r"labels have shape \(2, 1\), probabilities \(2, 2\)"):
        suspicion(np.ones((2, 1), np.bool_), np.ones((2, 2)))


def test_the_queue_holds_disagreements_only_most_doubtful_first() -> None:
    text = np.array([[True, False], [True, True], [False, False]])
    ecg = np.array([[False, False], [True, False], [True, False]])
    both = np.array([[0.3, 0.1], [0.9, 0.02], [0.8, 0.1]])
    queue = disagreement_queue(
        ["s1", "s2", "s3"], ["AFIB", "LVH"], text=text, words=text, ecg=ecg, text_probability=both,
        ecg_probability=both, probability=both,
    )  # fmt: skip
    assert queue.select("study_id", "label", "kind").rows() == [
        ("s2", "LVH", "text yes, ECG no"),
        ("s3", "AFIB", "text no, ECG yes"),
        ("s1", "AFIB", "text yes, ECG no"),
    ]
    assert queue["suspicion"].to_list() == pytest.approx([0.98, 0.8, 0.7])
    assert disagreement_queue(
        [], ["AFIB"], text=text[:0, :1], words=text[:0, :1], ecg=ecg[:0, :1], text_probability=both[:0, :1],
        ecg_probability=both[:0, :1], probability=both[:0, :1],
    ).is_empty()  # fmt: skip


def test_an_entry_in_which_the_words_amount_to_what_the_ecg_says_comes_last() -> None:
    """Reports say "anterior", codes and ECG say anteroseptal: nothing is wrong with the record."""
    text = np.array([[True, False], [True, False], [True, True]])
    words = np.array([[False, True], [True, False], [True, True]])
    ecg = np.array([[False, True], [False, False], [True, True]])
    both = np.array([[0.01, 0.99], [0.4, 0.1], [0.9, 0.9]])
    scores = queue_scores(text, words, ecg, both)
    np.testing.assert_allclose(scores, [[0.99, 0.99], [1.6, -1], [-1, -1]])
    queue = disagreement_queue(
        ["s1", "s2", "s3"], ["AMI", "ASMI"], text=text, words=words, ecg=ecg, text_probability=both,
        ecg_probability=both, probability=both,
    )  # fmt: skip
    assert queue.select("study_id", "label", "coding_habit").rows() == [
        ("s2", "AMI", False),
        ("s1", "AMI", True),
        ("s1", "ASMI", True),
    ]


def assertion(finding: str, text: str, *, cue: str = "") -> LabelAssertion:
    start, at = HOSTILE.index(text), HOSTILE.index(cue) if cue else -1
    return LabelAssertion(
        finding, Status.POSSIBLE, start, start + len(text), f"en/{finding}/0", f"en/{cue}", at, at + len(cue), ()
    )


def test_marks_are_the_evidence_and_the_text_survives() -> None:
    marked = highlight(HOSTILE, [assertion("AFIB", "AF"), assertion("LVH", "LVH", cue="possible")], "LVH")
    assert re.findall(r'<mark class="([^"]+)" title="[^"]*">([^<]*)</mark>', marked) == [
        ("finding", "AF"),
        ("cue own", "possible"),
        ("finding own", "LVH"),
    ]
    assert "<script" not in marked

    class Text(HTMLParser):
        found = ""

        def handle_data(self, data: str) -> None:
            self.found += data

    reader = Text()
    reader.feed(marked)
    assert reader.found == HOSTILE


def test_overlapping_evidence_is_marked_once() -> None:
    both = [assertion("IMI", "script"), assertion("LVH", "<script>")]
    assert highlight(HOSTILE, both, "IMI").count("<mark") == 1
    assert '<mark class="finding own"' in highlight(HOSTILE, both, "IMI")


def test_the_page_loads_nothing_and_escapes_everything() -> None:
    entry = {
        "rank": 1, "study_id": "<b>7", "label": "LVH", "kind": "text yes, ECG no", "confident_error": True,
        "coding_habit": False, "text_probability": 0.9, "ecg_probability": 0.05, "probability": 0.12,
    }  # fmt: skip
    page = render_page([Case(entry, HOSTILE, (), b"\x89PNG")], title="a < b", names={"LVH": "<i>left</i>"})
    assert "<script" not in page
    assert "<b>7" not in page
    assert "<i>left" not in page
    assert "http:" not in page
    assert "https:" not in page
    assert "default-src 'none'" in page
    assert "data:image/png;base64,iVBORw==" in page
    assert "12.0%" in page
    assert "agree on every label" in render_page([], title="none", names={})


def test_the_page_says_how_the_text_speaks_of_the_label() -> None:
    entry = {
        "rank": 1, "study_id": "7", "label": "LVH", "kind": TEXT_YES, "confident_error": False,
        "coding_habit": True, "text_probability": 0.9, "ecg_probability": 0.05, "probability": 0.12,
    }  # fmt: skip
    said = (assertion("AFIB", "<script>"), assertion("LVH", "LVH", cue="possible"))
    page = render_page([Case(entry, HOSTILE, said, b"")], title="t", names={})
    assert re.findall("<li>.*?</li>", page) == ["<li>“LVH”: <b>possible</b> <small>en/LVH/0 en/possible</small></li>"]
    assert "the report mentions it, the ECG says no" in page
    assert "coding habit: all words of the report" in page
    assert "Most doubtful first, coding habits last." in page
    hostile = render_page([Case({**entry, "label": "AFIB"}, HOSTILE, said, b"")], title="t", names={})
    assert "<li>“&lt;script&gt;”" in hostile
