"""``mmecg label-text``: one line of JSON for each line of standard input, at once."""

import io
import json
import subprocess
import sys

import pytest

from mmecg.report import MAX_TEXT_CHARS


@pytest.fixture
def label(run, monkeypatch):
    """Run the command on bytes."""

    def label_bytes(content: bytes, *arguments: str):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        return run("label-text", *arguments)

    return label_bytes


def test_each_line_gives_one_line(label):
    lines = [
        b"no evidence of atrial fibrillation",
        b"",
        b"\xff\xfe",
        "linkshypertrophie möglich".encode() + b"\r",
        b"x" * (MAX_TEXT_CHARS + 1),
        b"a\x00b",
        b"<b>sinus rhythm</b>",
        b"sinus rhythm",
    ]
    outcome = label(b"\n".join(lines), "--json")
    assert outcome.code == 1
    answers = [json.loads(line) for line in outcome.out.splitlines()]
    assert [answer["text_line"] for answer in answers] == list(range(1, len(lines) + 1))
    assert [sorted(answer) for answer in answers if "error" in answer] == [["assertions", "error", "text_line"]] * 3
    first = answers[0]["assertions"][0]
    assert (first["finding"], first["status"], first["start"], first["end"]) == ("AFIB", "negated", 15, 34)
    assert (first["evidence"], first["language"]) == ("atrial fibrillation", "en")
    assert [(item["finding"], item["status"]) for item in answers[3]["assertions"]] == [("LVH", "possible")]
    assert [item["finding"] for item in answers[6]["assertions"]] == ["SR"]


def test_language_can_be_given(label):
    assert json.loads(label(b"sinus rhythm", "--language", "de", "--json").out)["assertions"] == []
    assert json.loads(label(b"sinus rhythm", "--language", "en", "--json").out)["assertions"]
    assert label(b"", "--language", "fr").code == 2


def test_a_byte_order_mark_is_no_part_of_the_first_line(label):
    (item,) = json.loads(label(b"\xef\xbb\xbfsinus rhythm", "--json").out)["assertions"]
    assert (item["start"], item["end"]) == (0, 12)


def test_lines_for_people(label):
    outcome = label(b"sinus rhythm\n\nno atrial fibrillation\n")
    assert outcome.code == 0
    assert outcome.out.splitlines() == [
        "1\tSR\tpresent\tsinus rhythm",
        "2\t-\t-\t-",
        "3\tAFIB\tnegated\tatrial fibrillation",
    ]


def test_nothing_in_gives_nothing_out(label):
    assert label(b"", "--json").out == ""


def test_answers_come_at_once():
    """A caller that writes a line and waits for the answer gets it."""
    command = [sys.executable, "-m", "mmecg", "label-text", "--json"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        for number, text in enumerate((b"sinus rhythm\n", b"atrial fibrillation\n"), 1):
            process.stdin.write(text)
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["text_line"] == number
        process.stdin.close()
        assert process.wait(timeout=60) == 0
