"""What a recording can support: the table, and the reasons."""

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from mmecg.datasets.ptb_xl import SUPERCLASSES, read_scp_statements
from mmecg.datasets.synthetic import synthetic_ecg
from mmecg.ecg import LEADS, Ecg
from mmecg.errors import ConfigError
from mmecg.prediction.result import SUPERCLASS_PREFIX
from mmecg.prediction.support import read_support_table, support_of, unsupported

SHARED = Path(__file__).resolve().parents[3].parent / "shared" / "data" / "ptbxl"
ALL = tuple(read_support_table())


def without(ecg, **changes):
    """Return the recording with some leads replaced by constants, or noise."""
    signal = ecg.signal.copy()
    for lead, values in changes.items():
        signal[LEADS.index(lead)] = values
    return Ecg(signal, ecg.sampling_rate_hz, ecg.lead_mask.copy())


def test_a_good_recording_supports_everything():
    assert unsupported(synthetic_ecg(), ALL) == {}


@pytest.mark.skipif(not SHARED.exists(), reason="../shared/data/ptbxl is not here")
def test_every_statement_and_superclass_has_an_entry():
    names = read_scp_statements(SHARED)["label"].to_list()
    assert set(ALL) == {*names, *(SUPERCLASS_PREFIX + name for name in SUPERCLASSES)}


def test_every_entry_names_a_reason_and_a_source():
    assert all(support.reason and support.source and support.seconds >= 1 for support in support_of(ALL).values())


def test_lead_i_supports_rhythm_but_no_infarction():
    found = unsupported(synthetic_ecg().select_leads(["I"]), ALL)
    assert not {"AFIB", "SR", "PACE", "1AVB"} & found.keys()
    assert {"IMI", "ASMI", "CRBBB", "LVH", "NORM", "superclass/MI"} <= found.keys()
    assert found["IMI"] == "needs 2 of II, III, aVF; not recorded: II, III, aVF"


def test_limb_leads_support_what_the_frontal_plane_shows():
    found = unsupported(synthetic_ecg().select_leads(LEADS[:6]), ["IMI", "LMI", "LAFB", "LVH", "ASMI", "CRBBB", "PMI"])
    assert found.keys() == {"ASMI", "CRBBB", "PMI"}


def test_a_flat_lead_counts_as_missing():
    ecg = without(synthetic_ecg().select_leads(["I", "II", "III"]), III=0.2)
    assert unsupported(ecg, ["IMI", "LAFB"]) == {"IMI": "needs 2 of II, III, aVF; not recorded: aVF; flat: III"}


def test_a_noisy_and_a_saturated_lead_count_as_missing():
    ecg = synthetic_ecg()
    noisy = np.random.default_rng(0).normal(0, 0.5, ecg.signal.shape[1])
    ecg = without(ecg, V1=noisy, V2=np.clip(ecg.signal[7] * 9, -0.8, 0.8))
    assert unsupported(ecg, ["CRBBB"]) == {"CRBBB": "needs 1 of V1, V2 and 1 of I, V5, V6; saturated: V2; noise: V1"}


def test_short_recordings_support_shape_but_not_rhythm():
    found = unsupported(synthetic_ecg().crop(0, 3), ["AFIB", "IMI", "TRIGU"])
    assert found == {
        "AFIB": "needs 5 s; the recording lasts 3 s",
        "TRIGU": "needs 6 s; the recording lasts 3 s",
    }


def test_leads_never_hurt():
    """What a subset of leads supports, every larger one supports: no need is a contradiction."""
    ecg = synthetic_ecg()
    for pair in combinations(LEADS, 2):
        fewer = unsupported(ecg.select_leads(pair), ALL).keys()
        more = unsupported(ecg.select_leads([*pair, *(lead for lead in ("III", "V3") if lead not in pair)]), ALL)
        assert more.keys() <= fewer


def test_a_label_outside_the_table_needs_nothing():
    assert unsupported(synthetic_ecg().select_leads(["I"]), ["elsewhere"]) == {}


@pytest.mark.parametrize(
    ("needs", "source", "message"),
    [("3 of II", "a", "expected such as"), ("1 of V9", "a", "expected such as"), ("1 of II", "b", "a source")],
)
def test_a_wrong_table_is_refused(tmp_path, needs, source, message):
    path = tmp_path / "support.toml"
    path.write_text(
        f'[sources]\na = "A"\n[[support]]\nlabels = ["X"]\nneeds = ["{needs}"]\nseconds = 1\nreason = "r"\n'
        f'source = "{source}"\n'
    )
    with pytest.raises(ConfigError, match=message):
        read_support_table(path)


def test_a_label_twice_is_refused(tmp_path):
    path = tmp_path / "support.toml"
    entry = '[[support]]\nlabels = ["X"]\nneeds = ["1 of I"]\nseconds = 1\nreason = "r"\nsource = "a"\n'
    path.write_text('[sources]\na = "A"\n' + entry + entry)
    with pytest.raises(ConfigError, match="twice"):
        read_support_table(path)
