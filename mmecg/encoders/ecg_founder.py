"""ECGFounder: a residual 1-D CNN trained on statements of more than 10 million ECGs of the Harvard-Emory database.

Li et al. 2024, arXiv:2410.04133; NEJM AI 2(7), AIoa2401033 (2025). Two published networks, of 12 leads and of lead I
alone, which differ in the first convolution only. Written from facts about the network, its tensors and its
preprocessing; parity with the authors' code is tested on golden vectors.

Preprocessing variants, since code and paper of the authors disagree:

========  ==============================================================================================
dataset   what their training code does: notch 50 Hz, band-pass 0.67-40 Hz, running median of 0.4 s subtracted
eval      what their evaluation script for PTB-XL does: no filter
paper     what their manuscript states: high-pass 0.5 Hz, low-pass 50 Hz of second order, notches at 50 and 60 Hz
========  ==============================================================================================

All end in one z-score over leads and samples together. The manuscript does not say of which order its high-pass is
(here second) and how the filters are run (here forward and backward).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mmecg.config import parse_config
from mmecg.ecg import LEADS
from mmecg.encoders.preprocessing import Preprocessing
from mmecg.encoders.registry import EncoderSpec, PublishedWeights, SeenData, read_labels
from mmecg.errors import BundleError

SAMPLES = 5000
"""10 s at 500 Hz."""


@dataclass(frozen=True)
class EcgFounderConfig:
    """Shape of the network.

    Attributes
    ----------
    leads : int
        12, or 1.
    stem_width : int
        Maps of the first convolution (stride 2).
    widths, blocks : tuple of int
        Maps, and number of blocks, of each stage; the first block of a stage halves the length.
    kernel : int
        Of the first convolution and of the grouped ones.
    group_width : int
        Maps a group.
    classes : int
        Outputs of the classifier.
    """

    leads: int = len(LEADS)
    stem_width: int = 64
    widths: tuple[int, ...] = (64, 160, 160, 400, 400, 1024, 1024)
    blocks: tuple[int, ...] = (2, 2, 2, 3, 3, 4, 4)
    kernel: int = 16
    group_width: int = 16
    classes: int = 150


class SameConv(nn.Module):
    """A convolution whose output has ceil(samples / stride) samples; an odd one of zeros padded goes to the right."""

    def __init__(self, width_in: int, width: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv1d(width_in, width, kernel, stride, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, width_in, samples) to (batch, width, ceil(samples / stride))."""
        (kernel,), (stride,), samples = self.conv.kernel_size, self.conv.stride, x.shape[-1]
        total = max(0, (-(-samples // stride) - 1) * stride + kernel - samples)
        left = total // 2
        if total % 2:
            x = functional.pad(x, (left, total - left))
            left = 0
        weight, bias = self.conv.weight, self.conv.bias
        return functional.conv1d(x, weight, bias, stride, left, groups=self.conv.groups)


class Block(nn.Module):
    """A bottleneck block with grouped convolution, squeeze-and-excitation, and a shortcut without weights.

    Building blocks: He et al. 2016 (arXiv:1603.05027, activation first), Xie et al. 2017 (arXiv:1611.05431, groups), Hu
    et al. 2018 (arXiv:1709.01507, squeeze-and-excitation), Ramachandran et al. 2017 (arXiv:1710.05941, Swish).

    Parameters
    ----------
    width_in, width : int
    config : EcgFounderConfig
    halves : bool
        It halves the length.
    is_first : bool
        The network's first, which has no activation before its first convolution: the stem has one behind.
    """

    def __init__(self, width_in: int, width: int, config: EcgFounderConfig, *, halves: bool, is_first: bool) -> None:
        super().__init__()
        self.halves, self.is_first = halves, is_first
        self.widens = width - width_in
        self.conv1 = SameConv(width_in, width, 1)
        self.conv2 = SameConv(width, width, config.kernel, 2 if halves else 1, groups=width // config.group_width)
        self.conv3 = SameConv(width, width, 1)
        self.se_fc1 = nn.Linear(width, width // 2)
        self.se_fc2 = nn.Linear(width // 2, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, width_in, samples) to (batch, width, samples or ceil(samples / 2))."""
        branch = x if self.is_first else functional.silu(x)
        branch = functional.silu(self.conv1(branch))
        branch = self.conv3(functional.silu(self.conv2(branch)))  # (batch, width, samples)
        gate = functional.silu(self.se_fc1(branch.mean(-1)))
        gate = self.se_fc2(gate).sigmoid()  # (batch, width)
        return torch.addcmul(self._shortcut(x), branch, gate.unsqueeze(-1))

    def _shortcut(self, x: Tensor) -> Tensor:
        """Halve the length by maxima, with one zero behind the signal, and add maps of zeros on both sides."""
        if self.halves:
            x = functional.max_pool1d(functional.pad(x, (0, 1)), 2)
        if self.widens:
            before = self.widens // 2
            x = functional.pad(x, (0, 0, before, self.widens - before))
        return x


class Stage(nn.Module):
    """Blocks of one width, the first of which halves the length."""

    def __init__(self, width_in: int, width: int, blocks: int, config: EcgFounderConfig, *, is_first: bool) -> None:
        super().__init__()
        first = Block(width_in, width, config, halves=True, is_first=is_first)
        others = [Block(width, width, config, halves=False, is_first=False) for _ in range(blocks - 1)]
        self.block_list = nn.ModuleList([first, *others])

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, width_in, samples) to (batch, width, ceil(samples / 2))."""
        for block in self.block_list:
            x = block(x)
        return x


class EcgFounder(nn.Module):
    """The network, with modules named as the tensors of the published file are.

    Parameters
    ----------
    config : EcgFounderConfig
    """

    def __init__(self, config: EcgFounderConfig) -> None:
        super().__init__()
        self.config = config
        self.first_conv = SameConv(config.leads, config.stem_width, config.kernel, 2)
        width_in = config.stem_width
        stages: list[Stage] = []
        for width, blocks in zip(config.widths, config.blocks, strict=True):
            stages.append(Stage(width_in, width, blocks, config, is_first=not stages))
            width_in = width
        self.stage_list = nn.ModuleList(stages)
        self.dense = nn.Linear(width_in, config.classes)

    def forward(self, signal: Tensor) -> tuple[Tensor, Tensor]:
        """Return features and logits.

        Parameters
        ----------
        signal : float, shape (batch, leads=12 or 1, samples=5000)
            z-scored, at 500 Hz; other lengths pass too.

        Returns
        -------
        features : float, shape (batch, dim=1024)
            Time mean of the last maps.
        logits : float, shape (batch, labels=150)
        """
        x = functional.silu(self.first_conv(signal))  # (batch, width, samples / 2)
        for stage in self.stage_list:
            x = stage(x)
        features = x.mean(-1)
        return features, self.dense(features)


def build(hyperparameters: Mapping[str, Any]) -> EcgFounder:
    """Return the network; hyper-parameters that are not given are the published ones.

    Raises
    ------
    ConfigError
        A hyper-parameter is unknown or impossible.
    """
    return EcgFounder(parse_config(EcgFounderConfig, hyperparameters))


def read_checkpoint(content: Mapping[str, Any], *, leads: int = len(LEADS)) -> PublishedWeights:
    """Return what a published file holds: a state dict under ``state_dict``, without configuration.

    The tensors of batch norms, which the network does not use, may be there or not.

    Parameters
    ----------
    content : mapping
        The file, read without running its code.
    leads : int
        12 or 1: which of the two networks is expected.

    Raises
    ------
    BundleError
        It is the file of another model, of another number of leads, or has other hyper-parameters.
    """
    state = content.get("state_dict")
    if not isinstance(state, Mapping) or not all(
        isinstance(key, str) and isinstance(tensor, Tensor) for key, tensor in state.items()
    ):
        found = ", ".join(str(key)[:60] for key in list(content)[:5]) or "nothing"
        raise BundleError(f"file holds {found}, expected state_dict as in a file of ECGFounder; give such a file")
    prefix = "module." * all(key.startswith("module.") for key in state)  # parallel training puts it before every key
    unused = tuple(key for key in state if _BATCH_NORM.search(key.removeprefix(prefix)))
    tensors = {key.removeprefix(prefix): tensor for key, tensor in state.items() if key not in unused}
    stem, head = tensors.get("first_conv.conv.weight"), tensors.get("dense.weight")
    if stem is not None and stem.ndim == 3 and stem.shape[1] != leads:
        other = {len(LEADS): SPEC.name, 1: SPEC_1_LEAD.name}.get(stem.shape[1])
        advice = f"import it as {other}" if other else "give a published file"
        raise BundleError(f"file is of a network of {stem.shape[1]} leads, expected {leads}; {advice}")
    if head is not None and len(head) != len(LABELS):
        raise BundleError(
            f"file has a classifier of {len(head)} labels, expected {len(LABELS)} ({LABELS[0].name}, …); the names of "
            "its labels are not known here, so import the published file and fit a head"
        )
    return PublishedWeights({"leads": leads}, tensors, unused)


_BATCH_NORM = re.compile(r"(^first_bn|\.bn[123])\.(weight|bias|running_mean|running_var|num_batches_tracked)$")

LABELS = read_labels("mmecg.encoders", "labels", "ecg_founder.csv")
"""The 150 statements; those that compare with an earlier ECG are marked ``serial``."""


def _spec(name: str, title: str, leads: tuple[str, ...], parameters: int) -> EncoderSpec:
    plain = Preprocessing(
        leads, samples=SAMPLES, resampling="polyphase", normalisation="record", epsilon=1e-8, framing="crop"
    )
    return EncoderSpec(
        name=name,
        title=title,
        paper="arXiv:2410.04133, doi:10.1056/AIoa2401033",
        code_licence="MIT",
        weights_licence="not stated with the code; see where you obtained the file",
        samples=SAMPLES,
        feature_dim=EcgFounderConfig().widths[-1],
        parameters=parameters,
        preprocessing={
            "dataset": replace(plain, filters=("notch_50hz", "bandpass_0.67_40hz", "median_0.4s")),
            "eval": plain,
            "paper": replace(plain, filters=("highpass_0.5hz", "lowpass_50hz", "notch_50hz", "notch_60hz")),
        },
        build=lambda hyperparameters: build({"leads": len(leads), **hyperparameters}),
        read_checkpoint=partial(read_checkpoint, leads=len(leads)),
        labels=LABELS,
        # Trained on the Harvard-Emory ECG database, which is not a public test set; PTB-XL is external to it.
        seen=(SeenData("HEEDB", "pretraining", "paper"),),
    )


SPEC = _spec("ecg-founder", "ECGFounder", LEADS, 30_819_014)
"""The network of 12 leads; its number of parameters counts 66,368 of batch norms that it does not use."""

SPEC_1_LEAD = _spec("ecg-founder-1-lead", "ECGFounder, lead I", ("I",), 30_807_750)
"""The network of lead I."""
