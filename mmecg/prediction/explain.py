"""Where in the ECG a prediction comes from: saliency per lead and time, in log-odds of the label.

What is explained is the linear head on the ECG tower (its first member, before calibration, without cohort and
history), as a function of the signal in millivolt at the tower's rate.

``integrated_gradients``
    The gradient, averaged along the straight path from a flat line to the recording, times the recording. The values
    add up to the label's log-odds beyond those of the flat line (completeness) [1]_.
``occlusion``
    What the log-odds lose where 0.2 s of one lead are replaced by the lead's median [2]_. Slower, but asks the model
    itself, without a path through signals that are no ECG.

Both say what moved the model, not what is wrong with the heart.

References
----------
.. [1] Sundararajan, Taly, Yan, Axiomatic attribution for deep networks, ICML (2017).
.. [2] Zeiler, Fergus, Visualizing and understanding convolutional networks, ECCV (2014).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmecg.ecg import Ecg
from mmecg.embedding import Encoder
from mmecg.errors import QueryError
from mmecg.modeling.dual_encoder import SEGMENT_S, DualEncoder
from mmecg.prediction.asked import LabelResolver
from mmecg.prediction.result import METHODS, Method, Saliency
from mmecg.prediction.single import SingleHead

PATH_STEPS = 128
OCCLUDED_S, STRIDE_S = 0.2, 0.1
MAX_EXPLAINED = 8
"""Labels of one call: each costs a pass through the tower for every step of the path."""

_BATCH = 64


def explain(
    encoder: Encoder,
    head: SingleHead,
    head_labels: Sequence[str],
    ecg: Ecg,
    labels: Sequence[str],
    *,
    method: Method = "integrated_gradients",
) -> list[Saliency]:
    """Return the saliency of each label, in the order asked for.

    Parameters
    ----------
    encoder : Encoder
        With our own ECG tower.
    head : SingleHead
    head_labels : sequence of str
        The labels of the head.
    ecg : Ecg
    labels : sequence of str
        At most :data:`MAX_EXPLAINED`; names as :class:`~mmecg.prediction.asked.LabelResolver` takes them. Where several
        heads answer a name, the likeliest is explained.
    method : {"integrated_gradients", "occlusion"}

    Raises
    ------
    QueryError
        An unknown method, a label without a head, too many labels, or a published encoder as ECG tower.
    """
    if not isinstance(encoder, DualEncoder):
        raise QueryError("the bundle's ECG tower is a published encoder, expected ours; explain with another bundle")
    if method not in METHODS:
        raise QueryError(f"method is {str(method)[:30]!r}, expected one of {', '.join(METHODS)}", field="method")
    asked = LabelResolver(head_labels).resolve(labels)
    if len(asked) > MAX_EXPLAINED:
        raise QueryError(f"{len(asked)} labels to explain, expected at most {MAX_EXPLAINED}", field="labels")
    rate = encoder.config.ecg.sampling_rate_hz
    signal = torch.from_numpy(ecg.resample(rate).signal[:, : round(SEGMENT_S * rate)].copy())
    tower = _Tower(encoder, head)
    flat = torch.zeros_like(signal)
    recorded, baseline = tower.logits(torch.stack([signal, flat]))
    columns = [max(one.columns, key=lambda column: float(recorded[column])) for one in asked]
    if method == "occlusion":
        maps = _occlusion(tower, signal, torch.from_numpy(ecg.lead_mask.copy()), columns, rate)
    else:
        maps = [integrated_gradients(tower, signal, column) for column in columns]
    return [
        Saliency(one.label, method, values, rate, float(recorded[column]), float(baseline[column]))
        for one, column, values in zip(asked, columns, maps, strict=True)
    ]


class _Tower:
    """Signal to log-odds of every label, in float32 and with gradients."""

    def __init__(self, encoder: DualEncoder, head: SingleHead) -> None:
        self._ecg = encoder.ecg
        self._device = encoder.logit_scale.device
        self._weight = torch.from_numpy(np.array(head.weight[0], np.float32)).to(self._device)
        self._bias = torch.from_numpy(np.array(head.bias[0], np.float32)).to(self._device)

    def __call__(self, signals: Tensor) -> Tensor:
        """Map float32, shape (batch, leads, samples), to float32, shape (batch, labels)."""
        logits: Tensor = self._ecg(signals.to(self._device)) @ self._weight + self._bias
        return logits

    @torch.no_grad()
    def logits(self, signals: Tensor) -> Tensor:
        """Return the log-odds without gradients, batch by batch: float32, shape (n, labels)."""
        return torch.cat([self(part).cpu() for part in torch.split(signals, _BATCH)])


def integrated_gradients(logits: Callable[[Tensor], Tensor], signal: Tensor, column: int) -> NDArray[np.float32]:
    """Return the attributions along the path from a flat line, by the midpoint rule: float32, shape (leads, samples).

    Parameters
    ----------
    logits : callable
        From float32, shape (batch, leads, samples), to log-odds: float32, shape (batch, labels), with gradients.
    signal : float32, shape (leads, samples), mV
    column : int
        The label that is explained.
    """
    total = torch.zeros_like(signal)
    for share in torch.split((torch.arange(PATH_STEPS) + 0.5) / PATH_STEPS, _BATCH):
        inputs = (share[:, None, None] * signal).requires_grad_(True)  # (steps, leads, samples)
        (gradient,) = torch.autograd.grad(logits(inputs)[:, column].sum(), inputs)
        total += gradient.sum(0)
    values: NDArray[np.float32] = (total / PATH_STEPS * signal).numpy()
    return values


def _occlusion(
    tower: _Tower, signal: Tensor, recorded: Tensor, columns: Sequence[int], rate: float
) -> list[NDArray[np.float32]]:
    """Return what the log-odds lose, averaged over the windows that cover a sample: each shape (leads, samples)."""
    leads, samples = signal.shape
    width = min(round(OCCLUDED_S * rate), samples)
    starts = list(range(0, samples - width + 1, max(1, round(STRIDE_S * rate))))
    if starts[-1] + width < samples:
        starts.append(samples - width)
    places = [(lead, start) for lead in range(leads) if recorded[lead] for start in starts]
    whole = tower.logits(signal[None])[0, list(columns)]
    median = signal.median(dim=1).values
    lost = np.zeros((len(columns), leads, samples), np.float32)
    covered = np.zeros(samples, np.float32)
    for start in starts:
        covered[start : start + width] += width
    for begin in range(0, len(places), _BATCH):
        part = places[begin : begin + _BATCH]
        hidden = signal.repeat(len(part), 1, 1)
        for row, (lead, start) in enumerate(part):
            hidden[row, lead, start : start + width] = median[lead]
        drop = (whole - tower.logits(hidden)[:, list(columns)]).numpy()  # (windows, columns)
        for row, (lead, start) in enumerate(part):
            lost[:, lead, start : start + width] += drop[row][:, None]
    return list(lost / covered)
