"""What an encoder costs: parameters, operations, time and memory, each encoder alone in a fresh process."""

from __future__ import annotations

import math
import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch.utils.flop_counter import FlopCounterMode

from mmecg.adaptation.backbone import Backbone, BackboneConfig, load_backbone, small_backbone
from mmecg.adaptation.towers import build_network
from mmecg.assets import DEFAULT_BUNDLE
from mmecg.ecg import LEADS, Ecg
from mmecg.encoders.registry import available
from mmecg.evaluation.results import Row
from mmecg.experiments.bench import RANDOM, Bench
from mmecg.experiments.experiment import Experiment, Outcome
from mmecg.experiments.memory import peak_memory_mb

Item = TypeVar("Item")

RECORDINGS = 16
SMALL = "small"
LEAST_CPU_S = 2.0
"""CPU time that a speed is measured over, after one pass to warm up."""


@dataclass(frozen=True)
class Source:
    """Where a process finds an encoder: a directory, our small tower, or a name in the registry with fresh weights."""

    name: str
    path: Path | None = None


@dataclass(frozen=True)
class Cost:
    """What one encoder costs.

    Attributes
    ----------
    parameters : int
    gflops : float
        Of a recording of 10 s: 10^9 floating-point operations of convolutions and matrix products, a multiplication
        and an addition being two.
    per_cpu_s : float
        Recordings a second of CPU time, preprocessing included.
    network_per_cpu_s : float
        The same without preprocessing.
    peak_memory_mb : float
        Of the process, Python and torch included.
    threads : int
    """

    parameters: int
    gflops: float
    per_cpu_s: float
    network_per_cpu_s: float
    peak_memory_mb: float
    threads: int


def run(bench: Bench) -> Outcome:
    """Measure every encoder given, our small tower, and the published ones."""
    names = [name for name in bench.encoders if name != RANDOM]
    given = bench.options.encoders or (None,)
    sources = [Source(name, path) for name, path in zip(names, given, strict=True)]
    sources += [Source(SMALL), *(Source(name) for name in available())]
    rows_at = bench.split.test[:RECORDINGS]
    signals = np.stack([bench.recordings.ecg(row).signal for row in rows_at])
    rows, lines = [], []
    for done, source in enumerate(sources):
        bench.progress(f"measuring {source.name}", done, len(sources))
        cost = measured(source, signals, float(bench.recordings.rate))
        line = {"encoder": source.name, **vars(cost)}
        lines.append(line)
        for key in ("parameters", "gflops", "per_cpu_s", "network_per_cpu_s", "peak_memory_mb"):
            value, nothing = float(line[key]), math.nan
            rows.append(
                Row(f"{source.name}/{key}", value, nothing, nothing, len(rows_at), {}, {"threads": cost.threads})
            )
    table = pl.DataFrame(lines)
    told = [
        f"{line['encoder']} {line['parameters'] / 1e6:.1f} M parameters, {line['gflops']:.1f} GFLOP, "
        f"{line['per_cpu_s']:.1f} ECG/s, {line['peak_memory_mb']:.0f} MB"
        for line in lines
    ]
    sentence = (
        "; ".join(told) + " (per 10 s recording and CPU second, float32). The published encoders have fresh weights "
        "here, on which cost does not depend."
    )
    notes = ["No interval and no baseline: this is about cost, not about what an encoder knows."]
    headline = tuple(f"{source.name}/per_cpu_s" for source in sources)
    return Outcome(headline, tuple(rows), sentence, {"cost": table}, notes=notes)


def measured(source: Source, signals: NDArray[np.float32], rate: float) -> Cost:
    """Measure an encoder in a process of its own.

    Parameters
    ----------
    source : Source
    signals : float32, shape (n, leads=12, samples), mV
    rate : float
        Of the signals, Hz.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as alone:
        return alone.submit(_measure, source, signals, rate).result()


def _measure(source: Source, signals: NDArray[np.float32], rate: float) -> Cost:
    encoder = _load(source).eval()
    ecgs = [Ecg(signal, rate, np.ones(len(LEADS), np.bool_)) for signal in signals]
    with FlopCounterMode(display=False) as counter:
        encoder.features(ecgs[:1])
    inputs = encoder.prepare(ecgs)
    per_cpu_s = _speed(encoder.features, ecgs)
    network = _speed(encoder.features_of_inputs, inputs)
    parameters = sum(parameter.numel() for parameter in encoder.parameters())
    flops = counter.get_total_flops() / 1e9
    return Cost(parameters, flops, per_cpu_s, network, peak_memory_mb(), torch.get_num_threads())


def _load(source: Source) -> Backbone:
    if source.name == SMALL:
        return small_backbone()
    if source.name in available() and source.path is None:
        spec = available()[source.name]
        config = BackboneConfig(source.name, {}, spec.preprocessing[spec.default_variant])
        return Backbone(config, build_network(source.name, {}, leads=len(spec.leads)), RANDOM)
    return load_backbone(source.path or DEFAULT_BUNDLE)


def _speed(encode: Callable[[Sequence[Item]], object], items: Sequence[Item]) -> float:
    """Return items a second of CPU time, from as many rounds as :data:`LEAST_CPU_S` takes."""
    encode(items[:1])
    done, began = 0, time.process_time()
    while (spent := time.process_time() - began) < LEAST_CPU_S:
        encode(items)
        done += len(items)
    return done / spent


EXPERIMENT = Experiment(
    name="cost",
    asked="What does each encoder cost?",
    protocol=f"Each encoder in a fresh process on {RECORDINGS} recordings of the test fold, float32, in one batch. "
    "Operations by torch.utils.flop_counter; speed over CPU time, so that other work on the machine does not enter; "
    "peak memory of the process. Published encoders with fresh weights: their weights are not shipped.",
    run=run,
)
