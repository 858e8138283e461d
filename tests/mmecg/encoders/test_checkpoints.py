"""Importing a published checkpoint: a toy encoder through everything, the real keys, and what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from mmecg.cli import main
from mmecg.encoders import ecg_founder
from mmecg.encoders.checkpoints import check_tensors, import_encoder
from mmecg.encoders.published import load_encoder
from mmecg.errors import AlreadyExistsError, ArtifactError, BundleError, InvalidInputError

TOY = {"stem_width": 16, "widths": [16, 32], "blocks": [1, 1], "classes": 150}


@pytest.fixture
def toy(monkeypatch):
    """Return ECGFounder of few maps, registered under its name, and its state as a file holds it."""
    spec = replace(
        ecg_founder.SPEC,
        build=lambda given: ecg_founder.build({**TOY, **given}),
        read_checkpoint=lambda content: ecg_founder.read_checkpoint(content),
    )
    monkeypatch.setattr(ecg_founder, "SPEC", spec)
    torch.manual_seed(0)
    state = {key: tensor.clone() for key, tensor in ecg_founder.build(TOY).state_dict().items()}
    return spec, state


def write(path, content):
    torch.save(content, path)
    return path


def test_what_is_imported_is_what_was_saved(tmp_path, toy):
    spec, state = toy
    norms = {"first_bn.weight": torch.ones(16), "stage_list.0.block_list.0.bn1.num_batches_tracked": torch.tensor(3)}
    path = write(tmp_path / "12.pth", {"state_dict": state | norms, "epoch": 4, "optimizer": {"m": torch.zeros(9)}})
    done = import_encoder(spec, path, tmp_path / "out", variant="eval")
    assert set(done.unused) == set(norms)
    assert done.parameters == sum(tensor.numel() for tensor in state.values())
    assert done.config.source.startswith("12.pth, SHA-256 ")
    encoder = load_encoder(tmp_path / "out")
    assert encoder.fingerprint == done.fingerprint
    assert encoder.config.variant == "eval"
    assert all(torch.equal(tensor, state[key]) for key, tensor in encoder.network.state_dict().items())


def test_half_precision_is_widened_and_another_variant_is_another_space(tmp_path, toy):
    spec, state = toy
    path = write(tmp_path / "half.pth", {"state_dict": {key: tensor.half() for key, tensor in state.items()}})
    first = import_encoder(spec, path, tmp_path / "a")
    second = import_encoder(spec, path, tmp_path / "b", variant="paper")
    assert first.fingerprint != second.fingerprint
    assert {tensor.dtype for tensor in load_encoder(tmp_path / "a").network.state_dict().values()} == {torch.float32}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda state: state.pop("dense.bias"), r"1 tensors missing: dense.bias"),
        (lambda state: state.update(extra=torch.zeros(1)), "1 tensors unexpected: extra"),
        (
            lambda state: state.update({"stage_list.1.block_list.0.se_fc1.weight": torch.zeros(8, 32)}),
            r"of another shape: stage_list.1.block_list.0.se_fc1.weight \(8, 32\), expected \(16, 32\)",
        ),
        (lambda state: [state.pop(key) for key in list(state)[:9]], r"9 tensors missing: .* and 4 more"),
        (
            lambda state: state.update({"dense.bias": torch.full((150,), torch.nan)}),
            "NaN or infinite weights in dense.bias",
        ),
        (lambda state: [state.update({f"x.{key}": state.pop(key)}) for key in list(state)], "another model's"),
        (lambda state: state.update({"first_conv.conv.weight": torch.zeros(16, 8, 16)}), "of 8 leads, expected 12"),
    ],
)
def test_state_that_does_not_fit_is_refused_with_its_keys(tmp_path, toy, change, reason):
    spec, state = toy
    change(state)
    path = write(tmp_path / "file.pth", {"state_dict": state})
    with pytest.raises(BundleError, match=reason):
        import_encoder(spec, path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_content_that_is_no_dict_what_is_there_and_unknown_variants_are_refused(tmp_path, toy):
    spec, state = toy
    with pytest.raises(BundleError, match="holds a Tensor, expected a dict"):
        import_encoder(spec, write(tmp_path / "tensor.pth", torch.zeros(3)), tmp_path / "out")
    path = write(tmp_path / "file.pth", {"state_dict": state})
    with pytest.raises(AlreadyExistsError, match="exists already"):
        import_encoder(spec, path, tmp_path)
    with pytest.raises(InvalidInputError, match="no preprocessing 'papre', expected one of dataset, eval, paper"):
        import_encoder(spec, path, tmp_path / "out", variant="papre")


def test_state_of_a_network_fits_it():
    network = ecg_founder.build(TOY)
    check_tensors(network.state_dict(), network, title="toy")


@pytest.mark.parametrize(("kind", "name"), [("12_lead", "ecg-founder"), ("1_lead", "ecg-founder-1-lead")])
def test_command_imports_the_published_keys(tmp_path, capsys, golden, pseudo_weights, kind, name):
    state = pseudo_weights(golden.keys("ecgfounder", kind))
    path = write(tmp_path / "file.pth", {"state_dict": state, "epoch": 1})
    assert main(["import-encoder", name, str(path), "--out", str(tmp_path / "out"), "--json"]) == 0
    written = json.loads(capsys.readouterr().out)
    assert written["encoder"] == name
    assert written["preprocessing"] == "dataset"
    assert len(written["keys_not_needed"]) == 305
    encoder = load_encoder(tmp_path / "out")
    assert encoder.fingerprint == written["fingerprint"]
    assert torch.equal(encoder.network.dense.weight, state["dense.weight"])
    other = {"ecg-founder": "ecg-founder-1-lead", "ecg-founder-1-lead": "ecg-founder"}[name]
    assert main(["import-encoder", other, str(path), "--out", str(tmp_path / "other")]) == 1
    assert f"import it as {name}" in capsys.readouterr().err
    assert main(["import-encoder", "ecg-fm", str(path), "--out", str(tmp_path / "other")]) == 1
    assert "expected cfg and model" in capsys.readouterr().err


def test_command_refuses_a_pickle_with_code_in_it(tmp_path, capsys):
    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'mark'}",)

    path = write(tmp_path / "file.pth", {"state_dict": Evil()})
    assert main(["import-encoder", "ecg-founder", str(path), "--out", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert "calls for 'posix.system'" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "mark").exists()
    with pytest.raises(ArtifactError):
        import_encoder(ecg_founder.SPEC, path, tmp_path / "out")


_MEASURE = """
import sys
from pathlib import Path
from mmecg.encoders import ecg_fm
from mmecg.encoders.checkpoints import import_encoder
import_encoder(ecg_fm.SPEC, *sys.argv[1:])
status = Path("/proc/self/status").read_text()
print(1024 * int(status.partition("VmHWM:")[2].split()[0]))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "stream"])
def test_peak_of_memory_is_below_the_size_of_a_file_with_its_optimiser(tmp_path, golden, zipped):
    """A checkpoint of 1.1 GB: ECG-FM with its optimiser's state."""
    state = {entry["key"]: torch.full(entry["shape"], 0.01) for entry in golden.keys("ecg_fm", "pretrained")}
    moments = [{"exp_avg": tensor.clone(), "exp_avg_sq": tensor.clone()} for tensor in state.values()]
    content = {"cfg": {"model": {"_name": "wav2vec2_cmsc"}}, "model": state, "last_optimizer_state": moments}
    path = tmp_path / "file.pt"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    size = path.stat().st_size
    assert size > 1e9
    del state, moments, content
    command = [sys.executable, "-c", _MEASURE, str(path), str(tmp_path / "out")]
    peak = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    print(f"file {size / 1e6:.0f} MB, peak {peak / 1e6:.0f} MB")
    assert peak < size  # the optimiser's state is never read
    path.unlink()
