"""ECG-FM: a wav2vec-2.0-style transformer over 5 s segments of 12 leads (McKeen et al., arXiv:2408.05178).

Four strided convolutions turn 2500 samples into 156 tokens; a wide convolution over tokens adds their positions; 12
transformer layers that normalise after each sum follow. A segment's features are the mean over its tokens. Modules bear
the names of the published state, so that it loads key for key. Architecture: wav2vec 2.0 (Baevski et al. 2020,
arXiv:2006.11477); weight norm: Salimans and Kingma 2016, arXiv:1602.07868.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mmecg.config import parse_config, require
from mmecg.ecg import LEADS
from mmecg.encoders.preprocessing import Preprocessing
from mmecg.encoders.registry import EncoderSpec, PublishedWeights, SeenData, read_labels
from mmecg.errors import BundleError


@dataclass(frozen=True)
class EcgFmConfig:
    """Shape of the network; the defaults are the published ones.

    Attributes
    ----------
    leads : int
    convolutions : tuple of (width, kernel, stride)
    width, layers, heads, feed_forward : int
        Of the transformer.
    position_kernel, position_groups : int
        Of the convolution over tokens.
    labels : int
        Neurons of the classifier; 0 for none (the pretrained file).
    """

    leads: int = len(LEADS)
    convolutions: tuple[tuple[int, ...], ...] = ((256, 2, 2),) * 4
    width: int = 768
    layers: int = 12
    heads: int = 12
    feed_forward: int = 3072
    position_kernel: int = 128
    position_groups: int = 16
    labels: int = 0

    def __post_init__(self) -> None:
        require(self.width % self.heads == 0, f"width {self.width} is not divisible by {self.heads} heads")
        require(
            self.width % self.position_groups == 0,
            f"width {self.width} is not divisible by {self.position_groups} position groups",
        )


class FeatureExtractor(nn.Module):
    """Convolutions without bias, each followed by GELU; after the first, every map is normalised over time."""

    def __init__(self, config: EcgFmConfig) -> None:
        super().__init__()
        self.conv_layers = nn.ModuleList()
        width_in = config.leads
        for index, (width, kernel, stride) in enumerate(config.convolutions):
            layers: list[nn.Module] = [nn.Conv1d(width_in, width, kernel, stride, bias=False), nn.Identity()]
            if index == 0:
                layers.append(nn.GroupNorm(width, width))
            self.conv_layers.append(nn.Sequential(*layers, nn.GELU()))
            width_in = width

    def forward(self, signal: Tensor) -> Tensor:
        """Map (batch, leads, samples) to (batch, width, tokens)."""
        for layer in self.conv_layers:
            signal = layer(signal)
        return signal


class WeightNormConv(nn.Module):
    """A convolution over tokens whose kernel is ``g * v / ||v||``, with one norm a tap."""

    def __init__(self, width: int, kernel: int, groups: int) -> None:
        super().__init__()
        self.groups = groups
        deviation = (4 / (kernel * width)) ** 0.5
        self.weight_v = nn.Parameter(torch.randn(width, width // groups, kernel) * deviation)
        self.weight_g = nn.Parameter(self.weight_v.detach().norm(dim=(0, 1), keepdim=True))  # (1, 1, kernel)
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, width, tokens) to the same shape."""
        kernel = self.weight_g * self.weight_v / self.weight_v.norm(dim=(0, 1), keepdim=True)
        taps = kernel.shape[-1]
        out = functional.conv1d(x, kernel, self.bias, padding=taps // 2, groups=self.groups)
        return out[..., : x.shape[-1]]  # an even kernel gives one token too many


class PositionConv(nn.Module):
    """What the position of a token adds to it, computed from its neighbours."""

    def __init__(self, config: EcgFmConfig) -> None:
        super().__init__()
        self.pos_conv = nn.Sequential(
            WeightNormConv(config.width, config.position_kernel, config.position_groups), nn.GELU()
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (batch, tokens, width) to the same shape."""
        out: Tensor = self.pos_conv(tokens.transpose(1, 2))
        return out.transpose(1, 2)


class SelfAttention(nn.Module):
    """Multi-head self-attention with a bias on all four projections."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, tokens, width) to the same shape."""
        parts = (self.q_proj(x), self.k_proj(x), self.v_proj(x))
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        mixed = functional.scaled_dot_product_attention(query, key, value)  # (batch, heads, tokens, width / heads)
        out: Tensor = self.out_proj(mixed.transpose(1, 2).flatten(-2))
        return out


class TransformerLayer(nn.Module):
    """Attention and a two-layer perceptron; each is added to its input, and the sum is normalised."""

    def __init__(self, config: EcgFmConfig) -> None:
        super().__init__()
        self.self_attn = SelfAttention(config.width, config.heads)
        self.self_attn_layer_norm = nn.LayerNorm(config.width)
        self.fc1 = nn.Linear(config.width, config.feed_forward)
        self.fc2 = nn.Linear(config.feed_forward, config.width)
        self.final_layer_norm = nn.LayerNorm(config.width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, tokens, width) to the same shape."""
        x = self.self_attn_layer_norm(x + self.self_attn(x))
        out: Tensor = self.final_layer_norm(x + self.fc2(functional.gelu(self.fc1(x))))
        return out


class Transformer(nn.Module):
    """A layer norm, then the layers."""

    def __init__(self, config: EcgFmConfig) -> None:
        super().__init__()
        self.layer_norm = nn.LayerNorm(config.width)
        self.layers = nn.ModuleList(TransformerLayer(config) for _ in range(config.layers))

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, tokens, width) to the same shape."""
        x = self.layer_norm(x)
        for layer in self.layers:
            x = layer(x)
        return x


class EcgFm(nn.Module):
    """The network of ECG-FM.

    Parameters
    ----------
    config : EcgFmConfig
    """

    def __init__(self, config: EcgFmConfig) -> None:
        super().__init__()
        self.config = config
        width = config.convolutions[-1][0]
        self.feature_extractor = FeatureExtractor(config)
        self.layer_norm = nn.LayerNorm(width)
        self.post_extract_proj = nn.Linear(width, config.width) if width != config.width else nn.Identity()
        self.conv_pos = PositionConv(config)
        self.encoder = Transformer(config)
        self.proj = nn.Linear(config.width, config.labels) if config.labels else None

    def forward(self, signal: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return features and logits.

        Parameters
        ----------
        signal : float, shape (batch, leads=12, samples)
            z-scored, 500 Hz; 2500 samples in training, but any length works.

        Returns
        -------
        features : float, shape (batch, dim)
        logits : float, shape (batch, labels), or None
        """
        features = mean_tokens(self.contextualise(self.embed(signal)))
        return features, None if self.proj is None else self.proj(features)

    def embed(self, signal: Tensor) -> Tensor:
        """Map (batch, leads, samples) to tokens without position: (batch, tokens, width)."""
        maps: Tensor = self.feature_extractor(signal)
        tokens: Tensor = self.post_extract_proj(self.layer_norm(maps.transpose(1, 2)))
        return tokens

    def contextualise(self, tokens: Tensor) -> Tensor:
        """Add positions and run the transformer: (batch, tokens, width) to the same shape."""
        out: Tensor = self.encoder(tokens + self.conv_pos(tokens))
        return out


def mean_tokens(tokens: Tensor) -> Tensor:
    """Return for each channel the sum over tokens by the number of tokens where it is not 0: (batch, width).

    That is the mean, but for exact zeros, which the published code takes for padding.
    """
    return tokens.sum(1) / (tokens != 0).sum(1).clamp(min=1)


def build(hyperparameters: Mapping[str, Any]) -> EcgFm:
    """Return the network; hyper-parameters that are not given are the published ones.

    Raises
    ------
    ConfigError
        A hyper-parameter is unknown or impossible.
    """
    return EcgFm(parse_config(EcgFmConfig, hyperparameters))


_OPTIONS = {
    "in_d": "leads",
    "conv_feature_layers": "convolutions",
    "encoder_embed_dim": "width",
    "encoder_layers": "layers",
    "encoder_attention_heads": "heads",
    "encoder_ffn_embed_dim": "feed_forward",
    "conv_pos": "position_kernel",
    "conv_pos_groups": "position_groups",
}
"""Options of the published configuration that shape the network, and our names for them."""

_FIXED = {"layer_norm_first": False, "extractor_mode": "default", "conv_bias": False, "activation_fn": "gelu"}
"""Options of the published configuration that this network has one answer to."""

_PRETRAINING = ("mask_emb", "quantizer.", "project_q.", "final_proj.")
"""Beginnings of keys that only pretraining needs."""

_SPELLINGS = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
"""Weight norm as newer torch spells it, and as the published files do."""


def read_checkpoint(content: Mapping[str, Any]) -> PublishedWeights:
    """Return what a published file holds; its own configuration must be that of the published network.

    Parameters
    ----------
    content : mapping
        The file, read without running its code: ``cfg`` and ``model``, as fairseq-signals writes them.

    Raises
    ------
    BundleError
        It is the file of another model, or has other hyper-parameters.
    """
    state = content.get("model")
    named = isinstance(state, Mapping) and all(isinstance(key, str) for key in state)
    if not named or not state or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        found = ", ".join(str(key)[:60] for key in list(content)[:5]) or "nothing"
        raise BundleError(f"file holds {found}, expected cfg and model as in a file of ECG-FM; give such a file")
    _check_options(content)
    finetuned = any(key.startswith("encoder.encoder.") for key in state)
    tensors: dict[str, Tensor] = {}
    unused = []
    for key, tensor in state.items():
        ours = key.removeprefix("encoder.") if finetuned else key
        if ours.startswith(_PRETRAINING):
            unused.append(key)
            continue
        for theirs, spelling in _SPELLINGS.items():
            ours = ours.replace(theirs, spelling)
        if ours in tensors:
            raise BundleError(f"file holds {ours} in two spellings, expected one; give the file as it was published")
        tensors[ours] = tensor
    labels = tensors["proj.weight"].shape[:1].numel() if "proj.weight" in tensors else 0
    if labels not in (0, len(SPEC.labels)):
        raise BundleError(
            f"file has a classifier of {labels} labels, expected {len(SPEC.labels)} or none; "
            "what its labels mean is not known here: import the pretrained file and fit a head"
        )
    return PublishedWeights({"labels": labels}, tensors, tuple(unused))


def _check_options(content: Mapping[str, Any]) -> None:
    options = _options(content)
    expected: dict[str, Any] = _FIXED | {theirs: getattr(EcgFmConfig(), ours) for theirs, ours in _OPTIONS.items()}
    wrong = []
    for name, value in expected.items():
        got = options.get(name, value)
        if name == "conv_feature_layers" and name in options:
            got = _convolutions(got)
        if got != value:
            wrong.append(f"{name} {str(got)[:80]}, expected {value}")
    if wrong:
        raise BundleError(f"file was trained with other hyper-parameters: {'; '.join(wrong)}; give the published file")


def _options(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the model's options; a finetuned file keeps those of the pretrained one within its own."""
    cfg = content.get("cfg")
    options = cfg.get("model") if isinstance(cfg, Mapping) else content.get("args")
    if not isinstance(options, Mapping):
        raise BundleError("file has no configuration (cfg.model), so its hyper-parameters are unknown; give another")
    inner = options.get("args")
    within = _options({"cfg": inner}) if isinstance(inner, Mapping) and "model" in inner else {}
    return dict(options) | within


def _convolutions(value: Any) -> Any:
    """Return the layers that an expression such as ``[(256, 2, 2)] * 4`` stands for, without running it."""

    def layers(node: ast.expr) -> tuple[tuple[int, ...], ...]:
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            return layers(node.left) + layers(node.right)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
            return layers(node.left) * min(int(ast.literal_eval(node.right)), 100)
        return tuple(tuple(map(int, item)) for item in ast.literal_eval(node))

    try:
        return layers(ast.parse(value, mode="eval").body) if isinstance(value, str) else tuple(map(tuple, value))
    except (ValueError, TypeError, SyntaxError, RecursionError):
        return value


_CHALLENGE = "part of PhysioNet/CinC 2021, on which the weights were pretrained"
_CHALLENGE_SETS = ("PTB-XL", "PTB", "CPSC2018", "CPSC2018-Extra", "INCART", "Georgia", "Chapman-Shaoxing", "Ningbo")

SPEC = EncoderSpec(
    name="ecg-fm",
    title="ECG-FM",
    paper="arXiv:2408.05178, doi:10.1093/jamiaopen/ooaf122",
    code_licence="MIT",
    weights_licence="not stated with the code; see where you obtained the file",
    samples=2500,
    feature_dim=768,
    parameters=90_883_072,
    preprocessing={
        "published": Preprocessing(samples=2500),
        "notebook": Preprocessing(samples=2500, epsilon=1e-8),
    },
    build=build,
    read_checkpoint=read_checkpoint,
    labels=read_labels("mmecg.encoders", "labels", "ecg_fm.csv"),
    seen=(
        SeenData("MIMIC-IV-ECG", "pretraining, finetuning", "README of the published weights"),
        *(SeenData(name, "pretraining", _CHALLENGE) for name in _CHALLENGE_SETS),
    ),
)
"""The published encoder; ``preprocessing["notebook"]`` adds 1e-8 to standard deviations, as its notebook does."""
