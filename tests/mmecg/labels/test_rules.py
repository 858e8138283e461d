from pathlib import Path

import pytest

from mmecg.errors import ConfigError
from mmecg.labels.rules import LANGUAGES, Kind, Literal, expand, load_rules, parse_rules, rule_literals

FINDING = {"id": "AFIB", "patterns": ["atrial fibrillation"]}


@pytest.mark.parametrize(
    ("pattern", "texts"),
    [
        ("a", ["a"]),
        ("(a|b) c", ["a c", "b c"]),
        ("a[b]", ["a", "ab"]),
        ("a[b|c]", ["a", "ab", "ac"]),
        ("(a[x|(y|z)]|b)", ["a", "ax", "ay", "az", "b"]),
        ("(a|)b", ["ab", "b"]),
    ],
)
def test_expansion(pattern: str, texts: list[str]) -> None:
    assert expand(pattern) == texts


@pytest.mark.parametrize("pattern", ["(a", "a]", "[a)", "a(b|c", "a)b"])
def test_brackets_must_match(pattern: str) -> None:
    with pytest.raises(ConfigError, match="pattern"):
        expand(pattern)


def test_expansion_is_limited() -> None:
    assert len(expand("(a|b)" * 10)) == 1024
    with pytest.raises(ConfigError, match="more than 2000 literals"):
        expand("(a|b)" * 11)


def test_literals_are_in_plain_form() -> None:
    rules = parse_rules(
        {"language": "de", "finding": [{"id": "X", "patterns": ["St-T Veränderung", "*infarkt", "q*"]}]}
    )
    assert set(rule_literals(rules)) == {
        Literal(b"st t veraenderung", False, False),
        Literal(b"infarkt", True, False),
        Literal(b"q", False, True),
    }


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"finding": [FINDING]}, "language is missing"),
        ({"language": "en", "findng": []}, "did you mean finding"),
        ({"language": "en", "finding": [{**FINDING, "patern": []}]}, "did you mean finding.patterns"),
        ({"language": "en", "finding": [{"id": "AFIB"}]}, "'patterns'"),
        ({"language": "en", "finding": [{**FINDING, "ids": ["B"]}]}, "id and ids"),
        ({"language": "en", "finding": [{"patterns": ["a"]}]}, "id and ids"),
        ({"language": "en", "finding": [{**FINDING, "status": "maybe"}]}, "expected one of 'present'"),
        ({"language": "en", "finding": [{**FINDING, "qualifiers": {"place": "x"}}]}, "place is unknown"),
        ({"language": "en", "finding": [FINDING, {**FINDING, "id": "AFLT"}]}, "stands for en/AFIB and for en/AFLT"),
        ({"language": "en", "compose": [{"base": "b", "location": "x", "gives": ["A"]}]}, "names base 'b'"),
        (
            {"language": "en", "base": [{"id": "b", "patterns": ["b"]}], "compose": [{"base": "b", "gives": ["A"]}]},
            "needs a qualifier",
        ),
        ({"language": "en", "qualifier": [{"kind": "size", "value": "x", "patterns": ["x"]}]}, "'size'"),
        ({"language": "en", "cue": [{"id": "c", "status": "possible", "patterns": ["c"], "scope": -1}]}, "scope -1"),
        ({"language": "en", "cue": [{"id": "c", "status": "negated", "patterns": ["c"], "yields": True}]}, "yields"),
        ({"language": "en", "finding": [{"id": "A", "patterns": ["a*b"]}]}, "at the beginning or end only"),
        ({"language": "en", "finding": [{"id": "A", "patterns": ["[a]"]}]}, "expected words"),
        ({"language": "en", "finding": [{"id": "A", "patterns": ["中"]}]}, "expected words"),
        ({"language": "en", "finding": [{"id": "A", "patterns": ["a\nb"]}]}, "line end"),
    ],
)
def test_bad_rules(values: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_rules(values)


def test_the_same_literal_may_be_finding_and_cue() -> None:
    cue = {"id": "normal", "status": "negated", "patterns": ["normal"]}
    rules = parse_rules({"language": "en", "finding": [{"id": "NORM", "patterns": ["normal", "Normal"]}], "cue": [cue]})
    (roles,) = rule_literals(rules).values()
    assert [(role.kind, role.rule) for role in roles] == [(Kind.FINDING, "en/NORM/1"), (Kind.CUE, "en/normal/1")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no rules for language 'xx', expected one of en"),
        (b"language = ", "xx.toml"),
        (b"\xff\xfe", "xx.toml"),
        (b'language = "en"', "expected 'xx' like its name"),
    ],
)
def test_bad_files(tmp_path: Path, content: bytes | None, message: str) -> None:
    (tmp_path / "en.toml").write_text('language = "en"')
    if content is not None:
        (tmp_path / "xx.toml").write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        load_rules("xx", tmp_path)


@pytest.mark.parametrize("language", LANGUAGES)
def test_shipped_rules_load(language: str) -> None:
    assert load_rules(language).findings
