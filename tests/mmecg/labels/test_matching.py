import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmecg.labels.matching import Matcher
from mmecg.labels.normalise import normalise
from mmecg.labels.rules import parse_rules


def build(*patterns: str, language: str = "en", **more: object) -> Matcher:
    findings = [{"id": f"F{at}", "patterns": [pattern]} for at, pattern in enumerate(patterns)]
    return Matcher((parse_rules({"language": language, "finding": findings, **more}),))


def found(matcher: Matcher, raw: str) -> list[str]:
    plain = normalise(raw)
    matches = matcher.match(plain, raw)
    starts, ends = plain.raw_index[matches.start], plain.raw_index[matches.end - 1] + 1
    return [raw[start:end] for start, end in zip(starts, ends, strict=True)]


@pytest.mark.parametrize(
    ("patterns", "raw", "words"),
    [
        (["mi"], "mi. MI, (mi) normi mitral amid mi", ["mi", "MI", "mi", "mi"]),
        (["infarkt*"], "infarkte infarkt reinfarkt", ["infarkte", "infarkt"]),
        (["*infarkt"], "hinterwandinfarkt infarkt infarkte", ["hinterwandinfarkt", "infarkt"]),
        (["*farkt*"], "hinterwandinfarkte", ["hinterwandinfarkte"]),
        (["fibrillation", "atrial fibrillation"], "atrial fibrillation", ["atrial fibrillation"]),
        (["av block", "av block iii"], "av-block i, AV/Block   III", ["av-block", "AV/Block   III"]),
        (["st depression"], "st\ndepression st depression", ["st depression"]),
        (
            ["überdrehter linkstyp"],
            "ÜBERDREHTER linkstyp, ueberdrehter Linkstyp",
            ["ÜBERDREHTER linkstyp", "ueberdrehter Linkstyp"],
        ),
        (["?"], "infarct ?", ["?"]),
        (["a"], "", []),
        (["a"], "中a a中", []),
    ],
)
def test_matches_are_whole_words_and_the_longest(patterns: list[str], raw: str, words: list[str]) -> None:
    assert found(build(*patterns), raw) == words


def test_no_rules_match_nothing() -> None:
    assert found(build(), "atrial fibrillation") == []


@pytest.mark.parametrize(
    ("raw", "sentences"),
    [
        ("x x", 1),
        ("x. x", 2),
        ("x; x", 2),
        ("x\nx", 2),
        ("x 0.15 x", 1),
        ("x.x", 1),  # initials
        ("x xx.x", 2),
        ("x unbest. x", 1),  # the stop belongs to a literal
        ("x evtl. x", 2),
        ("x, x", 1),
    ],
)
def test_sentences(raw: str, sentences: int) -> None:
    matcher = build("x", qualifier=[{"kind": "age", "value": "u", "patterns": ["unbest."]}])
    plain = normalise(raw)
    assert len(set(matcher.match(plain, raw).sentence.tolist())) == sentences


def test_each_sentence_is_read_in_its_language() -> None:
    english = parse_rules(
        {"language": "en", "words": ["the"], "finding": [{"id": "A", "patterns": ["infarkt", "alter infarct"]}]}
    )
    german = parse_rules(
        {"language": "de", "words": ["mit"], "finding": [{"id": "B", "patterns": ["infarkt", "block"]}]}
    )
    matcher = Matcher((english, german))
    raw = "infarkt. infarkt mit block. alter infarct. the infarkt. nothing"
    assert matcher.match(normalise(raw), raw).language.tolist() == [0, 1, 1, 0, 0]


def test_separators_are_events_of_their_language_only() -> None:
    english = parse_rules({"language": "en", "finding": [{"id": "A", "patterns": ["flutter"]}]})
    german = parse_rules(
        {"language": "de", "finding": [{"id": "B", "patterns": ["flattern"]}], "separator": [{"patterns": [" | "]}]}
    )
    matcher = Matcher((english, german))
    raw = "flattern | flattern. flutter | flutter"
    matches = matcher.match(normalise(raw), raw)
    separator = len(matcher.word_counts) - 1
    assert [pattern == separator for pattern in matches.pattern.tolist()] == [False, True, False, False, False]


def test_sentences_without_a_finding_leave_nothing() -> None:
    matcher = build("flutter", cue=[{"id": "no", "status": "negated", "patterns": ["no"]}])
    assert found(matcher, "no. no flutter. no") == ["no", "flutter"]


ORACLE_PATTERNS = ["ab", "ab c", "c", "b c ab", "c ab c", "bc*", "*ca", "*cb*", "?", "c ?"]
ORACLE = build(*ORACLE_PATTERNS)


def slow_matches(plain: bytes) -> list[tuple[int, int]]:
    """Return the spans of every pattern on word boundaries, without those inside others, one pattern at a time."""
    spans: set[tuple[int, int]] = set()
    for pattern in ORACLE_PATTERNS:
        text = re.escape(pattern.strip("*")).encode()
        before = rb"[a-z]*" if pattern.startswith("*") else rb"(?<![a-z])" if pattern[0].isalpha() else rb""
        after = rb"[a-z]*" if pattern.endswith("*") else rb"(?![a-z])" if pattern[-1].isalpha() else rb""
        for begin in range(len(plain)):
            if pattern[0] == "*" and begin and plain[begin - 1 : begin].isalpha():
                continue
            if hit := re.compile(before + text + after).match(plain, begin):
                spans.add(hit.span())
    return sorted(
        span
        for span in spans
        if not any(other != span and other[0] <= span[0] and span[1] <= other[1] for other in spans)
    )


@given(st.lists(st.sampled_from(["ab", "c", "b", "bc", "ca", "bca", "acba", "bcb", "?", " ?", "x"]), max_size=14))
def test_matches_are_those_of_a_slow_search(words: list[str]) -> None:
    raw = " ".join(words)
    plain = normalise(raw)
    matches = ORACLE.match(plain, raw)
    assert list(zip(matches.start.tolist(), matches.end.tolist(), strict=True)) == slow_matches(plain.text)
