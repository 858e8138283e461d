"""Self-supervised pretraining of ECG encoders: masked prediction, contrast of segments, random lead masking."""

from mmecg.pretraining.config import PretrainingConfig, load_pretraining_config
from mmecg.pretraining.loop import Pretrained, pretrain

__all__ = ["Pretrained", "PretrainingConfig", "load_pretraining_config", "pretrain"]
