"""What ``mmecg encoders`` tells."""

import json


def test_the_table_names_every_encoder_and_what_it_saw(run):
    outcome = run("encoders")
    assert outcome.code == 0
    for word in ("ecg-fm", "90,883,072", "12 x 2500", "ecg-founder", "30,819,014", "ecg-founder-1-lead", "PTB-XL"):
        assert word in outcome.out


def test_a_card_lists_neurons_in_order(run):
    out = run("encoders", "ecg-fm").out
    assert out.index("Poor data quality") < out.index("Atrial fibrillation") < out.index("Electronic pacemaker")
    assert "AFIB" in out
    assert "notebook" in out


def test_serial_neurons_are_marked(run):
    lines = run("encoders", "ecg-founder").out.splitlines()
    (marked,) = (line for line in lines if "ST LESS DEPRESSED" in line)
    (plain,) = (line for line in lines if " ATRIAL FIBRILLATION " in line)
    assert "needs an earlier ECG" in marked
    assert "needs an earlier ECG" not in plain


def test_json_has_everything(run):
    answer = {item["name"]: item for item in json.loads(run("encoders", "--json").out)}
    spec = answer["ecg-fm"]
    assert (spec["samples"], spec["sampling_rate_hz"], spec["feature_dim"]) == (2500, 500, 768)
    assert spec["labels"][6] == {
        "index": 6, "name": "Atrial fibrillation", "finding": "AFIB", "relation": "exact", "serial": False,
        "reduction": "mean",
    }  # fmt: skip
    assert spec["preprocessing"].keys() == {"published", "notebook"}
    assert "PTB-XL" in {item["name"] for item in spec["seen"]}
    assert len(answer["ecg-founder"]["labels"]) == 150


def test_an_unknown_encoder_is_refused(run):
    outcome = run("encoders", "ecg-gm")
    assert outcome.code == 2
    assert "no encoder 'ecg-gm'; registered: ecg-fm, ecg-founder" in outcome.err
