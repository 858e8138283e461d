"""Encoding speed of the bundle beside a peer of the usual size, in the same run on the same recordings.

    python benchmarks/bench_encode.py [--bundle DIR] [--threads 2]
    python benchmarks/bench_encode.py --published [--threads 2]

The peer is a 1-D ResNet-18 on 12 leads at 500 Hz (3.8 M parameters), the network that MERL and many others use, with
random weights: speed does not depend on them. Our figure includes everything from an ``Ecg`` to its embedding. The
precision is the one that the processor allows (bfloat16 or float32), except where the row says float32.

``--published`` measures the published encoders instead, each beside its network written the obvious way
(:mod:`plain_encoders`), with random weights. "network" starts from inputs that are ready, as the plain network does;
"recording" from an ``Ecg`` at 500 Hz, with all preprocessing. A batch is 16 recordings.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from plain_encoders import PlainEcgFm, PlainEcgFounder
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from mmecg.assets import DEMO_CORPUS
from mmecg.bundle import load_bundle
from mmecg.datasets.parquet import read_studies
from mmecg.ecg import Ecg
from mmecg.encoders.published import PublishedEncoder, configure
from mmecg.encoders.registry import get_encoder


class BasicBlock(nn.Module):
    """Residual block of two convolutions of kernel 3 (He et al. 2016, arXiv:1512.03385)."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv1d(width_in, width, 3, stride, 1, bias=False), nn.BatchNorm1d(width), nn.ReLU(),
            nn.Conv1d(width, width, 3, 1, 1, bias=False), nn.BatchNorm1d(width),
        )  # fmt: skip
        self.shortcut = (
            nn.Identity()
            if stride == 1 and width_in == width
            else nn.Sequential(nn.Conv1d(width_in, width, 1, stride, bias=False), nn.BatchNorm1d(width))
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, width_in, samples) to (batch, width, samples / stride)."""
        return torch.relu(self.branch(x) + self.shortcut(x))


def resnet18() -> nn.Module:
    """Return a 1-D ResNet-18 for 12 leads."""
    layers: list[nn.Module] = [
        nn.Conv1d(12, 64, 7, 2, 3, bias=False), nn.BatchNorm1d(64), nn.ReLU(), nn.MaxPool1d(3, 2, 1)
    ]  # fmt: skip
    last = 64
    for width, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        layers += [BasicBlock(last, width, stride), BasicBlock(width, width, 1)]
        last = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten()).eval()


def best_seconds(call: Callable[[], object], repeats: int) -> float:
    """Return the fastest of several runs, after one to warm up."""
    call()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return min(times)


def new_table(title: str, against: str) -> Table:
    """Return an empty table."""
    table = Table(title=title)
    for column in ("what", "items/s, batch", "ms, one item", f"batch against {against}"):
        table.add_column(column, justify="left" if column == "what" else "right")
    return table


def published(repeats: int) -> list[tuple[str, float, float, float]]:
    """Return a row for each way to run each published encoder: name, recordings/s, s for one, rate against plain."""
    studies = list(read_studies(DEMO_CORPUS))[:16]
    ecgs = [study.ecg.resample(500) for study in studies if study.ecg]
    rows: list[tuple[str, float, float, float]] = []
    for name, plain in (("ecg-fm", PlainEcgFm()), ("ecg-founder", PlainEcgFounder())):
        spec = get_encoder(name)
        network, config = spec.build({}), configure(spec, {})
        inputs = torch.from_numpy(np.concatenate([config.preprocessing.apply(ecg) for ecg in ecgs]))
        each = len(inputs) // len(ecgs)
        plain = torch.inference_mode()(plain.eval().forward)
        ways: list[tuple[str, Callable[[], object], Callable[[], object]]] = [
            ("plain network, float32", partial(plain, inputs), partial(plain, inputs[:each]))
        ]
        for precision in ("float32", "bfloat16"):
            encoder = PublishedEncoder(network, config, "", precision=precision)
            ways.append((f"mmecg, {precision}", partial(encoder.features, ecgs), partial(encoder.features, ecgs[:1])))
        reference = 0.0
        for way, many, one in ways:
            rate = len(ecgs) / best_seconds(many, repeats)
            reference = reference or rate
            rows.append((f"{spec.title}: {way}", rate, best_seconds(one, repeats), rate / reference))
    return rows


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--published", action="store_true", help="the published encoders beside plain networks")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.published:
        table = new_table(f"Published encoders with {args.threads} threads; best of {args.repeats}", "plain")
        for name, rate, single, ratio in published(args.repeats):
            table.add_row(name, f"{rate:,.1f}", f"{single * 1e3:.1f}", f"{ratio:.2f} x")
        Console(width=120).print(table)
        return
    encoder, exact = load_bundle(args.bundle).encoder, load_bundle(args.bundle, precision="float32").encoder
    studies = list(read_studies(DEMO_CORPUS))[:256]
    at_100 = [study.ecg for study in studies if study.ecg]
    at_500 = [ecg.resample(500) for ecg in at_100]
    texts = [study.report.text for study in studies if study.report]
    peer = resnet18()

    def run_peer(ecgs: list[Ecg]) -> None:
        with torch.inference_mode():
            for start in range(0, len(ecgs), 64):
                peer(torch.from_numpy(np.stack([ecg.signal for ecg in ecgs[start : start + 64]])))

    rows = (
        ("mmecg, 10 s at 100 Hz", lambda: encoder.encode_ecg(at_100), lambda: encoder.encode_ecg(at_100[:1]), 256),
        ("mmecg, 10 s at 100 Hz, float32", lambda: exact.encode_ecg(at_100), lambda: exact.encode_ecg(at_100[:1]), 256),
        (
            "mmecg, 10 s at 500 Hz (resampled)",
            lambda: encoder.encode_ecg(at_500),
            lambda: encoder.encode_ecg(at_500[:1]),
            256,
        ),
        ("peer: ResNet-18, 10 s at 500 Hz", lambda: run_peer(at_500), lambda: run_peer(at_500[:1]), 256),
        ("mmecg, report text", lambda: encoder.encode_text(texts), lambda: encoder.encode_text(texts[:1]), len(texts)),
    )
    table = new_table(f"Encoding with {args.threads} threads; best of {args.repeats}", "the peer")
    measured = [
        (name, items / best_seconds(many, args.repeats), best_seconds(one, 5 * args.repeats))
        for name, many, one, items in rows
    ]
    reference = next(rate for name, rate, _ in measured if name.startswith("peer"))
    for name, rate, single in measured:
        ratio = "" if "text" in name else f"{rate / reference:.1f} x"
        table.add_row(name, f"{rate:,.0f}", f"{single * 1e3:.2f}", ratio)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
