"""Encoding speed of the bundle beside a peer of the usual size, in the same run on the same recordings.

    python benchmarks/bench_encode.py [--bundle DIR] [--threads 2]

The peer is a 1-D ResNet-18 on 12 leads at 500 Hz (3.8 M parameters), the network that MERL and many others use, with
random weights: speed does not depend on them. Our figure includes everything from an ``Ecg`` to its embedding. The
precision is the one that the processor allows (bfloat16 or float32), except where the row says float32.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from mmecg.assets import DEMO_CORPUS
from mmecg.bundle import load_bundle
from mmecg.datasets.parquet import read_studies
from mmecg.ecg import Ecg


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


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
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
    table = Table(title=f"Encoding with {args.threads} threads; best of {args.repeats}")
    for column in ("what", "items/s, batch", "ms, one item", "batch against the peer"):
        table.add_column(column, justify="left" if column == "what" else "right")
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
