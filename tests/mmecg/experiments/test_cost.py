import numpy as np
import pytest

from mmecg.adaptation.backbone import small_backbone
from mmecg.experiments import cost
from mmecg.experiments.cost import SMALL, Source, _measure, measured


def signals(bench):
    return np.stack([bench.recordings.ecg(row).signal for row in bench.split.test[:2]])


def test_operations_are_those_of_the_convolutions(bench, monkeypatch):
    monkeypatch.setattr(cost, "LEAST_CPU_S", 0.01)
    found = _measure(Source(SMALL), signals(bench), 100.0)
    encoder = small_backbone()
    assert found.parameters == sum(parameter.numel() for parameter in encoder.parameters())
    stem = 2 * 32 * 12 * 11 * 500 / 1e9  # maps x leads x kernel x steps, two operations each
    assert stem < found.gflops < 100 * stem
    assert found.per_cpu_s > 0
    assert found.network_per_cpu_s > 0


def test_an_encoder_of_a_directory_is_measured(bench, options, monkeypatch):
    monkeypatch.setattr(cost, "LEAST_CPU_S", 0.01)
    found = _measure(Source("toy", options.encoders[0]), signals(bench), 100.0)
    assert found.parameters == sum(parameter.numel() for parameter in small_backbone().parameters())


@pytest.mark.slow
def test_an_encoder_is_measured_alone(bench):
    found = measured(Source(SMALL), signals(bench), 100.0)
    assert 100 < found.peak_memory_mb < 2000
