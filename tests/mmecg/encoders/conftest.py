"""Golden vectors of the published encoders, and the pseudo-weights that they were made with."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mmecg.ecg import Ecg

REFERENCE = Path(__file__).parents[4] / "shared" / "reference" / "encoders"
SYNTHETIC = {"s2500": (20260101, (2, 12, 2500)), "s5000": (20260102, (1, 12, 5000)), "s3777": (20260103, (1, 12, 3777))}


class Golden:
    """The golden vectors: ``golden.outputs["ecgfm_embedding"]``, ``golden.ecgs()[0]``."""

    def __init__(self) -> None:
        self.inputs, self.outputs, self.preprocessed, self.edge, self.synthetic = (
            np.load(REFERENCE / f"{name}.npz")
            for name in ("ptbxl_inputs", "ptbxl_outputs", "ptbxl_preprocessed", "edge_cases", "synthetic")
        )

    def keys(self, file: str, kind: str) -> list[dict[str, Any]]:
        """Return the key list of a state: ``keys("ecg_fm", "finetuned")``."""
        return json.loads((REFERENCE / "encoder_keys" / f"{file}.json").read_text("utf-8"))[kind]

    def labels(self, file: str) -> list[dict[str, Any]]:
        return json.loads((REFERENCE / f"{file}.json").read_text("utf-8"))

    def ecgs(self) -> list[Ecg]:
        """Return the five records."""
        return [self._ecg(adc) for adc in self.inputs["signal_adc"]]

    def edge_ecgs(self) -> dict[str, Ecg]:
        """Return record 1 with its leads in another order, with a constant V6, and from its 100 Hz file."""
        mimic = [str(name) for name in self.edge["mimic_order__lead_names"]]
        constant = self.inputs["signal_adc"][0].astype(np.int64)
        constant[11] = 500
        return {
            "mimic_order": self._ecg(self.edge["mimic_order__signal_adc"], leads=mimic),
            "constant_v6": self._ecg(constant),
            "resample100": self._ecg(self.edge["resample100__signal_adc"], rate=100),
        }

    def signal(self, name: str) -> torch.Tensor:
        """Return a synthetic input, checked against its checksum."""
        seed, shape = SYNTHETIC[name]
        signal = np.random.Generator(np.random.PCG64(seed)).standard_normal(shape).astype(np.float32)
        assert hashlib.sha256(signal.tobytes()).hexdigest() == str(self.synthetic[f"{name}__input_sha256"])
        return torch.from_numpy(signal)

    def _ecg(self, adc: NDArray[Any], *, leads: list[str] | None = None, rate: float = 500) -> Ecg:
        names = leads or [str(name) for name in self.inputs["lead_names"]]
        return Ecg.from_array(adc / 1000, sampling_rate_hz=rate, leads=names)


@cache
def _golden() -> Golden:
    return Golden()


@pytest.fixture
def golden() -> Golden:
    if not REFERENCE.exists():
        pytest.skip("../shared/reference/encoders is not here")
    return _golden()


def draw(key: str, shape: list[int]) -> torch.Tensor:
    """Return the pseudo-weight of a key, by the recipe of the golden vectors."""
    x = np.random.Generator(np.random.PCG64(zlib.crc32(key.encode()))).standard_normal(shape)
    if key.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    if key.endswith("weight_g"):
        x = 2.5 * (1 + 0.1 * x)
    elif len(shape) >= 2:
        gain = 1.0
        if key.startswith(("first_conv.", "stage_list.", "dense.")):
            gain = 1.2
        elif ".q_proj." in key or ".k_proj." in key:
            gain = 2.0
        elif ".out_proj." in key:
            gain = 0.5
        x = x * gain / np.sqrt(np.prod(shape[1:]))
    elif key.endswith(("weight", "running_var")):
        x = 1 + 0.1 * x
    else:
        x = 0.02 * x
    return torch.from_numpy(np.asarray(x, np.float32))


def draw_all(keys: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Return the pseudo-weights of a key list, each checked against its checksum where the list has one."""
    state = {}
    for entry in keys:
        tensor = draw(entry["key"], entry["shape"])
        digest = hashlib.sha256(tensor.numpy().tobytes()).hexdigest()[:16]
        assert digest == entry.get("sha256_16", digest), entry["key"]
        state[entry["key"]] = tensor
    return state


@pytest.fixture
def pseudo_weights() -> Callable[[list[dict[str, Any]]], Mapping[str, torch.Tensor]]:
    """Return :func:`draw_all`, for test modules, which cannot import this one."""
    return draw_all


@pytest.fixture
def error() -> Callable[[Any, Any], float]:
    """Return a function: the largest absolute difference, of arrays of one shape."""

    def largest(got: Any, expected: Any) -> float:
        got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
        assert got.shape == expected.shape
        return float(np.abs(got - expected).max())

    return largest
