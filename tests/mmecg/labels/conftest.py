"""Small rule files, so that tests of the engine do not depend on the rules that ship."""

from pathlib import Path

import pytest

from mmecg.labels.mining import LabelMiner

ENGLISH = """
language = "en"
words = ["the", "and", "with"]
[[finding]]
id = "AFIB"
patterns = ["(atrial|auricular) fibrillation", "a[-]fib"]
[[finding]]
id = "LVH"
patterns = ["left ventricular hypertrophy", "lvh"]
[[finding]]
id = "RVH"
patterns = ["right ventricular hypertrophy", "rvh"]
[[finding]]
id = "SR"
patterns = ["sinus rhythm"]
[[finding]]
ids = ["ISCIN", "ISCLA"]
patterns = ["inferolateral ischemia"]
qualifiers = { location = "inferolateral" }
[[finding]]
id = "QT_LONGER"
patterns = ["qt has lengthened"]
status = "serial"
[[base]]
id = "infarct"
patterns = ["[myocardial] infarct[ion][s]"]
default = "MI"
[[base]]
id = "q_wave"
patterns = ["q wave[s]"]
[[compose]]
base = "infarct"
location = "inferior"
gives = ["IMI"]
[[compose]]
base = "infarct"
location = "anterior"
gives = ["AMI"]
[[compose]]
base = "infarct"
location = ["inferior", "lateral"]
gives = ["ILMI"]
[[compose]]
base = "q_wave"
location = "inferior"
gives = ["IQ"]
[[qualifier]]
kind = "location"
value = "inferior"
patterns = ["inferior"]
[[qualifier]]
kind = "location"
value = "anterior"
patterns = ["anterior"]
[[qualifier]]
kind = "location"
value = "lateral"
patterns = ["lateral"]
[[qualifier]]
kind = "age"
value = "old"
patterns = ["old"]
[[qualifier]]
kind = "age"
value = "undetermined"
patterns = ["age undet[.|ermined]"]
direction = "backward"
[[qualifier]]
kind = "degree"
value = "slight"
patterns = ["slight"]
[[cue]]
id = "possible"
status = "possible"
patterns = ["possible", "possibly"]
scope = 8
[[cue]]
id = "probable"
status = "probable"
patterns = ["probably", "probable"]
[[cue]]
id = "cannot_exclude"
status = "cannot_rule_out"
patterns = ["cannot be excluded"]
direction = "backward"
[[cue]]
id = "query"
status = "possible"
patterns = ["?"]
direction = "both"
[[cue]]
id = "or"
status = "alternative"
patterns = ["or"]
direction = "both"
[[cue]]
id = "no"
status = "negated"
patterns = ["no [evidence of]"]
[[cue]]
id = "replaced"
status = "serial"
patterns = ["has replaced"]
[[cue]]
id = "new"
status = "serial"
yields = true
patterns = ["new"]
[[cue]]
id = "gone"
status = "serial"
patterns = ["no longer [evident|seen]"]
direction = "backward"
[[cue]]
id = "may_cause"
status = "possible"
about = "cause"
patterns = ["may be due to"]
[[conjunction]]
patterns = ["and", ","]
[[pseudo]]
patterns = ["no change", "no significant change"]
[[terminator]]
patterns = ["but"]
"""

GERMAN = """
language = "de"
words = ["und", "mit"]
[[finding]]
id = "SR"
patterns = ["sinusrhythmus"]
[[finding]]
id = "AFIB"
patterns = ["vorhofflimmern"]
[[finding]]
id = "LVH"
patterns = ["linkshypertrophie"]
[[base]]
id = "infarct"
patterns = ["*infarkt"]
default = "MI"
[[compose]]
base = "infarct"
location = "inferior"
gives = ["IMI"]
[[qualifier]]
kind = "location"
value = "inferior"
patterns = ["inferior[er|e|es]"]
[[qualifier]]
kind = "age"
value = "old"
patterns = ["alt"]
[[qualifier]]
kind = "age"
value = "undetermined"
patterns = ["alter unbest[.]"]
direction = "backward"
[[cue]]
id = "moeglich"
status = "possible"
direction = "backward"
patterns = ["möglich"]
[[cue]]
id = "wahrscheinlich"
status = "probable"
reach = "nearest"
patterns = ["wahrscheinlich[e|er]"]
[[cue]]
id = "verdacht"
status = "possible"
reach = "nearest"
patterns = ["(v.a.|verdacht) [auf]"]
[[cue]]
id = "ausschluss"
status = "cannot_rule_out"
direction = "backward"
patterns = ["nicht auszuschlie(ss|ß)en"]
[[conjunction]]
patterns = ["und"]
[[separator]]
patterns = [" | "]
"""


@pytest.fixture(scope="session")
def tiny_rules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rules")
    (folder / "en.toml").write_text(ENGLISH, encoding="utf-8")
    (folder / "de.toml").write_text(GERMAN, encoding="utf-8")
    return folder


@pytest.fixture
def miner(tiny_rules: Path) -> LabelMiner:
    return LabelMiner(("de", "en"), folder=tiny_rules)
